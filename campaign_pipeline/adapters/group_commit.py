"""Group commit: calls that wait for the same statement go to the database together, in one transaction.

A call returns only after its transaction is committed, so nothing that it promises is weakened; what is saved is round
trips and flushes. While one group is being committed the next one gathers: the busier, the larger the groups.
"""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Sequence
from typing import Any, Generic, TypeVar

import psycopg

Item = TypeVar("Item")
Result = TypeVar("Result")

# What a value of one item can do to the whole statement. Trouble with the connection is none of the items' making.
_ITEM_ERRORS = (psycopg.DataError, psycopg.IntegrityError, psycopg.ProgrammingError)


NEAR_SECONDS = 0.01
"""A statement of a near database has been this quick at least once. One 20 ms away never is; one on the same two busy
cores is, with its first small groups."""

LONGEST_WAIT_SECONDS = 0.25
"""For a turn: an end that is not committed is an unknown outcome, should its process die."""


class Turns:
    """One statement at a time for several kinds of groups.

    What a statement costs is mostly its start: a group of 20 costs a message 0.6 of what a group of 8 does. So the
    groups gather while any of them is under way, and become twice as large. Where the database is far away a turn would
    cost a round trip of waiting, which nobody uses: there the kinds go side by side.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._quickest = math.inf  # seconds of a statement, so far

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """For one statement."""
        is_mine = self._quickest < NEAR_SECONDS and await self._comes()
        try:
            loop = asyncio.get_running_loop()
            started = loop.time()
            yield
            self._quickest = min(self._quickest, loop.time() - started)
        finally:
            if is_mine:
                self._lock.release()

    async def _comes(self) -> bool:
        """Wait for the turn; False where the statement before is stuck, be it on a row that another program locked."""
        try:
            async with asyncio.timeout(LONGEST_WAIT_SECONDS):
                await self._lock.acquire()
        except TimeoutError:
            return False
        return True


class GroupCommit(Generic[Item, Result]):
    """Gathers items for one set-based statement.

    `execute` takes a list of items and returns their results in the same order. One statement is under way at a time,
    of at most `size` items, and in one of the `turns` of several kinds of groups. Items of the same `key` never share a
    statement: the later one goes with a later group.
    """

    def __init__(
        self,
        execute: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        *,
        size: int = 200,
        key: Callable[[Item], Hashable] | None = None,
        turns: Turns | None = None,
    ) -> None:
        self._execute = execute
        self._size = size
        self._key = key
        self._turns = turns or Turns()
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._running: asyncio.Task[None] | None = None

    async def submit(self, item: Item) -> Result:
        """Run one item in some group; raises what its own statement raises, never a neighbour's error."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._drain())
        return await future

    async def _drain(self) -> None:
        # One turn of the loop, so that items which became ready together go together.
        await asyncio.sleep(0)
        while self._waiting:
            async with self._turns.turn():
                await self._run(self._next_group())

    def _next_group(self) -> list[tuple[Item, "asyncio.Future[Result]"]]:
        if self._key is None:
            group, self._waiting = self._waiting[: self._size], self._waiting[self._size :]
            return group
        group, later = [], []
        keys: set[Hashable] = set()
        for member in self._waiting:
            key = self._key(member[0])
            if len(group) == self._size or key in keys:
                later.append(member)
            else:
                keys.add(key)
                group.append(member)
        self._waiting = later
        return group

    async def _executed(self, items: list[Item]) -> Sequence[Result]:
        results = await self._execute(items)
        if len(results) != len(items):  # nobody may wait for ever for the one that is missing
            raise RuntimeError(f"a group of {len(items)} items came back with {len(results)} results")
        return results

    async def _run(self, group: list[tuple[Item, "asyncio.Future[Result]"]]) -> None:
        try:
            results = await self._executed([item for item, _ in group])
        except _ITEM_ERRORS as error:
            if len(group) == 1:
                _fail(group[0][1], error)
                return
            # Some item cannot be stored: find out which, so that its neighbours are not harmed.
            for member in group:
                await self._run([member])
        except BaseException as error:
            for _, future in group:
                _fail(future, error)
            if not isinstance(error, Exception):
                raise
        else:
            for (_, future), result in zip(group, results, strict=True):
                if not future.done():
                    future.set_result(result)


def _fail(future: "asyncio.Future[Any]", error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
