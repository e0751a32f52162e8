-- What a campaign may be told that the CRM's own table has no column for, and which days were planned. Additive only.

CREATE TABLE IF NOT EXISTS campaign_pipeline.campaign_settings (
    config_id    uuid PRIMARY KEY,
    name         text,
    weekdays     smallint[] CHECK (weekdays <@ '{1,2,3,4,5,6,7}' AND cardinality(weekdays) > 0),
    holidays     date[] NOT NULL DEFAULT '{}',
    lead_tags    text[] NOT NULL DEFAULT '{}',
    review       text NOT NULL DEFAULT 'none' CHECK (review IN ('none', 'first_n', 'all')),
    review_first integer CHECK (review_first > 0),
    CONSTRAINT campaign_settings_review_complete CHECK ((review = 'first_n') = (review_first IS NOT NULL))
);
COMMENT ON TABLE campaign_pipeline.campaign_settings IS
    'Settings of campaigns for which campaign_configs has no column; no row: none of them is set.';
COMMENT ON COLUMN campaign_pipeline.campaign_settings.config_id IS
    'The campaign. No foreign key: the CRM deletes campaigns as it likes.';
COMMENT ON COLUMN campaign_pipeline.campaign_settings.name IS 'What people call it; the CRM''s table has no name.';
COMMENT ON COLUMN campaign_pipeline.campaign_settings.weekdays IS
    'Days on which its window opens, 1 Monday to 7 Sunday; null: as campaign_configs.frequency says.';
COMMENT ON COLUMN campaign_pipeline.campaign_settings.holidays IS 'Days of its own time zone on which its window does not open.';
COMMENT ON COLUMN campaign_pipeline.campaign_settings.lead_tags IS
    'Only leads with one of these tags are planned; empty: all of its column.';
COMMENT ON COLUMN campaign_pipeline.campaign_settings.review IS
    'Which texts a person approves before they are sent: none, the first review_first of each run, or all.';
COMMENT ON COLUMN campaign_pipeline.campaign_settings.review_first IS 'How many, where review is first_n.';

CREATE TABLE IF NOT EXISTS campaign_pipeline.campaign_planned_days (
    config_id  uuid NOT NULL,
    day        date NOT NULL,
    run_id     uuid,
    planned_at timestamptz NOT NULL,
    PRIMARY KEY (config_id, day)
);
COMMENT ON TABLE campaign_pipeline.campaign_planned_days IS
    'Which run a campaign has for a day. Its key lets two planners make one run; whoever plans locks the row.';
COMMENT ON COLUMN campaign_pipeline.campaign_planned_days.config_id IS 'The campaign.';
COMMENT ON COLUMN campaign_pipeline.campaign_planned_days.day IS 'The day in the campaign''s own time zone.';
COMMENT ON COLUMN campaign_pipeline.campaign_planned_days.run_id IS 'Its run; null: nobody could be written to yet.';
COMMENT ON COLUMN campaign_pipeline.campaign_planned_days.planned_at IS 'When it was last planned.';
