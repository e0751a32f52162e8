"""Proxies in front of the database server: one counts round trips on the wire, one simulates a distant server.

A client waits for the server only after each Query and each Sync message, so these are the round trips, including
transactions, pool checks and empty queries, whatever a driver reports.
"""

import asyncio
import contextlib
import threading
from pathlib import Path
from types import TracebackType
from typing import TypeVar
from urllib.parse import parse_qs, quote, urlencode, urlsplit, urlunsplit

_WAITS = frozenset(b"QS")  # Query, Sync
_SOCKET = ".s.PGSQL.5432"

P = TypeVar("P", bound="Proxy")


class Proxy:
    """A Unix socket in `folder` in front of the server of `url`; a context manager."""

    def __init__(self, url: str, folder: Path) -> None:
        parts = urlsplit(url)
        (host,) = parse_qs(parts.query)["host"]
        self._server_socket = str(Path(host, _SOCKET))
        self._folder = folder
        self.url = urlunsplit(parts._replace(query=urlencode({"host": str(folder)}, quote_via=quote)))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self: P) -> P:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        listening = asyncio.start_unix_server(self._serve, str(self._folder / _SOCKET))
        self._listener = asyncio.run_coroutine_threadsafe(listening, self._loop).result(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        (self._folder / _SOCKET).unlink(missing_ok=True)

    async def _close(self) -> None:
        self._listener.close()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        server, to_server = await asyncio.open_unix_connection(self._server_socket)
        back = asyncio.create_task(self._copy_answers(server, to_client))
        try:
            await self._copy_requests(client, to_server)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has disconnected
        finally:
            to_server.close()
            back.cancel()
            to_client.close()

    async def _copy_requests(self, client: asyncio.StreamReader, to_server: asyncio.StreamWriter) -> None:
        await _copy(client, to_server)

    async def _copy_answers(self, server: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        await _copy(server, to_client)


class CountingProxy(Proxy):
    """Counts round trips."""

    def __init__(self, url: str, folder: Path) -> None:
        super().__init__(url, folder)
        self.round_trips = 0

    async def _copy_requests(self, client: asyncio.StreamReader, to_server: asyncio.StreamWriter) -> None:
        # Only the start-up message has no type before its length.
        head = await client.readexactly(4)
        to_server.write(head + await client.readexactly(int.from_bytes(head, "big") - 4))
        while True:
            head = await client.readexactly(5)
            self.round_trips += head[0] in _WAITS
            to_server.write(head + await client.readexactly(int.from_bytes(head[1:], "big") - 4))
            await to_server.drain()


class DistantProxy(Proxy):
    """Simulates a distant server: each answer takes so many seconds longer."""

    def __init__(self, url: str, folder: Path, round_trip_seconds: float) -> None:
        super().__init__(url, folder)
        self._one_way = round_trip_seconds / 2

    async def _copy_requests(self, client: asyncio.StreamReader, to_server: asyncio.StreamWriter) -> None:
        await self._copy_slowly(client, to_server)

    async def _copy_answers(self, server: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        await self._copy_slowly(server, to_client)

    async def _copy_slowly(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        on_its_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        arriving = asyncio.create_task(self._arrive(on_its_way, target))
        try:
            while piece := await source.read(2**16):
                on_its_way.put_nowait((self._loop.time() + self._one_way, piece))
            on_its_way.put_nowait((self._loop.time() + self._one_way, b""))
            await arriving
        finally:
            arriving.cancel()

    async def _arrive(self, on_its_way: "asyncio.Queue[tuple[float, bytes]]", target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                at, piece = await on_its_way.get()
                await asyncio.sleep(max(0.0, at - self._loop.time()))
                if not piece:
                    break
                target.write(piece)
                await target.drain()
        target.close()


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while piece := await source.read(2**16):
            target.write(piece)
            await target.drain()
    target.close()
