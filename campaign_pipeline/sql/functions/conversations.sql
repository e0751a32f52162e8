-- What the CRM shows of a message: its conversation, its parts in the chat, and what the CRM refused.

-- If two shards begin the first messages of one lead at once, they create one conversation: the second waits here for
-- the first's commit, and then finds it. The lock lasts until the commit, in one order, after all rows that begin_parts
-- locks. The CRM may already have several conversations of a lead, so a unique index cannot enforce this. p_ids: leads.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_lock_conversations(p_ids uuid[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(l.key)
    FROM (SELECT DISTINCT hashtextextended('campaign_pipeline conversation ' || lead.id, 0) AS key
          FROM unnest(p_ids) AS lead (id) ORDER BY key) l;
END $$;

-- The conversation of each message without one: the lead's newest, else the phone's newest, else a new one, in the same
-- channel. Returns {message: conversation} or null; the caller writes it with its other changes of the
-- message. p_going: the messages without one.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_find_conversations(p_going campaign_pipeline.campaign_intent[])
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    found jsonb;
    new   campaign_pipeline.campaign_intent[];
BEGIN
    PERFORM campaign_pipeline.campaign_lock_conversations(
        ARRAY(SELECT i.lead_id FROM unnest(p_going) AS i WHERE i.lead_id IS NOT NULL));
    SELECT jsonb_object_agg(i.id, known.id) FILTER (WHERE known.id IS NOT NULL),
           array_agg(i) FILTER (WHERE known.id IS NULL)
    INTO found, new
    FROM unnest(p_going) AS i
    CROSS JOIN LATERAL (SELECT COALESCE(
        (SELECT v.id FROM public.conversations v
         WHERE v.workspace_id = i.workspace_id AND v.lead_id = i.lead_id
           AND COALESCE(v.channel, 'whatsapp') = i.channel
         ORDER BY v.last_message_at DESC NULLS LAST, v.created_at DESC LIMIT 1),
        (SELECT v.id FROM public.conversations v
         WHERE v.workspace_id = i.workspace_id
           -- Also used for e-mail addresses.
           AND v.contact_phone IN (i.address, '+' || i.address, i.phone_number)
           AND COALESCE(v.channel, 'whatsapp') = i.channel
         ORDER BY v.last_message_at DESC NULLS LAST, v.created_at DESC LIMIT 1)) AS id OFFSET 0) known;
    IF new IS NULL THEN
        RETURN found;
    END IF;
    RETURN COALESCE(found, '{}') || campaign_pipeline.campaign_make_conversations(new);
END $$;

-- Create a conversation for each of these messages, one per lead. Returns {message: conversation}. If the CRM refuses
-- one (by a check or a trigger of its own), the message goes on without it, and the log says why.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_make_conversations(p_new campaign_pipeline.campaign_intent[])
RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    answer jsonb;
    one    campaign_pipeline.campaign_intent;
BEGIN
    WITH item AS MATERIALIZED (
        SELECT i.id, i.workspace_id, i.message_inbox_id, i.lead_id, i.run_id, i.address, i.channel, i.contact_name
        FROM unnest(p_new) AS i
    ), made AS (
        -- attendant_type and the counts keep the CRM's defaults: no attendant, nothing unread.
        INSERT INTO public.conversations (id, workspace_id, inbox_id, lead_id, contact_name, contact_phone, channel,
                                          status, campaign_run_id, unread_count, total_messages, created_at, updated_at)
        -- One per lead, even if two of its messages begin in this statement.
        SELECT DISTINCT ON (workspace_id, COALESCE(lead_id, id))
               campaign_pipeline.campaign_new_id(), workspace_id, message_inbox_id, lead_id,
               COALESCE(NULLIF(contact_name, ''), address), address, channel, 'waiting', run_id, 0, 0,
               campaign_pipeline.campaign_now(), campaign_pipeline.campaign_now()
        FROM item
        ORDER BY workspace_id, COALESCE(lead_id, id)
        RETURNING id, workspace_id, lead_id, contact_phone
    )
    SELECT jsonb_object_agg(item.id, made.id) INTO answer
    FROM item LEFT JOIN made ON made.workspace_id = item.workspace_id
         AND (made.lead_id = item.lead_id OR (item.lead_id IS NULL AND made.contact_phone = item.address));
    RETURN answer;
EXCEPTION WHEN OTHERS THEN
    IF campaign_pipeline.campaign_is_passing(SQLSTATE) THEN
        RAISE;
    END IF;
    answer := '{}';
    IF cardinality(p_new) = 1 THEN
        one := p_new[1];
        PERFORM campaign_pipeline.campaign_log_refusal('conversation', one.run_id, one.id, one.lead_id, SQLERRM);
        RETURN answer;
    END IF;
    FOREACH one IN ARRAY p_new LOOP
        answer := answer || campaign_pipeline.campaign_make_conversations(ARRAY[one]);
    END LOOP;
    RETURN answer;
END $$;

-- Log what the CRM refused, and why. Must never fail.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_log_refusal(
    p_what text, p_run uuid, p_message uuid, p_lead uuid, p_why text
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.campaign_logs (run_id, step_number, step_name, level, message, details, lead_id, message_id,
                                      created_at)
    SELECT r.id, 0, 'crm', 'error',
           format('The CRM refused the %s of a message that is sent or being sent; the rest is recorded. It said: %s',
                  p_what, left(p_why, 500)),
           jsonb_build_object('refused', p_what, 'message_id', p_message),
           (SELECT l.id FROM public.leads l WHERE l.id = p_lead),
           (SELECT m.id FROM public.campaign_messages m WHERE m.id = p_message),
           campaign_pipeline.campaign_now()
    FROM public.campaign_runs r WHERE r.id = p_run;
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'The CRM refused the % of campaign message %: %', p_what, p_message, p_why;
END $$;

-- Show sent parts in the CRM's chat, unless their provider wrote them there itself (`written`).
-- p_parts: [{id, part_no, written}] or null. A part that the CRM's chat refuses is logged; the others are shown.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_show_in_conversation(p_parts jsonb) RETURNS void
    LANGUAGE plpgsql AS $$
DECLARE
    part jsonb;
BEGIN
    IF p_parts IS NULL THEN
        RETURN;
    END IF;
    PERFORM campaign_pipeline.campaign_write_chat(p_parts);
EXCEPTION WHEN OTHERS THEN
    IF campaign_pipeline.campaign_is_passing(SQLSTATE) THEN
        RAISE;
    END IF;
    IF jsonb_array_length(p_parts) = 1 THEN
        PERFORM campaign_pipeline.campaign_log_refusal('chat row', p.run_id, p.message_id, p.lead_id, SQLERRM)
        FROM campaign_pipeline.campaign_message_parts p
        WHERE p.message_id = (p_parts -> 0 ->> 'id')::uuid AND p.part_no = (p_parts -> 0 ->> 'part_no')::integer;
        RETURN;
    END IF;
    FOR part IN SELECT value FROM jsonb_array_elements(p_parts) LOOP
        PERFORM campaign_pipeline.campaign_show_in_conversation(jsonb_build_array(part));
    END LOOP;
END $$;

-- Insert the rows. From the ledger, because the message may be deleted; only parts begun before the ledger had a
-- conversation column read it from the message. `sent_by` is a user of the CRM: null for texts of the AI.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_write_chat(p_parts jsonb) RETURNS void LANGUAGE plpgsql
SET jit = off SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
BEGIN
    WITH part AS (
        SELECT v.id AS conversation_id, COALESCE(p.run_id, m.run_id) AS run_id,
               COALESCE(p.lead_id, m.lead_id) AS lead_id,
               p.text, p.provider_message_id, p.part_no, p.sent_at, i.written
        FROM jsonb_to_recordset(p_parts) AS i (id uuid, part_no integer, written boolean)
        JOIN campaign_pipeline.campaign_message_parts p ON p.message_id = i.id AND p.part_no = i.part_no
        LEFT JOIN public.campaign_messages m ON m.id = i.id
        JOIN public.conversations v ON v.id = COALESCE(p.conversation_id, m.conversation_id)
    ), shown AS (
        INSERT INTO public.messages (id, conversation_id, content_type, message_type, text_content,
                                     provider_message_id, is_read, created_at)
        SELECT campaign_pipeline.campaign_new_id(), conversation_id, 'text', 'sent', text, provider_message_id, true,
               sent_at
        FROM part WHERE written IS NOT TRUE ORDER BY part_no
    ), newest AS (
        SELECT DISTINCT ON (conversation_id) *,
               count(*) FILTER (WHERE written IS NOT TRUE) OVER (PARTITION BY conversation_id) AS rows
        FROM part ORDER BY conversation_id, part_no DESC
    )
    UPDATE public.conversations v
    SET last_message = newest.text, last_message_at = newest.sent_at, updated_at = newest.sent_at,
        total_messages = COALESCE(v.total_messages, 0) + newest.rows,
        campaign_run_id
            = COALESCE((SELECT r.id FROM public.campaign_runs r WHERE r.id = newest.run_id), v.campaign_run_id),
        lead_id = COALESCE(v.lead_id, (SELECT l.id FROM public.leads l WHERE l.id = newest.lead_id))
    FROM newest WHERE v.id = newest.conversation_id;
END $$;
