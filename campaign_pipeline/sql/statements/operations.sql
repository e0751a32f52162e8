-- Statements for schedules, sensors, back-fills and maintenance. Due times are spelled as in the index
-- campaign_messages_due.

-- name: look_at_queue
-- A tick's whole look at an idle queue, by index: is anything due, and is there anything to clean up? The last three
-- are what fetch_message_batch and close_completed_runs would do; for runs that may close, see
-- campaign_close_runs.
SELECT campaign_pipeline.campaign_now() AS now, due.next_due, due.running_runs,
       EXISTS (SELECT FROM public.campaign_messages m WHERE campaign_pipeline.campaign_is_leased_indexed(m.status)
               AND m.lease_expires_at > campaign_pipeline.campaign_now()) AS has_leased,
       EXISTS (SELECT FROM public.campaign_messages m WHERE campaign_pipeline.campaign_is_leased_indexed(m.status)
               AND m.lease_expires_at <= campaign_pipeline.campaign_now())
       OR EXISTS (SELECT FROM public.campaign_messages m WHERE campaign_pipeline.campaign_is_leased_indexed(m.status)
               AND m.lease_expires_at IS NULL
               AND COALESCE(m.queued_at, m.created_at) <= campaign_pipeline.campaign_now() - interval '15 minutes')
       OR EXISTS (SELECT FROM campaign_pipeline.campaign_deleted_in_flight x
               WHERE x.deleted_at < campaign_pipeline.campaign_now() - interval '5 minutes'
                  OR NOT EXISTS (SELECT FROM campaign_pipeline.campaign_message_parts p
                                 WHERE p.message_id = x.message_id AND p.status = 'attempting')) AS has_dead_leases,
       EXISTS (SELECT FROM public.campaign_runs r WHERE r.status = 'cancelled' AND r.completed_at IS NULL
               -- A message being sent ends first; its own step settles it.
               AND (SELECT 1 FROM public.campaign_messages m
                    WHERE m.run_id = r.id AND campaign_pipeline.campaign_is_leased_indexed(m.status) LIMIT 1) IS NULL)
                        AS has_cancelled,
       EXISTS (SELECT FROM public.campaign_runs r WHERE r.status = 'running'
               AND (SELECT 1 FROM public.campaign_messages m WHERE m.run_id = r.id AND m.status = 'pending'
                    LIMIT 1) IS NULL
               AND (SELECT 1 FROM public.campaign_messages m
                    WHERE m.run_id = r.id AND campaign_pipeline.campaign_is_leased_indexed(m.status) LIMIT 1) IS NULL
               AND (r.leads_processed > 0
                    OR COALESCE(r.started_at, r.run_date::timestamp AT TIME ZONE 'UTC',
                                '-infinity') < campaign_pipeline.campaign_now()
                       - CASE WHEN r.leads_total > 0 THEN interval '1 hour' ELSE interval '5 minutes' END)
              ) AS has_complete
FROM (
    SELECT count(*) AS running_runs,
           -- 'infinity' means never; Python has no years beyond 9999 or before 1.
           CASE WHEN min(first.due) < '9999-01-01Z' THEN greatest(min(first.due), '1970-01-01Z') END AS next_due
    FROM public.campaign_runs r
    LEFT JOIN LATERAL (
        SELECT campaign_pipeline.campaign_due_at(m) AS due FROM public.campaign_messages m
        WHERE m.run_id = r.id AND m.status = 'pending'
        ORDER BY campaign_pipeline.campaign_due_at(m) LIMIT 1) first ON true
    WHERE r.status = 'running') due;

-- name: is_due_soon
-- Whether a message is due, or planned within some time, in a run that nothing holds, or was left by its worker; by the
-- indexes of due messages and of leases. Asked every second; the minute's tick decides what holds a run, and records
-- when that ends.
SELECT EXISTS (
    SELECT FROM public.campaign_runs r
    CROSS JOIN LATERAL (
        SELECT FROM public.campaign_messages m
        WHERE m.run_id = r.id AND m.status = 'pending'
          AND campaign_pipeline.campaign_due_at(m)
              <= campaign_pipeline.campaign_now() + make_interval(secs => %(seconds)s)
          -- Retries are not claimed ahead.
          AND (m.next_attempt_at IS NULL
               OR campaign_pipeline.campaign_due_at(m) <= campaign_pipeline.campaign_now())
        ORDER BY campaign_pipeline.campaign_due_at(m) LIMIT 1) first
    WHERE r.status = 'running' AND (r.wait_code IS NULL OR r.wait_until <= campaign_pipeline.campaign_now()))
OR EXISTS (SELECT FROM public.campaign_messages m WHERE campaign_pipeline.campaign_is_leased_indexed(m.status)
           AND m.lease_expires_at <= campaign_pipeline.campaign_now()) AS yes;

-- name: list_holders
-- The holders of messages under a live lease, by the index of leased messages; the last presence of each run's process;
-- since when the server is up; and the present time.
SELECT ARRAY(SELECT DISTINCT m.lease_owner FROM public.campaign_messages m
             WHERE campaign_pipeline.campaign_is_leased_indexed(m.status)
               AND m.lease_expires_at > campaign_pipeline.campaign_now() AND m.lease_owner IS NOT NULL) AS owners,
       campaign_pipeline.campaign_now() AS now,
       COALESCE((SELECT json_object_agg(p.dagster_run_id, p.seen_at)
                 FROM campaign_pipeline.campaign_run_presence p), '{}') AS seen,
       pg_postmaster_start_time() AS up_since;

-- name: note_presence
-- Record the presence of a Dagster run's process.
INSERT INTO campaign_pipeline.campaign_run_presence (dagster_run_id, host, seen_at)
VALUES (%(run_id)s, %(host)s, campaign_pipeline.campaign_now())
ON CONFLICT (dagster_run_id) DO UPDATE SET host = EXCLUDED.host, seen_at = EXCLUDED.seen_at;

-- name: forget_presence
-- Delete the presence of an ended process, and of those silent for a day.
DELETE FROM campaign_pipeline.campaign_run_presence p
WHERE p.dagster_run_id = %(run_id)s OR p.seen_at < campaign_pipeline.campaign_now() - interval '24 hours';

-- name: look_at_pauses
-- Like list_pauses, but without a lock that would keep a claimer from its probe.
SELECT p.scope, p.scope_id, p.kind, p.code, p.reason, p.since, p.until,
       p.kind = 'systemic' AND p.until <= campaign_pipeline.campaign_now()
       AND NOT EXISTS (SELECT 1 FROM campaign_pipeline.campaign_manual_pauses h
                       WHERE h.scope = p.scope AND h.scope_id = p.scope_id) AS probe_due
FROM campaign_pipeline.campaign_pauses p
WHERE p.kind = 'systemic' OR p.until > campaign_pipeline.campaign_now()
UNION ALL
SELECT h.scope, h.scope_id, 'systemic', 'paused_by_person', h.reason, h.since, NULL, false
FROM campaign_pipeline.campaign_manual_pauses h;

-- name: count_backlog
-- How many messages of each run were due before its cutoff. Counted up to 10,000; beyond that, nobody needs the exact
-- number.
SELECT c.run_id, count(d.due) AS messages, min(d.due) AS oldest
FROM unnest(%(run_ids)s::uuid[], %(cutoffs)s::timestamptz[]) AS c (run_id, cutoff)
CROSS JOIN LATERAL (
    SELECT greatest(campaign_pipeline.campaign_due_at(m), '1970-01-01Z') AS due
    FROM public.campaign_messages m
    WHERE m.run_id = c.run_id AND m.status = 'pending'
      AND campaign_pipeline.campaign_due_at(m) < c.cutoff
    ORDER BY campaign_pipeline.campaign_due_at(m) LIMIT 10000) d
GROUP BY c.run_id;

-- name: count_unknown_messages
-- Messages that may have been sent and are never resent automatically.
SELECT count(*) AS messages, count(DISTINCT run_id) AS runs
FROM public.campaign_messages WHERE status = 'failed' AND error_class = 'unknown';

-- name: list_failed_messages
-- Messages that failed within [since, until), the oldest first, by error class, run, campaign, workspace (null: all).
-- Failures without an error class count as 'exhausted'.
SELECT m.id, m.run_id
FROM public.campaign_messages m
JOIN public.campaign_runs r ON r.id = m.run_id
LEFT JOIN public.campaign_configs c ON c.id = r.config_id
WHERE m.status = 'failed' AND m.finished_at >= %(since)s AND m.finished_at < %(until)s
  AND COALESCE(m.error_class, 'exhausted') = ANY (%(error_classes)s)
  AND (%(run_ids)s::uuid[] IS NULL OR m.run_id = ANY (%(run_ids)s::uuid[]))
  AND (%(config_id)s::uuid IS NULL OR r.config_id = %(config_id)s::uuid)
  AND (%(workspace_id)s::uuid IS NULL OR c.workspace_id = %(workspace_id)s::uuid)
ORDER BY m.finished_at, m.id;

-- name: requeue_failed
-- See campaign_requeue_failed.
SELECT campaign_pipeline.campaign_requeue_failed(%(ids)s, %(resend_unknown)s) AS id;

-- name: delete_old_logs
-- One small batch, so that locks and vacuum stay small whatever has accumulated.
DELETE FROM public.campaign_logs
WHERE id IN (SELECT l.id FROM public.campaign_logs l
             WHERE l.created_at < campaign_pipeline.campaign_now() - make_interval(hours => 24 * %(days)s)
             ORDER BY l.created_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED);

-- name: delete_old_model_calls
-- One small batch of refused and changed texts, with the retention of logs.
DELETE FROM campaign_pipeline.campaign_model_calls
WHERE id IN (SELECT k.id FROM campaign_pipeline.campaign_model_calls k
             WHERE k.called_at < campaign_pipeline.campaign_now() - make_interval(hours => 24 * %(days)s)
             ORDER BY k.called_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED);

-- name: delete_spent_pauses
-- Delete slow-downs that are over, and pauses that nothing has probed for the given days: their inbox or campaign has
-- nothing to send any more. If the cause persists, the next message opens the pause again.
DELETE FROM campaign_pipeline.campaign_pauses
WHERE (kind = 'throttled' AND until < campaign_pipeline.campaign_now() - interval '30 minutes')
   OR until < campaign_pipeline.campaign_now() - make_interval(hours => 24 * %(days)s);

-- name: delete_past_spending
-- Delete the spending of days that are over in every time zone: no limit reads it any more.
DELETE FROM campaign_pipeline.campaign_spending s
WHERE s.scope = 'workspace'
  AND s.day < ((campaign_pipeline.campaign_now() - make_interval(hours => 24 * %(days)s)) AT TIME ZONE 'UTC')::date;

-- name: read_clock
-- The present time, and the end of the retention.
SELECT campaign_pipeline.campaign_now() AS now;

-- name: trickle_demo_campaign
-- Demo mode of `campaign-pipeline dev` only: copies of a few leads of the newest demo workspace, with numbers of their
-- own, due within the next minute in a new run of one of its campaigns.
WITH workspace AS (
    SELECT id FROM public.workspaces WHERE settings ->> 'made_by' = %(made_by)s ORDER BY created_at DESC, id LIMIT 1
), campaign AS (
    SELECT c.id, c.source_column_id, (
        SELECT r.name FROM public.campaign_runs r WHERE r.config_id = c.id ORDER BY r.started_at DESC LIMIT 1) AS name
    FROM public.campaign_configs c JOIN workspace w ON c.workspace_id = w.id
    ORDER BY random() LIMIT 1
), models AS (
    SELECT first.*, campaign_pipeline.campaign_new_id() AS copy_id, row_number() OVER (ORDER BY random()) AS place,
           '+55 11 9' || lpad(floor(random() * 1e8)::integer::text, 8, '0') AS copy_phone
    FROM (SELECT l.* FROM public.leads l JOIN workspace w ON l.workspace_id = w.id ORDER BY l.created_at, l.id
          LIMIT 60) first
    ORDER BY place LIMIT %(leads)s
), copies AS (
    INSERT INTO public.leads (id, workspace_id, funnel_id, column_id, client_name, company, phone, deal_value,
                              priority, tags, notes)
    SELECT m.copy_id, m.workspace_id, m.funnel_id, c.source_column_id, m.client_name, m.company, m.copy_phone,
           m.deal_value,
           m.priority, m.tags, m.notes
    FROM models m CROSS JOIN campaign c
), field_values AS (
    INSERT INTO public.lead_custom_values (lead_id, custom_field_id, value)
    SELECT m.copy_id, v.custom_field_id, v.value FROM models m JOIN public.lead_custom_values v ON v.lead_id = m.id
), run AS (
    INSERT INTO public.campaign_runs (config_id, name, run_date, started_at, leads_total)
    SELECT c.id, c.name, (campaign_pipeline.campaign_now() AT TIME ZONE 'UTC')::date, campaign_pipeline.campaign_now(),
           (SELECT count(*) FROM models) FROM campaign c
    WHERE EXISTS (SELECT FROM models)
    RETURNING id
), added AS (
    INSERT INTO public.campaign_messages (id, run_id, lead_id, phone_number, scheduled_at)
    SELECT campaign_pipeline.campaign_new_id(), run.id, m.copy_id, m.copy_phone,
           campaign_pipeline.campaign_now() + m.place * interval '4 seconds'
           FROM models m CROSS JOIN run
    RETURNING run_id
)
SELECT run_id, count(*) AS messages FROM added GROUP BY run_id;
