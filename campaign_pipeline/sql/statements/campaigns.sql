-- Statements for campaign files, lead imports and daily plans. See campaign_pipeline/campaigns/.

-- name: lock_campaign_files
-- Serialise applying files and importing lists: missing objects are searched for and then created.
SELECT pg_advisory_xact_lock(hashtextextended('campaign_pipeline campaign files', 0));

-- name: look_at_campaign_tables
-- The CRM's table layout: whether campaigns have names, one campaign per workspace, and workspaces an owner.
SELECT campaign_pipeline.campaign_is_planner() AS has_names,
       EXISTS (SELECT FROM pg_catalog.pg_index i JOIN pg_catalog.pg_attribute a
                   ON a.attrelid = i.indrelid AND a.attname = 'workspace_id' AND i.indkey::text = a.attnum::text
               WHERE i.indrelid = 'public.campaign_configs'::regclass AND i.indisunique) AS one_a_workspace,
       EXISTS (SELECT FROM pg_catalog.pg_attribute a
               WHERE a.attrelid = 'public.workspaces'::regclass AND a.attname = 'owner_id' AND a.attnotnull)
           AS needs_owner;

-- name: find_workspaces
-- Workspaces by name.
SELECT w.id, w.name, COALESCE(w.settings ->> 'timezone', 'America/Sao_Paulo') AS timezone, w.max_cost_usd_per_day,
       w.one_message_per_lead_per_day, w.number_rest_hours, agent.id AS agent_id, agent.name AS agent_name, agent.model,
       agent.fallback_models, agent.system_prompt
FROM public.workspaces w
LEFT JOIN LATERAL (SELECT a.* FROM public.ai_agents a WHERE a.workspace_id = w.id AND a.is_active
                   ORDER BY a.model IS NULL, a.created_at DESC LIMIT 1) agent ON true
WHERE w.name = %(name)s ORDER BY w.created_at, w.id;

-- name: insert_workspace
-- A new tenant. Its slug is its name without accents and spaces, plus a part of its id.
INSERT INTO public.workspaces (id, name, slug) VALUES (%(id)s, %(name)s, %(slug)s);

-- name: update_workspace
-- Update the tenant's own fields from the file.
UPDATE public.workspaces
SET settings = COALESCE(settings, '{}') || jsonb_build_object('timezone', %(timezone)s::text),
    max_cost_usd_per_day = %(max_cost_usd_per_day)s, one_message_per_lead_per_day = %(one_message_per_lead_per_day)s,
    number_rest_hours = %(number_rest_hours)s
WHERE id = %(id)s;

-- name: insert_agent
-- The agent that writes for the workspace.
INSERT INTO public.ai_agents (id, workspace_id, is_active) VALUES (%(id)s, %(workspace_id)s, true);

-- name: update_agent
-- Update its model and persona.
UPDATE public.ai_agents
SET name = %(name)s, model = %(model)s, fallback_models = %(fallback_models)s, system_prompt = %(system_prompt)s
WHERE id = %(id)s;

-- name: list_campaign_inboxes
-- The inboxes of a workspace, each with its instance and its pace.
SELECT b.id, b.name, i.id AS instance_id, i.provider_type, i.name AS instance, i.provider_config,
       i.instance_token IS NOT NULL OR i.api_key IS NOT NULL AS has_own_key,
       p.inbox_id IS NOT NULL AS has_pace, p.min_gap_seconds, p.jitter, p.hourly_limit, p.daily_limit, p.warm_up_from,
       p.pause_after, p.pause_seconds, p.timezone,
       p.quiet_from + interval '0' AS quiet_from, p.quiet_until + interval '0' AS quiet_until  -- 24:00 as 00:00
FROM public.inboxes b
LEFT JOIN LATERAL (
    SELECT i.* FROM public.inbox_instances x JOIN public.instances i ON i.id = x.instance_id
    WHERE x.inbox_id = b.id AND NOT campaign_pipeline.campaign_is_foreign(i.workspace_id, b.workspace_id)
    ORDER BY (i.status = 'connected') DESC NULLS LAST, i.last_connected_at DESC NULLS LAST, i.id LIMIT 1) i ON true
LEFT JOIN campaign_pipeline.campaign_inbox_pace p ON p.inbox_id = b.id
WHERE b.workspace_id = %(workspace_id)s ORDER BY b.created_at, b.id;

-- name: insert_inbox
-- A new inbox.
INSERT INTO public.inboxes (id, workspace_id, name) VALUES (%(id)s, %(workspace_id)s, %(name)s);

-- name: insert_instance
-- Its number or mailbox, as connected: the operator declares it so, and a provider's different answer overrides this.
INSERT INTO public.instances (id, workspace_id, name, status, last_connected_at)
VALUES (%(id)s, %(workspace_id)s, %(instance)s, 'connected', campaign_pipeline.campaign_now());

-- name: link_instance
-- Let the inbox send through the instance.
INSERT INTO public.inbox_instances (inbox_id, instance_id) VALUES (%(inbox_id)s, %(instance_id)s);

-- name: update_instance
-- Update the file's fields; the CRM's other settings stay.
UPDATE public.instances
SET name = %(instance)s, provider = %(channel)s, provider_type = %(provider)s,
    provider_config = (COALESCE(provider_config, '{}') - %(unset)s::text[]) || %(provider_config)s
WHERE id = %(id)s;

-- name: save_inbox_pace
-- Set the pace of the inbox.
INSERT INTO campaign_pipeline.campaign_inbox_pace AS p
    (inbox_id, min_gap_seconds, jitter, hourly_limit, daily_limit, warm_up_from, pause_after, pause_seconds, quiet_from,
     quiet_until, timezone)
VALUES (%(inbox_id)s, %(min_gap_seconds)s, %(jitter)s, %(hourly_limit)s, %(daily_limit)s, %(warm_up_from)s,
        %(pause_after)s, %(pause_seconds)s, %(quiet_from)s, %(quiet_until)s, %(timezone)s)
ON CONFLICT (inbox_id) DO UPDATE
SET (min_gap_seconds, jitter, hourly_limit, daily_limit, warm_up_from, pause_after, pause_seconds, quiet_from,
     quiet_until, timezone)
    = ROW (EXCLUDED.min_gap_seconds, EXCLUDED.jitter, EXCLUDED.hourly_limit, EXCLUDED.daily_limit,
           EXCLUDED.warm_up_from, EXCLUDED.pause_after, EXCLUDED.pause_seconds, EXCLUDED.quiet_from,
           EXCLUDED.quiet_until, EXCLUDED.timezone);

-- name: drop_inbox_pace
-- Remove the pace: as fast as possible.
DELETE FROM campaign_pipeline.campaign_inbox_pace WHERE inbox_id = %(inbox_id)s;

-- name: list_funnel_columns
-- The sales funnels of a workspace and their columns, in order.
SELECT f.id AS funnel_id, f.name AS funnel, k.id AS column_id, k.title AS column
FROM public.funnels f LEFT JOIN public.funnel_columns k ON k.funnel_id = f.id
WHERE f.workspace_id = %(workspace_id)s ORDER BY f.position NULLS LAST, f.id, k.position NULLS LAST, k.id;

-- name: insert_funnel
-- A new funnel, after the others.
INSERT INTO public.funnels (id, workspace_id, name, position)
SELECT %(id)s, %(workspace_id)s, %(name)s, count(*) + 1 FROM public.funnels f WHERE f.workspace_id = %(workspace_id)s;

-- name: insert_funnel_column
-- A new column, after the others of its funnel.
INSERT INTO public.funnel_columns (id, funnel_id, title, position)
SELECT %(id)s, %(funnel_id)s, %(title)s, count(*) + 1 FROM public.funnel_columns k WHERE k.funnel_id = %(funnel_id)s;

-- name: list_campaigns
-- The campaigns of a workspace, with the file's field names; null: of all workspaces.
SELECT c.id, c.workspace_id, w.name AS workspace, COALESCE(s.name, to_jsonb(c) ->> 'name') AS name,
       c.is_active AS active,
       c.inbox_id, b.name AS inbox, c.source_funnel_id, f.name AS funnel, c.source_column_id, source.title AS column,
       target.title AS moved_to, COALESCE(s.lead_tags, '{}') AS tags, c.ai_instructions AS instructions,
       c.start_time::text AS opens, c.end_time::text AS closes, c.timezone, c.frequency, s.weekdays,
       COALESCE(s.holidays, '{}') AS holidays, c.min_interval_seconds AS interval_seconds, c.daily_limit,
       c.max_cost_usd_per_run, COALESCE(c.split_messages, false) AS split, c.max_split_parts AS max_parts,
       COALESCE(s.review, 'none') AS review, s.review_first, c.when_inbox_down,
       ARRAY(SELECT COALESCE(o.name, u.id::text) FROM unnest(c.fallback_inbox_ids) WITH ORDINALITY AS u (id, place)
             LEFT JOIN public.inboxes o ON o.id = u.id ORDER BY u.place) AS fallback_inboxes,
       c.template_name, c.template_language, c.template_variables, c.template_body,
       campaign_pipeline.campaign_now() AS now
FROM public.campaign_configs c
LEFT JOIN public.workspaces w ON w.id = c.workspace_id
LEFT JOIN campaign_pipeline.campaign_settings s ON s.config_id = c.id
LEFT JOIN public.inboxes b ON b.id = c.inbox_id
LEFT JOIN public.funnels f ON f.id = c.source_funnel_id
LEFT JOIN public.funnel_columns source ON source.id = c.source_column_id
LEFT JOIN public.funnel_columns target ON target.id = c.target_column_id
WHERE %(workspace_id)s::uuid IS NULL OR c.workspace_id = %(workspace_id)s
ORDER BY c.created_at, c.id;

-- name: insert_campaign
-- A new campaign; its fields follow.
INSERT INTO public.campaign_configs (id, workspace_id, inbox_id, source_funnel_id, source_column_id, target_column_id,
                                     is_active)
VALUES (%(id)s, %(workspace_id)s, %(inbox_id)s, %(funnel_id)s, %(column_id)s, %(moved_to_id)s, false);

-- name: update_campaign
-- Update the campaign fields for which the CRM's table has a column.
UPDATE public.campaign_configs
SET inbox_id = %(inbox_id)s, source_funnel_id = %(funnel_id)s, source_column_id = %(column_id)s,
    target_column_id = %(moved_to_id)s, ai_instructions = %(instructions)s, frequency = %(frequency)s,
    start_time = %(opens)s, end_time = %(closes)s, timezone = %(timezone)s, daily_limit = %(daily_limit)s,
    min_interval_seconds = %(interval_seconds)s, split_messages = %(split)s, max_split_parts = %(max_parts)s,
    max_cost_usd_per_run = %(max_cost_usd_per_run)s, fallback_inbox_ids = %(fallback_inbox_ids)s,
    when_inbox_down = %(when_inbox_down)s, template_name = %(template_name)s, template_language = %(template_language)s,
    template_variables = %(template_variables)s, template_body = %(template_body)s, is_active = %(active)s
WHERE id = %(id)s;

-- name: name_campaign
-- Set its name, if the table has a column for it.
SELECT campaign_pipeline.campaign_set_name(%(id)s, %(name)s);

-- name: save_campaign_settings
-- Set the fields for which the CRM's table has no column.
INSERT INTO campaign_pipeline.campaign_settings AS s
    (config_id, name, weekdays, holidays, lead_tags, review, review_first)
VALUES (%(id)s, %(name)s, %(weekdays)s, %(holidays)s, %(tags)s, %(review)s, %(review_first)s)
ON CONFLICT (config_id) DO UPDATE
SET (name, weekdays, holidays, lead_tags, review, review_first)
    = ROW (EXCLUDED.name, EXCLUDED.weekdays, EXCLUDED.holidays, EXCLUDED.lead_tags, EXCLUDED.review,
           EXCLUDED.review_first);

-- name: make_ids
-- New ids for leads, in order.
SELECT campaign_pipeline.campaign_new_id() AS id FROM generate_series(1, %(count)s);

-- name: list_known_numbers
-- The numbers of a workspace's leads, canonicalised.
SELECT DISTINCT campaign_pipeline.campaign_canonical_address(l.phone) AS number
FROM public.leads l WHERE l.workspace_id = %(workspace_id)s AND l.phone <> '';

-- name: list_known_emails
-- The e-mail addresses of a workspace's leads, with or without a number.
SELECT lower(btrim(l.email)) AS email FROM public.leads l WHERE l.workspace_id = %(workspace_id)s AND l.email <> ''
UNION
SELECT lower(btrim(v.value)) FROM public.custom_fields f JOIN public.lead_custom_values v ON v.custom_field_id = f.id
WHERE f.workspace_id = %(workspace_id)s AND lower(f.name) IN ('email', 'e-mail') AND v.value <> '';

-- name: list_custom_fields
-- The custom fields of a workspace.
SELECT f.id, f.name FROM public.custom_fields f WHERE f.workspace_id = %(workspace_id)s ORDER BY f.position, f.id;

-- name: insert_custom_field
-- A new custom field, after the others.
INSERT INTO public.custom_fields (id, workspace_id, name, field_type, position)
SELECT %(id)s, %(workspace_id)s, %(name)s, 'text', count(*) + 1
FROM public.custom_fields f WHERE f.workspace_id = %(workspace_id)s;

-- name: take_planned_day
-- Lock the row of a campaign's day, creating it if missing: a concurrent plan of the same day waits for the commit.
INSERT INTO campaign_pipeline.campaign_planned_days AS d (config_id, day, planned_at)
VALUES (%(config_id)s, %(day)s, campaign_pipeline.campaign_now())
ON CONFLICT (config_id, day) DO UPDATE SET planned_at = EXCLUDED.planned_at
RETURNING d.run_id;

-- name: lock_planned_inbox
-- Campaigns of one inbox are planned one after the other, because each needs the due times of the others.
SELECT pg_advisory_xact_lock(hashtextextended('campaign_pipeline plan ' || %(inbox_id)s::uuid, 0));

-- name: find_run_of_day
-- A campaign's run for a day: ours first, else another planner's.
SELECT r.id, COALESCE(r.name, r.id::text) AS name, r.status, r.id IS NOT DISTINCT FROM %(run_id)s::uuid AS ours
FROM public.campaign_runs r
WHERE r.config_id = %(config_id)s AND (r.id = %(run_id)s OR (r.run_date = %(day)s AND r.status <> 'cancelled'))
ORDER BY r.id IS DISTINCT FROM %(run_id)s::uuid LIMIT 1;

-- name: look_at_campaign_day
-- The messages that a campaign already has on a day, from p_from until p_until, and its inbox's capacity.
SELECT campaign_pipeline.campaign_now() AS now,
       (SELECT count(*) FROM public.campaign_runs r JOIN public.campaign_messages m ON m.run_id = r.id
        WHERE r.config_id = %(config_id)s
          AND CASE WHEN m.status IN ('sent', 'replied') THEN m.sent_at >= %(since)s AND m.sent_at < %(until)s
                   ELSE r.status IN ('running', 'paused')
                        AND (m.status = 'pending' OR campaign_pipeline.campaign_is_leased_indexed(m.status))
                        AND campaign_pipeline.campaign_due_at(m) < %(until)s END) AS used,
       (SELECT max(m.scheduled_at) FROM public.campaign_runs r JOIN public.campaign_messages m ON m.run_id = r.id
        WHERE r.config_id = %(config_id)s AND m.status NOT IN ('failed', 'skipped')
          AND m.scheduled_at >= %(since)s AND m.scheduled_at < %(until)s) AS last_due,
       p.min_gap_seconds, p.jitter, p.hourly_limit, p.pause_after, p.pause_seconds, p.timezone,
       p.quiet_from + interval '0' AS quiet_from, p.quiet_until + interval '0' AS quiet_until,  -- 24:00 as 00:00
       least(p.daily_limit, CASE WHEN p.warm_up_from IS NOT NULL THEN (
           SELECT w.daily_limit FROM campaign_pipeline.campaign_warm_up_ramp w
           WHERE w.from_day <= greatest(1, %(day)s - p.warm_up_from + 1) ORDER BY w.from_day DESC LIMIT 1) END)
           AS inbox_limit,
       CASE WHEN x.day = %(day)s THEN x.day_count ELSE 0 END AS inbox_used,
       (SELECT COALESCE(array_agg(w.due ORDER BY w.due), '{}') FROM (
            SELECT campaign_pipeline.campaign_due_at(m) AS due
            FROM public.campaign_configs c
            JOIN public.campaign_runs r ON r.config_id = c.id AND r.status IN ('running', 'paused')
            JOIN public.campaign_messages m ON m.run_id = r.id
                AND (m.status = 'pending' OR campaign_pipeline.campaign_is_leased_indexed(m.status))
            WHERE COALESCE(r.active_inbox_id, c.inbox_id) = %(inbox_id)s) w
        WHERE w.due < %(until)s) AS taken
FROM (SELECT 1) one
LEFT JOIN campaign_pipeline.campaign_inbox_pace p ON p.inbox_id = %(inbox_id)s
LEFT JOIN campaign_pipeline.campaign_pace_state x ON x.scope = 'inbox' AND x.scope_id = %(inbox_id)s;

-- name: pick_leads
-- The leads of a campaign's column and tags that it has not contacted: how many may be contacted, the first of them,
-- and how many may not, by reason. A message that was skipped as too old does not count.
WITH candidate AS MATERIALIZED (
    SELECT l.id, l.phone, l.email, l.created_at, c.workspace_id, c.inbox_id,
           campaign_pipeline.campaign_inbox_channel(c.inbox_id) AS channel,
           campaign_pipeline.campaign_canonical_address(l.phone) AS number
    FROM public.campaign_configs c
    LEFT JOIN campaign_pipeline.campaign_settings s ON s.config_id = c.id
    JOIN public.leads l ON l.column_id = c.source_column_id AND l.workspace_id = c.workspace_id
    WHERE c.id = %(config_id)s AND (COALESCE(s.lead_tags, '{}') = '{}' OR l.tags && s.lead_tags)
      AND l.id NOT IN (
        SELECT m.lead_id FROM public.campaign_runs r JOIN public.campaign_messages m ON m.run_id = r.id
        WHERE r.config_id = %(config_id)s AND m.lead_id IS NOT NULL
          AND NOT (m.status = 'skipped' AND COALESCE(m.error_code, '') IN ('too_old', 'run_cancelled')))
), judged AS MATERIALIZED (
    SELECT k.id, k.phone, k.created_at, CASE
        WHEN CASE k.channel WHEN 'email' THEN COALESCE(k.email, '') = '' AND NOT EXISTS (
                SELECT 1 FROM public.lead_custom_values v JOIN public.custom_fields f ON f.id = v.custom_field_id
                WHERE v.lead_id = k.id AND lower(f.name) IN ('email', 'e-mail') AND v.value <> '')
            ELSE k.number IS NULL END THEN 'no_address'
        WHEN EXISTS (SELECT 1 FROM campaign_pipeline.campaign_suppressions s WHERE s.lifted_at IS NULL) AND EXISTS (
            SELECT 1 FROM campaign_pipeline.campaign_suppressions s
            WHERE s.lifted_at IS NULL
              AND (s.lead_id = k.id OR s.address_hash IN (campaign_pipeline.campaign_address_hash(k.phone),
                                                          campaign_pipeline.campaign_address_hash(k.email)))
              AND (s.scope = 'global' OR (s.workspace_id = k.workspace_id
                                          AND (s.scope = 'workspace' OR s.channel = k.channel)))) THEN 'suppressed'
        WHEN k.channel = 'whatsapp' AND row_number() OVER (PARTITION BY k.number ORDER BY k.created_at, k.id) > 1
            THEN 'same_number'
        WHEN (k.channel = 'whatsapp' AND w.number_rest_hours > 0 AND EXISTS (
                SELECT 1 FROM campaign_pipeline.campaign_number_contacts n
                WHERE n.workspace_id = k.workspace_id AND n.number = k.number
                  AND n.contacted_at + make_interval(hours => w.number_rest_hours) > %(until)s))
             OR (w.one_message_per_lead_per_day AND EXISTS (
                SELECT 1 FROM campaign_pipeline.campaign_lead_days d WHERE d.lead_id = k.id AND d.day = %(day)s))
             OR ((w.number_rest_hours > 0 OR w.one_message_per_lead_per_day) AND k.id IN (
                SELECT m.lead_id FROM public.campaign_configs c
                JOIN public.campaign_runs r ON r.config_id = c.id AND r.status IN ('running', 'paused')
                JOIN public.campaign_messages m ON m.run_id = r.id
                    AND (m.status = 'pending' OR campaign_pipeline.campaign_is_leased_indexed(m.status))
                    AND m.lead_id IS NOT NULL
                WHERE c.workspace_id = k.workspace_id)) THEN 'contacted_by_another'
        END AS refused
    FROM candidate k JOIN public.workspaces w ON w.id = k.workspace_id
)
SELECT (SELECT count(*) FROM judged j WHERE j.refused IS NULL) AS free,
       (SELECT COALESCE(jsonb_object_agg(n.refused, n.leads), '{}')
        FROM (SELECT j.refused, count(*) AS leads FROM judged j WHERE j.refused IS NOT NULL GROUP BY j.refused) n)
           AS refused,
       ARRAY(SELECT j.id FROM judged j WHERE j.refused IS NULL ORDER BY j.created_at, j.id LIMIT %(most)s) AS lead_ids;

-- name: insert_planned_run
-- The run of a campaign's day.
INSERT INTO public.campaign_runs (id, config_id, name, status, run_date, started_at, leads_total)
VALUES (campaign_pipeline.campaign_new_id(), %(config_id)s, %(name)s, 'running', %(day)s,
        campaign_pipeline.campaign_now(), 0)
RETURNING id;

-- name: insert_planned_messages
-- One message per lead, with its due time. In this order, so that messages that are claimed together lie together.
INSERT INTO public.campaign_messages (id, run_id, lead_id, phone_number, scheduled_at)
SELECT campaign_pipeline.campaign_new_id(), %(run_id)s, d.lead_id, d.phone, d.due
FROM (SELECT p.lead_id, l.phone, p.due
      FROM unnest(%(lead_ids)s::uuid[], %(times)s::timestamptz[]) AS p (lead_id, due)
      JOIN public.leads l ON l.id = p.lead_id
      ORDER BY p.due, p.lead_id) d;

-- name: note_planned_run
-- Link the day to its run, and add to its number of leads.
WITH day AS (
    UPDATE campaign_pipeline.campaign_planned_days SET run_id = %(run_id)s
    WHERE config_id = %(config_id)s AND day = %(day)s
)
UPDATE public.campaign_runs SET leads_total = COALESCE(leads_total, 0) + %(added)s WHERE id = %(run_id)s;

-- name: log_plan
-- Log who planned what.
INSERT INTO public.campaign_logs (run_id, step_number, step_name, level, message, details, created_at)
VALUES (%(run_id)s, 0, 'plan', 'info', %(message)s, %(details)s, campaign_pipeline.campaign_now());

-- name: list_campaigns_to_plan
-- The active campaigns of campaign files; other campaigns are planned by their own creators.
SELECT c.id, COALESCE(s.name, to_jsonb(c) ->> 'name', c.id::text) AS name
FROM public.campaign_configs c JOIN campaign_pipeline.campaign_settings s ON s.config_id = c.id
WHERE c.is_active AND s.name IS NOT NULL ORDER BY c.created_at, c.id;

-- name: find_runs
-- The runs with a campaign's or a run's name or id: running ones first, the newest first.
SELECT r.id, COALESCE(r.name, r.id::text) AS name, r.status, r.config_id, c.workspace_id, c.inbox_id,
       COALESCE(s.name, to_jsonb(c) ->> 'name') AS campaign, COALESCE(s.review, 'none') AS review, s.review_first
FROM public.campaign_runs r
JOIN public.campaign_configs c ON c.id = r.config_id
LEFT JOIN campaign_pipeline.campaign_settings s ON s.config_id = c.id
WHERE r.status IN ('running', 'paused')
  AND %(wanted)s IN (r.id::text, r.name, COALESCE(s.name, to_jsonb(c) ->> 'name'), c.id::text)
ORDER BY r.status = 'running' DESC, r.run_date DESC NULLS LAST, r.started_at DESC NULLS LAST, r.id;

-- name: list_next_messages
-- The next messages of a run without a lease or a sent part, as a shard would read them.
SELECT m.id, m.run_id, r.config_id, c.workspace_id, COALESCE(r.active_inbox_id, c.inbox_id) AS inbox_id, m.lead_id,
       m.phone_number, m.generated_message AS text, m.subject, m.template, m.retry_count, '[]'::jsonb AS parts,
       '1970-01-01Z'::timestamptz AS due_at, campaign_pipeline.campaign_due_at(m) AS planned_at,
       ARRAY(SELECT p.text FROM campaign_pipeline.campaign_message_parts p WHERE p.message_id = m.id
             ORDER BY p.part_no) AS kept_parts,
       l.client_name AS lead, campaign_pipeline.campaign_now() AS now
FROM public.campaign_messages m
JOIN public.campaign_runs r ON r.id = m.run_id
JOIN public.campaign_configs c ON c.id = r.config_id
LEFT JOIN public.leads l ON l.id = m.lead_id
WHERE m.run_id = %(run_id)s AND m.status = 'pending' AND (NOT %(unwritten)s OR m.generated_message IS NULL)
  AND NOT EXISTS (SELECT 1 FROM campaign_pipeline.campaign_message_parts p
                  WHERE p.message_id = m.id AND p.status <> 'planned')
-- In the planned order: messages that wait for review were postponed.
ORDER BY COALESCE(m.scheduled_at, m.created_at), m.id LIMIT %(most)s;

-- name: keep_texts
-- Store texts that were written ahead; returns those stored (see campaign_keep_texts).
SELECT k.message_id FROM campaign_pipeline.campaign_keep_texts(%(items)s) AS k (message_id);

-- name: note_trial_costs
-- Book the cost of texts that were not stored.
SELECT campaign_pipeline.campaign_note_spending(%(items)s);

-- name: list_reviews
-- The texts of a run that wait for review, by due time.
SELECT m.id, l.client_name AS lead, m.generated_message AS text, m.subject,
       COALESCE(m.scheduled_at, m.created_at) AS planned_at, m.ai_cost_usd AS cost_usd, m.ai_model AS model
FROM public.campaign_messages m
JOIN public.campaign_runs r ON r.id = m.run_id
LEFT JOIN public.leads l ON l.id = m.lead_id
WHERE m.run_id = %(run_id)s AND m.status = 'pending' AND m.generated_message IS NOT NULL
  AND campaign_pipeline.campaign_awaits_review(m.id, m.run_id, r.config_id, false)
  AND NOT EXISTS (SELECT 1 FROM campaign_pipeline.campaign_message_parts p
                  WHERE p.message_id = m.id AND p.status <> 'planned')
ORDER BY COALESCE(m.scheduled_at, m.created_at), m.id LIMIT %(most)s;

-- name: list_awaited_reviews
-- The running runs with messages that wait for a review, the number of these, and since when the first one is due.
SELECT r.id AS run_id, COALESCE(r.name, r.id::text) AS name, count(*) AS messages,
       LEAST(min(COALESCE(m.scheduled_at, m.created_at)), campaign_pipeline.campaign_now()) AS since
FROM campaign_pipeline.campaign_settings s
JOIN public.campaign_runs r ON r.config_id = s.config_id AND r.status = 'running'
JOIN public.campaign_messages m ON m.run_id = r.id AND m.status = 'pending' AND m.error_code = 'awaiting_review'
WHERE s.review <> 'none'
GROUP BY r.id ORDER BY r.id;

-- name: count_decided
-- How many texts of a run are decided.
SELECT count(*) AS decided FROM campaign_pipeline.campaign_reviews v WHERE v.run_id = %(run_id)s;

-- name: decide_reviews
-- Record decisions on texts (see campaign_decide_reviews), and who made them, in the campaign log.
WITH decided AS (
    SELECT d.message_id FROM campaign_pipeline.campaign_decide_reviews(%(items)s, %(by)s) AS d (message_id)
), logged AS (
    INSERT INTO public.campaign_logs (id, run_id, step_number, step_name, level, message, lead_id, message_id,
                                      created_at)
    SELECT campaign_pipeline.campaign_new_id(), m.run_id, 0, 'review', 'info',
           format('%%s: %%s%%s.', %(by)s::text, i.decision,
               CASE WHEN i.text IS NOT NULL THEN ' with another text' ELSE '' END),
           (SELECT l.id FROM public.leads l WHERE l.id = m.lead_id), m.id, campaign_pipeline.campaign_now()
    FROM decided JOIN public.campaign_messages m ON m.id = decided.message_id
    JOIN jsonb_to_recordset(%(items)s) AS i (id uuid, decision text, text text) ON i.id = m.id
)
SELECT decided.message_id FROM decided;
