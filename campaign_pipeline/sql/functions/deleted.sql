-- Messages that the CRM deleted before they were completely sent.

-- Messages that the CRM deleted while a part was in flight: the leads of parts that were or may have been sent move on,
-- so that no other run contacts them as new, and the run's log, if the run still exists, says what was done.
-- p_changed: the messages with a part that was settled just now.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_end_deleted(p_gone uuid[], p_changed uuid[]) RETURNS void
LANGUAGE plpgsql SET jit = off SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    settled uuid[] := ARRAY(SELECT g.id FROM unnest(p_gone) AS g (id) WHERE g.id = ANY (p_changed));
BEGIN
    IF cardinality(settled) = 0 THEN
        RETURN;
    END IF;
    PERFORM campaign_pipeline.campaign_move_leads(ARRAY(
        SELECT s.id FROM unnest(settled) AS s (id)
        WHERE EXISTS (SELECT 1 FROM campaign_pipeline.campaign_message_parts p
                      WHERE p.message_id = s.id AND p.status IN ('sent', 'unknown'))));
    INSERT INTO public.campaign_logs (run_id, step_number, step_name, level, message, details, lead_id, created_at)
    SELECT r.id, 0, 'send', CASE WHEN t.sent + t.unknown > 0 THEN 'warning' ELSE 'info' END,
           'The message was deleted before all of it was sent. ' || CASE
               WHEN t.sent > 0
                   THEN format('%s of its %s parts went out: recorded, shown in the chat, and the lead was moved.',
                                           t.sent, t.parts)
               WHEN t.unknown > 0 THEN 'Nobody knows whether a part went out; the lead was moved as if it had.'
               ELSE 'Nothing of it went out.' END || ' Nothing more is sent.',
           jsonb_build_object('message_id', t.id, 'parts', t.parts, 'sent', t.sent, 'unknown', t.unknown),
           (SELECT l.id FROM public.leads l WHERE l.id = t.lead_id), campaign_pipeline.campaign_now()
    FROM (SELECT s.id, min(p.run_id::text)::uuid AS run_id, min(p.lead_id::text)::uuid AS lead_id, count(*) AS parts,
                 count(*) FILTER (WHERE p.status = 'sent') AS sent,
                 count(*) FILTER (WHERE p.status IN ('unknown', 'attempting')) AS unknown
          FROM unnest(settled) AS s (id)
          JOIN campaign_pipeline.campaign_message_parts p ON p.message_id = s.id GROUP BY s.id) t
    JOIN public.campaign_runs r ON r.id = t.run_id;
    DELETE FROM campaign_pipeline.campaign_deleted_in_flight x
    WHERE x.message_id = ANY (settled)
      AND NOT EXISTS (SELECT 1 FROM campaign_pipeline.campaign_message_parts p
                      WHERE p.message_id = x.message_id AND p.status = 'attempting');
EXCEPTION WHEN OTHERS THEN
    IF campaign_pipeline.campaign_is_passing(SQLSTATE) THEN
        RAISE;
    END IF;
    RAISE WARNING 'What was done with deleted campaign messages could not be logged: %', SQLERRM;
END $$;

-- Of messages that were deleted before they were completely sent: leads that got a part move on. A part in flight that
-- no worker settled within five minutes will not be settled any more; it may have been sent.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_settle_deleted() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    deleted uuid[];
    lost    uuid[];
BEGIN
    SELECT array_agg(d.message_id) INTO deleted
    FROM (SELECT x.message_id FROM campaign_pipeline.campaign_deleted_in_flight x
          WHERE x.deleted_at < campaign_pipeline.campaign_now() - interval '5 minutes'
             OR NOT EXISTS (SELECT 1 FROM campaign_pipeline.campaign_message_parts p
                            WHERE p.message_id = x.message_id AND p.status = 'attempting')
          FOR UPDATE SKIP LOCKED) d;
    IF deleted IS NULL THEN
        RETURN;
    END IF;
    UPDATE campaign_pipeline.campaign_message_parts p
    SET status = 'unknown', error_class = 'unknown', error_code = 'worker_died',
        error_message = 'The process that was sending this part ended before it could record an answer.',
        lease_ended_at = campaign_pipeline.campaign_now()
    WHERE p.message_id = ANY (deleted) AND p.status = 'attempting';
    SELECT array_agg(DISTINCT p.message_id) INTO lost FROM campaign_pipeline.campaign_message_parts p
    WHERE p.message_id = ANY (deleted) AND p.status IN ('sent', 'unknown');
    PERFORM campaign_pipeline.campaign_end_deleted(lost, lost);
    DELETE FROM campaign_pipeline.campaign_deleted_in_flight x WHERE x.message_id = ANY (deleted);
END $$;
