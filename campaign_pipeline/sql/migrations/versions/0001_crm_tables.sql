-- The CRM's tables that the pipeline reads or writes, where they do not exist yet. In an existing CRM database every
-- statement here does nothing. Foreign keys are few on purpose: a lead may be deleted while its message waits, and that
-- message is then skipped with a reason instead of vanishing with the lead.

CREATE TABLE IF NOT EXISTS public.workspaces (
    id          uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name        text,
    slug        text,
    owner_id    uuid,
    settings    jsonb DEFAULT '{}',
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS public.ai_agents (
    id            uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    workspace_id  uuid NOT NULL,
    name          text,
    model         text,                         -- the workspace's language model, as OpenRouter names it
    is_active     boolean NOT NULL DEFAULT true,
    system_prompt text,
    created_at    timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS public.inboxes (
    id            uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    workspace_id  uuid NOT NULL,
    name          text,
    description   text,
    working_hours jsonb,
    settings      jsonb DEFAULT '{}',
    created_at    timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS public.instances (
    id                uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    workspace_id      uuid,
    name              text,                     -- the provider's name for this number
    provider          text DEFAULT 'whatsapp',  -- the channel: whatsapp, email
    provider_type     text DEFAULT 'evolution', -- the adapter: evolution, uazapi, …
    api_key           text,
    instance_token    text,
    phone_number      text,
    status            text DEFAULT 'disconnected',
    settings          jsonb DEFAULT '{}',
    provider_config   jsonb DEFAULT '{}',
    last_connected_at timestamptz,
    created_at        timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS public.inbox_instances (
    inbox_id    uuid NOT NULL,
    instance_id uuid NOT NULL,
    PRIMARY KEY (inbox_id, instance_id)
);

CREATE TABLE IF NOT EXISTS public.funnels (
    id           uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    workspace_id uuid,
    name         text,
    position     integer,
    is_active    boolean DEFAULT true
);

CREATE TABLE IF NOT EXISTS public.funnel_columns (
    id        uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    funnel_id uuid,
    title     text,
    position  integer,
    color     text
);

CREATE TABLE IF NOT EXISTS public.leads (
    id               uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    workspace_id     uuid,
    funnel_id        uuid,
    column_id        uuid,
    client_name      text,
    company          text,
    phone            text,
    deal_value       numeric,
    priority         text,
    tags             text[],
    notes            text,
    status           text,
    cnpj             text,
    whatsapp_valid   boolean,
    whatsapp_name    text,
    whatsapp_jid     text,
    last_activity_at timestamptz,
    created_at       timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS public.custom_fields (
    id           uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    workspace_id uuid,
    name         text NOT NULL,
    field_type   text DEFAULT 'text',
    options      jsonb,
    position     integer
);

CREATE TABLE IF NOT EXISTS public.lead_custom_values (
    id              uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    lead_id         uuid NOT NULL,
    custom_field_id uuid NOT NULL,
    value           text
);

CREATE TABLE IF NOT EXISTS public.conversations (
    id              uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    workspace_id    uuid,
    inbox_id        uuid,
    lead_id         uuid,
    contact_name    text,
    contact_phone   text,
    channel         text,
    status          text DEFAULT 'open',
    campaign_run_id uuid,
    last_message    text,
    last_message_at timestamptz,
    created_at      timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS public.messages (
    id                  uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    conversation_id     uuid,
    content_type        text DEFAULT 'text',
    message_type        text,
    text_content        text,
    provider_message_id text,
    is_read             boolean DEFAULT false,
    sent_by             text,
    created_at          timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS public.campaign_configs (
    id                   uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    workspace_id         uuid,
    inbox_id             uuid,
    source_funnel_id     uuid,
    source_column_id     uuid,
    target_column_id     uuid,
    name                 text,
    ai_instructions      text,
    frequency            text DEFAULT 'daily',
    start_time           time,
    end_time             time,
    timezone             text DEFAULT 'America/Sao_Paulo',
    daily_limit          integer,
    min_interval_seconds integer,
    split_messages       boolean DEFAULT false,
    max_split_parts      integer DEFAULT 3,
    is_active            boolean NOT NULL DEFAULT true,
    created_at           timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS public.campaign_runs (
    id              uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    config_id       uuid,
    name            text,
    status          text NOT NULL DEFAULT 'running',
    run_date        date,
    started_at      timestamptz,
    completed_at    timestamptz,
    error_message   text,
    leads_total     integer NOT NULL DEFAULT 0,
    leads_processed integer NOT NULL DEFAULT 0,
    leads_success   integer NOT NULL DEFAULT 0,
    leads_failed    integer NOT NULL DEFAULT 0,
    leads_skipped   integer NOT NULL DEFAULT 0
);

CREATE TABLE IF NOT EXISTS public.campaign_messages (
    id                    uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    run_id                uuid NOT NULL REFERENCES public.campaign_runs (id) ON DELETE CASCADE,
    lead_id               uuid,
    status                text NOT NULL DEFAULT 'pending',
    scheduled_at          timestamptz,
    queued_at             timestamptz,
    sent_at               timestamptz,
    replied_at            timestamptz,
    phone_number          text,
    phone_normalized      text,
    conversation_id       uuid,
    generated_message     text,
    ai_model              text,
    ai_tokens_used        integer,
    ai_generation_time_ms integer,
    provider_message_id   text,
    provider_response     jsonb,
    lead_context          jsonb,
    error_message         text,
    last_error            text,
    retry_count           integer NOT NULL DEFAULT 0,
    created_at            timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS public.campaign_logs (
    id          uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    run_id      uuid,
    step_number integer,
    step_name   text,
    level       text,
    message     text,
    details     jsonb,
    lead_id     uuid,
    message_id  uuid,
    created_at  timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS public.ai_message_splitter_config (
    id                     uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    is_active              boolean NOT NULL DEFAULT true,
    min_chars_to_split     integer DEFAULT 150,
    delay_between_messages integer DEFAULT 500,
    max_tokens             integer DEFAULT 1000,
    temperature            numeric DEFAULT 0.3,
    model                  text,
    system_prompt          text
);

CREATE TABLE IF NOT EXISTS public.campaign_whatsapp_reports (
    id            uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    workspace_id  uuid,
    report_date   date,
    total_sent    integer DEFAULT 0,
    total_failed  integer DEFAULT 0,
    total_replied integer DEFAULT 0,
    total_tokens  integer DEFAULT 0,
    created_at    timestamptz NOT NULL DEFAULT now()
);
