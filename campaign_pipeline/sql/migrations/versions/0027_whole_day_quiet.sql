-- Quiet hours from 00:00 until 24:00 are refused like those that end when they begin: nothing would ever be sent.
-- Python has no 24:00 and reads it as 00:00, so forecasts and plans took such hours for none. An existing row stays as
-- it is until it is changed: only its operator knows what it should be.

ALTER TABLE campaign_pipeline.campaign_inbox_pace
    DROP CONSTRAINT IF EXISTS campaign_inbox_pace_quiet_complete,
    ADD CONSTRAINT campaign_inbox_pace_quiet_complete CHECK (
        (quiet_from IS NULL) = (quiet_until IS NULL)
        AND quiet_from + interval '0' IS DISTINCT FROM COALESCE(quiet_until + interval '0', '24:00')) NOT VALID;
