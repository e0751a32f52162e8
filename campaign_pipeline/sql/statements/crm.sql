-- What attaching to a CRM and detaching from it ask and do.

-- name: list_miscounted_runs
-- Open runs whose counters differ from a recount of their messages (I6).
SELECT r.id
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

-- name: recount_run
-- Recount one run, if it is still open.
SELECT campaign_pipeline.campaign_recount_run(%(run_id)s);
