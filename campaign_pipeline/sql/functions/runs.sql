-- The life of a run: reopened, resumed, closed.

-- Reopen an ended run: its counters become those of its present messages, and it will end again.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_note_reopening() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, campaign_pipeline, pg_temp AS $$
BEGIN
    SELECT count(*) FILTER (WHERE m.status IN ('sent', 'replied')), count(*) FILTER (WHERE m.status = 'failed'),
           count(*) FILTER (WHERE m.status = 'skipped'), count(*)
    INTO NEW.leads_success, NEW.leads_failed, NEW.leads_skipped, NEW.leads_processed
    FROM public.campaign_messages m
    WHERE m.run_id = NEW.id AND m.status IN ('sent', 'replied', 'failed', 'skipped');
    NEW.completed_at := NULL;
    NEW.closed_by_pipeline_at := NULL;
    RETURN NEW;
END $$;
CREATE OR REPLACE TRIGGER campaign_note_reopening BEFORE UPDATE OF status ON public.campaign_runs
    FOR EACH ROW
    WHEN (OLD.status IN ('completed', 'failed', 'cancelled') AND NEW.status IN ('running', 'paused'))
    EXECUTE FUNCTION campaign_pipeline.campaign_note_reopening();

-- A resume, by any tool, only sets the run's status. The time is recorded so that the next batch spreads messages that
-- became overdue meanwhile, instead of sending them in a burst, and does not skip them as too old.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_note_resume() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, campaign_pipeline, pg_temp AS $$
BEGIN
    NEW.resumed_at := campaign_pipeline.campaign_now();
    RETURN NEW;
END $$;
CREATE OR REPLACE TRIGGER campaign_note_resume BEFORE UPDATE OF status ON public.campaign_runs
    FOR EACH ROW WHEN (OLD.status = 'paused' AND NEW.status = 'running')
    EXECUTE FUNCTION campaign_pipeline.campaign_note_resume();

-- A run is completed when none of its messages can change any more (I7). The CRM's finalize_campaign_run_if_complete
-- uses only the run's total, which may be 0 or too small while messages wait: such a run goes on, and is completed once
-- none of its messages is left. The statement's other changes stay.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_refuse_early_end() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, campaign_pipeline, pg_temp AS $$
BEGIN
    -- LIMIT 1: an index probe each, as in campaign_close_runs.
    IF (SELECT 1 FROM public.campaign_messages m WHERE m.run_id = NEW.id AND m.status = 'pending' LIMIT 1) IS NOT NULL
       OR (SELECT 1 FROM public.campaign_messages m
           WHERE m.run_id = NEW.id AND campaign_pipeline.campaign_is_leased_indexed(m.status) LIMIT 1) IS NOT NULL THEN
        NEW.status := OLD.status;
        NEW.completed_at := OLD.completed_at;
    END IF;
    RETURN NEW;
END $$;
CREATE OR REPLACE TRIGGER campaign_refuse_early_end BEFORE UPDATE OF status ON public.campaign_runs
    FOR EACH ROW WHEN (OLD.status = 'running' AND NEW.status = 'completed')
    EXECUTE FUNCTION campaign_pipeline.campaign_refuse_early_end();

-- The CRM's resume_campaign_run returns what its pause had skipped, with a new scheduled_at: that is the due time, and
-- no trace of earlier attempts counts.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_note_resumed_message() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, campaign_pipeline, pg_temp AS $$
BEGIN
    NEW.next_attempt_at := NULL;
    NEW.lease_token := NULL;
    NEW.lease_expires_at := NULL;
    NEW.finished_at := NULL;
    NEW.error_class := NULL;
    NEW.error_code := NULL;
    RETURN NEW;
END $$;
CREATE OR REPLACE TRIGGER campaign_note_resumed_message BEFORE UPDATE OF status ON public.campaign_messages
    FOR EACH ROW
    WHEN (OLD.status = 'skipped' AND NEW.status = 'pending' AND NEW.scheduled_at IS DISTINCT FROM OLD.scheduled_at
          AND NEW.next_attempt_at IS NOT DISTINCT FROM OLD.next_attempt_at)
    EXECUTE FUNCTION campaign_pipeline.campaign_note_resumed_message();

-- Close runs that can change no more: running ones become completed, cancelled ones get their end time; each exactly
-- once. Totals are ignored, because they may be wrong. A run without messages stays open for five minutes, because they
-- may still be inserted, and for an hour if its total is above zero; a later message reopens it. The run is locked
-- before its messages are checked again, in the mode that conflicts with a new message's foreign key: a message that is
-- being inserted keeps its run out of this call. Locked rows wait for the next call.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_close_runs() RETURNS TABLE (
    id uuid, name text, status text, leads_total integer, leads_success integer, leads_failed integer,
        leads_skipped integer
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    ended  uuid[];
    locked uuid[];
BEGIN
    SELECT array_agg(r.id) INTO ended
    FROM public.campaign_runs r
    WHERE (r.status = 'running' OR (r.status = 'cancelled' AND r.completed_at IS NULL))
      -- LIMIT 1 makes each an index probe per run; NOT EXISTS may become one join over all leases (15 ms).
      AND (SELECT 1 FROM public.campaign_messages m WHERE m.run_id = r.id AND m.status = 'pending' LIMIT 1) IS NULL
      AND (SELECT 1 FROM public.campaign_messages m
           WHERE m.run_id = r.id AND campaign_pipeline.campaign_is_leased_indexed(m.status) LIMIT 1) IS NULL
      AND (r.status = 'cancelled' OR r.leads_processed > 0
           OR COALESCE(r.started_at, r.run_date::timestamp AT TIME ZONE 'UTC',
                       '-infinity') < campaign_pipeline.campaign_now()
              - CASE WHEN r.leads_total > 0 THEN interval '1 hour' ELSE interval '5 minutes' END);
    IF ended IS NULL THEN
        RETURN;
    END IF;

    SELECT array_agg(l.id) INTO locked
    FROM (SELECT r.id FROM public.campaign_runs r WHERE r.id = ANY (ended)
          ORDER BY r.id FOR UPDATE SKIP LOCKED) l;

    -- A separate statement, so that it sees what was committed before the lock was granted.
    RETURN QUERY
    UPDATE public.campaign_runs r
    SET status = CASE WHEN r.status = 'running' THEN 'completed' ELSE r.status END,
        completed_at = campaign_pipeline.campaign_now(), closed_by_pipeline_at = campaign_pipeline.campaign_now(),
        wait_code = NULL, wait_reason = NULL, wait_until = NULL
    WHERE r.id = ANY (locked)
      AND (r.status = 'running' OR (r.status = 'cancelled' AND r.completed_at IS NULL))
      AND (SELECT 1 FROM public.campaign_messages m WHERE m.run_id = r.id AND m.status = 'pending' LIMIT 1) IS NULL
      AND (SELECT 1 FROM public.campaign_messages m
           WHERE m.run_id = r.id AND campaign_pipeline.campaign_is_leased_indexed(m.status) LIMIT 1) IS NULL
    RETURNING r.id, r.name, r.status, r.leads_total, r.leads_success, r.leads_failed, r.leads_skipped;
END $$;
