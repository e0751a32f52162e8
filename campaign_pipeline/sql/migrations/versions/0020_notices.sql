-- What people were told and is not over yet, so that one cause is told once, whichever process looks. Additive only.

CREATE TABLE IF NOT EXISTS campaign_pipeline.campaign_notices (
    key     text PRIMARY KEY,
    title   text NOT NULL,
    since   timestamptz NOT NULL,
    told_at timestamptz NOT NULL,
    size    integer NOT NULL DEFAULT 0,
    run_ids uuid[] NOT NULL DEFAULT '{}',
    job     text
);
COMMENT ON TABLE campaign_pipeline.campaign_notices IS
    'Notices that stand: a row from when a person was told until they were told that it is over.';
COMMENT ON COLUMN campaign_pipeline.campaign_notices.key IS 'The cause and its scope, such as bad_key:provider:openrouter.';
COMMENT ON COLUMN campaign_pipeline.campaign_notices.title IS 'The headline that people saw.';
COMMENT ON COLUMN campaign_pipeline.campaign_notices.since IS 'When the cause began.';
COMMENT ON COLUMN campaign_pipeline.campaign_notices.told_at IS 'When it was last told; a reminder follows after hours.';
COMMENT ON COLUMN campaign_pipeline.campaign_notices.size IS 'How large it was then; growing is news. 0: it has no size.';
COMMENT ON COLUMN campaign_pipeline.campaign_notices.run_ids IS 'The campaign runs that it holds.';
COMMENT ON COLUMN campaign_pipeline.campaign_notices.job IS
    'Of a Dagster run that failed: the job, a later success of which ends the notice.';
