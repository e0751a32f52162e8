-- Statements for notices: open ones, display names, and the daily summary.

-- name: list_notices
-- The open notices.
SELECT key, title, since, told_at, size, run_ids, job FROM campaign_pipeline.campaign_notices;

-- name: keep_notice
-- Record a sent notice; a repeated one keeps its beginning.
INSERT INTO campaign_pipeline.campaign_notices AS n (key, title, since, told_at, size, run_ids, job)
VALUES (%(key)s, %(title)s, %(since)s, campaign_pipeline.campaign_now(), %(size)s, %(run_ids)s, %(job)s)
ON CONFLICT (key) DO UPDATE SET title = EXCLUDED.title, told_at = EXCLUDED.told_at, size = EXCLUDED.size,
    run_ids = ARRAY(SELECT DISTINCT r FROM unnest(n.run_ids || EXCLUDED.run_ids) AS r);

-- name: shrink_notice
-- Record that its concern became smaller: growing again is then news.
UPDATE campaign_pipeline.campaign_notices SET size = %(size)s WHERE key = %(key)s AND size > %(size)s;

-- name: end_notice
-- Delete a notice whose end was reported.
DELETE FROM campaign_pipeline.campaign_notices WHERE key = %(key)s;

-- name: name_scope
-- The display name of an inbox (with its instance), a workspace, a campaign or a run.
SELECT CASE %(scope)s
    WHEN 'inbox' THEN (SELECT concat_ws(' ', b.name, '(' || i.name || ')') FROM public.inboxes b
                       LEFT JOIN LATERAL (SELECT i.name FROM public.inbox_instances x
                                          JOIN public.instances i ON i.id = x.instance_id
                                          WHERE x.inbox_id = b.id ORDER BY i.id LIMIT 1) i ON true
                       WHERE b.id::text = %(id)s)
    WHEN 'workspace' THEN (SELECT w.name FROM public.workspaces w WHERE w.id::text = %(id)s)
    WHEN 'campaign' THEN (SELECT r.name FROM public.campaign_runs r WHERE r.config_id::text = %(id)s AND r.name <> ''
                          ORDER BY r.started_at DESC NULLS LAST LIMIT 1)
    WHEN 'run' THEN (SELECT r.name FROM public.campaign_runs r WHERE r.id::text = %(id)s)
    ELSE %(id)s END AS name;

-- name: count_sent_since
-- Count the messages of some runs sent since a time.
SELECT count(*) AS sent FROM public.campaign_messages m
WHERE m.run_id = ANY (%(run_ids)s::uuid[]) AND m.status IN ('sent', 'replied') AND m.sent_at >= %(since)s;

-- name: count_held_by
-- The messages that a Dagster run still holds, and when its last lease ends.
SELECT count(*) AS messages, max(m.lease_expires_at) AS until FROM public.campaign_messages m
WHERE campaign_pipeline.campaign_is_leased_indexed(m.status) AND m.lease_expires_at > campaign_pipeline.campaign_now()
  AND (m.lease_owner = %(owner)s OR starts_with(m.lease_owner, %(owner)s || ' '));

-- name: summarize_failures
-- Messages that exhausted their attempts since a time, by code and campaign run.
SELECT COALESCE(m.error_code, 'none') AS code, COALESCE(NULLIF(r.name, ''), 'unnamed') AS campaign, count(*) AS messages
FROM public.campaign_messages m JOIN public.campaign_runs r ON r.id = m.run_id
WHERE m.status = 'failed' AND COALESCE(m.error_class, 'exhausted') = 'exhausted' AND m.finished_at >= %(since)s
GROUP BY 1, 2 ORDER BY 3 DESC, 2, 1;

-- name: summarize_waits
-- Runs that a spending limit or a pace delays, with their due messages, and what they sent in the last hour.
SELECT COALESCE(NULLIF(r.name, ''), 'unnamed') AS campaign, r.wait_code AS code, r.wait_reason AS reason,
       r.wait_until AS until,
       (SELECT count(*) FROM public.campaign_messages m WHERE m.run_id = r.id AND m.status = 'pending'
        AND campaign_pipeline.campaign_due_at(m) < %(day_end)s) AS messages,
       (SELECT count(*) FROM public.campaign_messages m WHERE m.run_id = r.id AND m.status IN ('sent', 'replied')
        AND m.sent_at >= campaign_pipeline.campaign_now() - interval '1 hour') AS sent_in_hour
FROM public.campaign_runs r
WHERE r.status = 'running' AND (r.wait_code = 'spending_limit' OR r.pace_held_since IS NOT NULL)
ORDER BY r.name, r.id;

-- name: find_first_day
-- The first day with data, in the business's time zone: that of the first campaign run, at most three years ago;
-- today if there is none.
SELECT GREATEST(today.day - 1095,
                LEAST(today.day, min(r.run_date), min((r.started_at AT TIME ZONE %(timezone)s)::date))) AS day
FROM (SELECT (campaign_pipeline.campaign_now() AT TIME ZONE %(timezone)s)::date AS day) today
LEFT JOIN public.campaign_runs r ON true
GROUP BY today.day;
