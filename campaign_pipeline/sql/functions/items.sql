-- Callers' items, parsed once from JSON into rows that the functions pass on. Their columns are declared only here. A
-- new column also needs a migration with ALTER TYPE, because this file creates a type only if it does not exist.

DO $$
BEGIN
    IF to_regtype('campaign_pipeline.campaign_intent') IS NULL THEN
        -- One item of campaign_begin_parts, with the data of its message that is looked up once.
        CREATE TYPE campaign_pipeline.campaign_intent AS (
            id                    uuid,
            token                 uuid,
            part_no               integer,     -- 0: only store the text, or book the cost of one that may not be sent
            attempt_no            integer,
            address               text,
            channel               text,
            contact_name          text,
            inbox_id              uuid,
            local_day             date,        -- if a lead gets one message per day
            text                  text,        -- this and the following: with a new text
            subject               text,
            parts                 text[],
            template              jsonb,
            ai_model              text,
            ai_tokens_used        integer,
            ai_cost_usd           numeric,
            ai_generation_time_ms integer,
            asked_model           text,
            calls                 jsonb,
            verdict               text,        -- this and the following: from campaign_verdicts
            run_id                uuid,
            config_id             uuid,
            workspace_id          uuid,
            lead_id               uuid,
            conversation_id       uuid,
            message_inbox_id      uuid,        -- of the message, else of its campaign
            phone_number          text,
            source_column_id      uuid,
            target_column_id      uuid,
            begun                 boolean,     -- a part was sent
            has_parts             boolean      -- its text is split
        );
    END IF;
    IF to_regtype('campaign_pipeline.campaign_end') IS NULL THEN
        -- One item of campaign_settle.
        CREATE TYPE campaign_pipeline.campaign_end AS (
            id                  uuid,
            token               uuid,
            part_no             integer,
            attempt_no          integer,
            outcome             text,
            code                text,
            reason              text,
            provider_message_id text,
            response            jsonb,
            address             text,
            duration_ms         integer,
            looked_up           boolean,
            in_conversation     boolean,
            status              text,
            error_class         text,
            delay_seconds       double precision,
            count_attempt       boolean,
            unrequested         boolean
        );
    END IF;
END $$;

-- Functions from before the items were rows.
DROP FUNCTION IF EXISTS campaign_pipeline.campaign_verdicts(jsonb, boolean);
DROP FUNCTION IF EXISTS campaign_pipeline.campaign_refused_by_consent(jsonb, uuid[]);
DROP FUNCTION IF EXISTS campaign_pipeline.campaign_reserve_lead_days(jsonb, uuid[]);
DROP FUNCTION IF EXISTS campaign_pipeline.campaign_reserve_numbers(jsonb, uuid[]);
DROP FUNCTION IF EXISTS campaign_pipeline.campaign_take_slots(jsonb, uuid[]);
DROP FUNCTION IF EXISTS campaign_pipeline.campaign_keep_model_calls(jsonb, uuid[]);
DROP FUNCTION IF EXISTS campaign_pipeline.campaign_note_good_texts(jsonb, uuid[]);
DROP FUNCTION IF EXISTS campaign_pipeline.campaign_find_conversations(jsonb, uuid[]);
DROP FUNCTION IF EXISTS campaign_pipeline.campaign_settle_slots(jsonb, uuid[]);
DROP FUNCTION IF EXISTS campaign_pipeline.campaign_suppress_refused(jsonb, uuid[]);
