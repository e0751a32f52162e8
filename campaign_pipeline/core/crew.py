"""Tasks that work together, and may call in others: over when the last one ends, or as soon as one fails."""

import asyncio
from collections.abc import Coroutine
from typing import Any


class Crew:
    """A crew at work: asyncio's TaskGroup (Python 3.11), but its tasks outlive the cancellation of who waits."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._change = asyncio.Event()  # the last task ended, or one failed
        self._error: BaseException | None = None

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Begin some work; also for whoever is at work already."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._note_end)

    def _note_end(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._error = self._error or error
        if not self._tasks or self._error:
            self._change.set()

    async def ended(self) -> None:
        """Come back when the last task ended; raises the first error of a task at once.

        Who is cancelled here leaves the tasks at work.
        """
        while self._tasks and not self._error:
            self._change.clear()
            await self._change.wait()
        if self._error:
            raise self._error

    async def finish(self, seconds: float) -> None:
        """Give what is at work some time to end by itself."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)

    async def cancel(self) -> None:
        """Cancel what is still at work, and wait until it is gone."""
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
