"""Named statements, SQL functions and migrations.

`statements/` holds the statements that the adapters issue, each under a `-- name:` line and a line that says what it is
for; a file for each subject. `functions/` holds the guarded state changes; they are applied anew at every upgrade, so
they need no migrations.
"""

import re
from functools import cache
from importlib import resources
from typing import Any

SCHEMA = "campaign_pipeline"
"""Where everything is that the pipeline owns. `public` is the CRM's; every statement names the schema that it means."""

VERSION_TABLE = "campaign_pipeline_version"
"""Alembic's bookkeeping, in that schema; named so that it never meets the CRM's own."""

HEAD = "0008"
"""The schema that this code works on; a test holds it to the migrations folder."""

STATEMENT_FILES = ("queue", "operations", "reports", "consent", "channels")
FUNCTION_FILES = ("pacing", "consent", "spending", "queue", "channels", "rights")
"""In this order: what the queue's functions call exists before them."""

_NAME = re.compile(r"^-- name: (?P<name>\w+)\s*$", re.MULTILINE)


def _read(name: str) -> str:
    return resources.files(__name__).joinpath(name).read_text(encoding="utf-8")


@cache
def statements() -> dict[str, str]:
    """All named statements. Raises ValueError for a name that is given twice or has no statement."""
    return parse_statements("\n".join(_read(f"statements/{name}.sql") for name in STATEMENT_FILES))


def parse_statements(text: str) -> dict[str, str]:
    """Cut a file into its named statements, comments left in for the server's own log."""
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
    """One named statement. Raises KeyError, at import time of whoever names it, if there is none."""
    return statements()[name]


def functions_text() -> str:
    """The SQL functions and triggers, to be applied after the migrations."""
    return "\n".join(_read(f"functions/{name}.sql") for name in FUNCTION_FILES)


def run_migration(bind: Any, name: str) -> None:
    """Run the SQL file of one migration, past SQLAlchemy: only a bare execute takes several statements at once."""
    bind.connection.driver_connection.execute(_read(f"migrations/versions/{name}.sql"))


BEFORE_MIGRATIONS = f"""
    -- The migrations up to 0007 make their tables in `public`, whatever the search_path of whoever connects.
    SET LOCAL search_path = public;
    CREATE SCHEMA IF NOT EXISTS {SCHEMA};
    ALTER TABLE IF EXISTS public.{VERSION_TABLE} SET SCHEMA {SCHEMA};
"""
"""What has to be there before alembic reads how far a database is; in the transaction of the migrations."""
