"""Connections to the queue's database, all made in one way that also works through a pooler.

A pooler in transaction mode (PgBouncer, Supabase's port 6543) may run each transaction on another server connection. So
no code may rely on session state: no prepared statements, no SET except SET LOCAL, no temporary tables, no LISTEN, only
transaction-level advisory locks. No setting says whether there is a pooler. Planning each statement anew costs little,
because the heavy work is in functions, which cache their plans.

For the same reason, no time zone or date style is set for the session: those of an `ALTER ROLE` or `ALTER DATABASE` are
tolerated. Times are converted to UTC on arrival, because Python subtracts two times of one zone by their wall clocks,
an hour off at clock changes; and if the server would format dates ambiguously, results are requested in binary form.
SQL names the zone wherever it needs one (a test finds code that depends on the session's).

libpq handles TLS: `sslmode`, `sslrootcert` and similar parameters of the URL apply.
"""

from datetime import UTC, datetime
from typing import Any, TypeVar

import psycopg
from psycopg import pq
from psycopg.rows import DictRow, TupleRow, dict_row, scalar_row
from psycopg.types import datetime as psycopg_datetime

AnyRow = TypeVar("AnyRow")


class _UtcText(psycopg_datetime.TimestamptzLoader):
    """Loads a time in UTC, whatever the session's time zone.

    Python's own parser takes a tenth of the time of psycopg's, and a large batch has two times per message. psycopg's
    is for what Python's does not know.
    """

    def load(self, data: Any) -> datetime:
        try:
            time = datetime.fromisoformat(str(data, "ascii"))
        except ValueError:  # a year after 9999 or before Christ, infinity: psycopg raises with the reason
            time = super().load(data)
        return time.astimezone(UTC)


class _UtcBinary(psycopg_datetime.TimestamptzBinaryLoader):
    """Loads the binary form of a time in UTC."""

    def load(self, data: Any) -> datetime:
        return super().load(data).astimezone(UTC)


# For every connection of this process; Dagster's own storage uses another driver.
psycopg.adapters.register_loader("timestamptz", _UtcText)
psycopg.adapters.register_loader("timestamptz", _UtcBinary)


class _BinaryCursor(psycopg.Cursor[AnyRow]):
    """A cursor with binary results."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.format = pq.Format.BINARY


class _AsyncBinaryCursor(psycopg.AsyncCursor[AnyRow]):
    """A cursor with binary results, for asyncio."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.format = pq.Format.BINARY


def _writes_unreadable_dates(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> bool:
    return not (connection.info.parameter_status("DateStyle") or "ISO").startswith("ISO")


def _readable(connection: psycopg.Connection[AnyRow]) -> psycopg.Connection[AnyRow]:
    if _writes_unreadable_dates(connection):
        connection.cursor_factory = _BinaryCursor
    return connection


async def make_readable(connection: psycopg.AsyncConnection[Any]) -> None:
    """Request binary results if dates are ambiguous; for a pool, which makes its own connections."""
    if _writes_unreadable_dates(connection):
        connection.cursor_factory = _AsyncBinaryCursor


OPTIONS: dict[str, Any] = {
    "prepare_threshold": None,
    "connect_timeout": 10,  # seconds
    # A server that vanished without closing the connection is noticed within half a minute.
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}
"""Options of every connection, those of our pools included."""


def connect(url: str, *, autocommit: bool = False) -> psycopg.Connection[TupleRow]:
    """Return a connection whose rows are tuples. Raises psycopg.OperationalError."""
    return _readable(psycopg.connect(url, autocommit=autocommit, **OPTIONS))


def connect_rows(url: str, *, autocommit: bool = False) -> psycopg.Connection[DictRow]:
    """Return a connection whose rows are dicts. Raises psycopg.OperationalError."""
    return _readable(psycopg.connect(url, autocommit=autocommit, row_factory=dict_row, **OPTIONS))


async def connect_async(url: str) -> psycopg.AsyncConnection[DictRow]:
    """Return an autocommit connection for asyncio whose rows are dicts."""
    connection = await psycopg.AsyncConnection.connect(url, autocommit=True, row_factory=dict_row, **OPTIONS)
    await make_readable(connection)
    return connection


def is_pooled(connection: psycopg.Connection[Any]) -> bool:
    """Return whether a pooler is in between: it gives its clients process ids of its own."""
    pid = connection.cursor(row_factory=scalar_row).execute("SELECT pg_backend_pid()").fetchone()
    return bool(connection.info.backend_pid != pid)
