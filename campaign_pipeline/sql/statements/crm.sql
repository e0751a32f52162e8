-- Statements for attaching to a CRM and detaching from it.

-- name: recount_run
-- Recount one run, if it is still open.
SELECT campaign_pipeline.campaign_recount_run(%(run_id)s);

-- name: read_attachment
-- Whether the pipeline is attached to the CRM.
SELECT a.attached_at, a.detached_at FROM campaign_pipeline.campaign_crm_attachment a;

-- name: mark_attaching
-- From here on the pipeline may claim messages again, and an upgrade restores its triggers.
UPDATE campaign_pipeline.campaign_crm_attachment SET detached_at = NULL WHERE detached_at IS NOT NULL;

-- name: mark_attached
-- The CRM's own processor claims nothing any more. Old records of foreign changes are deleted.
WITH old AS (
    DELETE FROM campaign_pipeline.campaign_foreign_changes
    WHERE noticed_at < campaign_pipeline.campaign_now() - interval '720 hours'
)
UPDATE campaign_pipeline.campaign_crm_attachment
SET attached_at = COALESCE(attached_at, campaign_pipeline.campaign_now()), detached_at = NULL;

-- name: mark_detached
-- From here on the pipeline claims nothing any more. Waits for claims in progress.
UPDATE campaign_pipeline.campaign_crm_attachment
SET attached_at = NULL, detached_at = COALESCE(detached_at, campaign_pipeline.campaign_now());

-- name: keep_function
-- Save the definition of a function of the CRM before it is replaced.
INSERT INTO campaign_pipeline.campaign_replaced_functions (function, definition, replaced_at)
VALUES (%(function)s, %(definition)s, campaign_pipeline.campaign_now())
ON CONFLICT (function) DO UPDATE SET definition = EXCLUDED.definition, replaced_at = EXCLUDED.replaced_at;

-- name: list_kept_functions
-- The replaced functions of the CRM.
SELECT f.function, f.definition FROM campaign_pipeline.campaign_replaced_functions f ORDER BY f.function;

-- name: forget_function
-- Delete the saved definition: the function is restored.
DELETE FROM campaign_pipeline.campaign_replaced_functions WHERE function = %(function)s;

-- name: settle_old_processor
-- Settle what the CRM's own processor claimed and never finished.
SELECT s.verdict, count(*) AS messages FROM campaign_pipeline.campaign_settle_old_processor() s GROUP BY s.verdict;

-- name: count_in_flight
-- Count held messages: under the pipeline's live or expired leases, or by the CRM's own processor, which has no leases.
SELECT count(*) FILTER (WHERE m.lease_expires_at > campaign_pipeline.campaign_now()) AS leased,
       count(*) FILTER (WHERE m.lease_expires_at <= campaign_pipeline.campaign_now()) AS expired,
       count(*) FILTER (WHERE m.lease_expires_at IS NULL) AS unleased
FROM public.campaign_messages m WHERE campaign_pipeline.campaign_is_leased_indexed(m.status);

-- name: give_back_unbegun
-- Give back messages that the pipeline holds and has not begun; with %(begun)s also those in generation.
UPDATE public.campaign_messages m
SET status = 'pending', lease_token = NULL, lease_expires_at = NULL,
    last_error = 'Given back when the pipeline was detached from the CRM.'
WHERE m.id IN (
    SELECT o.id FROM public.campaign_messages o
    WHERE (o.status = 'queued' OR (o.status = 'generating' AND %(begun)s))
      AND o.lease_expires_at > campaign_pipeline.campaign_now()
      AND NOT EXISTS (SELECT FROM campaign_pipeline.campaign_message_parts p
                      WHERE p.message_id = o.id AND p.status IN ('attempting', 'unknown', 'sent'))
    ORDER BY o.id LIMIT 1000 FOR UPDATE SKIP LOCKED);

-- name: leave_to_crm
-- One step of leaving the queue to the CRM.
SELECT l.failed_half_sent, l.due_now, l.cleared FROM campaign_pipeline.campaign_leave_to_crm(2000) l;

-- name: count_foreign_changes
-- Messages that another program claimed or finished while attached, in the last %(days)s days, and which program.
SELECT f.by_role, f.application, f.became, count(*) AS messages, max(f.noticed_at) AS last_at,
       (array_agg(f.message_id ORDER BY f.noticed_at DESC))[1:3] AS examples
FROM campaign_pipeline.campaign_foreign_changes f
WHERE f.noticed_at >= campaign_pipeline.campaign_now() - make_interval(hours => 24 * %(days)s)
GROUP BY f.by_role, f.application, f.became ORDER BY max(f.noticed_at) DESC;
