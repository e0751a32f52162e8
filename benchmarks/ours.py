"""The pipeline as a contestant: the real job in a separate process, timed by Dagster's run records."""

import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import orjson

from campaign_pipeline.sandbox import SandboxProcess

_TIMEOUT = 3600.0  # seconds
_LOOK_EVERY = 0.05  # seconds


class JobFailed(RuntimeError):
    """The job failed, so there is nothing to measure."""


@dataclass(frozen=True)
class JobSpec:
    """Settings of the job."""

    concurrency: int
    batch_size: int = 1000
    shard_size: int = 1000
    in_process: bool = False
    max_concurrent: int = 4  # steps at once
    started_by: Literal["command", "daemon"] = "command"  # the command starts the fork server of steps before Dagster

    def to_run_config(self) -> dict[str, Any]:
        """Return Dagster's run config."""
        executor: dict[str, Any] = {"multiprocess": {"max_concurrent": self.max_concurrent}}
        return {
            "execution": {"config": {"in_process": {}} if self.in_process else executor},
            "ops": {
                "fetch_message_batch": {"config": {"batch_size": self.batch_size}},
                "split_into_shards": {"config": {"shard_size": self.shard_size}},
                "send_shard": {"config": {"concurrency": self.concurrency}},
            },
        }


@dataclass
class JobRun:
    """A run of the job."""

    started: float  # seconds since the epoch, as Dagster recorded them
    ended: float
    events: int
    sent: int
    shard_seconds: list[float]  # of each shard, as its report says
    step_seconds: dict[str, float]
    step_pids: dict[str, int]  # empty in process
    peak_mb: dict[str, float] = field(default_factory=dict)  # step -> peak resident memory, if measured

    @property
    def seconds(self) -> float:
        """From the run's start to its success."""
        return self.ended - self.started

    def shard_peak_mb(self) -> float:
        """Return the peak of the largest shard's process. Raises ValueError if none was measured."""
        return max(mb for step, mb in self.peak_mb.items() if step.startswith("send_shard"))


def run_job(
    variables: Mapping[str, str], spec: JobSpec, *, watch_memory: bool = False, preload_folder: Path | None = None
) -> JobRun:
    """Run the job to its end. `preload_folder` comes first on the import path.

    Raises JobFailed with the end of its output.
    """
    with tempfile.TemporaryDirectory(prefix="bench-job-") as folder:
        result = Path(folder, "result.json")
        env = dict(variables)
        if preload_folder is not None:
            env["PYTHONPATH"] = f"{preload_folder}:{env['PYTHONPATH']}"
        config = orjson.dumps(spec.to_run_config()).decode()
        log = Path(folder, "job.log")
        with log.open("wb") as output:
            child = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.job", config, str(result), spec.started_by],
                env=env,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        watcher = MemoryWatcher(child.pid) if watch_memory else None
        try:
            child.wait(_TIMEOUT)
        except BaseException:
            child.kill()
            child.wait()
            raise
        finally:
            if watcher is not None:
                watcher.stop()
        if child.returncode != 0 or not result.exists():
            raise JobFailed(f"The job ended with status {child.returncode}: {log.read_text(errors='replace')[-3000:]}")
        run = JobRun(**orjson.loads(result.read_bytes()))
    if watcher is not None:
        run.peak_mb = {step: watcher.peaks[pid] for step, pid in run.step_pids.items() if pid in watcher.peaks}
    return run


def run_against(
    variables: Mapping[str, str], spec: JobSpec, sandbox: SandboxProcess, expected: int, **more: Any
) -> JobRun:
    """Run the job after resetting the sandbox, and make sure that it did all the work, once."""
    sandbox.reset()
    run = run_job(variables, spec, **more)
    _check([run], sandbox, expected)
    return run


def run_at_once(
    variables: Mapping[str, str], spec: JobSpec, sandbox: SandboxProcess, expected: int, runs: int
) -> float:
    """Run the job several times at once, like `run_against`; return the seconds from first start to last end."""
    sandbox.reset()
    with ThreadPoolExecutor(runs) as threads:
        done = list(threads.map(lambda _: run_job(variables, spec), range(runs)))
    _check(done, sandbox, expected)
    return max(run.ended for run in done) - min(run.started for run in done)


def _check(runs: Sequence[JobRun], sandbox: SandboxProcess, expected: int) -> None:
    sent, twice = sum(run.sent for run in runs), sandbox.summary()["accepted_twice"]
    if sent != expected or twice:
        raise JobFailed(f"{sent} of {expected} messages were sent, {len(twice)} of them twice.")


class MemoryWatcher:
    """Samples the peak resident memory of all descendants of a process until `stop`.

    The kernel records each peak; that of a forked process begins with the memory that its parent had mapped.
    """

    def __init__(self, root: int) -> None:
        self.peaks: dict[int, float] = {}  # pid -> MB
        self._root = root
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop looking."""
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(_LOOK_EVERY):
            for pid in _descendants(self._root):
                peak = _peak_mb(pid)
                if peak is not None:
                    self.peaks[pid] = max(peak, self.peaks.get(pid, 0.0))


def _descendants(root: int) -> set[int]:
    parents = {int(folder.name): _parent(folder) for folder in Path("/proc").glob("[0-9]*")}
    found, before = {root}, 0
    while len(found) > before:
        before = len(found)
        found |= {pid for pid, parent in parents.items() if parent in found}
    return found


def _parent(folder: Path) -> int | None:
    try:
        return int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError):
        return None  # it ended meanwhile


def _peak_mb(pid: int) -> float | None:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), None)
