-- What the language model's texts cost, against the limits of a campaign's run and of a workspace's day.
--
-- Texts are counted where they are kept. A limit that is reached becomes a pause of the run or the workspace, which
-- every question before a request to the model sees already: nothing is asked more often for it, and what is on its way
-- at that moment is all that can go beyond. Nothing is counted where no limit is set.

-- The key of a workspace's own account at the language model's provider; null: it uses the account that all share.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_own_key(p_workspace uuid) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT a.openrouter_api_key FROM public.ai_agents a
    WHERE a.workspace_id = p_workspace AND a.is_active AND a.model IS NOT NULL
    ORDER BY a.created_at DESC LIMIT 1
$$;

-- The day that a workspace's spending belongs to, and when it ends: in the time zone of its settings.
CREATE
    OR REPLACE FUNCTION campaign_pipeline.campaign_spending_day(p_settings jsonb, OUT day date, OUT ends_at timestamptz)
LANGUAGE plpgsql STABLE AS $$
DECLARE
    zone text := campaign_pipeline.campaign_known_zone(p_settings ->> 'timezone');
BEGIN
    day := (campaign_pipeline.campaign_now() AT TIME ZONE zone)::date;
    ends_at := (day + 1)::timestamp AT TIME ZONE zone;
END $$;

-- Count what was paid for texts that are kept now for the first time, and pause what has reached its limit.
-- Items: {id, ai_cost_usd}; p_ids: the messages that the caller holds. Called before their parts are written, since a
-- message that has parts was counted with them.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_note_spending(p_items jsonb, p_ids uuid[]) RETURNS void
    LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    bill  record;
    spent numeric;
BEGIN
    -- Two index probes a group of messages, and nothing else where no limit is set.
    IF NOT EXISTS (SELECT 1 FROM public.campaign_configs c WHERE c.max_cost_usd_per_run IS NOT NULL)
       AND NOT EXISTS (SELECT 1 FROM public.workspaces w WHERE w.max_cost_usd_per_day IS NOT NULL) THEN
        RETURN;
    END IF;
    FOR bill IN
        SELECT t.scope, t.scope_id, t.day, t.until, t.limit_usd, t.what, sum(i.ai_cost_usd) AS cost
        FROM jsonb_to_recordset(p_items) AS i (id uuid, ai_cost_usd numeric)
        JOIN public.campaign_messages m ON m.id = i.id
        JOIN public.campaign_runs r ON r.id = m.run_id
        JOIN public.campaign_configs c ON c.id = r.config_id
        LEFT JOIN public.workspaces w ON w.id = c.workspace_id
        CROSS JOIN LATERAL campaign_pipeline.campaign_spending_day(w.settings) d
        CROSS JOIN LATERAL (VALUES
            ('run', r.id, date '0001-01-01', timestamptz '9999-12-31Z', c.max_cost_usd_per_run,
             'run (campaign_configs.max_cost_usd_per_run)'),
            ('workspace', w.id, d.day, d.ends_at, w.max_cost_usd_per_day,
             'workspace and day (workspaces.max_cost_usd_per_day)')
        ) AS t (scope, scope_id, day, until, limit_usd, what)
        WHERE i.id = ANY (p_ids) AND i.ai_cost_usd > 0 AND t.limit_usd IS NOT NULL
          AND NOT EXISTS (SELECT 1 FROM campaign_pipeline.campaign_message_parts p WHERE p.message_id = i.id)
        GROUP BY t.scope, t.scope_id, t.day, t.until, t.limit_usd, t.what
        ORDER BY t.scope, t.scope_id  -- in one order, or two shards could wait for each other
    LOOP
        INSERT INTO campaign_pipeline.campaign_spending AS s (scope, scope_id, day, spent_usd)
            VALUES (bill.scope, bill.scope_id, bill.day, bill.cost)
        ON CONFLICT (scope, scope_id, day) DO UPDATE SET spent_usd = s.spent_usd + EXCLUDED.spent_usd
        RETURNING s.spent_usd INTO spent;
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

-- Whether a run, or a workspace today, has spent what it may.
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
            SELECT s.spent_usd >= w.max_cost_usd_per_day
            FROM public.workspaces w CROSS JOIN LATERAL campaign_pipeline.campaign_spending_day(w.settings) d
            JOIN campaign_pipeline.campaign_spending s ON s.scope = 'workspace' AND s.scope_id = w.id AND s.day = d.day
            WHERE w.id = p_scope_id::uuid)
    END, false)
$$;
