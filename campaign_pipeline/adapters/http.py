"""HTTP for all providers: one fast client, one answer to "did the request leave?", and no key in any text.

httpx is the interface. Its own transport slows down with the number of requests in flight, so aiohttp's carries them;
and requests go to the transport directly, since redirects and cookies, which a client adds, are nothing that a provider
may ask of us (a worker's processor time for a message fell from 1.75 to 1.25 ms by this and by bodies that are redacted
only when they are shown).

That transport maps aiohttp's errors loosely: a server that hangs up after it took the request comes out as
`httpx.ConnectTimeout`. Whether something left is therefore read from the error beneath, never from httpx's.
"""

import asyncio
import re
import ssl
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import lru_cache
from itertools import islice
from typing import Any

import aiohttp
import httpx
import orjson
from aiohttp.abc import AbstractStreamWriter
from httpx_aiohttp import AiohttpTransport

from campaign_pipeline.adapters.hosts import GuardedConnector, HostRefused, Hosts
from campaign_pipeline.adapters.redaction import MAX_KEPT_CHARS, SHORTEST_SECRET, hide, redact, redact_people
from campaign_pipeline.core.ports import always

MAX_ANSWER_BYTES = 2**20
"""Of one answer, compressed and not. Providers answer with some hundred bytes; a search may ask for more."""

MAX_DEPTH = 64
"""Of lists and objects within each other; Python's own limits are not far beyond."""

MAX_RETRY_AFTER_SECONDS = 3600.0

# Raised before any byte of the request is written: no connection, so nothing left.
_NOTHING_LEFT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL)

_ERROR_FIELDS = frozenset(
    {
        *("code", "detail", "details", "error", "error_code", "error_data", "error_subcode", "errors", "exists"),
        *("message", "messages", "metadata", "reason", "response", "status", "statusCode", "success", "title", "type"),
    }
)
"""Fields whose values tell what went wrong: of an answer that no table knows, only these are kept."""

_MOST_FIELDS, _DEEPEST_FIELD, _MOST_LOOKED_AT, _MOST_WORDS = 12, 4, 50, 200

_HEADERS = {"User-Agent": "campaign_pipeline", "Accept": "application/json", "Accept-Encoding": "gzip"}
_SECRET_HEADERS = frozenset({"authorization", "apikey", "token", "admintoken", "x-service-role-key"})


def http_client(*, connections: int, hosts: Hosts | None = None) -> httpx.AsyncBaseTransport:
    """What carries the requests of one process to the hosts that may be reached. Close it when done.

    `hosts`: as the environment says, if None. Raises SettingError where it cannot be read.

    Idle connections are dropped after 3 seconds: servers on Node.js (Evolution) close theirs after 5, and a request
    that meets such a closing connection ends as unknown for no good reason.
    """
    reachable = Hosts.from_environment() if hosts is None else hosts

    def session() -> aiohttp.ClientSession:
        connector = GuardedConnector(reachable, limit=connections, keepalive_timeout=3.0)
        return aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), request_class=_GatedRequest
        )

    # Its own context for TLS is not used beside a session, and would read all certificates for nothing.
    return AiohttpTransport(verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), client=session)


@dataclass(frozen=True)
class Answer:
    """A provider answered, with whatever status."""

    status: int
    body: Any  # parsed JSON; None where the body is none
    raw: bytes = field(repr=False)  # without our keys
    retry_after: float | None  # seconds

    @property
    def text(self) -> str:
        """The body as a text to show: cut, and without what looks like a key. Only failures need it."""
        return redact(self.raw[: 4 * MAX_KEPT_CHARS].decode("utf-8", "replace"))

    @property
    def evidence(self) -> dict[str, Any]:
        """What is needed to add a row for this answer to a table, and nothing else of it.

        Names and texts of the fields that tell of errors; of a page or a text its first words. The rest may be
        anybody's: a row of the CRM says who is asked.
        """
        if self.body is None:
            words = re.sub(r"<[^>]{0,200}>", " ", self.raw[: 4 * MAX_KEPT_CHARS].decode("utf-8", "replace"))
            return {"text": redact_people(" ".join(words.split()))[:_MOST_WORDS]}
        return dict(islice(_error_fields(self.body), _MOST_FIELDS))


@dataclass(frozen=True)
class NoAnswer:
    """No answer came that could be read."""

    left: bool  # whether the request may have reached the provider
    reason: str
    refused: bool = False  # whether the address may not be reached at all: no time mends that, only a person


class _Gate:
    """Asks at the last instant whether a request may be written."""

    def __init__(self, may_leave: Callable[[], bool]) -> None:
        self._may_leave = may_leave
        self.closed = False

    def opens(self) -> bool:
        self.closed = not self._may_leave()
        return not self.closed


_GATE: ContextVar[_Gate | None] = ContextVar("gate", default=None)
"""Of the request that this task makes: aiohttp passes nothing of ours on to where it writes."""


class _GatedRequest(aiohttp.ClientRequest):
    """A request whose gate is asked where its head and body are about to be written, in one piece."""

    async def write_bytes(
        self, writer: AbstractStreamWriter, conn: aiohttp.connector.Connection, content_length: int | None = None
    ) -> None:
        gate, protocol = _GATE.get(), conn.protocol
        if gate is not None and protocol is not None and not gate.opens():
            protocol.set_exception(aiohttp.ClientConnectionError("It was too late to write the request."))
            return
        await super().write_bytes(writer, conn, content_length)


class _Unreadable(Exception):
    """An answer that is larger, deeper or otherwise than it may be; the text says how."""


async def post(
    client: httpx.AsyncBaseTransport,
    url: str,
    body: Mapping[str, Any],
    headers: Mapping[str, str],
    timeout: float,
    max_bytes: int = MAX_ANSWER_BYTES,
    may_leave: Callable[[], bool] = always,
) -> Answer | NoAnswer:
    """POST some JSON. The body is serialised deterministically. Never raises for what the network does.

    `may_leave` is asked at the last instant before the request is written; where it says no, nothing is.

    `timeout`: seconds for the whole answer, beyond those for the connection.
    """
    content = orjson.dumps(body)
    sent = {**headers, "Content-Type": "application/json"}
    gate = _Gate(may_leave)
    token = _GATE.set(gate)
    try:
        answer = await _request(client, "POST", url, sent, timeout, content, max_bytes)
    finally:
        _GATE.reset(token)
    if gate.closed and isinstance(answer, NoAnswer):
        return NoAnswer(left=False, reason="It was too late to make the request, so nothing of it was written.")
    return answer


async def get(
    client: httpx.AsyncBaseTransport, url: str, headers: Mapping[str, str], timeout: float
) -> Answer | NoAnswer:
    """GET. Never raises for what the network does."""
    return await _request(client, "GET", url, headers, timeout, None, MAX_ANSWER_BYTES)


async def _request(
    client: httpx.AsyncBaseTransport,
    method: str,
    url: str,
    headers: Mapping[str, str],
    timeout: float,
    content: bytes | None,
    max_bytes: int,
) -> Answer | NoAnswer:
    secrets = _secrets(headers)
    if secrets is None:
        # Found here and not by the client, whose error would quote the header.
        return NoAnswer(left=False, reason="A key has characters that no HTTP header can bear.")
    connect = min(10.0, timeout)
    try:
        request = httpx.Request(
            method,
            _parsed(url),
            headers={**_HEADERS, **headers},
            content=content,
            extensions={"timeout": {"connect": connect, "read": timeout, "write": timeout, "pool": None}},
        )
    except (httpx.InvalidURL, ValueError) as error:
        return NoAnswer(left=False, reason=f"{redact(url)} is no usable URL: {redact(str(error))}.")
    try:
        # The transport's own limit is for each piece of an answer; one that comes in drops must end too.
        response, raw = await asyncio.wait_for(_exchange(client, request, max_bytes), connect + timeout)
        raw = hide(raw, secrets)  # here, once: no body that quotes our key goes any further
        body = parse_json(raw)
    except _Unreadable as error:
        return NoAnswer(left=True, reason=f"{_host(request)} answered {method} with {error}.")
    except (httpx.HTTPError, aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        return _no_answer(error, request, timeout)
    return Answer(response.status_code, body, raw, _retry_after(response))


@lru_cache(maxsize=1024)
def _parsed(url: str) -> httpx.URL:
    """The URL; reading one takes longer than all else that we do for a request. Raises ValueError."""
    parsed = httpx.URL(url)
    if parsed.userinfo:  # it would be sent as credentials that no setting names
        raise ValueError("it has a user or password")
    return parsed


async def _exchange(
    client: httpx.AsyncBaseTransport, request: httpx.Request, max_bytes: int
) -> tuple[httpx.Response, bytes]:
    response = await client.handle_async_request(request)
    try:
        return response, await _read_body(response, max_bytes)
    finally:
        await response.aclose()


async def _read_body(response: httpx.Response, most: int) -> bytes:
    """The body, inflated piece by piece, so that it never takes more than `most` bytes, whatever it claims to be.

    Raises _Unreadable.
    """
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in {"", "identity", "gzip", "x-gzip", "deflate"}:
        raise _Unreadable(f"a body in the encoding {redact(encoding)!r}, which it was not asked for")
    inflate = None if encoding in {"", "identity"} else zlib.decompressobj(32 + zlib.MAX_WBITS)
    pieces, size, taken = [], 0, 0
    async for piece in response.aiter_raw():
        taken += len(piece)
        try:
            plain = piece if inflate is None else inflate.decompress(piece, most + 1 - size)
        except zlib.error:
            raise _Unreadable(f"a body that is not {encoding}, as it says") from None
        size += len(plain)
        if max(size, taken) > most:
            raise _Unreadable(f"more than {most:,} bytes")
        pieces.append(plain)
    if inflate is not None and taken and not inflate.eof:
        raise _Unreadable("half of a compressed body")
    return b"".join(pieces)


def _secrets(headers: Mapping[str, str]) -> list[bytes] | None:
    """The keys that a request bears; None where a header cannot be sent at all."""
    if not all(value.isascii() and value.isprintable() for value in headers.values()):
        return None
    keys = (value.split(" ")[-1] for name, value in headers.items() if name.lower() in _SECRET_HEADERS)
    return [key.encode() for key in keys if len(key) >= SHORTEST_SECRET]


def _no_answer(error: Exception, request: httpx.Request, timeout: float) -> NoAnswer:
    refused = next((cause for cause in _causes(error) if isinstance(cause, HostRefused)), None)
    if refused is not None:
        return NoAnswer(left=False, reason=f"{refused}.", refused=True)
    beneath = error.__cause__ if isinstance(error.__cause__, Exception) else error
    host = _host(request)
    detail = redact(str(beneath)) or type(beneath).__name__
    if isinstance(error, httpx.UnsupportedProtocol) or isinstance(beneath, _NOTHING_LEFT):
        return NoAnswer(left=False, reason=f"{host} cannot be reached: {detail}.")
    if isinstance(beneath, (TimeoutError, asyncio.TimeoutError)):
        return NoAnswer(left=True, reason=f"{host} did not answer {request.method} within {timeout:g} seconds.")
    return NoAnswer(left=True, reason=f"The connection to {host} was lost after {request.method} was sent: {detail}.")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _host(request: httpx.Request) -> str:
    return request.url.netloc.decode("ascii", "replace")


def parse_json(raw: bytes) -> Any:
    """The body as JSON, or None where it is none (a proxy's page, half an answer).

    Raises _Unreadable where it is nested deeper than MAX_DEPTH: walking through it would exhaust the stack.
    """
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    if isinstance(body, dict | list) and raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and _is_deep(body):
        raise _Unreadable(f"JSON that is nested more than {MAX_DEPTH} deep")
    return body


def _is_deep(body: Any) -> bool:
    level = [body]
    for _ in range(MAX_DEPTH):
        inside = (each.values() if isinstance(each, dict) else each for each in level)
        level = [inner for each in inside for inner in each if isinstance(inner, dict | list)]
        if not level:
            return False
    return True


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds to wait, from Retry-After (seconds or a date), capped."""
    value = response.headers.get("retry-after", "").strip()
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            at = parsedate_to_datetime(value)
            # Against the server's own Date: this machine's clock may be an hour off.
            now = parsedate_to_datetime(response.headers["date"])
            seconds = (at - now).total_seconds()
        except (KeyError, TypeError, ValueError, OverflowError):
            return None
    return min(max(0.0, seconds), MAX_RETRY_AFTER_SECONDS)


def _error_fields(body: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Path and value of each field that tells of an error, the outer ones first."""
    inside = body.items() if isinstance(body, dict) else enumerate(body) if isinstance(body, list) else ()
    for name, value in islice(inside, _MOST_LOOKED_AT):
        place = f"{path}.{name}" if path else str(name)
        if isinstance(value, dict | list):
            if path.count(".") < _DEEPEST_FIELD and (isinstance(name, int) or name in _ERROR_FIELDS):
                yield from _error_fields(value, place)
        elif isinstance(value, bool | int | float) and name in _ERROR_FIELDS:
            yield place, value
        elif isinstance(value, str) and (isinstance(name, int) or name in _ERROR_FIELDS):
            yield place, redact_people(value)[:_MOST_WORDS]


def text_at(body: Any, *path: str | int) -> str | None:
    """The text at a path of a JSON body; None where there is none, or an empty one."""
    text = at(body, *path)
    return text if isinstance(text, str) and text else None


def at(body: Any, *path: str | int) -> Any:
    """What lies at a path of a JSON body, None where it does not lie there: bodies from outside have any shape."""
    for step in path:
        if isinstance(step, int):
            body = body[step] if isinstance(body, list) and len(body) > step else None
        else:
            body = body.get(step) if isinstance(body, dict) else None
    return body
