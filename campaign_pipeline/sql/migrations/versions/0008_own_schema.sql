-- What the pipeline owns leaves `public`, which is the CRM's, for the schema campaign_pipeline. An interface that shows
-- all of `public` to whoever has a key (Supabase does) shows none of it any more. `adapters.schema` makes the schema
-- and moves alembic's own table before the first migration. New installations have nothing to move. All in one step,
-- with the functions and triggers: those of before would look for the tables where they were, in the middle of a write
-- of the CRM.

DO $$
DECLARE
    own_table text;
    own_function regprocedure;
    role text;
BEGIN
    FOREACH own_table IN ARRAY ARRAY[
        'campaign_message_parts', 'campaign_pauses', 'campaign_inbox_pace', 'campaign_warm_up_ramp',
            'campaign_pace_state',
        'campaign_inbox_slots', 'campaign_consent_salt', 'campaign_suppressions', 'campaign_consent_keywords',
        'campaign_suppressing_codes', 'campaign_lead_days', 'campaign_erasures', 'campaign_number_checks',
        'campaign_spending', 'campaign_status_events']
    LOOP
        -- Its indexes, constraints, triggers and sequences move with it.
        EXECUTE format('ALTER TABLE IF EXISTS public.%I SET SCHEMA campaign_pipeline', own_table);
    END LOOP;

    DROP TRIGGER IF EXISTS campaign_count_updated ON public.campaign_messages;
    DROP TRIGGER IF EXISTS campaign_count_inserted ON public.campaign_messages;
    DROP TRIGGER IF EXISTS campaign_count_deleted ON public.campaign_messages;
    DROP TRIGGER IF EXISTS campaign_count_truncated ON public.campaign_messages;
    DROP TRIGGER IF EXISTS campaign_note_resume ON public.campaign_runs;
    DROP TRIGGER IF EXISTS campaign_notice_pace ON public.campaign_configs;
    DROP TRIGGER IF EXISTS campaign_notice_pace ON campaign_pipeline.campaign_inbox_pace;
    DROP TRIGGER IF EXISTS campaign_hear_reply ON public.messages;

    -- By name, whatever their arguments were in the version that made them; never by a pattern, for the CRM has
    -- functions
    -- that begin with campaign_, too.
    FOR own_function IN
        SELECT p.oid FROM pg_proc p
        WHERE p.pronamespace = 'public'::regnamespace AND p.proname IN (
            'campaign_add_to_counters', 'campaign_address_hash', 'campaign_address_kind', 'campaign_addresses_of_lead',
            'campaign_apply_status_events', 'campaign_begin_parts', 'campaign_blank', 'campaign_canonical_address',
            'campaign_claim_messages', 'campaign_conversations_of_lead', 'campaign_count_deleted',
            'campaign_count_inserted', 'campaign_count_truncated', 'campaign_count_updated', 'campaign_cut',
            'campaign_delivery_stage', 'campaign_erase_lead', 'campaign_export_lead', 'campaign_find_conversations',
            'campaign_hear_reply', 'campaign_heard_consent', 'campaign_inbox_channel', 'campaign_is_bound',
            'campaign_is_leased', 'campaign_known_zone', 'campaign_lift', 'campaign_limit_reached',
                'campaign_lock_paces',
            'campaign_logs_of_lead', 'campaign_move_leads', 'campaign_next_turn', 'campaign_note_resume',
            'campaign_note_spending', 'campaign_notice_pace', 'campaign_now', 'campaign_own_key', 'campaign_pace',
            'campaign_paced_by', 'campaign_peek_turn', 'campaign_plain_words', 'campaign_recover_leases',
            'campaign_refused_by_consent', 'campaign_requeue_failed', 'campaign_reserve_lead_days', 'campaign_settle',
            'campaign_settle_slots', 'campaign_show_in_conversation', 'campaign_slow_down', 'campaign_slow_factor',
            'campaign_spending_day', 'campaign_start_generating', 'campaign_suppress', 'campaign_suppress_by_answer',
            'campaign_suppress_refused', 'campaign_suppressed_messages', 'campaign_take_over', 'campaign_take_slots',
            'campaign_verdict', 'campaign_verdicts', 'campaign_waits_for_its_inbox', 'campaign_without_courtesy')
    LOOP
        EXECUTE format('DROP FUNCTION %s', own_function);
    END LOOP;

    -- Whoever made the tables in `public` may have granted them by default privileges; a grant moves with its table.
    REVOKE ALL ON SCHEMA campaign_pipeline FROM PUBLIC;
    REVOKE ALL ON ALL TABLES IN SCHEMA campaign_pipeline FROM PUBLIC;
    REVOKE ALL ON ALL SEQUENCES IN SCHEMA campaign_pipeline FROM PUBLIC;
    FOR role IN SELECT r.rolname FROM pg_roles r WHERE r.rolname IN ('anon', 'authenticated', 'service_role') LOOP
        EXECUTE format('REVOKE ALL ON SCHEMA campaign_pipeline FROM %I', role);
        EXECUTE format('REVOKE ALL ON ALL TABLES IN SCHEMA campaign_pipeline FROM %I', role);
        EXECUTE format('REVOKE ALL ON ALL SEQUENCES IN SCHEMA campaign_pipeline FROM %I', role);
    END LOOP;
END $$;
