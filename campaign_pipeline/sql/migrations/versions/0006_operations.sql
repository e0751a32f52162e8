-- What back-fills, reports and maintenance need.

-- Back-fills and watching --------------------------------------------------------------------------------------------

ALTER TABLE public.campaign_messages
    ADD COLUMN IF NOT EXISTS requeued_at timestamptz;

COMMENT ON COLUMN public.campaign_messages.requeued_at IS
    'When a person last asked for it to be sent again after it had failed. Such a message is never skipped for being late.';

-- Serves: list_failed_messages (what failed on a day, for a back-fill), count_failed_by_day.
CREATE INDEX CONCURRENTLY IF NOT EXISTS campaign_messages_failed
    ON public.campaign_messages (finished_at) WHERE status = 'failed';

-- Serves: count_backlog, find_unknown_outcomes (what may have gone out and waits for a person). Empty where all is well.
CREATE INDEX CONCURRENTLY IF NOT EXISTS campaign_messages_unknown ON public.campaign_messages (run_id)
    WHERE status = 'failed' AND error_class = 'unknown';

-- Serves: delete_old_logs.
CREATE INDEX CONCURRENTLY IF NOT EXISTS campaign_logs_by_age
    ON public.campaign_logs (created_at);

-- Reports ------------------------------------------------------------------------------------------------------------

-- Each is written once a message, when it ends: a waiting or leased message is in none of them.
-- Serves: report_campaign_day.
CREATE INDEX CONCURRENTLY IF NOT EXISTS campaign_messages_finished
    ON public.campaign_messages (finished_at) WHERE finished_at IS NOT NULL;

-- Serves: find_wrong_counters, the recount of one run, without reading the messages themselves.
CREATE INDEX CONCURRENTLY IF NOT EXISTS campaign_messages_counted
    ON public.campaign_messages (run_id, status) WHERE status IN ('sent', 'replied', 'failed', 'skipped');
