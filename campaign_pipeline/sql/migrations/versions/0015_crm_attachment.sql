-- What `campaign-pipeline crm attach` and `crm detach` remember.

CREATE TABLE IF NOT EXISTS campaign_pipeline.campaign_crm_attachment (
    only_row    boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    attached_at timestamptz,
    detached_at timestamptz
);
COMMENT ON TABLE campaign_pipeline.campaign_crm_attachment IS
    'One row: whether the pipeline works the CRM''s queue. Every claim locks it, so that a detach waits for claims under way.';
COMMENT ON COLUMN campaign_pipeline.campaign_crm_attachment.only_row IS 'Always true: there is one row.';
COMMENT ON COLUMN campaign_pipeline.campaign_crm_attachment.attached_at IS
    'Since when the CRM''s own processor takes nothing any more; null: that is not attached, or never was.';
COMMENT ON COLUMN campaign_pipeline.campaign_crm_attachment.detached_at IS
    'Since when the pipeline takes nothing any more; null: it may.';
INSERT INTO campaign_pipeline.campaign_crm_attachment DEFAULT VALUES ON CONFLICT DO NOTHING;

CREATE TABLE IF NOT EXISTS campaign_pipeline.campaign_replaced_functions (
    function    text PRIMARY KEY,
    definition  text NOT NULL,
    replaced_at timestamptz NOT NULL
);
COMMENT ON TABLE campaign_pipeline.campaign_replaced_functions IS
    'Functions of the CRM that an attach replaced, as they were: a detach restores them.';
COMMENT ON COLUMN campaign_pipeline.campaign_replaced_functions.function IS 'Schema, name and argument types.';
COMMENT ON COLUMN campaign_pipeline.campaign_replaced_functions.definition IS 'The statement that makes it again.';
COMMENT ON COLUMN campaign_pipeline.campaign_replaced_functions.replaced_at IS 'When.';

CREATE TABLE IF NOT EXISTS campaign_pipeline.campaign_foreign_changes (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    message_id  uuid NOT NULL,
    run_id      uuid,
    was         text,
    became      text,
    by_role     text,
    application text,
    noticed_at  timestamptz NOT NULL
);
COMMENT ON TABLE campaign_pipeline.campaign_foreign_changes IS
    'Messages that somebody else took or finished while the pipeline was attached: there should be none.';
COMMENT ON COLUMN campaign_pipeline.campaign_foreign_changes.id IS 'Its number, for people.';
COMMENT ON COLUMN campaign_pipeline.campaign_foreign_changes.message_id IS 'The message.';
COMMENT ON COLUMN campaign_pipeline.campaign_foreign_changes.run_id IS 'Its run.';
COMMENT ON COLUMN campaign_pipeline.campaign_foreign_changes.was IS 'The message''s status before.';
COMMENT ON COLUMN campaign_pipeline.campaign_foreign_changes.became IS 'The status that it was given.';
COMMENT ON COLUMN campaign_pipeline.campaign_foreign_changes.by_role IS 'The database role that had logged in.';
COMMENT ON COLUMN campaign_pipeline.campaign_foreign_changes.application IS 'How that connection called itself.';
COMMENT ON COLUMN campaign_pipeline.campaign_foreign_changes.noticed_at IS
    'When. The next attach forgets what is older than 30 days.';
-- Serves: count_foreign_changes.
CREATE INDEX IF NOT EXISTS campaign_foreign_changes_by_age
    ON campaign_pipeline.campaign_foreign_changes (noticed_at);

CREATE TABLE IF NOT EXISTS campaign_pipeline.campaign_columns_before (table_name text, column_name text);
COMMENT ON TABLE campaign_pipeline.campaign_columns_before IS
    'Columns in public before the pipeline came, which `crm detach --drop` leaves; none where that was not noted.';
COMMENT ON COLUMN campaign_pipeline.campaign_columns_before.table_name IS 'Table of the CRM.';
COMMENT ON COLUMN campaign_pipeline.campaign_columns_before.column_name IS 'Its column.';
