"""Servers that do on the wire exactly what a test requests, and sample answers played back over real HTTP."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from ssl import SSLContext
from typing import Any, TypeAlias

import orjson

Serve: TypeAlias = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(serve: Serve, context: SSLContext | None = None) -> AsyncIterator[str]:
    """A raw TCP server that treats each connection as `serve` says; yields its host and port."""
    connections: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await serve(reader, writer)
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


async def read_request(reader: asyncio.StreamReader) -> bytes:
    """Read one whole request."""
    head = await reader.readuntil(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
    return head + await reader.readexactly(int(lengths[0]) if lengths else 0)


def response(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    """A whole answer, after which the connection closes."""
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def answering(content: bytes) -> Serve:
    """Read a request, write these bytes, close."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(content)
        await writer.drain()

    return serve


@dataclass
class Playback:
    """Gives one answer after the other, whatever is requested, and records the requests."""

    answers: Iterator[bytes]
    requests: list[tuple[str, Any]] = field(default_factory=list)  # request line, JSON body

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        head, _, body = (await read_request(reader)).partition(b"\r\n\r\n")
        self.requests.append((head.split(b" HTTP/")[0].decode(), orjson.loads(body) if body else None))
        writer.write(next(self.answers))
        await writer.drain()


def playback(*bodies: object, status: str = "200 OK") -> Playback:
    """Play these JSON bodies, one per request."""
    return Playback(response(orjson.dumps(body), status=status) for body in bodies)


def samples(file: str) -> Sequence[Mapping[str, Any]]:
    """Return the sample answers of a provider, each with the expected class."""
    rows: list[dict[str, Any]] = orjson.loads((Path(__file__).parent / "answers" / file).read_bytes())
    return rows


def played(sample: Mapping[str, Any]) -> Playback:
    """One sample as an answer."""
    body = sample["text"].encode() if "text" in sample else orjson.dumps(sample["body"])
    headers = [f"{name}: {value}" for name, value in sample.get("headers", {}).items()]
    return Playback(iter([response(body, *headers, status=f"{sample['status']} As It Is")]))


def differences(outcome: object, expected: Mapping[str, Any]) -> dict[str, tuple[object, object]]:
    """Return the fields of an outcome that differ from a sample: name -> (actual, expected)."""
    renamed = {"tokens": "total_tokens", "id": "provider_message_id"}
    wrong: dict[str, tuple[object, object]] = {}
    if type(outcome).__name__.lower() != expected["outcome"]:
        wrong["outcome"] = (outcome, expected["outcome"])
    for name, value in expected.items():
        if name in {"outcome", "reason_lacks"}:
            continue
        got = getattr(outcome, renamed.get(name, name), "no such field")
        close = isinstance(value, float) and isinstance(got, float) and abs(got - value) < 1e-12
        if got != value and not close:
            wrong[name] = (got, value)
    return wrong
