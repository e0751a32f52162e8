-- Checks that hold for every new row since 0011 hold for the old ones, too. VALIDATE blocks no writer, however large
-- the table is. A message has no such checks of ours: the CRM writes its status without the columns that are ours, and
-- a check would make its write fail.

UPDATE campaign_pipeline.campaign_message_parts
SET sent_at = COALESCE(attempted_at, campaign_pipeline.campaign_now())
WHERE status = 'sent' AND sent_at IS NULL;
ALTER TABLE campaign_pipeline.campaign_message_parts VALIDATE CONSTRAINT campaign_message_parts_sent_with_time;

-- What stood in the column was mended by 0011.
ALTER TABLE public.campaign_configs VALIDATE CONSTRAINT campaign_configs_retry_delays_known;
