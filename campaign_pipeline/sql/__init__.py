"""Named statements, SQL functions and migrations.

`statements.sql` holds the statements that the adapters issue, each under a `-- name:` line and a line that says what it
is for. `functions.sql` holds the guarded state changes; it is applied anew at every upgrade, so it needs no migrations.
"""

import re
from functools import cache
from importlib import resources
from typing import Any

VERSION_TABLE = "campaign_pipeline_version"
"""Alembic's bookkeeping; named so that it never meets the CRM's own."""

HEAD = "0002"
"""The schema that this code works on; a test holds it to the migrations folder."""

_NAME = re.compile(r"^-- name: (?P<name>\w+)\s*$", re.MULTILINE)


def _read(name: str) -> str:
    return resources.files(__name__).joinpath(name).read_text(encoding="utf-8")


@cache
def statements() -> dict[str, str]:
    """All named statements. Raises ValueError for a name that is given twice or has no statement."""
    return parse_statements(_read("statements.sql"))


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
    return _read("functions.sql")


def run_migration(bind: Any, name: str) -> None:
    """Run the SQL file of one migration, past SQLAlchemy: only a bare execute takes several statements at once."""
    bind.connection.driver_connection.execute(_read(f"migrations/versions/{name}.sql"))
