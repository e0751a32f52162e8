-- Contacted leads move on in the sales funnel.

-- Move a contacted lead on in the sales funnel, unless somebody moved it meanwhile, and record that in its history. A
-- move that the CRM refuses is logged; the others are made.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_move_leads(p_ids uuid[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    id_ uuid;
BEGIN
    IF p_ids IS NULL THEN
        RETURN;
    END IF;
    PERFORM campaign_pipeline.campaign_write_moves(p_ids);
EXCEPTION WHEN OTHERS THEN
    IF campaign_pipeline.campaign_is_passing(SQLSTATE) THEN
        RAISE;
    END IF;
    IF cardinality(p_ids) = 1 THEN
        PERFORM campaign_pipeline.campaign_log_refusal('move of the lead', p.run_id, p.message_id, p.lead_id, SQLERRM)
        FROM campaign_pipeline.campaign_message_parts p WHERE p.message_id = p_ids[1] AND p.part_no = 1;
        RETURN;
    END IF;
    FOREACH id_ IN ARRAY p_ids LOOP
        PERFORM campaign_pipeline.campaign_move_leads(ARRAY[id_]);
    END LOOP;
END $$;

-- Make the moves, from the ledger, as in campaign_write_chat.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_write_moves(p_ids uuid[]) RETURNS void LANGUAGE plpgsql
SET jit = off SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
BEGIN
    -- Row by row of its arguments (LIMIT): a plan made while the ledger was small would read all of it.
    WITH contacted AS MATERIALIZED (
        SELECT DISTINCT ON (l.id) l.id AS lead_id, l.column_id AS before,
               COALESCE(p.source_column_id, c.source_column_id) AS source,
               COALESCE(p.target_column_id, c.target_column_id) AS target
        FROM unnest(p_ids) AS i (id)
        CROSS JOIN LATERAL (SELECT p.* FROM campaign_pipeline.campaign_message_parts p
                            WHERE p.message_id = i.id AND p.part_no = 1 LIMIT 1) p
        -- Only parts begun before the ledger had these columns read them from the message.
        LEFT JOIN LATERAL (SELECT m.lead_id, m.run_id FROM public.campaign_messages m
                           WHERE m.id = i.id AND p.run_id IS NULL LIMIT 1) m ON true
        LEFT JOIN LATERAL (SELECT c.* FROM public.campaign_runs r JOIN public.campaign_configs c ON c.id = r.config_id
                           WHERE r.id = m.run_id LIMIT 1) c ON true
        CROSS JOIN LATERAL (SELECT l.id, l.column_id FROM public.leads l
                            WHERE l.id = COALESCE(p.lead_id, m.lead_id) LIMIT 1) l
        ORDER BY l.id  -- in one order, to avoid deadlocks
    ), moved AS (
        UPDATE public.leads l
        SET column_id = CASE WHEN l.column_id = t.source AND t.target IS NOT NULL THEN t.target ELSE l.column_id END,
            last_activity_at = campaign_pipeline.campaign_now()
        FROM contacted t
        WHERE l.id = t.lead_id
        RETURNING l.id, t.before, l.column_id AS after
    )
    INSERT INTO public.lead_activities (id, lead_id, activity_type, description, created_at)
    SELECT campaign_pipeline.campaign_new_id(), moved.id, 'column_change',
           format('Campanha enviada: movido de "%s" para "%s".', COALESCE(k.title, '?'), COALESCE(n.title, '?')),
           campaign_pipeline.campaign_now()
    FROM moved
    LEFT JOIN public.funnel_columns k ON k.id = moved.before
    LEFT JOIN public.funnel_columns n ON n.id = moved.after
    WHERE moved.after IS DISTINCT FROM moved.before;
END $$;
