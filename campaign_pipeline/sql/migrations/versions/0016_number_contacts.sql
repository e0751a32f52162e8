-- One number, several leads: a number gets one campaign message per so many hours. Additive only.

ALTER TABLE public.workspaces ADD COLUMN IF NOT EXISTS number_rest_hours integer NOT NULL DEFAULT 24
    CONSTRAINT workspaces_number_rest_hours_range CHECK (number_rest_hours BETWEEN 0 AND 720);
COMMENT ON COLUMN public.workspaces.number_rest_hours IS
    'Hours in which a phone number gets at most one campaign message, whichever lead carries it; 0: no limit.';

CREATE TABLE IF NOT EXISTS campaign_pipeline.campaign_number_contacts (
    workspace_id uuid NOT NULL,
    number       text NOT NULL,
    message_id   uuid NOT NULL,
    contacted_at timestamptz NOT NULL,
    PRIMARY KEY (workspace_id, number)
);
COMMENT ON TABLE campaign_pipeline.campaign_number_contacts IS
    'Which message a number got last in a workspace; its key lets one of several leads with that number in. Kept for days.';
COMMENT ON COLUMN campaign_pipeline.campaign_number_contacts.workspace_id IS 'The workspace whose campaign it was.';
COMMENT ON COLUMN campaign_pipeline.campaign_number_contacts.number IS
    'The number as campaign_canonical_address spells it: a Brazilian mobile number with its ninth digit.';
COMMENT ON COLUMN campaign_pipeline.campaign_number_contacts.message_id IS
    'The message that has this number. Another may take it over as long as nothing of this one may have gone out.';
COMMENT ON COLUMN campaign_pipeline.campaign_number_contacts.contacted_at IS
    'When its first part was begun; the number rests from then on (workspaces.number_rest_hours).';
