-- What campaign files need if the CRM's tables differ.

-- Set a campaign's name if the table has a column for it; the CRM's own table has none.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_set_name(p_config uuid, p_name text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF campaign_pipeline.campaign_is_planner() THEN
        UPDATE public.campaign_configs SET name = p_name WHERE id = p_config;
    END IF;
END $$;
