-- Statements of the queue. Values are bound, never formatted in.

-- name: recover_leases
-- Give back every message whose holder stopped renewing its lease.
SELECT message_id, run_id, was, owner FROM campaign_pipeline.campaign_recover_leases();

-- name: list_running_runs
-- Every running run, or one of them, with the data that decides whether it may be sent now. One row per run, an index
-- probe each. Times of day are read as text: PostgreSQL accepts '24:00', Python does not, and one campaign's must not
-- stop all.
SELECT r.id AS run_id, r.name, r.wait_code, r.wait_reason, r.wait_until, r.resumed_at,
       campaign_pipeline.campaign_now() AS now,
       c.id AS config_id, c.workspace_id, c.inbox_id, c.is_active, c.start_time::text AS start_time,
       c.end_time::text AS end_time, c.timezone, c.frequency, s.weekdays, s.holidays, c.min_interval_seconds,
       r.pace_held_since, r.active_inbox_id, fallback.inboxes AS fallbacks,
       connection.instance_id, connection.status AS instance_status, connection.name AS instance_name,
       (SELECT a.model FROM public.ai_agents a WHERE a.workspace_id = c.workspace_id AND a.is_active
        AND a.model IS NOT NULL
        ORDER BY a.created_at DESC LIMIT 1) AS model,
       campaign_pipeline.campaign_own_key(c.workspace_id) IS NOT NULL AS own_account,
       COALESCE(due.first_due <= campaign_pipeline.campaign_now(), false) AS has_due, planned.next_planned
FROM public.campaign_runs r
LEFT JOIN public.campaign_configs c ON c.id = r.config_id
LEFT JOIN campaign_pipeline.campaign_settings s ON s.config_id = c.id
LEFT JOIN LATERAL (
    -- Another tenant's instance shows neither name nor status, and holds no run: its messages are claimed and ended
    -- (see tenancy.sql), rather than wait for ever.
    SELECT i.id AS instance_id, i.provider, CASE WHEN strange.yes THEN 'connected' ELSE i.status END AS status,
           CASE WHEN NOT strange.yes THEN i.name END AS name
    FROM public.inbox_instances x JOIN public.instances i ON i.id = x.instance_id
    CROSS JOIN LATERAL (SELECT campaign_pipeline.campaign_is_foreign(i.workspace_id, c.workspace_id) AS yes) strange
    WHERE x.inbox_id = c.inbox_id
    ORDER BY strange.yes, (i.status = 'connected') DESC NULLS LAST, i.last_connected_at DESC NULLS LAST, i.id
    LIMIT 1) connection ON true
-- Of the same tenant and channel: a text for WhatsApp has no e-mail address.
LEFT JOIN LATERAL (
    SELECT jsonb_agg(jsonb_build_object('inbox_id', f.id, 'instance_id', one.id, 'instance_status', one.status,
                                        'instance_name', one.name) ORDER BY f.place) AS inboxes
    FROM unnest(c.fallback_inbox_ids) WITH ORDINALITY AS f (id, place)
    JOIN public.inboxes b ON b.id = f.id AND b.workspace_id = c.workspace_id
    CROSS JOIN LATERAL (
        SELECT i.id, i.status, i.name, i.provider FROM public.inbox_instances x
               JOIN public.instances i ON i.id = x.instance_id
        WHERE x.inbox_id = f.id AND NOT campaign_pipeline.campaign_is_foreign(i.workspace_id, c.workspace_id)
        ORDER BY (i.status = 'connected') DESC NULLS LAST, i.last_connected_at DESC NULLS LAST, i.id LIMIT 1) one
    WHERE c.when_inbox_down = 'fallback' AND f.id <> c.inbox_id
      AND COALESCE(one.provider, 'whatsapp') = COALESCE(connection.provider, one.provider, 'whatsapp')) fallback ON true
LEFT JOIN LATERAL (
    SELECT campaign_pipeline.campaign_due_at(m) AS first_due FROM public.campaign_messages m
    WHERE m.run_id = r.id AND m.status = 'pending'
    ORDER BY campaign_pipeline.campaign_due_at(m) LIMIT 1) due ON true
-- The first message that may be claimed ahead of its time, searched only as far as a batch looks ahead.
LEFT JOIN LATERAL (
    SELECT campaign_pipeline.campaign_due_at(m) AS next_planned FROM public.campaign_messages m
    WHERE m.run_id = r.id AND m.status = 'pending' AND m.next_attempt_at IS NULL
      AND campaign_pipeline.campaign_due_at(m) > campaign_pipeline.campaign_now()
      AND campaign_pipeline.campaign_due_at(m)
          <= campaign_pipeline.campaign_now() + interval '5 minutes'
    ORDER BY campaign_pipeline.campaign_due_at(m) LIMIT 1) planned ON true
WHERE r.status = 'running' AND (%(run_id)s::uuid IS NULL OR r.id = %(run_id)s)
ORDER BY r.id;

-- name: list_pauses
-- Every paused scope, automatic or manual; `probe_due` if one message may test whether the cause is gone. The rows that
-- may be probed are locked, so that only one of two claimers sends a probe; the other sees them as still
-- paused.
WITH probe AS (
    SELECT scope, scope_id FROM campaign_pipeline.campaign_pauses WHERE kind = 'systemic'
           AND until <= campaign_pipeline.campaign_now()
    FOR UPDATE SKIP LOCKED
)
SELECT p.scope, p.scope_id, p.kind, p.code, p.reason, p.since, p.tried_message_ids,
       NULLIF(p.until, '9999-12-31Z') AS until,  -- unknown: until a limit is raised
       EXISTS (SELECT 1 FROM probe WHERE probe.scope = p.scope AND probe.scope_id = p.scope_id)
       AND NOT EXISTS (SELECT 1 FROM campaign_pipeline.campaign_manual_pauses h
                       WHERE h.scope = p.scope AND h.scope_id = p.scope_id) AS probe_due
FROM campaign_pipeline.campaign_pauses p
WHERE p.kind = 'systemic' OR p.until > campaign_pipeline.campaign_now()
UNION ALL
SELECT h.scope, h.scope_id, 'systemic', 'paused_by_person', h.reason, h.since, '{}', NULL, false
FROM campaign_pipeline.campaign_manual_pauses h;

-- name: read_pauses
-- The paused scopes, for a shard in delivery.
SELECT scope, scope_id, kind, code, reason, EXTRACT(epoch FROM until - campaign_pipeline.campaign_now()) AS seconds
FROM campaign_pipeline.campaign_pauses
WHERE kind = 'systemic' OR until > campaign_pipeline.campaign_now();

-- name: begin_probe
-- Let one message through a paused scope; others wait for its result, at most a minute.
UPDATE campaign_pipeline.campaign_pauses
SET probe_message_id = %(message_id)s, until = campaign_pipeline.campaign_now() + interval '1 minute'
WHERE scope = %(scope)s AND scope_id = %(scope_id)s;

-- name: open_pause
-- Pause or slow down a scope. A systemic pause whose probe fails lasts twice as long, from 1 minute to 15. A longer
-- known wait (Retry-After, up to a week) wins; a mere throttle never shortens or replaces a systemic pause.
INSERT INTO campaign_pipeline.campaign_pauses AS p
    (scope, scope_id, kind, code, reason, tried_message_ids, since, until)
VALUES (%(scope)s, %(scope_id)s, %(kind)s, %(code)s, %(reason)s,
        array_remove(ARRAY[%(message_id)s::uuid], NULL), campaign_pipeline.campaign_now(),
        campaign_pipeline.campaign_now() + make_interval(secs => least(604800, COALESCE(%(seconds)s::double precision,
                                                             CASE WHEN %(kind)s = 'systemic' THEN 60 ELSE 5 END))))
ON CONFLICT (scope, scope_id) DO UPDATE
SET kind = EXCLUDED.kind, code = EXCLUDED.code, reason = EXCLUDED.reason,
    -- This message met the cause: the next probe is another one.
    tried_message_ids = (EXCLUDED.tried_message_ids || p.tried_message_ids)[1:100],
    since = CASE WHEN p.kind <> EXCLUDED.kind OR (p.kind = 'throttled' AND p.until <= campaign_pipeline.campaign_now())
                 THEN EXCLUDED.since ELSE p.since END,
    -- Many messages in flight fail for one cause together: only a failed probe, or a cause after its wait, counts
    -- again. After a mere slow-down it is a first failure.
    failures = CASE WHEN p.kind <> EXCLUDED.kind THEN 1
                    WHEN p.probe_message_id IS NOT NULL OR p.until <= campaign_pipeline.campaign_now()
                        THEN p.failures + 1 ELSE p.failures END,
    -- Doubled each time: a broken scope is probed after a minute at first and every quarter of an hour at last, a slow
    -- one after 5 seconds at first and every minute at last.
    until = CASE
        WHEN p.kind = EXCLUDED.kind AND (p.probe_message_id IS NOT NULL OR p.until <= campaign_pipeline.campaign_now())
            THEN campaign_pipeline.campaign_now()
                + make_interval(secs => least(604800, COALESCE(%(seconds)s::double precision,
                 CASE WHEN EXCLUDED.kind = 'systemic' THEN least(900, 60 * 2 ^ least(p.failures, 5))
                     ELSE least(60, 5 * 2 ^ least(p.failures, 5)) END)))
        ELSE greatest(p.until, EXCLUDED.until) END,
    probe_message_id = NULL
WHERE NOT (p.kind = 'systemic' AND EXCLUDED.kind = 'throttled')
RETURNING EXTRACT(epoch FROM until - campaign_pipeline.campaign_now()) AS seconds;

-- name: note_failure
-- How often, and for how many different recipients, a scope had this failure without a success in between. A success is
-- a part that the inbox sent meanwhile; a model's successes are not recorded, so failures older than an hour expire.
INSERT INTO campaign_pipeline.campaign_failure_streaks AS s (scope, scope_id, code, recipients, noted_at)
VALUES (%(scope)s, %(scope_id)s, %(code)s, ARRAY[%(recipient)s::uuid], campaign_pipeline.campaign_now())
ON CONFLICT (scope, scope_id, code) DO UPDATE
SET (recipients, noted_at, failures) = (
    SELECT CASE WHEN broken.yes THEN EXCLUDED.recipients
                WHEN EXCLUDED.recipients[1] = ANY (s.recipients) THEN s.recipients
                ELSE (EXCLUDED.recipients || s.recipients)[1:100] END,
           EXCLUDED.noted_at,
           CASE WHEN broken.yes THEN 1 ELSE s.failures + 1 END
    FROM (SELECT CASE s.scope
                 WHEN 'inbox' THEN EXISTS (
                     SELECT 1 FROM campaign_pipeline.campaign_message_parts p
                     WHERE p.inbox_id = s.scope_id::uuid AND p.status = 'sent' AND p.sent_at > s.noted_at)
                 ELSE s.noted_at < campaign_pipeline.campaign_now() - interval '1 hour' END AS yes) broken)
RETURNING failures, cardinality(recipients) AS recipients;

-- name: forget_failures
-- Reset the failures of a scope that worked.
DELETE FROM campaign_pipeline.campaign_failure_streaks WHERE scope = %(scope)s AND scope_id = %(scope_id)s;

-- name: drop_old_failure_streaks
-- Delete streaks that are a week old.
DELETE FROM campaign_pipeline.campaign_failure_streaks
WHERE noted_at < campaign_pipeline.campaign_now() - interval '168 hours';

-- name: drop_spent_throttles
-- Delete slow-downs half an hour after their end: until then a new one continues from their level.
DELETE FROM campaign_pipeline.campaign_pauses WHERE kind = 'throttled'
    AND until < campaign_pipeline.campaign_now() - interval '30 minutes';

-- name: release_spending_limits
-- Close the pauses of limits that were raised and of days that are over.
DELETE FROM campaign_pipeline.campaign_pauses p WHERE p.code = 'spending_limit'
    AND NOT campaign_pipeline.campaign_limit_reached(p.scope, p.scope_id);

-- name: expire_old_messages
-- Skip messages that were due too long ago (in open time; core.window computes the cut-off). Never one with a part that
-- may have been sent, nor one that a person requeued: it is late by nature, and a back-fill of many days takes longer
-- than the maximum age.
WITH late AS (
    SELECT d.id
    FROM unnest(%(run_ids)s::uuid[], %(cutoffs)s::timestamptz[]) AS c (run_id, cutoff)
    CROSS JOIN LATERAL (
        SELECT m.id FROM public.campaign_messages m
        WHERE m.run_id = c.run_id AND m.status = 'pending'
          AND campaign_pipeline.campaign_due_at(m) < c.cutoff
          AND m.requeued_at IS NULL
          AND NOT EXISTS (SELECT 1 FROM campaign_pipeline.campaign_message_parts p WHERE p.message_id = m.id
                          AND p.status <> 'planned')
        FOR UPDATE SKIP LOCKED) d
)
UPDATE public.campaign_messages m
SET status = 'skipped', error_code = 'too_old', finished_at = campaign_pipeline.campaign_now(),
    error_message = format('Due since %%s UTC, longer than the maximum age of %%s minutes of open time.',
        to_char(campaign_pipeline.campaign_due_at(m) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI'),
        %(max_age_minutes)s::integer)
FROM late WHERE m.id = late.id
RETURNING m.id, m.run_id;

-- name: spread_overdue_messages
-- After a pause: send overdue messages one by one, %(intervals)s seconds apart, the oldest first, from now. Those that
-- do not fit before the window closes become due when it closes, to be spread again when it opens (`put_off`). With a
-- cap (seconds), all of a run's are sent within it, however many there are.
UPDATE public.campaign_messages m
SET next_attempt_at
    = least(o.closes,
            campaign_pipeline.campaign_now() + make_interval(secs => o.place * least(o.seconds, o.cap / o.of_all)))
FROM (
    SELECT d.id, d.place, d.of_all, s.seconds, s.cap, s.closes
    FROM unnest(%(run_ids)s::uuid[], %(intervals)s::double precision[], %(caps)s::double precision[],
                %(closings)s::timestamptz[]) AS s (run_id, seconds, cap, closes)
    CROSS JOIN LATERAL (
        SELECT held.id, row_number() OVER (ORDER BY held.due) - 1 AS place, count(*) OVER () AS of_all
        FROM (SELECT m.id, campaign_pipeline.campaign_due_at(m) AS due
              FROM public.campaign_messages m
              WHERE m.run_id = s.run_id AND m.status = 'pending'
                AND campaign_pipeline.campaign_due_at(m) <= campaign_pipeline.campaign_now()
              FOR UPDATE SKIP LOCKED) held) d
) o
WHERE m.id = o.id
RETURNING m.id, m.run_id, m.next_attempt_at >= o.closes AS put_off;

-- name: mark_runs_resumed
-- Record that overdue messages are spread: the resume is done (null), or continues at some time.
UPDATE public.campaign_runs r SET resumed_at = s.again_at
FROM unnest(%(run_ids)s::uuid[], %(again_at)s::timestamptz[]) AS s (run_id, again_at)
WHERE r.id = s.run_id AND r.resumed_at IS DISTINCT FROM s.again_at;

-- name: note_run_waits
-- Record on each run why it waits, or clear it; unchanged rows are left alone.
UPDATE public.campaign_runs r
SET wait_code = w.code, wait_reason = w.reason, wait_until = w.until
FROM unnest(%(run_ids)s::uuid[], %(codes)s::text[], %(reasons)s::text[], %(untils)s::timestamptz[])
     AS w (run_id, code, reason, until)
WHERE r.id = w.run_id
  AND (r.wait_code, r.wait_reason, r.wait_until) IS DISTINCT FROM (w.code, w.reason, w.until)
RETURNING r.id, r.wait_code, r.wait_reason;

-- name: settle_cancelled_runs
-- Skip and count the rest of a cancelled run; messages that may have been sent become unknown.
WITH rest AS (
    SELECT m.id,
           EXISTS (SELECT 1 FROM campaign_pipeline.campaign_message_parts p WHERE p.message_id = m.id
                   AND p.status IN ('unknown', 'attempting')) AS unknown,
           EXISTS (SELECT 1 FROM campaign_pipeline.campaign_message_parts p WHERE p.message_id = m.id
                   AND p.status = 'sent') AS begun
    FROM public.campaign_runs r JOIN public.campaign_messages m ON m.run_id = r.id AND m.status = 'pending'
    WHERE r.status = 'cancelled' AND r.completed_at IS NULL
    FOR UPDATE OF m SKIP LOCKED
)
UPDATE public.campaign_messages m
SET status = CASE WHEN rest.unknown OR rest.begun THEN 'failed' ELSE 'skipped' END,
    error_class = CASE WHEN rest.unknown THEN 'unknown' WHEN rest.begun THEN 'exhausted' END,
    error_code = 'run_cancelled', finished_at = campaign_pipeline.campaign_now(),
    error_message = CASE WHEN rest.unknown
        THEN 'The run was cancelled while it was not known whether a part had gone out.'
                         WHEN rest.begun THEN 'The run was cancelled after some parts of this message had gone out.'
                         ELSE 'The run was cancelled before this message was sent.' END
FROM rest WHERE m.id = rest.id
RETURNING m.id, m.run_id;

-- name: close_runs
-- Close runs that can change no more; see campaign_close_runs.
SELECT id, name, status, leads_total, leads_success, leads_failed, leads_skipped
FROM campaign_pipeline.campaign_close_runs();

-- name: claim_messages
-- Lease the next due messages, fairly (see campaign_claim_messages), and return what the batch needs to know of them.
SELECT m.message_id, m.run_id, r.config_id, c.workspace_id, COALESCE(m.inbox_id, c.inbox_id) AS inbox_id, m.lead_id,
       %(token)s::uuid AS lease_token, greatest(m.due_at, '1970-01-01Z') AS due_at, m.retry_count
FROM campaign_pipeline.campaign_claim_messages(
    %(run_ids)s, %(quotas)s, %(batch_size)s, %(token)s, %(owner)s, %(lease_seconds)s,
    CASE WHEN %(tried_ids)s::uuid[] IS NOT NULL
         THEN campaign_pipeline.campaign_choose_probes(%(run_ids)s, %(tried_ids)s) END, %(ahead_seconds)s) m
JOIN public.campaign_runs r ON r.id = m.run_id
JOIN public.campaign_configs c ON c.id = r.config_id
ORDER BY due_at, m.message_id;

-- name: get_lead_contexts
-- Everything that the CRM knows of each lead, for a whole batch in one statement; each with its requesting workspace,
-- and only with rows of that workspace (see tenancy.sql). Values are cut: a field of 100 kB is of no use to a model,
-- and core.context omits values over 200 characters anyway.
-- Optimised for the 20,000 fields of 1,000 leads: 15 ms, instead of 36 with one sorted object per field. So custom
-- fields are one object per lead, `<position> <name>` -> value, which core.context.in_order reads, and json is written
-- directly, while jsonb would first be built.
SELECT l.id::text AS lead_id, campaign_pipeline.campaign_cut(l.phone, 100) AS phone,
       (SELECT row_to_json(known) FROM (SELECT
           campaign_pipeline.campaign_cut(l.email, 400) AS email,
               campaign_pipeline.campaign_cut(l.client_name, 400) AS client_name,
                   campaign_pipeline.campaign_cut(l.company, 400) AS company,
           l.deal_value, campaign_pipeline.campaign_cut(l.priority, 100) AS priority,
           CASE WHEN pg_column_size(l.tags) <= 400 THEN l.tags
                ELSE (SELECT array_agg(campaign_pipeline.campaign_cut(t.tag, 200))
                      FROM unnest(l.tags[1:20]) AS t (tag)) END AS tags,
           campaign_pipeline.campaign_cut(l.whatsapp_name, 400) AS whatsapp_name,
               campaign_pipeline.campaign_cut(f.name, 400) AS funnel,
           CASE WHEN NOT campaign_pipeline.campaign_is_foreign(kf.workspace_id, l.workspace_id)
                THEN campaign_pipeline.campaign_cut(k.title, 400) END AS "column",
           COALESCE(v.fields, '{}') AS custom_fields) known)::text AS context
FROM public.leads l
LEFT JOIN public.funnels f ON f.id = l.funnel_id
    AND NOT campaign_pipeline.campaign_is_foreign(f.workspace_id, l.workspace_id)
LEFT JOIN public.funnel_columns k ON k.id = l.column_id
LEFT JOIN public.funnels kf ON kf.id = k.funnel_id
LEFT JOIN (
    SELECT v.lead_id, json_object_agg(
               COALESCE(d.position::text, '') || ' ' || campaign_pipeline.campaign_cut(d.name, 400),
               campaign_pipeline.campaign_cut(v.value, 400)) AS fields
    FROM public.lead_custom_values v JOIN public.custom_fields d ON d.id = v.custom_field_id
    JOIN public.leads o ON o.id = v.lead_id
        AND NOT campaign_pipeline.campaign_is_foreign(d.workspace_id, o.workspace_id)
    -- No empty ones: of two fields with the same name and position, JSON's last would win.
    WHERE v.lead_id = ANY (%(lead_ids)s) AND v.value <> ''
    GROUP BY v.lead_id
) v ON v.lead_id = l.id
WHERE l.id = ANY (%(lead_ids)s) AND EXISTS (
    SELECT 1 FROM unnest(%(lead_ids)s::uuid[], %(workspace_ids)s::uuid[]) AS asked (lead_id, workspace_id)
    WHERE asked.lead_id = l.id AND NOT campaign_pipeline.campaign_is_foreign(l.workspace_id, asked.workspace_id));

-- name: get_batch_settings
-- What the messages of a batch share: instructions and window of each campaign, model of each workspace, splitter
-- settings, state of each inbox. No keys: this is written to a file.
SELECT jsonb_build_object(
    'campaigns', (SELECT jsonb_object_agg(c.id, jsonb_build_object(
            'instructions', c.ai_instructions, 'split_messages', COALESCE(c.split_messages, false),
            'max_split_parts', c.max_split_parts, 'start_time', c.start_time, 'end_time', c.end_time,
            'timezone', c.timezone, 'frequency', c.frequency, 'weekdays', s.weekdays, 'holidays', s.holidays,
            'retry_delays_minutes', c.retry_delays_minutes,
            'template', CASE WHEN c.template_name IS NOT NULL THEN jsonb_build_object('name', c.template_name,
                'language', c.template_language, 'variables', c.template_variables, 'body', c.template_body) END))
        FROM public.campaign_configs c LEFT JOIN campaign_pipeline.campaign_settings s ON s.config_id = c.id
        WHERE c.id = ANY (%(config_ids)s)),
    'models', (SELECT jsonb_object_agg(a.workspace_id, a.model) FROM (
            SELECT DISTINCT ON (a.workspace_id) a.workspace_id, a.model FROM public.ai_agents a
            WHERE a.workspace_id = ANY (%(workspace_ids)s) AND a.is_active AND a.model IS NOT NULL
            ORDER BY a.workspace_id, a.created_at DESC) a),
    'fallback_models', (SELECT jsonb_object_agg(a.workspace_id, to_jsonb(a.fallback_models)) FROM (
            SELECT DISTINCT ON (a.workspace_id) a.workspace_id, a.fallback_models FROM public.ai_agents a
            WHERE a.workspace_id = ANY (%(workspace_ids)s) AND a.is_active AND a.model IS NOT NULL
            ORDER BY a.workspace_id, a.created_at DESC) a
        WHERE cardinality(a.fallback_models) > 0),
    'agents', (SELECT jsonb_object_agg(a.workspace_id, jsonb_build_object('system_prompt', a.system_prompt,
            'behavior_config', CASE WHEN jsonb_typeof(a.behavior_config) = 'object' THEN jsonb_build_object(
                'max_tokens', a.behavior_config -> 'max_tokens',
                'reasoning_effort', a.behavior_config -> 'reasoning_effort') END,
            'workspace', w.name)) FROM (
            SELECT DISTINCT ON (a.workspace_id) a.* FROM public.ai_agents a
            WHERE a.workspace_id = ANY (%(workspace_ids)s) AND a.is_active AND a.model IS NOT NULL
            ORDER BY a.workspace_id, a.created_at DESC) a
        JOIN public.workspaces w ON w.id = a.workspace_id),
    'text_records', (SELECT jsonb_object_agg(t.scope_id, jsonb_build_object('refused_in_a_row', t.refused_in_a_row,
            'reasons', t.reasons)) FROM campaign_pipeline.campaign_text_records t
        WHERE (t.refused_in_a_row > 0 OR t.reasons) AND (t.scope = 'model' OR t.scope_id IN (
            SELECT r.id::text FROM public.campaign_runs r
            WHERE r.config_id = ANY (%(config_ids)s) AND r.status = 'running'))),
    'own_accounts', (SELECT jsonb_agg(w.id) FROM unnest(%(workspace_ids)s::uuid[]) AS w (id)
        WHERE campaign_pipeline.campaign_own_key(w.id) IS NOT NULL),
    'limited',
        (SELECT jsonb_agg(c.id) FROM public.campaign_configs c LEFT JOIN public.workspaces w ON w.id = c.workspace_id
        WHERE c.id = ANY (%(config_ids)s)
            AND (c.max_cost_usd_per_run IS NOT NULL OR w.max_cost_usd_per_day IS NOT NULL)),
    'one_a_day', (SELECT jsonb_agg(w.id) FROM public.workspaces w
        WHERE w.id = ANY (%(workspace_ids)s) AND w.one_message_per_lead_per_day),
    'inboxes', (SELECT jsonb_object_agg(b.id, jsonb_build_object('name', b.name)) FROM public.inboxes b
        WHERE b.id = ANY (%(inbox_ids)s) AND b.workspace_id = ANY (%(workspace_ids)s)),
    'splitter', (SELECT jsonb_build_object('strategy', s.strategy, 'min_chars', s.min_chars_to_split,
            'delay_ms', s.delay_between_messages, 'max_tokens', s.max_tokens, 'temperature', s.temperature, 'model',
                s.model,
            'system_prompt', s.system_prompt)
        FROM public.ai_message_splitter_config s WHERE s.is_active LIMIT 1)) AS settings;

-- name: get_inbox_connection
-- How to reach an inbox, keys included: each shard reads it for itself, and never writes it anywhere.
SELECT b.id AS inbox_id, b.workspace_id, i.id AS instance_id, i.name, i.provider, i.provider_type, i.api_key,
       i.instance_token, i.phone_number, i.status, COALESCE(i.settings, '{}') AS settings,
       COALESCE(i.provider_config, '{}') AS provider_config,
       campaign_pipeline.campaign_own_key(b.workspace_id) AS openrouter_api_key
FROM public.inboxes b
JOIN public.inbox_instances x ON x.inbox_id = b.id
-- Never through another workspace's instance, with its keys.
JOIN public.instances i ON i.id = x.instance_id
    AND NOT campaign_pipeline.campaign_is_foreign(i.workspace_id, b.workspace_id)
WHERE b.id = %(inbox_id)s
ORDER BY (i.status = 'connected') DESC NULLS LAST, i.last_connected_at DESC NULLS LAST, i.id
LIMIT 1;

-- name: take_over_messages
-- Put the messages of a shard under the shard's own lease; see campaign_take_over.
SELECT t.message_id::text AS message_id, t.verdict
FROM campaign_pipeline.campaign_take_over(%(ids)s, %(batch_token)s, %(token)s, %(owner)s, %(lease_seconds)s) t;

-- name: read_leased_messages
-- What a shard delivers: the messages that it holds, with their stored text and ledger.
SELECT m.id::text AS id, m.run_id::text AS run_id, r.config_id::text AS config_id,
       c.workspace_id::text AS workspace_id, COALESCE(m.inbox_id, c.inbox_id)::text AS inbox_id,
       m.lead_id::text AS lead_id, m.phone_number, m.generated_message AS text,
       m.subject, m.template, m.retry_count,
       least(greatest(campaign_pipeline.campaign_due_at(m), '1970-01-01Z'), '9999-01-01Z') AS due_at,
       (SELECT array_agg(DISTINCT k.rule) FROM campaign_pipeline.campaign_model_calls k
        WHERE k.message_id = m.id AND k.purpose = 'text' AND k.rule IS NOT NULL) AS refused_rules,
       campaign_pipeline.campaign_now() AS now,
       COALESCE((SELECT jsonb_agg(jsonb_build_object('part_no', p.part_no, 'text', p.text, 'status', p.status,
                        'attempts', p.attempts, 'address', p.address, 'inbox_id', p.inbox_id,
                        'error_code', p.error_code, 'resend_approved', p.resend_approved_at IS NOT NULL,
                        'attempted_at', EXTRACT(epoch FROM p.attempted_at),
                        'lease_ended_at', EXTRACT(epoch FROM p.lease_ended_at)) ORDER BY p.part_no)
                 FROM campaign_pipeline.campaign_message_parts p WHERE p.message_id = m.id), '[]') AS parts,
       COALESCE((SELECT d.deaths FROM campaign_pipeline.campaign_worker_deaths d WHERE d.message_id = m.id), 0)
           AS worker_deaths
FROM public.campaign_messages m
JOIN public.campaign_runs r ON r.id = m.run_id
JOIN public.campaign_configs c ON c.id = r.config_id
WHERE m.id = ANY (%(ids)s) AND m.lease_token = %(token)s AND campaign_pipeline.campaign_is_leased(m.status)
ORDER BY campaign_pipeline.campaign_due_at(m), m.id;

-- name: read_planned_times
-- When messages that a shard holds are due now: the CRM may have moved them.
SELECT m.id, least(greatest(campaign_pipeline.campaign_due_at(m), '1970-01-01Z'), '9999-01-01Z') AS due_at
FROM public.campaign_messages m
WHERE m.id = ANY (%(ids)s) AND m.lease_token = %(token)s AND campaign_pipeline.campaign_is_leased(m.status);

-- name: read_finished_messages
-- The messages of a shard that an earlier worker of it finished, and how.
SELECT m.id, m.status, m.error_class, COALESCE(m.error_code, m.status) AS code,
       COALESCE(m.error_message, m.last_error, '') AS reason
FROM public.campaign_messages m
WHERE m.id = ANY (%(ids)s) AND m.status IN ('sent', 'replied', 'failed', 'skipped');

-- name: renew_leases
-- Heartbeat; see campaign_renew_leases.
SELECT r.id FROM campaign_pipeline.campaign_renew_leases(%(ids)s, %(token)s, %(lease_seconds)s) AS r (id);

-- name: start_generating
SELECT message_id, verdict FROM campaign_pipeline.campaign_start_generating(%(starts)s);

-- name: begin_parts
SELECT message_id, verdict, conversation_id, wait_seconds, wait_code, grace_seconds
       FROM campaign_pipeline.campaign_begin_parts(%(items)s);

-- name: peek_turn
-- How long a message waits for its turn, and why; takes nothing.
SELECT wait_seconds, wait_code FROM campaign_pipeline.campaign_peek_turn(%(message_id)s, %(inbox_id)s);

-- name: slow_inbox_down
-- Slow an inbox down after a provider's report; returns by which factor it is slower now.
SELECT campaign_pipeline.campaign_slow_down(%(inbox_id)s) AS factor;

-- name: drop_recovered_paces
-- Delete the slow-down of a recovered inbox without a pace of its own: its messages no longer check it.
DELETE FROM campaign_pipeline.campaign_pace_state s
WHERE (s.scope, s.scope_id) IN (
    SELECT x.scope, x.scope_id FROM campaign_pipeline.campaign_pace_state x
    WHERE x.scope = 'inbox' AND x.slowed_at < campaign_pipeline.campaign_now() - interval '45 minutes'
      AND NOT EXISTS (SELECT 1 FROM campaign_pipeline.campaign_inbox_pace p WHERE p.inbox_id = x.scope_id)
    FOR UPDATE SKIP LOCKED);

-- name: list_paces
-- The pacing state of these inboxes and campaigns, if they have a pace; leased, unbegun messages count as used.
WITH run AS (
    SELECT u.run_id, u.inbox_id, u.config_id
    FROM unnest(%(run_ids)s::uuid[], %(inbox_ids)s::uuid[], %(config_ids)s::uuid[]) AS u (run_id, inbox_id, config_id)
), member AS (
    SELECT 'inbox' AS scope, run.inbox_id AS id, run.run_id FROM run
    WHERE EXISTS (SELECT 1 FROM campaign_pipeline.campaign_inbox_pace p WHERE p.inbox_id = run.inbox_id)
       OR EXISTS (SELECT 1 FROM campaign_pipeline.campaign_pace_state s WHERE s.scope = 'inbox'
                  AND s.scope_id = run.inbox_id)
    UNION ALL
    SELECT 'campaign', run.config_id, run.run_id FROM run
    JOIN public.campaign_configs c ON c.id = run.config_id AND (c.min_interval_seconds > 0 OR c.daily_limit IS NOT NULL)
        AND COALESCE(c.enforce_pace, (SELECT campaign_pipeline.campaign_is_planner()))
), scope AS (
    SELECT member.scope, member.id, sum(leased.n)::integer AS leased
    FROM member
    -- All three statuses are named for the index campaign_messages_leased.
    CROSS JOIN LATERAL (SELECT count(*) AS n FROM public.campaign_messages m WHERE m.run_id = member.run_id
                        AND campaign_pipeline.campaign_is_leased_indexed(m.status) AND m.status <> 'sending') leased
    GROUP BY member.scope, member.id
)
SELECT scope.scope, scope.id AS scope_id, scope.leased, p.gap_seconds, p.jitter, p.slow_factor, p.hourly_limit,
       p.hour_count,
       p.daily_limit, p.day_count, p.zone, greatest(p.free_at, campaign_pipeline.campaign_now()) AS free_at, p.code,
           campaign_pipeline.campaign_now() AS now
FROM scope CROSS JOIN LATERAL campaign_pipeline.campaign_pace(scope.scope, scope.id) p;

-- name: note_pace_holds
-- Since when more is due in these runs than their pace admits (null: nothing due is left).
UPDATE public.campaign_runs r
SET pace_held_since = CASE WHEN due.waits THEN COALESCE(r.pace_held_since, campaign_pipeline.campaign_now()) END
FROM unnest(%(run_ids)s::uuid[]) AS u (run_id)
CROSS JOIN LATERAL (SELECT COALESCE((
    SELECT campaign_pipeline.campaign_due_at(m) <= campaign_pipeline.campaign_now()
           FROM public.campaign_messages m
    WHERE m.run_id = u.run_id AND m.status = 'pending'
    ORDER BY campaign_pipeline.campaign_due_at(m) LIMIT 1), false) AS waits) due
WHERE r.id = u.run_id AND (r.pace_held_since IS NOT NULL) IS DISTINCT FROM due.waits;

-- name: note_active_inboxes
-- The fallback inbox that each run uses now (null: its own); unchanged rows are left alone.
UPDATE public.campaign_runs r SET active_inbox_id = u.inbox_id
FROM unnest(%(run_ids)s::uuid[], %(inbox_ids)s::uuid[]) AS u (run_id, inbox_id)
WHERE r.id = u.run_id AND r.active_inbox_id IS DISTINCT FROM u.inbox_id;

-- name: settle
SELECT message_id, applied, moved, final FROM campaign_pipeline.campaign_settle(%(ends)s);

-- name: settle_and_start
-- Both in one transaction and one round trip, in this order: the start sees what the ends changed.
SELECT message_id, applied, moved, final, NULL AS verdict FROM campaign_pipeline.campaign_settle(%(ends)s)
UNION ALL
SELECT message_id, NULL, NULL, NULL, verdict FROM campaign_pipeline.campaign_start_generating(%(starts)s);

-- name: find_control_part
-- A part that this inbox certainly sent some time ago, to prove that look-ups work; the provider ids that other parts
-- to the same address got since the attempt began, which cannot be its result; and the CRM's own records
-- of this text in the conversation.
SELECT (SELECT p.provider_message_id FROM campaign_pipeline.campaign_message_parts p
        WHERE p.inbox_id = %(inbox_id)s AND p.status = 'sent'
            AND p.sent_at < campaign_pipeline.campaign_now() - interval '10 seconds'
          AND p.provider_message_id IS NOT NULL  -- an erased person's part has none
        ORDER BY p.sent_at DESC LIMIT 1) AS control_provider_id,
       (SELECT COALESCE(array_agg(p.provider_message_id), '{}') FROM campaign_pipeline.campaign_message_parts p
        WHERE p.inbox_id = %(inbox_id)s AND p.status = 'sent' AND p.address = %(address)s
          AND p.sent_at >= to_timestamp(%(started_at)s) - interval '24 hours') AS taken_provider_ids,
       -- What others (the CRM's own sender) wrote of this text into the conversation since the attempt began.
       (SELECT COALESCE(array_agg(COALESCE(v.provider_message_id, v.id::text) ORDER BY v.created_at), '{}')
        FROM public.campaign_messages m JOIN public.messages v ON v.conversation_id = m.conversation_id
        WHERE m.id = %(message_id)s AND COALESCE(v.message_type, '') NOT IN ('received', 'incoming', 'delete')
          AND v.created_at >= to_timestamp(%(started_at)s) - interval '2 seconds'
          AND btrim(v.text_content) = btrim(%(text)s)) AS conversation_ids;

-- name: write_logs
-- Write log lines in bulk. The CRM may have deleted the run meanwhile (then there is no log to write to), or the lead
-- or the message (then the line is written without it).
INSERT INTO public.campaign_logs (id, run_id, step_number, step_name, level, message, details, lead_id, message_id,
                                  created_at)
SELECT campaign_pipeline.campaign_new_id(), r.id, COALESCE(l.step_number, 0), l.step_name, l.level, l.message,
       l.details,
       (SELECT x.id FROM public.leads x WHERE x.id = l.lead_id),
       (SELECT x.id FROM public.campaign_messages x WHERE x.id = l.message_id), campaign_pipeline.campaign_now()
FROM jsonb_to_recordset(%(lines)s) AS l (run_id uuid, step_number integer, step_name text, level text, message text,
     details jsonb, lead_id uuid, message_id uuid)
LEFT JOIN public.campaign_runs r ON r.id = l.run_id
WHERE r.id IS NOT NULL OR l.run_id IS NULL;
