"""Runs the main job in its own process for the command line: start, progress, orderly stop.

The parent never imports dagster, which would take longer than the rest of its work. The child is Dagster's run process.
It has its own session, so that Ctrl-C in a terminal reaches the parent alone, and it ends when the parent closes its
standard input: on purpose, or by dying.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import orjson
import psycopg
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from campaign_pipeline.adapters.dagster_home import CODE_LOCATION
from campaign_pipeline.adapters.queue_connection import connect
from campaign_pipeline.sql import statement

if TYPE_CHECKING:
    import dagster as dg

LAUNCH_TAG = "campaign/launch"
"""Tag of a run that the command line started: by its value, the run is found once Dagster has created it."""

RUN_FILE, RESULT_FILE = "run_id", "result.json"
"""Files in which the child tells its parent the run's id, and its result."""

STOP_PATIENCE = 60.0
"""Seconds for parts in flight to get their answers before a stopping run is killed."""

_LOOK_EVERY = 0.2  # seconds


@dataclass(frozen=True)
class JobConfig:
    """The part of the main job's run config that the command line offers."""

    batch_size: int = 1000
    shard_size: int = 250
    concurrency: int = 20
    in_process: bool = False

    def to_run_config(self) -> dict[str, Any]:
        """Return Dagster's run config."""
        executor: dict[str, Any] = {"in_process": {}} if self.in_process else {"multiprocess": {}}
        return {
            "execution": {"config": executor},
            "ops": {
                "fetch_message_batch": {"config": {"batch_size": self.batch_size}},
                "split_into_shards": {"config": {"shard_size": self.shard_size}},
                "send_shard": {"config": {"concurrency": self.concurrency}},
            },
        }


@dataclass(frozen=True)
class JobResult:
    """The outcome of a run."""

    run_id: str | None  # None: it ended before Dagster created the run
    succeeded: bool
    failures: tuple[str, ...] = ()  # a sentence per failed step, or for the run
    totals: Mapping[str, float] = field(default_factory=dict)  # messages, sent, failed, …


class JobProcess:
    """One run of the main job. A context manager: leaving it stops the run if it still works."""

    def __init__(self, config: JobConfig, dagster_home: Path, log_folder: Path, variables: Mapping[str, str]) -> None:
        """Start the job. `variables` is its whole environment, except DAGSTER_HOME."""
        self._launch_id = str(uuid4())
        self.log_file = log_folder / f"{self._launch_id}.log"
        self._config = config
        self._variables = {**variables, "DAGSTER_HOME": str(dagster_home), "DAGSTER_DISABLE_TELEMETRY": "1"}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "JobProcess":
        self.log_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = tempfile.TemporaryDirectory(prefix="campaign-run-")
        command = [sys.executable, "-m", "campaign_pipeline.launch", self._launch_id]
        command += [orjson.dumps(self._config.to_run_config()).decode(), self._folder.name]
        with self.log_file.open("wb") as log:
            self._child = subprocess.Popen(  # noqa: S603 (this module, without a shell)
                command,
                env=self._variables,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stop()
        finally:
            if self._folder is not None:
                self._folder.cleanup()

    @property
    def run_id(self) -> str | None:
        """Return the id of the run; None until Dagster has created it."""
        assert self._folder is not None
        try:
            return Path(self._folder.name, RUN_FILE).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    @property
    def pid(self) -> int:
        """Return the process id of Dagster's run process, which is also its process group."""
        assert self._child is not None
        return self._child.pid

    def result(self) -> JobResult | None:
        """Return the outcome; None while it works."""
        assert self._child is not None
        if self._child.poll() is None:
            return None
        try:
            assert self._folder is not None
            raw = orjson.loads(Path(self._folder.name, RESULT_FILE).read_bytes())
        except (FileNotFoundError, orjson.JSONDecodeError):
            why = (
                f"Dagster's process ended with status {self._child.returncode} before the run did; see {self.log_file}."
            )
            return JobResult(self.run_id, False, (why,))
        return JobResult(raw["run_id"], raw["succeeded"], tuple(raw["failures"]), raw["totals"])

    def stop(self) -> None:
        """Stop in an orderly way: parts in flight get their answers, other messages return to the queue.

        A second interrupt during this wait, or `STOP_PATIENCE` seconds, kill it and all its steps.
        """
        if self._child is None or self._child.stdin is None:
            return
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.close()
        try:
            self._child.wait(STOP_PATIENCE)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            self._kill()
            self._child.wait()
        # Steps that outlive Dagster's process would continue to send unsupervised.
        self._kill()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)


class _Batch:
    """The messages that a run claimed, found by their leases: one index probe per look, whatever the queue's length."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._seen: set[UUID] = set()
        self._done = 0
        self._connection: psycopg.Connection | None = None

    def look(self, run_id: str) -> tuple[int, int]:
        """Return how many messages the run has finished, and how many it claimed in all."""
        # While the database is unavailable, the bar stands still; whether the run can continue is up to the run.
        with contextlib.suppress(psycopg.Error):
            if self._connection is None or self._connection.closed:
                self._connection = connect(self._url, autocommit=True)
            rows = self._connection.execute(statement("list_leased_by_run"), {"owner": _lease_owner(run_id)})
            held = {row[0] for row in rows}
            self._seen |= held
            self._done = len(self._seen) - len(held)
        return self._done, len(self._seen)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


def _lease_owner(run_id: str) -> str:
    """Return the lease owner that `fetch_message_batch` and `send_shard` use."""
    return f"run {run_id[:8]}"


def follow(job: JobProcess, url: str, console: Console) -> JobResult:
    """Wait for a run to end, with a progress bar of its claimed messages.

    An interrupt stops the run in an orderly way and returns its messages to the queue; then it is raised
    again.
    """
    batch = _Batch(url)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    try:
        with Progress(*columns, console=console, transient=not console.is_terminal) as progress:
            task = progress.add_task("Starting Dagster", total=None)
            done, total = 0, 0
            while (result := job.result()) is None:
                if job.run_id is not None:
                    done, total = batch.look(job.run_id)
                if total:
                    progress.update(task, description="Writing and sending", completed=done, total=total)
                time.sleep(_LOOK_EVERY)
            claimed = int(result.totals.get("messages", total))
            if result.succeeded:
                progress.update(task, description="Done", completed=claimed, total=claimed)
            return result
    except KeyboardInterrupt:
        console.print("Stopping: what is being sent is finished, the rest goes back to the queue …")
        job.stop()
        if job.run_id is not None:
            release_leases(url, job.run_id)
        raise
    finally:
        batch.close()


def release_leases(url: str, run_id: str) -> None:
    """Return a run's messages now instead of when their leases expire. Only for a run that has certainly ended."""
    with connect(url) as connection:
        connection.execute(statement("end_leases_of_run"), {"owner": _lease_owner(run_id)})


def outside_findings(dagster_home: Path, variables: Mapping[str, str]) -> list[dict[str, str]]:
    """Return what `campaign_pipeline.defs.doctor` finds about Dagster, the keys and the inboxes, from a subprocess."""
    command = [sys.executable, "-W", "ignore", "-m", "campaign_pipeline.defs.doctor"]
    environment = {**variables, "DAGSTER_HOME": str(dagster_home), "DAGSTER_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, check=False)  # noqa: S603 (our own module)
    if done.returncode:
        last = next(iter(reversed(done.stderr.decode(errors="replace").strip().splitlines())), "no reason given")
        return [{"what": "Dagster", "state": "stops", "found": f"It cannot be asked: {last}", "todo": ""}]
    found: list[dict[str, str]] = orjson.loads(done.stdout)
    return found


@contextlib.contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Let SIGHUP and SIGTERM end this process like Ctrl-C: with KeyboardInterrupt.

    SIGHUP stays ignored if it is (`nohup`). SIGINT does not: shells ignore it for what they start in the background;
    Dagster's processes would inherit that, and have to be killed.
    """

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Postpone interrupts during an action that must not be cut off, such as starting a server."""
    wanted = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ------------------------------------------------------------------------------------------------ in the child process


class _Stopper:
    """Waits until the parent closes our standard input, then interrupts the run."""

    def __init__(self) -> None:
        self._stopped = False
        self._cancel: Callable[[], None] | None = None
        self._lock = threading.Lock()
        threading.Thread(target=self._wait, daemon=True).start()

    def may_begin(self, cancel: Callable[[], None]) -> bool:
        """Return whether to begin at all; from now on, a stop calls `cancel`."""
        with self._lock:
            self._cancel = cancel
            return not self._stopped

    def finished(self) -> None:
        """The run has ended: nothing is left to interrupt."""
        with self._lock:
            self._cancel = None

    def _wait(self) -> None:
        # Not sys.stdin: a thread that waits in a buffered read breaks the interpreter's shutdown.
        while os.read(0, 1024):
            pass
        with self._lock:
            self._stopped = True
            if self._cancel is not None:
                self._cancel()


def _execute(launch_id: str, run_config: Mapping[str, Any], run_file: Path, stopper: _Stopper) -> JobResult:
    if "multiprocess" in run_config["execution"]["config"]:
        from campaign_pipeline.defs.fork_server import start_fork_server

        start_fork_server()  # first: it imports for as long as the lines below
    import dagster as dg

    from campaign_pipeline.definitions import main_job

    with dg.DagsterInstance.get() as instance:
        created = _CreatedRun(instance, launch_id)

        def cancel() -> None:
            instance.report_run_canceling(created.wait())
            os.kill(os.getpid(), signal.SIGINT)

        if not stopper.may_begin(cancel):
            return JobResult(None, False, ("The run was stopped before it began.",))
        threading.Thread(target=created.write_id, args=(run_file,), daemon=True).start()
        # On the job's own page in the UI, too, not only in the list of all runs.
        tags = {".dagster/repository": f"__repository__@{CODE_LOCATION}", LAUNCH_TAG: launch_id}
        result = dg.execute_job(dg.reconstructable(main_job), instance, run_config, tags)
        stopper.finished()
        events = result.all_events
        return JobResult(result.run_id, result.success, tuple(_failures(events)), _totals(events))


class _CreatedRun:
    """The run that `dagster.execute_job` creates; it returns the id only when the run has ended."""

    def __init__(self, instance: "dg.DagsterInstance", launch_id: str) -> None:
        self._instance = instance
        self._launch_id = launch_id

    def wait(self) -> "dg.DagsterRun":
        """Return the run as soon as Dagster has created it."""
        import dagster as dg

        wanted = dg.RunsFilter(tags={LAUNCH_TAG: self._launch_id})
        while not (records := self._instance.get_run_records(wanted, limit=1)):
            time.sleep(_LOOK_EVERY)
        return records[0].dagster_run

    def write_id(self, file: Path) -> None:
        """Write the run's id into a file for the parent, as soon as there is one."""
        _write_whole(file, self.wait().run_id.encode())


def _failures(events: "Sequence[dg.DagsterEvent]") -> Iterator[str]:
    """Yield a sentence per failed step, or for the run if no step failed."""
    found = False
    for event in events:
        if event.is_step_failure:
            found = True
            data = event.step_failure_data
            told = data.user_failure_data.description if data.user_failure_data else None
            error = data.error.cause or data.error if data.error else None
            yield told or f"{event.step_key} failed: {_first_line(error.message) if error else 'no reason given'}"
    for event in events:
        if not found and event.event_type_value in {"PIPELINE_FAILURE", "PIPELINE_CANCELED"}:
            error = event.job_failure_data.error if event.event_type_value == "PIPELINE_FAILURE" else None
            yield _first_line(error.message if error else event.message or "The run failed.")


def _first_line(text: str) -> str:
    return next(iter(text.strip().splitlines()), "no reason given")


def _totals(events: "Sequence[dg.DagsterEvent]") -> dict[str, float]:
    """Return the figures in the outputs' metadata of the first and the last step."""
    totals: dict[str, float] = {}
    for event in events:
        if event.is_successful_output and event.step_key in {"fetch_message_batch", "close_completed_runs"}:
            metadata = event.step_output_data.metadata
            totals |= {name: value.value for name, value in metadata.items() if isinstance(value.value, int | float)}
    return totals


def _run_child(launch_id: str, run_config: str, folder: str) -> None:
    stopper, run_file = _Stopper(), Path(folder, RUN_FILE)
    try:
        result = _execute(launch_id, orjson.loads(run_config), run_file, stopper)
    except KeyboardInterrupt:
        result = JobResult(None, False, ("The run was stopped.",))
    _write_whole(Path(folder, RESULT_FILE), orjson.dumps(asdict(result)))


def _write_whole(file: Path, content: bytes) -> None:
    """Write a file that its reader sees whole or not at all."""
    draft = file.with_suffix(".part")
    draft.write_bytes(content)
    draft.replace(file)


if __name__ == "__main__":
    _run_child(*sys.argv[1:])
