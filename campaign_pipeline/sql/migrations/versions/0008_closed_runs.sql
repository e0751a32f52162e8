-- A trigger function that comes with the next step writes it: it is there before any write of the CRM calls that. A
-- step of its own, because that step has to lock campaign_messages first: whoever inserts a message locks its run after
-- it.
ALTER TABLE public.campaign_runs ADD COLUMN IF NOT EXISTS closed_by_pipeline_at timestamptz;
COMMENT ON COLUMN public.campaign_runs.closed_by_pipeline_at IS
    'When the pipeline closed the run, nothing of it being left. A message that comes later opens such a run again.';
