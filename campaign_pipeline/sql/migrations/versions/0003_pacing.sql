-- Pacing of inboxes and campaigns, fallback inboxes. What an operator wishes (campaign_inbox_pace, and min_interval_seconds
-- and daily_limit of campaign_configs) lies apart from what the pipeline remembers (campaign_pace_state).

-- How fast an inbox may send; set by hand or by the CRM. No row, or null: as fast as it can. Read anew at every slot, so
-- a change counts from the next message on.
CREATE TABLE IF NOT EXISTS campaign_inbox_pace (
    inbox_id        uuid PRIMARY KEY,
    min_gap_seconds double precision CHECK (min_gap_seconds > 0 AND min_gap_seconds <= 86400), -- between two messages, at least
    jitter          double precision NOT NULL DEFAULT 0.2 CHECK (jitter BETWEEN 0 AND 5), -- a gap is stretched by up to this share of it, at random
    hourly_limit    integer CHECK (hourly_limit > 0),  -- messages in any 60 minutes
    daily_limit     integer CHECK (daily_limit > 0),   -- messages in a local day
    warm_up_from    date,                              -- first day of a new number: campaign_warm_up_ramp limits it; null: no ramp
    pause_after     integer CHECK (pause_after > 0),   -- after so many messages …
    pause_seconds   double precision CHECK (pause_seconds > 0 AND pause_seconds <= 86400),  -- … it rests so long
    quiet_from      time,                              -- nothing begins from this local time …
    quiet_until     time,                              -- … until this one; over midnight where it is the earlier
    timezone        text NOT NULL DEFAULT 'America/Sao_Paulo',  -- of its days and quiet hours
    CONSTRAINT campaign_inbox_pace_rest_complete CHECK ((pause_after IS NULL) = (pause_seconds IS NULL)),
    CONSTRAINT campaign_inbox_pace_quiet_complete CHECK (
        (quiet_from IS NULL) = (quiet_until IS NULL) AND quiet_from IS DISTINCT FROM COALESCE(quiet_until, '24:00')),
    -- Refused here, in words of the server's own, instead of stopping every message of the inbox later.
    CONSTRAINT campaign_inbox_pace_zone_known CHECK (timestamp '2000-01-01' AT TIME ZONE timezone IS NOT NULL)
);

-- How many messages a day a new number bears. From its last row on it stays at that; clear warm_up_from to end it.
CREATE TABLE IF NOT EXISTS campaign_warm_up_ramp (
    from_day    integer PRIMARY KEY CHECK (from_day >= 1),   -- of the number's life; its first day is 1
    daily_limit integer NOT NULL CHECK (daily_limit > 0)     -- messages a day from then on
);
INSERT INTO campaign_warm_up_ramp VALUES (1, 20), (3, 40), (5, 80), (8, 120), (15, 150) ON CONFLICT DO NOTHING;

-- Where an inbox or a campaign stands. Written by campaign_take_slots, campaign_settle_slots and campaign_slow_down alone.
CREATE TABLE IF NOT EXISTS campaign_pace_state (
    scope            text NOT NULL CHECK (scope IN ('inbox', 'campaign')),
    scope_id         uuid NOT NULL,
    next_at          timestamptz NOT NULL DEFAULT '-infinity',  -- no message begins before
    next_code        text NOT NULL DEFAULT 'paced' CHECK (next_code IN ('paced', 'resting')),  -- why it waits until then
    held_until       timestamptz NOT NULL DEFAULT '-infinity',  -- nor before this, while the last request is not settled
    floor_message_id uuid,                        -- who began last: its further parts follow without waiting
    last_at          timestamptz,                 -- when the last message began
    day              date,                        -- the local day that day_count counts
    day_count        integer NOT NULL DEFAULT 0,  -- messages begun on it, without those that surely did not go out
    since_rest       integer NOT NULL DEFAULT 0,  -- messages begun since the last rest (pause_after)
    slow_factor      double precision NOT NULL DEFAULT 1 CHECK (slow_factor BETWEEN 1 AND 8),  -- as of slowed_at; multiplies the gap
    slowed_at        timestamptz,                 -- when the provider last said: too fast
    sent_since_slow  integer NOT NULL DEFAULT 0,  -- messages accepted since then: every ten halve the factor
    PRIMARY KEY (scope, scope_id)
) WITH (fillfactor = 50);

-- The messages that an inbox with an hourly limit began in the last hour.
CREATE TABLE IF NOT EXISTS campaign_inbox_slots (
    inbox_id   uuid NOT NULL,
    taken_at   timestamptz NOT NULL,
    message_id uuid NOT NULL,
    PRIMARY KEY (inbox_id, taken_at, message_id)  -- serves: campaign_pace, how many and when does the oldest leave
);

ALTER TABLE campaign_message_parts
    ADD COLUMN IF NOT EXISTS slot_at timestamptz;  -- when its last attempt was let go by a pace; null: no pace, or given back

ALTER TABLE public.campaign_runs
    ADD COLUMN IF NOT EXISTS pace_held_since timestamptz,  -- since when more was due than the pace lets go: that time ages no message
    ADD COLUMN IF NOT EXISTS active_inbox_id uuid;         -- the fallback inbox that it sends through now; null: its own

ALTER TABLE public.campaign_configs
    ADD COLUMN IF NOT EXISTS fallback_inbox_ids uuid[],    -- in the order of preference
    ADD COLUMN IF NOT EXISTS when_inbox_down text NOT NULL DEFAULT 'pause' CHECK (when_inbox_down IN (
        'pause',        -- messages wait until the inbox is well again
        'fallback'));   -- they go through the first healthy inbox of fallback_inbox_ids meanwhile

ALTER TABLE public.campaign_messages
    ADD COLUMN IF NOT EXISTS inbox_id uuid;  -- through which it goes or went; null: its campaign's

-- They answer in more columns now, which no CREATE OR REPLACE can give them.
DROP FUNCTION IF EXISTS campaign_begin_parts(jsonb);
