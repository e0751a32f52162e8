"""Runs the rivals that are queues: each worker is a process, timed from the first request to the last write."""

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from benchmarks.rivals import celery_app, procrastinate_app
from benchmarks.rivals.letters import Letters
from benchmarks.rivals.status import RivalFailed, make_table, wait_until_sent
from benchmarks.world import plain_environment
from campaign_pipeline.sandbox import SandboxProcess


@dataclass(frozen=True)
class Field:
    """The queue database, the letters and the sandbox of a rival's run."""

    url: str  # its own database
    letters: Letters
    file: Path  # the letters, for the workers
    sandbox: SandboxProcess
    in_flight: int  # of one worker


def missing_procrastinate() -> str | None:
    """Return which requirement of procrastinate is missing here, or None."""
    return None if find_spec("procrastinate") else "procrastinate is not installed (extra `bench`)"


def missing_celery() -> str | None:
    """Return which requirement of Celery is missing here, or None."""
    if any(find_spec(module) is None for module in ("celery", "redis", "gevent")):
        return "celery, redis and gevent are not installed (extra `bench`)"
    return None if shutil.which("redis-server") else "redis-server is not installed"


def race_procrastinate(field: Field, workers: int) -> float:
    """Return the seconds that `workers` procrastinate workers need for all letters."""
    make_table(field.url, field.letters)
    asyncio.run(procrastinate_app.defer_all(field.url, len(field.letters.letters)))
    command = [sys.executable, "-m", "benchmarks.rivals.procrastinate_app"]
    return _race(field, [command] * workers, {})


def race_celery(field: Field, workers: int, pool: str) -> float:
    """Return the seconds that `workers` Celery workers with this pool need for all letters."""
    make_table(field.url, field.letters)
    with celery_app.redis_server() as broker:
        celery_app.defer_all(broker, len(field.letters.letters))
        command = [sys.executable, "-m", "celery", "-A", "benchmarks.rivals.celery_app", "worker", "--pool", pool]
        command += ["--concurrency", str(field.in_flight), "--loglevel", "ERROR", "--without-gossip"]
        command += ["--without-mingle", "--without-heartbeat"]
        commands = [[*command, "--hostname", f"w{no}@localhost"] for no in range(workers)]
        return _race(field, commands, {"BENCH_BROKER": broker})


def _end(worker: "subprocess.Popen[bytes]") -> None:
    try:
        worker.wait(20)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()


def _race(field: Field, commands: Sequence[Sequence[str]], variables: dict[str, str]) -> float:
    field.sandbox.reset()
    env = plain_environment(
        BENCH_LETTERS=field.file, BENCH_DATABASE_URL=field.url, BENCH_CONCURRENCY=field.in_flight, **variables
    )
    workers = [
        subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for command in commands
    ]
    try:
        ended = wait_until_sent(field.url, len(field.letters.letters))
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            _end(worker)
    started = min(entry["received_at"] for entry in field.sandbox.record())
    if field.sandbox.summary()["accepted_twice"]:
        raise RivalFailed("A rival sent something twice.")
    return float(ended - started)
