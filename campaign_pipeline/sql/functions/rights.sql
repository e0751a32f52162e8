-- Only the owner may call the pipeline's functions: PostgreSQL grants every new one to PUBLIC, and some databases to
-- other roles by default privileges. Triggers need no grant. The last of all files, at every upgrade.
DO $$
DECLARE
    role text;
BEGIN
    REVOKE ALL ON ALL FUNCTIONS IN SCHEMA campaign_pipeline FROM PUBLIC;
    FOR role IN SELECT r.rolname FROM pg_roles r WHERE r.rolname IN ('anon', 'authenticated', 'service_role') LOOP
        EXECUTE format('REVOKE ALL ON ALL FUNCTIONS IN SCHEMA campaign_pipeline FROM %I', role);
    END LOOP;
END $$;
