-- As in 0008_closed_runs, for installations that were past it.
CREATE TABLE IF NOT EXISTS campaign_pipeline.campaign_deleted_in_flight (
    message_id uuid PRIMARY KEY,
    deleted_at timestamptz NOT NULL
);
COMMENT ON TABLE campaign_pipeline.campaign_deleted_in_flight IS
    'Messages that were deleted before all of them was sent: their leads are still to be moved. Whether the part under '
    'way went out is settled by its worker, or, if that died, five minutes later.';
COMMENT ON COLUMN campaign_pipeline.campaign_deleted_in_flight.message_id IS 'The message that is no more.';
COMMENT ON COLUMN campaign_pipeline.campaign_deleted_in_flight.deleted_at IS 'When it was deleted.';
