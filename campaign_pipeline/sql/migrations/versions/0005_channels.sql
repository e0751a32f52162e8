-- What e-mail, the Cloud API and OpenRouter need: subjects, status events, spending.

-- E-mail -------------------------------------------------------------------------------------------------------------

ALTER TABLE public.leads
    ADD COLUMN IF NOT EXISTS email text;    -- where e-mail goes; null: the custom field "Email", where the CRM keeps it
ALTER TABLE public.campaign_messages
    ADD COLUMN IF NOT EXISTS subject text;  -- of an e-mail, fixed together with its text; null: the channel has none
COMMENT ON COLUMN public.leads.email IS 'Where e-mail goes; null: the custom field "Email", where the CRM keeps it.';
COMMENT ON COLUMN public.campaign_messages.subject IS 'Of an e-mail, fixed together with its text; null: the channel has none.';
COMMENT ON COLUMN public.conversations.contact_phone IS 'The address of the contact: a phone number, or an e-mail address where channel is email.';

-- The language model -------------------------------------------------------------------------------------------------

ALTER TABLE public.ai_agents
    ADD COLUMN IF NOT EXISTS fallback_models    text[],  -- asked in this order where the model cannot answer
    ADD COLUMN IF NOT EXISTS openrouter_api_key text;    -- of the workspace's own account; null: the shared one
COMMENT ON COLUMN public.ai_agents.fallback_models IS 'Language models that are asked, in this order, where the model cannot answer.';
COMMENT ON COLUMN public.ai_agents.openrouter_api_key IS 'Key of the workspace''s own OpenRouter account; null: the account that all share.';

-- Spending -----------------------------------------------------------------------------------------------------------

ALTER TABLE public.campaign_configs
    ADD COLUMN IF NOT EXISTS max_cost_usd_per_run numeric CHECK (max_cost_usd_per_run > 0);
ALTER TABLE public.workspaces
    ADD COLUMN IF NOT EXISTS max_cost_usd_per_day numeric CHECK (max_cost_usd_per_day > 0);
COMMENT ON COLUMN public.campaign_configs.max_cost_usd_per_run IS
    'US dollars that the texts of one run may cost, counted from when the limit is set; null: no limit.';
COMMENT ON COLUMN public.workspaces.max_cost_usd_per_day IS
    'US dollars that the texts of a workspace may cost in a day of its time zone (settings.timezone, else America/Sao_Paulo), '
    'counted from when the limit is set; null: no limit.';

-- Serve: campaign_note_spending (is a limit set anywhere).
CREATE INDEX CONCURRENTLY IF NOT EXISTS campaign_configs_with_limit
    ON public.campaign_configs (id) WHERE max_cost_usd_per_run IS NOT NULL;
CREATE INDEX CONCURRENTLY IF NOT EXISTS workspaces_with_limit
    ON public.workspaces (id) WHERE max_cost_usd_per_day IS NOT NULL;

CREATE TABLE IF NOT EXISTS campaign_spending (
    scope     text NOT NULL CHECK (scope IN ('run', 'workspace')),
    scope_id  uuid NOT NULL,
    day       date NOT NULL,     -- of the workspace's time zone; 0001-01-01 for a run, which has no day
    spent_usd numeric NOT NULL,
    PRIMARY KEY (scope, scope_id, day)
) WITH (fillfactor = 50);  -- one row is written again with every few texts
COMMENT ON TABLE campaign_spending IS 'What texts cost, where a limit is set: per run, and per workspace and day.';
COMMENT ON COLUMN campaign_spending.scope IS 'run or workspace.';
COMMENT ON COLUMN campaign_spending.scope_id IS 'Id of the run or the workspace.';
COMMENT ON COLUMN campaign_spending.day IS 'Day in the workspace''s time zone; 0001-01-01 for a run, which has no day.';
COMMENT ON COLUMN campaign_spending.spent_usd IS 'US dollars, as the provider charged them.';

-- The WhatsApp Cloud API ---------------------------------------------------------------------------------------------

ALTER TABLE public.campaign_configs
    ADD COLUMN IF NOT EXISTS template_name      text,    -- as approved; null: only leads who wrote within a day get a message
    ADD COLUMN IF NOT EXISTS template_language  text,    -- null: pt_BR
    ADD COLUMN IF NOT EXISTS template_variables text[],  -- what {{1}}, {{2}}, … are for, one text each; null: it has none
    ADD COLUMN IF NOT EXISTS template_body      text;    -- its text with {{1}}, for the model and for the CRM's chat
COMMENT ON COLUMN public.campaign_configs.template_name IS
    'Approved template of the Cloud API for leads who did not write within a day; null: those leads wait.';
COMMENT ON COLUMN public.campaign_configs.template_language IS 'Language of that template as Meta names it; null: pt_BR.';
COMMENT ON COLUMN public.campaign_configs.template_variables IS
    'What each variable of the template body is for, in their order: the model writes them. Null: it has none.';
COMMENT ON COLUMN public.campaign_configs.template_body IS
    'Text of the template with {{1}}, {{2}}, …: shown to the model, and, filled in, in the chat of the CRM.';

ALTER TABLE public.campaign_messages
    ADD COLUMN IF NOT EXISTS template jsonb;             -- {name, language, variables}; fixed together with the text
COMMENT ON COLUMN public.campaign_messages.template IS
    'Template that the message goes out as, {name, language, variables}, fixed together with its text; null: free text.';

ALTER TABLE campaign_message_parts
    ADD COLUMN IF NOT EXISTS delivery_status text CHECK (delivery_status IN ('sent', 'failed', 'delivered', 'read')),
    ADD COLUMN IF NOT EXISTS delivery_code   text,
    ADD COLUMN IF NOT EXISTS delivery_at     timestamptz;
COMMENT ON COLUMN campaign_message_parts.delivery_status IS
    'What the provider said became of the part after it was accepted; null: nothing yet.';
COMMENT ON COLUMN campaign_message_parts.delivery_code IS 'Why it could not be delivered.';
COMMENT ON COLUMN campaign_message_parts.delivery_at IS 'When it became so, by the clock of the provider.';

CREATE TABLE IF NOT EXISTS campaign_status_events (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    payload      jsonb NOT NULL,                             -- one element of Meta's statuses[], as it came
    received_at  timestamptz NOT NULL DEFAULT now(),
    try_after    timestamptz NOT NULL DEFAULT now(), -- its part was being worked: looked at again then
    settled_at   timestamptz,
    verdict      text CHECK (verdict IN (
        'settled',     -- what it says is in the ledger
        'not_ours',    -- a message that the pipeline did not send, or an event of another kind
        'no_part',     -- its message is gone
        'given_up'))   -- its part was never free for a week
);
COMMENT ON TABLE campaign_status_events IS
    'Status events of the Cloud API. The webhook of the CRM inserts them (payload alone), each batch settles them.';
COMMENT ON COLUMN campaign_status_events.payload IS 'One element of statuses[] of a webhook call, as it came.';
COMMENT ON COLUMN campaign_status_events.received_at IS 'When the webhook handed it over.';
COMMENT ON COLUMN campaign_status_events.try_after IS 'Not looked at before: its part was being worked.';
COMMENT ON COLUMN campaign_status_events.settled_at IS 'When it was dealt with; null: not yet. Deleted 30 days later.';
COMMENT ON COLUMN campaign_status_events.verdict IS 'What was done with it: settled, not_ours, no_part, given_up.';

-- Serves: take_status_events.
CREATE INDEX IF NOT EXISTS campaign_status_events_open ON campaign_status_events (try_after) WHERE settled_at IS NULL;
-- Serves: drop_settled_status_events.
CREATE INDEX IF NOT EXISTS campaign_status_events_settled ON campaign_status_events (settled_at) WHERE settled_at IS NOT NULL;
