-- Providers' status events about parts that they accepted.

-- Apply status events to the ledger: a part of unknown outcome becomes sent or failed, and any other part gets its
-- delivery status. The result does not depend on the order or number of events: events that prove sending (sent,
-- delivered, read) win, and of two delivery statuses the later stage. No event returns a message to the queue.
-- Events: {event_id, id, part_no, status, at, provider_message_id, error_class, code, reason}. The answer is 'later'
-- for a failure of a part that a worker is sending now: that worker decides first.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_apply_status_events(p_events jsonb)
RETURNS TABLE (event_id bigint, verdict text) LANGUAGE plpgsql
SET jit = off SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
#variable_conflict use_column
BEGIN
    -- Runs first, messages second, each in the order of their ids, as in campaign_settle.
    PERFORM 1 FROM public.campaign_runs r
    WHERE r.id IN (SELECT m.run_id FROM jsonb_to_recordset(p_events) AS e (id uuid)
                   JOIN public.campaign_messages m ON m.id = e.id)
    ORDER BY r.id FOR NO KEY UPDATE;
    PERFORM 1 FROM public.campaign_messages m
    WHERE m.id IN (SELECT e.id FROM jsonb_to_recordset(p_events) AS e (id uuid)) ORDER BY m.id FOR UPDATE;

    PERFORM campaign_pipeline.campaign_note_deliveries(p_events);
    PERFORM campaign_pipeline.campaign_settle_reported(p_events);
    PERFORM campaign_pipeline.campaign_fail_reported(p_events);

    -- A failure that means "never again" (an opt-out) applies to all campaigns, whatever happened to this part.
    PERFORM campaign_pipeline.campaign_suppress_by_answer(e.id, e.code)
    FROM (SELECT DISTINCT f.id, f.code
          FROM jsonb_to_recordset(p_events) AS f (id uuid, status text, code text)
          JOIN campaign_pipeline.campaign_suppressing_codes k ON k.code = f.code
          WHERE f.status = 'failed' ORDER BY f.id, f.code) e;

    RETURN QUERY
    SELECT e.event_id,
           CASE WHEN p.message_id IS NULL THEN 'no_part'
                WHEN e.status = 'failed' AND (p.status = 'attempting' OR (
                     p.status = 'unknown' AND campaign_pipeline.campaign_is_leased(m.status))) THEN 'later'
                ELSE 'settled' END
    FROM jsonb_to_recordset(p_events) AS e (event_id bigint, id uuid, part_no integer, status text)
    LEFT JOIN public.campaign_messages m ON m.id = e.id
    LEFT JOIN campaign_pipeline.campaign_message_parts p ON p.message_id = e.id AND p.part_no = e.part_no;
END $$;

-- Step of campaign_apply_status_events: give each part its latest delivery status.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_note_deliveries(p_events jsonb) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE campaign_pipeline.campaign_message_parts p
    SET delivery_status = last.status, delivery_code = last.code, delivery_at = to_timestamp(last.at)
    FROM (SELECT DISTINCT ON (e.id, e.part_no) e.*, campaign_pipeline.campaign_delivery_stage(e.status) AS stage
          FROM jsonb_to_recordset(p_events) AS e (id uuid, part_no integer, status text, at double precision, code text)
          ORDER BY e.id, e.part_no, campaign_pipeline.campaign_delivery_stage(e.status) DESC, e.at) last
    WHERE p.message_id = last.id AND p.part_no = last.part_no
      AND last.stage > campaign_pipeline.campaign_delivery_stage(p.delivery_status);
END $$;

-- Step of campaign_apply_status_events: settle the parts that an event proves to be sent.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_settle_reported(p_events jsonb) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    number integer;
BEGIN
    -- One item per message and call, as campaign_settle requires.
    FOR number IN
        SELECT DISTINCT e.part_no FROM jsonb_to_recordset(p_events) AS e (part_no integer, status text)
        WHERE e.status <> 'failed' ORDER BY e.part_no
    LOOP
        PERFORM campaign_pipeline.campaign_settle(jsonb_agg(jsonb_build_object(
            'id', o.id, 'part_no', number, 'attempt_no', o.attempts, 'outcome', 'sent', 'looked_up', true,
            'provider_message_id', o.provider_message_id, 'response', jsonb_build_object('status_event', o.status))))
        FROM (SELECT DISTINCT ON (e.id) e.id, p.attempts, e.status, e.provider_message_id
              FROM jsonb_to_recordset(p_events) AS e (id uuid, part_no integer, status text, provider_message_id text)
              JOIN campaign_pipeline.campaign_message_parts p ON p.message_id = e.id AND p.part_no = e.part_no
              WHERE e.part_no = number AND e.status <> 'failed' AND p.status <> 'sent'
              ORDER BY e.id) o
        HAVING count(*) > 0;
    END LOOP;
END $$;

-- Step of campaign_apply_status_events: fail the parts of unknown outcome that an event reports as refused, and their
-- messages if no other part is in doubt.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_fail_reported(p_events jsonb) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    failed uuid[];
BEGIN
    WITH refused AS (
        UPDATE campaign_pipeline.campaign_message_parts p
        SET status = 'failed', error_class = f.error_class, error_code = f.code, error_message = f.reason,
            provider_message_id = COALESCE(f.provider_message_id, p.provider_message_id),
                looked_up_at = campaign_pipeline.campaign_now(),
            history = p.history || jsonb_build_array(jsonb_build_object(
                'at', campaign_pipeline.campaign_now(), 'attempt', p.attempts, 'started', p.attempted_at, 'outcome',
                    'failed',
                'code', f.code, 'reason', f.reason, 'looked_up', true))
        FROM (SELECT DISTINCT ON (e.id, e.part_no) e.*
              FROM jsonb_to_recordset(p_events) AS e (id uuid, part_no integer, status text, at double precision,
                   provider_message_id text, error_class text, code text, reason text)
              WHERE e.status = 'failed' ORDER BY e.id, e.part_no, e.at) f
        LEFT JOIN public.campaign_messages m ON m.id = f.id
        WHERE p.message_id = f.id AND p.part_no = f.part_no AND p.status = 'unknown'
          -- No worker sends a part of a message that the CRM deleted.
          AND NOT COALESCE(campaign_pipeline.campaign_is_leased(m.status), false)
          -- The key names the part, not the attempt: a failure before the last attempt began is an earlier attempt's.
          AND (p.attempts = 1 OR to_timestamp(f.at) >= p.attempted_at - interval '1 second')
        RETURNING p.message_id
    )
    SELECT array_agg(DISTINCT refused.message_id) INTO failed FROM refused;

    UPDATE public.campaign_messages m
    SET status = 'failed', error_class = p.error_class, error_code = p.error_code, error_message = p.error_message,
        last_error = p.error_message, finished_at = COALESCE(m.finished_at, campaign_pipeline.campaign_now())
    FROM (SELECT DISTINCT ON (p.message_id) p.* FROM campaign_pipeline.campaign_message_parts p
          WHERE p.message_id = ANY (failed) AND p.status = 'failed' ORDER BY p.message_id, p.part_no) p
    WHERE m.id = p.message_id
      AND (m.status = 'pending' OR (m.status = 'failed' AND m.error_class = 'unknown'))
      AND NOT EXISTS (SELECT 1 FROM campaign_pipeline.campaign_message_parts o
                      WHERE o.message_id = m.id AND o.status IN ('unknown', 'attempting'));
END $$;

-- The stage of a delivery. A later `sent` does not undo a failure, but a later `delivered` does.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_delivery_stage(p_status text) RETURNS integer
    LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE p_status WHEN 'sent' THEN 1 WHEN 'failed' THEN 2 WHEN 'delivered' THEN 3 WHEN 'read' THEN 4 ELSE 0 END
$$;
