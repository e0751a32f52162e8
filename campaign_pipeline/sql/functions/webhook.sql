-- Applies the events of the pipeline's own webhook: receipts to the ledger, messages of leads to the CRM's chat.

-- The inbox that a provider means; null if none of ours matches, or inboxes of several tenants have the name.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_webhook_inbox(p_provider text, p_instance text) RETURNS uuid
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN (SELECT min(x.inbox_id::text)::uuid
            FROM public.instances i JOIN public.inbox_instances x ON x.instance_id = i.id
            WHERE COALESCE(i.provider_config ->> 'campaign_adapter', i.provider_type) = p_provider
              AND CASE p_provider WHEN 'cloud_api' THEN i.provider_config ->> 'phone_number_id' = p_instance
                                  ELSE i.name = p_instance END
            HAVING count(DISTINCT i.workspace_id) = 1);
END $$;

-- Apply stored, due events, at most p_limit, and return how many ended how. An event is settled in the transaction that
-- applies it, so concurrent calls are safe, and none is applied twice. A person's text is kept only in the chat: the
-- event is emptied.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_settle_webhook_events(p_limit integer)
RETURNS TABLE (verdict text, events bigint) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    taken    bigint[];
    items    jsonb;
    verdicts jsonb := '{}';  -- event -> verdict
    one      record;
    incoming jsonb;
    leads    uuid[] := '{}';
BEGIN
    taken := ARRAY(
        SELECT e.id FROM campaign_pipeline.campaign_webhook_events e
        WHERE e.settled_at IS NULL AND e.try_after <= campaign_pipeline.campaign_now()
        ORDER BY e.try_after, e.id LIMIT p_limit FOR UPDATE SKIP LOCKED);
    IF taken = '{}' THEN
        RETURN;
    END IF;

    -- Receipts: by our own key if the provider echoes it, else by the id that it gave at acceptance.
    WITH event AS MATERIALIZED (
        SELECT e.id, e.body, CASE WHEN e.body ? 'message_id' THEN NULL
                                  ELSE campaign_pipeline.campaign_webhook_inbox(e.provider, e.instance) END AS inbox_id
        FROM campaign_pipeline.campaign_webhook_events e WHERE e.id = ANY (taken) AND e.kind = 'status'
    )
    SELECT jsonb_agg(v.body || jsonb_build_object('event_id', v.id,
               'id', COALESCE(v.body ->> 'message_id', p.message_id::text),
               'part_no', COALESCE((v.body ->> 'part_no')::integer, p.part_no)))
    INTO items
    FROM event v
    LEFT JOIN campaign_pipeline.campaign_message_parts p
        ON p.inbox_id = v.inbox_id AND p.status = 'sent'
       AND p.sent_at > campaign_pipeline.campaign_now() - interval '168 hours'
       AND p.provider_message_id = v.body ->> 'provider_message_id'
    WHERE v.body ? 'message_id' OR p.message_id IS NOT NULL;
    IF items IS NOT NULL THEN
        SELECT COALESCE(jsonb_object_agg(a.event_id, a.verdict), '{}') INTO verdicts
        FROM campaign_pipeline.campaign_apply_status_events(items) a;
    END IF;

    FOR one IN SELECT e.* FROM campaign_pipeline.campaign_webhook_events e
               WHERE e.id = ANY (taken) AND e.kind = 'message' ORDER BY e.id LOOP
        BEGIN
            incoming := campaign_pipeline.campaign_take_incoming(one.provider, one.instance, one.body);
        EXCEPTION WHEN OTHERS THEN
            IF campaign_pipeline.campaign_is_passing(SQLSTATE) THEN
                RAISE;
            END IF;
            RAISE WARNING 'The CRM refused a message of a lead (webhook event %): %', one.id, SQLERRM;
            incoming := '{"verdict": "refused"}';
        END;
        verdicts := verdicts || jsonb_build_object(one.id, incoming ->> 'verdict');
        leads := leads || (incoming ->> 'lead_id')::uuid;
    END LOOP;
    PERFORM campaign_pipeline.campaign_stop_after_reply(array_remove(leads, NULL));

    -- A receipt may arrive before the answer that it belongs to: it is retried for two minutes.
    UPDATE campaign_pipeline.campaign_webhook_events e
    SET (settled_at, verdict, body, try_after) = (
        SELECT CASE WHEN NOT v.again THEN campaign_pipeline.campaign_now() END,
               CASE WHEN NOT v.again THEN COALESCE(v.said, 'not_ours') END,
               CASE WHEN v.again THEN e.body ELSE '{}' END,
               campaign_pipeline.campaign_now() + interval '10 seconds'
        FROM (SELECT verdicts ->> e.id::text AS said,
                     COALESCE(verdicts ->> e.id::text, 'later') = 'later'
                         AND e.received_at > campaign_pipeline.campaign_now() - CASE
                             WHEN verdicts ? e.id::text THEN interval '168 hours' ELSE interval '2 minutes' END AS again
             ) v)
    WHERE e.id = ANY (taken);

    RETURN QUERY
    SELECT COALESCE(e.verdict, 'later'), count(*) FROM campaign_pipeline.campaign_webhook_events e
    WHERE e.id = ANY (taken) GROUP BY 1;
END $$;

-- Add one message of a lead to the chat of its number, once, whoever brings it. The triggers on messages process an
-- opt-out in it at once. Body: {id, from, name, text, at}. Returns {verdict, lead_id}.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_take_incoming(p_provider text, p_instance text, p_body jsonb)
RETURNS jsonb LANGUAGE plpgsql SET jit = off SET enable_seqscan = off AS $$
DECLARE
    inbox    uuid := campaign_pipeline.campaign_webhook_inbox(p_provider, p_instance);
    number   text := campaign_pipeline.campaign_canonical_address(p_body ->> 'from');
    short    text := regexp_replace(number, '^(55[1-9][1-9])9([6-9][0-9]{7})$', '\1\2');
    written  timestamptz := COALESCE(to_timestamp((p_body ->> 'at')::double precision),
                                     campaign_pipeline.campaign_now());
    home     uuid;
    talk     record;
BEGIN
    IF inbox IS NULL OR number IS NULL THEN
        RETURN jsonb_build_object('verdict', 'not_ours');
    END IF;
    SELECT b.workspace_id INTO home FROM public.inboxes b WHERE b.id = inbox;
    -- Two events of one number one after the other; otherwise two conversations would begin.
    PERFORM pg_advisory_xact_lock(hashtextextended('campaign_pipeline incoming ' || home || number, 0));
    SELECT v.id, v.lead_id INTO talk
    FROM public.conversations v
    WHERE v.workspace_id = home AND COALESCE(v.channel, 'whatsapp') = 'whatsapp'
      AND v.contact_phone IN (p_body ->> 'from', number, '+' || number, short, '+' || short)
    ORDER BY v.inbox_id IS NOT DISTINCT FROM inbox DESC, v.last_message_at DESC NULLS LAST, v.created_at DESC LIMIT 1;
    IF NOT FOUND THEN
        INSERT INTO public.conversations AS v (id, workspace_id, inbox_id, contact_name, contact_phone, channel, status,
                                               unread_count, total_messages, created_at, updated_at)
        VALUES (campaign_pipeline.campaign_new_id(), home, inbox, COALESCE(NULLIF(p_body ->> 'name', ''), number),
                number, 'whatsapp', 'waiting', 0, 0, campaign_pipeline.campaign_now(),
                campaign_pipeline.campaign_now())
        RETURNING v.id, v.lead_id INTO talk;
    END IF;
    IF EXISTS (SELECT 1 FROM public.messages t WHERE t.conversation_id = talk.id
               AND t.provider_message_id = p_body ->> 'id') THEN
        RETURN jsonb_build_object('verdict', 'known', 'lead_id', talk.lead_id);
    END IF;
    INSERT INTO public.messages (id, conversation_id, content_type, message_type, text_content, provider_message_id,
                                 is_read, created_at)
    VALUES (campaign_pipeline.campaign_new_id(), talk.id, 'text', 'received', p_body ->> 'text', p_body ->> 'id', false,
            written);
    UPDATE public.conversations v
    SET last_message = p_body ->> 'text', last_message_at = greatest(v.last_message_at, written),
        unread_count = COALESCE(v.unread_count, 0) + 1, total_messages = COALESCE(v.total_messages, 0) + 1,
        updated_at = campaign_pipeline.campaign_now()
    WHERE v.id = talk.id;
    -- The newest campaign message within a week in this conversation, unless the CRM's own trigger has marked it.
    UPDATE public.campaign_messages m SET status = 'replied', replied_at = campaign_pipeline.campaign_now()
    WHERE m.status = 'sent' AND m.id = (
        SELECT p.message_id FROM campaign_pipeline.campaign_message_parts p
        WHERE p.inbox_id = inbox AND p.status = 'sent' AND p.conversation_id = talk.id
          AND p.sent_at > campaign_pipeline.campaign_now() - interval '168 hours'
        ORDER BY p.sent_at DESC LIMIT 1);
    RETURN jsonb_build_object('verdict', 'settled', 'lead_id', talk.lead_id);
END $$;

-- Skip the planned messages of a lead that has replied: a person continues with it. A message in delivery loses its
-- lease, unless a part was sent or is in flight. campaign_begin_parts locks the message and checks its lease before it
-- writes the intent, so nothing more of it leaves, and the send path pays nothing for this.
-- What the CRM's pause skipped counts as planned: a resume, which recognises it by its words, would return it.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_stop_after_reply(p_leads uuid[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    planned uuid[];
BEGIN
    IF p_leads = '{}' THEN
        RETURN;
    END IF;
    -- Each status in the spelling of its index.
    planned := ARRAY(
        SELECT m.id FROM public.campaign_runs r JOIN public.campaign_messages m ON m.run_id = r.id
            AND (m.status = 'pending' OR campaign_pipeline.campaign_is_leased_indexed(m.status))
        WHERE r.status IN ('running', 'paused') AND m.lead_id = ANY (p_leads)
        UNION ALL
        SELECT m.id FROM public.campaign_runs r JOIN public.campaign_messages m ON m.run_id = r.id
            AND m.status = 'skipped' AND m.error_message LIKE '%ausad%'
        WHERE r.status = 'paused' AND m.lead_id = ANY (p_leads));
    -- Runs before messages, as everywhere: their counters are raised.
    PERFORM 1 FROM public.campaign_runs r
    WHERE r.id IN (SELECT m.run_id FROM public.campaign_messages m WHERE m.id = ANY (planned))
    ORDER BY r.id FOR NO KEY UPDATE;
    -- Locked first, and checked in a separate statement, which sees an attempt that was committed meanwhile.
    PERFORM 1 FROM public.campaign_messages m WHERE m.id = ANY (planned) ORDER BY m.id FOR UPDATE;
    UPDATE public.campaign_messages m
    SET status = 'skipped', error_class = NULL, error_code = 'lead_replied',
        error_message = 'The lead replied before this message was sent.',
        lease_token = NULL, lease_expires_at = NULL, finished_at = campaign_pipeline.campaign_now()
    WHERE m.id = ANY (planned)
      AND (m.status = 'pending' OR campaign_pipeline.campaign_is_leased(m.status)
           OR (m.status = 'skipped' AND m.error_message LIKE '%ausad%'))
      AND NOT EXISTS (SELECT 1 FROM campaign_pipeline.campaign_message_parts p
                      WHERE p.message_id = m.id AND p.status <> 'planned');
END $$;
