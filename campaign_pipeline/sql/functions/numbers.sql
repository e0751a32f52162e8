-- One number, several leads: within a workspace a number gets one campaign message per configured number of hours.
-- Both spellings of a Brazilian mobile number are one number, by campaign_canonical_address.

-- Reserve each number of these items for one message. Returns {message: number_contacted} for the others, or null. Of
-- two workers with two leads of one number, the second waits at the insert for the first's commit; each statement below
-- sees what was committed before it began. The number of a message that was surely not sent is taken over.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_reserve_numbers(p_going campaign_pipeline.campaign_intent[])
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    wanted jsonb;   -- [{id, workspace, number, rest}]
    won    uuid[];
    lost   uuid[];
BEGIN
    -- OFFSET 0: each number is parsed once.
    SELECT jsonb_agg(jsonb_build_object('id', i.id, 'workspace', i.workspace_id, 'rest', w.number_rest_hours,
                                        'number', at.number))
    INTO wanted
    FROM unnest(p_going) AS i
    JOIN public.workspaces w ON w.id = i.workspace_id AND w.number_rest_hours > 0
    CROSS JOIN LATERAL (SELECT campaign_pipeline.campaign_canonical_address(i.address) AS number OFFSET 0) at
    -- A begun text is finished.
    WHERE i.channel = 'whatsapp' AND NOT i.begun AND at.number IS NOT NULL;
    IF wanted IS NULL THEN
        RETURN NULL;
    END IF;

    WITH inserted AS (
        INSERT INTO campaign_pipeline.campaign_number_contacts AS n (workspace_id, number, message_id, contacted_at)
        SELECT DISTINCT ON (w.workspace, w.number) w.workspace, w.number, w.id, campaign_pipeline.campaign_now()
        FROM jsonb_to_recordset(wanted) AS w (id uuid, workspace uuid, number text)
        ORDER BY w.workspace, w.number, w.id  -- in one order, to avoid deadlocks
        ON CONFLICT DO NOTHING
        RETURNING n.message_id
    )
    SELECT array_agg(inserted.message_id) INTO won FROM inserted;
    lost := ARRAY(SELECT w.id FROM jsonb_to_recordset(wanted) AS w (id uuid)
                  WHERE NOT w.id = ANY (COALESCE(won, '{}')));
    IF lost = '{}' THEN
        RETURN NULL;
    END IF;

    -- The number was contacted before.
    PERFORM 1 FROM campaign_pipeline.campaign_number_contacts n
    WHERE (n.workspace_id, n.number) IN (
        SELECT w.workspace, w.number FROM jsonb_to_recordset(wanted) AS w (id uuid, workspace uuid, number text)
        WHERE w.id = ANY (lost))
    ORDER BY n.workspace_id, n.number FOR UPDATE;

    WITH chosen AS (
        SELECT DISTINCT ON (n.workspace_id, n.number) n.workspace_id, n.number, w.id
        FROM jsonb_to_recordset(wanted) AS w (id uuid, workspace uuid, number text, rest integer)
        JOIN campaign_pipeline.campaign_number_contacts n ON n.workspace_id = w.workspace AND n.number = w.number
        WHERE w.id = ANY (lost) AND NOT n.message_id = ANY (COALESCE(won, '{}'))
          AND (n.message_id = w.id
               OR n.contacted_at <= campaign_pipeline.campaign_now() - make_interval(hours => w.rest)
               -- LIMIT: an index probe each; NOT EXISTS may become one scan of the whole ledger.
               OR (SELECT 1 FROM campaign_pipeline.campaign_message_parts p WHERE p.message_id = n.message_id
                   AND p.status IN ('attempting', 'unknown', 'sent') LIMIT 1) IS NULL)
        ORDER BY n.workspace_id, n.number, (n.message_id = w.id) DESC, w.id
    ), taken AS (
        UPDATE campaign_pipeline.campaign_number_contacts n
        SET message_id = c.id, contacted_at = campaign_pipeline.campaign_now()
        FROM chosen c WHERE n.workspace_id = c.workspace_id AND n.number = c.number
        RETURNING n.message_id
    )
    SELECT COALESCE(won, '{}') || array_agg(taken.message_id) INTO won FROM taken;

    RETURN (SELECT jsonb_object_agg(w.id, 'number_contacted') FROM jsonb_to_recordset(wanted) AS w (id uuid)
            WHERE NOT w.id = ANY (COALESCE(won, '{}')));
END $$;

-- Of the messages that a batch just leased, find those whose number was contacted recently, or that another of them
-- contacts now, before their texts are paid for. A message of the run that contacted the number is skipped: it would
-- repeat the same. One of another run waits until the number has rested, or for a minute if the other message's result
-- is open. Never one of which a part may have been sent.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_hold_contacted(p_ids uuid[])
RETURNS TABLE (message_id uuid, skipped boolean) LANGUAGE plpgsql
SET jit = off SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
BEGIN
    RETURN QUERY
    WITH claimed AS MATERIALIZED (
        SELECT m.*
        FROM unnest(p_ids) AS i (id)
        CROSS JOIN LATERAL (
            SELECT m.id, m.run_id, c.workspace_id, w.number_rest_hours AS rest,
                   COALESCE(m.phone_number, l.phone) AS written, COALESCE(m.inbox_id, c.inbox_id) AS inbox_id
            FROM public.campaign_messages m
            JOIN public.campaign_runs r ON r.id = m.run_id
            JOIN public.campaign_configs c ON c.id = r.config_id
            JOIN public.workspaces w ON w.id = c.workspace_id
            LEFT JOIN public.leads l ON l.id = m.lead_id
            -- `queued`, written so that the index of leased messages does not match: it would be read once per message.
            WHERE m.id = i.id AND campaign_pipeline.campaign_is_leased(m.status)
              AND m.status NOT IN ('generating', 'sending') AND NOT EXISTS (
                SELECT 1 FROM campaign_pipeline.campaign_message_parts p
                WHERE p.message_id = m.id AND p.status <> 'planned')
            OFFSET 0) m
        WHERE m.rest > 0
    ), inbox AS MATERIALIZED (
        -- Asked once for all messages of an inbox: without OFFSET 0, the question would come before the DISTINCT.
        SELECT x.inbox_id FROM (SELECT DISTINCT c.inbox_id FROM claimed c OFFSET 0) x
        WHERE campaign_pipeline.campaign_inbox_channel(x.inbox_id) = 'whatsapp'
    ), item AS MATERIALIZED (
        SELECT c.id, c.run_id, c.workspace_id, c.rest,
               campaign_pipeline.campaign_canonical_address(c.written) AS number
        FROM claimed c JOIN inbox ON inbox.inbox_id = c.inbox_id
    ), before AS (
        SELECT item.*, n.message_id AS other_id, n.contacted_at + make_interval(hours => item.rest) AS rested_at,
               COALESCE(went.out, false) AS out, COALESCE(went.leaving, false) AS leaving,
               row_number() OVER (PARTITION BY item.workspace_id, item.number ORDER BY item.id) AS place
        FROM item
        LEFT JOIN campaign_pipeline.campaign_number_contacts n
            ON n.workspace_id = item.workspace_id AND n.number = item.number AND n.message_id <> item.id
           AND n.contacted_at > campaign_pipeline.campaign_now() - make_interval(hours => item.rest)
        -- Aggregates, evaluated per message; EXISTS may read the whole ledger once per call.
        LEFT JOIN LATERAL (
            SELECT bool_or(p.status IN ('sent', 'unknown')) AS out, bool_or(p.status = 'attempting') AS leaving
            FROM campaign_pipeline.campaign_message_parts p WHERE p.message_id = n.message_id) went ON true
        WHERE item.number IS NOT NULL
    ), held AS (
        SELECT b.id, b.out AND other.run_id = b.run_id AS skip,
               CASE WHEN b.out THEN b.rested_at
                    ELSE campaign_pipeline.campaign_now() + interval '1 minute' END AS again_at
        FROM before b LEFT JOIN public.campaign_messages other ON other.id = b.other_id
        WHERE b.out OR b.leaving OR b.place > 1
    )
    UPDATE public.campaign_messages m
    SET status = CASE WHEN h.skip THEN 'skipped' ELSE 'pending' END,
        finished_at = CASE WHEN h.skip THEN campaign_pipeline.campaign_now() END,
        next_attempt_at = CASE WHEN h.skip THEN m.next_attempt_at ELSE h.again_at END,
        lease_token = NULL, lease_expires_at = NULL, error_code = 'number_contacted',
        error_message = CASE
            WHEN h.skip
                THEN 'This run has written to the lead''s number already, for another lead with the same number.'
            ELSE 'Another message goes to the lead''s number, or went to it not long ago; this one waits '
                 '(workspaces.number_rest_hours).' END
    FROM held h
    WHERE m.id = h.id
    RETURNING m.id, m.status = 'skipped';
END $$;
