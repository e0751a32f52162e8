"""A client of the sandbox that behaves like the adapters', and records what tests compare."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from campaign_pipeline.sandbox import Behaviour, Entry, Fault, Sandbox

EVOLUTION_KEY = {"apikey": "invented"}
UAZAPI_KEY = {"token": "loja"}
OPENROUTER_KEY = {"Authorization": "Bearer invented"}
PHONE = "5511987654321"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


class Client:
    """One client of one sandbox."""

    def __init__(self, sandbox: Sandbox, session: aiohttp.ClientSession) -> None:
        self.sandbox = sandbox
        self.session = session

    async def call(
        self,
        method: str,
        url: str,
        body: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        timeout = aiohttp.ClientTimeout(total=20)
        data = None if body is None else orjson.dumps(body)
        async with self.session.request(method, url, data=data, headers=headers, timeout=timeout) as response:
            return Answer(response.status, dict(response.headers), await response.read())

    async def generate(self, user: str = "Nome: Ana Souza", **fields: Any) -> Answer:
        body = {"model": "vendor/model", "messages": [{"role": "user", "content": user}], **fields}
        url = f"{self.sandbox.openrouter_url}/chat/completions"
        return await self.call("POST", url, body, OPENROUTER_KEY)

    async def evolution(self, path: str, body: object = None) -> Answer:
        method = "GET" if body is None else "POST"
        return await self.call(method, f"{self.sandbox.evolution_url}{path}", body, EVOLUTION_KEY)

    async def evolution_send(self, text: str = "Olá, Ana!", **fields: Any) -> Answer:
        return await self.evolution("/message/sendText/loja", {"number": PHONE, "text": text, **fields})

    async def uazapi(self, path: str, body: object = None) -> Answer:
        method = "GET" if body is None else "POST"
        return await self.call(method, f"{self.sandbox.uazapi_url}{path}", body, UAZAPI_KEY)

    async def uazapi_send(self, text: str = "Olá, Ana!", **fields: Any) -> Answer:
        return await self.uazapi("/send/text", {"number": PHONE, "text": text, **fields})

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Keep the sandbox's loop running until a condition holds, within the conversation's time limit."""
        while not is_so():
            await self.call("GET", f"{self.sandbox.url}/_sandbox/summary")

    async def give_up(self, asking: Coroutine[Any, Any, Answer], after: Callable[[Entry], bool]) -> Entry:
        """Send a request, and disconnect without an answer once its entry contains enough."""
        known = len(self.sandbox.record.entries)
        task = asyncio.ensure_future(asking)
        await self.until(lambda: len(self.sandbox.record.entries) > known)
        entry = self.sandbox.record.entries[known]
        await self.until(lambda: after(entry))
        assert not task.done(), "it was answered"
        task.cancel()
        return entry


def converse(talk: Callable[[Client], Awaitable[None]], behaviour: Behaviour | None = None) -> None:
    """Run a conversation with a fresh sandbox."""

    async def run() -> None:
        async with Sandbox(behaviour) as sandbox, aiohttp.ClientSession() as session:
            await asyncio.wait_for(talk(Client(sandbox, session)), 30)

    asyncio.run(run())


def with_faults(*rules: str) -> Behaviour:
    """Create a behaviour from rules in the syntax of the flags."""
    return Behaviour(faults=tuple(Fault.parse(rule) for rule in rules))
