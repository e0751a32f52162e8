-- The intent to send a part (I2, I3).

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
                THEN EXTRACT(epoch FROM campaign_pipeline.campaign_due_at(m)
                                        - campaign_pipeline.campaign_now())::double precision
                ELSE (slots -> i.id::text ->> 'wait')::double precision END,
           CASE WHEN verdicts ->> i.id::text = 'not_due' THEN 'not_due' ELSE slots -> i.id::text ->> 'code' END,
           (slots -> i.id::text ->> 'grace')::double precision
    FROM jsonb_to_recordset(p_items) AS i (id uuid, part_no integer) LEFT
        JOIN public.campaign_messages m ON m.id = i.id;
END $$;
