"""Connections to the queue's database: made in one way, so that each of them works through a pooler as well.

A pooler in transaction mode (PgBouncer, Supabase's port 6543) may run every transaction on another server connection.
Hence nothing here or in those who use this relies on the state of a session: no prepared statements, no SET but SET
LOCAL, no temporary tables, no LISTEN, no advisory locks but those of a transaction. Nobody has to say whether there is
a pooler. Planning each statement anew costs little, for the heavy work is in functions, which keep their plans.

Hence, too, no time zone or date style is set for the session: what an `ALTER ROLE` or `ALTER DATABASE` made of them is
borne. Times are UTC when they arrive here, since Python subtracts two times of one zone by their wall clocks, an hour
off where its clocks change; and where the server would write dates in a style that nobody can read for sure, it is
asked for its binary form. SQL names the zone wherever it needs one (a test looks for what depends on the session's).

TLS is libpq's: `sslmode`, `sslrootcert` and their like in the URL hold.
"""

from datetime import UTC, datetime
from typing import Any, TypeVar

import psycopg
from psycopg import pq
from psycopg.rows import DictRow, TupleRow, dict_row, scalar_row
from psycopg.types import datetime as psycopg_datetime

AnyRow = TypeVar("AnyRow")


class _UtcText(psycopg_datetime.TimestamptzLoader):
    """A time in UTC, whatever the session's time zone."""

    def load(self, data: Any) -> datetime:
        return super().load(data).astimezone(UTC)


class _UtcBinary(psycopg_datetime.TimestamptzBinaryLoader):
    """The same, of its binary form."""

    def load(self, data: Any) -> datetime:
        return super().load(data).astimezone(UTC)


# For every connection of this process; Dagster's own storage goes by another driver.
psycopg.adapters.register_loader("timestamptz", _UtcText)
psycopg.adapters.register_loader("timestamptz", _UtcBinary)


class _BinaryCursor(psycopg.Cursor[AnyRow]):
    """Results in binary form."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.format = pq.Format.BINARY


class _AsyncBinaryCursor(psycopg.AsyncCursor[AnyRow]):
    """The same for asyncio."""

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
    """Ask for the binary form where dates cannot be read; for a pool, which makes its own connections."""
    if _writes_unreadable_dates(connection):
        connection.cursor_factory = _AsyncBinaryCursor


OPTIONS: dict[str, Any] = {
    "prepare_threshold": None,
    "connect_timeout": 10,  # seconds
    # A server that vanished without a word (its machine is gone) is noticed within half a minute.
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}
"""What every connection is made with, those of a pool of ours included."""


def connect(url: str, *, autocommit: bool = False) -> psycopg.Connection[TupleRow]:
    """A connection whose rows are tuples. Raises psycopg.OperationalError."""
    return _readable(psycopg.connect(url, autocommit=autocommit, **OPTIONS))


def connect_rows(url: str, *, autocommit: bool = False) -> psycopg.Connection[DictRow]:
    """A connection whose rows are dicts. Raises psycopg.OperationalError."""
    return _readable(psycopg.connect(url, autocommit=autocommit, row_factory=dict_row, **OPTIONS))


async def connect_async(url: str) -> psycopg.AsyncConnection[DictRow]:
    """A connection for asyncio whose rows are dicts and whose statements commit by themselves."""
    connection = await psycopg.AsyncConnection.connect(url, autocommit=True, row_factory=dict_row, **OPTIONS)
    await make_readable(connection)
    return connection


def is_pooled(connection: psycopg.Connection[Any]) -> bool:
    """Whether a pooler stands between us and the server: it gives its clients process ids of its own making."""
    pid = connection.cursor(row_factory=scalar_row).execute("SELECT pg_backend_pid()").fetchone()
    return bool(connection.info.backend_pid != pid)
