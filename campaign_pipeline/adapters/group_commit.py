"""Group commit: calls that wait for the same statement go to the database together, in one transaction.

A call returns only after its transaction is committed, so nothing that it promises is weakened; what is saved is round
trips and flushes. While one group is being committed the next one gathers: the busier, the larger the groups.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

import psycopg

Item = TypeVar("Item")
Result = TypeVar("Result")

# What a value of one item can do to the whole statement. Trouble with the connection is none of the items' making.
_ITEM_ERRORS = (psycopg.DataError, psycopg.IntegrityError, psycopg.ProgrammingError)


class GroupCommit(Generic[Item, Result]):
    """Gathers items for one set-based statement.

    `execute` takes a list of items and returns their results in the same order. At most `groups` statements are under
    way at once, of at most `size` items each.
    """

    def __init__(
        self, execute: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]], *, size: int = 200, groups: int = 1
    ) -> None:
        self._execute = execute
        self._size = size
        self._groups = groups
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._running: set[asyncio.Task[None]] = set()

    async def submit(self, item: Item) -> Result:
        """Run one item in some group; raises what its own statement raises, never a neighbour's error."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if len(self._running) < self._groups:
            self._start()
        return await future

    def _start(self) -> None:
        task: asyncio.Task[None] = asyncio.create_task(self._drain())
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _drain(self) -> None:
        # One turn of the loop, so that items which became ready together go together.
        await asyncio.sleep(0)
        while self._waiting:
            group, self._waiting = self._waiting[: self._size], self._waiting[self._size :]
            await self._run(group)

    async def _run(self, group: list[tuple[Item, "asyncio.Future[Result]"]]) -> None:
        try:
            results = await self._execute([item for item, _ in group])
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

    async def drained(self) -> None:
        """Wait until nothing is under way."""
        while self._running:
            await asyncio.gather(*self._running, return_exceptions=True)


def _fail(future: "asyncio.Future[Any]", error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
