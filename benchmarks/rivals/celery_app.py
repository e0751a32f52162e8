"""Celery with Redis. Its worker makes the two requests and one status write for each message.

It runs once with the pool `threads` and once with `gevent`: the two that keep 50 requests in flight in one process. The
HTTP client is urllib3, which is faster there than httpx. A task is acknowledged when it is received (Celery's default):
a worker that dies loses its tasks, and the worker is spared the cost of preventing that.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import orjson
import psycopg
import psycopg_pool
import urllib3

from benchmarks.rivals.letters import GENERATION_HEADERS, SEND_HEADERS, Letters, send_body, text_in
from benchmarks.rivals.status import MARK_SENT, RivalFailed

TASK = "deliver"
_START_TIMEOUT = 10.0  # seconds


def _app(broker: str) -> Any:
    # Installed by the extra `bench` only.
    import celery  # type: ignore[import-not-found,import-untyped,unused-ignore]

    made = celery.Celery("benchmarks", broker=broker)
    made.conf.update(task_ignore_result=True, worker_prefetch_multiplier=4, broker_connection_retry_on_startup=True)
    made.task(name=TASK)(deliver)
    return made


@cache
def _letters() -> Letters:
    return Letters.load(Path(os.environ["BENCH_LETTERS"]))


@cache
def _http() -> urllib3.PoolManager:
    size = int(os.environ["BENCH_CONCURRENCY"])
    return urllib3.PoolManager(num_pools=8, maxsize=size, block=True, retries=False)


@cache
def _pool() -> "psycopg_pool.ConnectionPool[psycopg.Connection[Any]]":
    url = os.environ["BENCH_DATABASE_URL"]
    return psycopg_pool.ConnectionPool(url, min_size=4, max_size=16, open=True, kwargs={"autocommit": True})


def deliver(no: int) -> None:
    """One message."""
    letters = _letters()
    letter = letters.letters[no]
    answer = _post(letters.generation_url, letter.generation.encode(), GENERATION_HEADERS)
    answer = _post(letter.send_url, send_body(letter, text_in(answer)), SEND_HEADERS)
    with _pool().connection() as connection:
        connection.execute(MARK_SENT, (answer["key"]["id"], letter.id))


def _post(url: str, body: bytes, headers: dict[str, str]) -> Any:
    response = _http().request("POST", url, body=body, headers=headers)
    if response.status >= 400:
        raise RivalFailed(f"{url} answered {response.status}.")
    return orjson.loads(response.data)


def defer_all(broker: str, count: int) -> None:
    """Queue one task per message; this is not timed."""
    app = _app(broker)
    with app.connection_for_write() as connection, app.amqp.producer_pool.acquire(block=True):
        for no in range(count):
            app.send_task(TASK, args=[no], connection=connection)


@contextmanager
def redis_server() -> Iterator[str]:
    """Run Redis without persistence on a free loopback port; yield its URL."""
    program = shutil.which("redis-server")
    assert program is not None
    with socket.socket() as probe, tempfile.TemporaryDirectory(prefix="bench-redis-") as folder:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Redis does: both may be bound to one port
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        server = subprocess.Popen(
            [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", folder],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            _wait_for(port)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            server.terminate()
            server.wait(10)


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + _START_TIMEOUT
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise RivalFailed("redis-server did not start.")


# The worker imports this: `celery -A benchmarks.rivals.celery_app`.
if "BENCH_BROKER" in os.environ:
    app = _app(os.environ["BENCH_BROKER"])
