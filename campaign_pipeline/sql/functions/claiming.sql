-- Claiming: which messages a batch leases, and which message probes a paused scope.

-- Lease up to p_batch due messages of the given runs to p_token.
-- Fair: every run gets the same share, unused shares go to other runs, and runs are taken in random order, so that a
-- batch smaller than the number of runs starves none. Never waits: rows that another claimer has locked are skipped.
-- p_quotas caps each run (1 if only a probe may go; campaign_choose_probes chooses it).
-- Rows are updated by ctid, which cannot change while this transaction has them locked: a second look-up by id would
-- search the largest index twice more per row, for the update and for its result. benchmarks/RESULTS.md has the cost
-- of a claim by size.
-- The condition on p_probes is a CASE: for `p_probes IS NULL OR …` a plan for any parameters, which a connection uses
-- from the sixth claim on, expects one message per run, and so reads and sorts all due messages of every run: 42,000
-- heap pages for a claim of 400 out of 41,000 due, instead of 400.
-- p_ahead_seconds: also claims messages planned within this time. Their shard waits for the planned time. Retries
-- (next_attempt_at) are not claimed early.
-- An earlier version returned only ids, and claimed nothing ahead; neither a result nor a signature can be replaced.
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
    before    uuid[];      -- the runs of this round, in the order of `quotas`
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
               -- the runs that used their whole share may have more
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
                  AND campaign_pipeline.campaign_due_at(m) <= horizon
                  AND (m.next_attempt_at IS NULL OR m.next_attempt_at <= campaign_pipeline.campaign_now())
                  AND CASE WHEN p_probes IS NULL THEN true ELSE m.id = ANY (p_probes) END
                  AND (m.inbox_id IS NULL
                       OR NOT campaign_pipeline.campaign_waits_for_its_inbox(m.id, m.run_id, m.inbox_id))
                ORDER BY campaign_pipeline.campaign_due_at(m)
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
            -- The inbox that its run uses now, unless a conversation has begun through another one.
            inbox_id = CASE WHEN m.inbox_id IS NOT NULL AND campaign_pipeline.campaign_is_bound(m.id, m.inbox_id)
                THEN m.inbox_id
                            ELSE (SELECT r.active_inbox_id FROM public.campaign_runs r WHERE r.id = m.run_id) END
        WHERE m.ctid = ANY (picked)
        RETURNING m.id, m.run_id, m.inbox_id, m.lead_id,
                  campaign_pipeline.campaign_due_at(m), m.retry_count;
        remaining := remaining - cardinality(picked);
        -- A run whose quota is used up drops out of the next round.
        SELECT array_agg(u.id), array_agg(u.quota - share) INTO runs, quotas
        FROM unnest(before, quotas) AS u (id, quota) WHERE u.id = ANY (runs) AND u.quota > share;
    END LOOP;
END $$;

-- Choose the message of each run that probes a paused scope: not one that already failed for this cause, if another is
-- due, and at random among the first fifty, so that one recipient's trouble cannot keep a pause open.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_choose_probes(p_runs uuid[], p_tried uuid[]) RETURNS uuid[]
LANGUAGE plpgsql AS $$
BEGIN
    RETURN ARRAY(
        SELECT (SELECT d.id
                FROM (SELECT m.id FROM public.campaign_messages m
                      WHERE m.run_id = r.id AND m.status = 'pending'
                        AND campaign_pipeline.campaign_due_at(m) <= campaign_pipeline.campaign_now()
                      ORDER BY campaign_pipeline.campaign_due_at(m) LIMIT 50) d
                ORDER BY d.id = ANY (p_tried), random() LIMIT 1)
        FROM unnest(p_runs) AS r (id));
END $$;
