"""A free port of loopback for a server that takes a number, and not a socket."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def reserved_port() -> Iterator[int]:
    """Yield a port that the system gives to nobody else meanwhile.

    Tests run side by side, and a port that was only asked for may be another's when the server has started. This one
    stays bound. A server that sets SO_REUSEADDR, as all do that tests start, may listen on it all the same.
    """
    with socket.socket() as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", 0))
        yield int(bound.getsockname()[1])
