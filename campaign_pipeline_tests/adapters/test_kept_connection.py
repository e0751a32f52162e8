"""The connection that a step keeps for its statements."""

import asyncio

import psycopg
import pytest

from campaign_pipeline.adapters.statements import Lender, kept_connection
from campaign_pipeline_tests.factories import World


async def server_process(lend: Lender) -> int:
    async with lend() as connection:
        row = await (await connection.execute("SELECT pg_backend_pid() AS pid")).fetchone()
    assert row is not None
    return int(row["pid"])


async def write_read_only(lend: Lender) -> None:
    async with lend() as connection:
        await connection.execute("SET default_transaction_read_only = on")
        await connection.execute("CREATE TABLE public.never (id integer)")


def test_statements_one_after_the_other_share_a_connection_until_it_is_lost(world: World) -> None:
    async def work() -> None:
        async with kept_connection(world.url) as lend:
            first = await server_process(lend)
            assert await server_process(lend) == first
            world.value("SELECT pg_terminate_backend(%s, 10000)", first)
            with pytest.raises(psycopg.OperationalError):
                await server_process(lend)
            assert await server_process(lend) != first

    asyncio.run(work())


def test_a_server_that_takes_no_writes_any_more_is_left(world: World) -> None:
    async def work() -> None:
        async with kept_connection(world.url) as lend:
            first = await server_process(lend)
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                await write_read_only(lend)
            assert await server_process(lend) != first

    asyncio.run(work())


def test_nothing_connects_before_the_first_statement() -> None:
    async def work() -> None:
        async with kept_connection("postgresql://user@127.0.0.1:1/nowhere"):
            pass

    asyncio.run(work())
