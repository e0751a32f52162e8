"""A test's own server that can be stopped as in a crash, and started again."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import psycopg

from campaign_pipeline.adapters import schema
from campaign_pipeline.adapters.embedded import EmbeddedServer, embedded_server, running_pid


def crash(server: EmbeddedServer) -> None:
    """Kill every connection; nothing is written any more."""
    server.stop("immediate")


def start(server: EmbeddedServer) -> None:
    """Start it again: it recovers from its log."""
    server.start_if_stopped()


def is_running(data: Path) -> bool:
    """Return whether a server uses this data folder."""
    return running_pid(data) is not None


@contextmanager
def own_server(home: Path) -> Iterator[EmbeddedServer]:
    """A server for one module of tests; left, and thereby stopped, at the end."""
    server = embedded_server(home)
    schema.upgrade(server.url())
    yield server
    if not is_running(server.data):
        start(server)
    assert server.leave()


@contextmanager
def own_database(server: EmbeddedServer) -> Iterator[str]:
    """An empty queue on that server, even if it was stopped meanwhile."""
    name = f"test_{uuid4().hex[:16]}"
    with psycopg.connect(server.url("postgres"), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} TEMPLATE campaign STRATEGY file_copy")
    yield server.url(name)
    with psycopg.connect(server.url("postgres"), autocommit=True) as admin:
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
