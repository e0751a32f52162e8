-- Serves: can this run close. Without the expiry, or each heartbeat would write it anew.
-- Leased messages are looked for by run (can it close) and by expiry (whose holder died, is anything being sent). While the
-- statistics say that hardly any message is leased, either index is as good as the other for the planner, and by run it
-- reads all that are leased to find none expired: 15,000 leases, 76 ms a tick. Nobody who does not ask by run may have it.
DROP INDEX CONCURRENTLY IF EXISTS public.campaign_messages_leased;
CREATE INDEX CONCURRENTLY IF NOT EXISTS campaign_messages_leased
    ON public.campaign_messages (run_id)
    WHERE status IN ('queued', 'generating', 'sending') AND run_id IS NOT NULL;
