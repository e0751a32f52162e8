-- Tenants: every row that a message references belongs to the workspace of its campaign.
--
-- Checked in the claim, again before the model is called and before each part is sent (campaign_verdicts), and by an
-- asset check. A reference to another tenant ends a message as `foreign_workspace`. A row without a workspace belongs
-- to nobody, and is foreign to nobody. The agent, its key and the template come from the campaign's own workspace or
-- row, and a fallback inbox of another workspace is never chosen, so these cannot be foreign.

-- Whether a row of one workspace is foreign to a campaign of another.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_is_foreign(p_workspace uuid, p_of_campaign uuid) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT p_workspace IS NOT NULL AND p_workspace IS DISTINCT FROM p_of_campaign
$$;

-- Of these messages, those that reference a row of another workspace than their campaign's: which kind of row, and
-- its id. What the messages of a campaign and an inbox share is looked up once for all of them.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_foreign_rows(p_ids uuid[])
RETURNS TABLE (message_id uuid, what text, row_id uuid) LANGUAGE plpgsql STABLE
SET jit = off SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH item AS MATERIALIZED (
        SELECT m.id, c.id AS config_id, c.workspace_id, COALESCE(m.inbox_id, c.inbox_id) AS inbox_id,
               l.id AS lead, l.workspace_id AS lead_of, g.id AS funnel, g.workspace_id AS funnel_of,
               k.id AS column, f.workspace_id AS column_of, v.id AS conversation, v.workspace_id AS conversation_of
        FROM unnest(p_ids) AS i (id)
        JOIN public.campaign_messages m ON m.id = i.id
        JOIN public.campaign_runs r ON r.id = m.run_id
        JOIN public.campaign_configs c ON c.id = r.config_id
        LEFT JOIN public.leads l ON l.id = m.lead_id
        LEFT JOIN public.funnels g ON g.id = l.funnel_id
        LEFT JOIN public.funnel_columns k ON k.id = l.column_id
        LEFT JOIN public.funnels f ON f.id = k.funnel_id
        LEFT JOIN public.conversations v ON v.id = m.conversation_id
    ), shared AS MATERIALIZED (
        SELECT s.config_id, s.inbox_id, found.what, found.row_id
        FROM (SELECT DISTINCT i.config_id, i.workspace_id, i.inbox_id FROM item i) s
        CROSS JOIN LATERAL (
            SELECT f.what, f.row_id FROM (
                SELECT 1 AS place, 'inbox' AS what, b.id AS row_id
                FROM public.inboxes b
                WHERE b.id = s.inbox_id AND campaign_pipeline.campaign_is_foreign(b.workspace_id, s.workspace_id)
                UNION ALL
                -- One row of its own workspace is enough: that one is used.
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
    SELECT i.id, w.what, CASE w.what WHEN 'lead' THEN i.lead WHEN 'conversation' THEN i.conversation
                                     WHEN 'lead''s funnel' THEN i.funnel WHEN 'lead''s funnel column' THEN i.column
                                     ELSE h.row_id END
    FROM item i
    LEFT JOIN shared h ON h.config_id = i.config_id AND h.inbox_id IS NOT DISTINCT FROM i.inbox_id
    CROSS JOIN LATERAL (SELECT CASE
        WHEN campaign_pipeline.campaign_is_foreign(i.lead_of, i.workspace_id) THEN 'lead'
        WHEN h.what IS NOT NULL THEN h.what
        WHEN campaign_pipeline.campaign_is_foreign(i.conversation_of, i.workspace_id) THEN 'conversation'
        WHEN campaign_pipeline.campaign_is_foreign(i.funnel_of, i.workspace_id) THEN 'lead''s funnel'
        WHEN campaign_pipeline.campaign_is_foreign(i.column_of, i.workspace_id) THEN 'lead''s funnel column'
        END) w (what)
    WHERE w.what IS NOT NULL;
END $$;

-- The sentence for a message that ended because of such a row.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_foreign_sentence(p_what text, p_row uuid) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT format('The %s %s belongs to another workspace than the campaign, so nothing was sent.', p_what, p_row)
$$;
