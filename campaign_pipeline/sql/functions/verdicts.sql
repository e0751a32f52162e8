-- Verdicts: whether a message may go on, asked before the model is called and before each part.
--
-- On the plans below: each function handles a few dozen ids of tables with millions of rows, by index. The server keeps
-- one plan for all calls and estimates a JSON array at 100 rows, so a plan made while the tables were small would scan
-- them for ever (5,000 messages: 2,172 scans of campaign_messages, 10.9 M rows). Hence the SET clauses of the functions
-- that callers use, which apply to all functions that these call:
-- 2.78 -> 0.72 ms per message in groups of 17, together with the indexes on conversations.
-- A client that holds a row longer than lock_timeout may be the CRM, which locks runs and messages in its own orders.
-- The limit is below the server's deadlock_timeout (1 s), so that in a deadlock the CRM's statement never fails: ours
-- gives up first, and is repeated.
-- Before version 18, a disabled scan that is used all the same, of an empty table, adds ten billion to the estimated
-- cost. A server that was built with LLVM then compiles the plan, anew at every call, for 20 to 60 ms. Hence jit = off
-- wherever scans are disabled: 6,000 messages on version 15 took 13.6 s, and take 4.9 s.
-- plan_cache_mode gives each connection one plan from the first call on; the server would otherwise plan each statement
-- five times, and some always: one message at a time, begin_parts 2.7 -> 1.1 ms, start_generating 1.1 -> 0.65.

-- May these leased messages go on? 'go', or why not, with their data. A run that people paused or cancelled stops its
-- messages at any stage: the part in flight is recorded and nothing more is sent. Once a text is partly sent, only a
-- pause of its inbox stops the message: half a message is worse than a late pause.
-- One statement and one look-up for all of them: the caller needs no other.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_verdicts(p_ids uuid[], p_tokens uuid[], p_needs_model boolean)
RETURNS TABLE (
    message_id uuid, verdict text, run_id uuid, config_id uuid, workspace_id uuid, lead_id uuid, conversation_id uuid,
    inbox_id uuid, phone_number text, source_column_id uuid, target_column_id uuid, begun boolean, has_parts boolean
) LANGUAGE plpgsql ROWS 20 AS $$
#variable_conflict use_column
DECLARE
    strange uuid[] := ARRAY(SELECT f.message_id FROM campaign_pipeline.campaign_foreign_rows(p_ids) f);
    any_    record;  -- which kinds of pause exist
    stopped uuid[];  -- by a person
    paused  uuid[];  -- by the circuit of a scope that they need
    waiting uuid[];  -- for review
BEGIN
    -- Usually there are none of these: then their statements are not even started.
    SELECT EXISTS (SELECT FROM campaign_pipeline.campaign_manual_pauses) AS by_person,
           EXISTS (SELECT FROM campaign_pipeline.campaign_pauses) AS by_circuit,
           EXISTS (SELECT FROM campaign_pipeline.campaign_settings s WHERE s.review <> 'none') AS by_review
    INTO any_;
    IF any_.by_person THEN
        stopped := campaign_pipeline.campaign_stopped_by_person(p_ids);
    END IF;
    IF any_.by_circuit THEN
        paused := campaign_pipeline.campaign_scope_paused(p_ids, p_needs_model);
    END IF;
    IF any_.by_review THEN
        waiting := ARRAY(SELECT m.id FROM public.campaign_messages m JOIN public.campaign_runs r ON r.id = m.run_id
                         WHERE m.id = ANY (p_ids)
                           AND campaign_pipeline.campaign_awaits_review(m.id, r.id, r.config_id, p_needs_model));
    END IF;
    RETURN QUERY
    SELECT i.id, CASE
               WHEN m.id IS NULL OR m.lease_token IS DISTINCT FROM i.token
                    OR NOT campaign_pipeline.campaign_is_leased(m.status)
                    OR m.lease_expires_at <= campaign_pipeline.campaign_now() THEN 'lost'
               WHEN i.id = ANY (strange) THEN 'foreign_workspace'
               -- Where the CRM's foreign key does not delete the message with its lead.
               WHEN l.id IS NULL AND NOT ledger.begun THEN 'lead_deleted'
               WHEN r.status <> 'running' THEN 'run_' || r.status
               -- Like a run that people paused: nothing more of a message, even if it has begun.
               WHEN i.id = ANY (stopped) THEN 'paused_by_person'
               -- Claimed ahead of its planned time, or replanned meanwhile: its text may be written, but not sent.
               WHEN NOT p_needs_model AND NOT ledger.begun
                    AND campaign_pipeline.campaign_due_at(m) > campaign_pipeline.campaign_now() THEN 'not_due'
               WHEN i.id = ANY (paused) THEN 'scope_paused'
               WHEN i.id = ANY (waiting) THEN 'awaiting_review'
               ELSE 'go'
           END,
           m.run_id, c.id, c.workspace_id, m.lead_id, m.conversation_id, COALESCE(m.inbox_id, c.inbox_id),
           m.phone_number, c.source_column_id, c.target_column_id, ledger.begun, ledger.has_parts
    FROM unnest(p_ids, p_tokens) AS i (id, token)
    LEFT JOIN public.campaign_messages m ON m.id = i.id
    LEFT JOIN public.campaign_runs r ON r.id = m.run_id
    LEFT JOIN public.campaign_configs c ON c.id = r.config_id
    LEFT JOIN public.leads l ON l.id = m.lead_id
    -- An aggregate, evaluated per message; EXISTS may read the whole ledger once per call.
    CROSS JOIN LATERAL (
        SELECT COALESCE(bool_or(p.status = 'sent'), false) AS begun, count(*) > 0 AS has_parts
        FROM campaign_pipeline.campaign_message_parts p WHERE p.message_id = i.id) ledger;
END $$;

-- Of these messages, those that a person stopped: their inbox, their workspace, or all sending.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_stopped_by_person(p_ids uuid[]) RETURNS uuid[]
LANGUAGE plpgsql STABLE
SET jit = off SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
BEGIN
    RETURN ARRAY(
        SELECT m.id
        FROM public.campaign_messages m
        LEFT JOIN public.campaign_runs r ON r.id = m.run_id
        LEFT JOIN public.campaign_configs c ON c.id = r.config_id
        WHERE m.id = ANY (p_ids) AND EXISTS (
            SELECT 1 FROM campaign_pipeline.campaign_manual_pauses h
            WHERE h.scope = 'all'
               OR (h.scope = 'workspace' AND h.scope_id = c.workspace_id::text)
               OR (h.scope = 'inbox' AND h.scope_id = COALESCE(m.inbox_id, c.inbox_id)::text)));
END $$;

-- Of these messages, those that need a scope whose circuit is open, except its own probe.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_scope_paused(p_ids uuid[], p_needs_model boolean) RETURNS uuid[]
LANGUAGE plpgsql STABLE
SET jit = off SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
BEGIN
    RETURN ARRAY(
        SELECT m.id
        FROM public.campaign_messages m
        LEFT JOIN public.campaign_runs r ON r.id = m.run_id
        LEFT JOIN public.campaign_configs c ON c.id = r.config_id
        CROSS JOIN LATERAL (
            SELECT COALESCE(bool_or(p.status = 'sent'), false) AS yes
            FROM campaign_pipeline.campaign_message_parts p WHERE p.message_id = m.id) begun
        WHERE m.id = ANY (p_ids) AND EXISTS (
            SELECT 1 FROM campaign_pipeline.campaign_pauses p
            WHERE (p.kind = 'systemic' OR p.until > campaign_pipeline.campaign_now())
              AND p.probe_message_id IS DISTINCT FROM m.id
              AND (   (p.scope = 'inbox' AND p.scope_id = COALESCE(m.inbox_id, c.inbox_id)::text)
                   -- A spending limit stops texts from being written, but not paid ones from being sent.
                   OR (p.scope = 'run' AND p.scope_id = r.id::text AND NOT begun.yes
                       AND (p_needs_model OR p.code <> 'spending_limit'))
                   OR (p_needs_model AND p.scope = 'workspace' AND p.scope_id = c.workspace_id::text)
                   -- The shared account; not for workspaces with their own key.
                   OR (p_needs_model AND p.scope = 'provider'
                       AND campaign_pipeline.campaign_own_key(c.workspace_id) IS NULL)
                   OR (p_needs_model AND p.scope = 'model' AND p.scope_id IN (
                        SELECT a.model FROM public.ai_agents a
                        WHERE a.workspace_id = c.workspace_id AND a.is_active)))));
END $$;

-- Before the model is called: still leased, run still running, nothing paused? Then status `generating`.
-- Items: {id, token}.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_start_generating(p_items jsonb)
RETURNS TABLE (message_id uuid, verdict text) LANGUAGE plpgsql
SET jit = off SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET plan_cache_mode = force_generic_plan SET lock_timeout = '800ms' AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH item AS MATERIALIZED (
        SELECT v.message_id AS id, v.verdict, g.tokens[array_position(g.ids, v.message_id)] AS token
        FROM (SELECT array_agg(i.id) AS ids, array_agg(i.token) AS tokens
              FROM jsonb_to_recordset(p_items) AS i (id uuid, token uuid)) g
        CROSS JOIN LATERAL campaign_pipeline.campaign_verdicts(g.ids, g.tokens, true) v
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
