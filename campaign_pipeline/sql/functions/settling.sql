-- Settling parts and messages: their results.

-- Record the outcome of a part, the next state of its message, or both, in one commit. Items as declared
-- by campaign_end:
--   outcome  the outcome of attempt attempt_no of the part: sent, planned (surely not sent), unknown, failed; or
--            null
--   status   the message's new status: sent, pending, failed, skipped; null: unchanged
-- The fact that a part was sent is accepted from any caller, even after its lease is lost and whatever was recorded of
-- that attempt meanwhile: it can only prevent a duplicate. Everything else needs the lease. If the CRM has deleted the
-- message meanwhile, the maker of the attempt settles the part: it is recorded, shown in the chat, and its lead moved.
-- The same applies to a part of a message that somebody else ended (the CRM, by a cancel); the message's end stays.
-- `applied`: the ledger has this outcome, now or from an earlier call whose answer was lost; `moved`: the message is in
-- the wanted state; `final`: its present status, null if it was deleted.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_settle(p_items jsonb)
RETURNS TABLE (message_id uuid, applied boolean, moved boolean, final text) LANGUAGE plpgsql
SET jit = off SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET plan_cache_mode = force_generic_plan SET lock_timeout = '800ms' AS $$
#variable_conflict use_column
DECLARE
    ends     campaign_pipeline.campaign_end[] := ARRAY(
        SELECT i FROM jsonb_populate_recordset(NULL::campaign_pipeline.campaign_end, p_items) AS i);
    ids      uuid[] := ARRAY(SELECT i.id FROM unnest(ends) AS i);
    found    uuid[];   -- existing messages
    held     uuid[];   -- of these: messages whose lease the caller holds
    gone     uuid[];   -- deleted messages: only their parts are left
    ended    uuid[];   -- messages without a lease: somebody else ended them while the caller was sending
    changed  uuid[];   -- messages with a changed part
    out_now  jsonb;    -- parts that became sent by this call: [{id, part_no, written}]
    out_ids  uuid[];   -- their messages
    slotted  uuid[];   -- messages whose changed part had a slot
    sent_now uuid[];   -- messages that became sent by this call
BEGIN
    -- Runs before messages, as the CRM locks them when it pauses or cancels a run; each in the order of their ids, so
    -- that two shards with messages of the same two runs cannot deadlock. Counters are raised twice below.
    PERFORM 1 FROM public.campaign_runs r
    WHERE r.id IN (SELECT m.run_id FROM unnest(ends) AS i
                   JOIN public.campaign_messages m ON m.id = i.id
                   WHERE i.outcome = 'sent' OR i.status IN ('failed', 'skipped'))
    ORDER BY r.id FOR NO KEY UPDATE;

    -- All rows in one order, leased or not: a late fact and the new holder may meet here.
    SELECT array_agg(l.id),
           array_agg(l.id) FILTER (WHERE l.lease_token = i.token AND campaign_pipeline.campaign_is_leased(l.status)),
           array_agg(l.id) FILTER (WHERE NOT campaign_pipeline.campaign_is_leased(l.status))
    INTO found, held, ended
    FROM (SELECT m.id, m.lease_token, m.status FROM public.campaign_messages m
          WHERE m.id = ANY (ids) ORDER BY m.id FOR UPDATE) l
    JOIN unnest(ends) AS i ON i.id = l.id;
    gone := ARRAY(SELECT x.id FROM unnest(ids) AS x (id) WHERE NOT x.id = ANY (COALESCE(found, '{}')));

    SELECT s.changed, s.out_now, s.out_ids, s.slotted INTO changed, out_now, out_ids, slotted
    FROM campaign_pipeline.campaign_settle_parts(ends, held, gone || ended) s;
    IF slotted IS NOT NULL THEN
        PERFORM campaign_pipeline.campaign_settle_slots(ends, slotted);
    END IF;
    IF out_ids IS NOT NULL THEN
        sent_now := campaign_pipeline.campaign_complete_messages(out_ids, held);
    END IF;
    IF EXISTS (SELECT 1 FROM unnest(ends) AS i WHERE i.status IN ('pending', 'failed', 'skipped')) THEN
        PERFORM campaign_pipeline.campaign_end_held(ends, held);
    END IF;
    IF EXISTS (SELECT 1 FROM unnest(ends) AS i WHERE i.outcome = 'failed') THEN
        -- A refusal that means "never again" applies to all campaigns.
        PERFORM campaign_pipeline.campaign_suppress_refused(
            ends, held || ARRAY(SELECT g.id FROM unnest(gone) AS g (id) WHERE g.id = ANY (changed)));
    END IF;
    IF EXISTS (SELECT 1 FROM unnest(ends) AS i
               WHERE i.id = ANY (out_ids) AND NOT i.id = ANY (COALESCE(sent_now, '{}'))
                 AND (i.status IN ('failed', 'skipped') OR NOT i.id = ANY (COALESCE(held, '{}')))) THEN
        PERFORM campaign_pipeline.campaign_note_incomplete(out_ids);
    END IF;

    -- The CRM's chat comes last: whatever the CRM makes of it, the changes above are committed.
    PERFORM campaign_pipeline.campaign_show_in_conversation(out_now);
    PERFORM campaign_pipeline.campaign_move_leads(sent_now);
    IF gone <> '{}' THEN
        PERFORM campaign_pipeline.campaign_end_deleted(gone, changed);
    END IF;

    -- A probe that was sent closes the circuits that it tested.
    IF EXISTS (SELECT 1 FROM campaign_pipeline.campaign_pauses) THEN
        DELETE FROM campaign_pipeline.campaign_pauses WHERE probe_message_id = ANY (sent_now);
    END IF;

    RETURN QUERY
    SELECT i.id,
           EXISTS (SELECT 1 FROM campaign_pipeline.campaign_message_parts p WHERE p.message_id = i.id
                   AND p.part_no = i.part_no
                   AND p.status = i.outcome AND p.attempts >= i.attempt_no),
           COALESCE(m.status = i.status AND (i.status = 'pending' OR m.lease_token = i.token), false), m.status
    FROM unnest(ends) AS i
    LEFT JOIN public.campaign_messages m ON m.id = i.id;
END $$;

-- Record the outcomes in the ledger. p_held: messages whose lease the caller holds; p_free: messages that were deleted
-- or have no lease: the maker of the attempt reports its outcome.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_settle_parts(
    p_ends campaign_pipeline.campaign_end[], p_held uuid[], p_free uuid[],
    OUT changed uuid[],   -- messages with a changed part
    OUT out_now jsonb,    -- parts that became sent: [{id, part_no, written}]
    OUT out_ids uuid[],   -- their messages
    OUT slotted uuid[]    -- messages whose part had a slot
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
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
                                'at', campaign_pipeline.campaign_now(), 'attempt', p.attempts,
                                'started', p.attempted_at, 'outcome', i.outcome, 'code', i.code, 'reason', i.reason,
                                'looked_up', i.looked_up)) END
        FROM unnest(p_ends) AS i
        WHERE p.message_id = i.id AND p.part_no = i.part_no
          AND CASE WHEN i.outcome = 'sent' THEN p.status <> 'sent' AND i.attempt_no <= p.attempts
                   -- A caller that repeats a recorded outcome, after a lost answer, no longer holds the message.
                   ELSE (i.id = ANY (p_held)
                         OR (i.id = ANY (p_free) AND p.attempt_token = i.token AND p.status <> i.outcome))
                        AND p.attempts = i.attempt_no AND p.status IN ('attempting', 'unknown') END
        RETURNING p.message_id, p.part_no, p.status, p.slot_at, i.in_conversation
    )
    SELECT array_agg(s.message_id),
           jsonb_agg(jsonb_build_object('id', s.message_id, 'part_no', s.part_no, 'written', s.in_conversation))
               FILTER (WHERE s.status = 'sent'),
           array_agg(s.message_id) FILTER (WHERE s.status = 'sent'),
           array_agg(s.message_id) FILTER (WHERE s.slot_at IS NOT NULL)
    INTO changed, out_now, out_ids, slotted FROM settled s;
END $$;

-- A message whose parts are all sent is sent, whatever its caller assumed and whoever holds it. Returns the messages
-- that became sent.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_complete_messages(p_ids uuid[], p_held uuid[]) RETURNS uuid[]
LANGUAGE plpgsql AS $$
DECLARE
    done uuid[];
BEGIN
    WITH sent AS (
        UPDATE public.campaign_messages m
        SET status = 'sent', sent_at = campaign_pipeline.campaign_now(), finished_at = campaign_pipeline.campaign_now(),
            provider_message_id = ledger.provider_message_id, provider_response = ledger.provider_response,
            send_time_ms = ledger.duration_ms,
            error_class = NULL, error_code = NULL, error_message = NULL, last_error = NULL,
            lease_expires_at = CASE WHEN m.id = ANY (p_held) THEN m.lease_expires_at END
        FROM unnest(p_ids) AS x (id)
        CROSS JOIN LATERAL (
            SELECT bool_and(p.status = 'sent') AS complete, sum(p.duration_ms)::integer AS duration_ms,
                   (array_agg(p.provider_message_id ORDER BY p.part_no DESC))[1] AS provider_message_id,
                   (array_agg(p.provider_response ORDER BY p.part_no DESC))[1] AS provider_response
            FROM campaign_pipeline.campaign_message_parts p WHERE p.message_id = x.id) ledger
        WHERE m.id = x.id AND ledger.complete AND m.status NOT IN ('sent', 'replied')
        RETURNING m.id
    )
    SELECT array_agg(sent.id) INTO done FROM sent;
    RETURN done;
END $$;

-- The caller's other decisions, for messages that it still holds.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_end_held(
    p_ends campaign_pipeline.campaign_end[], p_held uuid[]
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE public.campaign_messages m
    SET status = i.status,
        lease_token = CASE WHEN i.status = 'pending' THEN NULL ELSE m.lease_token END,
        lease_expires_at = CASE WHEN i.status = 'pending' THEN NULL ELSE m.lease_expires_at END,
        -- No delay: due as before, so that a message that was given back unchanged keeps its place.
        next_attempt_at = CASE WHEN i.delay_seconds IS NOT NULL
                               -- A provider's Retry-After may be any number; at most a week is accepted.
                               THEN campaign_pipeline.campaign_now()
                                   + make_interval(secs => least(i.delay_seconds, 604800)) ELSE m.next_attempt_at END,
        retry_count = m.retry_count + CASE WHEN i.count_attempt THEN 1 ELSE 0 END,
        error_class = i.error_class, error_code = i.code,
        error_message = CASE WHEN i.status IN ('failed', 'skipped') THEN i.reason END,
        last_error = COALESCE(i.reason, m.last_error),
        finished_at = CASE WHEN i.status IN ('failed', 'skipped') THEN campaign_pipeline.campaign_now() END
    FROM unnest(p_ends) AS i
    WHERE m.id = i.id AND m.id = ANY (p_held) AND i.status IN ('pending', 'failed', 'skipped')
      AND campaign_pipeline.campaign_is_leased(m.status);
END $$;

-- A late fact about a message that ended as unknown or skipped, with parts left to send: back-fill finds it.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_note_incomplete(p_ids uuid[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE public.campaign_messages m
    SET status = 'failed', error_class = 'exhausted', error_code = 'incomplete',
        error_message = 'A part turned out to be sent after all; the parts after it were never tried.'
    WHERE m.id = ANY (p_ids)
      -- Not `IN`: with the spelling of the index of finished messages, the planner would read all of them (see
      -- campaign_is_leased): 1.4 ms per message after 20,000.
      AND array_position(ARRAY['failed', 'skipped'], m.status) IS NOT NULL
      AND (m.status <> 'failed' OR m.error_class = 'unknown')
      AND NOT EXISTS (SELECT 1 FROM campaign_pipeline.campaign_message_parts p WHERE p.message_id = m.id
                      AND p.status IN ('unknown', 'attempting'));
END $$;
