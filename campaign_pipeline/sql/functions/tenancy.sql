-- Tenants: everything that a message touches belongs to the workspace of its campaign.
--
-- Asked in the claim, again before the model is asked and before each part is sent (campaign_verdicts), and by a check.
-- What connects a message with another tenant ends it as `foreign_workspace`. A row without a workspace is nobody's,
-- and foreign to nobody. The agent, its key and the template are read by the campaign's own workspace or row, and a
-- fallback inbox of another workspace is never chosen, so these cannot be foreign.

-- Whether a row of some workspace is foreign to a campaign of another.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_is_foreign(p_workspace uuid, p_of_campaign uuid) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT p_workspace IS NOT NULL AND p_workspace IS DISTINCT FROM p_of_campaign
$$;

-- Of these messages, those that touch a row of another workspace than that of their campaign: which kind of row, and
-- its id. What the messages of a campaign and an inbox share is looked up once for all of them.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_foreign_rows(p_ids uuid[])
RETURNS TABLE (message_id uuid, what text, row_id uuid) LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH item AS MATERIALIZED (
        SELECT m.id, m.lead_id, m.conversation_id, c.id AS config_id, c.workspace_id,
               COALESCE(m.inbox_id, c.inbox_id) AS inbox_id
        FROM public.campaign_messages m
        JOIN public.campaign_runs r ON r.id = m.run_id
        JOIN public.campaign_configs c ON c.id = r.config_id
        WHERE m.id = ANY (p_ids)
    ), shared AS MATERIALIZED (
        SELECT s.config_id, s.inbox_id, found.what, found.row_id
        FROM (SELECT DISTINCT i.config_id, i.workspace_id, i.inbox_id FROM item i) s
        CROSS JOIN LATERAL (
            SELECT f.what, f.row_id FROM (
                SELECT 1 AS place, 'inbox' AS what, b.id AS row_id
                FROM public.inboxes b
                WHERE b.id = s.inbox_id AND campaign_pipeline.campaign_is_foreign(b.workspace_id, s.workspace_id)
                UNION ALL
                -- One of its own is enough: it is the one that is used.
                SELECT 2, 'instance', min(i.id::text)::uuid
                FROM public.inbox_instances x JOIN public.instances i ON i.id = x.instance_id
                WHERE x.inbox_id = s.inbox_id
                HAVING bool_and(campaign_pipeline.campaign_is_foreign(i.workspace_id, s.workspace_id))
                UNION ALL
                SELECT 3, 'funnel column', k.id
                FROM public.campaign_configs c
                JOIN public.funnel_columns k ON k.id IN (c.source_column_id, c.target_column_id)
                JOIN public.funnels f ON f.id = k.funnel_id
                WHERE c.id = s.config_id AND campaign_pipeline.campaign_is_foreign(f.workspace_id, s.workspace_id)
            ) f ORDER BY f.place LIMIT 1) found
    )
    SELECT i.id, found.what, found.row_id
    FROM item i
    CROSS JOIN LATERAL (
        SELECT f.what, f.row_id FROM (
            -- The lead is looked up once for all that hangs on it.
            SELECT o.place, o.what, o.row_id
            FROM public.leads l
            LEFT JOIN public.funnels g ON g.id = l.funnel_id
            LEFT JOIN public.funnel_columns k ON k.id = l.column_id
            LEFT JOIN public.funnels column_funnel ON column_funnel.id = k.funnel_id
            CROSS JOIN LATERAL (VALUES
                (1, 'lead', l.id, l.workspace_id), (4, 'lead''s funnel', g.id, g.workspace_id),
                (5, 'lead''s funnel column', k.id, column_funnel.workspace_id)) o (place, what, row_id, workspace_id)
            WHERE l.id = i.lead_id AND campaign_pipeline.campaign_is_foreign(o.workspace_id, i.workspace_id)
            UNION ALL
            SELECT 2, h.what, h.row_id FROM shared h
            WHERE h.config_id = i.config_id AND h.inbox_id IS NOT DISTINCT FROM i.inbox_id
            UNION ALL
            SELECT 3, 'conversation', v.id
            FROM public.conversations v
            WHERE v.id = i.conversation_id AND campaign_pipeline.campaign_is_foreign(v.workspace_id, i.workspace_id)
        ) f ORDER BY f.place LIMIT 1) found;
END $$;

-- The sentence for a message that was ended because of such a row.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_foreign_sentence(p_what text, p_row uuid) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT format('The %s %s belongs to another workspace than the campaign, so nothing was sent.', p_what, p_row)
$$;
