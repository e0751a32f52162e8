-- Living with the CRM that the tables belong to.

-- Counters that start right (I6) -------------------------------------------------------------------------------------

-- Recount one run that is open; one that has ended is history, for the CRM deletes its messages. The run is locked by
-- one statement and counted by the next: whoever changed messages of it before has committed by then and is seen, and
-- whoever changes them from now on adds to what is written here.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_recount_run(p_run uuid) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM public.campaign_runs r WHERE r.id = p_run AND r.status IN ('running', 'paused') FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    UPDATE public.campaign_runs r
    SET leads_success = n.success, leads_failed = n.failed, leads_skipped = n.skipped,
        leads_processed = n.success + n.failed + n.skipped
    FROM (SELECT count(*) FILTER (WHERE m.status IN ('sent', 'replied')) AS success,
                 count(*) FILTER (WHERE m.status = 'failed')             AS failed,
                 count(*) FILTER (WHERE m.status = 'skipped')            AS skipped
          FROM public.campaign_messages m
          WHERE m.run_id = p_run AND m.status IN ('sent', 'replied', 'failed', 'skipped')) n
    WHERE r.id = p_run
      AND (r.leads_success, r.leads_failed, r.leads_skipped, r.leads_processed)
          IS DISTINCT FROM (n.success, n.failed, n.skipped, n.success + n.failed + n.skipped);
END $$;
