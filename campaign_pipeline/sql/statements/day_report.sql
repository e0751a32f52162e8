-- Statements for the details of a daily report. They only read, by the indexes on finished_at and on a run's messages;
-- they contain names of campaigns and inboxes, never personal data.

-- name: report_failures
-- Failed or skipped messages of a day, by class and code. Without the sentence, in which a CRM's own processor may have
-- written a number.
SELECT m.status, COALESCE(m.error_class, '') AS error_class, COALESCE(m.error_code, 'none') AS code,
       count(*) AS messages
FROM public.campaign_messages m
WHERE m.finished_at >= %(day_start)s AND m.finished_at < %(day_end)s AND m.status IN ('failed', 'skipped')
GROUP BY 1, 2, 3 ORDER BY 4 DESC, 3;

-- name: report_inboxes
-- Sent and unsent messages of each inbox in a day.
SELECT COALESCE(NULLIF(b.name, ''), n.inbox_id::text, 'no inbox') AS inbox, i.name AS instance, n.sent, n.failed,
       n.skipped, n.first_at, n.last_at
FROM (SELECT COALESCE(m.inbox_id, c.inbox_id) AS inbox_id,
             count(*) FILTER (WHERE m.status IN ('sent', 'replied')) AS sent,
             count(*) FILTER (WHERE m.status = 'failed') AS failed,
             count(*) FILTER (WHERE m.status = 'skipped') AS skipped,
             min(m.sent_at) AS first_at, max(m.sent_at) AS last_at
      FROM public.campaign_messages m
      JOIN public.campaign_runs r ON r.id = m.run_id LEFT JOIN public.campaign_configs c ON c.id = r.config_id
      WHERE m.finished_at >= %(day_start)s AND m.finished_at < %(day_end)s
      GROUP BY 1) n
LEFT JOIN public.inboxes b ON b.id = n.inbox_id
LEFT JOIN LATERAL (SELECT i.name FROM public.inbox_instances x JOIN public.instances i ON i.id = x.instance_id
                   WHERE x.inbox_id = n.inbox_id ORDER BY i.id LIMIT 1) i ON true
ORDER BY n.sent DESC, 1;

-- name: report_spending
-- The cost of texts that have a limit: of workspaces on their day, and of running runs.
SELECT 'workspace' AS scope, w.name, sum(s.spent_usd)::double precision AS spent_usd,
       w.max_cost_usd_per_day::double precision AS limit_usd
FROM campaign_pipeline.campaign_spending s JOIN public.workspaces w ON w.id = s.scope_id
WHERE s.scope = 'workspace' AND s.day = %(day)s AND w.max_cost_usd_per_day IS NOT NULL
GROUP BY w.id, w.name, w.max_cost_usd_per_day
UNION ALL
SELECT 'run', COALESCE(NULLIF(r.name, ''), 'unnamed'), sum(s.spent_usd)::double precision,
       c.max_cost_usd_per_run::double precision
FROM public.campaign_runs r JOIN public.campaign_configs c ON c.id = r.config_id
JOIN campaign_pipeline.campaign_spending s ON s.scope = 'run' AND s.scope_id = r.id
WHERE r.status = 'running' AND c.max_cost_usd_per_run IS NOT NULL
GROUP BY r.id, r.name, c.max_cost_usd_per_run
ORDER BY 1, 2;

-- name: report_waits
-- Messages that became due in a day and wait, by campaign run and reason; none: their turn comes with the next batch.
SELECT COALESCE(NULLIF(r.name, ''), 'unnamed') AS campaign, r.status, r.wait_code, r.wait_reason, n.messages
FROM public.campaign_runs r
CROSS JOIN LATERAL (
    SELECT count(*) AS messages FROM public.campaign_messages m
    WHERE m.run_id = r.id AND m.status = 'pending'
      AND campaign_pipeline.campaign_due_at(m) >= %(day_start)s
      AND campaign_pipeline.campaign_due_at(m) < %(day_end)s) n
WHERE r.status IN ('running', 'paused') AND n.messages > 0
ORDER BY n.messages DESC, 1, r.id;
