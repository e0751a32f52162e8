-- A person's data: what is stored of a lead, and its erasure.

-- Every spelling of a lead's address that the pipeline's and the CRM's tables may contain.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_addresses_of_lead(p_lead uuid) RETURNS text[]
    LANGUAGE plpgsql STABLE
SET jit = off SET enable_seqscan = off AS $$
DECLARE
    found text[];
BEGIN
    SELECT array_agg(DISTINCT s.spelling) INTO found
    FROM (
        SELECT l.phone AS written FROM public.leads l WHERE l.id = p_lead
        UNION ALL SELECT unnest(ARRAY[l.whatsapp_jid, l.email]) FROM public.leads l WHERE l.id = p_lead
        UNION ALL SELECT unnest(ARRAY[m.phone_number, m.phone_normalized, m.address]) FROM public.campaign_messages m
            WHERE m.lead_id = p_lead
        UNION ALL SELECT p.address FROM public.campaign_messages m
            JOIN campaign_pipeline.campaign_message_parts p ON p.message_id = m.id WHERE m.lead_id = p_lead
        UNION ALL SELECT p.address FROM campaign_pipeline.campaign_message_parts p WHERE p.lead_id = p_lead
        UNION ALL SELECT v.contact_phone FROM public.conversations v WHERE v.lead_id = p_lead
        UNION ALL SELECT s.address FROM campaign_pipeline.campaign_suppressions s WHERE s.lead_id = p_lead
            AND s.lifted_at IS NULL
    ) cell
    -- A cell may contain several numbers.
    CROSS JOIN LATERAL (
        SELECT cell.written UNION SELECT btrim(piece)
        FROM regexp_split_to_table(cell.written, '[;,|\r\n/]+|:::| (?:e|ou) ') AS piece) w
    CROSS JOIN LATERAL (SELECT campaign_pipeline.campaign_canonical_address(w.written) AS canonical) c
    CROSS JOIN LATERAL unnest(ARRAY[
        w.written, c.canonical, '+' || c.canonical,
        regexp_replace(c.canonical, '^(55[1-9][1-9])9([6-9][0-9]{7})$', '\1\2')]) AS s (spelling)
    WHERE c.canonical IS NOT NULL AND s.spelling IS NOT NULL;
    RETURN COALESCE(found, '{}');
END $$;

-- The conversations of a lead: its own, and those of its number in its workspace that belong to no other lead.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_conversations_of_lead(p_lead uuid) RETURNS uuid[]
    LANGUAGE plpgsql STABLE
SET jit = off SET enable_seqscan = off AS $$
BEGIN
    RETURN ARRAY(
        SELECT v.id FROM public.conversations v WHERE v.lead_id = p_lead
        UNION
        SELECT v.id FROM public.conversations v
        WHERE v.lead_id IS NULL AND v.contact_phone = ANY (campaign_pipeline.campaign_addresses_of_lead(p_lead))
          AND v.workspace_id IS NOT DISTINCT FROM (SELECT l.workspace_id FROM public.leads l WHERE l.id = p_lead));
END $$;

-- Everything stored of a lead, as one JSON document for the person who requests it; null for an unknown lead.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_export_lead(p_lead uuid) RETURNS jsonb LANGUAGE plpgsql STABLE
SET jit = off SET enable_seqscan = off AS $$
DECLARE
    addresses     text[] := campaign_pipeline.campaign_addresses_of_lead(p_lead);
    conversations uuid[] := campaign_pipeline.campaign_conversations_of_lead(p_lead);
    messages      uuid[] := ARRAY(SELECT m.id FROM public.campaign_messages m WHERE m.lead_id = p_lead);
    lead          jsonb  := (SELECT to_jsonb(l) FROM public.leads l WHERE l.id = p_lead);
    deleted       jsonb  := (  -- of messages that the CRM has deleted
        SELECT COALESCE(jsonb_agg(to_jsonb(p) ORDER BY p.attempted_at, p.message_id, p.part_no), '[]')
        FROM campaign_pipeline.campaign_message_parts p WHERE p.lead_id = p_lead AND NOT p.message_id = ANY (messages));
BEGIN
    IF lead IS NULL AND cardinality(messages) = 0 AND cardinality(conversations) = 0 AND deleted = '[]' THEN
        RETURN NULL;
    END IF;
    RETURN jsonb_build_object(
        'exported_at', campaign_pipeline.campaign_now(),
        'lead', lead,
        'custom_fields',
            (SELECT COALESCE(jsonb_agg(jsonb_build_object('name', f.name, 'value', v.value) ORDER BY f.position,
                                       f.name), '[]')
            FROM public.lead_custom_values v LEFT JOIN public.custom_fields f ON f.id = v.custom_field_id
                WHERE v.lead_id = p_lead),
        'campaign_messages', (SELECT COALESCE(jsonb_agg(to_jsonb(m) || jsonb_build_object('parts', (
                SELECT COALESCE(jsonb_agg(to_jsonb(p) ORDER BY p.part_no), '[]')
                       FROM campaign_pipeline.campaign_message_parts p
                WHERE p.message_id = m.id)) ORDER BY m.created_at, m.id), '[]')
            FROM public.campaign_messages m WHERE m.id = ANY (messages)),
        'parts_of_deleted_messages', deleted,
        'model_answers', (SELECT COALESCE(jsonb_agg(to_jsonb(k) ORDER BY k.called_at, k.id), '[]')
            FROM campaign_pipeline.campaign_model_calls k WHERE k.lead_id = p_lead),
        'conversations', (SELECT COALESCE(jsonb_agg(to_jsonb(v) || jsonb_build_object('messages', (
                SELECT COALESCE(jsonb_agg(to_jsonb(t) ORDER BY t.created_at, t.id), '[]') FROM public.messages t
                WHERE t.conversation_id = v.id)) ORDER BY v.created_at, v.id), '[]')
            FROM public.conversations v WHERE v.id = ANY (conversations)),
        'activities', (SELECT COALESCE(jsonb_agg(to_jsonb(a) ORDER BY a.created_at, a.id), '[]')
                       FROM public.lead_activities a WHERE a.lead_id = p_lead),
        'suppressions',
            (SELECT COALESCE(jsonb_agg(to_jsonb(s) ORDER BY s.id), '[]') FROM campaign_pipeline.campaign_suppressions s
            WHERE s.lead_id = p_lead
                OR s.address_hash IN (SELECT campaign_pipeline.campaign_address_hash(a) FROM unnest(addresses) AS a)),
        'number_checks',
            (SELECT COALESCE(jsonb_agg(to_jsonb(k) ORDER BY k.checked_at), '[]')
             FROM campaign_pipeline.campaign_number_checks k
            WHERE k.number = ANY (addresses)),
        'number_contacts',
            (SELECT COALESCE(jsonb_agg(to_jsonb(n) ORDER BY n.contacted_at), '[]')
             FROM campaign_pipeline.campaign_number_contacts n
            WHERE n.number = ANY (addresses)),
        'status_events',
            (SELECT COALESCE(jsonb_agg(e.payload ORDER BY e.id), '[]') FROM campaign_pipeline.campaign_status_events e
            WHERE e.payload ->> 'recipient_id' = ANY (addresses)
               OR split_part(e.payload ->> 'biz_opaque_callback_data', ':', 1) = ANY (messages::text[])),
        'logs', (SELECT COALESCE(jsonb_agg(to_jsonb(g) ORDER BY g.created_at, g.id), '[]') FROM public.campaign_logs g
            WHERE g.id = ANY (campaign_pipeline.campaign_logs_of_lead(p_lead, messages))),
        'erasures',
            (SELECT COALESCE(jsonb_agg(to_jsonb(e) ORDER BY e.id), '[]') FROM campaign_pipeline.campaign_erasures e
             WHERE e.lead_id = p_lead));
END $$;

-- The log lines about a lead: those with its id, and those with only the id of one of its messages.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_logs_of_lead(p_lead uuid, p_messages uuid[]) RETURNS uuid[]
    LANGUAGE plpgsql STABLE
SET jit = off SET enable_seqscan = off AS $$
BEGIN
    RETURN ARRAY(
        SELECT g.id FROM public.campaign_logs g WHERE g.lead_id = p_lead
        UNION
        SELECT g.id FROM public.campaign_logs g
        WHERE g.run_id IN (SELECT m.run_id FROM public.campaign_messages m WHERE m.id = ANY (p_messages))
          AND g.message_id = ANY (p_messages));
END $$;

-- Blank every text, JSON and array column of some rows except the ones to keep: NULL if allowed, else the column's
-- default, else an empty text. By the catalogue, so that columns that the CRM or a later migration adds are blanked
-- too.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_blank(p_table regclass, p_key text, p_ids uuid[], p_keep text[])
    RETURNS integer
LANGUAGE plpgsql SET jit = off SET enable_seqscan = off AS $$
DECLARE
    changes text;
    blanked integer := 0;
BEGIN
    SELECT string_agg(format('%I = %s', a.attname, CASE WHEN NOT a.attnotnull THEN 'NULL' WHEN a.atthasdef
                             THEN 'DEFAULT'
                                                   WHEN t.typname IN ('json', 'jsonb') OR t.typcategory = 'A'
                                                       THEN '''{}'''
                                                   ELSE '''''' END), ', ')
    INTO changes
    FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
    WHERE a.attrelid = p_table AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' AND a.attidentity = ''
      AND (t.typcategory IN ('S', 'A') OR t.typname IN ('json', 'jsonb', 'xml', 'bytea'))
      AND a.attname <> ALL (p_keep);
    IF changes IS NOT NULL THEN
        EXECUTE format('UPDATE %s SET %s WHERE %I = ANY ($1)', p_table, changes, p_key) USING p_ids;
        GET DIAGNOSTICS blanked = ROW_COUNT;
    END IF;
    RETURN blanked;
END $$;

-- Erase a person (LGPD, article 18): names, numbers, texts, answers and log lines, in our tables and in the CRM's
-- tables of the lead. Ids, statuses, times and counts stay, so that totals stay true. Unsent messages end. The
-- addresses stay as hashes, which suppress the person in the workspace in case it is imported again. Returns rows by
-- table. Idempotent. Raises an exception while a part to the lead is in flight, whose answer would bring data back.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_erase_lead(p_lead uuid, p_by text) RETURNS jsonb LANGUAGE plpgsql
SET jit = off SET enable_seqscan = off AS $$
DECLARE
    workspace uuid;
    own_messages uuid[];
    addresses text[];
    talks     uuid[];
    counts    jsonb := '{}';
    n         integer;
BEGIN
    IF COALESCE(btrim(p_by), '') = '' THEN
        RAISE EXCEPTION 'An erasure needs the name of who does it.' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    own_messages := ARRAY(SELECT m.id FROM public.campaign_messages m WHERE m.lead_id = p_lead
                          ORDER BY m.id FOR UPDATE)
        -- The ledger outlives messages that the CRM deletes.
        || ARRAY(SELECT DISTINCT p.message_id FROM campaign_pipeline.campaign_message_parts p
                 WHERE p.lead_id = p_lead
                   AND NOT EXISTS (SELECT 1 FROM public.campaign_messages m WHERE m.id = p.message_id));
    IF EXISTS (SELECT 1 FROM public.campaign_messages m
               JOIN campaign_pipeline.campaign_message_parts p ON p.message_id = m.id
               WHERE m.id = ANY (own_messages) AND p.status = 'attempting'
                   AND m.lease_expires_at > campaign_pipeline.campaign_now()) THEN
        RAISE EXCEPTION 'A message to this lead is being sent at this moment; erase it again in a minute.';
    END IF;
    workspace := COALESCE(
        (SELECT l.workspace_id FROM public.leads l WHERE l.id = p_lead),
        (SELECT c.workspace_id FROM public.campaign_messages m JOIN public.campaign_runs r ON r.id = m.run_id
         JOIN public.campaign_configs c ON c.id = r.config_id WHERE m.lead_id = p_lead LIMIT 1),
        (SELECT p.workspace_id FROM campaign_pipeline.campaign_message_parts p WHERE p.lead_id = p_lead LIMIT 1));
    addresses := campaign_pipeline.campaign_addresses_of_lead(p_lead);
    talks := campaign_pipeline.campaign_conversations_of_lead(p_lead);

    IF workspace IS NOT NULL THEN
        PERFORM campaign_pipeline.campaign_suppress('workspace', workspace, NULL, a.canonical, p_lead, 'erasure', NULL)
        FROM (SELECT DISTINCT campaign_pipeline.campaign_canonical_address(x) AS canonical
              FROM unnest(addresses) AS x) a;
        PERFORM campaign_pipeline.campaign_suppress('workspace', workspace, NULL, NULL, p_lead, 'erasure', NULL);
    END IF;
    UPDATE campaign_pipeline.campaign_suppressions s
    SET address = NULL, reason = NULL
    WHERE s.lead_id = p_lead
        OR s.address_hash IN (SELECT campaign_pipeline.campaign_address_hash(x) FROM unnest(addresses) AS x);
    GET DIAGNOSTICS n = ROW_COUNT;
    counts := counts || jsonb_build_object('campaign_suppressions', n);

    PERFORM campaign_pipeline.campaign_end_erased(own_messages);
    counts := counts || campaign_pipeline.campaign_erase_rows(p_lead, own_messages, addresses, talks);

    INSERT INTO campaign_pipeline.campaign_erasures (lead_id, workspace_id, erased_at, erased_by, counts)
    VALUES (p_lead, workspace, campaign_pipeline.campaign_now(), p_by, counts);
    RETURN counts;
END $$;

-- Step of campaign_erase_lead: end the messages that wait or are leased.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_end_erased(p_messages uuid[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    -- Runs in the order of their ids, as everywhere: ending messages changes their counters.
    PERFORM 1 FROM public.campaign_runs r
    WHERE r.id IN (SELECT m.run_id FROM public.campaign_messages m WHERE m.id = ANY (p_messages))
        ORDER BY r.id FOR NO KEY UPDATE;
    UPDATE public.campaign_messages m
    SET status = CASE WHEN o.unknown OR o.out THEN 'failed' ELSE 'skipped' END,
        error_class = CASE WHEN o.unknown THEN 'unknown' WHEN o.out THEN 'permanent' END,
        error_code = 'lead_erased', finished_at = campaign_pipeline.campaign_now(), lease_expires_at = NULL
    FROM (SELECT x.id,
                 EXISTS (SELECT 1 FROM campaign_pipeline.campaign_message_parts p WHERE p.message_id = x.id
                         AND p.status IN ('attempting', 'unknown')) AS unknown,
                 EXISTS (SELECT 1 FROM campaign_pipeline.campaign_message_parts p WHERE p.message_id = x.id
                         AND p.status = 'sent') AS out
          FROM unnest(p_messages) AS x (id)) o
    WHERE m.id = o.id AND (m.status = 'pending' OR campaign_pipeline.campaign_is_leased(m.status));

    UPDATE campaign_pipeline.campaign_message_parts p
    SET status = 'unknown', error_class = 'unknown'
    WHERE p.message_id = ANY (p_messages) AND p.status = 'attempting';
END $$;

-- Step of campaign_erase_lead: blank or delete the rows about the person. Returns how many, by table.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_erase_rows(
    p_lead uuid, p_messages uuid[], p_addresses text[], p_talks uuid[]
) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    counts jsonb;
    n      integer;
BEGIN
    counts := jsonb_build_object(
        'campaign_messages', campaign_pipeline.campaign_blank('public.campaign_messages', 'id', p_messages,
            '{status,error_class,error_code,ai_model,lease_owner}'),
        'campaign_message_parts',
            campaign_pipeline.campaign_blank('campaign_pipeline.campaign_message_parts', 'message_id', p_messages,
            '{status,error_class,error_code,idempotency_key,delivery_status,delivery_code}'),
        'lead_activities',
            campaign_pipeline.campaign_blank('public.lead_activities', 'lead_id', ARRAY[p_lead], '{activity_type}'),
        'campaign_model_calls',
            campaign_pipeline.campaign_blank('campaign_pipeline.campaign_model_calls', 'lead_id', ARRAY[p_lead],
            '{id,purpose,model,rule,changed}'),
        'campaign_logs',
            campaign_pipeline.campaign_blank('public.campaign_logs', 'id',
                                             campaign_pipeline.campaign_logs_of_lead(p_lead, p_messages),
                                                 '{step_name,level}'),
        'messages',
            campaign_pipeline.campaign_blank('public.messages', 'conversation_id', p_talks,
                                             '{content_type,message_type,sent_by}'),
        'conversations', campaign_pipeline.campaign_blank('public.conversations', 'id', p_talks, '{channel,status}'),
        'leads', campaign_pipeline.campaign_blank('public.leads', 'id', ARRAY[p_lead], '{status,priority}'));
    -- Figures and flags of the person; the ids of funnel and column stay for the CRM's own totals.
    UPDATE public.leads l SET deal_value = NULL, whatsapp_valid = NULL WHERE l.id = p_lead;
    DELETE FROM public.lead_custom_values v WHERE v.lead_id = p_lead;
    GET DIAGNOSTICS n = ROW_COUNT;
    counts := counts || jsonb_build_object('lead_custom_values', n);
    -- Meta's events contain the recipient; there is no index for this, and settled events are deleted soon.
    DELETE FROM campaign_pipeline.campaign_status_events e
    WHERE e.payload ->> 'recipient_id' = ANY (p_addresses)
       OR split_part(e.payload ->> 'biz_opaque_callback_data', ':', 1) = ANY (p_messages::text[]);
    GET DIAGNOSTICS n = ROW_COUNT;
    counts := counts || jsonb_build_object('campaign_status_events', n);
    DELETE FROM campaign_pipeline.campaign_number_contacts k WHERE k.number = ANY (p_addresses);
    GET DIAGNOSTICS n = ROW_COUNT;
    counts := counts || jsonb_build_object('campaign_number_contacts', n);
    DELETE FROM campaign_pipeline.campaign_number_checks k WHERE k.number = ANY (p_addresses);
    GET DIAGNOSTICS n = ROW_COUNT;
    counts := counts || jsonb_build_object('campaign_number_checks', n);
    RETURN counts;
END $$;
