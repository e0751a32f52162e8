"""A misbehaving server in its own process, so that its memory does not count as the client's."""

import asyncio
import gzip
import sys
import zlib
from collections.abc import Callable, Iterator
from itertools import repeat

MIB = 2**20


def gzip_bomb() -> bytes:
    """300 MiB of blanks, in 300 KiB."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    blanks = b" " * MIB
    return b"".join([*(packer.compress(blanks) for _ in range(300)), packer.flush()])


def endless(head: bytes, piece: bytes) -> Iterator[bytes]:
    """The same piece repeatedly, up to 200 MiB."""
    yield head
    yield from repeat(piece, 200 * MIB // len(piece))


def whole(body: bytes, *headers: bytes) -> Iterator[bytes]:
    """An answer with the announced length."""
    yield b"\r\n".join([OK, *headers, b"Content-Length: %d" % len(body), b"", body])


OK = b"HTTP/1.1 200 OK"
BOMB = gzip_bomb()
ANSWERS: dict[str, Callable[[], Iterator[bytes]]] = {
    "long": lambda: endless(OK + b"\r\nContent-Length: %d\r\n\r\n" % (200 * MIB), b" " * 65536),
    "chunked": lambda: endless(OK + b"\r\nTransfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b" " * 65536 + b"\r\n"),
    "bomb": lambda: whole(BOMB, b"Content-Encoding: gzip"),
    "bomb-in-bomb": lambda: whole(gzip.compress(BOMB), b"Content-Encoding: gzip, gzip"),
    "headers": lambda: endless(OK + b"\r\n", b"X-More: " + b"y" * 500 + b"\r\n"),
    "one-header": lambda: endless(OK + b"\r\nX-Long: ", b"y" * 65536),
    "deep": lambda: whole(b"[" * 900 + b"]" * 900),
    "very-deep": lambda: whole(b'{"a":' * 100_000),
    # The received key, or a piece of it, as often as it fits.
    "keys": lambda: whole(b"a-key-of-no" * (MIB // 11)),
}


async def main() -> None:
    """Serve on a free port, which is printed; the path selects the misbehaviour."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        kind = head.split(b" ")[1].decode().strip("/")
        try:
            for piece in ANSWERS[kind]():
                writer.write(piece)
                await writer.drain()
        except ConnectionError:
            return
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)  # noqa: T201 (how the test learns of it)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
