-- Counters of runs (I6), maintained by triggers on messages.

-- Counters follow every change of messages in the same transaction: a trigger, so that a manual statement or one of the
-- CRM cannot make them wrong. One UPDATE per run and statement. Runs are locked in the order of their ids; otherwise
-- two transactions that finish messages of the same two runs could deadlock.
-- An ended run keeps its counters, whatever happens to its messages: the CRM deletes some of them. The rest of a
-- cancelled run is counted until it has its completed_at.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_add_to_counters(p_changes jsonb) RETURNS void
    LANGUAGE plpgsql AS $$
DECLARE
    delta record;
BEGIN
    IF p_changes IS NULL THEN  -- nearly every statement: nothing to count
        RETURN;
    END IF;
    PERFORM pg_catalog.set_config('campaign_pipeline.counting', 'on', true);  -- see campaign_guard_counters
    FOR delta IN
        SELECT run_id,
               COALESCE(sum(n) FILTER (WHERE status IN ('sent', 'replied')), 0) AS success,
               COALESCE(sum(n) FILTER (WHERE status = 'failed'), 0)             AS failed,
               COALESCE(sum(n) FILTER (WHERE status = 'skipped'), 0)            AS skipped
        FROM jsonb_to_recordset(p_changes) AS c (run_id uuid, status text, n integer)
        GROUP BY run_id
        ORDER BY run_id
    LOOP
        PERFORM campaign_pipeline.campaign_look_in_public();
        UPDATE public.campaign_runs r
        SET leads_success   = COALESCE(r.leads_success, 0) + delta.success,
            leads_failed    = COALESCE(r.leads_failed, 0) + delta.failed,
            leads_skipped   = COALESCE(r.leads_skipped, 0) + delta.skipped,
            leads_processed = COALESCE(r.leads_processed, 0) + delta.success + delta.failed + delta.skipped
        WHERE r.id = delta.run_id AND (delta.success, delta.failed, delta.skipped) <> (0, 0, 0)
          AND (r.status IN ('running', 'paused') OR (r.status = 'cancelled' AND r.completed_at IS NULL));
    END LOOP;
    PERFORM pg_catalog.set_config('campaign_pipeline.counting', '', true);
END $$;

-- A transition table belongs to one kind of statement, hence three triggers. Only counted statuses are summed: a
-- heartbeat or a claim adds nothing and locks no run.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_count_updated() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, campaign_pipeline, pg_temp AS $$
BEGIN
    -- Most statements start messages or renew leases: nothing to count.
    IF NOT EXISTS (SELECT FROM new_rows WHERE status IN ('sent', 'replied', 'failed', 'skipped'))
       AND NOT EXISTS (SELECT FROM old_rows WHERE status IN ('sent', 'replied', 'failed', 'skipped')) THEN
        RETURN NULL;
    END IF;
    PERFORM campaign_pipeline.campaign_add_to_counters(jsonb_agg(change)) FROM (
        SELECT run_id, status, sum(n)::integer AS n
        FROM (SELECT run_id, status, 1 AS n FROM new_rows WHERE status IN ('sent', 'replied', 'failed', 'skipped')
              UNION ALL
              SELECT run_id, status, -1 FROM old_rows
              WHERE status IN ('sent', 'replied', 'failed', 'skipped')) both_sides
        GROUP BY run_id, status
    ) change WHERE change.n <> 0;
    RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER campaign_count_updated AFTER UPDATE ON public.campaign_messages
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION campaign_pipeline.campaign_count_updated();

-- Also: a late message of a run that was closed as empty reopens the run.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_count_inserted() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, campaign_pipeline, pg_temp AS $$
BEGIN
    PERFORM campaign_pipeline.campaign_add_to_counters(jsonb_agg(change)) FROM (
        SELECT run_id, status, count(*)::integer AS n FROM new_rows
        WHERE status IN ('sent', 'replied', 'failed', 'skipped') GROUP BY run_id, status
    ) change WHERE change.n <> 0;
    -- Last, because campaign_note_reopening counts the new rows too.
    PERFORM campaign_pipeline.campaign_look_in_public();
    UPDATE public.campaign_runs r SET status = 'running'
    WHERE r.id IN (SELECT n.run_id FROM new_rows n WHERE n.status = 'pending')
      AND r.status = 'completed' AND r.closed_by_pipeline_at IS NOT NULL;
    RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER campaign_count_inserted AFTER INSERT ON public.campaign_messages
    REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION campaign_pipeline.campaign_count_inserted();

-- Messages that are deleted after their run ended, by the CRM's clean-up or with their lead, stay counted. Those with
-- parts sent or in flight are remembered until their leads are moved: see campaign_settle_deleted.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_count_deleted() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, campaign_pipeline, pg_temp AS $$
BEGIN
    INSERT INTO campaign_pipeline.campaign_deleted_in_flight (message_id, deleted_at)
    SELECT o.id, campaign_pipeline.campaign_now() FROM old_rows o
    WHERE o.status NOT IN ('sent', 'replied', 'failed')
      AND EXISTS (SELECT 1 FROM campaign_pipeline.campaign_message_parts p
                  WHERE p.message_id = o.id AND p.status <> 'planned')
    ON CONFLICT DO NOTHING;
    PERFORM campaign_pipeline.campaign_add_to_counters(jsonb_agg(change)) FROM (
        SELECT o.run_id, o.status, -count(*)::integer AS n
        FROM old_rows o JOIN public.campaign_runs r ON r.id = o.run_id AND r.status IN ('running', 'paused')
        WHERE o.status IN ('sent', 'replied', 'failed', 'skipped') GROUP BY o.run_id, o.status
    ) change WHERE change.n <> 0;
    RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER campaign_count_deleted AFTER DELETE ON public.campaign_messages
    REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION campaign_pipeline.campaign_count_deleted();

CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_count_truncated() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, campaign_pipeline, pg_temp AS $$
BEGIN
    PERFORM pg_catalog.set_config('campaign_pipeline.counting', 'on', true);
    PERFORM campaign_pipeline.campaign_look_in_public();
    UPDATE public.campaign_runs SET leads_success = 0, leads_failed = 0, leads_skipped = 0, leads_processed = 0
    WHERE status IN ('running', 'paused')
      AND (leads_success, leads_failed, leads_skipped, leads_processed) IS DISTINCT FROM (0, 0, 0, 0);
    PERFORM pg_catalog.set_config('campaign_pipeline.counting', '', true);
    RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER campaign_count_truncated AFTER TRUNCATE ON public.campaign_messages
    FOR EACH STATEMENT EXECUTE FUNCTION campaign_pipeline.campaign_count_truncated();
