"""Debian's PgBouncer in front of the tests' server: every transaction may use another server connection."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest

from campaign_pipeline_tests.ports import reserved_port

USERS = ("postgres", "crm_owner", "authenticator")
PGBOUNCER = os.environ.get("PGBOUNCER", "/usr/sbin/pgbouncer")
_CONFIG = """
[databases]
* = host={server}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {folder}/users.txt
pool_mode = transaction
default_pool_size = {pool_size}
max_client_conn = 200
max_db_connections = {pool_size}
logfile = {folder}/pgbouncer.log
server_round_robin = 1
{more}
"""
# server_round_robin: the next transaction is likely to be on another connection, so that whoever leans on the state of
# a session falls over here.


@contextmanager
def folder_for_all() -> Iterator[Path]:
    """A folder that other users may enter: PgBouncer has its own user if the tests run as root.

    Not below pytest's folder, which is closed to others; the permissions of folders above are not ours to change.
    """
    folder = Path(tempfile.mkdtemp(prefix="campaign_pooler_"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


class Pooler:
    """A running PgBouncer."""

    def __init__(self, port: int) -> None:
        self.port = port

    def url(self, database_url: str) -> str:
        """The same database through the pooler."""
        parts = urlsplit(database_url)
        return f"postgresql://{parts.username}@127.0.0.1:{self.port}{parts.path}"


@contextmanager
def run_pooler(database_url: str, folder: Path, pool_size: int = 8, more: str = "") -> Iterator[Pooler]:
    """Run PgBouncer in front of the server of `database_url`; `more` are further lines of its configuration."""
    if not Path(PGBOUNCER).exists():
        pytest.fail(f"There is no {PGBOUNCER}: install Debian's package pgbouncer, or name it in PGBOUNCER.")
    (server,) = parse_qs(urlsplit(database_url).query)["host"]
    with reserved_port() as port:
        file = folder / "pgbouncer.ini"
        file.write_text(_CONFIG.format(server=server, port=port, folder=folder, pool_size=pool_size, more=more))
        (folder / "users.txt").write_text("".join(f'"{user}" ""\n' for user in USERS))
        command = [PGBOUNCER, "-q", str(file)]
        if os.geteuid() == 0:  # which it refuses to run as; the server's folder is open to the server's own user
            user = Path(server).owner()
            for path in (folder, *folder.iterdir()):
                shutil.chown(path, user)
            command[1:1] = ["-u", user]
        with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
            try:
                _wait_for(port, process)
                yield Pooler(port)
            finally:
                process.kill()


def _wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        time.sleep(0.02)
    pytest.fail(f"PgBouncer does not answer: {process.stderr.read().decode() if process.stderr else ''}")


def refuses_session_state(url: str) -> bool:
    """Return whether a setting of one transaction is gone in a later one, that is, whether pooling is real."""
    with psycopg.connect(url, autocommit=True, prepare_threshold=None) as one:
        pids = {one.execute("SELECT pg_backend_pid()").fetchone() for _ in range(4)}
        with psycopg.connect(url, prepare_threshold=None) as other:
            other.execute("SELECT 1")
            pids.add(one.execute("SELECT pg_backend_pid()").fetchone())
    return len(pids) > 1
