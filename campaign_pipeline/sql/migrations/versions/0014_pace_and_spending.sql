-- Whose pace holds, and spending that counts from the day's start.

ALTER TABLE public.campaign_configs ADD COLUMN IF NOT EXISTS enforce_pace boolean;
COMMENT ON COLUMN public.campaign_configs.enforce_pace IS
    'Whether min_interval_seconds and daily_limit hold over all runs; null: where the pipeline plans, and not a CRM.';

ALTER TABLE campaign_pipeline.campaign_spending ADD COLUMN IF NOT EXISTS slot smallint NOT NULL DEFAULT 0;
COMMENT ON COLUMN campaign_pipeline.campaign_spending.slot IS
    'One of several rows of a sum: 0 where there is a limit, others so that writers do not wait for each other.';
COMMENT ON TABLE campaign_pipeline.campaign_spending IS
    'What texts cost: per workspace and day, and per run where that has a limit.';
ALTER TABLE campaign_pipeline.campaign_spending DROP CONSTRAINT IF EXISTS campaign_spending_pkey,
    ADD CONSTRAINT campaign_spending_pkey PRIMARY KEY (scope, scope_id, day, slot);
