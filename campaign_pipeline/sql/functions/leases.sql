-- Leases of a shard: taken over from the batch, renewed, and recovered when their holder died (I1).

-- Take over the messages of a shard under its own token, so that an older process with the batch's token can change
-- nothing any more. Taken: messages that the batch leased, whose lease expired, or that were given back and are due.
-- Left: messages that another worker holds, that wait for their time, or that are finished.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_take_over(
    p_ids uuid[], p_batch_token uuid, p_token uuid, p_owner text, p_lease_seconds double precision
) RETURNS TABLE (message_id uuid, verdict text) LANGUAGE plpgsql
SET lock_timeout = '800ms' AS $$
DECLARE
    may_take boolean := campaign_pipeline.campaign_may_take();  -- unheld ones; the batch's are delivered anyway
BEGIN
    PERFORM campaign_pipeline.campaign_recover_leases(p_ids);
    RETURN QUERY
    WITH seen AS MATERIALIZED (
        SELECT m.id,
               CASE
                   -- Already under p_token: this very call was committed, and its answer lost with the connection.
                   WHEN campaign_pipeline.campaign_is_leased(m.status) AND m.lease_token IN (p_batch_token, p_token)
                       THEN 'taken'
                   WHEN campaign_pipeline.campaign_is_leased(m.status) THEN 'held_by_another'
                   WHEN m.status = 'pending' AND may_take
                        AND campaign_pipeline.campaign_due_at(m) <= campaign_pipeline.campaign_now() THEN 'taken'
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

-- Heartbeat: renew what is still ours, and return it.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_renew_leases(
    p_ids uuid[], p_token uuid, p_lease_seconds double precision
) RETURNS SETOF uuid LANGUAGE plpgsql
SET jit = off SET enable_seqscan = off SET lock_timeout = '800ms' AS $$
BEGIN
    RETURN QUERY
    UPDATE public.campaign_messages m
    SET lease_expires_at = campaign_pipeline.campaign_now() + make_interval(secs => p_lease_seconds)
    WHERE m.id = ANY (p_ids) AND m.lease_token = p_token AND campaign_pipeline.campaign_is_leased(m.status)
    RETURNING m.id;
END $$;

-- Give back messages whose holder did not renew the lease (I1). A part in `attempting` may have been sent: it becomes
-- `unknown` (I5), and its request may have left until the lease ended.
-- A message may be the reason why its worker died. At the second death it is set aside, because one poisoned row could
-- kill workers for ever; if it may have been sent, it is first looked up a few more times.
-- p_ids NULL: all. Rows that another transaction has locked are skipped.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_recover_leases(p_ids uuid[] DEFAULT NULL)
RETURNS TABLE (message_id uuid, run_id uuid, was text, owner text) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    dead  uuid[];
    aside uuid[];  -- of these: messages whose workers died too often
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
                WHERE campaign_pipeline.campaign_is_leased_indexed(e.status)
                    AND e.lease_expires_at <= campaign_pipeline.campaign_now())
            -- Checked again on the locked row: its holder may have renewed it in between.
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

    -- Not those that waited for their turn, nor those of the system that this one replaces.
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

-- Give back the messages of ended steps before their leases expire. p_owners: as in lease_owner; `run 1a2b3c4d` means
-- all steps of that run. A step that is alive, although Dagster considers it ended, does no harm (I1): its token is no
-- longer valid, so it can begin no other part. The part that it is sending becomes `unknown` (I5), its request may
-- leave until its lease would have ended, and its late answer is still recorded.
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
