"""The replaced system, rebuilt from its description: one by one, and in chunks of five.

Its calls to the CRM (one context call of 100 ms per lead, nine other calls of 5 ms per message) are sleeps. A real call
also costs processor time, so the rebuilt system is faster than the original.
"""

import asyncio
import time
from dataclasses import dataclass

import aiohttp

from benchmarks.rivals.letters import Letter, Letters, client_session, generate, send


@dataclass(frozen=True)
class OldPace:
    """The durations of its calls to the CRM, in seconds, and the size of a chunk."""

    context: float = 0.1
    call: float = 0.005
    chunk: int = 5


class OldWay:
    """Works the letters; each method returns its duration in seconds."""

    def __init__(self, letters: Letters, pace: OldPace | None = None) -> None:
        self._letters = letters
        self._pace = pace or OldPace()

    async def one_by_one(self) -> float:
        """Its first version: one message after the other, each context fetched in turn."""
        async with client_session(self._pace.chunk) as session:
            started = time.perf_counter()
            for letter in self._letters.letters:
                await self._fetch_context()
                await self._message(session, letter)
            return time.perf_counter() - started

    async def chunks(self) -> float:
        """Its eighth version: all contexts at once, then chunks of five that wait for their slowest message."""
        async with client_session(self._pace.chunk) as session:
            started = time.perf_counter()
            letters = self._letters.letters
            await asyncio.gather(*(self._fetch_context() for _ in letters))
            for first in range(0, len(letters), self._pace.chunk):
                chunk = letters[first : first + self._pace.chunk]
                await asyncio.gather(*(self._message(session, letter) for letter in chunk))
            return time.perf_counter() - started

    async def _fetch_context(self) -> None:
        await asyncio.sleep(self._pace.context)

    async def _message(self, session: aiohttp.ClientSession, letter: Letter) -> None:
        await self._calls(4)  # the run, the inbox, the model, status `generating`
        text = await generate(session, self._letters.generation_url, letter)
        await self._calls(3)  # the text, the conversation, status `sending`
        await send(session, letter, text)
        await self._calls(2)  # finish, log

    async def _calls(self, count: int) -> None:
        for _ in range(count):
            await asyncio.sleep(self._pace.call)
