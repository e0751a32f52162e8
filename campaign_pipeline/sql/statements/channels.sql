-- Statements for providers: status events, unrecognised answers, spending.

-- name: read_last_inbound
-- When the lead of each message last wrote to this inbox, if within some hours.
SELECT m.id AS message_id, EXTRACT(epoch FROM inbound.at) AS last_inbound_at
FROM public.campaign_messages m
CROSS JOIN LATERAL (
    SELECT max(v.created_at) AS at FROM public.conversations c JOIN public.messages v ON v.conversation_id = c.id
    WHERE c.lead_id = m.lead_id AND c.inbox_id = %(inbox_id)s AND v.message_type IN ('received', 'incoming')
      AND v.created_at > campaign_pipeline.campaign_now() - make_interval(hours => %(hours)s)) inbound
WHERE m.id = ANY (%(ids)s) AND inbound.at IS NOT NULL;

-- name: take_status_events
-- Lock the next status events that the CRM's webhook stored, until the commit.
SELECT e.id, e.payload FROM campaign_pipeline.campaign_status_events e
WHERE e.settled_at IS NULL AND e.try_after <= campaign_pipeline.campaign_now()
ORDER BY e.try_after LIMIT %(limit)s FOR UPDATE SKIP LOCKED;

-- name: apply_status_events
SELECT event_id, verdict FROM campaign_pipeline.campaign_apply_status_events(%(events)s);

-- name: note_status_events
-- Record the result of each event; those whose part is being sent are retried in a minute, for a week.
UPDATE campaign_pipeline.campaign_status_events e
SET settled_at = CASE WHEN done.verdict <> 'later' THEN campaign_pipeline.campaign_now() END,
    verdict = NULLIF(done.verdict, 'later'), try_after = campaign_pipeline.campaign_now() + interval '1 minute'
FROM (SELECT u.id, CASE WHEN u.verdict = 'later'
      AND w.received_at < campaign_pipeline.campaign_now() - interval '168 hours' THEN 'given_up'
                        ELSE u.verdict END AS verdict
      FROM unnest(%(ids)s::bigint[], %(verdicts)s::text[]) AS u (id, verdict)
      JOIN campaign_pipeline.campaign_status_events w ON w.id = u.id) done
WHERE e.id = done.id;

-- name: drop_settled_status_events
-- Delete settled events: they contain personal data, and are no longer needed.
DELETE FROM campaign_pipeline.campaign_status_events
    WHERE settled_at < campaign_pipeline.campaign_now() - interval '720 hours';

-- name: store_webhook_events
-- Store webhook events; repeated ones are ignored.
INSERT INTO campaign_pipeline.campaign_webhook_events (provider, event_id, instance, kind, body)
SELECT e.provider, e.event_id, e.instance, e.kind, e.body
FROM jsonb_to_recordset(%(events)s) AS e (provider text, event_id text, instance text, kind text, body jsonb)
ON CONFLICT (provider, event_id) DO NOTHING
RETURNING id;

-- name: settle_webhook_events
SELECT verdict, events FROM campaign_pipeline.campaign_settle_webhook_events(%(limit)s);

-- name: drop_settled_webhook_events
-- Delete settled events. Their ids detect repetitions, but no provider repeats an event after this time.
WITH dropped AS (
    DELETE FROM campaign_pipeline.campaign_webhook_events
    WHERE settled_at < campaign_pipeline.campaign_now() - interval '720 hours' RETURNING 1
)
SELECT count(*) AS dropped FROM dropped;
