"""HTTP for all providers: one fast client, one answer to "did the request leave?", and no key in any text.

httpx is the interface. Its own transport slows down with the number of requests in flight, so an aiohttp session
carries them. Requests go to the transport directly, because no provider may set cookies or redirect us, which a client
would handle.

The transport is ours for two reasons. Whether a request left is read from aiohttp's error; the published one
(httpx-aiohttp) maps these loosely: a server that closes the connection after it received the request appears as
`httpx.ConnectTimeout`. And a request takes 99 microseconds of processor time instead of 140 (a bare aiohttp session:
58).
"""

import asyncio
import re
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import lru_cache
from itertools import islice
from typing import Any

import aiohttp
import httpx
import orjson
import yarl
from aiohttp.abc import AbstractStreamWriter

from campaign_pipeline.adapters.hosts import GuardedConnector, HostRefused, Hosts
from campaign_pipeline.adapters.redaction import MAX_KEPT_CHARS, SHORTEST_SECRET, hide, redact, redact_people
from campaign_pipeline.core.ports import always

MAX_ANSWER_BYTES = 2**20
"""Of one answer, compressed and not. Answers usually have a few hundred bytes; a search may allow more."""

MAX_DEPTH = 64
"""Of nested lists and objects; Python's own limits are not far beyond."""

MAX_RETRY_AFTER_SECONDS = 3600.0

# Raised before any byte of the request is written: there is no connection, so nothing left.
_NOTHING_LEFT = (
    aiohttp.ClientConnectorError,
    aiohttp.ConnectionTimeoutError,
    aiohttp.InvalidURL,
    aiohttp.NonHttpUrlClientError,
)

_ERROR_FIELDS = frozenset(
    {
        *("code", "detail", "details", "error", "error_code", "error_data", "error_subcode", "errors", "exists"),
        *("message", "messages", "metadata", "reason", "response", "status", "statusCode", "success", "title", "type"),
    }
)
"""Fields whose values describe an error: of an unrecognised answer, only these are kept."""

_MOST_FIELDS, _DEEPEST_FIELD, _MOST_LOOKED_AT, _MOST_WORDS = 12, 4, 50, 200

_HEADERS = {"User-Agent": "campaign_pipeline", "Accept": "application/json", "Accept-Encoding": "gzip"}
_SECRET_HEADERS = frozenset({"authorization", "apikey", "token", "admintoken", "x-service-role-key"})


def http_client(*, connections: int, hosts: Hosts | None = None) -> httpx.AsyncBaseTransport:
    """Create the transport of one process's requests to allowed hosts. Close it when done.

    `hosts`: from the environment if None. Raises SettingError if that is invalid.

    Idle connections are dropped after 3 seconds: servers on Node.js (Evolution) close theirs after 5, and a request
    on a closing connection would needlessly end as unknown.
    """
    return _Transport(connections, Hosts.from_environment() if hosts is None else hosts)


class _Transport(httpx.AsyncBaseTransport):
    """Carries httpx's requests over one aiohttp session. Raises aiohttp's errors."""

    def __init__(self, connections: int, hosts: Hosts) -> None:
        self._connections = connections
        self._hosts = hosts
        self._session: aiohttp.ClientSession | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Make one request; redirects, cookies and compression are left to the caller."""
        if self._session is None:  # it belongs to the running event loop
            self._session = aiohttp.ClientSession(
                connector=GuardedConnector(self._hosts, limit=self._connections, keepalive_timeout=3.0),
                cookie_jar=aiohttp.DummyCookieJar(),
                request_class=_GatedRequest,
                auto_decompress=False,
            )
        assert isinstance(request.stream, httpx.ByteStream)  # all of it is there: nothing is streamed
        response = await self._session.request(
            request.method,
            _yarl(str(request.url)),
            headers=[(name.decode("ascii"), value.decode("ascii")) for name, value in request.headers.raw],
            data=b"".join(request.stream) or None,
            allow_redirects=False,
            timeout=request.extensions["timeout"],
        )
        return httpx.Response(response.status, headers=response.raw_headers, stream=_Body(response), request=request)

    async def aclose(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()


class _Body(httpx.AsyncByteStream):
    """The body of one answer."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._response.content.iter_any()

    async def aclose(self) -> None:
        """Give the connection back, or drop it if the body was not read whole."""
        self._response.release()
        await self._response.wait_for_close()


@dataclass(frozen=True)
class Answer:
    """A provider's answer, with any status."""

    status: int
    body: Any  # parsed JSON; None if the body is not JSON
    raw: bytes = field(repr=False)  # without our keys
    retry_after: float | None  # seconds

    @property
    def text(self) -> str:
        """Return the body as displayable text: cut, and without what looks like a key. Only failures need it."""
        return redact(self.raw[: 4 * MAX_KEPT_CHARS].decode("utf-8", "replace"))

    @property
    def evidence(self) -> dict[str, Any]:
        """Return what is needed to add a row for this answer to a table, and nothing else.

        These are the names and texts of error fields or, of a page or a text, its first words. The rest may contain any
        data, because a row of the CRM determines who is asked.
        """
        if self.body is None:
            words = re.sub(r"<[^>]{0,200}>", " ", self.raw[: 4 * MAX_KEPT_CHARS].decode("utf-8", "replace"))
            return {"text": redact_people(" ".join(words.split()))[:_MOST_WORDS]}
        return dict(islice(_error_fields(self.body), _MOST_FIELDS))


@dataclass(frozen=True)
class NoAnswer:
    """No readable answer came."""

    may_have_left: bool  # whether the request may have reached the provider
    reason: str
    refused: bool = False  # whether the address is forbidden: time does not help, only a person


class _Gate:
    """Checks at the last instant whether a request may be written."""

    def __init__(self, may_leave: Callable[[], bool]) -> None:
        self._may_leave = may_leave
        self.closed = False

    def opens(self) -> bool:
        self.closed = not self._may_leave()
        return not self.closed


_GATE: ContextVar[_Gate | None] = ContextVar("gate", default=None)
"""Of this task's request: aiohttp offers no other way to pass it to where the request is written."""


class _GatedRequest(aiohttp.ClientRequest):
    """A request whose gate is checked when its head and body are about to be written, in one piece."""

    async def write_bytes(
        self, writer: AbstractStreamWriter, conn: aiohttp.connector.Connection, content_length: int | None = None
    ) -> None:
        gate, protocol = _GATE.get(), conn.protocol
        if gate is not None and protocol is not None and not gate.opens():
            protocol.set_exception(aiohttp.ClientConnectionError("It was too late to write the request."))
            return
        await super().write_bytes(writer, conn, content_length)


class _Unreadable(Exception):
    """An answer that is too large, too deep or otherwise invalid; the message says how."""


async def post(
    client: httpx.AsyncBaseTransport,
    url: str,
    body: Mapping[str, Any],
    headers: Mapping[str, str],
    timeout: float,
    max_bytes: int = MAX_ANSWER_BYTES,
    may_leave: Callable[[], bool] = always,
) -> Answer | NoAnswer:
    """POST some JSON, serialised deterministically. Never raises for network failures.

    `may_leave` is called at the last instant before the request is written; if it returns False, nothing is written.

    `timeout`: seconds for the whole answer, in addition to those for the connection.
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
        return NoAnswer(
            may_have_left=False, reason="It was too late to make the request, so nothing of it was written."
        )
    return answer


async def get(
    client: httpx.AsyncBaseTransport, url: str, headers: Mapping[str, str], timeout: float
) -> Answer | NoAnswer:
    """GET. Never raises for network failures."""
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
        # Checked here and not by the client, whose error would quote the header.
        return NoAnswer(may_have_left=False, reason="A key has characters that no HTTP header can bear.")
    connect = min(10.0, timeout)
    try:
        request = httpx.Request(
            method,
            _parsed(url),
            headers={**_HEADERS, **headers},
            stream=httpx.ByteStream(content or b""),
            extensions={"timeout": _timeout(connect, timeout)},
        )
    except (httpx.InvalidURL, ValueError) as error:
        return NoAnswer(may_have_left=False, reason=f"{redact(url)} is no usable URL: {redact(str(error))}.")
    try:
        # The transport's own limit applies to each piece of an answer; a trickling answer must end too.
        async with asyncio.timeout(connect + timeout):
            response, raw = await _exchange(client, request, max_bytes)
        raw = hide(raw, secrets)  # once, here: no body that quotes our key goes any further
        body = parse_json(raw)
    except _Unreadable as error:
        return NoAnswer(may_have_left=True, reason=f"{_host(request)} answered {method} with {error}.")
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        return _no_answer(error, request, timeout)
    return Answer(response.status_code, body, raw, _retry_after(response))


@lru_cache(maxsize=1024)
def _yarl(url: str) -> yarl.URL:
    return yarl.URL(url)


@lru_cache(maxsize=1024)
def _timeout(connect: float, read: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(sock_connect=connect, sock_read=read)


@lru_cache(maxsize=1024)
def _parsed(url: str) -> httpx.URL:
    """Parse the URL; that takes longer than the rest of our work for a request. Raises ValueError."""
    parsed = httpx.URL(url)
    if parsed.userinfo:  # it would be sent as credentials that no setting names
        raise ValueError("it has a user or password")
    _yarl(str(parsed))  # aiohttp's own form of it, which has further conditions
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
    """Read the body, inflating it piece by piece, so that it never takes more than `most` bytes.

    Raises _Unreadable.
    """
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in {"", "identity", "gzip", "x-gzip", "deflate"}:
        raise _Unreadable(f"a body in the encoding {redact(encoding)!r}, which it was not asked for")
    inflate = None if encoding in {"", "identity"} else zlib.decompressobj(32 + zlib.MAX_WBITS)
    pieces, size, taken = [], 0, 0
    assert isinstance(response.stream, httpx.AsyncByteStream)
    async for piece in response.stream:
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
    """Return the keys in a request; None if a header cannot be sent."""
    if not all(value.isascii() and value.isprintable() for value in headers.values()):
        return None
    keys = (value.split(" ")[-1] for name, value in headers.items() if name.lower() in _SECRET_HEADERS)
    return [key.encode() for key in keys if len(key) >= SHORTEST_SECRET]


def _no_answer(error: Exception, request: httpx.Request, timeout: float) -> NoAnswer:
    refused = next((cause for cause in _causes(error) if isinstance(cause, HostRefused)), None)
    if refused is not None:
        return NoAnswer(may_have_left=False, reason=f"{refused}.", refused=True)
    host = _host(request)
    detail = redact(str(error)) or type(error).__name__
    if isinstance(error, _NOTHING_LEFT):
        return NoAnswer(may_have_left=False, reason=f"{host} cannot be reached: {detail}.")
    if isinstance(error, TimeoutError):
        return NoAnswer(
            may_have_left=True, reason=f"{host} did not answer {request.method} within {timeout:g} seconds."
        )
    return NoAnswer(
        may_have_left=True, reason=f"The connection to {host} was lost after {request.method} was sent: {detail}."
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _host(request: httpx.Request) -> str:
    return request.url.netloc.decode("ascii", "replace")


def parse_json(raw: bytes) -> Any:
    """Parse the body as JSON; None if it is none (a proxy's page, a truncated answer).

    Raises _Unreadable if it is nested deeper than MAX_DEPTH, because traversing it would exhaust the stack.
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
    """Return the seconds to wait, from Retry-After (seconds or a date), capped."""
    value = response.headers.get("retry-after", "").strip()
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            at = parsedate_to_datetime(value)
            # Relative to the server's own Date: this machine's clock may be an hour off.
            now = parsedate_to_datetime(response.headers["date"])
            seconds = (at - now).total_seconds()
        except (KeyError, TypeError, ValueError, OverflowError):
            return None
    return min(max(0.0, seconds), MAX_RETRY_AFTER_SECONDS)


def _error_fields(body: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield path and value of each field that describes an error, the outer ones first."""
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
    """Return the text at a path of a JSON body; None if there is none, or an empty one."""
    text = at(body, *path)
    return text if isinstance(text, str) and text else None


def at(body: Any, *path: str | int) -> Any:
    """Return the value at a path of a JSON body; None if it is missing: bodies from outside may have any shape."""
    for step in path:
        if isinstance(step, int):
            body = body[step] if isinstance(body, list) and len(body) > step else None
        else:
            body = body.get(step) if isinstance(body, dict) else None
    return body
