-- Coexistence with the CRM that owns the tables, and with its previous processor.

-- Counters (I6) ------------------------------------------------------------------------------------------------------

-- Recount one open run; an ended run is history, because the CRM deletes its messages. One statement locks the run, and
-- the next counts: changes of its messages before the lock are committed and visible by then, and later changes add to
-- the counters written here.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_recount_run(p_run uuid) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM public.campaign_runs r WHERE r.id = p_run AND r.status IN ('running', 'paused') FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    PERFORM set_config('campaign_pipeline.counting', 'on', true);
    UPDATE public.campaign_runs r
    SET leads_success = n.success, leads_failed = n.failed, leads_skipped = n.skipped,
        leads_processed = n.success + n.failed + n.skipped
    FROM (SELECT count(*) FILTER (WHERE m.status IN ('sent', 'replied')) AS success,
                 count(*) FILTER (WHERE m.status = 'failed')             AS failed,
                 count(*) FILTER (WHERE m.status = 'skipped')            AS skipped
          FROM public.campaign_messages m
          WHERE m.run_id = p_run AND m.status IN ('sent', 'replied', 'failed', 'skipped')) n
    WHERE r.id = p_run
      AND (r.leads_success, r.leads_failed, r.leads_skipped, r.leads_processed)
          IS DISTINCT FROM (n.success, n.failed, n.skipped, n.success + n.failed + n.skipped);
    PERFORM set_config('campaign_pipeline.counting', '', true);
END $$;

-- The CRM has counting functions, too (increment_campaign_run_metrics, and complete_campaign_message_atomic, which
-- calls it). The triggers on messages have already counted the same, so in such a database only our own counting may
-- change a counter; it identifies itself by a setting of its transaction during its one statement. Other columns that
-- another client's statement changes stay as written. If the CRM counts nothing, a counter may be corrected by hand.
-- Must run before campaign_note_reopening, hence its name.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_guard_counters() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, campaign_pipeline, pg_temp AS $$
BEGIN
    IF current_setting('campaign_pipeline.counting', true) IS DISTINCT FROM 'on'
        -- Not by to_regproc, which returns null if several functions have the name.
        AND EXISTS (SELECT FROM pg_proc p WHERE p.pronamespace = to_regnamespace('public')
                    AND p.proname = 'increment_campaign_run_metrics') THEN
        NEW.leads_success := OLD.leads_success;
        NEW.leads_failed := OLD.leads_failed;
        NEW.leads_skipped := OLD.leads_skipped;
        NEW.leads_processed := OLD.leads_processed;
    END IF;
    RETURN NEW;
END $$;
CREATE OR REPLACE TRIGGER campaign_guard_counters
    BEFORE UPDATE OF leads_success, leads_failed, leads_skipped, leads_processed ON public.campaign_runs
    FOR EACH ROW
    WHEN ((OLD.leads_success, OLD.leads_failed, OLD.leads_skipped, OLD.leads_processed)
          IS DISTINCT FROM (NEW.leads_success, NEW.leads_failed, NEW.leads_skipped, NEW.leads_processed))
    EXECUTE FUNCTION campaign_pipeline.campaign_guard_counters();

-- Attached or not ----------------------------------------------------------------------------------------------------

-- Whether the pipeline may claim messages. The row stays locked until the end of the transaction. A detach updates it,
-- so it waits for every claim in progress, and every later claim sees the change.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_may_take() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM campaign_pipeline.campaign_crm_attachment a WHERE a.detached_at IS NULL FOR SHARE;
    RETURN FOUND;
END $$;

-- While attached, other programs should not claim or finish messages; if one does, it is recorded. The conditions
-- recognise our own changes without a call: our claims change the lease, and our ends set their time. Never makes the
-- CRM's write fail. The leased statuses are repeated: other clients may call no function of ours.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_notice_others() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, campaign_pipeline, pg_temp AS $$
BEGIN
    INSERT INTO campaign_pipeline.campaign_foreign_changes
        (message_id, run_id, was, became, by_role, application, noticed_at)
    SELECT NEW.id, NEW.run_id, OLD.status, NEW.status, session_user, current_setting('application_name', true),
           campaign_pipeline.campaign_now()
    FROM campaign_pipeline.campaign_crm_attachment a WHERE a.attached_at IS NOT NULL;
    RETURN NULL;
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'campaign_pipeline could not note that message % became %: %', NEW.id, NEW.status, SQLERRM;
    RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER campaign_notice_others AFTER UPDATE OF status ON public.campaign_messages
    FOR EACH ROW
    WHEN ((NEW.status = 'sent' AND OLD.status NOT IN ('sent', 'replied')
           AND NEW.finished_at IS NOT DISTINCT FROM OLD.finished_at)
          OR (NEW.status IN ('queued', 'generating', 'sending')
              AND OLD.status NOT IN ('queued', 'generating', 'sending')
              AND NEW.lease_token IS NOT DISTINCT FROM OLD.lease_token))
    EXECUTE FUNCTION campaign_pipeline.campaign_notice_others();

-- What the old processor left -----------------------------------------------------------------------------------------

-- A text without its white space: the old processor split and trimmed texts.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_squeezed(p_text text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT regexp_replace(COALESCE(p_text, ''), '\s+', '', 'g')
$$;

-- Settle messages that the CRM's own processor claimed and never finished (it has no leases, so they have no expiry), a
-- quarter of an hour after the claim: longer than one of its calls can last. It sends before it records, so a message
-- with a text is of unknown outcome (I5):
--   sent        the whole text is in the lead's chat since then
--   looked_up   none of it is: the next batch asks the provider, and fails the message as `unknown` if the provider
--               cannot tell
--   unknown     a part of it is, or the text is unknown: only a person may have it sent again
--   given_back  it had no text yet and was not being sent: it was surely not sent
-- p_ids NULL: all. Two hundred per call; call again for the rest.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_settle_old_processor(p_ids uuid[] DEFAULT NULL)
RETURNS TABLE (message_id uuid, verdict text) LANGUAGE plpgsql
SET jit = off SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
#variable_conflict use_column
DECLARE
    left_over record;
    chat      record;
    said      text;  -- its outcome
BEGIN
    FOR left_over IN
        SELECT m.id, m.status, m.run_id, m.lead_id, m.conversation_id, m.generated_message AS text,
               campaign_pipeline.campaign_squeezed(m.generated_message) AS squeezed, m.phone_number,
               m.phone_normalized, COALESCE(m.queued_at, m.created_at) AS since, c.workspace_id,
               COALESCE(m.inbox_id, c.inbox_id) AS inbox_id, c.source_column_id, c.target_column_id
        FROM public.campaign_messages m
        LEFT JOIN public.campaign_runs r ON r.id = m.run_id
        LEFT JOIN public.campaign_configs c ON c.id = r.config_id
        WHERE campaign_pipeline.campaign_is_leased_indexed(m.status) AND m.lease_expires_at IS NULL
          AND COALESCE(m.queued_at, m.created_at) <= campaign_pipeline.campaign_now() - interval '15 minutes'
          AND (p_ids IS NULL OR m.id = ANY (p_ids))
        ORDER BY m.id
        LIMIT 200  -- otherwise the CRM's own statements would wait too long for their rows
        FOR UPDATE OF m SKIP LOCKED
    LOOP
        SELECT c.* INTO chat FROM campaign_pipeline.campaign_found_in_chat(
            left_over.squeezed, left_over.conversation_id, left_over.workspace_id, left_over.lead_id,
            ARRAY[left_over.phone_normalized, '+' || left_over.phone_normalized, left_over.phone_number],
            left_over.since - interval '2 seconds') c;

        said := CASE
            WHEN left_over.squeezed = '' AND left_over.status = 'sending' THEN 'unknown'
            WHEN left_over.squeezed = '' THEN 'given_back'
            WHEN chat.length >= length(left_over.squeezed) THEN 'sent'
            WHEN chat.pieces > 0 THEN 'unknown'
            ELSE 'looked_up' END;

        -- In the ledger, so that later attempts know of it. Parts that we had planned but not begun before the old
        -- processor claimed the message are not what it sent.
        DELETE FROM campaign_pipeline.campaign_message_parts p
        WHERE p.message_id = left_over.id AND p.status IN ('planned', 'failed');
        INSERT INTO campaign_pipeline.campaign_message_parts AS p
            (message_id, part_no, text, status, inbox_id, idempotency_key, attempts, attempted_at, address,
             address_kind, error_class, error_code, error_message, provider_message_id, sent_at, run_id, lead_id,
             workspace_id, conversation_id, source_column_id, target_column_id, history)
        SELECT left_over.id, 1, left_over.text, CASE WHEN said = 'sent' THEN 'sent' ELSE 'unknown' END,
               left_over.inbox_id, left_over.id || ':1', 1, left_over.since, a.address,
               campaign_pipeline.campaign_address_kind(a.address),
               CASE WHEN said <> 'sent' THEN 'unknown' END, CASE WHEN said <> 'sent' THEN 'old_processor' END,
               CASE WHEN said <> 'sent'
                    THEN 'The CRM''s own processor took this message and never said what became of it.' END,
               chat.provider_message_id, CASE WHEN said = 'sent' THEN chat.at END,
               left_over.run_id, left_over.lead_id, left_over.workspace_id,
               COALESCE(left_over.conversation_id, chat.conversation_id), left_over.source_column_id,
               left_over.target_column_id,
               -- Kept, whatever later look-ups find: read_leased_messages recognises this attempt's maker by it.
               jsonb_build_array(jsonb_build_object('at', campaign_pipeline.campaign_now(), 'attempt', 1,
                                                    'code', 'old_processor', 'outcome', said))
        FROM (SELECT campaign_pipeline.campaign_canonical_address(
                  COALESCE('+' || left_over.phone_normalized, left_over.phone_number)) AS address) a
        WHERE left_over.squeezed <> ''
        ON CONFLICT DO NOTHING;

        UPDATE public.campaign_messages m
        SET status = CASE said WHEN 'sent' THEN 'sent' WHEN 'unknown' THEN 'failed' ELSE 'pending' END,
            lease_token = NULL,
            conversation_id = COALESCE(m.conversation_id, chat.conversation_id),
            provider_message_id = COALESCE(m.provider_message_id, chat.provider_message_id),
            sent_at = CASE WHEN said = 'sent' THEN chat.at ELSE m.sent_at END,
            finished_at = CASE WHEN said IN ('sent', 'unknown') THEN campaign_pipeline.campaign_now() END,
            error_class = CASE WHEN said = 'unknown' THEN 'unknown' END,
            error_code = CASE WHEN said = 'unknown' THEN 'old_processor' END,
            error_message = CASE WHEN said = 'unknown' THEN
                'The CRM''s own processor took this message, and it is not known whether it went out. It is sent again '
                'only when a person says so.' END,
            last_error = CASE WHEN said <> 'sent' THEN 'Left by the CRM''s own processor.' ELSE m.last_error END
        WHERE m.id = left_over.id;
        IF said = 'sent' THEN
            PERFORM campaign_pipeline.campaign_move_leads(ARRAY[left_over.id]);
        END IF;
        message_id := left_over.id;
        verdict := said;
        RETURN NEXT;
    END LOOP;
END $$;

-- Step of campaign_settle_old_processor: the pieces of a text that the lead's chat has since an instant, their length,
-- the time of the first one, and the conversation and provider's id of the last one.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_found_in_chat(
    p_squeezed text, p_conversation uuid, p_workspace uuid, p_lead uuid, p_numbers text[], p_since timestamptz,
    OUT pieces bigint, OUT length bigint, OUT at timestamptz, OUT conversation_id uuid, OUT provider_message_id text
) LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_column
BEGIN
    SELECT count(*), COALESCE(sum(length(s.piece)), 0), min(s.created_at),
           (array_agg(s.conversation_id ORDER BY s.created_at DESC))[1],
           (array_agg(s.provider_message_id ORDER BY s.created_at DESC))[1]
    INTO pieces, length, at, conversation_id, provider_message_id
    FROM (SELECT DISTINCT ON (x.piece) x.*
          FROM (SELECT t.conversation_id, t.provider_message_id, t.created_at,
                       campaign_pipeline.campaign_squeezed(t.text_content) AS piece
                FROM public.conversations v JOIN public.messages t ON t.conversation_id = v.id
                WHERE (v.id = p_conversation
                       OR (v.workspace_id = p_workspace AND v.lead_id = p_lead)
                       OR (v.workspace_id = p_workspace AND v.contact_phone = ANY (p_numbers)))
                  AND t.message_type NOT IN ('received', 'incoming', 'delete')
                  AND t.created_at >= p_since) x
          WHERE x.piece <> '' AND position(x.piece IN p_squeezed) > 0
          ORDER BY x.piece, x.created_at) s;
END $$;

-- Going back ---------------------------------------------------------------------------------------------------------

-- Leave the queue to the CRM's own processor, after the last lease has ended, in steps of so many messages, until a
-- step finds none. Waiting messages become due by now at the latest, in their order, so that they are not too old at
-- once. Messages that were sent in part, or perhaps, are never left to a processor that does not know the ledger; nor
-- are those of them that a pause of the CRM's skipped, because its resume would send them whole. No trace remains that
-- would later look like a lease. Returns how many messages of each kind this step changed.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_leave_to_crm(p_limit integer)
RETURNS TABLE (failed_half_sent bigint, due_now bigint, cleared bigint) LANGUAGE plpgsql AS $$
DECLARE
    detached timestamptz := (SELECT a.detached_at FROM campaign_pipeline.campaign_crm_attachment a);
BEGIN
    WITH begun AS (
        SELECT m.id, bool_or(p.status IN ('unknown', 'attempting')) AS in_doubt
        FROM public.campaign_runs r
        JOIN public.campaign_messages m ON m.run_id = r.id AND (m.status = 'pending' OR (
            -- resume_campaign_run recognises skipped messages by these words
            r.status = 'paused' AND m.status = 'skipped' AND m.error_message LIKE '%ausad%'))
        JOIN campaign_pipeline.campaign_message_parts p ON p.message_id = m.id AND p.status NOT IN ('planned', 'failed')
        WHERE r.status IN ('running', 'paused')
        GROUP BY m.id LIMIT p_limit
    )
    UPDATE public.campaign_messages m
    SET status = 'failed', finished_at = campaign_pipeline.campaign_now(),
        error_class = CASE WHEN begun.in_doubt THEN 'unknown' ELSE 'exhausted' END,
        error_code = CASE WHEN begun.in_doubt THEN 'unknown_outcome' ELSE 'incomplete' END,
        error_message = CASE WHEN begun.in_doubt THEN 'It is not known whether it went out; the pipeline was detached.'
                             ELSE 'Only a part of it had gone out when the pipeline was detached.' END
    FROM begun WHERE m.id = begun.id AND m.status IN ('pending', 'skipped');
    GET DIAGNOSTICS failed_half_sent = ROW_COUNT;

    WITH waiting AS (
        SELECT m.id, row_number() OVER (ORDER BY campaign_pipeline.campaign_due_at(m), m.id) AS place
        FROM public.campaign_runs r JOIN public.campaign_messages m ON m.run_id = r.id AND m.status = 'pending'
        WHERE r.status IN ('running', 'paused') AND COALESCE(m.scheduled_at, m.created_at) < detached
        ORDER BY campaign_pipeline.campaign_due_at(m), m.id LIMIT p_limit
    )
    UPDATE public.campaign_messages m
    SET scheduled_at = greatest(m.next_attempt_at,
                                campaign_pipeline.campaign_now() + waiting.place * interval '1 microsecond'),
        next_attempt_at = NULL
    FROM waiting WHERE m.id = waiting.id AND m.status = 'pending';
    GET DIAGNOSTICS due_now = ROW_COUNT;

    UPDATE public.campaign_messages m SET lease_token = NULL, lease_expires_at = NULL
    WHERE m.id IN (
        SELECT o.id FROM public.campaign_runs r JOIN public.campaign_messages o ON o.run_id = r.id
        WHERE r.status IN ('running', 'paused') AND o.lease_token IS NOT NULL
          AND o.status IN ('pending', 'skipped', 'failed') LIMIT p_limit);
    GET DIAGNOSTICS cleared = ROW_COUNT;

    UPDATE public.campaign_runs r SET wait_code = NULL, wait_reason = NULL, wait_until = NULL
    WHERE r.wait_code IS NOT NULL;
    RETURN NEXT;
END $$;
