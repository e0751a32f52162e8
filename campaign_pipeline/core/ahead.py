"""Questions to the store that are asked before their turn, so that a turn begins with its request."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from campaign_pipeline.core.ports import Clock

GOOD_FOR_SECONDS = 10.0
"""How long a `go` to the language model is believed. What it costs to be late is a text that is paid for and kept:
whether it may be sent is asked again."""


class AskedAhead:
    """Verdicts that were asked for ahead, by message."""

    def __init__(self, ask: Callable[[str], Awaitable[str]], clock: Clock) -> None:
        self._ask = ask
        self._clock = clock
        self._asked: dict[str, tuple[float, asyncio.Future[str]]] = {}  # when, and what is answered

    def ask(self, message_id: str) -> None:
        """Ask for a message, unless that was done."""
        if message_id not in self._asked:
            asking = asyncio.ensure_future(self._ask(message_id))
            # Where it fails, whoever wants the answer asks anew and finds out why.
            asking.add_done_callback(lambda asked: asked.cancelled() or asked.exception())
            self._asked[message_id] = (self._clock.monotonic(), asking)

    async def verdict(self, message_id: str) -> str:
        """`go`, if that was answered and is young; whatever else was, is asked anew."""
        at, asking = self._asked.pop(message_id, (0.0, None))
        if asking is not None and self._clock.monotonic() - at < GOOD_FOR_SECONDS:
            with contextlib.suppress(Exception):
                if await asking == "go":
                    return "go"
        return await self._ask(message_id)

    async def forget(self) -> None:
        """Wait for no answer any more."""
        left = [asking for _, asking in self._asked.values()]
        for asking in left:
            asking.cancel()
        await asyncio.gather(*left, return_exceptions=True)
