"""Access rights: roles of a Supabase project, members of workspaces, and roles that may only insert messages."""

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from campaign_pipeline_tests.crm import CONFIG, WORKSPACE, Crm, url_as

OBJECTS = """
    SELECT 'schema ' || n.nspname AS object, n.nspacl AS acl, n.nspowner AS owner, 'n'::"char" AS kind
    FROM pg_namespace n WHERE n.nspname = 'campaign_pipeline'
    UNION ALL
    SELECT CASE c.relkind WHEN 'S' THEN 'sequence ' ELSE 'table ' END || c.oid::regclass, c.relacl, c.relowner,
           CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END::"char"
    FROM pg_class c
    WHERE c.relnamespace = 'campaign_pipeline'::regnamespace AND c.relkind IN ('r', 'S', 'v', 'm', 'p', 'f')
    UNION ALL
    SELECT 'function ' || p.oid::regprocedure, p.proacl, p.proowner, 'f'
    FROM pg_proc p WHERE p.pronamespace = 'campaign_pipeline'::regnamespace
    UNION ALL
    SELECT 'column ' || a.attrelid::regclass || '.' || a.attname, a.attacl, c.relowner, 'r'
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
    WHERE c.relnamespace = 'campaign_pipeline'::regnamespace AND a.attacl IS NOT NULL
"""

REACHABLE = f"""
    SELECT o.object, COALESCE(r.rolname, 'PUBLIC') AS role, a.privilege_type AS privilege
    FROM ({OBJECTS}) o
    CROSS JOIN LATERAL aclexplode(COALESCE(o.acl, acldefault(o.kind, o.owner))) a
    LEFT JOIN pg_roles r ON r.oid = a.grantee
    WHERE a.grantee <> o.owner
    ORDER BY 1, 2, 3
"""

PUBLIC_OBJECTS = """
    SELECT c.oid::regclass::text AS object FROM pg_class c
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'S', 'v', 'm', 'p', 'f')
    UNION ALL
    SELECT p.oid::regprocedure::text FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace
    ORDER BY 1
"""

TRIGGERS = {
    ("campaign_messages", "campaign_count_deleted"),
    ("campaign_messages", "campaign_count_inserted"),
    ("campaign_messages", "campaign_count_truncated"),
    ("campaign_messages", "campaign_count_updated"),
    ("campaign_messages", "campaign_note_resumed_message"),
    ("campaign_messages", "campaign_notice_others"),
    ("campaign_runs", "campaign_guard_counters"),
    ("campaign_runs", "campaign_note_reopening"),
    ("campaign_runs", "campaign_note_resume"),
    ("campaign_runs", "campaign_refuse_early_end"),
    ("campaign_configs", "campaign_recheck_paced_runs"),
    ("messages", "campaign_process_reply"),
}
"""What an upgrade puts on the CRM's tables. Each costs the CRM something: a new one needs a reason."""


def test_nobody_but_the_owner_reaches_anything_that_an_upgrade_creates(crm: Crm) -> None:
    assert crm.value(f"SELECT count(*) FROM ({OBJECTS}) o") > 80
    assert crm.all(REACHABLE) == []


def test_a_new_object_that_others_reach_would_be_noticed(crm: Crm) -> None:
    crm.do("CREATE FUNCTION campaign_pipeline.campaign_new() RETURNS integer LANGUAGE sql AS 'SELECT 1'")
    crm.do("GRANT SELECT (text) ON campaign_pipeline.campaign_message_parts TO anon")
    assert [(row["role"], row["privilege"]) for row in crm.all(REACHABLE)] == [
        ("anon", "SELECT"),
        ("PUBLIC", "EXECUTE"),
    ]


def test_an_upgrade_puts_nothing_into_public_but_triggers(bare_crm: Crm, crm: Crm) -> None:
    """Columns, constraints and indexes belong to the CRM's tables."""
    assert crm.all(PUBLIC_OBJECTS) == bare_crm.all(PUBLIC_OBJECTS)
    query = (
        "SELECT tgrelid::regclass::text AS name, tgname FROM pg_trigger WHERE NOT tgisinternal"
        " AND tgrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace)"
    )
    before, after = ({(row["name"], row["tgname"]) for row in world.all(query)} for world in (bare_crm, crm))
    assert after - before == TRIGGERS


def test_every_definer_function_looks_in_the_catalogue_first_and_in_temporary_objects_last(crm: Crm) -> None:
    found = crm.all(
        "SELECT p.proname, p.proconfig FROM pg_proc p"
        " WHERE p.pronamespace = 'campaign_pipeline'::regnamespace AND p.prosecdef"
    )
    assert len(found) == len({name for _, name in TRIGGERS})
    for function in found:
        paths = [setting for setting in function["proconfig"] or [] if setting.startswith("search_path=")]
        assert paths == ["search_path=pg_catalog, campaign_pipeline, pg_temp"], function["proname"]


def test_every_trigger_on_the_crms_tables_runs_with_the_rights_of_its_owner(crm: Crm) -> None:
    assert (
        crm.all(
            "SELECT t.tgname FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid"
            " WHERE p.pronamespace = 'campaign_pipeline'::regnamespace AND NOT p.prosecdef"
        )
        == []
    )


# The CRM's files ------------------------------------------------------------------------------------------------------


def sections(lines: list[str]) -> dict[str, list[str]]:
    """Split psql's output at the headings that the file prints."""
    found: dict[str, list[str]] = {}
    for line in lines:
        if line.startswith("-- "):
            found[line] = []
        elif found:
            found[list(found)[-1]].append(line)
    return found


def test_with_the_anon_key_everything_of_ours_is_refused(crm: Crm) -> None:
    crm.start_run(3)
    told = sections(crm.psql("as-anon.sql"))
    crms_own = told.pop("-- the CRM's own tables are closed")
    assert crms_own == ["0"]
    assert len(told) == 6
    for heading, lines in told.items():
        assert any("ERROR" in line for line in lines), heading
        assert not any(line.isdigit() for line in lines), heading


@pytest.mark.parametrize("role", ["anon", "authenticated", "service_role"])
def test_nor_is_it_reached_by_its_full_name(crm: Crm, role: str) -> None:
    crm.do(f"SET ROLE {role}")
    for query in (
        "SELECT * FROM campaign_pipeline.campaign_message_parts",
        "SELECT campaign_pipeline.campaign_now()",
        "DELETE FROM campaign_pipeline.campaign_suppressions",
        "SELECT campaign_pipeline.campaign_suppress('global', NULL, NULL, '5511987654321', NULL, 'by_hand', NULL)",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="schema campaign_pipeline"):
            crm.do(query)


def test_a_member_and_hardened_functions_of_the_crm_keep_counters_right_and_are_heard(crm: Crm) -> None:
    crm.start_run(3)
    told = sections(crm.psql("as-members.sql"))
    (first, second, third) = told.values()
    assert not any("ERROR" in line for lines in told.values() for line in lines if "campaign_suppressions" not in line)
    assert first == ["1|1"]
    assert second == [] or second == [""]
    assert crm.wrong_counters() == []
    assert crm.value("SELECT count(*) FROM campaign_suppressions WHERE lifted_at IS NULL") == 1
    assert crm.value("SELECT leads_failed FROM campaign_runs") == 1
    assert crm.value("SELECT resumed_at IS NOT NULL FROM campaign_runs")
    assert third is not None


def test_the_crms_edge_functions_work_and_see_no_ledger(crm: Crm) -> None:
    crm.start_run(3)
    told = crm.psql("as-service-role.sql")
    assert [line for line in told if "ERROR" in line and "campaign_message_parts" not in line] == []
    assert any("campaign_message_parts" in line and "ERROR" in line for line in told)
    assert crm.wrong_counters() == []


# Roles that may only insert messages ----------------------------------------------------------------------------------


@pytest.fixture
def intruder(crm: Crm) -> "Iterator[psycopg.Connection[Any]]":
    """A login role that may only write to those of the CRM's tables that have our triggers."""
    role = f"intruder_{uuid4().hex[:12]}"
    with psycopg.connect(url_as(crm.url, "postgres"), autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {role} LOGIN")
        admin.execute(f"GRANT TEMPORARY ON DATABASE {crm.value('SELECT current_database()')} TO {role}")
        admin.execute(f"GRANT USAGE ON SCHEMA public TO {role}")
        admin.execute(
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON public.messages, public.campaign_messages, public.campaign_runs,"
            f" public.campaign_configs TO {role}"
        )
        admin.execute(f"ALTER ROLE {role} BYPASSRLS")
    connection = psycopg.connect(url_as(crm.url, role), autocommit=True)
    yield connection
    connection.close()
    with psycopg.connect(url_as(crm.url, "postgres"), autocommit=True) as admin:
        admin.execute(f"DROP OWNED BY {role}")
        admin.execute(f"DROP ROLE {role}")


def test_no_definer_function_can_be_led_to_somebody_elses_object(crm: Crm, intruder: "psycopg.Connection[Any]") -> None:
    """Create a temporary table, view or function for every name that our functions use, then fire every trigger."""
    run = crm.start_run(2)
    talk = crm.insert(
        "conversations", workspace_id=WORKSPACE, contact_name="x", contact_phone="5567980000001", channel="whatsapp"
    )
    # The CRM's own definer functions have this fault; they are not ours to fix, and would hide the faults of ours.
    crm.do("ALTER TABLE messages DISABLE TRIGGER trg_detect_campaign_response")
    crm.do("ALTER TABLE campaign_runs DISABLE TRIGGER trg_cleanup_on_campaign_end")
    crm.do("CREATE TABLE public.caught (who text)")
    crm.do("GRANT INSERT ON public.caught TO PUBLIC")
    intruder.execute("""
        CREATE FUNCTION pg_temp.evil() RETURNS text LANGUAGE plpgsql AS
        'BEGIN INSERT INTO public.caught VALUES (current_user); RETURN NULL; END'
    """)
    names = [
        row["name"]
        for row in crm.all(
            "SELECT relname AS name FROM pg_class WHERE relkind = 'r' AND relnamespace IN"
            " ('public'::regnamespace, 'campaign_pipeline'::regnamespace) AND relname <> 'caught'"
        )
    ]
    assert {"campaign_consent_keywords", "campaign_runs", "conversations"} <= set(names)
    for name in names:
        intruder.execute(f"CREATE TEMPORARY VIEW {name} AS SELECT pg_temp.evil() AS who")
    functions = crm.all(
        "SELECT proname AS name, pg_get_function_identity_arguments(oid) AS arguments,"
        " pg_get_function_result(oid) AS result FROM pg_proc"
        " WHERE pronamespace = 'campaign_pipeline'::regnamespace AND prokind = 'f' AND prorettype <> 'trigger'::regtype"
        " AND NOT proretset AND pg_get_function_identity_arguments(oid) !~ 'OUT|campaign_(pipeline|intent|end)'"
    )
    assert len(functions) > 20
    for function in functions:
        nothing = "" if function["result"] == "void" else "NULL"
        intruder.execute(
            f"CREATE FUNCTION pg_temp.{function['name']}({function['arguments']}) RETURNS {function['result']}"
            f" LANGUAGE plpgsql AS 'BEGIN PERFORM pg_temp.evil(); RETURN {nothing}; END'"
        )
    for name, arguments, result in (
        ("jsonb_agg", "text", "jsonb"),
        ("count", "", "bigint"),
        ("lower", "text", "text"),
        ("length", "text", "integer"),
    ):
        intruder.execute(
            f"CREATE FUNCTION pg_temp.{name}({arguments}) RETURNS {result} LANGUAGE plpgsql AS"
            " 'BEGIN PERFORM pg_temp.evil(); RETURN NULL; END'"
        )
    for path in ("pg_temp, public, campaign_pipeline, pg_catalog", "", "public"):
        intruder.execute(f"SET search_path = {path or chr(39) * 2}")
        for message_type, text in (("received", "SAIR"), ("incoming", "voltar"), ("received", "oi")):
            intruder.execute(
                "INSERT INTO public.messages (conversation_id, message_type, text_content) VALUES (%s, %s, %s)",
                [talk, message_type, text],
            )
        intruder.execute("UPDATE public.campaign_messages SET status = 'failed' WHERE run_id = %s", [run])
        intruder.execute("UPDATE public.campaign_messages SET status = 'pending' WHERE run_id = %s", [run])
        intruder.execute(
            "INSERT INTO public.campaign_messages (run_id, lead_id, status)"
            " SELECT run_id, lead_id, 'sent' FROM public.campaign_messages WHERE run_id = %s LIMIT 1",
            [run],
        )
        intruder.execute("DELETE FROM public.campaign_messages WHERE run_id = %s AND status = 'sent'", [run])
        for status in ("paused", "running", "cancelled", "running"):
            intruder.execute("UPDATE public.campaign_runs SET status = %s WHERE id = %s", [status, run])
        intruder.execute("UPDATE public.campaign_configs SET daily_limit = daily_limit + 1 WHERE id = %s", [CONFIG])
    assert crm.all("SELECT who FROM public.caught") == []
    assert crm.value("SELECT count(*) FROM campaign_suppressions") > 0  # and they did run
    assert crm.value("SELECT count(*) FROM campaign_suppressions WHERE lifted_at IS NOT NULL") > 0
    assert not crm.value("SELECT rolsuper FROM pg_roles WHERE rolname = session_user")
