-- Requeueing failed messages.

-- Return failed messages to the queue, due now, with new attempts in addition to the earlier ones; sent parts stay
-- sent. Messages that may have been sent (class unknown) are included only with p_resend_unknown: they are looked up
-- once more, and sent if not found. A run that was closed with them reopens, and closes again.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_requeue_failed(
    p_ids uuid[], p_resend_unknown boolean DEFAULT false
) RETURNS SETOF uuid LANGUAGE plpgsql AS $$
DECLARE
    again uuid[];
BEGIN
    -- Runs first, in the order of their ids, as everywhere.
    PERFORM 1 FROM public.campaign_runs r
    WHERE r.id IN (SELECT m.run_id FROM public.campaign_messages m WHERE m.id = ANY (p_ids))
    ORDER BY r.id FOR NO KEY UPDATE;
    SELECT array_agg(f.id) INTO again
    FROM (SELECT m.id FROM public.campaign_messages m
          WHERE m.id = ANY (p_ids) AND m.status = 'failed'
            AND (m.error_class IS DISTINCT FROM 'unknown' OR p_resend_unknown)
            -- A cancelled run is never resumed: its message would wait for ever.
            AND EXISTS (SELECT 1 FROM public.campaign_runs r
                        WHERE r.id = m.run_id AND r.status IN ('running', 'paused', 'completed'))
          ORDER BY m.id FOR UPDATE) f;

    UPDATE campaign_pipeline.campaign_message_parts p
    SET status = CASE WHEN p.status = 'failed' THEN 'planned' ELSE p.status END,
        resend_approved_at = CASE WHEN p.status = 'unknown' THEN campaign_pipeline.campaign_now() END
    WHERE p.message_id = ANY (again) AND (p.status = 'failed' OR (p.status = 'unknown' AND p_resend_unknown));

    DELETE FROM campaign_pipeline.campaign_worker_deaths d WHERE d.message_id = ANY (again);

    UPDATE public.campaign_runs r
    SET status = 'running', completed_at = NULL
    WHERE r.status = 'completed' AND r.id IN (SELECT m.run_id FROM public.campaign_messages m WHERE m.id = ANY (again));

    RETURN QUERY
    UPDATE public.campaign_messages m
    SET status = 'pending', retry_count = 0, next_attempt_at = campaign_pipeline.campaign_now(), lease_token = NULL,
        lease_expires_at = NULL,
        error_class = NULL, error_code = NULL, error_message = NULL, finished_at = NULL,
            requeued_at = campaign_pipeline.campaign_now()
    WHERE m.id = ANY (again)
    RETURNING m.id;
END $$;
