-- Functions and triggers of the pipeline. Applied anew at every `campaign-pipeline db upgrade`, this file first.
--
-- Everything of ours is in the schema campaign_pipeline, and every name is qualified: the search_path of whoever calls
-- is the CRM's business, and a transaction pooler keeps none. Functions that run in somebody else's statement
-- (triggers) run with the rights of their owner, who owns the CRM's tables too, and look in pg_catalog first and in
-- pg_temp last, so that nobody can put an object of their own before one that is meant.
--
-- Every function that changes messages works on a whole set at once (a JSON array of items), because messages that
-- finish together are committed together. Every change of a leased message names its lease token.
--
-- This file: the clock, and small words that statements of all files use.

-- The only clock that decides anything. Tests and rehearsals move it: SET campaign.clock_offset = '3 hours'.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_now() RETURNS timestamptz
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT now() + COALESCE(NULLIF(current_setting('campaign.clock_offset', true), ''), '0')::interval
$$;

-- At most so many characters of a text. A text's bytes are known, its characters have to be counted: a fifth of the
-- time of get_lead_contexts. Plain enough to become part of the statement that calls it.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_cut(p_text text, p_chars integer) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN octet_length(p_text) <= p_chars THEN p_text ELSE left(p_text, p_chars) END
$$;

-- When a message is due. Plain enough to become part of the statement that calls it, so that it fits the index
-- campaign_messages_due. A NULL, where the CRM leaves created_at empty too, is never due.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_due_at(p_message public.campaign_messages) RETURNS timestamptz
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT COALESCE(p_message.next_attempt_at, p_message.scheduled_at, p_message.created_at)
$$;

-- The statuses of a message that somebody holds; as core.states.LEASED. Spelled again only where no function of ours
-- may be called: in the predicates of indexes, a CHECK and the condition of a trigger; a test holds these equal.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_leased_statuses() RETURNS text[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT ARRAY['queued', 'generating', 'sending']
$$;

-- Whether a message that was found by its id is leased. Spelled so that the indexes of leased messages do not fit: the
-- planner, which believes that hardly any message is leased, would read all that are (5,000 leased, groups of 20:
-- 0.39 ms a message in start_generating and 0.26 in settle, instead of 0.06 and 0.10).
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_is_leased(p_status text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT array_position(campaign_pipeline.campaign_leased_statuses(), p_status) IS NOT NULL
$$;

-- The same for whoever looks for leased messages: spelled as in the predicates of their indexes.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_is_leased_indexed(p_status text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT p_status = ANY (campaign_pipeline.campaign_leased_statuses())
$$;

-- Whether a part went out. Spelled so that the index of sent parts does not fit: asked of the parts of one message, the
-- server might read all of that index for each message and keep that plan for the connection's life (groups of 20,
-- after 1,500 sent parts: 30,000 entries read a call, half the time of campaign_reserve_numbers).
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_is_out(p_status text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT array_position(ARRAY['sent'], p_status) IS NOT NULL
$$;

-- Whether an error is one that passes by itself: a lock, a deadlock, a server that stops. The whole statement is
-- repeated then; whatever else the CRM's tables answer is theirs, and answers the same again.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_is_passing(p_state text) RETURNS boolean
    LANGUAGE sql IMMUTABLE AS $$
    SELECT left(p_state, 2) IN ('40', '53', '57', '58') OR p_state = '55P03'
$$;

-- For the rest of a trigger function of ours, look up names without a schema as a CRM's session does: right before it
-- changes a table of the CRM, whose own triggers may write such names, and would fail under the narrow path that keeps
-- ours safe. Ends with the function that calls this. What that function runs afterwards must qualify every name, and
-- compare only values of equal types: an operator of somebody else's in `public` fits nothing then.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_look_in_public() RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    -- Supabase has the functions of extensions in a schema of that name; where there is none, it is passed over.
    PERFORM pg_catalog.set_config('search_path', 'public, extensions, pg_temp', true);
END $$;
