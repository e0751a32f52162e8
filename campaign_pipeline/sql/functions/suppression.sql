-- Suppression: addresses and leads that must not be contacted.

-- Suppress an address, or a lead at all its addresses. The same suppression is stored once; returns the id of the
-- active one. Raises if neither address nor lead is given, or no scope.
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

-- Lift the suppressions of this address or lead: of all scopes and sources, or of the given ones. Returns how many.
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

-- Of these messages, find those whose lead or number is suppressed. Two index probes per message. Never one with a part
-- that may have been sent: its worker first resolves that part.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_suppressed_messages(p_ids uuid[]) RETURNS SETOF uuid
    LANGUAGE plpgsql
SET jit = off SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
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

-- Right before the request, with the messages locked: who must not be contacted. Returns {message: verdict} or
-- null.
--   suppressed      its lead or address is; this also stops the rest of a text of which parts were sent
--   contacted_today the lead gets one message a day and has had it (items with local_day only)
--   number_contacted another message went to its number recently (workspaces.number_rest_hours)
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_refused_by_consent(p_going campaign_pipeline.campaign_intent[])
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    left_  campaign_pipeline.campaign_intent[] := p_going;
    answer jsonb := '{}';
    more   jsonb;
BEGIN
    -- Usually nobody is suppressed: then nothing is hashed.
    IF EXISTS (SELECT 1 FROM campaign_pipeline.campaign_suppressions s WHERE s.lifted_at IS NULL) THEN
        more := campaign_pipeline.campaign_suppressed_intents(p_going);
        answer := answer || COALESCE(more, '{}');
    END IF;
    IF EXISTS (SELECT 1 FROM unnest(p_going) AS i WHERE i.local_day IS NOT NULL) THEN
        IF answer <> '{}' THEN
            left_ := ARRAY(SELECT i FROM unnest(p_going) AS i WHERE NOT answer ? i.id::text);
        END IF;
        more := campaign_pipeline.campaign_reserve_lead_days(left_);
        answer := answer || COALESCE(more, '{}');
    END IF;
    IF answer <> '{}' THEN
        left_ := ARRAY(SELECT i FROM unnest(p_going) AS i WHERE NOT answer ? i.id::text);
    END IF;
    more := campaign_pipeline.campaign_reserve_numbers(left_);
    RETURN NULLIF(answer || COALESCE(more, '{}'), '{}');
END $$;

-- Of the parts that are about to be sent, those to a suppressed lead or address. Returns {message: suppressed} or null.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_suppressed_intents(p_going campaign_pipeline.campaign_intent[])
RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    RETURN (
        SELECT jsonb_object_agg(i.id, 'suppressed')
        FROM unnest(p_going) AS i
        -- OFFSET 0: hashed once.
        CROSS JOIN LATERAL (SELECT campaign_pipeline.campaign_address_hash(i.address) AS hash OFFSET 0) h
        WHERE EXISTS (
            SELECT 1 FROM (
                SELECT s.scope, s.workspace_id, s.channel FROM campaign_pipeline.campaign_suppressions s
                WHERE s.lifted_at IS NULL AND s.lead_id = i.lead_id
                UNION ALL
                SELECT s.scope, s.workspace_id, s.channel FROM campaign_pipeline.campaign_suppressions s
                WHERE s.lifted_at IS NULL AND s.address_hash = h.hash) s
            WHERE s.scope = 'global'
               OR (s.workspace_id = i.workspace_id AND (s.scope = 'workspace' OR s.channel = i.channel))));
END $$;

-- Reserve each lead's day for one message. Returns {message: contacted_today} for the others, or null. Of two workers
-- with two campaigns and one lead, the second waits here for the first's commit, and then reads the ledger again: each
-- statement below sees what was committed before it began. The day of a message that was surely not sent is taken over.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_reserve_lead_days(p_going campaign_pipeline.campaign_intent[])
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    -- A begun text is finished.
    wanted campaign_pipeline.campaign_intent[] := ARRAY(
        SELECT i FROM unnest(p_going) AS i
        WHERE i.local_day IS NOT NULL AND i.lead_id IS NOT NULL AND NOT i.begun);
    won    uuid[];
BEGIN
    IF wanted = '{}' THEN
        RETURN NULL;
    END IF;

    INSERT INTO campaign_pipeline.campaign_lead_days (day, lead_id, message_id)
    SELECT DISTINCT ON (w.local_day, w.lead_id) w.local_day, w.lead_id, w.id
    FROM unnest(wanted) AS w
    ORDER BY w.local_day, w.lead_id, w.id  -- in one order, to avoid deadlocks
    ON CONFLICT DO NOTHING;

    PERFORM 1 FROM campaign_pipeline.campaign_lead_days d
    WHERE (d.day, d.lead_id) IN (SELECT w.local_day, w.lead_id FROM unnest(wanted) AS w)
    ORDER BY d.day, d.lead_id FOR UPDATE;

    WITH chosen AS (
        SELECT DISTINCT ON (d.day, d.lead_id) d.day, d.lead_id, d.message_id AS before, w.id
        FROM unnest(wanted) AS w
        JOIN campaign_pipeline.campaign_lead_days d ON d.day = w.local_day AND d.lead_id = w.lead_id
        -- LIMIT: an index probe each; NOT EXISTS may become one scan of the whole ledger.
        WHERE d.message_id = w.id OR (
            SELECT 1 FROM campaign_pipeline.campaign_message_parts p
            WHERE p.message_id = d.message_id AND p.status IN ('attempting', 'unknown', 'sent') LIMIT 1) IS NULL
        ORDER BY d.day, d.lead_id, (d.message_id = w.id) DESC, w.id
    ), taken AS (
        UPDATE campaign_pipeline.campaign_lead_days d SET message_id = c.id
        FROM chosen c WHERE d.day = c.day AND d.lead_id = c.lead_id AND c.before <> c.id
    )
    SELECT array_agg(c.id) INTO won FROM chosen c;

    RETURN (SELECT jsonb_object_agg(w.id, 'contacted_today') FROM unnest(wanted) AS w
            WHERE NOT w.id = ANY (COALESCE(won, '{}')));
END $$;

-- Suppress after a provider's answer that means "never again" (campaign_suppressing_codes), beyond the message that got
-- it.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_suppress_refused(
    p_ends campaign_pipeline.campaign_end[], p_held uuid[]
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM campaign_pipeline.campaign_suppress_by_answer(i.id, i.code)
    FROM unnest(p_ends) AS i
    JOIN campaign_pipeline.campaign_suppressing_codes k ON k.code = i.code
    WHERE i.outcome = 'failed' AND i.id = ANY (p_held);
END $$;

-- The same for a later answer, by webhook or bounce: suppress the address of this message if its code says so.
-- Returns the suppression, or null if the code does not mean this.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_suppress_by_answer(p_message uuid, p_code text) RETURNS bigint
    LANGUAGE plpgsql AS $$
DECLARE
    told record;
BEGIN
    -- From the message or, if the CRM has deleted it, from its last part.
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

-- Suppressions with an outdated spelling of a number: canonicalised again, so that they still match. An erased
-- person's address is gone, but its hash was made of the number as it was sent to, which has not changed.
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
