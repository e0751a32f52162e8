-- The cost of the language model's texts, against the limits per run of a campaign and per day of a workspace.
--
-- Costs are booked when texts are stored. Reaching a limit opens a pause of the run or the workspace, which every check
-- before a request to the model already reads: no further check is needed, and only requests in flight at that moment
-- can exceed the limit. A workspace's day is counted with or without a limit, so that a new limit counts from the start
-- of the day; a run's limit counts from the costs of its messages.

-- The key of a workspace's own account at the language model's provider; null: it uses the shared account.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_own_key(p_workspace uuid) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT a.openrouter_api_key FROM public.ai_agents a
    WHERE a.workspace_id = p_workspace AND a.is_active AND a.model IS NOT NULL
    ORDER BY a.created_at DESC LIMIT 1
$$;

-- The day of a workspace's spending, and its end, in the time zone of its settings.
CREATE
    OR REPLACE FUNCTION campaign_pipeline.campaign_spending_day(p_settings jsonb, OUT day date, OUT ends_at timestamptz)
LANGUAGE plpgsql STABLE AS $$
DECLARE
    zone text := campaign_pipeline.campaign_known_zone(p_settings ->> 'timezone');
BEGIN
    day := (campaign_pipeline.campaign_now() AT TIME ZONE zone)::date;
    ends_at := (day + 1)::timestamp AT TIME ZONE zone;
END $$;

-- Store the model calls that have a record of their own, once however often their item is repeated, and their effect on
-- the statistics of their model or run. Items: {id, text, asked_model, calls[{id, purpose, model, prompt_tokens,
-- completion_tokens, reasoning_tokens, cost_usd, rule, changed[], answer, about_model, cached_tokens,
-- cache_write_tokens, cache_saved_usd}]}: of messages that the caller holds or has lost.
-- Returns the newly booked cost, in US dollars by message.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_keep_model_calls(p_items campaign_pipeline.campaign_intent[])
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    booked jsonb;
BEGIN
    WITH call AS MATERIALIZED (
        SELECT i.id AS message_id, i.run_id, i.lead_id, c.*
        FROM unnest(p_items) AS i
        CROSS JOIN LATERAL jsonb_to_recordset(COALESCE(NULLIF(i.calls, 'null'), '[]')) AS c (
            id text, purpose text, model text, prompt_tokens integer, completion_tokens integer,
            reasoning_tokens integer, cost_usd numeric, rule text, changed text[], answer text, about_model boolean,
            reasons boolean, cached_tokens integer, cache_write_tokens integer, cache_saved_usd numeric)
    ), kept AS (
        INSERT INTO campaign_pipeline.campaign_model_calls AS k
            (id, message_id, run_id, lead_id, purpose, model, prompt_tokens, completion_tokens, reasoning_tokens,
             cost_usd, rule, changed, answer, cached_tokens, cache_write_tokens, cache_saved_usd, called_at)
        SELECT DISTINCT ON (call.id) call.id, call.message_id, call.run_id, call.lead_id, call.purpose, call.model,
               COALESCE(call.prompt_tokens, 0), COALESCE(call.completion_tokens, 0),
               COALESCE(call.reasoning_tokens, 0), call.cost_usd, call.rule,
               COALESCE(call.changed, '{}'), call.answer, COALESCE(call.cached_tokens, 0),
               COALESCE(call.cache_write_tokens, 0), call.cache_saved_usd, campaign_pipeline.campaign_now()
        FROM call ORDER BY call.id  -- in one order, to avoid deadlocks
        ON CONFLICT (id) DO NOTHING
        RETURNING k.id, k.message_id, k.rule, k.cost_usd
    ), bad AS (
        SELECT CASE WHEN call.about_model THEN 'model' ELSE 'run' END AS scope,
               CASE WHEN call.about_model THEN call.model ELSE call.run_id::text END AS scope_id,
               count(*)::integer AS refused, COALESCE(bool_or(call.reasons), false) AS reasons
        FROM kept JOIN call ON call.id = kept.id
        WHERE call.rule <> 'lease_lost' AND call.purpose = 'text'
        GROUP BY 1, 2 ORDER BY 1, 2
    ), recorded AS (
        INSERT INTO campaign_pipeline.campaign_text_records
            AS t (scope, scope_id, refused_in_a_row, reasons, changed_at)
        SELECT bad.scope, bad.scope_id, bad.refused, bad.reasons, campaign_pipeline.campaign_now() FROM bad
        ON CONFLICT (scope, scope_id) DO UPDATE
        SET refused_in_a_row = t.refused_in_a_row + EXCLUDED.refused_in_a_row, reasons = t.reasons OR EXCLUDED.reasons,
            changed_at = EXCLUDED.changed_at
    )
    SELECT jsonb_object_agg(b.message_id, b.cost) INTO booked
    FROM (SELECT kept.message_id, sum(kept.cost_usd) AS cost FROM kept
          WHERE kept.rule IS NOT NULL AND kept.cost_usd > 0 GROUP BY kept.message_id) b;
    RETURN COALESCE(booked, '{}');
END $$;

-- A usable text ends the streak of refused ones, of its model and of its run.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_note_good_texts(p_held campaign_pipeline.campaign_intent[])
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM campaign_pipeline.campaign_text_records t WHERE t.refused_in_a_row > 0) THEN
        RETURN;
    END IF;
    UPDATE campaign_pipeline.campaign_text_records t
    SET refused_in_a_row = 0, changed_at = campaign_pipeline.campaign_now()
    FROM (SELECT t.scope, t.scope_id FROM campaign_pipeline.campaign_text_records t
          WHERE t.refused_in_a_row > 0 AND (t.scope, t.scope_id) IN (
              SELECT s.scope, s.scope_id
              FROM unnest(p_held) AS i
              CROSS JOIN LATERAL (VALUES ('model', i.asked_model), ('run', i.run_id::text)) AS s (scope, scope_id)
              WHERE i.asked_model IS NOT NULL AND i.text IS NOT NULL)
          ORDER BY t.scope, t.scope_id FOR UPDATE) good
    WHERE t.scope = good.scope AND t.scope_id = good.scope_id;
END $$;

-- Book costs, and open a pause where a limit is reached. Bills: {id, cost} by message, each passed only once: a text's
-- cost when it is first stored, and what campaign_keep_model_calls booked.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_note_spending(p_bills jsonb) RETURNS void
    LANGUAGE plpgsql
SET jit = off SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    bill   record;
    before numeric;  -- a run's spending when it got its limit
    spent  numeric;
BEGIN
    FOR bill IN
        WITH cost AS MATERIALIZED (
            SELECT r.id AS run_id, r.config_id, sum(i.cost) AS usd
            FROM jsonb_to_recordset(p_bills) AS i (id uuid, cost numeric)
            JOIN public.campaign_messages m ON m.id = i.id
            JOIN public.campaign_runs r ON r.id = m.run_id
            WHERE i.cost > 0
            GROUP BY r.id, r.config_id
        )
        SELECT 'run' AS scope, k.run_id AS scope_id, date '0001-01-01' AS day, timestamptz '9999-12-31Z' AS until,
               c.max_cost_usd_per_run AS limit_usd, 'run (campaign_configs.max_cost_usd_per_run)' AS what, k.usd
        FROM cost k JOIN public.campaign_configs c ON c.id = k.config_id
        WHERE c.max_cost_usd_per_run IS NOT NULL
        UNION ALL
        SELECT 'workspace', w.id, d.day, d.ends_at, w.max_cost_usd_per_day,
               'workspace and day (workspaces.max_cost_usd_per_day)', s.usd
        FROM (SELECT c.workspace_id, sum(k.usd) AS usd
              FROM cost k JOIN public.campaign_configs c ON c.id = k.config_id GROUP BY c.workspace_id) s
        JOIN public.workspaces w ON w.id = s.workspace_id
        CROSS JOIN LATERAL campaign_pipeline.campaign_spending_day(w.settings) d
        ORDER BY 1, 2  -- in one order, to avoid deadlocks
    LOOP
        before := 0;
        IF bill.scope = 'run' AND NOT EXISTS (
            SELECT 1 FROM campaign_pipeline.campaign_spending s
            WHERE s.scope = 'run' AND s.scope_id = bill.scope_id) THEN
            SELECT COALESCE(sum(m.ai_cost_usd), 0) INTO before
            FROM public.campaign_messages m WHERE m.run_id = bill.scope_id;
        END IF;
        -- Without a limit nobody reads the sum now: it is spread over several rows, so that shards do not wait for each
        -- other.
        INSERT INTO campaign_pipeline.campaign_spending AS s (scope, scope_id, day, slot, spent_usd)
        VALUES (bill.scope, bill.scope_id, bill.day,
                CASE WHEN bill.limit_usd IS NULL THEN 1 + pg_backend_pid() % 16 ELSE 0 END, before + bill.usd)
        ON CONFLICT (scope, scope_id, day, slot) DO UPDATE SET spent_usd = s.spent_usd + bill.usd;
        CONTINUE WHEN bill.limit_usd IS NULL;
        SELECT sum(s.spent_usd) INTO spent FROM campaign_pipeline.campaign_spending s
        WHERE s.scope = bill.scope AND s.scope_id = bill.scope_id AND s.day = bill.day;
        CONTINUE WHEN spent < bill.limit_usd;
        INSERT INTO campaign_pipeline.campaign_pauses AS p (scope, scope_id, kind, code, reason, since, until)
        VALUES (bill.scope, bill.scope_id::text, 'systemic', 'spending_limit',
                format('The texts of this %s cost %s US dollars, of %s that they may; %s.', bill.what, round(spent, 4),
                       bill.limit_usd,
                       CASE bill.scope WHEN 'run' THEN 'raise the limit and it goes on by itself'
                                       ELSE 'it goes on by itself tomorrow, or once the limit is raised' END),
                campaign_pipeline.campaign_now(), bill.until)
        ON CONFLICT (scope, scope_id) DO UPDATE
        SET kind = EXCLUDED.kind, code = EXCLUDED.code, reason = EXCLUDED.reason, until = EXCLUDED.until,
            since = CASE WHEN p.code = EXCLUDED.code THEN p.since ELSE EXCLUDED.since END,
            failures = 1, probe_message_id = NULL;
    END LOOP;
END $$;

-- Whether a run, or a workspace today, has reached its limit.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_limit_reached(p_scope text, p_scope_id text) RETURNS boolean
    LANGUAGE sql STABLE AS $$
    SELECT COALESCE(CASE p_scope
        WHEN 'run' THEN (
            SELECT s.spent_usd >= c.max_cost_usd_per_run
            FROM public.campaign_runs r JOIN public.campaign_configs c ON c.id = r.config_id
            JOIN campaign_pipeline.campaign_spending s ON s.scope = 'run' AND s.scope_id = r.id
                AND s.day = date '0001-01-01'
            WHERE r.id = p_scope_id::uuid)
        WHEN 'workspace' THEN (
            SELECT w.max_cost_usd_per_day <= (
                SELECT sum(s.spent_usd) FROM campaign_pipeline.campaign_spending s
                WHERE s.scope = 'workspace' AND s.scope_id = w.id AND s.day = d.day)
            FROM public.workspaces w CROSS JOIN LATERAL campaign_pipeline.campaign_spending_day(w.settings) d
            WHERE w.id = p_scope_id::uuid)
    END, false)
$$;
