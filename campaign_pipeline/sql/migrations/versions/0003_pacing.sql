-- Pacing of inboxes and campaigns, fallback inboxes.
SELECT 1;
