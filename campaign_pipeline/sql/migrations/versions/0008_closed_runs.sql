-- A trigger function that comes with the next step writes these: they are there before any write of the CRM calls that.
-- A step of its own, because that step has to lock campaign_messages first: whoever inserts a message locks its run
-- after it.
ALTER TABLE public.campaign_runs ADD COLUMN IF NOT EXISTS closed_by_pipeline_at timestamptz;
COMMENT ON COLUMN public.campaign_runs.closed_by_pipeline_at IS
    'When the pipeline closed the run, nothing of it being left. A message that comes later opens such a run again.';
CREATE TABLE IF NOT EXISTS campaign_pipeline.campaign_deleted_in_flight (
    message_id uuid PRIMARY KEY,
    deleted_at timestamptz NOT NULL
);
COMMENT ON TABLE campaign_pipeline.campaign_deleted_in_flight IS
    'Messages that were deleted before all of them was sent: their leads are still to be moved. Whether the part under '
    'way went out is settled by its worker, or, if that died, five minutes later.';
COMMENT ON COLUMN campaign_pipeline.campaign_deleted_in_flight.message_id IS 'The message that is no more.';
COMMENT ON COLUMN campaign_pipeline.campaign_deleted_in_flight.deleted_at IS 'When it was deleted.';
