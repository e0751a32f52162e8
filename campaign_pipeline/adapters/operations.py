"""The queue for schedules, sensors, back-fills and maintenance: short reads, and changes in small batches."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Self, TypeVar
from uuid import UUID

import psycopg
from psycopg.rows import DictRow

from campaign_pipeline.adapters.queue_connection import connect_rows
from campaign_pipeline.core.ports import StoreUnavailable
from campaign_pipeline.core.runs import OpenPause, RunningRun
from campaign_pipeline.core.upkeep import Backlog, QueueLook
from campaign_pipeline.sql import statement

T = TypeVar("T")

REQUEUE_BATCH = 2000
"""Messages requeued per transaction: their runs stay locked for a fraction of a second."""

DELETE_BATCH = 5000

DEMO = "campaign-pipeline demo"
"""Value of `made_by` in `workspaces.settings`: only workspaces with it may be sent to a sandbox automatically."""


@dataclass(frozen=True)
class FailedMessages:
    """Selects failed messages: those that failed in [since, until), narrowed by the fields that are set."""

    since: datetime
    until: datetime
    error_classes: Sequence[str]
    run_ids: Sequence[UUID] | None = None
    config_id: UUID | None = None
    workspace_id: UUID | None = None

    def parameters(self) -> dict[str, Any]:
        """Return the parameters of the statement `list_failed_messages`."""
        return {
            "since": self.since,
            "until": self.until,
            "error_classes": list(self.error_classes),
            "run_ids": None if self.run_ids is None else list(self.run_ids),
            "config_id": self.config_id,
            "workspace_id": self.workspace_id,
        }


@dataclass(frozen=True)
class Requeued:
    """What a back-fill found and requeued."""

    found: int
    requeued: int
    runs: int


@dataclass(frozen=True)
class Holders:
    """The holders of messages under a live lease, and the database's time."""

    owners: Sequence[str]  # as `lease_owner` has them: `run 1a2b3c4d`, `run 1a2b3c4d inbox_… host/5e6f7a8b:pid`
    now: datetime
    seen: Mapping[str, datetime] = field(default_factory=dict)  # Dagster run -> its process's last presence
    up_since: datetime | None = None  # since when presence can be recorded in the database

    def has(self, run_id: str) -> bool:
        """Return whether a Dagster run holds messages."""
        return any(owner.split()[:2] == ["run", run_id[:8]] for owner in self.owners)

    def has_shard(self, run_id: str, key: str) -> bool:
        """Return whether a worker of this shard of a Dagster run holds messages."""
        return any(owner.split()[:3] == ["run", run_id[:8], key] for owner in self.owners)

    def silent(self, run_id: str) -> timedelta | None:
        """Return how long the run's process has not reported its presence while it could; None if it never did."""
        seen = self.seen.get(run_id)
        return None if seen is None else self.now - max(seen, self.up_since or seen)


class Operations:
    """One connection for one tick or step. A context manager; raises StoreUnavailable if there is no database."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: psycopg.Connection[DictRow] | None = None

    def __enter__(self) -> Self:
        with _translate_database_errors():
            self._connection = connect_rows(self._url, autocommit=True)  # no retries: the next tick comes in a minute
        return self

    def __exit__(self, *exception: object) -> None:
        if self._connection is not None:
            self._connection.close()

    def _run(self, name: str, **parameters: Any) -> "psycopg.Cursor[DictRow]":
        assert self._connection is not None
        # In one round trip, and for this transaction alone: a pooler would leak a session setting to others.
        with _translate_database_errors(), self._connection.pipeline(), self._connection.transaction():
            self._connection.execute("SET LOCAL statement_timeout = '50s'")  # a tick's own timeout is one minute
            return self._connection.execute(statement(name), parameters or None)

    def _all(self, name: str, **parameters: Any) -> list[dict[str, Any]]:
        return self._run(name, **parameters).fetchall()

    def _records(self, record: type[T], name: str, **parameters: Any) -> list[T]:
        return [record(**row) for row in self._all(name, **parameters)]

    def now(self) -> datetime:
        """Return the database's time."""
        now: datetime = self._all("read_clock")[0]["now"]
        return now

    def look(self) -> QueueLook:
        """Look at the queue: one statement, and two more if something is due soon."""
        look = QueueLook(**self._all("look_at_queue")[0])
        if not look.is_due_soon:
            return look
        return replace(look, runs=self._running_runs(), pauses=self._open_pauses())

    def _running_runs(self) -> tuple[RunningRun, ...]:
        return tuple(map(RunningRun.from_row, self._all("list_running_runs", run_id=None)))

    def _open_pauses(self) -> tuple[OpenPause, ...]:
        return tuple(map(OpenPause.from_row, self._all("look_at_pauses")))

    def is_due_within(self, seconds: float) -> bool:
        """Return whether a message may be due within some seconds, or lost its worker, by one cheap statement.

        `look` answers exactly.
        """
        return bool(self._all("is_due_soon", seconds=seconds)[0]["yes"])

    def holders(self) -> Holders:
        """Return the holders of messages under a live lease."""
        row = self._all("list_holders")[0]
        seen = {run_id: datetime.fromisoformat(at) for run_id, at in row["seen"].items()}
        return Holders(row["owners"], row["now"], seen, row["up_since"])

    def end_leases(self, owner: str) -> int:
        """Give back all messages of an owner whose process has ended; see campaign_end_leases. Returns how many."""
        return len(self._all("end_leases_of", owner=owner))

    def note_presence(self, run_id: str, host: str) -> None:
        """Record the presence of a Dagster run's process."""
        self._run("note_presence", run_id=run_id, host=host)

    def forget_presence(self, run_id: str) -> None:
        """Delete the presence of a Dagster run whose process has ended or is considered dead."""
        self._run("forget_presence", run_id=run_id)

    def backlog(self, cutoffs: Mapping[UUID, datetime]) -> dict[UUID, Backlog]:
        """Return how many messages of each run were due before its cutoff."""
        if not cutoffs:
            return {}
        rows = self._all("count_backlog", run_ids=list(cutoffs), cutoffs=list(cutoffs.values()))
        return {row["run_id"]: Backlog(row["messages"], row["oldest"]) for row in rows}

    def unknown_messages(self) -> int:
        """Count the failed messages of unknown outcome."""
        count: int = self._all("count_unknown_messages")[0]["messages"]
        return count

    def requeue_failed(self, wanted: FailedMessages) -> Requeued:
        """Return failed messages to the queue, without the parts that were sent.

        In transactions of a few thousand; after an interruption, launching it again continues.
        """
        rows = self._all("list_failed_messages", **wanted.parameters())
        back = requeue(self._all, [row["id"] for row in rows], resend_unknown="unknown" in wanted.error_classes)
        return Requeued(len(rows), len(back), len({row["run_id"] for row in rows if row["id"] in back}))

    def erased_leads(self, days: int) -> list[str]:
        """Return the ids of leads that were erased in the last days."""
        return [str(row["lead_id"]) for row in self._all("list_erased_leads", days=days)]

    def delete_old_logs(self, days: int) -> int:
        """Delete older campaign_logs in small batches; return how many rows."""
        return _in_batches(lambda: self._run("delete_old_logs", days=days, limit=DELETE_BATCH))

    def delete_old_model_calls(self, days: int) -> int:
        """Delete older refused and changed texts in small batches; return how many rows."""
        return _in_batches(lambda: self._run("delete_old_model_calls", days=days, limit=DELETE_BATCH))

    def delete_spent_pauses(self, days: int) -> int:
        """Delete slow-downs that are over, and pauses that were not probed for this long; return how many.

        Sums of past days are deleted with them.
        """
        self._run("delete_past_spending", days=days)
        return self._run("delete_spent_pauses", days=days).rowcount

    def trickle(self, made_by: str, leads: int) -> int:
        """Make a few sample messages due in the newest demo workspace; return how many."""
        rows = self._all("trickle_demo_campaign", made_by=made_by, leads=leads)
        return sum(row["messages"] for row in rows)


def requeue(rows: Callable[..., list[dict[str, Any]]], ids: Sequence[UUID], *, resend_unknown: bool) -> set[UUID]:
    """Requeue failed messages in transactions of a few thousand; return those that were requeued.

    `rows` runs a named statement with its parameters.
    """
    back: set[UUID] = set()
    for start in range(0, len(ids), REQUEUE_BATCH):
        some = list(ids[start : start + REQUEUE_BATCH])
        back.update(row["id"] for row in rows("requeue_failed", ids=some, resend_unknown=resend_unknown))
    return back


def _in_batches(delete: Callable[[], "psycopg.Cursor[DictRow]"]) -> int:
    """Delete until nothing is left; return how many rows."""
    deleted = 0
    while batch := delete().rowcount:
        deleted += batch
    return deleted


@contextlib.contextmanager
def _translate_database_errors() -> Iterator[None]:
    try:
        yield
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        cause = str(error).strip().partition("\n")[0]
        raise StoreUnavailable(f"The database did not answer: {cause}") from None
