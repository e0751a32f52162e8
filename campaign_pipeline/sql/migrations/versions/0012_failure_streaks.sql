-- What a scope met again and again: before an inbox or a model is taken for broken, it is counted who met the same.

CREATE TABLE IF NOT EXISTS campaign_pipeline.campaign_failure_streaks (
    scope      text NOT NULL CHECK (scope IN ('inbox', 'model')),
    scope_id   text NOT NULL,
    code       text NOT NULL,
    failures   integer NOT NULL DEFAULT 1,
    recipients uuid[] NOT NULL,
    noted_at   timestamptz NOT NULL,
    PRIMARY KEY (scope, scope_id, code)
);
COMMENT ON TABLE campaign_pipeline.campaign_failure_streaks IS
    'Failures of one kind that an inbox or a model met with no success between.';
COMMENT ON COLUMN campaign_pipeline.campaign_failure_streaks.recipients IS
    'Leads whose messages met it; the message where it has no lead.';

ALTER TABLE campaign_pipeline.campaign_pauses
    ADD COLUMN IF NOT EXISTS tried_message_ids uuid[] NOT NULL DEFAULT '{}';
COMMENT ON COLUMN campaign_pipeline.campaign_pauses.tried_message_ids IS
    'Messages that met the cause, the last one first: a probe takes another where one is due.';
