-- Statements for the assets, their checks and the reports. They only read, and contain campaigns and ids, never
-- personal data.

-- name: list_runs_at_work
-- The running runs, and those given by their ids, with counters and waits. Triggers maintain the counters, so
-- this reads no message.
SELECT r.id AS run_id, COALESCE(NULLIF(r.name, ''), NULLIF(b.name, ''), w.name, 'unnamed') AS campaign, r.status,
       r.leads_total,
       r.leads_success,
       r.leads_failed, r.leads_skipped, r.wait_code, r.wait_reason, r.wait_until
FROM public.campaign_runs r
LEFT JOIN public.campaign_configs c ON c.id = r.config_id
LEFT JOIN public.inboxes b ON b.id = c.inbox_id
LEFT JOIN public.workspaces w ON w.id = c.workspace_id
WHERE r.status = 'running' OR r.id = ANY (%(closed)s)
ORDER BY r.status, campaign, r.id;

-- name: report_campaign_day
-- One day: a row for each campaign whose messages ended in it, or became due in it and still wait, and a row without
-- campaign for the total (percentiles of a whole cannot be computed from its parts). Half-open, by the
-- index on finished_at: 11 ms for 4,900 messages of 200,000. `wait` is the time from a message's first due time to its
-- last part, so it includes closed windows and retries. Pace is over the minutes in which anything was sent.
WITH ended AS MATERIALIZED (
    SELECT COALESCE(r.config_id, r.id) AS campaign_id, m.status, m.error_class, m.finished_at, m.sent_at,
           m.ai_tokens_used, m.ai_cost_usd, m.ai_generation_time_ms, m.send_time_ms,
               m.status IN ('sent', 'replied') AS out,
           CASE WHEN isfinite(COALESCE(m.scheduled_at, m.created_at))
                THEN greatest(0, EXTRACT(epoch FROM m.sent_at - COALESCE(m.scheduled_at, m.created_at))) END AS wait_s,
           p.receipts, p.delivered, p.read
    FROM public.campaign_messages m JOIN public.campaign_runs r ON r.id = m.run_id
    -- The receipts of its parts; if the provider sends none to us, both are false.
    LEFT JOIN LATERAL (
        SELECT bool_or(part.delivery_status IS NOT NULL) AS receipts,
               bool_and(part.delivery_status IS NOT NULL AND part.delivery_status IN ('delivered', 'read'))
                   AS delivered,
               bool_and(part.delivery_status IS NOT NULL AND part.delivery_status = 'read') AS read
        FROM campaign_pipeline.campaign_message_parts part
        WHERE part.message_id = m.id AND part.status = 'sent') p ON m.status IN ('sent', 'replied')
    WHERE m.finished_at >= %(day_start)s AND m.finished_at < %(day_end)s
), figures AS (
    SELECT e.campaign_id, count(*) AS ended,
           count(*) FILTER (WHERE e.out) AS sent,
           count(*) FILTER (WHERE e.status = 'replied') AS replied,
           count(*) FILTER (WHERE e.receipts) AS receipts, count(*) FILTER (WHERE e.delivered) AS delivered,
           count(*) FILTER (WHERE e.read) AS read,
           count(*) FILTER (WHERE e.status = 'failed') AS failed,
           count(*) FILTER (WHERE e.status = 'failed' AND e.error_class = 'permanent') AS failed_permanent,
           count(*) FILTER (WHERE e.status = 'failed' AND e.error_class = 'exhausted') AS failed_exhausted,
           count(*) FILTER (WHERE e.status = 'failed' AND e.error_class = 'unknown') AS failed_unknown,
           count(*)
               FILTER (WHERE e.status = 'failed'
                       AND COALESCE(e.error_class, '') NOT IN ('permanent', 'exhausted', 'unknown')) AS failed_other,
           count(*) FILTER (WHERE e.status = 'skipped') AS skipped,
           COALESCE(sum(e.ai_tokens_used), 0)::bigint AS tokens,
           COALESCE(sum(e.ai_cost_usd), 0)::double precision AS cost_usd,
           percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY e.ai_generation_time_ms / 1000.0) AS generation_s,
           percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY e.send_time_ms / 1000.0)
               FILTER (WHERE e.out) AS send_s,
           percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY e.wait_s) FILTER (WHERE e.out) AS wait_s,
           count(DISTINCT date_trunc('minute', e.sent_at)) FILTER (WHERE e.out) AS active_minutes
    FROM ended e
    GROUP BY GROUPING SETS ((e.campaign_id), ())
), cached AS (  -- by the time of the call, not of the message's end
    SELECT COALESCE(r.config_id, k.run_id) AS campaign_id, sum(k.cached_tokens)::bigint AS tokens,
           sum(k.cache_saved_usd)::double precision AS saved_usd
    FROM campaign_pipeline.campaign_model_calls k LEFT JOIN public.campaign_runs r ON r.id = k.run_id
    WHERE k.called_at >= %(day_start)s AND k.called_at < %(day_end)s
    GROUP BY GROUPING SETS ((COALESCE(r.config_id, k.run_id)), ())
), still_open AS (
    SELECT COALESCE(r.config_id, r.id) AS campaign_id, sum(n.pending + n.leased)::bigint AS waiting
    FROM public.campaign_runs r
    CROSS JOIN LATERAL (
        SELECT (SELECT count(*) FROM public.campaign_messages m
                WHERE m.run_id = r.id AND m.status = 'pending'
                  AND campaign_pipeline.campaign_due_at(m) >= %(day_start)s
                  AND campaign_pipeline.campaign_due_at(m) < %(day_end)s) AS pending,
               (SELECT count(*) FROM public.campaign_messages m
                WHERE m.run_id = r.id AND campaign_pipeline.campaign_is_leased_indexed(m.status)
                  AND campaign_pipeline.campaign_due_at(m) >= %(day_start)s
                  AND campaign_pipeline.campaign_due_at(m) < %(day_end)s) AS leased) n
    WHERE r.status IN ('running', 'paused')
    GROUP BY GROUPING SETS ((COALESCE(r.config_id, r.id)), ())
), hours AS (
    SELECT jsonb_object_agg(h.hour, jsonb_build_array(h.sent, h.failed, h.skipped)) AS by_hour
    FROM (SELECT EXTRACT(hour FROM e.finished_at AT TIME ZONE %(timezone)s)::integer AS hour, count(*)
          FILTER (WHERE e.out) AS sent,
                 count(*) FILTER (WHERE e.status = 'failed') AS failed, count(*)
                     FILTER (WHERE e.status = 'skipped') AS skipped
          FROM ended e GROUP BY 1) h
)
SELECT k.campaign_id, CASE WHEN k.campaign_id IS NOT NULL
       THEN COALESCE(NULLIF(r.name, ''), newest.name, NULLIF(b.name, ''), w.name, 'unnamed') END AS campaign,
       COALESCE(f.ended, 0) + COALESCE(o.waiting, 0) AS due, COALESCE(f.sent, 0) AS sent,
           COALESCE(f.replied, 0) AS replied, COALESCE(f.receipts, 0) AS receipts,
           COALESCE(f.delivered, 0) AS delivered, COALESCE(f.read, 0) AS read,
       COALESCE(f.failed, 0) AS failed, COALESCE(f.failed_permanent, 0) AS failed_permanent,
       COALESCE(f.failed_exhausted, 0) AS failed_exhausted, COALESCE(f.failed_unknown, 0) AS failed_unknown,
       COALESCE(f.failed_other, 0) AS failed_other, COALESCE(f.skipped, 0) AS skipped,
           COALESCE(o.waiting, 0) AS waiting,
       COALESCE(f.tokens, 0) AS tokens, COALESCE(ca.tokens, 0) AS cached_tokens,
       COALESCE(f.cost_usd, 0) AS cost_usd, COALESCE(ca.saved_usd, 0) AS cache_saved_usd,
       f.generation_s[1] AS median_generation_s, f.generation_s[2] AS p95_generation_s,
       f.send_s[1] AS median_send_s, f.send_s[2] AS p95_send_s, f.wait_s[1] AS median_wait_s, f.wait_s[2] AS p95_wait_s,
       COALESCE(f.active_minutes, 0) AS active_minutes,
       (f.sent::double precision / NULLIF(f.active_minutes, 0)) AS messages_per_minute,
       CASE WHEN k.campaign_id IS NULL THEN COALESCE((SELECT by_hour FROM hours), '{}') END AS by_hour
FROM (SELECT campaign_id FROM figures UNION SELECT campaign_id FROM still_open WHERE waiting > 0) k
LEFT JOIN figures f ON f.campaign_id IS NOT DISTINCT FROM k.campaign_id
LEFT JOIN still_open o ON o.campaign_id IS NOT DISTINCT FROM k.campaign_id
LEFT JOIN cached ca ON ca.campaign_id IS NOT DISTINCT FROM k.campaign_id
LEFT JOIN public.campaign_configs c ON c.id = k.campaign_id
LEFT JOIN public.campaign_runs r ON r.id = k.campaign_id
-- A campaign has the name of its newest run, else of its inbox or its workspace.
LEFT JOIN LATERAL (SELECT x.name FROM public.campaign_runs x WHERE x.config_id = c.id AND x.name <> ''
                   ORDER BY x.started_at DESC NULLS LAST LIMIT 1) newest ON true
LEFT JOIN public.inboxes b ON b.id = c.inbox_id
LEFT JOIN public.workspaces w ON w.id = c.workspace_id
ORDER BY k.campaign_id IS NULL, due DESC, campaign, k.campaign_id;

-- name: count_text_rules
-- How many answers of the language model each rule changed or refused in one day, by campaign, and the cost of refused
-- ones. By the index on their time.
SELECT COALESCE(r.config_id, k.run_id) AS campaign_id, n.rule, n.what, count(*) AS texts,
       COALESCE(sum(k.cost_usd) FILTER (WHERE n.what = 'refused'), 0)::double precision AS cost_usd
FROM campaign_pipeline.campaign_model_calls k
LEFT JOIN public.campaign_runs r ON r.id = k.run_id
CROSS JOIN LATERAL (
    SELECT k.rule AS rule, 'refused' AS what WHERE k.rule IS NOT NULL
    UNION ALL SELECT c.rule, 'changed' FROM unnest(k.changed) AS c (rule)) n
WHERE k.called_at >= %(day_start)s AND k.called_at < %(day_end)s
GROUP BY 1, 2, 3
ORDER BY 1, 4 DESC, 2;

-- name: count_failed_by_day
-- Failed messages by business day and class, the newest day first; by the index on failed messages. A requeued message
-- is no longer failed, so a back-filled day drops out of this list.
SELECT to_char(m.finished_at AT TIME ZONE %(timezone)s, 'YYYY-MM-DD') AS day,
       COALESCE(m.error_class, 'none') AS error_class,
       count(*) AS messages
FROM public.campaign_messages m
WHERE m.status = 'failed' AND m.finished_at >= campaign_pipeline.campaign_now() - make_interval(hours => 24 * %(days)s)
GROUP BY 1, 2
ORDER BY 1 DESC, 2;

-- name: find_wrong_counters
-- Open runs whose counters differ from a recount of their messages (I6). Counters of ended runs are frozen, because the
-- CRM deletes some of their messages. By the index on a run's finished messages, without reading the messages.
SELECT r.id AS run_id, r.leads_success, r.leads_failed, r.leads_skipped, r.leads_processed, n.success, n.failed,
       n.skipped
FROM public.campaign_runs r
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE m.status IN ('sent', 'replied')) AS success,
           count(*) FILTER (WHERE m.status = 'failed') AS failed,
           count(*) FILTER (WHERE m.status = 'skipped') AS skipped
    FROM public.campaign_messages m
    WHERE m.run_id = r.id AND m.status IN ('sent', 'replied', 'failed', 'skipped')) n
WHERE r.status IN ('running', 'paused')
  AND (r.leads_success, r.leads_failed, r.leads_skipped, r.leads_processed)
      IS DISTINCT FROM (n.success, n.failed, n.skipped, n.success + n.failed + n.skipped)
ORDER BY r.id;

-- name: find_forgotten_leases
-- Messages whose lease expired more than one lease duration ago, the oldest first: any batch would have recovered
-- them.
SELECT m.id AS message_id, m.run_id, m.status, m.lease_owner, m.lease_expires_at, count(*) OVER () AS of_all
FROM public.campaign_messages m
WHERE campaign_pipeline.campaign_is_leased_indexed(m.status)
  AND m.lease_expires_at < campaign_pipeline.campaign_now() - make_interval(secs => %(lease_seconds)s)
ORDER BY m.lease_expires_at, m.id
LIMIT %(shown)s;

-- name: find_doubled_provider_ids
-- Provider ids that two parts of one inbox share, among the parts sent in the last %(days)s days: such an id may prove
-- the sending of the wrong part. By the index on what each inbox sent.
SELECT b.id AS inbox_id, d.provider_message_id, d.message_ids, count(*) OVER () AS of_all
FROM public.inboxes b
CROSS JOIN LATERAL (
    SELECT p.provider_message_id, array_agg(DISTINCT p.message_id) AS message_ids
    FROM campaign_pipeline.campaign_message_parts p
    WHERE p.inbox_id = b.id AND p.status = 'sent'
        AND p.sent_at >= campaign_pipeline.campaign_now() - make_interval(hours => 24 * %(days)s)
      AND p.provider_message_id IS NOT NULL
    GROUP BY p.provider_message_id
    HAVING count(*) > 1) d
ORDER BY b.id, d.provider_message_id
LIMIT %(shown)s;

-- name: count_undelivered
-- What each inbox's provider accepted in %(days)s days, and its receipts; without the last day, because a phone may be
-- off. An inbox whose provider sends no receipts to us has none at all. By the index on what each inbox
-- sent.
SELECT b.id AS inbox_id, b.name AS inbox, n.accepted, n.delivered, n.failed_later, n.receipts,
       n.accepted - n.delivered - n.failed_later AS never_delivered
FROM public.inboxes b
CROSS JOIN LATERAL (
    SELECT count(*) AS accepted,
           count(*) FILTER (WHERE p.delivery_status IN ('delivered', 'read')) AS delivered,
           count(*) FILTER (WHERE p.delivery_status = 'failed') AS failed_later,
           count(p.delivery_status) AS receipts
    FROM campaign_pipeline.campaign_message_parts p
    WHERE p.inbox_id = b.id AND p.status = 'sent'
      AND p.sent_at >= campaign_pipeline.campaign_now() - make_interval(hours => 24 * (%(days)s + 1))
      AND p.sent_at < campaign_pipeline.campaign_now() - interval '24 hours') n
WHERE n.accepted > 0
ORDER BY never_delivered DESC, b.id;

-- name: find_unknown_outcomes
-- Failed messages of unknown outcome, the newest first; a person decides on each.
SELECT m.id AS message_id, m.run_id, m.error_code, m.finished_at, count(*) OVER () AS of_all
FROM public.campaign_messages m
WHERE m.status = 'failed' AND m.error_class = 'unknown'
ORDER BY m.finished_at DESC NULLS LAST, m.id
LIMIT %(shown)s;

-- name: find_foreign_rows
-- References between tenants: campaigns that name a row of another workspace, inboxes that are linked to another's
-- instance, waiting messages that reference such a row, and messages skipped for it in the last %(days)s days.
WITH waiting AS (
    SELECT ARRAY(SELECT m.id FROM public.campaign_runs r JOIN public.campaign_messages m ON m.run_id = r.id
                 WHERE r.status IN ('running', 'paused') AND m.status = 'pending' LIMIT 20000) AS ids
), named AS (
    SELECT c.id AS config_id, c.workspace_id, 'inbox' AS what, c.inbox_id AS row_id, b.workspace_id AS belongs_to
    FROM public.campaign_configs c JOIN public.inboxes b ON b.id = c.inbox_id
    UNION ALL
    SELECT c.id, c.workspace_id, 'fallback inbox', b.id, b.workspace_id
    FROM public.campaign_configs c JOIN public.inboxes b ON b.id = ANY (c.fallback_inbox_ids)
    UNION ALL
    SELECT c.id, c.workspace_id, 'funnel column', k.id, f.workspace_id
    FROM public.campaign_configs c
    JOIN public.funnel_columns k ON k.id IN (c.source_column_id, c.target_column_id)
    JOIN public.funnels f ON f.id = k.funnel_id
)
SELECT found.kind, found.id, found.sentence, count(*) OVER () AS of_all
FROM (
    SELECT 1 AS place, 'campaign' AS kind, n.config_id AS id,
           format('Its %%s %%s belongs to another workspace.', n.what, n.row_id) AS sentence
    FROM named n WHERE campaign_pipeline.campaign_is_foreign(n.belongs_to, n.workspace_id)
    UNION ALL
    SELECT 2, 'inbox', b.id, format('It is linked to instance %%s of another workspace.', i.id)
    FROM public.inboxes b JOIN public.inbox_instances x ON x.inbox_id = b.id
    JOIN public.instances i ON i.id = x.instance_id
    WHERE campaign_pipeline.campaign_is_foreign(i.workspace_id, b.workspace_id)
    UNION ALL
    SELECT 3, 'waiting message', f.message_id, format('Its %%s %%s belongs to another workspace.', f.what, f.row_id)
    FROM waiting w CROSS JOIN LATERAL campaign_pipeline.campaign_foreign_rows(w.ids) f
    UNION ALL
    SELECT 4, 'skipped message', m.id, m.error_message
    FROM public.campaign_messages m
    WHERE m.finished_at >= campaign_pipeline.campaign_now() - make_interval(hours => 24 * %(days)s)
      AND m.status = 'skipped' AND m.error_code = 'foreign_workspace'
) found
ORDER BY found.place, found.id
LIMIT %(shown)s;
