-- Answers of language models that are kept by themselves, and what is known of the last answers of a model or a run.

CREATE TABLE IF NOT EXISTS campaign_pipeline.campaign_model_calls (
    id                text PRIMARY KEY,
    message_id        uuid NOT NULL,
    run_id            uuid,
    purpose           text NOT NULL CHECK (purpose IN ('text', 'split')),
    model             text NOT NULL,
    prompt_tokens     integer NOT NULL DEFAULT 0,
    completion_tokens integer NOT NULL DEFAULT 0,
    reasoning_tokens  integer NOT NULL DEFAULT 0,
    cost_usd          numeric CHECK (cost_usd >= 0),
    rule              text,
    changed           text[] NOT NULL DEFAULT '{}',
    answer            text,
    called_at         timestamptz NOT NULL
);
COMMENT ON TABLE campaign_pipeline.campaign_model_calls IS
    'Answers of language models that could not be used, or were changed before they were sent. Each is booked once.';
COMMENT ON COLUMN campaign_pipeline.campaign_model_calls.id IS
    'The id that the provider gave the answer, or one of ours.';
COMMENT ON COLUMN campaign_pipeline.campaign_model_calls.message_id IS
    'The message. No foreign key: the CRM deletes messages, and what was charged stays known.';
COMMENT ON COLUMN campaign_pipeline.campaign_model_calls.run_id IS 'Its run.';
COMMENT ON COLUMN campaign_pipeline.campaign_model_calls.model IS 'The model that was asked.';
COMMENT ON COLUMN campaign_pipeline.campaign_model_calls.cost_usd IS
    'US dollars as charged. Booked with this row where a rule refused the answer, else with the text of the message.';
COMMENT ON COLUMN campaign_pipeline.campaign_model_calls.rule IS
    'The rule that refused the answer; null: it was used. docs/operating.md lists the rules.';
COMMENT ON COLUMN campaign_pipeline.campaign_model_calls.changed IS 'The rules that changed the answer.';
COMMENT ON COLUMN campaign_pipeline.campaign_model_calls.answer IS
    'A refused answer as it came, for the operator. Personal data: deleted with the old logs, and by an erasure.';

-- Serves: read_leased_messages, campaign_erase_lead.
CREATE INDEX IF NOT EXISTS campaign_model_calls_of_message
    ON campaign_pipeline.campaign_model_calls (message_id);

-- Serves: count_text_rules, delete_old_model_calls.
CREATE INDEX IF NOT EXISTS campaign_model_calls_by_time
    ON campaign_pipeline.campaign_model_calls (called_at);

CREATE TABLE IF NOT EXISTS campaign_pipeline.campaign_text_records (
    scope            text NOT NULL CHECK (scope IN ('model', 'run')),
    scope_id         text NOT NULL,
    refused_in_a_row integer NOT NULL DEFAULT 0,
    reasons          boolean NOT NULL DEFAULT false,
    changed_at       timestamptz NOT NULL,
    PRIMARY KEY (scope, scope_id)
);
COMMENT ON TABLE campaign_pipeline.campaign_text_records IS
    'What is known of the last answers of a model, or of the last texts of a run. No row: nothing was refused.';
COMMENT ON COLUMN campaign_pipeline.campaign_text_records.refused_in_a_row IS
    'Answers that a rule refused since the last good one.';
COMMENT ON COLUMN campaign_pipeline.campaign_text_records.reasons IS
    'An answer of the model was cut off while it reasoned: it gets more tokens from the first request on.';

-- What an agent sets for its texts; the CRM has the column.
ALTER TABLE public.ai_agents ADD COLUMN IF NOT EXISTS behavior_config jsonb;
