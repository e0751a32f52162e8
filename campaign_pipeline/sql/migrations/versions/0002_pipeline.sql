-- What the pipeline adds to the CRM's tables: leases, the ledger of parts, error classes, cost, pauses. Additive only.

-- Messages -----------------------------------------------------------------------------------------------------------

ALTER TABLE public.campaign_messages
    ADD COLUMN IF NOT EXISTS next_attempt_at  timestamptz,   -- not before this; overrides scheduled_at
    ADD COLUMN IF NOT EXISTS lease_token      uuid,          -- who may change the message; kept at the end as a trace
    ADD COLUMN IF NOT EXISTS lease_expires_at timestamptz,   -- past it, anybody may take the message over
    ADD COLUMN IF NOT EXISTS lease_owner      text,          -- Dagster run and step, for people
    ADD COLUMN IF NOT EXISTS error_class      text,          -- what ended or delayed it: see the CHECK
    ADD COLUMN IF NOT EXISTS error_code       text,          -- stable and machine readable: not_on_whatsapp
    ADD COLUMN IF NOT EXISTS ai_cost_usd      numeric(12, 8),-- as the provider charged it
    ADD COLUMN IF NOT EXISTS send_time_ms     integer,       -- all requests of all its parts together
    ADD COLUMN IF NOT EXISTS address          text,          -- what it was sent to: 5511987654321
    ADD COLUMN IF NOT EXISTS finished_at      timestamptz;   -- when it became sent, failed or skipped

ALTER TABLE public.campaign_messages
    DROP CONSTRAINT IF EXISTS campaign_messages_status_known,
    ADD CONSTRAINT campaign_messages_status_known CHECK (status IN (
        'pending',     -- waits until it is due
        'queued',      -- leased, not started
        'generating',  -- leased, its text is being written
        'sending',     -- leased, its text is fixed and parts go out
        'sent', 'replied', 'failed', 'skipped')) NOT VALID,
    DROP CONSTRAINT IF EXISTS campaign_messages_error_class_known,
    ADD CONSTRAINT campaign_messages_error_class_known CHECK (error_class IN (
        'permanent',   -- will never work
        'transient',   -- waits for its next attempt
        'exhausted',   -- transient once too often
        'throttled',   -- waits because we went too fast
        'systemic',    -- waits until the cause is gone
        'unknown')) NOT VALID,  -- may have gone out; resent only when a person says so
    DROP CONSTRAINT IF EXISTS campaign_messages_lease_complete,
    ADD CONSTRAINT campaign_messages_lease_complete CHECK (
        status NOT IN ('queued', 'generating', 'sending') OR lease_token IS NULL OR lease_expires_at IS NOT NULL) NOT VALID;

-- When a message may be worked. The expression is repeated to the letter in every statement that wants this index:
-- claim, expire, spread, skip the rest of a cancelled run, when is something due next, can this run close.
CREATE INDEX CONCURRENTLY IF NOT EXISTS campaign_messages_due
    ON public.campaign_messages (run_id, (COALESCE(next_attempt_at, scheduled_at, created_at)))
    WHERE status = 'pending';

-- Serves: recover expired leases, without reading those that live.
CREATE INDEX CONCURRENTLY IF NOT EXISTS campaign_messages_lease_expiry
    ON public.campaign_messages (lease_expires_at)
    WHERE status IN ('queued', 'generating', 'sending');

-- A row changes status four times in a few seconds: room for the new versions on its own page, and a vacuum that
-- comes by the number of dead rows, not by a share of a table of millions.
ALTER TABLE public.campaign_messages SET (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000,
                                   autovacuum_analyze_scale_factor = 0.02);

-- The ledger ---------------------------------------------------------------------------------------------------------

-- One row per part: what was attempted, and what the provider answered. A row is committed as `attempting` before the
-- request leaves (I2) and never leaves `sent` again (I4).
CREATE TABLE IF NOT EXISTS campaign_message_parts (
    message_id          uuid NOT NULL REFERENCES public.campaign_messages (id) ON DELETE CASCADE,
    part_no             integer NOT NULL CHECK (part_no >= 1),
    text                text NOT NULL,
    status              text NOT NULL DEFAULT 'planned' CHECK (status IN (
        'planned',     -- to be sent; any earlier attempt surely did not go out
        'attempting',  -- a request may be on its way
        'unknown',     -- a request left and no answer can be trusted
        'sent',        -- the provider accepted it
        'failed')),    -- the provider refused it for good
    inbox_id            uuid,                      -- through which the last attempt was made
    idempotency_key     text NOT NULL,             -- <message id>:<part no>, given to every provider that takes one
    attempts            integer NOT NULL DEFAULT 0,
    attempt_token       uuid,                      -- the lease under which the last attempt was made
    attempted_at        timestamptz,
    resend_approved_at  timestamptz,               -- a person said: send it again though nobody knows (until attempted)
    looked_up_at        timestamptz,               -- when the provider was last asked for it
    address             text,
    error_class         text,
    error_code          text,
    error_message       text,
    provider_message_id text,
    provider_response   jsonb,
    sent_at             timestamptz,
    duration_ms         integer,                   -- of the request that settled it
    history             jsonb NOT NULL DEFAULT '[]', -- attempts that did not end as sent
    PRIMARY KEY (message_id, part_no)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02);

-- Serves: find_control_part (what did this inbox surely send last; which provider ids are taken).
CREATE INDEX IF NOT EXISTS campaign_message_parts_sent ON campaign_message_parts (inbox_id, sent_at) WHERE status = 'sent';

-- Runs ---------------------------------------------------------------------------------------------------------------

ALTER TABLE public.campaign_runs
    ADD COLUMN IF NOT EXISTS wait_code   text,          -- why nothing of a running run is worked now: window_closed, …
    ADD COLUMN IF NOT EXISTS wait_reason text,          -- the same as a sentence
    ADD COLUMN IF NOT EXISTS wait_until  timestamptz,   -- when that is known
    ADD COLUMN IF NOT EXISTS resumed_at  timestamptz;   -- set when a pause ends, until overdue messages are spread

ALTER TABLE public.campaign_runs
    DROP CONSTRAINT IF EXISTS campaign_runs_status_known,
    ADD CONSTRAINT campaign_runs_status_known CHECK (status IN (
        'running', 'paused', 'completed', 'failed', 'cancelled')) NOT VALID;

-- Serves: which runs may be claimed from; which may close.
CREATE INDEX CONCURRENTLY IF NOT EXISTS campaign_runs_running ON public.campaign_runs (id) WHERE status = 'running';
-- Serves: skip what is left of a cancelled run. A cancelled run that is settled has completed_at.
CREATE INDEX CONCURRENTLY IF NOT EXISTS campaign_runs_to_settle
    ON public.campaign_runs (id) WHERE status = 'cancelled' AND completed_at IS NULL;

-- A scope in which nothing can work, or in which we slow down. One row a scope; no row means all is well.
CREATE TABLE IF NOT EXISTS campaign_pauses (
    scope         text NOT NULL CHECK (scope IN ('run', 'inbox', 'workspace', 'model', 'provider')),
    scope_id      text NOT NULL,
    kind          text NOT NULL CHECK (kind IN ('systemic', 'throttled')),
    code          text NOT NULL,                 -- no_credit, disconnected, …
    reason        text NOT NULL,                 -- one sentence for the operator
    since         timestamptz NOT NULL,
    until         timestamptz NOT NULL,          -- throttled: go on then. systemic: one probe may go then
    failures      integer NOT NULL DEFAULT 1,    -- in a row; each doubles the wait
    probe_message_id uuid,                       -- half-open: the one message that may try
    PRIMARY KEY (scope, scope_id)
);

ALTER TABLE public.campaign_configs
    ADD COLUMN IF NOT EXISTS retry_delays_minutes numeric[];  -- before the 2nd, 3rd, … attempt; null: as configured for all

ALTER TABLE public.ai_message_splitter_config
    ADD COLUMN IF NOT EXISTS strategy text NOT NULL DEFAULT 'local' CHECK (strategy IN (
        'local',    -- at sentence and list boundaries, here
        'model'));  -- as the model proposes, checked for loss

-- Look-ups by lead and parent ----------------------------------------------------------------------------------------

-- Serves: get_lead_contexts.
CREATE INDEX CONCURRENTLY IF NOT EXISTS lead_custom_values_of_lead
    ON public.lead_custom_values (lead_id);
-- Serves: campaign_find_conversations.
CREATE INDEX CONCURRENTLY IF NOT EXISTS conversations_of_lead
    ON public.conversations (lead_id);
-- Serves: campaign_find_conversations.
CREATE INDEX CONCURRENTLY IF NOT EXISTS conversations_of_phone
    ON public.conversations (contact_phone);
-- Serves: get_batch_settings.
CREATE INDEX CONCURRENTLY IF NOT EXISTS ai_agents_of_workspace
    ON public.ai_agents (workspace_id) WHERE is_active;
-- Serves: the CRM's chat view.
CREATE INDEX CONCURRENTLY IF NOT EXISTS messages_of_conversation
    ON public.messages (conversation_id, created_at);
-- Serves: the CRM's log view.
CREATE INDEX CONCURRENTLY IF NOT EXISTS campaign_logs_of_run
    ON public.campaign_logs (run_id, created_at);
