"""`python -m benchmarks.scale`: what a message costs PostgreSQL, and how far several processes scale on one database.

Produces the figures of docs/scale.md. Dagster's own storage is on another server, so that only the queue's writes
count. Everything else runs on this machine too, so the throughput is the machine's, and a lower bound for the database.

With `--processor`: the processor time of a message instead, in one process that claims and sends without Dagster.
"""

import argparse
import contextlib
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row
from rich.console import Console
from rich.table import Table

from benchmarks.ours import JobSpec, run_against
from benchmarks.world import Bench, fill
from campaign_pipeline.adapters.queue import BatchOptions, Queue
from campaign_pipeline.core.model import BatchSettings, split_batch
from campaign_pipeline.defs.resources import ProvidersResource
from campaign_pipeline.defs.shard import deliver, run_async
from campaign_pipeline.sandbox import Behaviour, Kind, Latency, SandboxProcess

LATENCIES = {Kind.GENERATION: Latency(0.07, 0.5), Kind.SEND: Latency(0.02, 0.5)}
"""A tenth of the usual: the database is measured, not the provider."""

_COUNTS = """
SELECT (SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn) AS wal_bytes,
       (SELECT wal_fpi FROM pg_stat_wal) AS full_pages,
       pg_database_size(current_database()) AS size_bytes,
       (SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()) AS commits,
       m.n_tup_upd AS updates, m.n_tup_hot_upd AS in_place,
       (SELECT sum(t.n_tup_ins + t.n_tup_upd + t.n_tup_del) FROM pg_stat_user_tables t) AS row_changes,
       (SELECT sum(t.n_tup_upd + t.n_tup_del) FROM pg_stat_user_tables t) AS dead_rows
FROM pg_stat_user_tables m WHERE m.relname = 'campaign_messages'
"""


@dataclass(frozen=True)
class Measured:
    """The figures of one run, per message unless stated otherwise."""

    processes: int
    per_second: float  # messages
    connections: int  # maximum, over all processes
    wal_bytes: float
    full_pages: float
    commits: float
    updates: float  # of the message's row
    in_place: float
    row_changes: float
    dead_rows: float
    size_bytes: float  # growth of the database, dead rows included


class _Connections:
    """Counts the connections to a database while the block runs."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.most = 0
        self._over = threading.Event()

    def __enter__(self) -> "_Connections":
        self._thread = threading.Thread(target=self._count, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _count(self) -> None:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        with psycopg.connect(self._url, autocommit=True) as connection:
            while not self._over.wait(0.1):
                row = connection.execute(query).fetchone()
                assert row is not None
                self.most = max(self.most, row[0])


def _counts(url: str) -> dict[str, Any]:
    with psycopg.connect(url, autocommit=True, row_factory=dict_row) as connection:
        connection.execute("SELECT pg_stat_clear_snapshot()")
        row = connection.execute(_COUNTS).fetchone()
    assert row is not None
    return {name: float(value) for name, value in row.items()}


def measure(queue: Bench, dagster: Bench, sandbox: SandboxProcess, processes: int, messages: int) -> Measured:
    """Send so many messages from so many processes, with one inbox and one shard each."""
    spec = JobSpec(20, batch_size=messages, shard_size=messages, max_concurrent=processes)
    with queue.database("scale") as url:
        fill(url, messages, inboxes=processes)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CHECKPOINT")
        before = _counts(url)
        variables = queue.environment(url, sandbox) | {"DAGSTER_HOME": str(dagster.dagster_home)}
        with _Connections(url) as connections:
            run = run_against(variables, spec, sandbox, messages)
        after = _counts(url)
    costs = {name: (after[name] - before[name]) / messages for name in before}
    return Measured(processes, messages / max(run.shard_seconds), connections.most, **costs)


def _seconds(pid: int) -> float:
    """Return the processor time of a process and of its children, ended ones included."""
    ticks = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(folder.name) == pid:
                ticks += sum(map(int, fields[11:15]))
            elif int(fields[1]) == pid:
                ticks += sum(map(int, fields[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _sandbox_pid(sandbox: SandboxProcess) -> int:
    record_file = str(sandbox.record_file).encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            if record_file in (folder / "cmdline").read_bytes().split(b"\0"):
                return int(folder.name)
    raise LookupError("The sandbox has no process.")


async def _send_all(url: str, messages: int, concurrency: int) -> None:
    """Claim and send one batch, as the steps of a run do."""
    queue = Queue(url)
    batch = await queue.claim_batch(BatchOptions(messages, "scale"))
    rows = [row.to_row() for row in batch.rows]
    contexts = await queue.get_lead_contexts(*([row[name] for row in rows] for name in ("lead_id", "workspace_id")))
    shared = ([*{row[name] for row in rows}] for name in ("config_id", "workspace_id", "inbox_id"))
    settings = BatchSettings.from_json(await queue.get_batch_settings(*shared))
    plain = [{**row, "lead_id": str(row["lead_id"])} for row in contexts]
    (shard,) = split_batch(batch.rows, messages)
    report = await deliver(url, shard, plain, settings, ProvidersResource(), concurrency, "scale")
    assert report.sent == messages, report


def processor_time(queue: Bench, sandbox: SandboxProcess, messages: int, concurrency: int) -> dict[str, float]:
    """Return the processor milliseconds per message: of the worker, of PostgreSQL and of the mock providers."""
    server = int((queue.server.data / "postmaster.pid").read_text().split()[0])
    pids = {"worker": os.getpid(), "PostgreSQL": server, "mock providers": _sandbox_pid(sandbox)}
    with queue.database("scale") as url:
        fill(url, messages)
        os.environ.update(queue.environment(url, sandbox))
        before = {name: _seconds(pid) for name, pid in pids.items()}
        # The children of this process are the server and the sandbox: only its own time counts.
        before["worker"] = sum(os.times()[:2])
        run_async(_send_all(url, messages, concurrency))
        after = {name: _seconds(pid) for name, pid in pids.items()} | {"worker": sum(os.times()[:2])}
    return {name: (after[name] - before[name]) * 1000 / messages for name in pids}


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--messages", type=int, default=2000, help="in all, of each run (default: %(default)s)")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--processor", action="store_true", help="measure processor time, with 50 in flight")
    options = parser.parse_args()
    if options.processor:
        table = Table("milliseconds per message", "worker", "PostgreSQL", "mock providers")
        with Bench() as queue, SandboxProcess(Behaviour(latencies=LATENCIES)) as sandbox:
            for number in range(1, 4):
                costs = processor_time(queue, sandbox, options.messages, 50)
                table.add_row(f"run {number}", *(f"{cost:.2f}" for cost in costs.values()))
        Console(width=140).print(table)
        return
    table = Table("processes", "messages/s", "connections", "WAL bytes", "full pages", "commits", "updates", "in place",
                  "row changes", "dead rows", "growth in bytes")  # fmt: skip
    with Bench() as queue, Bench() as dagster, SandboxProcess(Behaviour(latencies=LATENCIES)) as sandbox:
        for processes in options.processes:
            one = measure(queue, dagster, sandbox, processes, options.messages)
            table.add_row(
                str(one.processes), f"{one.per_second:.0f}", str(one.connections), f"{one.wal_bytes:,.0f}",
                *(f"{figure:.2f}" for figure in (one.full_pages, one.commits, one.updates, one.in_place,
                                                 one.row_changes, one.dead_rows)),
                f"{one.size_bytes:,.0f}",
            )  # fmt: skip
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
