"""The slots of a shard: how many of its messages may have requests in flight."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterator


class Slots:
    """A message that waits for its planned time holds no slot; at that time it takes precedence over new messages."""

    def __init__(self, count: int, freed: Callable[[], None]) -> None:
        """`freed` is called whenever a new message may begin."""
        self.free = count
        self.sleepers = 0
        self._due: deque[asyncio.Future[None]] = deque()
        self._freed = freed

    def take(self) -> None:
        """Take a slot; `free` must have reported one."""
        self.free -= 1

    async def take_in_turn(self) -> None:
        """Take a slot as soon as one is free."""
        if self.free:
            self.free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._due.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_back()
            raise

    def give_back(self) -> None:
        """Free a slot, for a message whose planned time has come, or else for a new message."""
        while self._due:
            turn = self._due.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.free += 1
        self._freed()

    @contextlib.contextmanager
    def asleep(self) -> Iterator[None]:
        """Free the slot while a message waits for its planned time."""
        self.sleepers += 1
        try:
            self.give_back()
            yield
        finally:
            self.sleepers -= 1
