"""HTTP for all providers: one fast client, one answer to "did the request leave?", and no key in any text.

httpx is the interface. Its own transport slows down with the number of requests in flight, so aiohttp's carries them;
and requests go to the transport directly, since redirects and cookies, which a client adds, are nothing that a provider
may ask of us (a worker's processor time for a message fell from 1.75 to 1.25 ms by this and by bodies that are redacted
only when they are shown).

That transport maps aiohttp's errors loosely: a server that hangs up after it took the request comes out as
`httpx.ConnectTimeout`. Whether something left is therefore read from the error beneath, never from httpx's.
"""

import asyncio
import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any

import aiohttp
import httpx
import orjson
from httpx_aiohttp import AiohttpTransport

MAX_RETRY_AFTER_SECONDS = 3600.0
MAX_KEPT_CHARS = 500

# Raised before any byte of the request is written: no connection, so nothing left.
_NOTHING_LEFT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL)

# What looks like a key where one has no business to be: in a URL's user part, after Bearer, in a query, or as a
# well-known prefix.
_KEY = re.compile(
    r"(?i)(://)[^\s/@]+(?=@)|(bearer\s+|"
    r"(?:api[_-]?key|token|secret|password|authorization)[\"']?\s*[:=]\s*[\"']?(?:bearer\s+)?)[^\s\"',;&]+|sk-[\w-]{8,}"
)
_HEADERS = {"User-Agent": "campaign_pipeline", "Accept": "application/json"}
_SECRET_HEADERS = frozenset({"authorization", "apikey", "token", "admintoken", "x-service-role-key"})
_SHORTEST_SECRET = 6  # characters; anything shorter would blot out innocent words
_PHONE = re.compile(r"\d{8,}")


def http_client(*, connections: int) -> httpx.AsyncBaseTransport:
    """What carries the requests of one process. Close it when done.

    Idle connections are dropped after 3 seconds: servers on Node.js (Evolution) close theirs after 5, and a request
    that meets such a closing connection ends as unknown for no good reason.
    """

    def session() -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(limit=connections, keepalive_timeout=3.0)
        return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())

    return AiohttpTransport(client=session)


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


@dataclass(frozen=True)
class NoAnswer:
    """No answer came. `left`: the request may have reached the provider."""

    left: bool
    reason: str


async def post(
    client: httpx.AsyncBaseTransport,
    url: str,
    body: Mapping[str, Any],
    headers: Mapping[str, str],
    timeout: float,
) -> Answer | NoAnswer:
    """POST some JSON. The body is serialised deterministically. Never raises for what the network does."""
    content = orjson.dumps(body)
    return await _request(client, "POST", url, {**headers, "Content-Type": "application/json"}, timeout, content)


async def get(
    client: httpx.AsyncBaseTransport, url: str, headers: Mapping[str, str], timeout: float
) -> Answer | NoAnswer:
    """GET. Never raises for what the network does."""
    return await _request(client, "GET", url, headers, timeout, None)


async def _request(
    client: httpx.AsyncBaseTransport,
    method: str,
    url: str,
    headers: Mapping[str, str],
    timeout: float,
    content: bytes | None,
) -> Answer | NoAnswer:
    secrets = _secrets(headers)
    if secrets is None:
        # Found here and not by the client, whose error would quote the header.
        return NoAnswer(left=False, reason="A key has characters that no HTTP header can bear.")
    connect = min(10.0, timeout)
    try:
        place, auth = _place(url)
        request = httpx.Request(
            method,
            place,
            headers={**_HEADERS, **headers, **auth},
            content=content,
            extensions={"timeout": {"connect": connect, "read": timeout, "write": timeout, "pool": None}},
        )
    except (httpx.InvalidURL, ValueError) as error:
        return NoAnswer(left=False, reason=f"{redact(url)} is no usable URL: {redact(str(error))}.")
    try:
        # The transport's own limit is for each piece of an answer; one that comes in drops must end too.
        response = await asyncio.wait_for(_exchange(client, request), connect + timeout)
    except (httpx.HTTPError, aiohttp.ClientError, TimeoutError, asyncio.TimeoutError, OSError, ValueError) as error:
        return _no_answer(error, request, timeout)
    raw = response.content
    for secret in secrets:
        raw = raw.replace(secret, b"***")  # here, once: no body that quotes our key goes any further
    return Answer(response.status_code, parse_json(raw), raw, _retry_after(response))


async def _exchange(client: httpx.AsyncBaseTransport, request: httpx.Request) -> httpx.Response:
    response = await client.handle_async_request(request)
    try:
        await response.aread()
    finally:
        await response.aclose()
    return response


@lru_cache(maxsize=1024)
def _place(url: str) -> tuple[httpx.URL, dict[str, str]]:
    """The URL without its user, who is that of a proxy in front of the provider: aiohttp wants them as a header."""
    place = httpx.URL(url)
    if not place.userinfo:
        return place, {}
    user = base64.b64encode(f"{place.username}:{place.password}".encode()).decode()
    return place.copy_with(username="", password=""), {"Authorization": f"Basic {user}"}


def _secrets(headers: Mapping[str, str]) -> list[bytes] | None:
    """The keys that a request bears; None where a header cannot be sent at all."""
    if not all(value.isascii() and value.isprintable() for value in headers.values()):
        return None
    keys = (value.split(" ")[-1] for name, value in headers.items() if name.lower() in _SECRET_HEADERS)
    return [key.encode() for key in keys if len(key) >= _SHORTEST_SECRET]


def _no_answer(error: Exception, request: httpx.Request, timeout: float) -> NoAnswer:
    beneath = error.__cause__ if isinstance(error.__cause__, Exception) else error
    host = request.url.netloc.decode("ascii", "replace")
    detail = redact(str(beneath)) or type(beneath).__name__
    if isinstance(error, httpx.UnsupportedProtocol) or isinstance(beneath, _NOTHING_LEFT):
        return NoAnswer(left=False, reason=f"{host} cannot be reached: {detail}.")
    if isinstance(beneath, (TimeoutError, asyncio.TimeoutError)):
        return NoAnswer(left=True, reason=f"{host} did not answer {request.method} within {timeout:g} seconds.")
    return NoAnswer(left=True, reason=f"The connection to {host} was lost after {request.method} was sent: {detail}.")


def parse_json(raw: bytes) -> Any:
    """The body as JSON, or None where it is none (a proxy's page, half an answer)."""
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None


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


def redact(text: str) -> str:
    """Cut a text from outside and take out what looks like a key, and characters that no log can hold."""
    clean = "".join(char if char.isprintable() else " " for char in text)
    return _KEY.sub(lambda found: f"{found[1] or found[2] or ''}***", clean)[:MAX_KEPT_CHARS].strip()


def redact_phones(text: str) -> str:
    """Take out long numbers too, for texts that people read: reasons, logs."""
    return _PHONE.sub(lambda found: f"{found[0][:4]}***", redact(text))


def at(body: Any, *path: str | int) -> Any:
    """What lies at a path of a JSON body, None where it does not lie there: bodies from outside have any shape."""
    for step in path:
        if isinstance(step, int):
            body = body[step] if isinstance(body, list) and len(body) > step else None
        else:
            body = body.get(step) if isinstance(body, dict) else None
    return body
