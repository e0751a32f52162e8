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

if TYPE_CHECKING:
    import dagster as dg

JOB = "process_campaign_queue"
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

    run_id: str
    succeeded: bool
    failures: tuple[str, ...] = ()  # a sentence per failed step, or for the run
    totals: Mapping[str, float] = field(default_factory=dict)  # messages, sent, failed, …


class JobProcess:
    """One run of the main job. A context manager: leaving it stops the run if it still works."""

    def __init__(self, config: JobConfig, dagster_home: Path, log_folder: Path, variables: Mapping[str, str]) -> None:
        """Start the job. `variables` is its whole environment, except DAGSTER_HOME."""
        self.run_id = str(uuid4())
        self.log_file = log_folder / f"{self.run_id}.log"
        self._config = config
        self._variables = {**variables, "DAGSTER_HOME": str(dagster_home), "DAGSTER_DISABLE_TELEMETRY": "1"}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "JobProcess":
        self.log_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = tempfile.TemporaryDirectory(prefix="campaign-run-")
        command = [sys.executable, "-m", "campaign_pipeline.launch", self.run_id]
        command += [orjson.dumps(self._config.to_run_config()).decode(), str(self._result_file)]
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
    def _result_file(self) -> Path:
        assert self._folder is not None
        return Path(self._folder.name, "result.json")

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
            raw = orjson.loads(self._result_file.read_bytes())
        except (FileNotFoundError, orjson.JSONDecodeError):
            why = (
                f"Dagster's process ended with status {self._child.returncode} before the run did; see {self.log_file}."
            )
            return JobResult(self.run_id, False, (why,))
        return JobResult(self.run_id, raw["succeeded"], tuple(raw["failures"]), raw["totals"])

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

    def __init__(self, url: str, run_id: str) -> None:
        self._url = url
        self._owner = _lease_owner(run_id)
        self._seen: set[UUID] = set()
        self._done = 0
        self._connection: psycopg.Connection | None = None

    def look(self) -> tuple[int, int]:
        """Return how many messages the run has finished, and how many it claimed in all."""
        # While the database is unavailable, the bar stands still; whether the run can continue is up to the run.
        with contextlib.suppress(psycopg.Error):
            if self._connection is None or self._connection.closed:
                self._connection = connect(self._url, autocommit=True)
            rows = self._connection.execute(
                "SELECT id FROM public.campaign_messages "
                "WHERE status IN ('queued', 'generating', 'sending') AND starts_with(lease_owner, %s)",
                [self._owner],
            )
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
    batch = _Batch(url, job.run_id)
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
            total = 0
            while (result := job.result()) is None:
                done, total = batch.look()
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
        release_leases(url, job.run_id)
        raise
    finally:
        batch.close()


def release_leases(url: str, run_id: str) -> None:
    """Return a run's messages now instead of when their leases expire. Only for a run that has certainly ended."""
    with connect(url) as connection:
        connection.execute(
            "UPDATE public.campaign_messages SET lease_expires_at = campaign_pipeline.campaign_now() "
            "WHERE status IN ('queued', 'generating', 'sending') AND starts_with(lease_owner, %s)",
            [_lease_owner(run_id)],
        )
        connection.execute("SELECT FROM campaign_pipeline.campaign_recover_leases()")


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
        self.stopped = threading.Event()
        self._cancel: Callable[[], None] | None = None
        self._lock = threading.Lock()
        threading.Thread(target=self._wait, daemon=True).start()

    def may_begin(self, cancel: Callable[[], None]) -> bool:
        """Return whether to begin at all; from now on, a stop calls `cancel`."""
        with self._lock:
            self._cancel = cancel
            return not self.stopped.is_set()

    def finished(self) -> None:
        """The run has ended: nothing is left to interrupt."""
        with self._lock:
            self._cancel = None

    def _wait(self) -> None:
        # Not sys.stdin: a thread that waits in a buffered read breaks the interpreter's shutdown.
        while os.read(0, 1024):
            pass
        with self._lock:
            self.stopped.set()
            if self._cancel is not None:
                self._cancel()


def _execute(run_id: str, run_config: Mapping[str, Any], stopper: _Stopper) -> JobResult:
    import dagster as dg

    from campaign_pipeline.definitions import main_job

    job = dg.reconstructable(main_job)
    with dg.DagsterInstance.get() as instance:
        run = instance.create_run_for_job(
            job_def=job.get_definition(),
            run_id=run_id,
            run_config=run_config,
            # On the job's own page in the UI, too, not only in the list of all runs.
            tags={".dagster/repository": f"__repository__@{CODE_LOCATION}"},
            job_code_origin=job.get_python_origin(),
        )

        def cancel() -> None:
            instance.report_run_canceling(run)
            os.kill(os.getpid(), signal.SIGINT)

        if not stopper.may_begin(cancel):
            instance.report_run_canceled(run)
            return JobResult(run_id, False, ("The run was stopped before it began.",))
        events = _events_of(job, run, instance)
        stopper.finished()
        succeeded = any(event.event_type == dg.DagsterEventType.RUN_SUCCESS for event in events)
        return JobResult(run_id, succeeded, tuple(_failures(events)), _totals(events))


def _events_of(job: Any, run: "dg.DagsterRun", instance: "dg.DagsterInstance") -> "Sequence[dg.DagsterEvent]":
    """Execute a run that was created, and return its events.

    This is the one private name of Dagster in this module. `dagster.execute_job` does the same, but creates the
    run itself, with an id that is unknown until the run ends: the parent needs it to show and release its messages.
    """
    from dagster._core.execution.api import execute_run

    return execute_run(job, run, instance).all_events


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


def _run_child(run_id: str, run_config: str, result_file: str) -> None:
    stopper = _Stopper()
    try:
        result = _execute(run_id, orjson.loads(run_config), stopper)
    except KeyboardInterrupt:
        result = JobResult(run_id, False, ("The run was stopped.",))
    draft = Path(f"{result_file}.part")
    draft.write_bytes(orjson.dumps(asdict(result)))
    draft.replace(result_file)


if __name__ == "__main__":
    _run_child(*sys.argv[1:])
