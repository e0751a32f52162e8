-- Whether a message may go on, asked before the model and before each part.
--
-- A word on the plans of what follows. Each function handles a few dozen ids of tables of millions, by index. The
-- server keeps one plan for all calls and guesses the size of a JSON array at 100 rows, so a plan made while the tables
-- were small reads them whole for ever (5,000 messages: 2,172 scans of campaign_messages, 10.9 M rows). Hence the SET
-- clauses:
-- 2.78 -> 0.72 ms a message in groups of 17, together with the indexes on conversations.
-- Whoever holds a row longer than lock_timeout may be the CRM, which locks runs and messages in orders of its own. The
-- limit is below the server's deadlock_timeout (1 s), so that of two in each other's way it is never the CRM's
-- statement that fails: ours gives up first, and is repeated.
-- And one plan a connection from the first call on (plan_cache_mode), where the server would plan each statement anew
-- five times, and some of them always: one message at a time, begin_parts 2.7 -> 1.1 ms, start_generating 1.1 -> 0.65.

-- May these leased messages go on? 'go', or why not. A run that people paused or cancelled stops its messages wherever
-- they are: the part in flight is recorded and nothing more is sent. With its text begun to be sent no other pause than
-- its inbox's stops a message: half a message is worse than a late pause. Items: {id, token}, at most one a message.
-- One statement for all of them: as a function of one message, called in an expression, it took two thirds of the time
-- of begin_parts (EXPLAIN of nested statements, groups of 20: 9.1 of 13.7 ms, planned and run four times a message).
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_verdicts(p_items jsonb, p_needs_model boolean)
RETURNS TABLE (message_id uuid, verdict text) LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT i.id, CASE
        WHEN m.id IS NULL OR m.lease_token IS DISTINCT FROM i.token
             OR NOT campaign_pipeline.campaign_is_leased(m.status)
                 OR m.lease_expires_at <= campaign_pipeline.campaign_now() THEN 'lost'
        WHEN strange.message_id IS NOT NULL THEN 'foreign_workspace'
        WHEN r.status <> 'running' THEN 'run_' || r.status
        -- Like a run that people paused: nothing more of a message, though it has begun.
        WHEN EXISTS (SELECT 1 FROM campaign_pipeline.campaign_manual_pauses) AND EXISTS (
            SELECT 1 FROM campaign_pipeline.campaign_manual_pauses h
            WHERE h.scope = 'all'
               OR (h.scope = 'workspace' AND h.scope_id = c.workspace_id::text)
               OR (h.scope = 'inbox' AND h.scope_id = COALESCE(m.inbox_id, c.inbox_id)::text)
        ) THEN 'paused_by_person'
        -- Claimed ahead of its planned time, or planned anew meanwhile: its text may be written, nothing is sent.
        WHEN NOT p_needs_model AND NOT begun.yes
             AND campaign_pipeline.campaign_due_at(m) > campaign_pipeline.campaign_now()
            THEN 'not_due'
        WHEN EXISTS (SELECT 1 FROM campaign_pipeline.campaign_pauses) AND EXISTS (
            SELECT 1 FROM campaign_pipeline.campaign_pauses p
            WHERE (p.kind = 'systemic' OR p.until > campaign_pipeline.campaign_now()) AND p.probe_message_id
                IS DISTINCT FROM m.id
              AND (   (p.scope = 'inbox' AND p.scope_id = COALESCE(m.inbox_id, c.inbox_id)::text)
                   -- A limit on spending keeps texts from being written, not those that were paid for from going out.
                   OR (p.scope = 'run' AND p.scope_id = r.id::text AND NOT begun.yes
                       AND (p_needs_model OR p.code <> 'spending_limit'))
                   OR (p_needs_model AND p.scope = 'workspace' AND p.scope_id = c.workspace_id::text)
                   -- The account that all share, but for workspaces that pay with a key of their own.
                   OR (p_needs_model AND p.scope = 'provider'
                       AND campaign_pipeline.campaign_own_key(c.workspace_id) IS NULL)
                   OR (p_needs_model AND p.scope = 'model' AND p.scope_id IN (
                        SELECT a.model FROM public.ai_agents a WHERE a.workspace_id = c.workspace_id AND a.is_active)))
        ) THEN 'scope_paused'
        WHEN EXISTS (SELECT 1 FROM campaign_pipeline.campaign_settings s
                     WHERE s.config_id = c.id AND s.review <> 'none')
             AND campaign_pipeline.campaign_awaits_review(m.id, r.id, c.id, p_needs_model) THEN 'awaiting_review'
        ELSE 'go'
    END
    FROM jsonb_to_recordset(p_items) AS i (id uuid, token uuid)
    LEFT JOIN public.campaign_messages m ON m.id = i.id
    LEFT JOIN public.campaign_runs r ON r.id = m.run_id
    LEFT JOIN public.campaign_configs c ON c.id = r.config_id
    -- LIMIT: by index for each; as EXISTS it may become one reading of the whole ledger.
    CROSS JOIN LATERAL (SELECT (
        SELECT 1 FROM campaign_pipeline.campaign_message_parts p
        WHERE p.message_id = i.id AND campaign_pipeline.campaign_is_out(p.status) LIMIT 1) IS NOT NULL AS yes) begun
    LEFT JOIN campaign_pipeline.campaign_foreign_rows(
        ARRAY(SELECT w.id FROM jsonb_to_recordset(p_items) AS w (id uuid))) strange ON strange.message_id = i.id;
END $$;

-- Before the model is called: still leased, run still running, nothing paused? Then status `generating`.
-- Items: {id, token}.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_start_generating(p_items jsonb)
RETURNS TABLE (message_id uuid, verdict text) LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
SET lock_timeout = '800ms' AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH item AS MATERIALIZED (
        SELECT v.message_id AS id, v.verdict, i.token
        FROM campaign_pipeline.campaign_verdicts(p_items, true) v
        JOIN jsonb_to_recordset(p_items) AS i (id uuid, token uuid) ON i.id = v.message_id
    ), started AS (
        UPDATE public.campaign_messages m SET status = 'generating'
        FROM item
        WHERE m.id = item.id AND item.verdict = 'go'
          AND m.lease_token = item.token AND campaign_pipeline.campaign_is_leased(m.status) AND m.status <> 'sending'
        RETURNING m.id
    )
    SELECT item.id, CASE WHEN item.verdict = 'go' AND started.id IS NULL THEN 'lost' ELSE item.verdict END
    FROM item LEFT JOIN started ON started.id = item.id;
END $$;
