-- Read-only statements for the operator, on the command line and in the UI. Their callers mask names of leads,
-- addresses and texts.

-- name: overview_runs
-- Campaign runs with progress and pace, running ones first. Triggers maintain the counters; waiting and recently sent
-- messages are counted by index. `sent_last_hour` counts this run alone.
SELECT r.id AS run_id, COALESCE(NULLIF(r.name, ''), NULLIF(b.name, ''), w.name, 'unnamed') AS name, r.status,
       w.name AS workspace, r.config_id, COALESCE(r.active_inbox_id, c.inbox_id) AS inbox_id, b.name AS inbox,
       r.started_at, r.completed_at, r.leads_total AS total,
       r.leads_success AS sent, r.leads_failed AS failed, r.leads_skipped AS skipped,
       open.pending, open.leased, open.next_due, recent.sent AS sent_last_hour, r.wait_code, r.wait_reason, r.wait_until
FROM public.campaign_runs r
LEFT JOIN public.campaign_configs c ON c.id = r.config_id
LEFT JOIN public.inboxes b ON b.id = COALESCE(r.active_inbox_id, c.inbox_id)
LEFT JOIN public.workspaces w ON w.id = c.workspace_id
CROSS JOIN LATERAL (
    SELECT (SELECT count(*) FROM public.campaign_messages m WHERE m.run_id = r.id AND m.status = 'pending') AS pending,
           (SELECT count(*) FROM public.campaign_messages m
            WHERE m.run_id = r.id AND campaign_pipeline.campaign_is_leased(m.status)) AS leased,
           (SELECT CASE WHEN min(campaign_pipeline.campaign_due_at(m)) < '9999-01-01Z'
                        THEN greatest(min(campaign_pipeline.campaign_due_at(m)), '1970-01-01Z') END
            FROM public.campaign_messages m WHERE m.run_id = r.id AND m.status = 'pending') AS next_due) open
CROSS JOIN LATERAL (
    SELECT count(*) AS sent FROM public.campaign_messages m
    WHERE m.run_id = r.id AND m.status IN ('sent', 'replied')
      AND m.finished_at > campaign_pipeline.campaign_now() - interval '1 hour'
      AND m.finished_at IS NOT NULL) recent
WHERE (%(run_id)s::uuid IS NULL OR r.id = %(run_id)s::uuid)
  AND (%(statuses)s::text[] IS NULL OR r.status = ANY (%(statuses)s::text[]))
ORDER BY (r.status = 'running') DESC, (r.status = 'paused') DESC, r.started_at DESC NULLS LAST, r.id
LIMIT %(shown)s;

-- name: find_messages
-- Messages by run, status, reason, lead, digits of a phone number, or time, the newest first. Unset criteria are null.
-- A message's time is its end, or else its due time.
SELECT m.id AS message_id, m.run_id, COALESCE(NULLIF(r.name, ''), 'unnamed') AS run, m.lead_id,
       l.client_name AS lead, COALESCE(m.address, m.phone_number, l.phone) AS address, m.status, m.error_class,
       m.error_code AS reason_code, COALESCE(m.error_message, m.last_error) AS reason,
       CASE WHEN at.due BETWEEN '1970-01-01Z' AND '9999-01-01Z' THEN at.due END AS due_at, m.finished_at,
       b.name AS inbox, m.retry_count
FROM public.campaign_messages m
JOIN public.campaign_runs r ON r.id = m.run_id
LEFT JOIN public.campaign_configs c ON c.id = r.config_id
LEFT JOIN public.inboxes b ON b.id = COALESCE(m.inbox_id, c.inbox_id)
LEFT JOIN public.leads l ON l.id = m.lead_id
    AND NOT campaign_pipeline.campaign_is_foreign(l.workspace_id, c.workspace_id)
CROSS JOIN LATERAL (SELECT campaign_pipeline.campaign_due_at(m) AS due) at
-- Of one run: every status, each in the spelling of its index.
WHERE (%(run_id)s::uuid IS NULL OR (m.run_id = %(run_id)s::uuid AND m.status = 'pending')
       OR (m.run_id = %(run_id)s::uuid AND m.status IN ('sent', 'replied', 'failed', 'skipped'))
       OR (m.run_id = %(run_id)s::uuid AND campaign_pipeline.campaign_is_leased_indexed(m.status)))
  AND (%(statuses)s::text[] IS NULL OR m.status = ANY (%(statuses)s::text[]))
  AND (%(reason)s::text IS NULL OR m.error_code = %(reason)s::text OR m.error_class = %(reason)s::text)
  AND (%(lead_ids)s::uuid[] IS NULL OR m.lead_id = ANY (%(lead_ids)s::uuid[]))
  AND (%(digits)s::text IS NULL OR right(regexp_replace(
        COALESCE(m.address, m.phone_number, l.phone, ''), '@.*|[^0-9]', '', 'g'), length(%(digits)s::text))
        = %(digits)s::text)
  AND (%(since)s::timestamptz IS NULL OR COALESCE(m.finished_at, at.due) >= %(since)s::timestamptz)
  AND (%(until)s::timestamptz IS NULL OR COALESCE(m.finished_at, at.due) < %(until)s::timestamptz)
ORDER BY COALESCE(m.finished_at, at.due) DESC, m.id
LIMIT %(shown)s;

-- name: find_leads
-- Leads by a part of their name or company, or by an id between two (a prefix), with how many messages they have
-- and whether they are suppressed. At most %(shown)s.
SELECT l.id AS lead_id, l.client_name AS lead, l.phone AS address,
       (SELECT count(*) FROM public.campaign_messages m WHERE m.lead_id = l.id) AS messages,
       (SELECT s.reason FROM campaign_pipeline.campaign_suppressions s
        WHERE s.lifted_at IS NULL AND (s.workspace_id IS NULL OR s.workspace_id = l.workspace_id)
          AND (s.lead_id = l.id OR s.address_hash = campaign_pipeline.campaign_address_hash(l.phone))
        ORDER BY s.since DESC LIMIT 1) AS suppressed_because
FROM public.leads l
WHERE l.id BETWEEN %(low)s::uuid AND %(high)s::uuid
   OR strpos(lower(l.client_name), lower(%(called)s::text)) > 0
   OR strpos(lower(l.company), lower(%(called)s::text)) > 0
ORDER BY l.client_name, l.id
LIMIT %(shown)s;

-- name: find_by_prefix
-- Ids of runs, messages, inboxes or workspaces (`kind`) between two, or with that name; at most three.
SELECT found.id, found.name FROM (
    SELECT r.id, r.name FROM public.campaign_runs r
    WHERE %(kind)s = 'run'
      AND (r.id BETWEEN %(low)s::uuid AND %(high)s::uuid OR lower(r.name) = lower(%(called)s::text))
    UNION ALL
    SELECT m.id, NULL FROM public.campaign_messages m
    WHERE %(kind)s = 'message' AND m.id BETWEEN %(low)s::uuid AND %(high)s::uuid
    UNION ALL
    SELECT b.id, b.name FROM public.inboxes b
    WHERE %(kind)s = 'inbox'
      AND (b.id BETWEEN %(low)s::uuid AND %(high)s::uuid OR lower(b.name) = lower(%(called)s::text))
    UNION ALL
    SELECT w.id, w.name FROM public.workspaces w
    WHERE %(kind)s = 'workspace'
      AND (w.id BETWEEN %(low)s::uuid AND %(high)s::uuid OR lower(w.name) = lower(%(called)s::text))
) found
LIMIT 3;

-- name: story_of_message
-- A message with everything that decides its status.
SELECT m.id AS message_id, m.status, m.run_id, COALESCE(NULLIF(r.name, ''), 'unnamed') AS run,
       r.status AS run_status, w.name AS workspace, COALESCE(m.inbox_id, c.inbox_id) AS inbox_id, b.name AS inbox,
       m.lead_id, l.client_name AS lead, COALESCE(m.address, m.phone_number, l.phone) AS address,
       m.subject, m.generated_message AS text, m.ai_model AS model, m.ai_tokens_used AS tokens,
       m.ai_cost_usd AS cost_usd, m.created_at, m.queued_at, m.sent_at, m.replied_at, m.finished_at,
       CASE WHEN campaign_pipeline.campaign_due_at(m) BETWEEN '1970-01-01Z' AND '9999-01-01Z'
            THEN campaign_pipeline.campaign_due_at(m) END AS due_at,
       m.retry_count, m.requeued_at, m.error_class, m.error_code,
       COALESCE(m.error_message, m.last_error) AS reason,
       m.lease_owner, CASE WHEN campaign_pipeline.campaign_is_leased(m.status) THEN m.lease_expires_at END
           AS lease_expires_at,
       COALESCE(d.deaths, 0) AS worker_deaths,
       EXISTS (SELECT 1 FROM campaign_pipeline.campaign_suppressed_messages(ARRAY[m.id])) AS suppressed,
       campaign_pipeline.campaign_now() AS now
FROM public.campaign_messages m
JOIN public.campaign_runs r ON r.id = m.run_id
LEFT JOIN public.campaign_configs c ON c.id = r.config_id
LEFT JOIN public.workspaces w ON w.id = c.workspace_id
LEFT JOIN public.inboxes b ON b.id = COALESCE(m.inbox_id, c.inbox_id)
LEFT JOIN public.leads l ON l.id = m.lead_id
    AND NOT campaign_pipeline.campaign_is_foreign(l.workspace_id, c.workspace_id)
LEFT JOIN campaign_pipeline.campaign_worker_deaths d ON d.message_id = m.id
WHERE m.id = %(message_id)s;

-- name: story_of_parts
-- The ledger of a message: each part, its last attempt, and those before it that did not end as sent (`history`).
SELECT p.part_no, p.status, p.text, p.attempts, p.attempted_at, p.sent_at, p.duration_ms, p.address, b.name AS inbox,
       p.provider_message_id, p.error_class, p.error_code, p.error_message AS answer, p.provider_response,
       p.looked_up_at, p.resend_approved_at, p.delivery_status, p.delivery_code, p.delivery_at, p.history
FROM campaign_pipeline.campaign_message_parts p LEFT JOIN public.inboxes b ON b.id = p.inbox_id
WHERE p.message_id = %(message_id)s
ORDER BY p.part_no;

-- name: story_of_log
-- The log lines of a message, the oldest first; by the index on the run.
SELECT l.created_at AS at, l.step_name AS step, l.level, l.message
FROM public.campaign_logs l
WHERE l.run_id = (SELECT m.run_id FROM public.campaign_messages m WHERE m.id = %(message_id)s)
  AND l.message_id = %(message_id)s
ORDER BY l.created_at, l.id
LIMIT 200;

-- name: story_of_model_calls
-- Texts of a message that a rule refused or changed.
SELECT k.called_at AS at, k.purpose, k.model, k.rule, k.changed, k.cost_usd, k.answer
FROM campaign_pipeline.campaign_model_calls k
WHERE k.message_id = %(message_id)s AND (k.rule IS NOT NULL OR k.changed <> '{}')
ORDER BY k.called_at, k.id;

-- name: overview_inboxes
-- The inboxes of campaigns, with their connection, pace, today's counts and warm-up. `day_limits`: the daily
-- limit of today and of each of the 13 days after it, warm-up included (null: none). A sum with an interval turns
-- 24:00, which Python does not know, into 00:00.
WITH used AS (
    SELECT b.*, zone.name AS zone, (campaign_pipeline.campaign_now() AT TIME ZONE zone.name)::date AS today,
           p.min_gap_seconds, p.daily_limit AS wished_daily_limit, p.warm_up_from, p.quiet_from, p.quiet_until
    FROM public.inboxes b
    LEFT JOIN campaign_pipeline.campaign_inbox_pace p ON p.inbox_id = b.id
    CROSS JOIN LATERAL (SELECT COALESCE(p.timezone, 'America/Sao_Paulo') AS name) zone
    WHERE EXISTS (SELECT 1 FROM public.campaign_configs c
                  WHERE c.inbox_id = b.id OR b.id = ANY (c.fallback_inbox_ids))
), ended AS (
    SELECT COALESCE(m.inbox_id, c.inbox_id) AS inbox_id, m.status, m.finished_at
    FROM public.campaign_messages m
    JOIN public.campaign_runs r ON r.id = m.run_id JOIN public.campaign_configs c ON c.id = r.config_id
    WHERE m.finished_at > campaign_pipeline.campaign_now() - interval '26 hours'
), waiting AS (
    SELECT COALESCE(r.active_inbox_id, c.inbox_id) AS inbox_id, count(*) AS messages
    FROM public.campaign_runs r JOIN public.campaign_configs c ON c.id = r.config_id
    JOIN public.campaign_messages m ON m.run_id = r.id AND m.status = 'pending'
    WHERE r.status = 'running'
    GROUP BY 1
)
SELECT used.id AS inbox_id, used.name, w.name AS workspace, i.name AS instance, i.provider_type AS provider,
       COALESCE(i.status, 'no instance') AS connection, i.last_connected_at,
       pace.gap_seconds, pace.jitter, pace.slow_factor, pace.pause_after, pace.pause_seconds,
       pace.hourly_limit, COALESCE(pace.hour_count, 0) AS hour_count, pace.daily_limit, pace.day_count,
       (used.quiet_from + interval '0')::text AS quiet_from, (used.quiet_until + interval '0')::text AS quiet_until,
       used.zone,
       CASE WHEN used.warm_up_from IS NOT NULL THEN used.today - used.warm_up_from + 1 END AS warm_up_day,
       ARRAY(SELECT least(used.wished_daily_limit, (
                        SELECT ramp.daily_limit FROM campaign_pipeline.campaign_warm_up_ramp ramp
                        WHERE ramp.from_day <= greatest(1, used.today + ahead.days - used.warm_up_from + 1)
                        ORDER BY ramp.from_day DESC LIMIT 1))
             FROM generate_series(0, 13) AS ahead (days) ORDER BY ahead.days) AS day_limits,
       CASE WHEN isfinite(pace.free_at) AND pace.free_at > campaign_pipeline.campaign_now() THEN pace.free_at END
           AS free_at,
       CASE WHEN pace.free_at > campaign_pipeline.campaign_now() THEN pace.code END AS wait_code,
       (SELECT count(*) FROM ended WHERE ended.inbox_id = used.id AND ended.status IN ('sent', 'replied')
            AND (ended.finished_at AT TIME ZONE used.zone)::date = used.today) AS sent_today,
       (SELECT count(*) FROM ended WHERE ended.inbox_id = used.id AND ended.status = 'failed'
            AND (ended.finished_at AT TIME ZONE used.zone)::date = used.today) AS failed_today,
       COALESCE((SELECT waiting.messages FROM waiting WHERE waiting.inbox_id = used.id), 0) AS waiting
FROM used
LEFT JOIN public.workspaces w ON w.id = used.workspace_id
LEFT JOIN LATERAL (
    SELECT n.* FROM public.inbox_instances x JOIN public.instances n ON n.id = x.instance_id
    WHERE x.inbox_id = used.id AND NOT campaign_pipeline.campaign_is_foreign(n.workspace_id, used.workspace_id)
    ORDER BY (n.status = 'connected') DESC NULLS LAST, n.last_connected_at DESC NULLS LAST, n.id LIMIT 1) i ON true
CROSS JOIN LATERAL campaign_pipeline.campaign_pace('inbox', used.id) pace
ORDER BY w.name, used.name, used.id;

-- name: overview_pauses
-- Scopes that are paused or slowed down: automatic circuits, and manual pauses (`paused_by`). `name` is
-- that of the inbox, workspace or run.
SELECT p.scope, p.scope_id, n.name, p.kind, p.code, p.reason, p.since,
       CASE WHEN p.until < '9999-01-01Z' THEN p.until END AS until, p.failures, NULL AS paused_by
FROM campaign_pipeline.campaign_pauses p
LEFT JOIN LATERAL (
    SELECT b.name FROM public.inboxes b WHERE p.scope = 'inbox' AND b.id::text = p.scope_id
    UNION ALL SELECT w.name FROM public.workspaces w WHERE p.scope = 'workspace' AND w.id::text = p.scope_id
    UNION ALL SELECT r.name FROM public.campaign_runs r WHERE p.scope = 'run' AND r.id::text = p.scope_id) n ON true
WHERE p.kind = 'systemic' OR p.until > campaign_pipeline.campaign_now()
UNION ALL
SELECT h.scope, h.scope_id, n.name, 'by hand', 'paused_by_person', h.reason, h.since, NULL, 0, h.paused_by
FROM campaign_pipeline.campaign_manual_pauses h
LEFT JOIN LATERAL (
    SELECT b.name FROM public.inboxes b WHERE h.scope = 'inbox' AND b.id::text = h.scope_id
    UNION ALL SELECT w.name FROM public.workspaces w WHERE h.scope = 'workspace' AND w.id::text = h.scope_id) n ON true
ORDER BY since, scope, scope_id;

-- name: forecast_due
-- How many messages of each running run become due in which hour (overdue ones: in this one), for 14 days.
SELECT m.run_id, date_trunc('hour', greatest(at.due, campaign_pipeline.campaign_now())) AS hour, count(*) AS messages
FROM public.campaign_runs r
JOIN public.campaign_messages m ON m.run_id = r.id AND m.status = 'pending'
CROSS JOIN LATERAL (SELECT campaign_pipeline.campaign_due_at(m) AS due) at
WHERE r.status = 'running' AND at.due < campaign_pipeline.campaign_now() + interval '336 hours'
GROUP BY 1, 2;

-- name: forecast_campaigns
-- The pace of each campaign with a running run; nulls if it has none.
SELECT c.id AS config_id, p.gap_seconds, p.daily_limit, p.day_count, p.zone
FROM (SELECT DISTINCT r.config_id FROM public.campaign_runs r WHERE r.status = 'running') r
JOIN public.campaign_configs c ON c.id = r.config_id
CROSS JOIN LATERAL campaign_pipeline.campaign_pace('campaign', c.id) p;

-- name: diagnose_server
-- Server conditions that may slow or stop the queue: its clock, transactions open for minutes (they keep vacuum from
-- removing dead rows in all tables), and the share of dead rows in the hot table.
SELECT clock_timestamp() AS clock, NULLIF(current_setting('campaign.clock_offset', true), '') AS clock_offset,
       (SELECT count(*) FROM pg_stat_activity a
        WHERE a.datname = current_database() AND a.xact_start < clock_timestamp() - interval '10 minutes'
          AND a.backend_type = 'client backend' AND a.pid <> pg_backend_pid()) AS long_transactions,
       (SELECT min(a.xact_start) FROM pg_stat_activity a
        WHERE a.datname = current_database() AND a.backend_type = 'client backend') AS oldest_transaction,
       t.n_live_tup AS live_rows, t.n_dead_tup AS dead_rows,
       pg_total_relation_size('public.campaign_messages'::regclass) AS bytes
FROM pg_stat_user_tables t WHERE t.relid = 'public.campaign_messages'::regclass;

-- name: diagnose_leases
-- Expired leases, and live ones; by the indexes of leased messages.
SELECT count(*) FILTER (WHERE m.lease_expires_at <= campaign_pipeline.campaign_now()) AS stale,
       count(*) FILTER (WHERE m.lease_expires_at > campaign_pipeline.campaign_now()) AS live,
       min(m.lease_expires_at) FILTER (WHERE m.lease_expires_at <= campaign_pipeline.campaign_now()) AS since
FROM public.campaign_messages m WHERE campaign_pipeline.campaign_is_leased_indexed(m.status);

-- name: diagnose_campaigns
-- The windows of active campaigns, from their columns, for validation.
SELECT c.id AS config_id, c.start_time::text AS start_time, c.end_time::text AS end_time, c.timezone, c.frequency,
       s.weekdays, s.holidays
FROM public.campaign_configs c LEFT JOIN campaign_pipeline.campaign_settings s ON s.config_id = c.id
WHERE c.is_active ORDER BY c.id;

-- name: describe_claim
-- A claim by run and inbox: how many messages, how many without a text, and the campaign's average cost of a text in
-- the last week (its workspace's, if it wrote none; null: unknown).
WITH claimed AS (
    SELECT m.run_id, u.inbox_id, m.generated_message IS NULL AS unwritten
    FROM unnest(%(ids)s::uuid[], %(inbox_ids)s::uuid[]) AS u (id, inbox_id)
    JOIN public.campaign_messages m ON m.id = u.id
), costs AS (
    SELECT c.workspace_id, c.id AS config_id, sum(m.ai_cost_usd) AS usd, count(*) AS texts
    FROM public.campaign_messages m
    JOIN public.campaign_runs r ON r.id = m.run_id JOIN public.campaign_configs c ON c.id = r.config_id
    WHERE m.finished_at > campaign_pipeline.campaign_now() - interval '168 hours' AND m.ai_cost_usd IS NOT NULL
    GROUP BY c.workspace_id, c.id
)
SELECT claimed.run_id, COALESCE(NULLIF(r.name, ''), 'unnamed') AS run, claimed.inbox_id, b.name AS inbox,
       count(*) AS messages, count(*) FILTER (WHERE claimed.unwritten) AS to_write,
       COALESCE((SELECT k.usd / k.texts FROM costs k WHERE k.config_id = c.id),
                (SELECT sum(k.usd) / sum(k.texts) FROM costs k WHERE k.workspace_id = c.workspace_id)) AS usd_a_text
FROM claimed
JOIN public.campaign_runs r ON r.id = claimed.run_id
LEFT JOIN public.campaign_configs c ON c.id = r.config_id
LEFT JOIN public.inboxes b ON b.id = claimed.inbox_id
GROUP BY claimed.run_id, r.name, claimed.inbox_id, b.name, c.id, c.workspace_id
ORDER BY run, inbox, claimed.run_id;
