-- What the pipeline needs to live beside the CRM: a ledger that outlives the messages, and,
-- where the CRM's tables were made by 0001, the columns that the CRM's own have.

-- The ledger ---------------------------------------------------------------------------------------------------------

-- The CRM deletes messages: what a provider accepted stays, with all that is needed to show it in the chat and to move
-- its lead. Filled with each attempt; null in parts of before.
ALTER TABLE campaign_pipeline.campaign_message_parts
    DROP CONSTRAINT IF EXISTS campaign_message_parts_message_id_fkey,
    ADD COLUMN IF NOT EXISTS run_id           uuid,
    ADD COLUMN IF NOT EXISTS lead_id          uuid,
    ADD COLUMN IF NOT EXISTS workspace_id     uuid,
    ADD COLUMN IF NOT EXISTS conversation_id  uuid,
    ADD COLUMN IF NOT EXISTS source_column_id uuid,
    ADD COLUMN IF NOT EXISTS target_column_id uuid;
COMMENT ON COLUMN campaign_pipeline.campaign_message_parts.message_id IS
    'The message. No foreign key: the CRM deletes messages, and what was sent of them stays known.';
COMMENT ON COLUMN campaign_pipeline.campaign_message_parts.run_id IS 'The run of the message, as of the last attempt.';
COMMENT ON COLUMN campaign_pipeline.campaign_message_parts.lead_id IS 'Its lead.';
COMMENT ON COLUMN campaign_pipeline.campaign_message_parts.workspace_id IS 'Its tenant.';
COMMENT ON COLUMN campaign_pipeline.campaign_message_parts.conversation_id IS 'The conversation that it is shown in.';
COMMENT ON COLUMN campaign_pipeline.campaign_message_parts.source_column_id IS
    'The funnel column that the campaign takes leads from: a lead that is elsewhere by now is not moved.';
COMMENT ON COLUMN campaign_pipeline.campaign_message_parts.target_column_id IS
    'The funnel column that the lead moves to.';

ALTER TABLE campaign_pipeline.campaign_message_parts
    DROP CONSTRAINT IF EXISTS campaign_message_parts_sent_with_time,
    ADD CONSTRAINT campaign_message_parts_sent_with_time CHECK (status <> 'sent' OR sent_at IS NOT NULL) NOT VALID;

-- Campaigns ----------------------------------------------------------------------------------------------------------

-- The column is the pipeline's own. What stands in it is mended first: a check that an old row fails would make the
-- CRM's next change of that row fail.
UPDATE public.campaign_configs SET retry_delays_minutes = array_remove(retry_delays_minutes, NULL)
WHERE array_position(retry_delays_minutes, NULL) IS NOT NULL;
ALTER TABLE public.campaign_configs
    DROP CONSTRAINT IF EXISTS campaign_configs_retry_delays_known,
    ADD CONSTRAINT campaign_configs_retry_delays_known
        CHECK (array_position(retry_delays_minutes, NULL) IS NULL) NOT VALID;

-- What the CRM's own tables have, and those of 0001 have not ---------------------------------------------------------

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'public.conversations'::regclass AND NOT attisdropped
                   AND attname = 'total_messages') THEN
        ALTER TABLE public.conversations
            ADD COLUMN IF NOT EXISTS attendant_type text DEFAULT 'human',
            ADD COLUMN IF NOT EXISTS unread_count   integer DEFAULT 0,
            ADD COLUMN IF NOT EXISTS total_messages integer DEFAULT 0,
            ADD COLUMN IF NOT EXISTS updated_at     timestamptz DEFAULT now();
        ALTER TABLE public.conversations ALTER COLUMN status SET DEFAULT 'waiting';
    END IF;
    IF to_regclass('public.lead_activities') IS NULL THEN
        CREATE TABLE public.lead_activities (
            id            uuid PRIMARY KEY DEFAULT gen_random_uuid(),
            lead_id       uuid NOT NULL,
            activity_type text NOT NULL,
            description   text NOT NULL,
            user_id       uuid,
            created_at    timestamptz DEFAULT now()
        );
    END IF;
END $$;
