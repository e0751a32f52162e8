"""procrastinate, a queue in PostgreSQL. Its worker makes the two requests and one status write for each message.

`python -m benchmarks.rivals.procrastinate_app` runs a worker. It reads BENCH_LETTERS, BENCH_DATABASE_URL and
BENCH_CONCURRENCY, and ends when the queue is empty.
"""

import asyncio
import os
from pathlib import Path
from typing import Any

import psycopg_pool

from benchmarks.rivals.letters import Letter, Letters, client_session, generate, send
from benchmarks.rivals.status import MARK_SENT

_DEFER_AT_ONCE = 1000


def _app(url: str, pool_size: int) -> Any:
    # Installed by the extra `bench` only.
    import procrastinate  # type: ignore[import-not-found,import-untyped,unused-ignore]

    connector = procrastinate.PsycopgConnector(conninfo=url, min_size=1, max_size=pool_size)
    return procrastinate.App(connector=connector)


async def defer_all(url: str, count: int) -> None:
    """Queue one job per message; this is not timed."""
    app = _app(url, 2)
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        task = app.configure_task("deliver")
        for first in range(0, count, _DEFER_AT_ONCE):
            jobs = [{"no": no} for no in range(first, min(count, first + _DEFER_AT_ONCE))]
            await task.batch_defer_async(*jobs)


async def _work() -> None:
    url, concurrency = os.environ["BENCH_DATABASE_URL"], int(os.environ["BENCH_CONCURRENCY"])
    letters = Letters.load(Path(os.environ["BENCH_LETTERS"]))
    app = _app(url, 16)
    pool = psycopg_pool.AsyncConnectionPool(url, min_size=4, max_size=16, open=False, kwargs={"autocommit": True})
    async with pool, client_session(concurrency) as session:

        async def deliver(no: int) -> None:
            letter: Letter = letters.letters[no]
            provider_id = await send(session, letter, await generate(session, letters.generation_url, letter))
            async with pool.connection() as connection:
                await connection.execute(MARK_SENT, (provider_id, letter.id))

        app.task(name="deliver")(deliver)
        async with app.open_async():
            await app.run_worker_async(concurrency=concurrency, wait=False, listen_notify=False)


def _main() -> None:
    try:
        import uvloop

        uvloop.run(_work())
    except ImportError:  # not on Windows
        asyncio.run(_work())


if __name__ == "__main__":
    _main()
