-- An operator's actions, from the command line or the UI. Each writes its own line to campaign_logs: who, what, why.

-- name: pause_by_hand
-- Pause an inbox, a workspace, or all; the first person to pause stays recorded. Returns since when it is paused.
WITH paused AS (
    INSERT INTO campaign_pipeline.campaign_manual_pauses AS h (scope, scope_id, reason, paused_by, since)
    VALUES (%(scope)s, %(scope_id)s, %(reason)s, %(by)s, campaign_pipeline.campaign_now())
    ON CONFLICT DO NOTHING
    RETURNING h.since
), log AS (
    INSERT INTO public.campaign_logs (step_number, step_name, level, message, details, created_at)
    SELECT 0, 'operator', 'warning', %(log)s,
           jsonb_build_object('action', 'pause', 'scope', %(scope)s::text, 'scope_id', %(scope_id)s::text,
                              'by', %(by)s::text),
           campaign_pipeline.campaign_now()
    FROM paused
)
SELECT paused.since, true AS changed, %(by)s::text AS paused_by FROM paused
UNION ALL
SELECT h.since, false, h.paused_by FROM campaign_pipeline.campaign_manual_pauses h
WHERE h.scope = %(scope)s AND h.scope_id = %(scope_id)s;

-- name: resume_by_hand
-- End a manual pause. No row: there was none.
WITH resumed AS (
    DELETE FROM campaign_pipeline.campaign_manual_pauses h
    WHERE h.scope = %(scope)s AND h.scope_id = %(scope_id)s
    RETURNING h.since, h.paused_by
), log AS (
    INSERT INTO public.campaign_logs (step_number, step_name, level, message, details, created_at)
    SELECT 0, 'operator', 'info', %(log)s,
           jsonb_build_object('action', 'resume', 'scope', %(scope)s::text, 'scope_id', %(scope_id)s::text,
                              'by', %(by)s::text),
           campaign_pipeline.campaign_now()
    FROM resumed
)
SELECT since, paused_by FROM resumed;

-- name: set_run_status
-- Pause, resume or cancel a run, if its status allows it. Returns its previous status; no row: it was deleted, or
-- `was` differs. When the run is resumed, messages that the CRM's own pause had skipped wait again: otherwise the run
-- would end, and the CRM's clean-up delete it.
WITH run AS (
    SELECT r.id, r.status FROM public.campaign_runs r
    WHERE r.id = %(run_id)s AND r.status = ANY (%(was)s) FOR NO KEY UPDATE
), changed AS (
    UPDATE public.campaign_runs r SET status = %(status)s FROM run WHERE r.id = run.id RETURNING r.id
), put_back AS (
    UPDATE public.campaign_messages m
    SET status = 'pending', error_message = NULL, error_class = NULL, error_code = NULL, finished_at = NULL,
        next_attempt_at = NULL, lease_token = NULL, lease_expires_at = NULL
    FROM changed
    WHERE m.run_id = changed.id AND %(status)s = 'running' AND m.status = 'skipped'
      AND position('ausad' IN m.error_message) > 0  -- recognised like in its resume_campaign_run
), log AS (
    INSERT INTO public.campaign_logs (run_id, step_number, step_name, level, message, details, created_at)
    SELECT changed.id, 0, 'operator', 'warning', %(log)s,
           jsonb_build_object('action', %(action)s::text, 'by', %(by)s::text), campaign_pipeline.campaign_now()
    FROM changed
)
SELECT run.status AS before FROM run JOIN changed ON changed.id = run.id;

-- name: lift_pause
-- Close the circuit of a scope now, and reset its failures: messages that wait for it go on.
WITH lifted AS (
    DELETE FROM campaign_pipeline.campaign_pauses p WHERE p.scope = %(scope)s AND p.scope_id = %(scope_id)s
    RETURNING p.code, p.reason, p.since
), forgotten AS (
    DELETE FROM campaign_pipeline.campaign_failure_streaks s WHERE s.scope = %(scope)s AND s.scope_id = %(scope_id)s
), log AS (
    INSERT INTO public.campaign_logs (step_number, step_name, level, message, details, created_at)
    SELECT 0, 'operator', 'warning', %(log)s,
           jsonb_build_object('action', 'lift', 'scope', %(scope)s::text, 'scope_id', %(scope_id)s::text,
                              'code', lifted.code, 'by', %(by)s::text),
           campaign_pipeline.campaign_now()
    FROM lifted
)
SELECT code, reason, since FROM lifted;

-- name: list_failed_by_id
-- These messages, and whether each may be sent again.
SELECT m.id, m.run_id, m.status, m.error_class, m.error_code, r.status AS run_status
FROM public.campaign_messages m JOIN public.campaign_runs r ON r.id = m.run_id
WHERE m.id = ANY (%(ids)s);

-- name: log_operator
-- Log an operator's action on messages: one line per run.
INSERT INTO public.campaign_logs (run_id, step_number, step_name, level, message, details, created_at)
SELECT r.id, 0, 'operator', 'info', %(log)s,
       jsonb_build_object('action', %(action)s::text, 'by', %(by)s::text, 'messages', u.messages),
       campaign_pipeline.campaign_now()
FROM unnest(%(run_ids)s::uuid[], %(counts)s::integer[]) AS u (run_id, messages)
JOIN public.campaign_runs r ON r.id = u.run_id;
