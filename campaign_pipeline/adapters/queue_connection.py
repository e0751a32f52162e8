"""Connections to the queue's database: made in one way, so that each of them works through a pooler as well.

A pooler in transaction mode (PgBouncer, Supabase's port 6543) may run every transaction on another server connection.
Hence nothing here or in those who use this relies on the state of a session: no prepared statements, no SET but SET
LOCAL, no temporary tables, no LISTEN, no advisory locks but those of a transaction. Nobody has to say whether there is
a pooler. Planning each statement anew costs little, for the heavy work is in functions, which keep their plans.

TLS is libpq's: `sslmode`, `sslrootcert` and their like in the URL hold.
"""

from typing import Any

import psycopg
from psycopg.rows import DictRow, TupleRow, dict_row

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
    return psycopg.connect(url, autocommit=autocommit, **OPTIONS)


def connect_rows(url: str, *, autocommit: bool = False) -> psycopg.Connection[DictRow]:
    """A connection whose rows are dicts. Raises psycopg.OperationalError."""
    return psycopg.connect(url, autocommit=autocommit, row_factory=dict_row, **OPTIONS)


async def connect_async(url: str) -> psycopg.AsyncConnection[DictRow]:
    """A connection for asyncio whose rows are dicts and whose statements commit by themselves."""
    return await psycopg.AsyncConnection.connect(url, autocommit=True, row_factory=dict_row, **OPTIONS)


def is_pooled(connection: psycopg.Connection[Any]) -> bool:
    """Whether a pooler stands between us and the server: it gives its clients process ids of its own making."""
    row = connection.execute("SELECT pg_backend_pid()").fetchone()
    assert row is not None
    return bool(connection.info.backend_pid != row[0])
