-- Functions and triggers of the pipeline. Applied anew at every `campaign-pipeline db upgrade`.
--
-- Everything of ours is in the schema campaign_pipeline, and every name is qualified: the search_path of whoever calls
-- is the CRM's business, and a transaction pooler keeps none. Functions that run in somebody else's statement
-- (triggers) run with the rights of their owner, who owns the CRM's tables too, and look in pg_catalog first and in
-- pg_temp last, so that nobody can put an object of their own before one that is meant.
--
-- Every function that changes messages works on a whole set at once (a JSON array of items), because messages that
-- finish together are committed together. Every change of a leased message names its lease token.

-- The clock ----------------------------------------------------------------------------------------------------------

-- The only clock that decides anything. Tests and rehearsals move it: SET campaign.clock_offset = '3 hours'.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_now() RETURNS timestamptz
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT now() + COALESCE(NULLIF(current_setting('campaign.clock_offset', true), ''), '0')::interval
$$;

-- At most so many characters of a text. A text's bytes are known, its characters have to be counted: a fifth of the
-- time of get_lead_contexts. Plain enough to become part of the statement that calls it.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_cut(p_text text, p_chars integer) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN octet_length(p_text) <= p_chars THEN p_text ELSE left(p_text, p_chars) END
$$;

-- Counters (I6) ------------------------------------------------------------------------------------------------------

-- Counters follow the messages, whoever changes them and in the same transaction: a trigger, so that a statement typed
-- by hand or by the CRM cannot make them wrong. One UPDATE per run and statement. Runs are locked in the order of
-- their ids, or two transactions that finish messages of the same two runs could wait for each other for ever.
-- A run that has ended keeps its counters, whatever becomes of its messages: the CRM deletes some of them. What is left
-- of a cancelled run is still counted until it has its completed_at.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_add_to_counters(p_changes jsonb) RETURNS void
    LANGUAGE plpgsql AS $$
DECLARE
    delta record;
BEGIN
    PERFORM set_config('campaign_pipeline.counting', 'on', true);  -- see campaign_guard_counters
    FOR delta IN
        SELECT run_id,
               COALESCE(sum(n) FILTER (WHERE status IN ('sent', 'replied')), 0) AS success,
               COALESCE(sum(n) FILTER (WHERE status = 'failed'), 0)             AS failed,
               COALESCE(sum(n) FILTER (WHERE status = 'skipped'), 0)            AS skipped
        FROM jsonb_to_recordset(p_changes) AS c (run_id uuid, status text, n integer)
        GROUP BY run_id
        ORDER BY run_id
    LOOP
        UPDATE public.campaign_runs r
        SET leads_success   = COALESCE(r.leads_success, 0) + delta.success,
            leads_failed    = COALESCE(r.leads_failed, 0) + delta.failed,
            leads_skipped   = COALESCE(r.leads_skipped, 0) + delta.skipped,
            leads_processed = COALESCE(r.leads_processed, 0) + delta.success + delta.failed + delta.skipped
        WHERE r.id = delta.run_id AND (delta.success, delta.failed, delta.skipped) <> (0, 0, 0)
          AND (r.status IN ('running', 'paused') OR (r.status = 'cancelled' AND r.completed_at IS NULL));
    END LOOP;
    PERFORM set_config('campaign_pipeline.counting', '', true);
END $$;

-- A transition table belongs to one kind of statement, hence three triggers. Only statuses that are counted are summed:
-- a heartbeat or a claim adds nothing and locks no run.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_count_updated() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, campaign_pipeline, pg_temp AS $$
BEGIN
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

-- Also: a message that comes late, into a run that was closed because nothing of it was left, opens it again.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_count_inserted() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, campaign_pipeline, pg_temp AS $$
BEGIN
    UPDATE public.campaign_runs r SET status = 'running'
    WHERE r.id IN (SELECT n.run_id FROM new_rows n WHERE n.status = 'pending')
      AND r.status = 'completed' AND r.closed_by_pipeline_at IS NOT NULL;
    PERFORM campaign_pipeline.campaign_add_to_counters(jsonb_agg(change)) FROM (
        SELECT run_id, status, count(*)::integer AS n FROM new_rows
        WHERE status IN ('sent', 'replied', 'failed', 'skipped') GROUP BY run_id, status
    ) change WHERE change.n <> 0;
    RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER campaign_count_inserted AFTER INSERT ON public.campaign_messages
    REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION campaign_pipeline.campaign_count_inserted();

-- Messages that are deleted after their run ended, by the CRM's clean-up or with their lead, stay counted. Those that
-- are deleted with parts sent or under way are remembered until their leads are moved: see campaign_settle_deleted.
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
    PERFORM set_config('campaign_pipeline.counting', 'on', true);
    UPDATE public.campaign_runs SET leads_success = 0, leads_failed = 0, leads_skipped = 0, leads_processed = 0
    WHERE status IN ('running', 'paused')
      AND (leads_success, leads_failed, leads_skipped, leads_processed) IS DISTINCT FROM (0, 0, 0, 0);
    PERFORM set_config('campaign_pipeline.counting', '', true);
    RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER campaign_count_truncated AFTER TRUNCATE ON public.campaign_messages
    FOR EACH STATEMENT EXECUTE FUNCTION campaign_pipeline.campaign_count_truncated();

-- A run that ended and goes on again: its counters are those of the messages that it has now, and it will end anew.
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

-- Resuming -----------------------------------------------------------------------------------------------------------

-- Whoever resumes a run, by whatever tool, only sets its status. The time is kept so that the next batch spreads what
-- became overdue meanwhile instead of sending it in a burst, and does not take it for too old.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_note_resume() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, campaign_pipeline, pg_temp AS $$
BEGIN
    NEW.resumed_at := campaign_pipeline.campaign_now();
    RETURN NEW;
END $$;
CREATE OR REPLACE TRIGGER campaign_note_resume BEFORE UPDATE OF status ON public.campaign_runs
    FOR EACH ROW WHEN (OLD.status = 'paused' AND NEW.status = 'running')
    EXECUTE FUNCTION campaign_pipeline.campaign_note_resume();

-- Claiming -----------------------------------------------------------------------------------------------------------

-- Lease up to p_batch due messages of the given runs to p_token.
-- Fair: every run gets the same share, what a run does not use goes to the others, and runs are taken in random order,
-- so that a batch smaller than the number of runs starves none. Never waits: rows that another claimer holds are
-- passed over. p_quotas caps each run (1 where only a probe may go, which campaign_choose_probes chooses).
-- Rows are changed where they lie (ctid, which cannot move while this transaction holds them): looked up again by id,
-- the update and what is said of them would go down the largest index twice more for each. What a claim costs at which
-- size is in benchmarks/RESULTS.md.
-- p_ahead_seconds: also what is planned for so soon. Its shard waits for the planned time; what is to be tried again at
-- some time (next_attempt_at) is not claimed before that.
-- It once returned ids alone, and claimed nothing ahead; neither a result nor a signature can be replaced.
DROP FUNCTION IF EXISTS campaign_pipeline.campaign_claim_messages(uuid[], integer[], integer, uuid, text,
                                                                  double precision);
DROP FUNCTION IF EXISTS campaign_pipeline.campaign_claim_messages(uuid[], integer[], integer, uuid, text,
                                                                  double precision, uuid[]);
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_claim_messages(
    p_runs uuid[], p_quotas integer[], p_batch integer, p_token uuid, p_owner text, p_lease_seconds double precision,
    p_probes uuid[],  -- null: whatever is due; otherwise only these
    p_ahead_seconds double precision DEFAULT 0
) RETURNS TABLE (message_id uuid, run_id uuid, inbox_id uuid, lead_id uuid, due_at timestamptz, retry_count integer)
LANGUAGE plpgsql ROWS 500 AS $$
#variable_conflict use_column
DECLARE
    runs      uuid[];
    before    uuid[];      -- the runs of this round, to which `quotas` belongs
    quotas    integer[];
    picked    tid[];
    share     integer;
    remaining integer := p_batch;
    horizon   timestamptz := campaign_pipeline.campaign_now() + make_interval(secs => p_ahead_seconds);
BEGIN
    IF NOT campaign_pipeline.campaign_may_take() THEN
        RETURN;
    END IF;
    SELECT array_agg(r.id ORDER BY r.place), array_agg(r.quota ORDER BY r.place) INTO runs, quotas
    FROM (SELECT u.id, u.quota, random() AS place FROM unnest(p_runs, p_quotas) AS u (id, quota) WHERE u.quota > 0) r;

    WHILE remaining > 0 AND cardinality(runs) > 0 LOOP
        share := greatest(1, remaining / cardinality(runs));
        before := runs;
        SELECT array_agg(m.place),
               -- the runs that gave their whole share may have more
               (SELECT array_agg(f.run_id) FROM (SELECT c.run_id FROM unnest(array_agg(m.run_id)) AS c (run_id)
                                                  GROUP BY c.run_id HAVING count(*) >= share) f)
        INTO picked, runs
        FROM (
            SELECT d.place, d.run_id
            FROM unnest(runs, quotas) AS r (run_id, quota)
            CROSS JOIN LATERAL (
                SELECT m.ctid AS place, m.run_id
                FROM public.campaign_messages m
                WHERE m.run_id = r.run_id
                  AND m.status = 'pending'
                  AND COALESCE(m.next_attempt_at, m.scheduled_at, m.created_at) <= horizon
                  AND (m.next_attempt_at IS NULL OR m.next_attempt_at <= campaign_pipeline.campaign_now())
                  AND (p_probes IS NULL OR m.id = ANY (p_probes))
                  AND (m.inbox_id IS NULL
                       OR NOT campaign_pipeline.campaign_waits_for_its_inbox(m.id, m.run_id, m.inbox_id))
                ORDER BY COALESCE(m.next_attempt_at, m.scheduled_at, m.created_at)
                LIMIT least(share, r.quota)
                FOR UPDATE SKIP LOCKED
            ) d
            LIMIT remaining
        ) m;
        EXIT WHEN picked IS NULL;

        RETURN QUERY
        UPDATE public.campaign_messages m
        SET status = 'queued', queued_at = campaign_pipeline.campaign_now(), lease_token = p_token,
            lease_owner = p_owner,
            lease_expires_at = campaign_pipeline.campaign_now() + make_interval(secs => p_lease_seconds),
            -- The inbox that its run uses now, but for a conversation that has begun through another.
            inbox_id = CASE WHEN m.inbox_id IS NOT NULL AND campaign_pipeline.campaign_is_bound(m.id, m.inbox_id)
                THEN m.inbox_id
                            ELSE (SELECT r.active_inbox_id FROM public.campaign_runs r WHERE r.id = m.run_id) END
        WHERE m.ctid = ANY (picked)
        RETURNING m.id, m.run_id, m.inbox_id, m.lead_id,
                  COALESCE(m.next_attempt_at, m.scheduled_at, m.created_at), m.retry_count;
        remaining := remaining - cardinality(picked);
        -- A run whose quota is used up gets no further helping.
        SELECT array_agg(u.id), array_agg(u.quota - share) INTO runs, quotas
        FROM unnest(before, quotas) AS u (id, quota) WHERE u.id = ANY (runs) AND u.quota > share;
    END LOOP;
END $$;

-- Which message of each run tries whether the cause of a pause is gone: not one that failed for it before, where
-- another is due, and any of the first fifty, so that one recipient's trouble cannot keep a pause open.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_choose_probes(p_runs uuid[], p_tried uuid[]) RETURNS uuid[]
LANGUAGE plpgsql AS $$
BEGIN
    RETURN ARRAY(
        SELECT (SELECT d.id
                FROM (SELECT m.id FROM public.campaign_messages m
                      WHERE m.run_id = r.id AND m.status = 'pending'
                        AND COALESCE(m.next_attempt_at, m.scheduled_at,
                                     m.created_at) <= campaign_pipeline.campaign_now()
                      ORDER BY COALESCE(m.next_attempt_at, m.scheduled_at, m.created_at) LIMIT 50) d
                ORDER BY d.id = ANY (p_tried), random() LIMIT 1)
        FROM unnest(p_runs) AS r (id));
END $$;

-- Take the messages of a shard over under a token of its own, so that an older process that still holds the batch's
-- token can change nothing any more. Taken: what the batch leased, what a dead holder let expire, and what was given
-- back and is due. Left: what somebody else holds, what waits for its time, what is finished.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_take_over(
    p_ids uuid[], p_batch_token uuid, p_token uuid, p_owner text, p_lease_seconds double precision
) RETURNS TABLE (message_id uuid, verdict text) LANGUAGE plpgsql
SET lock_timeout = '800ms' AS $$
DECLARE
    may_take boolean := campaign_pipeline.campaign_may_take();  -- what nobody holds; what the batch holds is worked
BEGIN
    PERFORM campaign_pipeline.campaign_recover_leases(p_ids);
    RETURN QUERY
    WITH seen AS MATERIALIZED (
        SELECT m.id,
               CASE
                   -- Under p_token already: this very call was committed and its answer lost with the connection.
                   WHEN m.status IN ('queued', 'generating', 'sending') AND m.lease_token IN (p_batch_token, p_token)
                       THEN 'taken'
                   WHEN m.status IN ('queued', 'generating', 'sending') THEN 'held_by_another'
                   WHEN m.status = 'pending'
                        AND COALESCE(m.next_attempt_at, m.scheduled_at,
                                     m.created_at) <= campaign_pipeline.campaign_now() AND may_take THEN 'taken'
                   WHEN m.status = 'pending' THEN 'waits_for_its_time'
                   ELSE 'finished'
               END AS verdict
        FROM public.campaign_messages m
        WHERE m.id = ANY (p_ids)
        ORDER BY m.id
        FOR UPDATE OF m
    ), taken AS (
        UPDATE public.campaign_messages m
        SET status = 'queued', queued_at = COALESCE(m.queued_at, campaign_pipeline.campaign_now()),
            lease_token = p_token, lease_owner = p_owner,
            lease_expires_at = campaign_pipeline.campaign_now() + make_interval(secs => p_lease_seconds)
        FROM seen
        WHERE m.id = seen.id AND seen.verdict = 'taken'
    )
    SELECT i.id, COALESCE(seen.verdict, 'deleted')
    FROM unnest(p_ids) AS i (id) LEFT JOIN seen ON seen.id = i.id;
END $$;

-- Give back what the holder did not renew (I1). A part that was being attempted may have gone out: `unknown` (I5), and
-- its request may have left until the lease ended.
-- A message that was at work when its worker died may be the reason. At its second death it is set aside, or one
-- poisoned row would take a worker with it for ever; what may have gone out is looked up a few times more before that.
-- p_ids NULL: all. Rows that somebody works on right now are passed over.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_recover_leases(p_ids uuid[] DEFAULT NULL)
RETURNS TABLE (message_id uuid, run_id uuid, was text, owner text) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    dead  uuid[];
    aside uuid[];  -- of these: whose workers died too often
BEGIN
    IF p_ids IS NULL THEN
        PERFORM campaign_pipeline.campaign_settle_deleted();
    END IF;
    PERFORM campaign_pipeline.campaign_settle_old_processor(p_ids);
    SELECT array_agg(d.id) INTO dead
    FROM (SELECT m.id
          FROM public.campaign_messages m
          WHERE m.id IN (
                SELECT e.id FROM public.campaign_messages e
                WHERE e.status IN ('queued', 'generating', 'sending')
                    AND e.lease_expires_at <= campaign_pipeline.campaign_now())
            -- Again, on the row as it is once it is locked: its holder may have renewed it in between.
            AND campaign_pipeline.campaign_is_leased(m.status)
            AND m.lease_expires_at <= campaign_pipeline.campaign_now()
            AND (p_ids IS NULL OR m.id = ANY (p_ids))
          FOR UPDATE SKIP LOCKED) d;
    IF dead IS NULL THEN
        RETURN;
    END IF;

    UPDATE campaign_pipeline.campaign_message_parts p
    SET status = 'unknown', error_class = 'unknown', error_code = 'worker_died',
        error_message = 'The process that was sending this part ended before it could record an answer.',
        lease_ended_at = COALESCE(m.lease_expires_at, campaign_pipeline.campaign_now())
    FROM public.campaign_messages m
    WHERE p.message_id = ANY (dead) AND p.status = 'attempting' AND m.id = p.message_id;

    -- Not those that waited for their turn, nor what the system that this one replaces left behind.
    INSERT INTO campaign_pipeline.campaign_worker_deaths AS d (message_id, deaths, last_at)
    SELECT m.id, 1, campaign_pipeline.campaign_now() FROM public.campaign_messages m
    WHERE m.id = ANY (dead) AND m.status IN ('generating', 'sending') AND m.lease_expires_at IS NOT NULL
    ORDER BY m.id
    ON CONFLICT (message_id) DO UPDATE SET deaths = d.deaths + 1, last_at = excluded.last_at;

    SELECT array_agg(d.message_id) INTO aside
    FROM campaign_pipeline.campaign_worker_deaths d
    WHERE d.message_id = ANY (dead)
      AND d.deaths >= CASE WHEN EXISTS (SELECT 1 FROM campaign_pipeline.campaign_message_parts p
                                        WHERE p.message_id = d.message_id AND p.status = 'unknown') THEN 5 ELSE 2 END;

    -- In the order of their ids, as everywhere: their counters are raised below.
    PERFORM 1 FROM public.campaign_runs r
    WHERE r.id IN (SELECT m.run_id FROM public.campaign_messages m WHERE m.id = ANY (aside))
    ORDER BY r.id FOR NO KEY UPDATE;

    UPDATE public.campaign_messages m
    SET status = 'failed', lease_expires_at = NULL, finished_at = campaign_pipeline.campaign_now(),
        error_class = CASE WHEN EXISTS (SELECT 1 FROM campaign_pipeline.campaign_message_parts p
                                        WHERE p.message_id = m.id AND p.status = 'unknown')
                           THEN 'unknown' ELSE 'permanent' END,
        error_code = 'worker_died_twice',
        error_message = 'Each process that worked on this message died or hung; it is tried again only by a back-fill.',
        last_error = format('Its last worker was %s.', COALESCE(m.lease_owner, 'a dead process'))
    WHERE m.id = ANY (aside);

    RETURN QUERY
    UPDATE public.campaign_messages m
    SET status = 'pending', lease_token = NULL, lease_expires_at = NULL,
        last_error
            = format('Taken back from %s, which stopped renewing its lease.', COALESCE(m.lease_owner, 'a dead process'))
    FROM public.campaign_messages old
    WHERE m.id = ANY (dead) AND NOT m.id = ANY (COALESCE(aside, '{}')) AND old.id = m.id
    RETURNING m.id, m.run_id, old.status, old.lease_owner;
END $$;

-- Take back what steps hold that have ended, before their leases run out. p_owners: who they are, as lease_owner has
-- them; `run 1a2b3c4d` stands for all steps of that run. A step that lives, although Dagster believes that it has ended,
-- does no harm (I1): its token opens nothing any more, so it can begin no other part. What it is sending now becomes
-- `unknown` (I5), and its request may leave until its lease would have ended; its late answer is still recorded.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_end_leases(p_ids uuid[], p_owners text[])
RETURNS TABLE (message_id uuid, run_id uuid, was text, owner text) LANGUAGE plpgsql
SET lock_timeout = '800ms' AS $$
#variable_conflict use_column
DECLARE
    gone uuid[];
BEGIN
    SELECT array_agg(d.id) INTO gone
    FROM (SELECT m.id FROM public.campaign_messages m
          WHERE m.id = ANY (p_ids) AND campaign_pipeline.campaign_is_leased(m.status)
            AND m.lease_expires_at > campaign_pipeline.campaign_now()
            AND EXISTS (SELECT 1 FROM unnest(p_owners) AS o (name)
                        WHERE m.lease_owner = o.name OR starts_with(m.lease_owner, o.name || ' '))
          ORDER BY m.id FOR UPDATE) d;
    UPDATE campaign_pipeline.campaign_message_parts p
    SET status = 'unknown', error_class = 'unknown', error_code = 'worker_died',
        error_message = 'The process that was sending this part ended before it could record an answer.',
        lease_ended_at = m.lease_expires_at
    FROM public.campaign_messages m
    WHERE p.message_id = ANY (gone) AND p.status = 'attempting' AND m.id = p.message_id;
    UPDATE public.campaign_messages m SET lease_expires_at = campaign_pipeline.campaign_now() WHERE m.id = ANY (gone);
    RETURN QUERY SELECT * FROM campaign_pipeline.campaign_recover_leases(p_ids);
END $$;

-- A word on the plans of what follows. Each function handles a few dozen ids of tables of millions, by index. The
-- server keeps one plan for all calls and guesses the size of a JSON array at 100 rows, so a plan made while the tables
-- were small reads them whole for ever (5,000 messages: 2,172 scans of campaign_messages, 10.9 M rows). Hence the SET
-- clauses:
-- 2.78 -> 0.72 ms a message in groups of 17, together with the indexes on conversations.
-- Whoever holds a row longer than lock_timeout may be the CRM, which locks runs and messages in orders of its own. The
-- limit is below the server's deadlock_timeout (1 s), so that of two in each other's way it is never the CRM's
-- statement that fails: ours gives up first, and is repeated.
-- And one plan a connection from the first call on (plan_cache_mode), where the server would plan each statement anew
-- five times, and some of them always: one message at a time, begin_parts 2.7 -> 1.1 ms, start_generating 1.1 -> 0.65.

-- Whether a status is one of a leased message. Asked like this of rows that are found by their id: spelled as in the
-- indexes of leased messages, the planner, which believes that hardly any message is leased, reads all that are
-- (5,000 leased, groups of 20: 0.39 ms a message in start_generating and 0.26 in settle, instead of 0.06 and 0.10).
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_is_leased(p_status text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT p_status NOT IN ('pending', 'sent', 'replied', 'failed', 'skipped')
$$;

-- Whether a status is that of a part that went out. Asked like this of the parts of one message: spelled as in the index
-- of sent parts, the server may read all of that index for each message and keep that plan for the connection's life
-- (groups of 20, after 1,500 sent parts: 30,000 entries read a call, half the time of campaign_reserve_numbers).
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_is_out(p_status text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT p_status NOT IN ('planned', 'attempting', 'unknown', 'failed')
$$;

-- Who begins the first messages of one lead at once, in two shards, makes one conversation: the second waits here for
-- the first's commit, and then finds what it made. Until the commit only; in one order, after all rows that begin_parts
-- locks. The CRM may have several conversations of a lead already, so no unique index can say this.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_lock_conversations(p_ids uuid[]) RETURNS void LANGUAGE plpgsql
SET enable_seqscan = off AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(l.key)
    FROM (SELECT DISTINCT hashtextextended('campaign_pipeline conversation ' || m.lead_id, 0) AS key
          FROM public.campaign_messages m
          WHERE m.id = ANY (p_ids) AND m.conversation_id IS NULL AND m.lead_id IS NOT NULL
          ORDER BY key) l;
END $$;

-- Working a message --------------------------------------------------------------------------------------------------

-- May these leased messages go on? 'go', or why not. A run that people paused or cancelled stops its messages wherever
-- they are: the part in flight is recorded and nothing more is sent. With its text begun to be sent no other pause than
-- its inbox's stops a message: half a message is worse than a late pause. Items: {id, token}, at most one a message.
-- One statement for all of them: as a function of one message, called in an expression, it took two thirds of the time
-- of begin_parts (EXPLAIN of nested statements, groups of 20: 9.1 of 13.7 ms, planned and run four times a message).
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_verdicts(p_items jsonb, p_needs_model boolean)
RETURNS TABLE (message_id uuid, verdict text) LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT i.id, CASE
        WHEN m.id IS NULL OR m.lease_token IS DISTINCT FROM i.token
             OR m.status NOT IN ('queued', 'generating', 'sending')
                 OR m.lease_expires_at <= campaign_pipeline.campaign_now() THEN 'lost'
        WHEN strange.message_id IS NOT NULL THEN 'foreign_workspace'
        WHEN r.status <> 'running' THEN 'run_' || r.status
        -- Like a run that people paused: nothing more of a message, though it has begun.
        WHEN EXISTS (SELECT 1 FROM campaign_pipeline.campaign_manual_pauses) AND EXISTS (
            SELECT 1 FROM campaign_pipeline.campaign_manual_pauses h
            WHERE h.scope = 'all'
               OR (h.scope = 'workspace' AND h.scope_id = c.workspace_id::text)
               OR (h.scope = 'inbox' AND h.scope_id = COALESCE(m.inbox_id, c.inbox_id)::text)
        ) THEN 'paused_by_person'
        -- Claimed ahead of its planned time, or planned anew meanwhile: its text may be written, nothing is sent.
        WHEN NOT p_needs_model AND NOT begun.yes
             AND COALESCE(m.next_attempt_at, m.scheduled_at, m.created_at) > campaign_pipeline.campaign_now()
            THEN 'not_due'
        WHEN EXISTS (SELECT 1 FROM campaign_pipeline.campaign_pauses) AND EXISTS (
            SELECT 1 FROM campaign_pipeline.campaign_pauses p
            WHERE (p.kind = 'systemic' OR p.until > campaign_pipeline.campaign_now()) AND p.probe_message_id
                IS DISTINCT FROM m.id
              AND (   (p.scope = 'inbox' AND p.scope_id = COALESCE(m.inbox_id, c.inbox_id)::text)
                   -- A limit on spending keeps texts from being written, not those that were paid for from going out.
                   OR (p.scope = 'run' AND p.scope_id = r.id::text AND NOT begun.yes
                       AND (p_needs_model OR p.code <> 'spending_limit'))
                   OR (p_needs_model AND p.scope = 'workspace' AND p.scope_id = c.workspace_id::text)
                   -- The account that all share, but for workspaces that pay with a key of their own.
                   OR (p_needs_model AND p.scope = 'provider'
                       AND campaign_pipeline.campaign_own_key(c.workspace_id) IS NULL)
                   OR (p_needs_model AND p.scope = 'model' AND p.scope_id IN (
                        SELECT a.model FROM public.ai_agents a WHERE a.workspace_id = c.workspace_id AND a.is_active)))
        ) THEN 'scope_paused'
        ELSE 'go'
    END
    FROM jsonb_to_recordset(p_items) AS i (id uuid, token uuid)
    LEFT JOIN public.campaign_messages m ON m.id = i.id
    LEFT JOIN public.campaign_runs r ON r.id = m.run_id
    LEFT JOIN public.campaign_configs c ON c.id = r.config_id
    CROSS JOIN LATERAL (SELECT EXISTS (
        SELECT 1 FROM campaign_pipeline.campaign_message_parts p WHERE p.message_id = i.id AND campaign_pipeline.campaign_is_out(p.status)) AS yes) begun
    LEFT JOIN campaign_pipeline.campaign_foreign_rows(
        ARRAY(SELECT w.id FROM jsonb_to_recordset(p_items) AS w (id uuid))) strange ON strange.message_id = i.id;
END $$;

-- Heartbeat: keep what is still ours, and say which that is.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_renew_leases(
    p_ids uuid[], p_token uuid, p_lease_seconds double precision
) RETURNS SETOF uuid LANGUAGE plpgsql
SET enable_seqscan = off SET lock_timeout = '800ms' AS $$
BEGIN
    RETURN QUERY
    UPDATE public.campaign_messages m
    SET lease_expires_at = campaign_pipeline.campaign_now() + make_interval(secs => p_lease_seconds)
    WHERE m.id = ANY (p_ids) AND m.lease_token = p_token AND campaign_pipeline.campaign_is_leased(m.status)
    RETURNING m.id;
END $$;

-- Before the model is called: still leased, run still running, nothing paused? Then status `generating`.
-- Items: {id, token}.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_start_generating(p_items jsonb)
RETURNS TABLE (message_id uuid, verdict text) LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
SET lock_timeout = '800ms' AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH item AS MATERIALIZED (
        SELECT v.message_id AS id, v.verdict, i.token
        FROM campaign_pipeline.campaign_verdicts(p_items, true) v
        JOIN jsonb_to_recordset(p_items) AS i (id uuid, token uuid) ON i.id = v.message_id
    ), started AS (
        UPDATE public.campaign_messages m SET status = 'generating'
        FROM item
        WHERE m.id = item.id AND item.verdict = 'go'
          AND m.lease_token = item.token AND campaign_pipeline.campaign_is_leased(m.status) AND m.status <> 'sending'
        RETURNING m.id
    )
    SELECT item.id, CASE WHEN item.verdict = 'go' AND started.id IS NULL THEN 'lost' ELSE item.verdict END
    FROM item LEFT JOIN started ON started.id = item.id;
END $$;

-- Before a part is sent (I2, I3): the text and its parts are fixed, the conversation is found or made, the attempt is
-- written down. Only what answers 'go' may be requested from the provider. A text is kept whenever the lease is held,
-- though its first part may not leave now: it was paid for.
-- Items: {id, token, part_no, attempt_no, address, inbox_id, channel, contact_name, and with a new text:
--         text, subject, parts[], ai_model, ai_tokens_used, ai_cost_usd, ai_generation_time_ms}. part_no 0: only keep
--         the text, or what was paid for one that may not be sent.
-- Repeating an item after a lost connection is safe: the same token and attempt number find their own row and go on.
-- Before its planned time: 'not_due' (wait_seconds). A message whose text is only kept waits as `queued`: should its
-- worker die meanwhile, the message was not what it died of.
-- Where an inbox or a campaign has a pace: 'paced' until its turn comes (wait_seconds, wait_code), and what goes has to
-- leave within grace_seconds of asking, else its slot is to be given back (see pacing.sql).
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_begin_parts(p_items jsonb)
RETURNS TABLE (message_id uuid, verdict text, conversation_id uuid,
               wait_seconds double precision, wait_code text, grace_seconds double precision) LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
SET lock_timeout = '800ms' AS $$
#variable_conflict use_column
DECLARE
    verdicts jsonb;    -- message -> verdict
    held     uuid[];   -- the caller has the lease
    going    uuid[];   -- and the request may leave
    refused  jsonb;    -- message -> verdict, where consent refuses what else might go
    slots    jsonb;    -- message -> its turn, where it goes by a pace
    conversations jsonb;  -- message -> conversation, where it had none
    booked   jsonb := '{}';  -- message -> what its refused answers cost, booked now
BEGIN
    -- Locked from here to the commit, so that nobody takes a message over between the check and the intent.
    PERFORM 1 FROM public.campaign_messages m
    WHERE m.id IN (SELECT i.id FROM jsonb_to_recordset(p_items) AS i (id uuid)) ORDER BY m.id FOR UPDATE;

    SELECT jsonb_object_agg(v.message_id, v.verdict),
           array_agg(v.message_id) FILTER (WHERE v.verdict <> 'lost'),
           array_agg(v.message_id) FILTER (WHERE v.verdict = 'go' AND i.part_no > 0)
    INTO verdicts, held, going
    FROM campaign_pipeline.campaign_verdicts(p_items, false) v
    JOIN jsonb_to_recordset(p_items) AS i (id uuid, part_no integer) ON i.id = v.message_id;

    refused := campaign_pipeline.campaign_refused_by_consent(p_items, going);
    IF refused IS NOT NULL THEN
        verdicts := verdicts || refused;
        going := ARRAY(SELECT g.id FROM unnest(going) AS g (id) WHERE NOT refused ? g.id::text);
    END IF;

    slots := campaign_pipeline.campaign_take_slots(p_items, going);
    IF slots IS NOT NULL THEN
        going := ARRAY(SELECT g.id FROM unnest(going) AS g (id)
                       WHERE NOT COALESCE(slots -> g.id::text ? 'wait', false));
    END IF;

    IF jsonb_path_exists(p_items, '$[*].calls[*]') THEN
        booked := campaign_pipeline.campaign_keep_model_calls(p_items, held);
    END IF;
    IF jsonb_path_exists(p_items, '$[*].asked_model ? (@ != null)') THEN
        PERFORM campaign_pipeline.campaign_note_good_texts(p_items, held);
    END IF;
    IF booked <> '{}' OR jsonb_path_exists(p_items, '$[*].ai_cost_usd ? (@ > 0)') THEN
        -- A message that has parts was counted with them: the item is a repeated one.
        PERFORM campaign_pipeline.campaign_note_spending(COALESCE(jsonb_agg(jsonb_build_object('id', i.id, 'cost',
            COALESCE((booked ->> i.id::text)::numeric, 0)
            + CASE WHEN EXISTS (SELECT 1 FROM campaign_pipeline.campaign_message_parts p WHERE p.message_id = i.id)
                   THEN 0 ELSE COALESCE(i.ai_cost_usd, 0) END)), '[]'))
        FROM jsonb_to_recordset(p_items) AS i (id uuid, ai_cost_usd numeric) WHERE i.id = ANY (held);
    END IF;

    PERFORM campaign_pipeline.campaign_lock_conversations(going);
    conversations := campaign_pipeline.campaign_find_conversations(p_items, going);

    -- A new text: its parts, the one to be sent now already as an attempt. The ledger outlives the message, so it has
    -- all that is needed to show a part in the chat and to move its lead.
    INSERT INTO campaign_pipeline.campaign_message_parts AS p
        (message_id, part_no, text, status, idempotency_key, attempts, attempt_token, attempted_at, address,
         address_kind, inbox_id, run_id, lead_id, workspace_id, conversation_id, source_column_id, target_column_id)
    SELECT i.id, t.no, t.text,
           CASE WHEN now_.yes THEN 'attempting' ELSE 'planned' END,
           i.id || ':' || t.no,
           CASE WHEN now_.yes THEN 1 ELSE 0 END,
           CASE WHEN now_.yes THEN i.token END,
           CASE WHEN now_.yes THEN campaign_pipeline.campaign_now() END,
           NULLIF(i.address, ''), campaign_pipeline.campaign_address_kind(i.address), i.inbox_id,
           m.run_id, m.lead_id, c.workspace_id, COALESCE(m.conversation_id, (conversations ->> m.id::text)::uuid),
           c.source_column_id, c.target_column_id
    FROM jsonb_to_recordset(p_items)
        AS i (id uuid, token uuid, part_no integer, address text, inbox_id uuid, parts text[])
    JOIN public.campaign_messages m ON m.id = i.id
    LEFT JOIN public.campaign_runs r ON r.id = m.run_id
    LEFT JOIN public.campaign_configs c ON c.id = r.config_id
    CROSS JOIN LATERAL unnest(i.parts) WITH ORDINALITY AS t (text, no)
    CROSS JOIN LATERAL (SELECT t.no = i.part_no AND i.id = ANY (going) AS yes) now_
    -- Only where no text was cut yet: parts of two texts must never stand in one ledger.
    WHERE i.id = ANY (held)
      AND NOT EXISTS (SELECT 1 FROM campaign_pipeline.campaign_message_parts old WHERE old.message_id = i.id)
    ON CONFLICT DO NOTHING;

    -- A later part, or another attempt at one. A conversation that was known when the text was cut may be another by
    -- now.
    UPDATE campaign_pipeline.campaign_message_parts p
    SET status = 'attempting', attempts = i.attempt_no, attempt_token = i.token,
        attempted_at = campaign_pipeline.campaign_now(),
        address = i.address, address_kind = campaign_pipeline.campaign_address_kind(i.address), inbox_id = i.inbox_id,
        run_id = m.run_id, lead_id = m.lead_id, workspace_id = c.workspace_id,
        conversation_id = COALESCE(m.conversation_id, (conversations ->> m.id::text)::uuid),
        source_column_id = c.source_column_id, target_column_id = c.target_column_id,
        error_class = NULL, error_code = NULL, error_message = NULL, resend_approved_at = NULL
    FROM jsonb_to_recordset(p_items)
        AS i (id uuid, token uuid, part_no integer, attempt_no integer, address text, inbox_id uuid)
    JOIN public.campaign_messages m ON m.id = i.id
    LEFT JOIN public.campaign_runs r ON r.id = m.run_id
    LEFT JOIN public.campaign_configs c ON c.id = r.config_id
    WHERE i.id = ANY (going) AND p.message_id = i.id AND p.part_no = i.part_no
      AND p.status = 'planned' AND p.attempts = i.attempt_no - 1;

    -- Nothing may be requested that the ledger does not have as this very attempt.
    SELECT array_agg(p.message_id) INTO going
    FROM jsonb_to_recordset(p_items) AS i (id uuid, token uuid, part_no integer, attempt_no integer)
    JOIN campaign_pipeline.campaign_message_parts p ON p.message_id = i.id AND p.part_no = i.part_no
    WHERE i.id = ANY (going) AND p.status = 'attempting' AND p.attempts = i.attempt_no AND p.attempt_token = i.token;

    IF slots IS NOT NULL THEN
        UPDATE campaign_pipeline.campaign_message_parts p SET slot_at = campaign_pipeline.campaign_now()
        FROM jsonb_to_recordset(p_items) AS i (id uuid, part_no integer)
        WHERE i.id = ANY (going) AND slots ? i.id::text AND p.message_id = i.id AND p.part_no = i.part_no
          AND p.slot_at IS NULL;
    END IF;

    UPDATE public.campaign_messages m
    SET conversation_id       = COALESCE(m.conversation_id, (conversations ->> m.id::text)::uuid),
        status                = CASE WHEN m.id = ANY (going) THEN 'sending'
                                     WHEN m.status = 'generating' AND i.part_no = 0 THEN 'queued' ELSE m.status END,
        generated_message     = COALESCE(m.generated_message, i.text),
        subject               = COALESCE(m.subject, i.subject),
        template              = COALESCE(m.template, NULLIF(i.template, 'null')),
        ai_model              = COALESCE(i.ai_model, m.ai_model),
        ai_tokens_used        = COALESCE(i.ai_tokens_used, m.ai_tokens_used),
        -- What an answer cost that could not be sent was paid, too.
        ai_cost_usd           = CASE WHEN (m.generated_message IS NULL AND i.ai_cost_usd IS NOT NULL)
                                          OR booked ? m.id::text
                                     THEN COALESCE(m.ai_cost_usd, 0) + COALESCE((booked ->> m.id::text)::numeric, 0)
                                          + CASE WHEN m.generated_message IS NULL THEN COALESCE(i.ai_cost_usd, 0)
                                                 ELSE 0 END
                                     ELSE m.ai_cost_usd END,
        ai_generation_time_ms = COALESCE(i.ai_generation_time_ms, m.ai_generation_time_ms),
        address               = COALESCE(NULLIF(i.address, ''), m.address),
        address_kind          = COALESCE(campaign_pipeline.campaign_address_kind(i.address), m.address_kind),
        phone_normalized      = CASE WHEN i.channel = 'email' THEN m.phone_normalized
                                     ELSE COALESCE(NULLIF(i.address, ''), m.phone_normalized) END,
        inbox_id              = CASE WHEN m.id = ANY (going) THEN COALESCE(i.inbox_id, m.inbox_id) ELSE m.inbox_id END
    FROM jsonb_to_recordset(p_items)
        AS i (id uuid, part_no integer, address text, channel text, inbox_id uuid, text text, subject text,
              template jsonb, ai_model text,
         ai_tokens_used integer, ai_cost_usd numeric, ai_generation_time_ms integer)
    WHERE m.id = i.id AND m.id = ANY (held);

    -- A probe that got its text proves that the language model works again.
    DELETE FROM campaign_pipeline.campaign_pauses
    WHERE probe_message_id = ANY (going) AND scope IN ('workspace', 'model', 'provider');

    RETURN QUERY
    SELECT i.id, CASE WHEN i.id = ANY (going) OR (i.part_no = 0 AND i.id = ANY (held)) THEN 'go'
                      WHEN slots -> i.id::text ? 'wait' THEN 'paced'
                      WHEN verdicts ->> i.id::text = 'go' THEN 'lost'
                      ELSE verdicts ->> i.id::text END,
           m.conversation_id,
           CASE WHEN verdicts ->> i.id::text = 'not_due'
                THEN EXTRACT(epoch FROM COALESCE(m.next_attempt_at, m.scheduled_at, m.created_at)
                                        - campaign_pipeline.campaign_now())::double precision
                ELSE (slots -> i.id::text ->> 'wait')::double precision END,
           CASE WHEN verdicts ->> i.id::text = 'not_due' THEN 'not_due' ELSE slots -> i.id::text ->> 'code' END,
           (slots -> i.id::text ->> 'grace')::double precision
    FROM jsonb_to_recordset(p_items) AS i (id uuid, part_no integer) LEFT
        JOIN public.campaign_messages m ON m.id = i.id;
END $$;

-- The conversation of each message that has none: the lead's newest, else the phone's newest, else a new one; in the
-- same channel. Returns {message: conversation}; the caller writes it with all else that it changes of the message.
-- A conversation that the CRM refuses (a check or a trigger of its own) is done without, and the log says why.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_find_conversations(p_items jsonb, p_ids uuid[]) RETURNS jsonb
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    answer jsonb;
    id_    uuid;
BEGIN
    WITH item AS MATERIALIZED (
        SELECT m.id, m.lead_id, m.run_id, c.workspace_id, COALESCE(m.inbox_id, c.inbox_id) AS inbox_id,
               i.address, i.channel, i.contact_name, COALESCE(by_lead.id, by_phone.id) AS known
        FROM jsonb_to_recordset(p_items) AS i (id uuid, address text, channel text, contact_name text)
        JOIN public.campaign_messages m ON m.id = i.id AND m.conversation_id IS NULL
        JOIN public.campaign_runs r ON r.id = m.run_id
        JOIN public.campaign_configs c ON c.id = r.config_id
        LEFT JOIN LATERAL (
            SELECT v.id FROM public.conversations v
            WHERE v.workspace_id = c.workspace_id AND v.lead_id = m.lead_id
              AND COALESCE(v.channel, 'whatsapp') = i.channel
            ORDER BY v.last_message_at DESC NULLS LAST, v.created_at DESC LIMIT 1) by_lead ON true
        LEFT JOIN LATERAL (
            SELECT v.id FROM public.conversations v
            WHERE by_lead.id IS NULL AND v.workspace_id = c.workspace_id
              -- An e-mail address, too, is kept there.
              AND v.contact_phone IN (i.address, '+' || i.address, m.phone_number)
              AND COALESCE(v.channel, 'whatsapp') = i.channel
            ORDER BY v.last_message_at DESC NULLS LAST, v.created_at DESC LIMIT 1) by_phone ON true
        WHERE m.id = ANY (p_ids)
    ), made AS (
        -- attendant_type and the counts are the CRM's own defaults: nobody attends to it, and nothing is unread.
        INSERT INTO public.conversations (id, workspace_id, inbox_id, lead_id, contact_name, contact_phone, channel,
                                          status, campaign_run_id, unread_count, total_messages, created_at, updated_at)
        -- One a lead, though two of its messages are begun in this very statement.
        SELECT DISTINCT ON (workspace_id, COALESCE(lead_id, id))
               gen_random_uuid(), workspace_id, inbox_id, lead_id, COALESCE(NULLIF(contact_name, ''), address), address,
               channel, 'waiting', run_id, 0, 0, campaign_pipeline.campaign_now(), campaign_pipeline.campaign_now()
        FROM item WHERE known IS NULL
        ORDER BY workspace_id, COALESCE(lead_id, id)
        RETURNING id, workspace_id, lead_id, contact_phone
    )
    SELECT jsonb_object_agg(item.id, COALESCE(item.known, made.id)) INTO answer
    FROM item LEFT JOIN made ON item.known IS NULL AND made.workspace_id = item.workspace_id
         AND (made.lead_id = item.lead_id OR (item.lead_id IS NULL AND made.contact_phone = item.address));

    RETURN answer;
EXCEPTION WHEN OTHERS THEN
    IF campaign_pipeline.campaign_is_passing(SQLSTATE) THEN
        RAISE;
    END IF;
    IF cardinality(p_ids) = 1 THEN
        PERFORM campaign_pipeline.campaign_log_refusal('conversation', m.run_id, m.id, m.lead_id, SQLERRM)
        FROM public.campaign_messages m WHERE m.id = p_ids[1];
        RETURN '{}';
    END IF;
    answer := '{}';
    FOREACH id_ IN ARRAY p_ids LOOP
        answer := answer || COALESCE(
            campaign_pipeline.campaign_find_conversations(p_items, ARRAY[id_]), '{}');
    END LOOP;
    RETURN answer;
END $$;

-- What came of it: the outcome of a part, the next state of its message, or both; all of one commit.
-- Items: {id, token, part_no, attempt_no, outcome, code, reason, provider_message_id, response, address, duration_ms,
--         looked_up, status, error_class, delay_seconds, count_attempt, unrequested, in_conversation}.
--   outcome  what is now known of attempt attempt_no of the part: sent, planned (surely not out), unknown, failed; or
-- null
--   status   where the message goes: sent, pending, failed, skipped; null: it stays where it is
-- The fact that a part was sent is taken from whoever brings it, even after its lease is lost and whatever was believed
-- of that attempt meanwhile: it can only prevent a double. Everything else needs the lease. Of a message that the CRM
-- has deleted meanwhile, the part is settled by whoever attempted it: recorded, shown in the chat, its lead moved.
-- `applied`: the ledger has this outcome, now or from an earlier call whose answer was lost; `moved`: the message is in
-- the wanted state; `final`: its status now, null if it was deleted.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_settle(p_items jsonb)
RETURNS TABLE (message_id uuid, applied boolean, moved boolean, final text) LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
SET lock_timeout = '800ms' AS $$
#variable_conflict use_column
DECLARE
    held      uuid[];   -- messages whose lease the caller holds
    sent_now  uuid[];   -- messages that became sent by this call
    out_now   jsonb;    -- parts that became sent by this call: [{id, part_no}]
    changed   uuid[];   -- messages with a part that changed
    slotted   uuid[];   -- of these: where the part had taken a slot
    gone      uuid[];   -- messages that were deleted: only their parts are left
BEGIN
    -- Runs before messages, as the CRM locks them when it pauses or cancels a run; each in the order of their ids, so
    -- that two shards that work the same two runs do not wait for each other. Counters are raised twice below.
    PERFORM 1 FROM public.campaign_runs r
    WHERE r.id IN (SELECT m.run_id FROM jsonb_to_recordset(p_items) AS i (id uuid, outcome text, status text)
                   JOIN public.campaign_messages m ON m.id = i.id
                   WHERE i.outcome = 'sent' OR i.status IN ('failed', 'skipped'))
    ORDER BY r.id FOR NO KEY UPDATE;

    -- All rows in one order, leased or not: a late fact and the new holder may meet here.
    PERFORM 1 FROM public.campaign_messages m
    WHERE m.id IN (SELECT i.id FROM jsonb_to_recordset(p_items) AS i (id uuid)) ORDER BY m.id FOR UPDATE;

    SELECT array_agg(i.id) INTO gone
    FROM jsonb_to_recordset(p_items) AS i (id uuid)
    WHERE NOT EXISTS (SELECT 1 FROM public.campaign_messages m WHERE m.id = i.id);

    SELECT array_agg(m.id) INTO held
    FROM jsonb_to_recordset(p_items) AS i (id uuid, token uuid)
    JOIN public.campaign_messages m ON m.id = i.id AND m.lease_token = i.token
        AND campaign_pipeline.campaign_is_leased(m.status);

    WITH settled AS (
        UPDATE campaign_pipeline.campaign_message_parts p
        SET status = i.outcome,
            provider_message_id = COALESCE(i.provider_message_id, p.provider_message_id),
            provider_response = COALESCE(i.response, p.provider_response),
            address = COALESCE(i.address, p.address),
            sent_at = CASE WHEN i.outcome = 'sent' THEN campaign_pipeline.campaign_now() END,
            looked_up_at = CASE WHEN i.looked_up THEN campaign_pipeline.campaign_now() ELSE p.looked_up_at END,
            duration_ms = COALESCE(i.duration_ms, p.duration_ms),
            error_class = CASE WHEN i.outcome <> 'sent' THEN COALESCE(i.error_class, CASE i.outcome
                               WHEN 'unknown' THEN 'unknown' WHEN 'failed' THEN 'permanent' END) END,
            error_code = i.code, error_message = i.reason,
            history = CASE WHEN i.outcome = 'sent' AND NOT COALESCE(i.looked_up, false) THEN p.history
                           ELSE p.history || jsonb_build_array(jsonb_build_object(
                                'at', campaign_pipeline.campaign_now(), 'attempt', p.attempts, 'started',
                                    p.attempted_at,
                                'outcome', i.outcome, 'code', i.code, 'reason', i.reason, 'looked_up', i.looked_up)) END
        FROM jsonb_to_recordset(p_items) AS i (id uuid, part_no integer, attempt_no integer, outcome text, code text,
             reason text, provider_message_id text, response jsonb, address text, duration_ms integer,
                 looked_up boolean,
             error_class text, in_conversation boolean, token uuid)
        WHERE p.message_id = i.id AND p.part_no = i.part_no
          AND CASE WHEN i.outcome = 'sent' THEN p.status <> 'sent' AND i.attempt_no <= p.attempts
                   ELSE (i.id = ANY (held) OR (i.id = ANY (gone) AND p.attempt_token = i.token))
                        AND p.attempts = i.attempt_no AND p.status IN ('attempting', 'unknown') END
        RETURNING p.message_id, p.part_no, p.status, p.slot_at, i.in_conversation
    )
    SELECT array_agg(s.message_id),
           jsonb_agg(jsonb_build_object('id', s.message_id, 'part_no', s.part_no, 'written', s.in_conversation))
               FILTER (WHERE s.status = 'sent'),
           array_agg(s.message_id) FILTER (WHERE s.slot_at IS NOT NULL)
    INTO changed, out_now, slotted FROM settled s;

    IF slotted IS NOT NULL THEN
        PERFORM campaign_pipeline.campaign_settle_slots(p_items, slotted);
    END IF;

    -- A message whose parts are all sent is sent, whatever its caller thought or whoever holds it.
    WITH complete AS (
        SELECT i.id
        FROM jsonb_to_recordset(p_items) AS i (id uuid)
        WHERE i.id = ANY (changed)
          AND NOT EXISTS (SELECT 1 FROM campaign_pipeline.campaign_message_parts p WHERE p.message_id = i.id
                          AND p.status <> 'sent')
    ), done AS (
        UPDATE public.campaign_messages m
        SET status = 'sent', sent_at = campaign_pipeline.campaign_now(), finished_at = campaign_pipeline.campaign_now(),
            provider_message_id = last.provider_message_id, provider_response = last.provider_response,
            send_time_ms = total.duration_ms,
            error_class = NULL, error_code = NULL, error_message = NULL, last_error = NULL,
            lease_expires_at = CASE WHEN m.id = ANY (held) THEN m.lease_expires_at END
        FROM complete
        CROSS
            JOIN LATERAL (SELECT p.provider_message_id, p.provider_response
                          FROM campaign_pipeline.campaign_message_parts p
                            WHERE p.message_id = complete.id ORDER BY p.part_no DESC LIMIT 1) last
        CROSS
            JOIN LATERAL (SELECT sum(p.duration_ms)::integer AS duration_ms
                          FROM campaign_pipeline.campaign_message_parts p
                            WHERE p.message_id = complete.id) total
        WHERE m.id = complete.id AND m.status NOT IN ('sent', 'replied')
        RETURNING m.id
    )
    SELECT array_agg(done.id) INTO sent_now FROM done;

    -- Everything else that the caller decided, for messages that it still holds.
    UPDATE public.campaign_messages m
    SET status = i.status,
        lease_token = CASE WHEN i.status = 'pending' THEN NULL ELSE m.lease_token END,
        lease_expires_at = CASE WHEN i.status = 'pending' THEN NULL ELSE m.lease_expires_at END,
        -- No delay: due as before, so that a claim given back untouched keeps its place.
        next_attempt_at = CASE WHEN i.delay_seconds IS NOT NULL
                               -- A provider's Retry-After may be any number; a week is the longest that is believed.
                               THEN campaign_pipeline.campaign_now()
                                   + make_interval(secs => least(i.delay_seconds, 604800)) ELSE m.next_attempt_at END,
        retry_count = m.retry_count + CASE WHEN i.count_attempt THEN 1 ELSE 0 END,
        error_class = i.error_class, error_code = i.code,
        error_message = CASE WHEN i.status IN ('failed', 'skipped') THEN i.reason END,
        last_error = COALESCE(i.reason, m.last_error),
        finished_at = CASE WHEN i.status IN ('failed', 'skipped') THEN campaign_pipeline.campaign_now() END
    FROM jsonb_to_recordset(p_items) AS i (id uuid, status text, code text, reason text, error_class text,
         delay_seconds double precision, count_attempt boolean)
    WHERE m.id = i.id AND m.id = ANY (held) AND i.status IN ('pending', 'failed', 'skipped')
      AND campaign_pipeline.campaign_is_leased(m.status);

    -- A refusal that means "never again" holds for every campaign.
    PERFORM campaign_pipeline.campaign_suppress_refused(
        p_items, held || ARRAY(SELECT g.id FROM unnest(gone) AS g (id) WHERE g.id = ANY (changed)));

    -- A late fact about a message that ended as unknown or skipped, with parts still to go: back-fill finds it.
    UPDATE public.campaign_messages m
    SET status = 'failed', error_class = 'exhausted', error_code = 'incomplete',
        error_message = 'A part turned out to be sent after all; the parts after it were never tried.'
    WHERE m.id IN (SELECT (o ->> 'id')::uuid FROM jsonb_array_elements(out_now) AS o)
      -- By exclusion: named as in the index of finished messages, the planner would read all of them (see
      -- campaign_is_leased): 1.4 ms a message after 20,000.
      AND m.status NOT IN ('pending', 'queued', 'generating', 'sending', 'sent', 'replied')
      AND (m.status <> 'failed' OR m.error_class = 'unknown')
      AND NOT EXISTS (SELECT 1 FROM campaign_pipeline.campaign_message_parts p WHERE p.message_id = m.id
                      AND p.status IN ('unknown', 'attempting'));

    -- What the CRM shows of it comes last, and whatever the CRM makes of that, the above is committed.
    PERFORM campaign_pipeline.campaign_show_in_conversation(out_now);
    PERFORM campaign_pipeline.campaign_move_leads(sent_now);
    IF gone IS NOT NULL THEN
        PERFORM campaign_pipeline.campaign_end_deleted(gone, changed);
    END IF;

    -- A probe that went out closes the circuits it was sent to try.
    DELETE FROM campaign_pipeline.campaign_pauses WHERE probe_message_id = ANY (sent_now);

    RETURN QUERY
    SELECT i.id,
           EXISTS (SELECT 1 FROM campaign_pipeline.campaign_message_parts p WHERE p.message_id = i.id
                   AND p.part_no = i.part_no
                   AND p.status = i.outcome AND p.attempts >= i.attempt_no),
           COALESCE(m.status = i.status AND (i.status = 'pending' OR m.lease_token = i.token), false), m.status
    FROM jsonb_to_recordset(p_items)
        AS i (id uuid, token uuid, status text, part_no integer, attempt_no integer, outcome text)
    LEFT JOIN public.campaign_messages m ON m.id = i.id;
END $$;

-- What the CRM shows ------------------------------------------------------------------------------------------------

-- Whether an error is one that passes by itself: a lock, a deadlock, a server that stops. The whole statement is
-- repeated then; whatever else the CRM's tables answer is theirs, and answers the same again.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_is_passing(p_state text) RETURNS boolean
    LANGUAGE sql IMMUTABLE AS $$
    SELECT left(p_state, 2) IN ('40', '53', '57', '58') OR p_state = '55P03'
$$;

-- Say in the campaign's log what the CRM refused, and why. Never fails: it is called where nothing may.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_log_refusal(
    p_what text, p_run uuid, p_message uuid, p_lead uuid, p_why text
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.campaign_logs (run_id, step_number, step_name, level, message, details, lead_id, message_id,
                                      created_at)
    SELECT r.id, 0, 'crm', 'error',
           format('The CRM refused the %s of a message that is sent or being sent; the rest is recorded. It said: %s',
                  p_what, left(p_why, 500)),
           jsonb_build_object('refused', p_what, 'message_id', p_message),
           (SELECT l.id FROM public.leads l WHERE l.id = p_lead),
           (SELECT m.id FROM public.campaign_messages m WHERE m.id = p_message),
           campaign_pipeline.campaign_now()
    FROM public.campaign_runs r WHERE r.id = p_run;
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'The CRM refused the % of campaign message %: %', p_what, p_message, p_why;
END $$;

-- Parts that went out appear in the CRM's chat, unless their provider wrote them there itself (`written`).
-- p_parts: [{id, part_no, written}] or null. A part that the CRM's chat refuses is logged; the others are shown.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_show_in_conversation(p_parts jsonb) RETURNS void
    LANGUAGE plpgsql AS $$
DECLARE
    part jsonb;
BEGIN
    IF p_parts IS NULL THEN
        RETURN;
    END IF;
    PERFORM campaign_pipeline.campaign_write_chat(p_parts);
EXCEPTION WHEN OTHERS THEN
    IF campaign_pipeline.campaign_is_passing(SQLSTATE) THEN
        RAISE;
    END IF;
    IF jsonb_array_length(p_parts) = 1 THEN
        PERFORM campaign_pipeline.campaign_log_refusal('chat row', p.run_id, p.message_id, p.lead_id, SQLERRM)
        FROM campaign_pipeline.campaign_message_parts p
        WHERE p.message_id = (p_parts -> 0 ->> 'id')::uuid AND p.part_no = (p_parts -> 0 ->> 'part_no')::integer;
        RETURN;
    END IF;
    FOR part IN SELECT value FROM jsonb_array_elements(p_parts) LOOP
        PERFORM campaign_pipeline.campaign_show_in_conversation(jsonb_build_array(part));
    END LOOP;
END $$;

-- The rows themselves. From the ledger, for the message may be deleted; only parts that were begun before the ledger
-- had a conversation of its own ask the message for it. `sent_by` is a user of the CRM: nobody, for what the AI wrote.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_write_chat(p_parts jsonb) RETURNS void LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
BEGIN
    WITH part AS (
        SELECT v.id AS conversation_id, COALESCE(p.run_id, m.run_id) AS run_id,
               COALESCE(p.lead_id, m.lead_id) AS lead_id,
               p.text, p.provider_message_id, p.part_no, p.sent_at, i.written
        FROM jsonb_to_recordset(p_parts) AS i (id uuid, part_no integer, written boolean)
        JOIN campaign_pipeline.campaign_message_parts p ON p.message_id = i.id AND p.part_no = i.part_no
        LEFT JOIN public.campaign_messages m ON m.id = i.id
        JOIN public.conversations v ON v.id = COALESCE(p.conversation_id, m.conversation_id)
    ), shown AS (
        INSERT INTO public.messages (conversation_id, content_type, message_type, text_content, provider_message_id,
                                     is_read, created_at)
        SELECT conversation_id, 'text', 'sent', text, provider_message_id, true, sent_at FROM part
        WHERE written IS NOT TRUE ORDER BY part_no
    ), newest AS (
        SELECT DISTINCT ON (conversation_id) *,
               count(*) FILTER (WHERE written IS NOT TRUE) OVER (PARTITION BY conversation_id) AS rows
        FROM part ORDER BY conversation_id, part_no DESC
    )
    UPDATE public.conversations v
    SET last_message = newest.text, last_message_at = newest.sent_at, updated_at = newest.sent_at,
        total_messages = COALESCE(v.total_messages, 0) + newest.rows,
        campaign_run_id
            = COALESCE((SELECT r.id FROM public.campaign_runs r WHERE r.id = newest.run_id), v.campaign_run_id),
        lead_id = COALESCE(v.lead_id, (SELECT l.id FROM public.leads l WHERE l.id = newest.lead_id))
    FROM newest WHERE v.id = newest.conversation_id;
END $$;

-- A contacted lead moves on in the sales funnel, unless somebody moved it meanwhile, and its history says so. A move
-- that the CRM refuses is logged; the others are made.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_move_leads(p_ids uuid[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    id_ uuid;
BEGIN
    IF p_ids IS NULL THEN
        RETURN;
    END IF;
    PERFORM campaign_pipeline.campaign_write_moves(p_ids);
EXCEPTION WHEN OTHERS THEN
    IF campaign_pipeline.campaign_is_passing(SQLSTATE) THEN
        RAISE;
    END IF;
    IF cardinality(p_ids) = 1 THEN
        PERFORM campaign_pipeline.campaign_log_refusal('move of the lead', p.run_id, p.message_id, p.lead_id, SQLERRM)
        FROM campaign_pipeline.campaign_message_parts p WHERE p.message_id = p_ids[1] AND p.part_no = 1;
        RETURN;
    END IF;
    FOREACH id_ IN ARRAY p_ids LOOP
        PERFORM campaign_pipeline.campaign_move_leads(ARRAY[id_]);
    END LOOP;
END $$;

-- The moves themselves, from the ledger, as in campaign_write_chat.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_write_moves(p_ids uuid[]) RETURNS void LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
BEGIN
    -- Row by row of its arguments (LIMIT), or a plan that was made while the ledger was small reads all of it.
    WITH contacted AS MATERIALIZED (
        SELECT DISTINCT ON (l.id) l.id AS lead_id, l.column_id AS before,
               COALESCE(p.source_column_id, c.source_column_id) AS source,
               COALESCE(p.target_column_id, c.target_column_id) AS target
        FROM unnest(p_ids) AS i (id)
        CROSS JOIN LATERAL (SELECT p.* FROM campaign_pipeline.campaign_message_parts p
                            WHERE p.message_id = i.id AND p.part_no = 1 LIMIT 1) p
        -- Only parts that were begun before the ledger had all this ask the message.
        LEFT JOIN LATERAL (SELECT m.lead_id, m.run_id FROM public.campaign_messages m
                           WHERE m.id = i.id AND p.run_id IS NULL LIMIT 1) m ON true
        LEFT JOIN LATERAL (SELECT c.* FROM public.campaign_runs r JOIN public.campaign_configs c ON c.id = r.config_id
                           WHERE r.id = m.run_id LIMIT 1) c ON true
        CROSS JOIN LATERAL (SELECT l.id, l.column_id FROM public.leads l
                            WHERE l.id = COALESCE(p.lead_id, m.lead_id) LIMIT 1) l
        ORDER BY l.id  -- in one order, or two groups could wait for each other
    ), moved AS (
        UPDATE public.leads l
        SET column_id = CASE WHEN l.column_id = t.source AND t.target IS NOT NULL THEN t.target ELSE l.column_id END,
            last_activity_at = campaign_pipeline.campaign_now()
        FROM contacted t
        WHERE l.id = t.lead_id
        RETURNING l.id, t.before, l.column_id AS after
    )
    INSERT INTO public.lead_activities (lead_id, activity_type, description, created_at)
    SELECT moved.id, 'column_change',
           format('Campanha enviada: movido de "%s" para "%s".', COALESCE(k.title, '?'), COALESCE(n.title, '?')),
           campaign_pipeline.campaign_now()
    FROM moved
    LEFT JOIN public.funnel_columns k ON k.id = moved.before
    LEFT JOIN public.funnel_columns n ON n.id = moved.after
    WHERE moved.after IS DISTINCT FROM moved.before;
END $$;

-- Messages that the CRM deleted while a part of them was under way: of what went out or may have the lead moves, so
-- that no other run writes to it as if nothing had happened, and the log of the run, if it still exists, says what was
-- done. p_changed: the messages of which a part was settled just now.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_end_deleted(p_gone uuid[], p_changed uuid[]) RETURNS void
LANGUAGE plpgsql SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    settled uuid[] := ARRAY(SELECT g.id FROM unnest(p_gone) AS g (id) WHERE g.id = ANY (p_changed));
BEGIN
    IF cardinality(settled) = 0 THEN
        RETURN;
    END IF;
    PERFORM campaign_pipeline.campaign_move_leads(ARRAY(
        SELECT s.id FROM unnest(settled) AS s (id)
        WHERE EXISTS (SELECT 1 FROM campaign_pipeline.campaign_message_parts p
                      WHERE p.message_id = s.id AND p.status IN ('sent', 'unknown'))));
    INSERT INTO public.campaign_logs (run_id, step_number, step_name, level, message, details, lead_id, created_at)
    SELECT r.id, 0, 'send', CASE WHEN t.sent + t.unknown > 0 THEN 'warning' ELSE 'info' END,
           'The message was deleted before all of it was sent. ' || CASE
               WHEN t.sent > 0
                   THEN format('%s of its %s parts went out: recorded, shown in the chat, and the lead was moved.',
                                           t.sent, t.parts)
               WHEN t.unknown > 0 THEN 'Nobody knows whether a part went out; the lead was moved as if it had.'
               ELSE 'Nothing of it went out.' END || ' Nothing more is sent.',
           jsonb_build_object('message_id', t.id, 'parts', t.parts, 'sent', t.sent, 'unknown', t.unknown),
           (SELECT l.id FROM public.leads l WHERE l.id = t.lead_id), campaign_pipeline.campaign_now()
    FROM (SELECT s.id, min(p.run_id::text)::uuid AS run_id, min(p.lead_id::text)::uuid AS lead_id, count(*) AS parts,
                 count(*) FILTER (WHERE p.status = 'sent') AS sent,
                 count(*) FILTER (WHERE p.status IN ('unknown', 'attempting')) AS unknown
          FROM unnest(settled) AS s (id)
          JOIN campaign_pipeline.campaign_message_parts p ON p.message_id = s.id GROUP BY s.id) t
    JOIN public.campaign_runs r ON r.id = t.run_id;
    DELETE FROM campaign_pipeline.campaign_deleted_in_flight x
    WHERE x.message_id = ANY (settled)
      AND NOT EXISTS (SELECT 1 FROM campaign_pipeline.campaign_message_parts p
                      WHERE p.message_id = x.message_id AND p.status = 'attempting');
EXCEPTION WHEN OTHERS THEN
    IF campaign_pipeline.campaign_is_passing(SQLSTATE) THEN
        RAISE;
    END IF;
    RAISE WARNING 'What was done with deleted campaign messages could not be logged: %', SQLERRM;
END $$;

-- Of messages that were deleted before all of them was sent: leads that got a part move. A part under way that no
-- worker has settled in five minutes, none will; it may have gone out.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_settle_deleted() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    deleted uuid[];
    lost    uuid[];
BEGIN
    SELECT array_agg(d.message_id) INTO deleted
    FROM (SELECT x.message_id FROM campaign_pipeline.campaign_deleted_in_flight x
          WHERE x.deleted_at < campaign_pipeline.campaign_now() - interval '5 minutes'
             OR NOT EXISTS (SELECT 1 FROM campaign_pipeline.campaign_message_parts p
                            WHERE p.message_id = x.message_id AND p.status = 'attempting')
          FOR UPDATE SKIP LOCKED) d;
    IF deleted IS NULL THEN
        RETURN;
    END IF;
    UPDATE campaign_pipeline.campaign_message_parts p
    SET status = 'unknown', error_class = 'unknown', error_code = 'worker_died',
        error_message = 'The process that was sending this part ended before it could record an answer.',
        lease_ended_at = campaign_pipeline.campaign_now()
    WHERE p.message_id = ANY (deleted) AND p.status = 'attempting';
    SELECT array_agg(DISTINCT p.message_id) INTO lost FROM campaign_pipeline.campaign_message_parts p
    WHERE p.message_id = ANY (deleted) AND p.status IN ('sent', 'unknown');
    PERFORM campaign_pipeline.campaign_end_deleted(lost, lost);
    DELETE FROM campaign_pipeline.campaign_deleted_in_flight x WHERE x.message_id = ANY (deleted);
END $$;

-- Closing runs -------------------------------------------------------------------------------------------------------

-- Close what can change no more: running runs become completed, cancelled ones get their end. Each exactly once. Totals
-- are not consulted: they may be wrong. A run without a message is given five minutes, for whoever is still writing
-- them, and an hour where its total says that some are to come; a message that comes later still opens it again.
-- The run is locked before its messages are looked at again, and in the mode that a new message's foreign key waits
-- for: a message that is being inserted right now keeps its run out of this call. Rows that somebody holds wait for the
-- next.
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
      -- LIMIT 1 makes each an index probe per run; as NOT EXISTS they may become one join over all leases (15 ms).
      AND (SELECT 1 FROM public.campaign_messages m WHERE m.run_id = r.id AND m.status = 'pending' LIMIT 1) IS NULL
      AND (SELECT 1 FROM public.campaign_messages m
           WHERE m.run_id = r.id AND m.status IN ('queued', 'generating', 'sending') LIMIT 1) IS NULL
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

    -- Another statement, so that it sees what was committed before the lock was had.
    RETURN QUERY
    UPDATE public.campaign_runs r
    SET status = CASE WHEN r.status = 'running' THEN 'completed' ELSE r.status END,
        completed_at = campaign_pipeline.campaign_now(), closed_by_pipeline_at = campaign_pipeline.campaign_now(),
        wait_code = NULL, wait_reason = NULL, wait_until = NULL
    WHERE r.id = ANY (locked)
      AND (r.status = 'running' OR (r.status = 'cancelled' AND r.completed_at IS NULL))
      AND (SELECT 1 FROM public.campaign_messages m WHERE m.run_id = r.id AND m.status = 'pending' LIMIT 1) IS NULL
      AND (SELECT 1 FROM public.campaign_messages m
           WHERE m.run_id = r.id AND m.status IN ('queued', 'generating', 'sending') LIMIT 1) IS NULL
    RETURNING r.id, r.name, r.status, r.leads_total, r.leads_success, r.leads_failed, r.leads_skipped;
END $$;

-- Sending again what failed ------------------------------------------------------------------------------------------

-- Put failed messages back in the queue, due now, with all their attempts before them; parts that were sent stay sent.
-- What may have gone out (class unknown) is left alone unless it is asked for by p_resend_unknown: then it is looked up
-- once more, and sent if it is not found. A run that was closed over them opens again, to close anew.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_requeue_failed(
    p_ids uuid[], p_resend_unknown boolean DEFAULT false
) RETURNS SETOF uuid LANGUAGE plpgsql AS $$
DECLARE
    again uuid[];
BEGIN
    -- Runs first, in the order of their ids, as everywhere.
    PERFORM 1 FROM public.campaign_runs r
    WHERE r.id IN (SELECT m.run_id FROM public.campaign_messages m WHERE m.id = ANY (p_ids))
    ORDER BY r.id FOR NO KEY UPDATE;
    SELECT array_agg(f.id) INTO again
    FROM (SELECT m.id FROM public.campaign_messages m
          WHERE m.id = ANY (p_ids) AND m.status = 'failed'
            AND (m.error_class IS DISTINCT FROM 'unknown' OR p_resend_unknown)
            -- A cancelled run takes nothing up again: its message would wait for ever.
            AND EXISTS (SELECT 1 FROM public.campaign_runs r
                        WHERE r.id = m.run_id AND r.status IN ('running', 'paused', 'completed'))
          ORDER BY m.id FOR UPDATE) f;

    UPDATE campaign_pipeline.campaign_message_parts p
    SET status = CASE WHEN p.status = 'failed' THEN 'planned' ELSE p.status END,
        resend_approved_at = CASE WHEN p.status = 'unknown' THEN campaign_pipeline.campaign_now() END
    WHERE p.message_id = ANY (again) AND (p.status = 'failed' OR (p.status = 'unknown' AND p_resend_unknown));

    DELETE FROM campaign_pipeline.campaign_worker_deaths d WHERE d.message_id = ANY (again);

    UPDATE public.campaign_runs r
    SET status = 'running', completed_at = NULL
    WHERE r.status = 'completed' AND r.id IN (SELECT m.run_id FROM public.campaign_messages m WHERE m.id = ANY (again));

    RETURN QUERY
    UPDATE public.campaign_messages m
    SET status = 'pending', retry_count = 0, next_attempt_at = campaign_pipeline.campaign_now(), lease_token = NULL,
        lease_expires_at = NULL,
        error_class = NULL, error_code = NULL, error_message = NULL, finished_at = NULL,
            requeued_at = campaign_pipeline.campaign_now()
    WHERE m.id = ANY (again)
    RETURNING m.id;
END $$;
