-- Texts that a person looks at before they are sent. Additive only.

CREATE TABLE IF NOT EXISTS campaign_pipeline.campaign_reviews (
    message_id uuid PRIMARY KEY,
    run_id     uuid NOT NULL,
    decision   text NOT NULL CHECK (decision IN ('approved', 'rejected')),
    edited     boolean NOT NULL DEFAULT false,
    decided_by text NOT NULL,
    decided_at timestamptz NOT NULL
);
COMMENT ON TABLE campaign_pipeline.campaign_reviews IS
    'What a person said of a message''s text before it was sent, where its campaign asks for that (campaign_settings.review).';
COMMENT ON COLUMN campaign_pipeline.campaign_reviews.message_id IS 'The message. No foreign key: the CRM deletes messages.';
COMMENT ON COLUMN campaign_pipeline.campaign_reviews.run_id IS 'Its run.';
COMMENT ON COLUMN campaign_pipeline.campaign_reviews.decision IS 'approved: it may go out; rejected: it never does.';
COMMENT ON COLUMN campaign_pipeline.campaign_reviews.edited IS 'Whether the person changed the text.';
COMMENT ON COLUMN campaign_pipeline.campaign_reviews.decided_by IS 'Who.';
COMMENT ON COLUMN campaign_pipeline.campaign_reviews.decided_at IS 'When.';
-- Serves: campaign_awaits_review (how many of a run are decided).
CREATE INDEX IF NOT EXISTS campaign_reviews_of_run ON campaign_pipeline.campaign_reviews (run_id);
