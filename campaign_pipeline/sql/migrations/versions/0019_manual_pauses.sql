-- What a person paused: an inbox, a workspace, or all sending. A run that is paused has that in its own status.
-- Apart from campaign_pauses, whose circuits are probed and close by themselves: these wait for a person.

CREATE TABLE IF NOT EXISTS campaign_pipeline.campaign_manual_pauses (
    scope     text NOT NULL CHECK (scope IN ('inbox', 'workspace', 'all')),
    scope_id  text NOT NULL,
    reason    text NOT NULL,
    paused_by text NOT NULL,
    since     timestamptz NOT NULL,
    PRIMARY KEY (scope, scope_id),
    CONSTRAINT campaign_manual_pauses_all_is_one CHECK ((scope = 'all') = (scope_id = 'all'))
);
COMMENT ON TABLE campaign_pipeline.campaign_manual_pauses IS
    'What a person paused, until a person resumes it. No message of these goes on, wherever it is.';
COMMENT ON COLUMN campaign_pipeline.campaign_manual_pauses.scope IS 'inbox, workspace, or all.';
COMMENT ON COLUMN campaign_pipeline.campaign_manual_pauses.scope_id IS 'Id of the inbox or workspace; ''all'' for all.';
COMMENT ON COLUMN campaign_pipeline.campaign_manual_pauses.reason IS 'One sentence for whoever asks later.';
COMMENT ON COLUMN campaign_pipeline.campaign_manual_pauses.paused_by IS 'Who paused it.';
COMMENT ON COLUMN campaign_pipeline.campaign_manual_pauses.since IS 'When.';
