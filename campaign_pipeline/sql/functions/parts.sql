-- The intent to send a part (I2, I3).

-- Before a part is sent (I2, I3): fix the text and its parts, find or create the conversation, and record the attempt.
-- Only items with the answer 'go' may be requested from the provider. A text is stored whenever the lease is held, even
-- if its first part may not leave now, because it was paid for.
-- Items: {id, token, part_no, attempt_no, address, inbox_id, channel, contact_name, and with a new text:
--         text, subject, parts[], ai_model, ai_tokens_used, ai_cost_usd, ai_generation_time_ms}. part_no 0: only store
--         the text, or book the cost of one that may not be sent.
-- Repeating an item after a lost connection is safe: the same token and attempt number find their own row and go on.
-- Before its planned time: 'not_due' (wait_seconds). A message whose text is only stored waits as `queued`: if its
-- worker dies meanwhile, the message is not suspected.
-- If an inbox or a campaign has a pace: 'paced' until its turn comes (wait_seconds, wait_code); admitted requests must
-- leave within grace_seconds of the call, or the slot must be returned (see pacing.sql).
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_begin_parts(p_items jsonb)
RETURNS TABLE (message_id uuid, verdict text, conversation_id uuid,
               wait_seconds double precision, wait_code text, grace_seconds double precision) LANGUAGE plpgsql
SET jit = off SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET plan_cache_mode = force_generic_plan SET lock_timeout = '800ms' AS $$
#variable_conflict use_column
DECLARE
    items   campaign_pipeline.campaign_intent[] := ARRAY(
        SELECT i FROM jsonb_populate_recordset(NULL::campaign_pipeline.campaign_intent, p_items) AS i);
    held    campaign_pipeline.campaign_intent[];  -- the caller has the lease
    going   campaign_pipeline.campaign_intent[];  -- and the request may leave
    refused jsonb;           -- message -> verdict, if consent refuses what otherwise might go
    slots   jsonb;           -- message -> its turn, if it has a pace
    talks   jsonb;           -- message -> conversation, if it had none
    booked  jsonb := '{}';   -- message -> cost of its refused answers, booked now
    attempted uuid[];        -- messages of which the ledger has this very attempt
BEGIN
    -- Locked from here to the commit, so that nobody takes a message over between the check and the intent.
    PERFORM 1 FROM public.campaign_messages m
    WHERE m.id IN (SELECT i.id FROM unnest(items) AS i) ORDER BY m.id FOR UPDATE;

    items := campaign_pipeline.campaign_looked_up(items);
    held := ARRAY(SELECT i FROM unnest(items) AS i WHERE i.verdict <> 'lost');
    going := ARRAY(SELECT i FROM unnest(held) AS i WHERE i.verdict = 'go' AND i.part_no > 0);

    refused := campaign_pipeline.campaign_refused_by_consent(going);
    IF refused IS NOT NULL THEN
        going := ARRAY(SELECT i FROM unnest(going) AS i WHERE NOT refused ? i.id::text);
    END IF;
    slots := campaign_pipeline.campaign_take_slots(going);
    IF slots IS NOT NULL THEN
        going := ARRAY(SELECT i FROM unnest(going) AS i WHERE NOT COALESCE(slots -> i.id::text ? 'wait', false));
    END IF;

    -- Costs are booked, whoever holds the message by now.
    IF EXISTS (SELECT 1 FROM unnest(items) AS i WHERE jsonb_array_length(NULLIF(i.calls, 'null')) > 0) THEN
        booked := campaign_pipeline.campaign_keep_model_calls(items);
    END IF;
    IF EXISTS (SELECT 1 FROM unnest(held) AS i WHERE i.asked_model IS NOT NULL) THEN
        PERFORM campaign_pipeline.campaign_note_good_texts(held);
    END IF;
    IF booked <> '{}' OR EXISTS (SELECT 1 FROM unnest(held) AS i WHERE i.ai_cost_usd > 0) THEN
        -- A message with parts was already counted: this item is a repetition.
        PERFORM campaign_pipeline.campaign_note_spending((
            SELECT jsonb_agg(jsonb_build_object('id', i.id, 'cost', COALESCE((booked ->> i.id::text)::numeric, 0)
                                                + CASE WHEN i.has_parts OR i.verdict = 'lost' THEN 0
                                                       ELSE COALESCE(i.ai_cost_usd, 0) END))
            FROM unnest(items) AS i));
    END IF;

    IF EXISTS (SELECT 1 FROM unnest(going) AS i WHERE i.conversation_id IS NULL) THEN
        talks := campaign_pipeline.campaign_find_conversations(
            ARRAY(SELECT i FROM unnest(going) AS i WHERE i.conversation_id IS NULL AND i.config_id IS NOT NULL));
    END IF;
    attempted := campaign_pipeline.campaign_write_intents(held, going, talks);
    IF slots IS NOT NULL THEN
        UPDATE campaign_pipeline.campaign_message_parts p SET slot_at = campaign_pipeline.campaign_now()
        FROM unnest(going) AS i
        WHERE i.id = ANY (attempted) AND slots ? i.id::text AND p.message_id = i.id AND p.part_no = i.part_no
          AND p.slot_at IS NULL;
    END IF;
    PERFORM campaign_pipeline.campaign_note_intents(held, attempted, talks, booked);
    IF booked <> '{}' THEN
        UPDATE public.campaign_messages m
        SET ai_cost_usd = COALESCE(m.ai_cost_usd, 0) + (booked ->> m.id::text)::numeric
        FROM unnest(items) AS i
        WHERE m.id = i.id AND i.verdict = 'lost' AND booked ? m.id::text;
    END IF;

    -- A probe that got its text proves that the language model works again.
    IF EXISTS (SELECT 1 FROM campaign_pipeline.campaign_pauses) THEN
        DELETE FROM campaign_pipeline.campaign_pauses
        WHERE probe_message_id = ANY (attempted) AND scope IN ('workspace', 'model', 'provider');
    END IF;

    RETURN QUERY
    SELECT i.id, v.verdict, COALESCE(i.conversation_id, (talks ->> i.id::text)::uuid),
           CASE WHEN v.verdict = 'not_due' THEN (
                    SELECT EXTRACT(epoch FROM least(  -- an infinite time cannot be subtracted
                        campaign_pipeline.campaign_due_at(m), campaign_pipeline.campaign_now() + interval '168 hours')
                        - campaign_pipeline.campaign_now())
                    FROM public.campaign_messages m WHERE m.id = i.id)::double precision
                ELSE (slots -> i.id::text ->> 'wait')::double precision END,
           CASE WHEN v.verdict = 'not_due' THEN 'not_due' ELSE slots -> i.id::text ->> 'code' END,
           (slots -> i.id::text ->> 'grace')::double precision
    FROM unnest(items) AS i
    CROSS JOIN LATERAL (SELECT CASE
        WHEN i.id = ANY (attempted) OR (i.part_no = 0 AND i.verdict <> 'lost') THEN 'go'
        WHEN refused ? i.id::text THEN refused ->> i.id::text
        WHEN slots -> i.id::text ? 'wait' THEN 'paced'
        WHEN i.verdict = 'go' THEN 'lost'
        ELSE i.verdict END) v (verdict);
END $$;

-- The items with their messages' data and whether they may go on.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_looked_up(p_items campaign_pipeline.campaign_intent[])
RETURNS campaign_pipeline.campaign_intent[] LANGUAGE plpgsql AS $$
BEGIN
    RETURN ARRAY(
        SELECT ROW (
            i.id, i.token, i.part_no, i.attempt_no, i.address, i.channel, i.contact_name, i.inbox_id, i.local_day,
            i.text, i.subject, i.parts, NULLIF(i.template, 'null'), i.ai_model, i.ai_tokens_used, i.ai_cost_usd,
            i.ai_generation_time_ms, i.asked_model, i.calls,
            v.verdict, v.run_id, v.config_id, v.workspace_id, v.lead_id, v.conversation_id, v.inbox_id,
            v.phone_number, v.source_column_id, v.target_column_id, v.begun, v.has_parts
        )::campaign_pipeline.campaign_intent
        FROM (SELECT array_agg(i.id) AS ids, array_agg(i.token) AS tokens FROM unnest(p_items) AS i) g
        CROSS JOIN LATERAL campaign_pipeline.campaign_verdicts(g.ids, g.tokens, false) v
        JOIN unnest(p_items) AS i ON i.id = v.message_id);
END $$;

-- Write the parts of new texts and the attempts that start now. Returns the messages of which the
-- ledger has this very attempt: nothing else may be requested.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_write_intents(
    p_held campaign_pipeline.campaign_intent[], p_going campaign_pipeline.campaign_intent[], p_talks jsonb
) RETURNS uuid[] LANGUAGE plpgsql AS $$
DECLARE
    going    uuid[] := ARRAY(SELECT i.id FROM unnest(p_going) AS i);
    attempted    uuid[];
    repeated uuid[];
BEGIN
    -- A new text: its parts, the first to be sent already as an attempt. The ledger outlives the message, so it has all
    -- data that is needed to show a part in the chat and to move its lead.
    WITH written AS (
        INSERT INTO campaign_pipeline.campaign_message_parts AS p
            (message_id, part_no, text, status, idempotency_key, attempts, attempt_token, attempted_at, address,
             address_kind, inbox_id, run_id, lead_id, workspace_id, conversation_id, source_column_id,
             target_column_id)
        SELECT i.id, t.no, t.text,
               CASE WHEN now_.yes THEN 'attempting' ELSE 'planned' END,
               i.id || ':' || t.no,
               CASE WHEN now_.yes THEN 1 ELSE 0 END,
               CASE WHEN now_.yes THEN i.token END,
               CASE WHEN now_.yes THEN campaign_pipeline.campaign_now() END,
               NULLIF(i.address, ''), campaign_pipeline.campaign_address_kind(i.address), i.inbox_id,
               i.run_id, i.lead_id, i.workspace_id, COALESCE(i.conversation_id, (p_talks ->> i.id::text)::uuid),
               i.source_column_id, i.target_column_id
        FROM unnest(p_held) AS i
        CROSS JOIN LATERAL unnest(i.parts) WITH ORDINALITY AS t (text, no)
        CROSS JOIN LATERAL (SELECT t.no = i.part_no AND i.attempt_no = 1 AND i.id = ANY (going) AS yes) now_
        -- Only if no text was split yet: parts of two texts must never share a ledger.
        WHERE NOT i.has_parts
        ON CONFLICT DO NOTHING
        RETURNING p.message_id, p.status
    )
    SELECT array_agg(w.message_id) FILTER (WHERE w.status = 'attempting') INTO attempted FROM written w;
    IF going <@ attempted THEN
        RETURN attempted;
    END IF;

    -- A later part, or another attempt. The conversation may have changed since the text was split.
    WITH again AS (
        UPDATE campaign_pipeline.campaign_message_parts p
        SET status = 'attempting', attempts = i.attempt_no, attempt_token = i.token,
            attempted_at = campaign_pipeline.campaign_now(), address = i.address,
            address_kind = campaign_pipeline.campaign_address_kind(i.address), inbox_id = i.inbox_id,
            run_id = i.run_id, lead_id = i.lead_id, workspace_id = i.workspace_id,
            conversation_id = COALESCE(i.conversation_id, (p_talks ->> i.id::text)::uuid),
            source_column_id = i.source_column_id, target_column_id = i.target_column_id,
            error_class = NULL, error_code = NULL, error_message = NULL, resend_approved_at = NULL
        FROM unnest(p_going) AS i
        WHERE i.has_parts AND p.message_id = i.id AND p.part_no = i.part_no
          AND p.status = 'planned' AND p.attempts = i.attempt_no - 1
        RETURNING p.message_id
    )
    SELECT attempted || array_agg(a.message_id) INTO attempted FROM again a;
    IF going <@ attempted THEN
        RETURN attempted;
    END IF;

    -- Asked again because the answer was lost: the ledger already has it.
    SELECT array_agg(p.message_id) INTO repeated
    FROM unnest(p_going) AS i
    JOIN campaign_pipeline.campaign_message_parts p ON p.message_id = i.id AND p.part_no = i.part_no
    WHERE p.status = 'attempting' AND p.attempts = i.attempt_no AND p.attempt_token = i.token
      AND NOT i.id = ANY (COALESCE(attempted, '{}'));
    RETURN attempted || repeated;
END $$;

-- Store the texts and their cost, and note the inbox on each message. A later part changes its message only if it uses
-- another inbox; otherwise the row is left alone.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_note_intents(
    p_held campaign_pipeline.campaign_intent[], p_begun uuid[], p_talks jsonb, p_booked jsonb
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE public.campaign_messages m
    SET conversation_id       = COALESCE(m.conversation_id, (p_talks ->> m.id::text)::uuid),
        status                = CASE WHEN begins.yes THEN 'sending'
                                     WHEN m.status = 'generating' AND i.part_no = 0 THEN 'queued' ELSE m.status END,
        generated_message     = COALESCE(m.generated_message, i.text),
        subject               = COALESCE(m.subject, i.subject),
        template              = COALESCE(m.template, i.template),
        ai_model              = COALESCE(i.ai_model, m.ai_model),
        ai_tokens_used        = COALESCE(i.ai_tokens_used, m.ai_tokens_used),
        -- The cost of an answer that could not be sent counts too.
        ai_cost_usd           = CASE WHEN (m.generated_message IS NULL AND i.ai_cost_usd IS NOT NULL)
                                          OR p_booked ? m.id::text
                                     THEN COALESCE(m.ai_cost_usd, 0) + COALESCE((p_booked ->> m.id::text)::numeric, 0)
                                          + CASE WHEN m.generated_message IS NULL THEN COALESCE(i.ai_cost_usd, 0)
                                                 ELSE 0 END
                                     ELSE m.ai_cost_usd END,
        ai_generation_time_ms = COALESCE(i.ai_generation_time_ms, m.ai_generation_time_ms),
        address               = COALESCE(NULLIF(i.address, ''), m.address),
        address_kind          = COALESCE(campaign_pipeline.campaign_address_kind(i.address), m.address_kind),
        phone_normalized      = CASE WHEN i.channel = 'email' THEN m.phone_normalized
                                     ELSE COALESCE(NULLIF(i.address, ''), m.phone_normalized) END,
        inbox_id              = CASE WHEN begins.yes THEN COALESCE(i.inbox_id, m.inbox_id) ELSE m.inbox_id END
    FROM unnest(p_held) AS i
    CROSS JOIN LATERAL (SELECT i.id = ANY (p_begun) AS yes) begins
    WHERE m.id = i.id
      AND (begins.yes AND m.status = 'sending' AND i.text IS NULL AND i.ai_model IS NULL AND i.ai_cost_usd IS NULL
           AND m.conversation_id IS NOT NULL AND m.inbox_id = i.inbox_id AND m.address = i.address
           AND NOT p_booked ? m.id::text) IS NOT TRUE;
END $$;
