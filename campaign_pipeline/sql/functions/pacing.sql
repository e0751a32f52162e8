-- Pacing: how fast each inbox and campaign may send, whoever sends.
--
-- The right to begin a message is a slot, taken in the transaction that commits the intent to send it (I2), so the pace
-- holds across shards, runs and machines. Rows of campaign_pace_state are locked after messages and before runs, in the
-- order (scope, scope_id). An inbox or campaign without a pace has no row here and costs one probe per group of
-- messages.
--
-- A slot is granted at the start of a transaction; its request leaves within the grace, or not at all (the caller then
-- returns the slot). The next slot is at least the gap after the request was *answered*: whenever the provider took it,
-- the gap is kept. Until the answer, `held_until` delays the next slot by gap and grace.

-- By how much an inbox's gap is multiplied: doubled by each throttle, halved by every quarter of an hour without one
-- and by every ten accepted messages.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_slow_factor(p_state campaign_pipeline.campaign_pace_state)
    RETURNS double precision
LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF p_state.slowed_at IS NULL THEN
        RETURN 1;
    END IF;
    RETURN greatest(1, p_state.slow_factor / 2 ^ least(3,
        floor(greatest(0, EXTRACT(epoch FROM campaign_pipeline.campaign_now() - p_state.slowed_at)) / 900)
            + p_state.sent_since_slow / 10));
END $$;

-- A time zone of the CRM's, or the default if invalid: the claim reports that to the operator, and nothing breaks here.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_known_zone(p_zone text) RETURNS text LANGUAGE plpgsql STABLE AS $$
BEGIN
    -- The usual case, without the cost of a subtransaction that catches an error.
    IF p_zone IS NULL OR p_zone = 'America/Sao_Paulo' THEN
        RETURN 'America/Sao_Paulo';
    END IF;
    BEGIN
        PERFORM timestamp '2000-01-01' AT TIME ZONE p_zone;
    EXCEPTION WHEN invalid_parameter_value THEN
        RETURN 'America/Sao_Paulo';
    END;
    RETURN p_zone;
END $$;

-- Whether the pipeline plans when messages are due, rather than a CRM. It does if it created campaign_configs itself
-- (migration 0001, with a column `name`, which the CRM's lacks). What a CRM planned is sent as planned: scheduled_at is
-- its pace, and min_interval_seconds and daily_limit, from which it planned one run, are not enforced again over all
-- runs. A campaign may override this (campaign_configs.enforce_pace).
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_is_planner() RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_attribute a
                   WHERE a.attrelid = 'public.campaign_configs'::regclass AND a.attname = 'name' AND NOT a.attisdropped)
$$;

-- The current pace of one inbox or campaign: its settings, its use so far, when the next message may begin (free_at, in
-- the past if at once), and why not before (code).
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_pace(
    p_scope text, p_scope_id uuid,
    OUT gap_seconds double precision,   -- slow-down included, without jitter
    OUT jitter double precision, OUT slow_factor double precision,
    OUT hourly_limit integer, OUT hour_count integer,
    OUT daily_limit integer,            -- of today: the warm-up's if lower
    OUT warming_up boolean,             -- the warm-up's is the lower
    OUT zone text, OUT day date, OUT day_count integer, OUT day_ends_at timestamptz,
    OUT pause_after integer, OUT pause_seconds double precision,
    OUT turn_at timestamptz,            -- when its gap admits the next one, ignoring limits and quiet hours
    OUT free_at timestamptz, OUT code text,
    OUT floor_message_id uuid
) LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_column
DECLARE
    now_   timestamptz := campaign_pipeline.campaign_now();
    wish   campaign_pipeline.campaign_inbox_pace;
    state  campaign_pipeline.campaign_pace_state;
    ramp   integer;
    clock  time;      -- local time of day
    oldest timestamptz;
BEGIN
    SELECT * INTO state FROM campaign_pipeline.campaign_pace_state s WHERE s.scope = p_scope
           AND s.scope_id = p_scope_id;
    IF p_scope = 'inbox' THEN
        SELECT * INTO wish FROM campaign_pipeline.campaign_inbox_pace p WHERE p.inbox_id = p_scope_id;
        gap_seconds := wish.min_gap_seconds;
        daily_limit := wish.daily_limit;
        zone := COALESCE(wish.timezone, 'America/Sao_Paulo');
    ELSE
        SELECT c.min_interval_seconds, c.daily_limit,
               campaign_pipeline.campaign_known_zone(c.timezone) INTO gap_seconds, daily_limit, zone
        FROM public.campaign_configs c WHERE c.id = p_scope_id;
        IF NOT COALESCE((SELECT c.enforce_pace FROM public.campaign_configs c WHERE c.id = p_scope_id),
                        campaign_pipeline.campaign_is_planner()) THEN
            gap_seconds := NULL;
            daily_limit := NULL;
        END IF;
    END IF;
    jitter := COALESCE(wish.jitter, 0);
    hourly_limit := wish.hourly_limit;
    pause_after := wish.pause_after;
    pause_seconds := wish.pause_seconds;
    floor_message_id := state.floor_message_id;
    slow_factor := campaign_pipeline.campaign_slow_factor(state);
    -- Without a configured gap, a throttled inbox sends ten messages per second divided by the factor.
    gap_seconds := greatest(COALESCE(gap_seconds, 0), CASE WHEN slow_factor > 1 THEN 0.1 ELSE 0 END) * slow_factor;

    turn_at := greatest(state.next_at, state.held_until, '-infinity');
    free_at := turn_at;
    code := COALESCE(state.next_code, 'paced');

    day := (now_ AT TIME ZONE zone)::date;
    day_ends_at := (day + 1)::timestamp AT TIME ZONE zone;
    day_count := CASE WHEN state.day = day THEN state.day_count ELSE 0 END;
    warming_up := false;
    IF wish.warm_up_from IS NOT NULL THEN
        SELECT w.daily_limit INTO ramp FROM campaign_pipeline.campaign_warm_up_ramp w
        WHERE w.from_day <= greatest(1, day - wish.warm_up_from + 1) ORDER BY w.from_day DESC LIMIT 1;
        warming_up := ramp < COALESCE(daily_limit, ramp + 1);
        daily_limit := least(daily_limit, ramp);
    END IF;
    IF day_count >= daily_limit AND day_ends_at > free_at THEN
        free_at := day_ends_at;
        code := CASE WHEN warming_up THEN 'warming_up' ELSE 'daily_limit' END;
    END IF;

    IF hourly_limit IS NOT NULL THEN
        SELECT count(*), min(t.taken_at) FILTER (WHERE t.place = hourly_limit) INTO hour_count, oldest
        FROM (SELECT l.taken_at, row_number() OVER (ORDER BY l.taken_at DESC) AS place
              FROM campaign_pipeline.campaign_inbox_slots l
              WHERE l.inbox_id = p_scope_id AND l.taken_at > now_ - interval '1 hour') t;
        IF oldest + interval '1 hour' > free_at THEN
            free_at := oldest + interval '1 hour';
            code := 'hourly_limit';
        END IF;
    END IF;

    clock := (now_ AT TIME ZONE zone)::time;
    IF (CASE WHEN wish.quiet_from < wish.quiet_until THEN clock >= wish.quiet_from AND clock < wish.quiet_until
             ELSE clock >= wish.quiet_from OR clock < wish.quiet_until END) THEN
        oldest := (day + CASE WHEN clock < wish.quiet_until THEN 0 ELSE 1 END + wish.quiet_until) AT TIME ZONE zone;
        IF oldest > free_at THEN
            free_at := oldest;
            code := 'quiet_hours';
        END IF;
    END IF;
END $$;

-- When a message may begin, by the paces of its inbox and campaign; null: neither has one. A begun message (p_begun)
-- waits for no limit and no quiet hours, only for the gap, and not even that if no other message began after it.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_next_turn(
    p_message uuid, p_begun boolean, p_inbox uuid, p_campaign uuid, OUT free_at timestamptz, OUT code text
) LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_column
DECLARE
    pace record;
    at_  timestamptz;
BEGIN
    FOR pace IN SELECT p.* FROM (VALUES ('inbox', p_inbox), ('campaign', p_campaign)) AS s (scope, id)
                CROSS JOIN LATERAL campaign_pipeline.campaign_pace(s.scope, s.id) p WHERE s.id IS NOT NULL LOOP
        at_ := CASE WHEN p_begun AND pace.floor_message_id = p_message THEN '-infinity'
                    WHEN p_begun THEN pace.turn_at ELSE pace.free_at END;
        IF free_at IS NULL OR at_ > free_at THEN
            free_at := at_;
            code := CASE WHEN p_begun THEN 'paced' ELSE pace.code END;
        END IF;
    END LOOP;
END $$;

-- The paces that apply to a message: its inbox's and its campaign's, if any.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_paced_by(
    p_message uuid, p_inbox uuid, OUT inbox uuid, OUT campaign uuid, OUT begun boolean
) LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_column
BEGIN
    SELECT p_inbox INTO inbox
           WHERE EXISTS (SELECT 1 FROM campaign_pipeline.campaign_inbox_pace p WHERE p.inbox_id = p_inbox)
        OR EXISTS (SELECT 1 FROM campaign_pipeline.campaign_pace_state s WHERE s.scope = 'inbox'
                   AND s.scope_id = p_inbox);
    SELECT c.id INTO campaign
    FROM public.campaign_messages m JOIN public.campaign_runs r ON r.id = m.run_id
    JOIN public.campaign_configs c ON c.id = r.config_id AND (c.min_interval_seconds > 0 OR c.daily_limit IS NOT NULL)
        AND COALESCE(c.enforce_pace, (SELECT campaign_pipeline.campaign_is_planner()))
    WHERE m.id = p_message;
    begun := EXISTS (SELECT 1 FROM campaign_pipeline.campaign_message_parts p WHERE p.message_id = p_message
                     AND campaign_pipeline.campaign_is_out(p.status));
END $$;

-- How long a message waits for its turn, without taking it; for a shard that waits.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_peek_turn(
    p_message uuid, p_inbox uuid, OUT wait_seconds double precision, OUT wait_code text
) LANGUAGE plpgsql STABLE AS $$
BEGIN
    SELECT greatest(0,
                    EXTRACT(epoch
                            FROM greatest(t.free_at, campaign_pipeline.campaign_now())
                                - campaign_pipeline.campaign_now())), t.code
    INTO wait_seconds, wait_code
    FROM campaign_pipeline.campaign_paced_by(p_message, p_inbox) b
    CROSS JOIN LATERAL campaign_pipeline.campaign_next_turn(p_message, b.begun, b.inbox, b.campaign) t;
    wait_seconds := COALESCE(wait_seconds, 0);
END $$;

-- Take slots for the parts that are about to be sent, one message after the other, so that at most one of a group takes
-- an inbox's slot. Null: none of them has a pace. Otherwise by message: {wait, code} if its turn has not come; {grace}
-- if it may go, within so many seconds of the call (null: at any time).
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_take_slots(p_going campaign_pipeline.campaign_intent[])
RETURNS jsonb LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    now_    timestamptz := campaign_pipeline.campaign_now();
    wanted  jsonb;
    answers jsonb := '{}';
    one     record;
    turn    record;
    pace    record;
    again   boolean;
    lateness double precision;  -- after which a request comes too near to the next one
    grace   double precision;
    rests   boolean;
BEGIN
    SELECT jsonb_agg(jsonb_build_object('id', i.id, 'token', i.token, 'part_no', i.part_no, 'attempt_no', i.attempt_no,
                                        'inbox', inbox.id, 'campaign', c.id) ORDER BY i.id) INTO wanted
    FROM unnest(p_going) AS i
    LEFT JOIN public.campaign_configs c ON c.id = i.config_id
        AND (c.min_interval_seconds > 0 OR c.daily_limit IS NOT NULL)
        AND COALESCE(c.enforce_pace, (SELECT campaign_pipeline.campaign_is_planner()))
    LEFT JOIN LATERAL (SELECT i.inbox_id AS id
        WHERE EXISTS (SELECT 1 FROM campaign_pipeline.campaign_inbox_pace p WHERE p.inbox_id = i.inbox_id)
           OR EXISTS (SELECT 1 FROM campaign_pipeline.campaign_pace_state s WHERE s.scope = 'inbox'
                      AND s.scope_id = i.inbox_id)) inbox ON true
    WHERE c.id IS NOT NULL OR inbox.id IS NOT NULL;
    IF wanted IS NULL THEN
        RETURN NULL;
    END IF;

    PERFORM campaign_pipeline.campaign_lock_paces(wanted);
    FOR one IN SELECT * FROM jsonb_to_recordset(wanted) AS w (id uuid, token uuid, part_no integer, attempt_no integer,
                                                              inbox uuid, campaign uuid) LOOP
        -- Asked again because the answer was lost: it has its slot.
        again := EXISTS (SELECT 1 FROM campaign_pipeline.campaign_message_parts p WHERE p.message_id = one.id
                         AND p.part_no = one.part_no
                         AND p.status = 'attempting' AND p.attempts = one.attempt_no AND p.attempt_token = one.token);
        SELECT b.begun, t.free_at, t.code INTO turn
        FROM (SELECT EXISTS (SELECT 1 FROM campaign_pipeline.campaign_message_parts p WHERE p.message_id = one.id
                             AND campaign_pipeline.campaign_is_out(p.status)) AS begun) b
        CROSS JOIN LATERAL campaign_pipeline.campaign_next_turn(one.id, b.begun, one.inbox, one.campaign) t;
        IF turn.free_at > now_ AND NOT again THEN
            answers := answers || jsonb_build_object(one.id, jsonb_build_object(
                'wait', least(EXTRACT(epoch FROM turn.free_at - now_), 604800), 'code', turn.code));
            CONTINUE;
        END IF;
        grace := NULL;
        FOR pace IN SELECT s.scope, s.id, p.*, x.last_at, x.since_rest
                    FROM (VALUES ('inbox', one.inbox), ('campaign', one.campaign)) AS s (scope, id)
                    JOIN campaign_pipeline.campaign_pace_state x ON x.scope = s.scope AND x.scope_id = s.id
                    CROSS JOIN LATERAL campaign_pipeline.campaign_pace(s.scope, s.id) p LOOP
            IF pace.gap_seconds > 0 THEN
                -- A request that leaves late comes too near to the next: a quarter of the gap is what nobody notices.
                -- At least the time of a commit on a busy database, at most a slow but living connection's.
                lateness := least(5, greatest(0.25, pace.gap_seconds / 4));
                grace := least(grace, lateness);
            END IF;
            CONTINUE WHEN again;
            IF pace.last_at <= now_ - make_interval(secs => pace.pause_seconds) THEN
                pace.since_rest := 0;  -- it has rested anyway
            END IF;
            rests := NOT turn.begun AND COALESCE(pace.since_rest + 1 >= pace.pause_after, false);
            UPDATE campaign_pipeline.campaign_pace_state s
            SET next_at = greatest(s.next_at, now_ + make_interval(secs => greatest(
                    CASE WHEN rests THEN pace.pause_seconds ELSE 0 END,
                    pace.gap_seconds * (1 + CASE WHEN turn.begun THEN 0 ELSE pace.jitter * random() END)))),
                next_code = CASE WHEN rests THEN 'resting' WHEN turn.begun THEN s.next_code ELSE 'paced' END,
                held_until = CASE WHEN pace.gap_seconds > 0 THEN now_ + make_interval(secs =>
                    pace.gap_seconds + lateness) ELSE '-infinity' END,
                floor_message_id = one.id,
                last_at = now_,
                day = pace.day,
                day_count = pace.day_count + CASE WHEN turn.begun THEN 0 ELSE 1 END,
                since_rest = CASE WHEN turn.begun THEN s.since_rest WHEN rests THEN 0 ELSE pace.since_rest + 1 END
            WHERE s.scope = pace.scope AND s.scope_id = pace.id;
            IF pace.hourly_limit IS NOT NULL AND NOT turn.begun THEN
                DELETE FROM campaign_pipeline.campaign_inbox_slots l WHERE l.inbox_id = pace.id
                    AND l.taken_at <= now_ - interval '1 hour';
                INSERT INTO campaign_pipeline.campaign_inbox_slots (inbox_id, taken_at, message_id)
                    VALUES (pace.id, now_, one.id)
                ON CONFLICT DO NOTHING;
            END IF;
        END LOOP;
        answers := answers || jsonb_build_object(one.id, jsonb_build_object('grace', grace));
    END LOOP;
    RETURN answers;
END $$;

-- Lock the rows of some paces, creating missing ones, always in the same order. p_wanted: [{inbox, campaign}].
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_lock_paces(p_wanted jsonb) RETURNS void LANGUAGE plpgsql
SET jit = off SET enable_seqscan = off SET enable_hashjoin = off AS $$
BEGIN
    INSERT INTO campaign_pipeline.campaign_pace_state (scope, scope_id)
    SELECT DISTINCT s.scope, s.id
    FROM jsonb_to_recordset(p_wanted) AS w (inbox uuid, campaign uuid)
    CROSS JOIN LATERAL (VALUES ('inbox', w.inbox), ('campaign', w.campaign)) AS s (scope, id)
    WHERE s.id IS NOT NULL
    ORDER BY s.scope, s.id
    ON CONFLICT DO NOTHING;
    PERFORM 1 FROM campaign_pipeline.campaign_pace_state x
    WHERE (x.scope, x.scope_id) IN (
        SELECT s.scope, s.id FROM jsonb_to_recordset(p_wanted) AS w (inbox uuid, campaign uuid)
        CROSS JOIN LATERAL (VALUES ('inbox', w.inbox), ('campaign', w.campaign)) AS s (scope, id))
    ORDER BY x.scope, x.scope_id FOR UPDATE;
END $$;

-- Settle the slots of parts. The next slot is a whole gap after the answer. Parts that were surely not sent no longer
-- count against the limits; if not even a request was made (`unrequested`), the slot itself is returned.
-- p_ids: the messages with a slot of which a part was settled just now.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_settle_slots(
    p_ends campaign_pipeline.campaign_end[], p_ids uuid[]
) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    now_   timestamptz := campaign_pipeline.campaign_now();
    wanted jsonb;
    one    record;
BEGIN
    SELECT jsonb_agg(jsonb_build_object('inbox', inbox.scope_id, 'campaign', campaign.scope_id)) INTO wanted
    FROM unnest(p_ends) AS i
    JOIN campaign_pipeline.campaign_message_parts p ON p.message_id = i.id AND p.part_no = i.part_no
    JOIN public.campaign_messages m ON m.id = i.id
    JOIN public.campaign_runs r ON r.id = m.run_id
    LEFT JOIN campaign_pipeline.campaign_pace_state inbox ON inbox.scope = 'inbox' AND inbox.scope_id = p.inbox_id
    LEFT JOIN campaign_pipeline.campaign_pace_state campaign ON campaign.scope = 'campaign'
        AND campaign.scope_id = r.config_id
    WHERE i.id = ANY (p_ids);
    PERFORM campaign_pipeline.campaign_lock_paces(wanted);

    FOR one IN
        SELECT i.id, i.outcome, COALESCE(i.unrequested, false) AS unrequested, p.part_no, p.slot_at, x.scope,
               x.scope_id, pace.*,
               i.outcome IN ('planned', 'failed') AND NOT EXISTS (
                   SELECT 1 FROM campaign_pipeline.campaign_message_parts o WHERE o.message_id = i.id
                          AND o.status = 'sent') AS refunded
        FROM unnest(p_ends) AS i
        JOIN campaign_pipeline.campaign_message_parts p ON p.message_id = i.id AND p.part_no = i.part_no
        JOIN public.campaign_messages m ON m.id = i.id
        JOIN public.campaign_runs r ON r.id = m.run_id
        CROSS JOIN LATERAL (VALUES ('inbox', p.inbox_id), ('campaign', r.config_id)) AS s (scope, id)
        JOIN campaign_pipeline.campaign_pace_state x ON x.scope = s.scope AND x.scope_id = s.id
        CROSS JOIN LATERAL campaign_pipeline.campaign_pace(x.scope, x.scope_id) pace
        WHERE i.id = ANY (p_ids)
        ORDER BY i.id
    LOOP
        UPDATE campaign_pipeline.campaign_pace_state s
        SET next_at = CASE WHEN NOT one.unrequested
                               THEN greatest(s.next_at, now_ + make_interval(secs => one.gap_seconds))
                           WHEN s.floor_message_id = one.id THEN least(s.next_at, now_) ELSE s.next_at END,
            held_until = CASE WHEN s.floor_message_id = one.id THEN '-infinity' ELSE s.held_until END,
            floor_message_id = CASE WHEN one.unrequested AND s.floor_message_id = one.id AND one.refunded THEN NULL
                                    ELSE s.floor_message_id END,
            day_count = CASE WHEN one.refunded AND s.day = (one.slot_at AT TIME ZONE one.zone)::date
                             THEN greatest(0, s.day_count - 1) ELSE s.day_count END,
            since_rest = CASE WHEN one.unrequested AND s.floor_message_id = one.id AND s.next_code = 'resting'
                                  THEN greatest(0, one.pause_after - 1)  -- the rest that it would have begun
                              WHEN one.refunded THEN greatest(0, s.since_rest - 1) ELSE s.since_rest END,
            sent_since_slow = s.sent_since_slow + CASE WHEN one.outcome = 'sent' AND s.slowed_at IS NOT NULL THEN 1
                ELSE 0 END
        WHERE s.scope = one.scope AND s.scope_id = one.scope_id;
        IF one.refunded AND one.scope = 'inbox' THEN
            DELETE FROM campaign_pipeline.campaign_inbox_slots l
            WHERE l.inbox_id = one.scope_id AND l.taken_at = one.slot_at AND l.message_id = one.id;
        END IF;
    END LOOP;

    -- A part must not be subtracted from the limits twice.
    UPDATE campaign_pipeline.campaign_message_parts p SET slot_at = NULL
    FROM unnest(p_ends) AS i
    WHERE i.id = ANY (p_ids) AND p.message_id = i.id AND p.part_no = i.part_no AND i.outcome IN ('planned', 'failed');
END $$;

-- The provider reported that an inbox sends too fast: halve its speed, down to an eighth. Reports for requests in
-- flight within five seconds count once. An inbox without a pace gets one by this, until it has recovered.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_slow_down(p_inbox uuid) RETURNS double precision
    LANGUAGE plpgsql AS $$
DECLARE
    state campaign_pipeline.campaign_pace_state;
BEGIN
    PERFORM campaign_pipeline.campaign_lock_paces(jsonb_build_array(jsonb_build_object('inbox', p_inbox)));
    SELECT * INTO state FROM campaign_pipeline.campaign_pace_state s WHERE s.scope = 'inbox' AND s.scope_id = p_inbox;
    IF state.slowed_at > campaign_pipeline.campaign_now() - interval '5 seconds' THEN
        RETURN campaign_pipeline.campaign_slow_factor(state);
    END IF;
    UPDATE campaign_pipeline.campaign_pace_state s
    SET slow_factor = least(8, 2 * campaign_pipeline.campaign_slow_factor(state)),
        slowed_at = campaign_pipeline.campaign_now(), sent_since_slow = 0
    WHERE s.scope = 'inbox' AND s.scope_id = p_inbox;
    RETURN least(8, 2 * campaign_pipeline.campaign_slow_factor(state));
END $$;

-- Any change of a pace, by any tool, has the runs that wait for it checked again at once.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_recheck_paced_runs() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, campaign_pipeline, pg_temp AS $$
DECLARE
    changed jsonb := CASE TG_OP WHEN 'DELETE' THEN to_jsonb(OLD) ELSE to_jsonb(NEW) END;
BEGIN
    PERFORM campaign_pipeline.campaign_look_in_public();
    UPDATE public.campaign_runs r SET wait_until = campaign_pipeline.campaign_now()
    FROM public.campaign_configs c
    WHERE r.status = 'running' AND c.id = r.config_id AND r.wait_until > campaign_pipeline.campaign_now()
      AND r.wait_code IN ('paced', 'resting', 'hourly_limit', 'daily_limit', 'warming_up', 'quiet_hours')
      AND CASE TG_TABLE_NAME WHEN 'campaign_configs' THEN c.id = (changed ->> 'id')::uuid
               ELSE COALESCE(r.active_inbox_id, c.inbox_id) = (changed ->> 'inbox_id')::uuid END;
    RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER campaign_recheck_paced_runs
    AFTER INSERT OR UPDATE OR DELETE ON campaign_pipeline.campaign_inbox_pace
    FOR EACH ROW EXECUTE FUNCTION campaign_pipeline.campaign_recheck_paced_runs();
-- Of whatever column: enforce_pace is not there yet when migration 0008 makes this for the first time.
CREATE OR REPLACE TRIGGER campaign_recheck_paced_runs AFTER UPDATE ON public.campaign_configs
    FOR EACH ROW EXECUTE FUNCTION campaign_pipeline.campaign_recheck_paced_runs();

-- Fallback inboxes ---------------------------------------------------------------------------------------------------

-- Whether a message is bound to the inbox that it began through: a part was or may have been sent there. Otherwise the
-- lead would get half a text from each number, and an unknown outcome would be looked up in the wrong inbox. An inbox
-- that was deleted from the CRM binds nothing.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_is_bound(p_message uuid, p_inbox uuid) RETURNS boolean
    LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN p_inbox IS NOT NULL
       AND EXISTS (SELECT 1 FROM campaign_pipeline.campaign_message_parts p
                   WHERE p.message_id = p_message AND p.inbox_id = p_inbox
                       AND p.status IN ('sent', 'unknown', 'attempting'))
       AND EXISTS (SELECT 1 FROM public.inbox_instances x WHERE x.inbox_id = p_inbox);
END $$;

-- Whether a message cannot go on because its inbox is down while its run uses another one.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_waits_for_its_inbox(p_message uuid, p_run uuid, p_inbox uuid)
    RETURNS boolean
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN campaign_pipeline.campaign_is_bound(p_message, p_inbox)
       AND p_inbox IS DISTINCT FROM (SELECT COALESCE(r.active_inbox_id, c.inbox_id)
                                     FROM public.campaign_runs r JOIN public.campaign_configs c ON c.id = r.config_id
                                         WHERE r.id = p_run)
       AND (EXISTS (SELECT 1 FROM campaign_pipeline.campaign_pauses p
                    WHERE p.scope = 'inbox' AND p.scope_id = p_inbox::text
                        AND (p.kind = 'systemic' OR p.until > campaign_pipeline.campaign_now()))
            OR EXISTS (SELECT 1 FROM campaign_pipeline.campaign_manual_pauses h
                       WHERE h.scope = 'inbox' AND h.scope_id = p_inbox::text)
            OR NOT EXISTS (SELECT 1 FROM public.inbox_instances x JOIN public.instances i ON i.id = x.instance_id
                           WHERE x.inbox_id = p_inbox AND i.status = 'connected'));
END $$;
