-- Functions and triggers of the pipeline. Every `campaign-pipeline db upgrade` applies them again, this file first.
--
-- All our objects are in the schema campaign_pipeline, and every name is qualified: the caller's search_path belongs to
-- the CRM, and a transaction pooler keeps none. Functions that run in other clients' statements (triggers) have the
-- rights of their owner, who also owns the CRM's tables. They search pg_catalog first and pg_temp last, so that nobody
-- can shadow an object.
--
-- Every function that changes messages processes a whole set (a JSON array of items), because messages that finish
-- together are committed together. Every change of a leased message names its lease token.
--
-- This file: the clock, and short expressions that statements of all files use.

-- The only clock that decides anything. Tests and rehearsals shift it: SET campaign.clock_offset = '3 hours'.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_now() RETURNS timestamptz
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT now() + COALESCE(NULLIF(current_setting('campaign.clock_offset', true), ''), '0')::interval
$$;

-- A new id of a row: a UUID of version 7 (RFC 9562, section 5.7), whose first 60 bits are the time: 48 bits of
-- milliseconds, the version, and 12 bits of the rest of the millisecond (section 6.2, method 3). The other 62 bits are
-- random. Ids made one after the other lie side by side in an index, where random ids each change a page of their own,
-- which the WAL then holds in full after every checkpoint; docs/scale.md has the figures. The real clock, because only
-- the order counts, also within a transaction. PostgreSQL has uuidv7() from version 18 on only.
--
-- One expression, so that it is inlined into the calling statement: the time in units of 1/4096 milliseconds has 60
-- bits, which are the 15 hexadecimal digits around the version.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_new_id() RETURNS uuid
LANGUAGE sql VOLATILE PARALLEL SAFE AS $$
    SELECT overlay(
        lpad(to_hex((date_part('epoch', clock_timestamp()) * 1000000)::bigint * 512 / 125), 15, '0')
        || right(gen_random_uuid()::text, 17) PLACING '7' FROM 13 FOR 0
    )::uuid
$$;

-- The first so many characters of a text. The size in bytes is known, characters must be counted: that was a fifth of
-- the time of get_lead_contexts. Simple enough to be inlined into the calling statement.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_cut(p_text text, p_chars integer) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN octet_length(p_text) <= p_chars THEN p_text ELSE left(p_text, p_chars) END
$$;

-- When a message is due. Simple enough to be inlined into the calling statement, so that it matches the index
-- campaign_messages_due. A NULL, if the CRM leaves created_at empty too, is never due.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_due_at(p_message public.campaign_messages) RETURNS timestamptz
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT COALESCE(p_message.next_attempt_at, p_message.scheduled_at, p_message.created_at)
$$;

-- The statuses of a leased message, like core.states.LEASED. They are repeated only where no function of ours may be
-- called: in the predicates of indexes, a CHECK and the condition of a trigger; a test compares them.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_leased_statuses() RETURNS text[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT ARRAY['queued', 'generating', 'sending']
$$;

-- Whether a message found by its id is leased. Written so that the indexes of leased messages do not match: the planner
-- assumes that hardly any message is leased, and would read all that are (5,000 leased, groups of 20: 0.39 ms per
-- message in start_generating and 0.26 in settle, instead of 0.06 and 0.10).
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_is_leased(p_status text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT array_position(campaign_pipeline.campaign_leased_statuses(), p_status) IS NOT NULL
$$;

-- The same to search for leased messages: written like the predicates of their indexes.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_is_leased_indexed(p_status text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT p_status = ANY (campaign_pipeline.campaign_leased_statuses())
$$;

-- Whether a part was sent. Written so that the index of sent parts does not match: for the parts of one message, the
-- server might read that whole index per message and keep this plan for the connection's lifetime (groups of 20, after
-- 1,500 sent parts: 30,000 entries read per call, half the time of campaign_reserve_numbers).
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_is_out(p_status text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT array_position(ARRAY['sent'], p_status) IS NOT NULL
$$;

-- Whether an error is temporary: a lock timeout, a deadlock, a server that stops. The whole statement is then repeated.
-- Other errors come from the CRM's tables, and would occur again.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_is_passing(p_state text) RETURNS boolean
    LANGUAGE sql IMMUTABLE AS $$
    SELECT left(p_state, 2) IN ('40', '53', '57', '58') OR p_state = '55P03'
$$;

-- For the rest of one of our trigger functions, resolve unqualified names like a CRM session: called right before it
-- changes a table of the CRM, whose own triggers may contain such names and would fail under our restricted path.
-- The setting ends with the calling function. What that function runs afterwards must qualify every name and compare
-- only values of equal types: no foreign operator in `public` matches then.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_look_in_public() RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    -- Supabase has the functions of extensions in a schema of this name; elsewhere it is ignored.
    PERFORM pg_catalog.set_config('search_path', 'public, extensions, pg_temp', true);
END $$;
