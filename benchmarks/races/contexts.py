"""Contexts of 1,000 leads.

The contexts of 1,000 leads with 20 custom fields each. This project uses one statement for the whole batch. The old way
makes one call per lead (`get_lead_full_context`), here in parallel over a pool of 20 connections and without the 100 ms
that its network path took.
"""

import asyncio
import time
from typing import Any

import orjson
import psycopg
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool

from benchmarks.report import Plot, Result
from benchmarks.world import Bench, Options, Times, fill
from campaign_pipeline.adapters.queue import Queue
from campaign_pipeline.sql import statement

FIELDS, POOL = 20, 20
MOST_MS, LEAST_RATIO = 100.0, 20.0


def race(bench: Bench, options: Options, result: Result) -> None:
    """Measure both with warm caches, one after the other."""
    leads = options.pick(1000, 20)
    repeat = options.pick(15, 1)
    with bench.database("bench_contexts") as url:
        fill(url, leads, custom_fields=FIELDS)
        with psycopg.connect(url, autocommit=True, row_factory=dict_row) as connection:
            leads_of = connection.execute("SELECT id, workspace_id FROM public.leads ORDER BY id").fetchall()
            asked = {
                "lead_ids": [row["id"] for row in leads_of],
                "workspace_ids": [row["workspace_id"] for row in leads_of],
            }
            one, parsed = Times(), Times()
            for _ in range(repeat + 1):
                rows = one.time(lambda: _read_all(connection, asked))
                contexts = parsed.time(lambda: [orjson.loads(row["context"]) for row in rows])  # noqa: B023 (called at once)
            one.seconds.pop(0)  # the first call fills the cache
            if len(contexts) != leads or any(len(each["custom_fields"]) != FIELDS for each in contexts):
                raise AssertionError("Not every lead has its fields.")
        queue = Times()
        for _ in range(repeat):
            queue.time(lambda: asyncio.run(Queue(url).get_lead_contexts(**asked)))
        calls = [asyncio.run(_call_for_each(url, asked)) for _ in range(options.pick(5, 1))]
    many = sorted(calls)[len(calls) // 2]
    result.judge("one statement", one.ms, "ms", most=MOST_MS, digits=1)
    result.tell("the same inside a step, with a new connection and event loop", queue.ms, "ms", digits=1)
    result.tell("parsing its JSON", parsed.ms, "ms", digits=1)
    result.tell(f"{leads:,} calls over a pool of {POOL}", 1000 * many, "ms", digits=0)
    result.judge("the calls / the statement", many / one.median, "×", least=LEAST_RATIO, digits=1)
    result.plots.append(
        Plot(
            f"Contexts of {leads:,} leads with {FIELDS} custom fields",
            "ms",
            {"this project: one statement": one.ms, f"one call per lead, pool of {POOL}": 1000 * many},
        )
    )


def _read_all(connection: psycopg.Connection[DictRow], asked: dict[str, list[Any]]) -> list[DictRow]:
    return connection.execute(statement("get_lead_contexts"), asked).fetchall()


async def _call_for_each(url: str, asked: dict[str, list[Any]]) -> float:
    async with AsyncConnectionPool(url, min_size=POOL, max_size=POOL, open=False, kwargs={"autocommit": True}) as pool:
        await pool.wait()

        async def call(lead: Any, workspace: Any) -> None:
            async with pool.connection() as connection:
                parameters = {"lead_ids": [lead], "workspace_ids": [workspace]}
                rows = await (await connection.execute(statement("get_lead_contexts"), parameters)).fetchall()
                orjson.loads(rows[0][-1])

        started = time.perf_counter()
        await asyncio.gather(*map(call, asked["lead_ids"], asked["workspace_ids"]))
        return time.perf_counter() - started
