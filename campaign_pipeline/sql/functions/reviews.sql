-- Review: texts that wait for a person's approval. A message of a campaign with review
-- (campaign_settings) cannot be sent before: the verdict that every path asks for is `awaiting_review`.

-- Whether a message waits for review; never one with a sent part. `all`: each text waits, and may be written meanwhile.
-- `first_n`: until so many of its run are decided, nothing of the run is sent, and no further text is paid for.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_awaits_review(
    p_message uuid, p_run uuid, p_config uuid, p_needs_model boolean
) RETURNS boolean LANGUAGE plpgsql STABLE
SET jit = off SET enable_seqscan = off AS $$
DECLARE
    wish record;
BEGIN
    SELECT s.review, s.review_first INTO wish
    FROM campaign_pipeline.campaign_settings s WHERE s.config_id = p_config AND s.review <> 'none';
    IF NOT FOUND
       OR EXISTS (SELECT 1 FROM campaign_pipeline.campaign_reviews v
                  WHERE v.message_id = p_message AND v.decision = 'approved')
       OR EXISTS (SELECT 1 FROM campaign_pipeline.campaign_message_parts p
                  WHERE p.message_id = p_message AND campaign_pipeline.campaign_is_out(p.status)) THEN
        RETURN false;
    END IF;
    IF wish.review = 'all' THEN
        RETURN NOT p_needs_model;
    END IF;
    RETURN (SELECT count(*) FROM campaign_pipeline.campaign_reviews v WHERE v.run_id = p_run) < wish.review_first;
END $$;

-- Store texts that were written outside a shard, for messages that have no lease and no text: these texts will be sent.
-- Items as for campaign_begin_parts. Returns the messages whose texts were stored.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_keep_texts(p_items jsonb) RETURNS SETOF uuid LANGUAGE plpgsql
SET jit = off SET enable_seqscan = off SET lock_timeout = '800ms' AS $$
DECLARE
    token uuid := gen_random_uuid();
    free  uuid[];
BEGIN
    free := ARRAY(
        SELECT m.id FROM public.campaign_messages m
        WHERE m.id IN (SELECT i.id FROM jsonb_to_recordset(p_items) AS i (id uuid))
          AND m.status = 'pending' AND m.generated_message IS NULL
          AND NOT EXISTS (SELECT 1 FROM campaign_pipeline.campaign_message_parts p WHERE p.message_id = m.id)
        ORDER BY m.id FOR UPDATE SKIP LOCKED);
    IF free = '{}' THEN
        RETURN;
    END IF;
    -- Under a lease for this transaction, with which campaign_begin_parts accepts the text.
    UPDATE public.campaign_messages m
    SET status = 'queued', lease_token = token, lease_owner = 'preview',
        lease_expires_at = campaign_pipeline.campaign_now() + interval '1 minute'
    WHERE m.id = ANY (free);
    PERFORM campaign_pipeline.campaign_begin_parts((
        SELECT jsonb_agg(i.item || jsonb_build_object('token', token, 'part_no', 0, 'attempt_no', 1))
        FROM jsonb_array_elements(p_items) AS i (item) WHERE (i.item ->> 'id')::uuid = ANY (free)));
    UPDATE public.campaign_messages m SET status = 'pending', lease_token = NULL, lease_expires_at = NULL
    WHERE m.id = ANY (free);
    RETURN QUERY SELECT unnest(free);
END $$;

-- A person's decision on texts: approved, rejected, or approved with an edit. Items: {id, decision, text, subject};
-- with a text only if edited. Only waiting texts of messages without a sent part are decided; returns those that were.
-- An approved text is due at its planned time, or now if that has passed; with the last decision that a run waited for,
-- so are its other messages.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_decide_reviews(p_items jsonb, p_by text) RETURNS SETOF uuid
LANGUAGE plpgsql SET jit = off SET enable_seqscan = off SET lock_timeout = '800ms' AS $$
DECLARE
    free uuid[];
    runs uuid[];
BEGIN
    -- Runs before messages, as everywhere: rejecting raises counters.
    runs := ARRAY(SELECT r.id FROM public.campaign_runs r
                  WHERE r.id IN (SELECT m.run_id FROM public.campaign_messages m
                                 JOIN jsonb_to_recordset(p_items) AS i (id uuid) ON i.id = m.id)
                  ORDER BY r.id FOR NO KEY UPDATE);
    free := ARRAY(
        SELECT m.id FROM public.campaign_messages m
        WHERE m.id IN (SELECT i.id FROM jsonb_to_recordset(p_items) AS i (id uuid))
          AND m.status = 'pending' AND m.generated_message IS NOT NULL
          AND NOT EXISTS (SELECT 1 FROM campaign_pipeline.campaign_message_parts p
                          WHERE p.message_id = m.id AND p.status <> 'planned')
        ORDER BY m.id FOR UPDATE);

    INSERT INTO campaign_pipeline.campaign_reviews AS v (message_id, run_id, decision, edited, decided_by, decided_at)
    SELECT m.id, m.run_id, i.decision, i.text IS NOT NULL, p_by, campaign_pipeline.campaign_now()
    FROM jsonb_to_recordset(p_items) AS i (id uuid, decision text, text text)
    JOIN public.campaign_messages m ON m.id = i.id
    WHERE m.id = ANY (free)
    ON CONFLICT (message_id) DO UPDATE
    SET decision = EXCLUDED.decision, edited = v.edited OR EXCLUDED.edited, decided_by = EXCLUDED.decided_by,
        decided_at = EXCLUDED.decided_at;

    -- An edited text is checked and split again by its sender.
    DELETE FROM campaign_pipeline.campaign_message_parts p
    WHERE p.status = 'planned' AND p.message_id = ANY (free)
      AND p.message_id IN (SELECT i.id FROM jsonb_to_recordset(p_items) AS i (id uuid, text text)
                           WHERE i.text IS NOT NULL);

    UPDATE public.campaign_messages m
    SET generated_message = COALESCE(i.text, m.generated_message), subject = COALESCE(i.subject, m.subject),
        status = CASE i.decision WHEN 'rejected' THEN 'skipped' ELSE 'pending' END,
        error_class = NULL, error_code = CASE i.decision WHEN 'rejected' THEN 'rejected' END,
        error_message = CASE i.decision WHEN 'rejected' THEN format('%s rejected its text.', p_by) END,
        last_error = NULL,
        finished_at = CASE i.decision WHEN 'rejected' THEN campaign_pipeline.campaign_now() END,
        next_attempt_at = greatest(campaign_pipeline.campaign_now(), m.scheduled_at)
    FROM jsonb_to_recordset(p_items) AS i (id uuid, decision text, text text, subject text)
    WHERE m.id = i.id AND m.id = ANY (free);

    -- Messages that waited for these decisions, and no longer do.
    UPDATE public.campaign_messages m
    SET next_attempt_at = greatest(campaign_pipeline.campaign_now(), m.scheduled_at), error_code = NULL,
        last_error = NULL
    FROM public.campaign_runs r
    WHERE r.id = ANY (runs) AND m.run_id = r.id AND m.status = 'pending' AND m.error_code = 'awaiting_review'
      AND NOT campaign_pipeline.campaign_awaits_review(m.id, r.id, r.config_id, false);
    RETURN QUERY SELECT unnest(free);
END $$;
