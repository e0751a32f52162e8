"""Group commit: concurrent calls of the same statement go to the database together, in one transaction.

A call returns only after its transaction is committed, so no guarantee is weakened; round trips and flushes are saved.
While one group is being committed, the next one gathers: the higher the load, the larger the groups.
"""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Sequence
from typing import Any, Generic, TypeVar

import psycopg

Item = TypeVar("Item")
Result = TypeVar("Result")

# Errors that one item's value can cause for the whole statement. Connection errors are not caused by items.
_ITEM_ERRORS = (psycopg.DataError, psycopg.IntegrityError, psycopg.ProgrammingError)


NEAR_SECONDS = 0.01
"""A nearby database has executed a statement this fast at least once. One at 20 ms never does; one on the same two busy
cores does, with its first small groups."""

LONGEST_WAIT_SECONDS = 0.25
"""For a turn: if the process dies, a result that is not committed is an unknown outcome."""

ENOUGH = 24
"""Items with which a group need not rest: 48 cost 0.9 per message of what 24 do, and waiting for them would leave
processors idle."""

REST = 2.0
"""How long statements pause after each one, as a multiple of its duration: long enough for the next group to triple."""

LONGEST_REST_SECONDS = 0.05
"""After a slow statement: a message never waits for company longer than this."""


class Turns:
    """Serialises the statements of several kinds of groups.

    Most of a statement's cost is fixed: a group of 20 costs 0.6 per message of what a group of 8 does. So groups gather
    while any of them is in progress and during a rest after it, and become several times as large. A group of ENOUGH
    does not rest. A shard with few messages loses nothing: its statements are further apart than a rest. If the
    database is far away, taking turns would cost a round trip of idle waiting: there the kinds run side by side,
    without rests.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._quickest = math.inf  # fastest statement so far, in seconds
        self._rested_at = 0.0  # on the loop's clock: the next statement starts no earlier

    @contextlib.asynccontextmanager
    async def turn(self, enough: asyncio.Event) -> AsyncIterator[None]:
        """Wait for the turn of one statement; do not rest once `enough` is set."""
        loop, is_mine = asyncio.get_running_loop(), False
        if self._quickest < NEAR_SECONDS:
            await self._rest(enough)
            is_mine = await self._comes()
        try:
            started = loop.time()
            yield
            ended = loop.time()
            self._quickest = min(self._quickest, ended - started)
            self._rested_at = ended + min(REST * (ended - started), LONGEST_REST_SECONDS)
        finally:
            if is_mine:
                self._lock.release()

    async def _rest(self, enough: asyncio.Event) -> None:
        """Wait for the end of the rest, which another kind's statement may prolong; never longer than one rest."""
        loop = asyncio.get_running_loop()
        latest = loop.time() + LONGEST_REST_SECONDS
        while not enough.is_set() and (until := min(self._rested_at, latest)) > loop.time():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await enough.wait()

    async def _comes(self) -> bool:
        """Wait for the turn; return False if the previous statement is stuck, for example on a locked row."""
        try:
            async with asyncio.timeout(LONGEST_WAIT_SECONDS):
                await self._lock.acquire()
        except TimeoutError:
            return False
        return True


class GroupCommit(Generic[Item, Result]):
    """Gathers items for one set-based statement.

    `execute` takes a list of items and returns their results in the same order. One statement of at most `size` items
    is in progress at a time, in one of the `turns` that several kinds of groups share. Items with the same `key` are
    never in the same statement: the later one waits for a later group.
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
        self._enough = asyncio.Event()  # set while ENOUGH items wait
        self._running: asyncio.Task[None] | None = None

    async def submit(self, item: Item) -> Result:
        """Run one item in some group; raises its own error, never a neighbour's."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if len(self._waiting) >= ENOUGH:
            self._enough.set()
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._drain())
        return await future

    async def _drain(self) -> None:
        # Yield to the loop once, so that items that became ready together go together.
        await asyncio.sleep(0)
        while self._waiting:
            async with self._turns.turn(self._enough):
                group = self._next_group()
                if len(self._waiting) < ENOUGH:
                    self._enough.clear()
                await self._run(group)

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
        if len(results) != len(items):  # otherwise the caller of the missing result would wait for ever
            raise RuntimeError(f"a group of {len(items)} items came back with {len(results)} results")
        return results

    async def _run(self, group: list[tuple[Item, "asyncio.Future[Result]"]]) -> None:
        try:
            results = await self._executed([item for item, _ in group])
        except _ITEM_ERRORS as error:
            if len(group) == 1:
                _fail(group[0][1], error)
                return
            # Some item cannot be stored: run them one by one, so that the others succeed.
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
