"""Runs named statements on the queue's database, and waits while it is unavailable."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeAlias, TypeVar
from uuid import UUID

import orjson
import psycopg
from psycopg.rows import DictRow, dict_row
from psycopg.types.json import Jsonb, set_json_dumps, set_json_loads
from psycopg_pool import AsyncConnectionPool, PoolTimeout
from tenacity import AsyncRetrying, RetryError, retry_if_exception_type, stop_after_delay, wait_exponential, wait_random

from campaign_pipeline.adapters.queue_connection import OPTIONS, connect_async, make_readable
from campaign_pipeline.core.ports import StoreUnavailable
from campaign_pipeline.sql import statement

T = TypeVar("T")
Connection = psycopg.AsyncConnection[DictRow]
ConnectionPool: TypeAlias = AsyncConnectionPool[Connection]
Lender: TypeAlias = Callable[[], contextlib.AbstractAsyncContextManager[Connection]]
"""Lends a connection for one statement or transaction."""

set_json_dumps(lambda value: orjson.dumps(value).decode())
set_json_loads(orjson.loads)

# The connection is lost, the server is starting, stopping or failing over (read-only until the new one is promoted), a
# statement took too long, or there was a deadlock. A repeat is safe: every statement names the state that it expects.
_TRANSIENT = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    PoolTimeout,
    psycopg.errors.ReadOnlySqlTransaction,
)
PATIENCE_SECONDS = 60.0
"""How long to wait for an unavailable database: a restart or a fail-over, not an outage."""


async def patiently(call: Callable[[], Awaitable[T]], patience_seconds: float) -> T:
    """Repeat a call while the database is unavailable. Raises StoreUnavailable if it stays so."""
    try:
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(_TRANSIENT),
            wait=wait_exponential(multiplier=0.05, max=2.0) + wait_random(0, 0.1),
            stop=stop_after_delay(patience_seconds),
        ):
            with attempt:
                return await call()
    except RetryError as error:
        cause = str(error.last_attempt.exception()).strip().partition("\n")[0]
        raise StoreUnavailable(f"The database did not answer for {patience_seconds:g} seconds: {cause}") from None
    raise AssertionError("unreachable: the loop above returns or raises")


@contextlib.asynccontextmanager
async def borrowed(pool: ConnectionPool) -> AsyncIterator[Connection]:
    """Yield a connection of the pool; discard it if its server no longer accepts writes."""
    async with pool.connection() as connection:
        try:
            yield connection
        except psycopg.errors.ReadOnlySqlTransaction:
            await connection.close()
            raise


def json_items(items: Iterable[Mapping[str, Any]]) -> Jsonb:
    """Encode items for a set-based statement. Characters that PostgreSQL cannot store are dropped, not their text."""
    rows = [{key: value for key, value in item.items() if value is not None} for item in items]
    try:
        written = orjson.dumps(rows)
        if b"\\u0000" not in written:
            return Jsonb(rows, dumps=lambda _: written)
    except orjson.JSONEncodeError:  # half of a surrogate pair, which a provider's JSON may contain
        pass
    return Jsonb(_storable(rows))


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\0", "").encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {_storable(key): _storable(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [_storable(member) for member in value]
    return value


def id_array(ids: Iterable[UUID | str]) -> str:
    """Encode ids as PostgreSQL writes an array of uuid: psycopg encodes a list in ten times as long, id by id."""
    return f"{{{','.join(map(str, ids))}}}"


def connection_pool(url: str, patience_seconds: float = PATIENCE_SECONDS) -> ConnectionPool:
    """Create a small pool, not yet opened."""
    return AsyncConnectionPool(
        url,
        min_size=1,
        max_size=4,
        open=False,
        timeout=min(10.0, patience_seconds),
        kwargs={**OPTIONS, "autocommit": True, "row_factory": dict_row},
        connection_class=psycopg.AsyncConnection[DictRow],
        configure=make_readable,
    )


def lender_of(database: str | Lender) -> Lender:
    """Return a lender of new connections for a URL; others are returned as they are."""

    @contextlib.asynccontextmanager
    async def connect() -> AsyncIterator[Connection]:
        async with await connect_async(str(database)) as connection:
            yield connection

    return connect if isinstance(database, str) else database


@contextlib.asynccontextmanager
async def kept_connection(url: str) -> AsyncIterator[Lender]:
    """Yield a lender of one connection, made when first needed, and again after it was lost.

    For a step's statements, one after the other: a new connection takes 7 ms, more than most of them.
    """
    kept: Connection | None = None

    @contextlib.asynccontextmanager
    async def lend() -> AsyncIterator[Connection]:
        nonlocal kept
        if kept is None or kept.closed:
            kept = await connect_async(url)
        try:
            yield kept
        except _TRANSIENT:
            await kept.close()
            raise

    try:
        yield lend
    finally:
        if kept is not None:
            await kept.close()


class Statements:
    """Named statements on one database, one connection at a time; waits while the database is unavailable."""

    def __init__(self, database: str | Lender, patience_seconds: float = PATIENCE_SECONDS) -> None:
        """Connect to a URL for each call, or borrow."""
        self._connection = lender_of(database)
        self._patience = patience_seconds

    async def _all(self, name: str, **parameters: Any) -> list[dict[str, Any]]:
        async def call() -> list[dict[str, Any]]:
            async with self._connection() as connection:
                return await (await connection.execute(statement(name), parameters)).fetchall()

        return await patiently(call, self._patience)

    async def _records(self, record: type[T], name: str, **parameters: Any) -> list[T]:
        return [record(**row) for row in await self._all(name, **parameters)]
