"""The base of all mock providers: requests are recorded, delayed, given faults and answered.

A further provider is one more module with a subclass of `Provider` (of `MessageProvider`, if it sends messages) and one
line in `server.PROVIDERS`.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias
from uuid import uuid4

import orjson
from aiohttp import web

from campaign_pipeline.sandbox.behaviour import Conduct, Fault, Kind, Subject
from campaign_pipeline.sandbox.phone import digits_of, jid_of
from campaign_pipeline.sandbox.record import Entry, Record

PROXY_PAGE = (
    b"<html>\r\n<head><title>%s</title></head>\r\n<body>\r\n<center><h1>%s</h1></center>\r\n"
    b"<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
)
_LONG_TIME = 600.0  # seconds; longer than any client waits
_LATE = 5.0  # seconds
_LOOK_FOR_CLIENT_EVERY = 0.05  # seconds; aiohttp does not tell a handler that its client left


class ConnectionCut(Exception):  # a requested event, not an error
    """Close the connection without an answer."""


class Stage:
    """The shared state of all providers of one server."""

    def __init__(self, conduct: Conduct, record: Record) -> None:
        self.conduct = conduct
        self.record = record
        self._closing = asyncio.Event()
        self._later: set[asyncio.Task[None]] = set()

    def do_later(self, seconds: float, act: Callable[[], None]) -> None:
        """Run a callback later, unless the sandbox is reset or stops first."""

        async def wait_and_act() -> None:
            await asyncio.sleep(seconds)
            act()

        task = asyncio.get_running_loop().create_task(wait_and_act())
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    def forget_later(self) -> None:
        """Cancel all callbacks."""
        for task in self._later:
            task.cancel()

    def close(self) -> None:
        """Stop: end every wait."""
        self._closing.set()
        self.forget_later()

    async def hang(self, request: web.Request, seconds: float) -> None:
        """Wait until the time is over, the client has disconnected, or the sandbox stops."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while not self._closing.is_set() and _is_connected(request) and (left := end - loop.time()) > 0:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._closing.wait(), min(left, _LOOK_FOR_CLIENT_EVERY))


@dataclass(slots=True)
class Exchange:
    """A request with its entry in the record."""

    request: web.Request
    entry: Entry
    body: bytes = b""

    def json(self) -> Mapping[str, Any] | None:
        """Read the body; None if it is not a JSON object."""
        try:
            content = orjson.loads(self.body)
        except orjson.JSONDecodeError:
            return None
        return content if isinstance(content, dict) else None


Work: TypeAlias = Callable[[Exchange], Awaitable[web.Response]]


class Provider(ABC):
    """A mock of one provider's API."""

    name: ClassVar[str]
    prefix: ClassVar[str]  # the path under which the server serves it; clients append the provider's own paths
    kinds: ClassVar[frozenset[Kind]]  # the kinds of its endpoints

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    @abstractmethod
    def routes(self) -> Sequence[web.RouteDef]:
        """List the endpoints."""

    @abstractmethod
    def spoiled(self, fault: str, subject: Subject) -> web.Response:
        """Return the provider's answer for a fault that is an answer."""

    def route(self, method: str, path: str, kind: Kind, work: Work) -> web.RouteDef:
        """Serve an endpoint; record each request and its answer."""
        endpoint = f"{method} {path}"
        record = self.stage.record

        async def handle(request: web.Request) -> web.Response:
            exchange = Exchange(request, record.open(self.name, kind, endpoint))
            try:
                exchange.body = await request.read()
                response = await work(exchange)
            except ConnectionCut:
                if request.transport is not None:
                    request.transport.close()
                return web.Response()  # not delivered: the connection is closed
            if _is_connected(request):
                exchange.entry["answered"] = response.status
            return response

        return web.route(method, self.prefix + path, handle)

    async def meet(self, exchange: Exchange, kind: Kind, subject: Subject) -> Fault | None:
        """Wait for the latency of this endpoint, and return the request's fault."""
        fault = self.stage.conduct.fault(self.name, kind, subject)
        if fault is not None:
            exchange.entry["fault"] = fault.name
        latency = self.stage.conduct.latency(kind, subject.key)
        if latency:
            await asyncio.sleep(latency)
        return fault

    async def spoil(self, exchange: Exchange, fault: Fault, subject: Subject) -> web.Response:
        """Apply a fault under which nothing is accepted.

        Raises:
            ConnectionCut: the fault is that no answer comes.
        """
        if fault.name in {"hang", "hang_before"}:
            await self.stage.hang(exchange.request, _LONG_TIME)
            raise ConnectionCut
        if fault.name in {"cut", "cut_before"}:
            raise ConnectionCut
        if fault.name == "scripted":
            return answer(fault.status or 418, {} if fault.body is None else fault.body)
        return spoiled_by_proxy(fault.name) or self.spoiled(fault.name, subject)


@dataclass(slots=True)
class Message:
    """A message that a client sends."""

    instance: str
    address: str  # a number, or a jid
    text: str  # as the lead will read it
    delay: float  # typing delay in seconds
    number: str = field(init=False)  # digits
    message_id: str = field(init=False)

    def __post_init__(self) -> None:
        self.number = digits_of(self.address)
        self.message_id = f"3EB0{uuid4().hex[:18].upper()}"

    @property
    def subject(self) -> Subject:
        """The properties that rules can match."""
        return Subject(f"{self.instance}\x1f{self.number}\x1f{self.text}", self.instance, self.number, self.text)


class MessageProvider(Provider):
    """A provider that sends messages. Subclasses define the answers, this class the behaviour."""

    @abstractmethod
    def sent(self, message: Message, entry: Entry) -> web.Response:
        """Answer that the message was accepted."""

    async def send(self, exchange: Exchange, message: Message) -> web.Response:
        """Accept a message, or apply its fault.

        A client that leaves in the meantime changes nothing: the message goes out all the same, as it does in reality.

        Raises:
            ConnectionCut: the fault is that no answer comes.
        """
        fault = await self.meet(exchange, Kind.SEND, message.subject)
        if fault is None:
            await self._accept_after_typing(exchange.entry, message)
            return self.sent(message, exchange.entry)
        if fault.name == "late" and fault.accepts_message:
            late = _LATE if fault.seconds is None else fault.seconds
            self.stage.do_later(late, lambda: self._accept(exchange.entry, message, fault))
            raise ConnectionCut
        if fault.accepts_message:
            await self._accept_after_typing(exchange.entry, message, fault)
        return await self._answer_spoiled(exchange, fault, message)

    async def _answer_spoiled(self, exchange: Exchange, fault: Fault, message: Message) -> web.Response:
        if fault.name in {"cut_after", "late"}:
            raise ConnectionCut
        if fault.name == "hang_after":
            await self.stage.hang(exchange.request, _LONG_TIME if fault.seconds is None else fault.seconds)
            return self.sent(message, exchange.entry)
        if fault.name == "malformed_json":
            return broken_off(self.sent(message, exchange.entry))
        return await self.spoil(exchange, fault, message.subject)

    async def _accept_after_typing(self, entry: Entry, message: Message, fault: Fault | None = None) -> None:
        if message.delay > 0:
            await asyncio.sleep(message.delay)
        self._accept(entry, message, fault)

    def _accept(self, entry: Entry, message: Message, fault: Fault | None = None) -> None:
        now = time.time()
        entry["jid"] = jid_of(message.address)
        entry["text"] = message.text
        self.stage.record.accept(entry, message.message_id, now, self.stage.conduct.saved_from(now, fault))


_JSON = {"Content-Type": "application/json; charset=utf-8"}
_HTML = {"Content-Type": "text/html"}


def answer(status: int, content: object, headers: Mapping[str, str] | None = None) -> web.Response:
    """Answer with JSON."""
    return web.Response(status=status, body=orjson.dumps(content), headers={**_JSON, **headers} if headers else _JSON)


def broken_off(response: web.Response) -> web.Response:
    """Answer with the first two thirds of a JSON body, and a matching Content-Length."""
    body = response.body
    whole = body if isinstance(body, bytes) else b"{}"
    return web.Response(status=response.status, body=whole[: max(1, len(whole) * 2 // 3)], headers=_JSON)


def spoiled_by_proxy(fault: str) -> web.Response | None:
    """Return a proxy's answer; None if the fault is the provider's own."""
    if fault == "proxy_html_502":
        return web.Response(status=502, body=PROXY_PAGE % (b"502 Bad Gateway", b"502 Bad Gateway"), headers=_HTML)
    if fault == "gateway_timeout_504":
        page = PROXY_PAGE % (b"504 Gateway Time-out", b"504 Gateway Time-out")
        return web.Response(status=504, body=page, headers=_HTML)
    if fault == "html_200":
        return web.Response(body=PROXY_PAGE % (b"Just a moment...", b"Checking your browser"), headers=_HTML)
    return None


def _is_connected(request: web.Request) -> bool:
    return request.transport is not None and not request.transport.is_closing()
