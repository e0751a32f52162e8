-- Two triggers and their functions get names that say what they do. Renamed, not made anew: no reply and no change of a
-- pace goes unnoticed meanwhile. One table a step; a database that was upgraded in one go has the new names already,
-- and a detached one has no triggers.

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_trigger
               WHERE tgrelid = 'public.messages'::regclass AND tgname = 'campaign_hear_reply') THEN
        ALTER TRIGGER campaign_hear_reply ON public.messages RENAME TO campaign_process_reply;
    END IF;
END $$;

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_trigger
               WHERE tgrelid = 'public.campaign_configs'::regclass AND tgname = 'campaign_notice_pace') THEN
        ALTER TRIGGER campaign_notice_pace ON public.campaign_configs RENAME TO campaign_recheck_paced_runs;
    END IF;
END $$;

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'campaign_pipeline.campaign_inbox_pace'::regclass
               AND tgname = 'campaign_notice_pace') THEN
        ALTER TRIGGER campaign_notice_pace ON campaign_pipeline.campaign_inbox_pace
            RENAME TO campaign_recheck_paced_runs;
    END IF;
END $$;

DO $$
BEGIN
    IF to_regprocedure('campaign_pipeline.campaign_hear_reply()') IS NOT NULL THEN
        ALTER FUNCTION campaign_pipeline.campaign_hear_reply() RENAME TO campaign_process_reply;
    END IF;
    IF to_regprocedure('campaign_pipeline.campaign_notice_pace()') IS NOT NULL THEN
        ALTER FUNCTION campaign_pipeline.campaign_notice_pace() RENAME TO campaign_recheck_paced_runs;
    END IF;
END $$;

COMMENT ON COLUMN campaign_pipeline.campaign_lead_days.lead_id IS 'The lead that has had its message of the day.';
COMMENT ON COLUMN campaign_pipeline.campaign_erasures.erased_at IS 'When the data of the person was erased.';
COMMENT ON COLUMN campaign_pipeline.campaign_replaced_functions.replaced_at IS 'When the attach replaced the function.';
COMMENT ON COLUMN campaign_pipeline.campaign_manual_pauses.since IS 'When the person paused it.';
COMMENT ON COLUMN campaign_pipeline.campaign_reviews.decided_at IS 'When the person approved or rejected the text.';
