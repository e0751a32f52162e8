"""A run of the queue on a host, forked from a process that has imported most of what it needs."""

import ctypes
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

from campaign_pipeline_tests.crash import worker

_FORKS = multiprocessing.get_context("forkserver")
_PRELOAD = (
    # Nothing that reads its settings when it is imported: a run has other ones.
    *("boto3", "dagster._cli", "dagster_aws.s3", "dagster_celery.executor", "dagster_k8s", "dagster_postgres"),
    *("pandas", "pyarrow.parquet", "redis", "s3fs", __name__, worker.__name__),
)
_FORKS.set_forkserver_preload(list(_PRELOAD))


class ForkedRun:
    """`dagster job execute` with a run config, in a network namespace. It can be used like a subprocess.Popen."""

    def __init__(self, namespace: str, config: Path, variables: dict[str, str], log: Path) -> None:
        self._process = _FORKS.Process(target=_execute, args=(namespace, str(config), variables, str(log)), daemon=True)
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        """Return its exit code, None while it lives."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; return its exit code."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("dagster job execute", timeout or 0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)


def _execute(namespace: str, config: str, variables: dict[str, str], log: str) -> None:
    os.setsid()
    with Path("/run/netns", namespace).open() as entered:
        if ctypes.CDLL(None, use_errno=True).setns(entered.fileno(), 0):
            raise OSError(ctypes.get_errno(), f"cannot enter the network namespace {namespace}")
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    assert "campaign_pipeline.defs.executor" not in sys.modules, "it was imported with another process's settings"
    os.environ.clear()
    os.environ.update(variables)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["dagster", "job", "execute", "-m", "campaign_pipeline.definitions"]
    sys.argv += ["-j", "process_campaign_queue", "-c", config]
    runpy.run_module("dagster", run_name="__main__")
