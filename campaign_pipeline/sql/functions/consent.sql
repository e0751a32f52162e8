-- Consent: who may not be written to, what is known of a lead and how it is forgotten.
-- In plpgsql throughout: what these functions call is defined after them.

-- Addresses ----------------------------------------------------------------------------------------------------------

-- What an address is. As core.address.address_kind; a test holds them together.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_address_kind(p_address text) RETURNS text
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
    RETURN CASE
        WHEN p_address IS NULL OR p_address = '' THEN NULL
        WHEN p_address LIKE '%@lid' THEN 'lid'
        WHEN p_address LIKE '%@s.whatsapp.net' OR p_address LIKE '%@c.us' OR p_address LIKE '%@g.us' THEN 'jid'
        WHEN p_address LIKE '%@%' THEN 'email'
        WHEN p_address ~ '^[A-Z]{2}\.[A-Za-z0-9]{1,128}$' THEN 'bsuid'
        ELSE 'phone' END;
END $$;

-- One spelling of every way in which an address is written: digits with country code for a number (a Brazilian mobile
-- number always with its ninth, so that both of its spellings are one person), lower case for an e-mail. Null for none.
-- The copy of core.phone_reading.canonical_address, pattern for pattern: a reply that opts out is heard in the
-- transaction of whoever inserts it, where no Python runs. A property test holds both equal. What a message is sent to,
-- and what an operator types, is read by Python, which also refuses; this never does.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_canonical_address(p_raw text) RETURNS text
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    area    CONSTANT text := '(?:1[1-9]|2[12478]|3[1-578]|4[1-9]|5[1345]|6[1-9]|7[134579]|8[1-9]|9[1-9])';
    written text := p_raw;
    digits  text;
    found   text[];
BEGIN
    IF written ~ '^55(?:1[1-9]|2[12478]|3[1-578]|4[1-9]|5[1345]|6[1-9]|7[134579]|8[1-9]|9[1-9])9[0-9]{8}$' THEN  -- as nearly all are
        RETURN written;
    END IF;
    -- The same as a CRM writes it: +55 (11) 98765-4321. Nothing else needs to be asked of it.
    IF written ~ '^[+]?55 ?(?:[(](?:1[1-9]|2[12478]|3[1-578]|4[1-9]|5[1345]|6[1-9]|7[134579]|8[1-9]|9[1-9])[)]|(?:1[1-9]|2[12478]|3[1-578]|4[1-9]|5[1345]|6[1-9]|7[134579]|8[1-9]|9[1-9])) ?9[0-9]{4}-?[0-9]{4}$' THEN
        RETURN translate(written, '+ ()-', '');
    END IF;
    IF written IS NULL OR length(written) > 320 THEN
        RETURN NULL;
    END IF;
    -- plain: no invisible marks, plain digits, spaces and dashes, no quotes around it
    IF octet_length(written) <> length(written) THEN
        written := regexp_replace(written,
            '[\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]', '', 'g');
        written := regexp_replace(written, '[\u00a0\u2002\u2003\u2007\u2009\u202f\u3000]', ' ', 'g');
        written := regexp_replace(written, '[\u2010-\u2014\u2212]', '-', 'g');
        IF getdatabaseencoding() = 'UTF8' THEN  -- others have no wide characters
            written := translate(written,
                (SELECT string_agg(chr(65281 + n), '' ORDER BY n) FROM generate_series(0, 93) AS n),
                (SELECT string_agg(chr(33 + n), '' ORDER BY n) FROM generate_series(0, 93) AS n));
        END IF;
    END IF;
    written := regexp_replace(written, '^[ \t\r\n''"=`\u00b4\u2018\u2019]+|[ \t\r\n''"=`\u00b4\u2018\u2019]+$', '', 'g');

    -- an account of WhatsApp, an e-mail address or lid, a business-scoped id
    found := COALESCE(regexp_match(written, '^([0-9]+)(?::[0-9]{1,4})?@(?:s\.whatsapp\.net|c\.us)$', 'i'),
                      regexp_match(written, '^([0-9]+):[0-9]{1,4}$'));
    IF found IS NOT NULL THEN
        RETURN regexp_replace(found[1], '^(55' || area || ')([6-9][0-9]{7})$', '\19\2');
    END IF;
    found := regexp_match(written,
        '^(?:(?:https?://)?(?:[a-z]+\.)?wa\.me/'
        '|(?:(?:https?://)?(?:[a-z]+\.)?whatsapp\.com/|whatsapp://)send/?[?](?:[^ ]*&)?phone=)'
        '(?:[+]|%2B|%20)*([0-9][0-9().-]*)(?:[/?&#][^ ]*)?$', 'i');
    IF written LIKE '%@%' AND found IS NULL THEN
        RETURN lower(written);
    END IF;
    IF written ~ '^[A-Z]{2}\.[A-Za-z0-9]+$' THEN
        RETURN written;
    END IF;

    IF found IS NOT NULL THEN
        written := found[1];
    ELSE
        -- a label before, an aside after, a carrier code, a zero in brackets
        written := regexp_replace(written,
            '^(?:tel|telefone|fone|cel|celular|whats|whatsapp|zap|phone|mobile|contato|numero|n\u00famero|n|n\u00ba|p|ph|sms|callto)'
            '[ ]*[.:]+[ /]*', '', 'i');
        written := regexp_replace(written,
            '^[([][^0-9()+*\[\]]*[^0-9()+*\[\] xX][^0-9()+*\[\]]*[])][ ]*', '');
        written := regexp_replace(written, '[ ]*[([][^0-9()+*\[\]]+[])]$'
            '|[ ]*[ -][ ]*(?:whats|whatsapp|zap|cel|celular|movel|m\u00f3vel|fixo|comercial|residencial|pessoal|trabalho'
            '|casa|recado|mobile|work|home|vivo|tim|claro|oi)$', '', 'i');
        written := regexp_replace(written, '^([+]?55)?[ ]*([(]?)[ ]*0?[ ]*(?:xx|XX|\*\*)[ ]*', '\1 \2');
        written := regexp_replace(written,
            '^([+]?55)?[ ]*[(]?0[ ]?(?:12|14|15|21|23|25|31|41|43)[)]?[ -]+(?=[(]?' || area || '[)]?[ .-])', '\1 ');
        written := regexp_replace(written, '[(][ ]*0[ ]*[)]', ' ');
        written := regexp_replace(written,
            '^[ \t\r\n''"=`\u00b4\u2018\u2019]+|[ \t\r\n''"=`\u00b4\u2018\u2019]+$', '', 'g');
        -- a whole number that a spreadsheet wrote as an amount
        IF written ~ '^[+]?[0-9]{10,}[.,]0+$' THEN
            written := regexp_replace(written, '[.,]0+$', '');
        ELSIF written ~ '^[0-9]{1,3}(?:\.[0-9]{3}){2,}(?:,0{1,2})?$'
              OR written ~ '^[0-9]{1,3}(?:,[0-9]{3}){2,}(?:\.0{1,2})?$' THEN
            written := regexp_replace(regexp_replace(written, '[.,]0{1,2}$', ''), '[.,]', '', 'g');
        ELSE
            found := regexp_match(written, '^[+]?([0-9])[.,]?([0-9]*)[eE][+]?([0-9]{1,2})$');
            IF length(found[1] || found[2]) = found[3]::integer + 1 THEN
                written := found[1] || found[2];
            END IF;
        END IF;
    END IF;
    IF written !~ '^[(]?[ ]*[+]?[0-9(][0-9 \t\r\n().-]*$' THEN
        RETURN NULL;
    END IF;

    digits := regexp_replace(written, '[^0-9]', '', 'g');
    IF digits LIKE '00%' THEN
        digits := substr(digits, 3);
        written := '+';
    END IF;
    found := regexp_match(digits, CASE WHEN written LIKE '%+%' THEN '^550?' ELSE '^(?:0?55)?0?' END
        || '(?:(' || area || '(?:9[0-9]{8}|[2-9][0-9]{7}))|(800[0-9]{7}))$');
    IF found IS NULL THEN
        RETURN NULLIF(digits, '');
    END IF;
    RETURN regexp_replace('55' || COALESCE(found[1], found[2]), '^(55' || area || ')([6-9][0-9]{7})$', '\19\2');
END $$;

-- What is compared and what stays of an erased person's address. Null for no address.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_address_hash(p_raw text) RETURNS text
    LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN encode(sha256(convert_to(
        (SELECT s.salt FROM campaign_pipeline.campaign_consent_salt s)
            || campaign_pipeline.campaign_canonical_address(p_raw), 'UTF8')), 'hex');
END $$;

-- The channel of an inbox: whatsapp unless its instance says otherwise.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_inbox_channel(p_inbox uuid) RETURNS text LANGUAGE plpgsql STABLE
SET enable_seqscan = off AS $$
BEGIN
    RETURN COALESCE((SELECT i.provider FROM public.inbox_instances x JOIN public.instances i ON i.id = x.instance_id
                     WHERE x.inbox_id = p_inbox AND i.provider IS NOT NULL ORDER BY i.id LIMIT 1), 'whatsapp');
END $$;

-- Suppression --------------------------------------------------------------------------------------------------------

-- Write to nobody at this address, nor to this lead at any address. The same suppression is written once; returns the
-- id of the one that holds. Raises where it is not said who is meant, or where.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_suppress(
    p_scope text, p_workspace uuid, p_channel text, p_address text, p_lead uuid, p_source text, p_reason text
) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    canonical text := campaign_pipeline.campaign_canonical_address(p_address);
    hash      text := campaign_pipeline.campaign_address_hash(p_address);
    held      bigint;
BEGIN
    IF p_scope <> 'global' AND p_workspace IS NULL THEN
        RAISE EXCEPTION 'A suppression needs a workspace unless it is global: name it, or a lead that has one.'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF canonical IS NULL AND p_lead IS NULL THEN
        RAISE EXCEPTION 'A suppression needs an address or a lead; neither was given.'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    INSERT INTO campaign_pipeline.campaign_suppressions
        AS s (scope, workspace_id, channel, address, address_hash, lead_id, source, reason, since)
    VALUES (p_scope, p_workspace, p_channel, canonical, hash, p_lead, p_source, p_reason,
            campaign_pipeline.campaign_now())
    ON CONFLICT DO NOTHING
    RETURNING s.id INTO held;
    IF held IS NULL THEN
        SELECT s.id INTO held FROM campaign_pipeline.campaign_suppressions s
        WHERE s.lifted_at IS NULL AND s.scope = p_scope AND s.workspace_id IS NOT DISTINCT FROM p_workspace
          AND s.channel IS NOT DISTINCT FROM p_channel AND s.address_hash IS NOT DISTINCT FROM hash
          AND s.lead_id IS NOT DISTINCT FROM p_lead;
    END IF;
    RETURN held;
END $$;

-- Lift what suppresses this address or this lead: of all scopes and sources, or of the given ones. Returns how many.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_lift(
    p_workspace uuid, p_channel text, p_address text, p_lead uuid, p_by text, p_source text DEFAULT NULL
) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    hash   text := campaign_pipeline.campaign_address_hash(p_address);
    lifted integer;
BEGIN
    UPDATE campaign_pipeline.campaign_suppressions s
    SET lifted_at = campaign_pipeline.campaign_now(), lifted_by = p_by
    WHERE s.lifted_at IS NULL AND (s.address_hash = hash OR s.lead_id = p_lead)
      AND (p_workspace IS NULL OR s.workspace_id = p_workspace)
      AND (p_channel IS NULL OR s.channel = p_channel)
      AND (p_source IS NULL OR s.source = p_source);
    GET DIAGNOSTICS lifted = ROW_COUNT;
    RETURN lifted;
END $$;

-- Of these messages, those that may not be sent because their lead or its number is suppressed. Two index probes a
-- message. Never one of which a part may have gone out: whoever works it finds out about that part first.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_suppressed_messages(p_ids uuid[]) RETURNS SETOF uuid
    LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM campaign_pipeline.campaign_suppressions s WHERE s.lifted_at IS NULL) THEN
        RETURN;
    END IF;
    RETURN QUERY
    SELECT m.id
    FROM public.campaign_messages m
    JOIN public.campaign_runs r ON r.id = m.run_id
    JOIN public.campaign_configs c ON c.id = r.config_id
    LEFT JOIN public.leads l ON l.id = m.lead_id
    CROSS JOIN LATERAL (SELECT ARRAY[campaign_pipeline.campaign_address_hash(COALESCE(m.phone_number, l.phone)),
                                     campaign_pipeline.campaign_address_hash(l.email)] AS hashes) h
    WHERE m.id = ANY (p_ids)
      AND EXISTS (
        SELECT 1 FROM (
            SELECT s.scope, s.workspace_id, s.channel FROM campaign_pipeline.campaign_suppressions s
            WHERE s.lifted_at IS NULL AND s.lead_id = m.lead_id
            UNION ALL
            SELECT s.scope, s.workspace_id, s.channel FROM campaign_pipeline.campaign_suppressions s
            WHERE s.lifted_at IS NULL AND s.address_hash = ANY (h.hashes)) s
        WHERE s.scope = 'global'
           OR (s.workspace_id = c.workspace_id
               AND (s.scope = 'workspace' OR s.channel = campaign_pipeline.campaign_inbox_channel(c.inbox_id))))
      AND NOT EXISTS (SELECT 1 FROM campaign_pipeline.campaign_message_parts p WHERE p.message_id = m.id
                      AND p.status <> 'planned');
END $$;

-- Just before the request leaves, with the messages locked: who may not be written to. Returns {message: verdict} or
-- null.
--   suppressed      its lead or address is: it holds for the rest of a text of which parts are out, too
--   contacted_today the lead gets one message a day and has it (items with local_day only)
--   number_contacted another message went to its number not long ago (workspaces.number_rest_hours)
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_refused_by_consent(p_items jsonb, p_going uuid[]) RETURNS jsonb
    LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    hits    uuid[];  -- messages of which the lead or the address is suppressed somewhere: hardly ever any
    refused jsonb;
    later   jsonb;
BEGIN
    IF EXISTS (SELECT 1 FROM campaign_pipeline.campaign_suppressions s WHERE s.lifted_at IS NULL) THEN
        SELECT array_agg(m.id) INTO hits
        FROM jsonb_to_recordset(p_items) AS i (id uuid, address text)
        JOIN public.campaign_messages m ON m.id = i.id
        WHERE m.id = ANY (p_going)
          AND (EXISTS (SELECT 1 FROM campaign_pipeline.campaign_suppressions s WHERE s.lifted_at IS NULL
                       AND s.lead_id = m.lead_id)
               OR EXISTS (SELECT 1 FROM campaign_pipeline.campaign_suppressions s
                          WHERE s.lifted_at IS NULL
                              AND s.address_hash = campaign_pipeline.campaign_address_hash(i.address)));
    END IF;
    IF hits IS NOT NULL THEN
        SELECT jsonb_object_agg(m.id, 'suppressed') INTO refused
        FROM jsonb_to_recordset(p_items) AS i (id uuid, address text, channel text)
        JOIN public.campaign_messages m ON m.id = i.id
        JOIN public.campaign_runs r ON r.id = m.run_id
        JOIN public.campaign_configs c ON c.id = r.config_id
        CROSS JOIN LATERAL (SELECT campaign_pipeline.campaign_address_hash(i.address) AS hash) h
        WHERE m.id = ANY (hits) AND EXISTS (
            SELECT 1 FROM (
                SELECT s.scope, s.workspace_id, s.channel FROM campaign_pipeline.campaign_suppressions s
                WHERE s.lifted_at IS NULL AND s.lead_id = m.lead_id
                UNION ALL
                SELECT s.scope, s.workspace_id, s.channel FROM campaign_pipeline.campaign_suppressions s
                WHERE s.lifted_at IS NULL AND s.address_hash = h.hash) s
            WHERE s.scope = 'global'
               OR (s.workspace_id = c.workspace_id AND (s.scope = 'workspace' OR s.channel = i.channel)));
    END IF;
    IF p_items @? '$[*].local_day' THEN
        later := campaign_pipeline.campaign_reserve_lead_days(p_items, ARRAY(
            SELECT g.id FROM unnest(p_going) AS g (id) WHERE refused IS NULL OR NOT refused ? g.id::text));
        refused := COALESCE(refused || later, refused, later);
    END IF;
    later := campaign_pipeline.campaign_reserve_numbers(p_items, ARRAY(
        SELECT g.id FROM unnest(p_going) AS g (id) WHERE refused IS NULL OR NOT refused ? g.id::text));
    RETURN COALESCE(refused || later, refused, later);
END $$;

-- Give each lead's day to one message. Returns {message: contacted_today} for the others, or null. Of two workers with
-- two campaigns and one lead the second waits here for the first's commit, and then reads the ledger anew: each
-- statement below sees what was committed before it began. A day whose message surely did not go out is taken over.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_reserve_lead_days(p_items jsonb, p_going uuid[]) RETURNS jsonb
    LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    wanted jsonb;  -- [{id, lead_id, day}]
    won    uuid[];
BEGIN
    SELECT jsonb_agg(jsonb_build_object('id', m.id, 'lead_id', m.lead_id, 'day', i.local_day)) INTO wanted
    FROM jsonb_to_recordset(p_items) AS i (id uuid, local_day date)
    JOIN public.campaign_messages m ON m.id = i.id
    WHERE m.id = ANY (p_going) AND i.local_day IS NOT NULL AND m.lead_id IS NOT NULL
      -- A text that was begun is finished.
      AND NOT EXISTS (SELECT 1 FROM campaign_pipeline.campaign_message_parts p WHERE p.message_id = m.id
                      AND campaign_pipeline.campaign_is_out(p.status));
    IF wanted IS NULL THEN
        RETURN NULL;
    END IF;

    INSERT INTO campaign_pipeline.campaign_lead_days (day, lead_id, message_id)
    SELECT DISTINCT ON (w.day, w.lead_id) w.day, w.lead_id, w.id
    FROM jsonb_to_recordset(wanted) AS w (id uuid, lead_id uuid, day date)
    ORDER BY w.day, w.lead_id, w.id  -- in one order, or two groups could wait for each other
    ON CONFLICT DO NOTHING;

    PERFORM 1 FROM campaign_pipeline.campaign_lead_days d
    WHERE (d.day, d.lead_id) IN (SELECT w.day, w.lead_id FROM jsonb_to_recordset(wanted) AS w (lead_id uuid, day date))
    ORDER BY d.day, d.lead_id FOR UPDATE;

    WITH chosen AS (
        SELECT DISTINCT ON (d.day, d.lead_id) d.day, d.lead_id, d.message_id AS before, w.id
        FROM jsonb_to_recordset(wanted) AS w (id uuid, lead_id uuid, day date)
        JOIN campaign_pipeline.campaign_lead_days d ON d.day = w.day AND d.lead_id = w.lead_id
        -- LIMIT: by index for each; as NOT EXISTS it may become one reading of the whole ledger.
        WHERE d.message_id = w.id OR (
            SELECT 1 FROM campaign_pipeline.campaign_message_parts p
            WHERE p.message_id = d.message_id AND p.status IN ('attempting', 'unknown', 'sent') LIMIT 1) IS NULL
        ORDER BY d.day, d.lead_id, (d.message_id = w.id) DESC, w.id
    ), taken AS (
        UPDATE campaign_pipeline.campaign_lead_days d SET message_id = c.id
        FROM chosen c WHERE d.day = c.day AND d.lead_id = c.lead_id AND c.before <> c.id
    )
    SELECT array_agg(c.id) INTO won FROM chosen c;

    RETURN (SELECT jsonb_object_agg(w.id, 'contacted_today') FROM jsonb_to_recordset(wanted) AS w (id uuid)
            WHERE NOT w.id = ANY (COALESCE(won, '{}')));
END $$;

-- Answers of providers that mean "never again" (campaign_suppressing_codes): remembered beyond the message that got
-- them.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_suppress_refused(p_items jsonb, p_held uuid[]) RETURNS void
    LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
BEGIN
    IF NOT p_items @? '$[*] ? (@.outcome == "failed")' THEN
        RETURN;
    END IF;
    PERFORM campaign_pipeline.campaign_suppress_by_answer(i.id, i.code)
    FROM jsonb_to_recordset(p_items) AS i (id uuid, outcome text, code text)
    JOIN campaign_pipeline.campaign_suppressing_codes k ON k.code = i.code
    WHERE i.outcome = 'failed' AND i.id = ANY (p_held);
END $$;

-- The same for an answer that came later, by webhook or bounce: suppress the address of this message if its code says
-- so.
-- Returns the suppression, or null where the code means nothing of the kind.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_suppress_by_answer(p_message uuid, p_code text) RETURNS bigint
    LANGUAGE plpgsql AS $$
DECLARE
    told record;
BEGIN
    -- From the message, or, where the CRM has deleted it, from its last part.
    SELECT k.scope, COALESCE(c.workspace_id, p.workspace_id) AS workspace_id, COALESCE(m.lead_id, p.lead_id) AS lead_id,
           campaign_pipeline.campaign_inbox_channel(COALESCE(p.inbox_id, c.inbox_id)) AS channel,
           COALESCE(p.address, m.address, m.phone_number) AS address
    INTO told
    FROM campaign_pipeline.campaign_suppressing_codes k
    LEFT JOIN public.campaign_messages m ON m.id = p_message
    LEFT JOIN public.campaign_runs r ON r.id = m.run_id
    LEFT JOIN public.campaign_configs c ON c.id = r.config_id
    LEFT JOIN LATERAL (SELECT p.* FROM campaign_pipeline.campaign_message_parts p
                       WHERE p.message_id = p_message AND p.address IS NOT NULL
                       ORDER BY p.part_no DESC LIMIT 1) p ON true
    WHERE k.code = p_code;
    IF NOT FOUND OR told.workspace_id IS NULL OR (told.address IS NULL AND told.lead_id IS NULL) THEN
        RETURN NULL;
    END IF;
    RETURN campaign_pipeline.campaign_suppress(told.scope, told.workspace_id, CASE told.scope WHEN 'channel'
                                               THEN told.channel END,
                             told.address, told.lead_id, 'provider', p_code);
END $$;

-- Keywords -----------------------------------------------------------------------------------------------------------

-- Lower-case words without accents, punctuation or emoji, one space between them.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_plain_words(p_text text) RETURNS text
    LANGUAGE plpgsql STABLE AS $$
DECLARE
    plain text := p_text;
BEGIN
    IF getdatabaseencoding() = 'UTF8' THEN  -- others have no normal form
        plain := regexp_replace(normalize(plain, NFKD), '[\u0300-\u036f\u200b-\u200f\u2060\ufeff]', '', 'g');
    END IF;
    RETURN btrim(regexp_replace(lower(plain), '[^a-z0-9]+', ' ', 'g'));
END $$;

-- What a reply asks for: {meaning, phrase} of an opt-out or opt-in, or null. The whole reply or its first clause must
-- be the phrase, courtesies aside; only phrases marked `open_end` may be followed by anything. So SAIR, "Parar, por
-- favor!" and
-- "Não quero mais receber isso" are heard, "não vou parar de comprar" is not.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_heard_consent(p_text text) RETURNS jsonb
    LANGUAGE plpgsql STABLE AS $$
DECLARE
    whole text := campaign_pipeline.campaign_without_courtesy(campaign_pipeline.campaign_plain_words(p_text));
    first text := campaign_pipeline.campaign_without_courtesy(campaign_pipeline.campaign_plain_words(
                      substring(p_text FROM '^[^[:alnum:]]*([^.,;!\n\r]*)[.,;!\n\r]')));
    heard jsonb;
BEGIN
    SELECT jsonb_build_object('meaning', k.meaning, 'phrase', k.phrase) INTO heard
    FROM campaign_pipeline.campaign_consent_keywords k
    WHERE k.meaning <> 'courtesy'
      AND (k.phrase = whole OR k.phrase = first OR (k.open_end AND starts_with(whole || ' ', k.phrase || ' ')))
    ORDER BY length(k.phrase) DESC LIMIT 1;
    RETURN heard;
END $$;

-- Drop courtesy words from both ends.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_without_courtesy(p_words text) RETURNS text
    LANGUAGE plpgsql STABLE AS $$
DECLARE
    words text[] := string_to_array(p_words, ' ');
    polite text[];
BEGIN
    SELECT array_agg(k.phrase) INTO polite FROM campaign_pipeline.campaign_consent_keywords k
           WHERE k.meaning = 'courtesy';
    IF polite IS NULL THEN
        RETURN p_words;
    END IF;
    WHILE cardinality(words) > 1 AND words[1] = ANY (polite) LOOP
        words := words[2:];
    END LOOP;
    WHILE cardinality(words) > 1 AND words[cardinality(words)] = ANY (polite) LOOP
        words := words[:cardinality(words) - 1];
    END LOOP;
    RETURN array_to_string(words, ' ');
END $$;

-- A reply that opts out suppresses its lead and number in its workspace and channel; one that opts in lifts what a
-- keyword suppressed there, and nothing that a person or a provider did. In the transaction of whoever inserts the
-- reply, with the rights of this function's owner: the CRM's own user need not have any on these tables.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_hear_reply() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, campaign_pipeline, pg_temp AS $$
DECLARE
    heard jsonb := campaign_pipeline.campaign_heard_consent(NEW.text_content);
    talk  record;
BEGIN
    IF heard IS NULL THEN
        RETURN NULL;
    END IF;
    SELECT COALESCE(v.workspace_id, b.workspace_id, l.workspace_id) AS workspace_id,
           COALESCE(v.channel, 'whatsapp') AS channel,
           v.lead_id, COALESCE(v.contact_phone, l.phone) AS address
    INTO talk
    FROM public.conversations v
    LEFT JOIN public.inboxes b ON b.id = v.inbox_id
    LEFT JOIN public.leads l ON l.id = v.lead_id
    WHERE v.id = NEW.conversation_id;
    IF NOT FOUND OR (talk.lead_id IS NULL AND campaign_pipeline.campaign_canonical_address(talk.address) IS NULL) THEN
        RETURN NULL;
    END IF;
    IF heard ->> 'meaning' = 'opt_in' THEN
        PERFORM campaign_pipeline.campaign_lift(talk.workspace_id, CASE WHEN talk.workspace_id IS NOT NULL
                                                THEN talk.channel END,
                              talk.address, talk.lead_id, 'keyword', 'keyword');
    ELSIF talk.workspace_id IS NULL THEN
        -- Nobody knows whose conversation it is; that must not turn a "stop" into nothing.
        PERFORM campaign_pipeline.campaign_suppress('global', NULL, NULL, talk.address, talk.lead_id, 'keyword',
                                                    heard ->> 'phrase');
    ELSE
        PERFORM campaign_pipeline.campaign_suppress('channel', talk.workspace_id, talk.channel, talk.address,
                                                    talk.lead_id, 'keyword',
                                  heard ->> 'phrase');
    END IF;
    RETURN NULL;
END $$;
-- Cheap for all others: what goes out, and what is longer than any "stop", never enters the function.
CREATE OR REPLACE TRIGGER campaign_hear_reply AFTER INSERT ON public.messages
    FOR EACH ROW WHEN (NEW.message_type IN ('received', 'incoming') AND length(NEW.text_content) <= 400)
    EXECUTE FUNCTION campaign_pipeline.campaign_hear_reply();

-- A person's data ----------------------------------------------------------------------------------------------------

-- Every spelling under which the pipeline's and the CRM's tables may have a lead's address.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_addresses_of_lead(p_lead uuid) RETURNS text[]
    LANGUAGE plpgsql STABLE
SET enable_seqscan = off AS $$
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
    -- A cell may hold several numbers.
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

-- The conversations that are a lead's: its own, and those of its number in its workspace that are no other lead's.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_conversations_of_lead(p_lead uuid) RETURNS uuid[]
    LANGUAGE plpgsql STABLE
SET enable_seqscan = off AS $$
BEGIN
    RETURN ARRAY(
        SELECT v.id FROM public.conversations v WHERE v.lead_id = p_lead
        UNION
        SELECT v.id FROM public.conversations v
        WHERE v.lead_id IS NULL AND v.contact_phone = ANY (campaign_pipeline.campaign_addresses_of_lead(p_lead))
          AND v.workspace_id IS NOT DISTINCT FROM (SELECT l.workspace_id FROM public.leads l WHERE l.id = p_lead));
END $$;

-- All that is stored of a lead, as one JSON document for the person who asks for it; null for a lead that never was.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_export_lead(p_lead uuid) RETURNS jsonb LANGUAGE plpgsql STABLE
SET enable_seqscan = off AS $$
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

-- The log lines about a lead: those that name it, and those that name only one of its messages.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_logs_of_lead(p_lead uuid, p_messages uuid[]) RETURNS uuid[]
    LANGUAGE plpgsql STABLE
SET enable_seqscan = off AS $$
BEGIN
    RETURN ARRAY(
        SELECT g.id FROM public.campaign_logs g WHERE g.lead_id = p_lead
        UNION
        SELECT g.id FROM public.campaign_logs g
        WHERE g.run_id IN (SELECT m.run_id FROM public.campaign_messages m WHERE m.id = ANY (p_messages))
          AND g.message_id = ANY (p_messages));
END $$;

-- Blank every text, JSON and array column of some rows but the ones to keep: NULL where that may be, else the column's
-- default, else an empty text. By the catalogue, so that a column that the CRM or a later migration adds is blanked
-- too.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_blank(p_table regclass, p_key text, p_ids uuid[], p_keep text[])
    RETURNS integer
LANGUAGE plpgsql SET enable_seqscan = off AS $$
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

-- Erase a person (LGPD, article 18): names, numbers, texts, answers and log lines, here and in the CRM's own tables of
-- the lead. Ids, statuses, times and counts stay, so that totals stay true. Messages that were still to be sent end.
-- The addresses stay as hashes that suppress the person in the workspace, should it be imported again. Returns rows by
-- table.
-- May be repeated. Raises an exception while a part is under way to the lead, whose answer would bring data back.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_erase_lead(p_lead uuid, p_by text) RETURNS jsonb LANGUAGE plpgsql
SET enable_seqscan = off AS $$
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
        -- The ledger outlives what the CRM deletes.
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

    -- Runs in the order of their ids, as everywhere: ending messages moves their counters.
    PERFORM 1 FROM public.campaign_runs r
    WHERE r.id IN (SELECT m.run_id FROM public.campaign_messages m WHERE m.id = ANY (own_messages))
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
          FROM unnest(own_messages) AS x (id)) o
    WHERE m.id = o.id AND m.status IN ('pending', 'queued', 'generating', 'sending');

    UPDATE campaign_pipeline.campaign_message_parts p
    SET status = 'unknown', error_class = 'unknown'
    WHERE p.message_id = ANY (own_messages) AND p.status = 'attempting';

    counts := counts || jsonb_build_object(
        'campaign_messages', campaign_pipeline.campaign_blank('public.campaign_messages', 'id', own_messages,
            '{status,error_class,error_code,ai_model,lease_owner}'),
        'campaign_message_parts',
            campaign_pipeline.campaign_blank('campaign_pipeline.campaign_message_parts', 'message_id', own_messages,
            '{status,error_class,error_code,idempotency_key,delivery_status,delivery_code}'),
        'lead_activities',
            campaign_pipeline.campaign_blank('public.lead_activities', 'lead_id', ARRAY[p_lead], '{activity_type}'),
        'campaign_model_calls',
            campaign_pipeline.campaign_blank('campaign_pipeline.campaign_model_calls', 'lead_id', ARRAY[p_lead],
            '{id,purpose,model,rule,changed}'),
        'campaign_logs',
            campaign_pipeline.campaign_blank('public.campaign_logs', 'id',
                                             campaign_pipeline.campaign_logs_of_lead(p_lead, own_messages),
                                                 '{step_name,level}'),
        'messages',
            campaign_pipeline.campaign_blank('public.messages', 'conversation_id', talks,
                                             '{content_type,message_type,sent_by}'),
        'conversations', campaign_pipeline.campaign_blank('public.conversations', 'id', talks, '{channel,status}'),
        'leads', campaign_pipeline.campaign_blank('public.leads', 'id', ARRAY[p_lead], '{status,priority}'));
    -- Figures and flags of the person; ids of funnel and column stay for the CRM's own totals.
    UPDATE public.leads l SET deal_value = NULL, whatsapp_valid = NULL WHERE l.id = p_lead;
    DELETE FROM public.lead_custom_values v WHERE v.lead_id = p_lead;
    GET DIAGNOSTICS n = ROW_COUNT;
    counts := counts || jsonb_build_object('lead_custom_values', n);
    -- Meta's own words name the recipient; there is no index for this, and settled events are dropped soon.
    DELETE FROM campaign_pipeline.campaign_status_events e
    WHERE e.payload ->> 'recipient_id' = ANY (addresses)
       OR split_part(e.payload ->> 'biz_opaque_callback_data', ':', 1) = ANY (own_messages::text[]);
    GET DIAGNOSTICS n = ROW_COUNT;
    counts := counts || jsonb_build_object('campaign_status_events', n);
    DELETE FROM campaign_pipeline.campaign_number_contacts k WHERE k.number = ANY (addresses);
    GET DIAGNOSTICS n = ROW_COUNT;
    counts := counts || jsonb_build_object('campaign_number_contacts', n);
    DELETE FROM campaign_pipeline.campaign_number_checks k WHERE k.number = ANY (addresses);
    GET DIAGNOSTICS n = ROW_COUNT;
    counts := counts || jsonb_build_object('campaign_number_checks', n);

    INSERT INTO campaign_pipeline.campaign_erasures (lead_id, workspace_id, erased_at, erased_by, counts)
    VALUES (p_lead, workspace, campaign_pipeline.campaign_now(), p_by, counts);
    RETURN counts;
END $$;

-- Suppressions from before numbers were read as they are now: spelled anew, so that they go on matching. An erased person
-- has left no address to spell, but its hash was made of the number as it was sent to, which has not changed.
DO $$
BEGIN
    UPDATE campaign_pipeline.campaign_suppressions s
    SET address = again.canonical, address_hash = campaign_pipeline.campaign_address_hash(again.canonical)
    FROM (SELECT DISTINCT ON (o.scope, o.workspace_id, o.channel, o.lead_id, c.canonical) o.id, c.canonical
          FROM campaign_pipeline.campaign_suppressions o
          CROSS JOIN LATERAL (SELECT campaign_pipeline.campaign_canonical_address(o.address) AS canonical) c
          WHERE o.lifted_at IS NULL AND o.address IS NOT NULL
          ORDER BY o.scope, o.workspace_id, o.channel, o.lead_id, c.canonical, o.address = c.canonical DESC) again
    WHERE s.id = again.id AND again.canonical <> s.address;
END $$;
