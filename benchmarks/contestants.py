"""Two versions of this project as contestants: this code, and an older commit in its own folder."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg

from benchmarks.world import Bench, make_dagster_home
from campaign_pipeline.sandbox import Behaviour, SandboxProcess

ROOT = Path(__file__).parents[1]

BEFORE = "062a458"
"""The commit before batches looked ahead of planned times."""

_LOOK_EVERY = 0.02  # seconds; the end of a process may go unmeasured for so long
_LOOK_AT_SERVER_EVERY = 0.5  # seconds: a code server lives long, and each look takes processor time from it


@dataclass(frozen=True)
class Contestant:
    """One version of the code, with its own queue database and Dagster storage."""

    name: str
    root: Path  # of its code
    url: str  # of its queue
    storage: str  # of Dagster, as libpq reads it
    variables: dict[str, str]
    code: str = "campaign_pipeline.definitions"  # the module of its code location

    def start(self, program: str, *arguments: str, log: Path) -> "subprocess.Popen[bytes]":
        """Start a program of the virtual environment on its code, in a new session."""
        with log.open("ab") as output:
            return subprocess.Popen(
                [str(Path(sys.executable).with_name(program)), *arguments],
                cwd=self.root,
                env=self.variables,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )


@contextlib.contextmanager
def empty_location(bench: Bench) -> Iterator[Contestant]:
    """Yield a code location with sensors and a schedule that do nothing: what remains is Dagster's own work."""
    with _contestant(bench, Behaviour(), "empty", ROOT) as contestant:
        yield replace(contestant, code="benchmarks.empty_location")


@contextlib.contextmanager
def contestants(bench: Bench, behaviour: Behaviour) -> Iterator[list[Contestant]]:
    """Yield the code of `BEFORE` and this code, each with its own sandbox and empty databases that it created itself.

    Both sandboxes have the same seed, so both contestants meet the same latencies, also at the same time.
    """
    with tempfile.TemporaryDirectory(prefix="bench-code-") as folder, contextlib.ExitStack() as stack:
        before = Path(folder, "before")
        before.mkdir()
        archive = subprocess.run(["git", "archive", BEFORE], cwd=ROOT, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", str(before)], input=archive, check=True)
        yield [
            stack.enter_context(_contestant(bench, behaviour, BEFORE, before)),
            stack.enter_context(_contestant(bench, behaviour, "this", ROOT)),
        ]


@contextlib.contextmanager
def _contestant(bench: Bench, behaviour: Behaviour, name: str, root: Path) -> Iterator[Contestant]:
    names = [f"bench_{what}_{name}" for what in ("queue", "dagster")]
    with psycopg.connect(bench.server.url("postgres"), autocommit=True) as admin:
        for each in names:
            admin.execute(f"DROP DATABASE IF EXISTS {each} WITH (FORCE)")
            admin.execute(f"CREATE DATABASE {each}")
    queue, storage = (bench.server.url(each) for each in names)
    home = bench.home / name
    home.mkdir(exist_ok=True)
    dagster_home = _own_dagster_home(root, home, storage)
    with SandboxProcess(behaviour) as sandbox:
        variables = bench.environment(queue, sandbox) | {
            "PYTHONPATH": str(root),
            "CAMPAIGN_HOME": str(home),
            "CAMPAIGN_OUTPUTS": str(home / "outputs"),
            "CAMPAIGN_SCHEDULES": "on",
            "DAGSTER_HOME": str(dagster_home),
        }
        contestant = Contestant(name, root, queue, storage, variables)
        upgrade = contestant.start("python", "-m", "campaign_pipeline", "db", "upgrade", log=home / "upgrade.log")
        if upgrade.wait(120):
            raise RuntimeError(f"{name} could not make its database: {(home / 'upgrade.log').read_text()[-1000:]}")
        try:
            yield contestant
        finally:
            with psycopg.connect(bench.server.url("postgres"), autocommit=True) as admin:
                for each in names:
                    admin.execute(f"DROP DATABASE {each} WITH (FORCE)")


_WRITE_HOME = """
import sys
from pathlib import Path
from campaign_pipeline.adapters.dagster_home import write_dagster_home
write_dagster_home(Path(sys.argv[1]), sys.argv[2])
"""


def _own_dagster_home(root: Path, home: Path, storage: str) -> Path:
    """Write Dagster's settings as the code in `root` ships them; its storage has its tables."""
    dagster_home = make_dagster_home(home, storage)
    url = storage.replace("postgresql://", "postgresql+psycopg2://", 1)
    variables = os.environ | {"PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", _WRITE_HOME, str(home), url], cwd=root, env=variables, check=True)
    return dagster_home


class ProcessTime:
    """The processor time of all processes of a session; a context manager."""

    def __init__(self, session: int, look_every: float = _LOOK_EVERY) -> None:
        self._session = session
        self._look_every = look_every
        self._seconds: dict[int, float] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "ProcessTime":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopped.set()
        self._thread.join()

    def seconds(self) -> float:
        """Return the seconds so far, of all processes."""
        return sum(list(self._seconds.values()))

    def _watch(self) -> None:
        tick = os.sysconf("SC_CLK_TCK")
        while not self._stopped.wait(self._look_every):
            for folder in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError, ValueError, IndexError):
                    fields = (folder / "stat").read_text().rpartition(")")[2].split()
                    if int(fields[3]) == self._session:
                        self._seconds[int(folder.name)] = (int(fields[11]) + int(fields[12])) / tick


@contextlib.contextmanager
def working_by_itself(contestant: Contestant) -> Iterator[ProcessTime]:
    """Run Dagster's daemon and a code server as in production, with the schedule on; yield after a tick.

    The processor time is the code server's. It runs separately: a daemon that starts it reloads the code every minute.
    """
    home = Path(contestant.variables["DAGSTER_HOME"])
    log, workspace, socket = home / "daemon.log", home / "server.yaml", home / "server.sock"
    location = {"socket": str(socket), "location_name": "campaign_pipeline"}
    workspace.write_text(json.dumps({"load_from": [{"grpc_server": location}]}), encoding="utf-8")  # JSON is YAML
    code = ("api", "grpc", "-m", contestant.code, "--socket", str(socket))
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_ended_after(contestant.start("dagster", *code, log=home / "server.log")))
        daemon = stack.enter_context(
            _ended_after(contestant.start("dagster-daemon", "run", "-w", str(workspace), log=log))
        )
        time_used = stack.enter_context(ProcessTime(server.pid, _LOOK_AT_SERVER_EVERY))
        _wait_for_a_tick(contestant, daemon, log)
        yield time_used


@contextlib.contextmanager
def _ended_after(process: "subprocess.Popen[bytes]") -> Iterator["subprocess.Popen[bytes]"]:
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait_for_a_tick(contestant: Contestant, daemon: "subprocess.Popen[bytes]", log: Path) -> None:
    give_up = time.monotonic() + 180
    while time.monotonic() < give_up and daemon.poll() is None:
        with contextlib.suppress(psycopg.Error), psycopg.connect(contestant.storage) as connection:
            if connection.execute("SELECT FROM job_ticks WHERE status <> 'STARTED' LIMIT 1").fetchone() is not None:
                return
        time.sleep(0.5)
    raise RuntimeError(f"The daemon of {contestant.name} does not work: {log.read_text(errors='replace')[-2000:]}")


@dataclass(frozen=True)
class Stored:
    """The contents of Dagster's storage."""

    rows: int
    size: int  # bytes of all live rows, without indexes
    events: int  # Dagster events, without log lines

    def __sub__(self, other: "Stored") -> "Stored":
        return Stored(self.rows - other.rows, self.size - other.size, self.events - other.events)


def stored(contestant: Contestant) -> Stored:
    """Count the contents of a contestant's Dagster storage."""
    with psycopg.connect(contestant.storage) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        rows = size = events = 0
        for (table,) in tables:
            counted = connection.execute(
                f"SELECT count(*), COALESCE(sum(pg_column_size(t.*)), 0) FROM public.{table} t"  # noqa: S608
            ).fetchone()
            assert counted is not None
            rows, size = rows + counted[0], size + int(counted[1])
        if ("event_logs",) in tables:
            found = connection.execute(
                "SELECT count(*) FROM event_logs WHERE dagster_event_type IS NOT NULL"
            ).fetchone()
            assert found is not None
            events = found[0]
    return Stored(rows, size, events)
