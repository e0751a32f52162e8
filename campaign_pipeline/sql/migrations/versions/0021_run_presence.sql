-- A run whose process is gone is told from one that waits for workers.

CREATE TABLE IF NOT EXISTS campaign_pipeline.campaign_run_presence (
    dagster_run_id text PRIMARY KEY,
    host           text NOT NULL,
    seen_at        timestamptz NOT NULL
);
COMMENT ON TABLE campaign_pipeline.campaign_run_presence IS
    'A row per Dagster run whose process is at work; the process renews it four times a minute and deletes it at its end.';
COMMENT ON COLUMN campaign_pipeline.campaign_run_presence.dagster_run_id IS 'The run, as Dagster names it.';
COMMENT ON COLUMN campaign_pipeline.campaign_run_presence.host IS 'The host of its process.';
COMMENT ON COLUMN campaign_pipeline.campaign_run_presence.seen_at IS 'When the process last showed itself.';
