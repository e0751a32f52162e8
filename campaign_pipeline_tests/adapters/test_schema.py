from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from importlib import resources
from threading import Event
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from campaign_pipeline import sql
from campaign_pipeline.adapters import schema
from campaign_pipeline.adapters.embedded import EmbeddedServer
from campaign_pipeline.adapters.online import one_at_a_time
from campaign_pipeline.adapters.schema import DatabaseUnusable, check, upgrade
from campaign_pipeline_tests.databases import Databases
from campaign_pipeline_tests.factories import World
from campaign_pipeline_tests.sql.holder import Holder, claim_batch, claimed_ids, message, part_states, parts

SECRET = "hunter2"


@pytest.fixture
def empty_url(server: EmbeddedServer, databases: Databases) -> Iterator[str]:
    """A database with nothing in it."""
    with databases.create() as name:
        yield server.url(name)


@pytest.fixture
def crm(empty_url: str) -> Iterator[World]:
    """The CRM's own database in use: its tables with rows, and migrations of its own."""
    with World(empty_url) as world:
        tables = resources.files(sql).joinpath("migrations/versions/0001_crm_tables.sql").read_text(encoding="utf-8")
        world.connection.execute(tables.encode())
        world.do("CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)")
        world.do("INSERT INTO alembic_version VALUES ('crm_0042')")
        run = world.run(leads_total=4)
        for status in ("pending", "sent", "a status of old"):
            world.insert("campaign_messages", run_id=run, lead_id=world.lead(), status=status)
        yield world


def shape(url: str) -> list[tuple[Any, ...]]:
    """Return schemas, tables, columns, constraints, indexes, triggers and functions, with their rights."""
    ours = "IN ('public'::regnamespace, 'campaign_pipeline'::regnamespace)"
    queries = [
        "SELECT table_schema, table_name, column_name, data_type, is_nullable, column_default "
        "FROM information_schema.columns WHERE table_schema IN ('public', 'campaign_pipeline')",
        "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint "
        f"WHERE connamespace {ours}",
        "SELECT indexdef FROM pg_indexes WHERE schemaname IN ('public', 'campaign_pipeline')",
        "SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal",
        f"SELECT pg_get_functiondef(oid), proacl::text FROM pg_proc WHERE pronamespace {ours}",
        # PostgreSQL writes out the owner's default rights once another role's were revoked.
        "SELECT relnamespace::regnamespace::text, relname, reloptions::text, NULLIF(relacl, "
        "acldefault(CASE relkind WHEN 'S' THEN 's'::\"char\" ELSE 'r'::\"char\" END, relowner))::text FROM pg_class "
        f"WHERE relnamespace {ours}",
        "SELECT nspname, nspacl::text FROM pg_namespace WHERE nspname = 'campaign_pipeline'",
    ]
    with psycopg.connect(url) as connection:
        rows = [row for query in queries for row in connection.execute(query).fetchall()]
    return sorted((row for row in rows if not str(row).count("alembic_version")), key=str)


CRM_TABLES = ("alembic_version", "campaign_runs", "campaign_messages", "leads", "campaign_configs", "ai_agents")


def columns(world: World) -> dict[str, list[str]]:
    """Return the present columns of the CRM's tables, without the counters, which an upgrade may have to correct."""
    query = (
        "SELECT column_name FROM information_schema.columns WHERE table_name = %s"
        " AND column_name NOT IN ('leads_processed', 'leads_success', 'leads_failed', 'leads_skipped')"
    )
    return {table: [row["column_name"] for row in world.all(query, table)] for table in CRM_TABLES}


def contents(world: World, columns: dict[str, list[str]]) -> list[str]:
    """Every row of the CRM's tables, in these columns."""
    found = []
    for table, names in columns.items():
        found += world.all(f"SELECT jsonb_build_array({', '.join(names)})::text AS row FROM {table}")
    return sorted(row["row"] for row in found)


def test_an_empty_database_gets_the_whole_schema(empty_url: str, database_url: str) -> None:
    assert upgrade(empty_url) == sql.HEAD
    check(empty_url)
    assert shape(empty_url) == shape(database_url)


def test_upgrading_again_changes_nothing(database_url: str) -> None:
    before = shape(database_url)
    assert upgrade(database_url) == upgrade(database_url) == sql.HEAD
    assert shape(database_url) == before


def test_upgrading_again_drops_no_function_that_a_worker_may_be_calling(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        functions = "SELECT oid, proname FROM pg_proc WHERE pronamespace = 'campaign_pipeline'::regnamespace ORDER BY 1"
        before = connection.execute(functions).fetchall()
        upgrade(database_url)
        assert connection.execute(functions).fetchall() == before


def test_two_upgrades_at_once_do_not_run_into_each_other(empty_url: str, database_url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(upgrade, [empty_url] * 4)) == [sql.HEAD] * 4
    assert shape(empty_url) == shape(database_url)


def test_an_upgrade_that_waits_for_another_keeps_no_transaction_open(world: World, database_url: str) -> None:
    # A concurrent index build of the other one would wait for its end: each would wait for the other.
    states: list[str] = []
    told = Event()

    def look(_: str) -> None:
        query = "SELECT state FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        states.extend(row["state"] for row in world.all(query))
        told.set()

    def wait() -> None:
        with one_at_a_time(database_url, look):
            pass

    with ThreadPoolExecutor(1) as pool, one_at_a_time(database_url, print):
        waiting = pool.submit(wait)
        told.wait(timeout=60)
    waiting.result()
    assert sorted(states) == ["idle", "idle in transaction"], "the waiting one, and the one that holds the lock"


def test_a_crm_in_use_keeps_its_rows_and_its_own_migrations(crm: World, database_url: str) -> None:
    own = columns(crm)
    before = contents(crm, own)
    assert len(before) == 10  # a version, a run, 3 messages, 3 leads, a campaign, an agent
    for _ in range(2):
        assert upgrade(crm.url) == sql.HEAD
        assert contents(crm, own) == before
    assert crm.value("SELECT version_num FROM alembic_version") == "crm_0042"
    assert crm.value(f"SELECT version_num FROM {sql.SCHEMA}.{sql.VERSION_TABLE}") == sql.HEAD
    assert shape(crm.url) == shape(database_url)


@pytest.fixture
def installed_in_public(empty_url: str) -> Iterator[World]:
    """An installation of schema 0007, with everything in public; with rows, triggers and some of its functions."""
    folder = resources.files(sql).joinpath("migrations/versions")
    with World(empty_url) as world:  # its statements create objects without a schema in public
        for file in sorted(folder.iterdir(), key=lambda file: file.name):
            if file.name.endswith(".sql") and file.name < "0008":
                for statement in sql.split_statements(file.read_text(encoding="utf-8")):
                    world.connection.execute(statement.encode())
        world.connection.execute(b"""
            CREATE TABLE campaign_pipeline_version (
                version_num varchar(32) NOT NULL, CONSTRAINT campaign_pipeline_version_pkc PRIMARY KEY (version_num));
            INSERT INTO campaign_pipeline_version VALUES ('0007');
            CREATE FUNCTION campaign_now() RETURNS timestamptz LANGUAGE sql STABLE AS 'SELECT now()';
            CREATE FUNCTION campaign_settle(jsonb) RETURNS TABLE (id uuid) LANGUAGE sql AS 'SELECT NULL::uuid';
            CREATE FUNCTION campaign_count_updated() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
            CREATE TRIGGER campaign_count_updated AFTER UPDATE ON campaign_messages
                REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
                FOR EACH STATEMENT EXECUTE FUNCTION campaign_count_updated();
            CREATE FUNCTION campaign_notice_pace() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
            CREATE TRIGGER campaign_notice_pace AFTER INSERT OR UPDATE OR DELETE ON campaign_inbox_pace
                FOR EACH ROW EXECUTE FUNCTION campaign_notice_pace();
            CREATE TRIGGER campaign_notice_pace AFTER UPDATE OF daily_limit ON campaign_configs
                FOR EACH ROW EXECUTE FUNCTION campaign_notice_pace();
            CREATE FUNCTION campaign_hear_reply() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
            CREATE TRIGGER campaign_hear_reply AFTER INSERT ON messages
                FOR EACH ROW EXECUTE FUNCTION campaign_hear_reply();
            CREATE FUNCTION campaign_of_the_crm() RETURNS integer LANGUAGE sql AS 'SELECT 42';
        """)
        message = world.insert("campaign_messages", run_id=world.run(), lead_id=world.lead(), status="sent")
        row = {"message_id": message, "part_no": 1, "text": "Oi", "idempotency_key": f"{message}:1", "status": "sent"}
        world.insert("campaign_message_parts", **row, sent_at="2026-01-01")
        world.insert("campaign_suppressions", scope="global", lead_id=message, source="by_hand", since="2026-01-01")
        yield world


def test_the_triggers_of_0025_get_their_new_names(empty_url: str, database_url: str) -> None:
    upgrade(empty_url)
    with World(empty_url) as world:
        world.do("ALTER TRIGGER campaign_process_reply ON messages RENAME TO campaign_hear_reply")
        for table in ("campaign_configs", "campaign_inbox_pace"):
            world.do(f"ALTER TRIGGER campaign_recheck_paced_runs ON {table} RENAME TO campaign_notice_pace")
        world.do("ALTER FUNCTION campaign_process_reply() RENAME TO campaign_hear_reply")
        world.do("ALTER FUNCTION campaign_recheck_paced_runs() RENAME TO campaign_notice_pace")
        world.do("ALTER FUNCTION campaign_match_keyword(text) RENAME TO campaign_heard_consent")
        world.do(f"UPDATE {sql.SCHEMA}.{sql.VERSION_TABLE} SET version_num = '0025'")
    assert shape(empty_url) != shape(database_url)
    assert upgrade(empty_url) == sql.HEAD
    assert shape(empty_url) == shape(database_url)


def test_an_installation_in_public_is_carried_over(installed_in_public: World, database_url: str) -> None:
    world = installed_in_public
    kept = {
        table: world.all(f"SELECT to_jsonb(t) AS row FROM {table} t ORDER BY 1")
        for table in ("campaign_message_parts", "campaign_suppressions", "campaign_consent_salt", "campaign_inbox_pace")
    }
    assert upgrade(world.url) == sql.HEAD
    check(world.url)
    for table, rows in kept.items():
        for row, found in zip(
            rows, world.all(f"SELECT to_jsonb(t) AS row FROM campaign_pipeline.{table} t ORDER BY 1"), strict=True
        ):
            assert row["row"].items() <= found["row"].items(), table
    world.insert("campaign_suppressions", scope="global", lead_id=uuid4(), source="by_hand", since="2026-01-01")
    assert world.value("SELECT campaign_of_the_crm()") == 42
    world.do("DROP FUNCTION campaign_of_the_crm")
    assert shape(world.url) == shape(database_url)


def test_messages_in_every_state_of_an_installation_in_public_are_worked_on_after_the_upgrade(
    installed_in_public: World,
) -> None:
    world, old = installed_in_public, Holder(installed_in_public)
    config = world.campaign()
    world.do("UPDATE campaign_configs SET retry_delays_minutes = '{1,NULL}' WHERE id = %s", config)
    run = world.run(config)

    def held(status: str, minutes: int, part: str | None = None) -> UUID:
        lease: dict[str, Any] = {
            "lease_token": old.token,
            "lease_expires_at": datetime.now(UTC) + timedelta(minutes=minutes),
        }
        return begun(world.due_message(run, status=status, **lease), part)

    def begun(due: UUID, part: str | None) -> UUID:
        if part:
            row = {"part_no": 1, "text": "Oi", "idempotency_key": f"{due}:1", "status": part}
            attempts = 0 if part == "planned" else 1
            world.insert("campaign_message_parts", message_id=due, attempt_token=old.token, attempts=attempts, **row)
        return due

    living, dead = held("sending", 5, "attempting"), held("sending", -5, "attempting")
    queued, generating = held("queued", -5), held("generating", 5)
    waiting, retried = world.due_message(run), begun(world.due_message(run), "planned")
    finished = {
        status: begun(world.due_message(run, status=status), part)
        for status, part in (("sent", "sent"), ("replied", "sent"), ("failed", "failed"), ("skipped", None))
    }

    upgrade(world.url)
    assert {status: message(world, each)["status"] for status, each in finished.items()} == {s: s for s in finished}
    assert parts(world, finished["sent"])[0]["sent_at"] is not None, "a time that was missing is mended"
    assert world.value("SELECT retry_delays_minutes FROM campaign_configs WHERE id = %s", config) == [1]
    assert old.sent(living) == {"applied": True, "moved": False, "final": "sent"}
    assert old.renew([generating]) == {generating}
    claimed = claimed_ids(claim_batch(world))
    assert claimed == {dead, queued, waiting, retried}, "what a dead worker held is taken back"
    assert part_states(world, dead) == [("unknown", 1)]
    assert world.wrong_counters() == []


def test_a_crm_in_use_can_be_worked_after_the_upgrade(crm: World) -> None:
    upgrade(crm.url)
    assert crm.wrong_counters() == []
    crm.do("UPDATE campaign_messages SET status = 'sent' WHERE status = 'pending'")
    assert crm.wrong_counters() == []
    with pytest.raises(psycopg.errors.CheckViolation):
        crm.do("UPDATE campaign_messages SET status = 'nonsense' WHERE status = 'sent'")


def test_an_upgrade_that_fails_is_taken_up_again(
    empty_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(sql, "functions_text", lambda: "SELECT no_such_function();")
        with pytest.raises(DatabaseUnusable, match="no_such_function"):
            upgrade(empty_url)
    with pytest.raises(DatabaseUnusable, match="is needed: run `campaign-pipeline db upgrade`"):
        check(empty_url)
    assert upgrade(empty_url) == sql.HEAD
    assert shape(empty_url) == shape(database_url)


# Check ----------------------------------------------------------------------------------------------------------------


def test_a_database_without_our_schema_is_refused_with_what_to_do(empty_url: str) -> None:
    with pytest.raises(
        DatabaseUnusable, match=f"not at all, but {sql.HEAD} is needed: run `campaign-pipeline db upgrade`"
    ):
        check(empty_url)


def test_an_older_schema_is_refused_with_what_to_do(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute(f"UPDATE {sql.SCHEMA}.{sql.VERSION_TABLE} SET version_num = '0001'")
    with pytest.raises(DatabaseUnusable, match=f"has the campaign schema 0001, but {sql.HEAD} is needed"):
        check(database_url)
    assert schema.describe(database_url).startswith("test_")


def test_a_newer_schema_is_taken_while_an_upgrade_is_rolled_out(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute(f"UPDATE {sql.SCHEMA}.{sql.VERSION_TABLE} SET version_num = '9999'")
    check(database_url)


@pytest.mark.parametrize("look", [check, upgrade])
@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://user:{SECRET}@127.0.0.1:1/db",
        f"postgresql://user:pa/{SECRET}@127.0.0.1/db",
        f"postgresql://user:pa@{SECRET}@127.0.0.1/db",
        f"postgresql://127.0.0.1:1/db?password={SECRET}&no_such_option=1",
    ],
)
def test_whatever_is_wrong_with_a_database_is_one_sentence_without_its_password(look: Any, url: str) -> None:
    with pytest.raises(DatabaseUnusable) as caught:
        look(url)
    text = str(caught.value)
    assert SECRET not in text
    assert "\n" not in text
    assert text.endswith(".")
    assert caught.value.__cause__ is None


def test_a_database_that_does_not_exist_is_named(server: EmbeddedServer) -> None:
    with pytest.raises(DatabaseUnusable, match='database "nowhere" does not exist'):
        check(server.url("nowhere"))


def test_a_role_without_read_rights_is_reported(database_url: str) -> None:
    role = f"r{uuid4().hex[:12]}"
    with psycopg.connect(database_url, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {role} LOGIN")
        try:
            with pytest.raises(DatabaseUnusable, match="permission denied for schema campaign_pipeline"):
                check(database_url.replace("postgres@", f"{role}@"))
            with pytest.raises(DatabaseUnusable, match=r"which the role postgres owns: .*GRANT \"postgres\" TO"):
                upgrade(database_url.replace("postgres@", f"{role}@"))
        finally:
            admin.execute(f"DROP ROLE {role}")
