-- Leases of a shard: taken over from the batch, renewed, and taken back when their holder died (I1).

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
                WHERE campaign_pipeline.campaign_is_leased_indexed(e.status)
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
-- them; `run 1a2b3c4d` stands for all steps of that run. A step that lives, although Dagster believes that it has
-- ended, does no harm (I1): its token opens nothing any more, so it can begin no other part. What it is sending now
-- becomes `unknown` (I5), and its request may leave until its lease would have ended; its late answer is still
-- recorded.
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
