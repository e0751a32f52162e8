"""The system that is replaced, rebuilt from its description: one by one, and its later chunks of five.

Its calls to the CRM (a context call of 100 ms a lead, nine others of 5 ms a message) are waits of just that long. A
real call costs processor time too, so the rebuilt system is rather faster than the original was.
"""

import asyncio
import time
from dataclasses import dataclass

import aiohttp

from benchmarks.rivals.letters import Letter, Letters, client_session, generate, send


@dataclass(frozen=True)
class OldPace:
    """What its calls to the CRM take, in seconds, and how many messages make a chunk."""

    context: float = 0.1
    call: float = 0.005
    chunk: int = 5


class OldWay:
    """Works the letters; each method returns the seconds that it took."""

    def __init__(self, letters: Letters, pace: OldPace | None = None) -> None:
        self._letters = letters
        self._pace = pace or OldPace()

    async def one_by_one(self) -> float:
        """As it was first: a message after the other, its context fetched when its turn comes."""
        async with client_session(self._pace.chunk) as session:
            started = time.perf_counter()
            for letter in self._letters.letters:
                await self._fetch_context()
                await self._message(session, letter)
            return time.perf_counter() - started

    async def chunks(self) -> float:
        """As its eighth version does: all contexts at once, then chunks of five that wait for their slowest."""
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
