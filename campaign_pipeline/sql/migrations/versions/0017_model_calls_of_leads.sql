-- A refused answer is found by its lead, though the CRM deleted the message that it was written for.

ALTER TABLE campaign_pipeline.campaign_model_calls ADD COLUMN IF NOT EXISTS lead_id uuid;
COMMENT ON COLUMN campaign_pipeline.campaign_model_calls.lead_id IS
    'The lead of the message. No foreign key: an erasure must find the answer though the lead was deleted.';

-- Serves: campaign_erase_lead, campaign_export_lead.
CREATE INDEX IF NOT EXISTS campaign_model_calls_of_lead ON campaign_pipeline.campaign_model_calls (lead_id);
