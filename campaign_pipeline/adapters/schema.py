"""The queue's schema: upgraded by alembic and the files of SQL functions; checked before use."""

import hashlib
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from psycopg.rows import TupleRow, scalar_row, tuple_row

from campaign_pipeline import sql
from campaign_pipeline.adapters.online import OnlineSteps, StepFailed, one_at_a_time
from campaign_pipeline.adapters.queue_connection import connect

OLDEST_SERVER = 140_000  # format of server_version_num


class DatabaseUnusable(RuntimeError):
    """The queue's database is unreachable, or its schema does not fit this code; the message says what to do."""


class Detached(DatabaseUnusable):
    """The pipeline was detached from its CRM: the CRM's own processor handles the queue."""


def _alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(sql.__file__).parent / "migrations"))
    return config


def head_revision() -> str:
    """Return the newest migration in the folder."""
    head = ScriptDirectory.from_config(_alembic_config()).get_current_head()
    assert head is not None
    return head


def upgrade(url: str, say: Callable[[str], None] = lambda _: None) -> str:
    """Upgrade the schema while others use the database; does nothing if it is current. Returns the revision.

    Works step by step (see adapters.online): the next call resumes an interrupted upgrade. `say` is told what takes
    long. Raises DatabaseUnusable with one sentence if the database is unreachable or refuses.
    """
    refuse_unreadable(url)
    try:
        with one_at_a_time(url, say):
            return upgrade_alone(url, say)
    except psycopg.Error as error:
        raise DatabaseUnusable(unusable(url, error)) from None
    except StepFailed as error:
        raise DatabaseUnusable(str(error)) from None


def upgrade_alone(url: str, say: Callable[[str], None] = lambda _: None) -> str:
    """Upgrade for a caller that already excludes other upgrades (see one_at_a_time)."""
    try:
        with OnlineSteps(url, say) as steps:
            _refuse_without_rights(steps.connection)
            for statement in sql.BEFORE_MIGRATIONS:
                steps.run(statement)
            _migrate(url, steps)
            functions, triggers = sql.functions_and_triggers()
            steps.run(functions)
            detached = _scalar(steps.connection, _DETACHED)
            for trigger in triggers:
                if not (detached and trigger.table.startswith("public.")):
                    _ensure_trigger(steps, trigger)
            for statement in sql.AFTER_TRIGGERS:
                steps.run(statement)
            if not detached:
                _recount_open_runs(steps.connection)
    except sqlalchemy.exc.DBAPIError as error:
        raise DatabaseUnusable(unusable(url, error.orig)) from None
    except psycopg.Error as error:
        raise DatabaseUnusable(unusable(url, error)) from None
    except StepFailed as error:
        raise DatabaseUnusable(str(error)) from None
    return head_revision()


def _migrate(url: str, steps: OnlineSteps) -> None:
    # SQLAlchemy parses URLs in its own way (no second host, other escapes); both must use the same database.
    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://",
        creator=lambda: connect(url),
        poolclass=sqlalchemy.NullPool,
        isolation_level="AUTOCOMMIT",
    )
    config = _alembic_config()
    try:
        with engine.connect() as connection:
            connection.info[sql.RUN_STEP] = partial(steps.run, search_path=sql.MIGRATION_PATH)
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    finally:
        engine.dispose()


def _ensure_trigger(steps: OnlineSteps, trigger: sql.Trigger) -> None:
    """Create or replace a trigger only if it differs, because that locks its table.

    The trigger's comment identifies the statement that created it.
    """
    mark = f"campaign_pipeline {hashlib.sha256(trigger.statement.encode()).hexdigest()[:16]}"
    found = steps.connection.execute(
        "SELECT obj_description(oid, 'pg_trigger') FROM pg_trigger WHERE tgrelid = to_regclass(%s) AND tgname = %s",
        [trigger.table, trigger.name],
    ).fetchone()
    if found is None or found[0] != mark:
        steps.run(f"{trigger.statement} COMMENT ON TRIGGER {trigger.name} ON {trigger.table} IS '{mark}';")


OWNED_BY_CRM = (
    "workspaces",
    "ai_agents",
    "leads",
    "lead_custom_values",
    "conversations",
    "messages",
    "campaign_configs",
    "campaign_runs",
    "campaign_messages",
    "campaign_logs",
    "ai_message_splitter_config",
)
"""Tables of the CRM that the migrations alter; a test compares this with the migrations."""


def _refuse_without_rights(connection: "psycopg.Connection[Any]") -> None:
    version = _scalar(connection, "SELECT current_setting('server_version_num')::integer")
    if version < OLDEST_SERVER:
        raise StepFailed(f"PostgreSQL 14 or newer is needed, and this server is version {version // 10000}.")
    if lack := lacking_right(connection):
        raise StepFailed(lack)


def lacking_right(connection: "psycopg.Connection[Any]") -> str | None:
    """Return what a role lacks to change the schema: one sentence with the owner and the necessary GRANT."""
    role = _scalar(connection, "SELECT current_user")
    cursor = connection.cursor(row_factory=tuple_row)
    others = cursor.execute(_FOREIGN_TABLES, [list(OWNED_BY_CRM)]).fetchall()
    if others:
        owner = others[0][1]
        tables = ", ".join(table for table, of in others if of == owner)
        return (
            f"The role {role} may not alter {tables}, which the role {owner} owns: connect as {owner}, or let a role "
            f'that may grant it run GRANT "{owner}" TO "{role}" (which {role} must inherit, as is the default).'
        )
    lacking = cursor.execute(_LACKING_CREATE, [sql.SCHEMA]).fetchone()
    if lacking is None:
        return None
    what, owner, grantable = lacking
    return (
        f"The role {role} may not create anything in the {what}, which the role {owner} owns: let {owner} run "
        f'GRANT CREATE ON {grantable} TO "{role}".'
    )


def _scalar(connection: "psycopg.Connection[Any]", query: str) -> Any:
    return connection.cursor(row_factory=scalar_row).execute(query.encode()).fetchone()


_DETACHED = "SELECT EXISTS (SELECT FROM campaign_pipeline.campaign_crm_attachment WHERE detached_at IS NOT NULL)"

_FOREIGN_TABLES = """
SELECT c.relname, pg_get_userbyid(c.relowner)
FROM pg_class c
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND c.relname = ANY (%s)
  AND NOT pg_has_role(c.relowner, 'USAGE')
ORDER BY 2, 1
"""

_LACKING_CREATE = """
SELECT what, pg_get_userbyid(owner), grantable FROM (
    SELECT 'schema public' AS what, n.nspowner AS owner, 'SCHEMA public' AS grantable,
           has_schema_privilege(n.oid, 'CREATE') AS may
    FROM pg_namespace n WHERE n.nspname = 'public'
    UNION ALL
    SELECT 'database ' || d.datname, d.datdba, 'DATABASE ' || quote_ident(d.datname),
           has_database_privilege(d.oid, 'CREATE') OR to_regnamespace(%s) IS NOT NULL
    FROM pg_database d WHERE d.datname = current_database()) needed
WHERE NOT may LIMIT 1
"""


def _recount_open_runs(connection: "psycopg.Connection[TupleRow]") -> None:
    """Recount open runs, so that their counters start correct; from here on triggers maintain them.

    Each run is locked in its own short transaction. Ended runs are history: the CRM deletes their messages.
    """
    for run_id, *_ in connection.execute(sql.statement("find_wrong_counters")).fetchall():
        connection.execute(sql.statement("recount_run"), {"run_id": run_id})


def check(url: str) -> None:
    """Check that the database answers and has our schema. Raises DatabaseUnusable with one sentence if not.

    A newer schema is accepted too: processes with old code continue during an upgrade. Migrations only add, and old
    code can call all functions; a test runs the oldest supported code against them.
    """
    refuse_unreadable(url)
    try:
        with connect(url, autocommit=True) as connection:
            version = found_version(connection)
            current = version is not None and version >= sql.HEAD
            detached = current and _scalar(connection, _DETACHED)
    except (psycopg.OperationalError, psycopg.ProgrammingError) as error:
        raise DatabaseUnusable(unusable(url, error)) from None
    if not current:
        raise DatabaseUnusable(
            f"The database {describe(url)} has the campaign schema {version or 'not at all'}, but {sql.HEAD} is "
            "needed: run `campaign-pipeline db upgrade`."
        )
    if detached:
        raise Detached(
            f"The pipeline is detached from the CRM in {describe(url)}, whose own processor works the queue: run "
            "`campaign-pipeline crm attach` to take it over."
        )


def found_version(connection: "psycopg.Connection[Any]") -> str | None:
    """Return the version of the campaign schema in a database; None if there is none."""
    for place in (sql.SCHEMA, "public"):  # in public up to 0007
        table = f"{place}.{sql.VERSION_TABLE}"
        if _scalar(connection, f"SELECT to_regclass('{table}') IS NOT NULL"):
            version: str | None = _scalar(connection, f"SELECT version_num FROM {table}")  # noqa: S608 (constants)
            return version
    return None


_READABLE = re.compile(
    r"postgres(ql)?://"
    r"([^:@/?#\s]*(:[^@/?#\s]*)?@)?"
    r"(\[[^\]@/?#\s]*\]|[^:@/?#\s,]*)(:\d+)?(,(\[[^\]@/?#\s]*\]|[^:@/?#\s,]*)(:\d+)?)*"
    r"(/[^@?#\s]*)?"
    r"(\?(\w+=[^&#\s]*)(&\w+=[^&#\s]*)*)?"
)
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})|%00")


def is_readable(url: str) -> bool:
    """Return whether a URL is unambiguous.

    If the password contains a bare @ or /, libpq takes its rest for a host or a port, and quotes it in its errors,
    which are logged. Such a URL is refused before it is used.
    """
    if not _READABLE.fullmatch(url) or _BAD_ESCAPE.search(url):
        return False
    try:
        psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        return False
    return True


UNREADABLE = (
    "CAMPAIGN_DATABASE_URL cannot be read as a URL such as postgresql://user:password@host:5432/database; characters "
    "like @ : / ? # % in the user or the password must be percent-encoded (@ is %40)."
)


def refuse_unreadable(url: str) -> None:
    """Raise DatabaseUnusable for an ambiguous URL."""
    if not is_readable(url):
        raise DatabaseUnusable(UNREADABLE)


def describe(url: str) -> str:
    """Return host, port and name of a database, without user and password."""
    parts = psycopg.conninfo.conninfo_to_dict(url)
    return f"{parts.get('dbname', '?')} at {parts.get('host', 'localhost')}:{parts.get('port', 5432)}"


def unusable(url: str, error: BaseException | None) -> str:
    """Return one sentence for the database's error, without user and password."""
    reason = str(error).strip().splitlines()[0] if error and str(error).strip() else "no answer"
    return (
        f"The database {describe(url)} cannot be used: {reason.rstrip('.')}. CAMPAIGN_DATABASE_URL must be a "
        "postgresql:// URL of a PostgreSQL 14 or newer that answers from here."
    )


class one_sentence:  # noqa: N801 (reads like a statement)
    """Turn any database error into DatabaseUnusable with one sentence."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        refuse_unreadable(self._url)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, StepFailed):
            raise DatabaseUnusable(str(error)) from None
        if isinstance(error, psycopg.Error):
            raise DatabaseUnusable(unusable(self._url, error)) from None
