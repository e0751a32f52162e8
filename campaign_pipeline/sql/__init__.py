"""Named statements, SQL functions and migrations.

`statements/` contains the statements that the adapters issue, one file per subject; each has a `-- name:` line and a
purpose line. `functions/` contains the guarded state changes; they are applied again at every upgrade, so they need no
migrations.
"""

import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

SCHEMA = "campaign_pipeline"
"""The schema of the pipeline's objects. `public` belongs to the CRM; every statement names its schema."""

VERSION_TABLE = "campaign_pipeline_version"
"""Alembic's version table, in that schema; its name differs from the CRM's own."""

HEAD = "0027"
"""The schema revision that this code needs; a test compares it with the migrations folder."""

STATEMENT_FILES = (
    "queue",
    "batches",
    "notices",
    "day_report",
    "operations",
    "reports",
    "consent",
    "channels",
    "crm",
    "overview",
    "operator",
    "campaigns",
)
FUNCTION_FILES = (
    *("clock", "items", "counters", "runs", "pacing", "addresses", "suppression", "keywords", "personal_data"),
    *("numbers", "spending", "tenancy", "reviews", "verdicts", "claiming", "leases", "conversations", "parts"),
    *("settling", "funnel", "deleted", "requeueing", "channels", "webhook", "campaigns", "crm", "rights"),
)
"""In this order: the clock first, because others use it; the rights last, because they revoke from all functions."""

_NAME = re.compile(r"^-- name: (?P<name>\w+)\s*$", re.MULTILINE)
_TOKEN = re.compile(
    r"""'(?:[^']|'')*' | "[^"]*" | \$(?P<tag>(?:[A-Za-z_]\w*)?)\$.*?\$(?P=tag)\$ | --[^\n]* | /\*.*?\*/ | ;""",
    re.DOTALL | re.VERBOSE,
)
_TRIGGER = re.compile(r"^CREATE OR REPLACE TRIGGER (?P<name>\w+)\b[^;]*? ON (?P<table>[\w.]+)", re.MULTILINE)


def _read(name: str) -> str:
    return resources.files(__name__).joinpath(name).read_text(encoding="utf-8")


@cache
def statements() -> dict[str, str]:
    """Return all named statements. Raises ValueError for a duplicate name or a name without a statement."""
    return parse_statements("\n".join(_read(f"statements/{name}.sql") for name in STATEMENT_FILES))


def parse_statements(text: str) -> dict[str, str]:
    """Split a file into its named statements, with comments for the server's log."""
    found: dict[str, str] = {}
    headings = list(_NAME.finditer(text))
    for heading, following in zip(headings, [*headings[1:], None], strict=True):
        name = heading["name"]
        body = text[heading.end() : following.start() if following else len(text)].strip()
        if name in found:
            raise ValueError(f"the statement {name} is defined twice")
        if not re.search(r"^(?!--)\S", body, re.MULTILINE):
            raise ValueError(f"the statement {name} is empty")
        found[name] = body
    return found


def statement(name: str) -> str:
    """Return one named statement. Raises KeyError, when the calling module is imported, if there is none."""
    return statements()[name]


def functions_text() -> str:
    """Return the SQL functions and triggers, to be applied after the migrations."""
    return "\n".join(_read(f"functions/{name}.sql") for name in FUNCTION_FILES)


@dataclass(frozen=True)
class Trigger:
    """A trigger on a table, and the statement that creates or replaces it."""

    name: str
    table: str
    statement: str


def functions_and_triggers() -> tuple[str, list[Trigger]]:
    """Return the same in two parts: functions, which lock no table, and triggers, each of which locks one."""
    functions, triggers = [], []
    for text in split_statements(functions_text()):
        if found := _TRIGGER.search(text):
            triggers.append(Trigger(found["name"], found["table"], text))
        else:
            functions.append(text)
    return "\n".join(functions), triggers


def split_statements(text: str) -> list[str]:
    """Split a file at the semicolons that end its statements; comments stay before their subject."""
    found, start = [], 0
    for token in _TOKEN.finditer(text):
        if token.group() == ";":
            found.append(text[start : token.end()].strip())
            start = token.end()
    return found


def migration_names() -> list[str]:
    """Return the names of the migrations' SQL files, in order."""
    folder = resources.files(__name__).joinpath("migrations/versions")
    return sorted(file.name.removesuffix(".sql") for file in folder.iterdir() if file.name.endswith(".sql"))


def migration_text(name: str) -> str:
    """Return the SQL of one migration."""
    return _read(f"migrations/versions/{name}.sql")


def run_migration(bind: Any, name: str) -> None:
    """Run the SQL file of one migration, each statement as its own step (see adapters.online)."""
    for text in split_statements(migration_text(name)):
        bind.info[RUN_STEP](text)


def run_migration_with_functions(bind: Any, name: str) -> None:
    """Run the SQL file of one migration and all functions and triggers in one step.

    For a migration after which the previous version's functions would not work.
    """
    bind.info[RUN_STEP](f"{migration_text(name)}\n{functions_text()}")


RUN_STEP = "run_step"
"""Key under which the connection given to alembic holds the function that runs a step."""

BEFORE_MIGRATIONS = (
    f"CREATE SCHEMA IF NOT EXISTS {SCHEMA};",
    f"ALTER TABLE IF EXISTS public.{VERSION_TABLE} SET SCHEMA {SCHEMA};",
    f"""DO $$ BEGIN
        IF to_regclass('{SCHEMA}.{VERSION_TABLE}') IS NULL
            AND to_regclass('{SCHEMA}.campaign_columns_before') IS NULL THEN
            -- What the CRM had before us: `crm detach --drop` takes none of it.
            CREATE TABLE {SCHEMA}.campaign_columns_before AS
                SELECT c.relname::text AS table_name, a.attname::text AS column_name
                FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                WHERE c.relnamespace = 'public'::regnamespace;
        END IF;
    END $$;""",  # noqa: S608 (constants)
)
"""Objects that must exist before alembic reads a database's revision."""

AFTER_TRIGGERS = (f"DROP FUNCTION IF EXISTS {SCHEMA}.campaign_heard_consent(text);",)
"""Functions that only the previous version's triggers call. They are dropped last: a write of the CRM that is in such a
trigger while the functions are replaced must not fail."""

MIGRATION_PATH = f"{SCHEMA}, public"
"""The search_path of the migrations: objects without a schema are created in ours, never in public, and those that an
installation from before 0008 has in public are found."""
