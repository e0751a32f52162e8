-- Events that the pipeline's own webhook receives. Additive only.

CREATE TABLE IF NOT EXISTS campaign_pipeline.campaign_webhook_events (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    provider    text NOT NULL,
    event_id    text NOT NULL,
    instance    text NOT NULL,
    kind        text NOT NULL CHECK (kind IN ('status', 'message')),
    body        jsonb NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now(),
    try_after   timestamptz NOT NULL DEFAULT now(),
    settled_at  timestamptz,
    verdict     text,
    UNIQUE (provider, event_id)
);
COMMENT ON TABLE campaign_pipeline.campaign_webhook_events IS
    'What `campaign-pipeline webhook` was told: stored first, answered after, applied then. Where the CRM takes the webhooks, it stays empty.';
COMMENT ON COLUMN campaign_pipeline.campaign_webhook_events.id IS 'The order in which they came.';
COMMENT ON COLUMN campaign_pipeline.campaign_webhook_events.provider IS 'cloud_api, evolution or uazapi.';
COMMENT ON COLUMN campaign_pipeline.campaign_webhook_events.event_id IS
    'The provider''s id of the message, and for a receipt its status: an event that comes again is not stored again.';
COMMENT ON COLUMN campaign_pipeline.campaign_webhook_events.instance IS 'By what the provider names the inbox.';
COMMENT ON COLUMN campaign_pipeline.campaign_webhook_events.kind IS 'status: a receipt of a part of ours; message: from a lead.';
COMMENT ON COLUMN campaign_pipeline.campaign_webhook_events.body IS 'What it says; emptied once it is applied.';
COMMENT ON COLUMN campaign_pipeline.campaign_webhook_events.received_at IS 'When it came.';
COMMENT ON COLUMN campaign_pipeline.campaign_webhook_events.try_after IS 'Not looked at before: its part is still being sent.';
COMMENT ON COLUMN campaign_pipeline.campaign_webhook_events.settled_at IS 'When it was dealt with; null: not yet.';
COMMENT ON COLUMN campaign_pipeline.campaign_webhook_events.verdict IS 'What was done with it.';
-- Serves: campaign_settle_webhook_events.
CREATE INDEX IF NOT EXISTS campaign_webhook_events_open
    ON campaign_pipeline.campaign_webhook_events (try_after) WHERE settled_at IS NULL;
-- Serves: drop_settled_webhook_events.
CREATE INDEX IF NOT EXISTS campaign_webhook_events_settled
    ON campaign_pipeline.campaign_webhook_events (settled_at) WHERE settled_at IS NOT NULL;
