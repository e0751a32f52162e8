"""The queue as schedules, sensors, back-fills and maintenance see it: short looks, and changes in small batches."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Self
from uuid import UUID

import psycopg
from psycopg.rows import DictRow

from campaign_pipeline.adapters.queue_connection import connect_rows
from campaign_pipeline.core.ports import StoreUnavailable
from campaign_pipeline.core.runs import OpenPause, RunningRun
from campaign_pipeline.core.upkeep import Backlog, QueueLook
from campaign_pipeline.sql import statement

REQUEUE_BATCH = 2000
"""Messages that go back in one transaction: their runs stay locked for a fraction of a second."""

DELETE_BATCH = 5000

DEMO = "campaign-pipeline demo"
"""In `workspaces.settings` under made_by: marks what may be sent to a sandbox by itself, as nothing else may."""


@dataclass(frozen=True)
class FailedMessages:
    """Which failed messages are wanted again: those that failed in [since, until), narrowed by what is not None."""

    since: datetime
    until: datetime
    error_classes: Sequence[str]
    run_ids: Sequence[UUID] | None = None
    config_id: UUID | None = None
    workspace_id: UUID | None = None

    def parameters(self) -> dict[str, Any]:
        """Of the statement `list_failed_messages`."""
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
    """What a back-fill found and put back."""

    found: int
    requeued: int
    runs: int


@dataclass(frozen=True)
class Holders:
    """Who holds messages under a live lease, and what time it is by the database's clock."""

    owners: Sequence[str]  # as `lease_owner` has them: `run 1a2b3c4d`, `run 1a2b3c4d inbox_… host:pid`
    now: datetime
    seen: Mapping[str, datetime] = field(default_factory=dict)  # Dagster run -> when its process last showed itself
    up_since: datetime | None = None  # since when the database can be told anything at all

    def has(self, run_id: str) -> bool:
        """Whether a Dagster run does."""
        return any(owner.split()[:2] == ["run", run_id[:8]] for owner in self.owners)

    def has_shard(self, run_id: str, key: str) -> bool:
        """Whether a worker of this shard of a Dagster run does."""
        return any(owner.split()[:3] == ["run", run_id[:8], key] for owner in self.owners)

    def silent(self, run_id: str) -> timedelta | None:
        """For how long the run's process has not shown itself while it could; None: it never has."""
        seen = self.seen.get(run_id)
        return None if seen is None else self.now - max(seen, self.up_since or seen)


class Operations:
    """One connection for one tick or step. A context manager; raises StoreUnavailable where the database is away."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: psycopg.Connection[DictRow] | None = None

    def __enter__(self) -> Self:
        with _translate_database_errors():
            self._connection = connect_rows(self._url, autocommit=True)  # no patience: the next tick comes in a minute
        return self

    def __exit__(self, *exception: object) -> None:
        if self._connection is not None:
            self._connection.close()

    def _run(self, name: str, **parameters: Any) -> "psycopg.Cursor[DictRow]":
        assert self._connection is not None
        # In one round trip, and for this transaction alone: a pooler would hand a session's setting to anybody.
        with _translate_database_errors(), self._connection.pipeline(), self._connection.transaction():
            self._connection.execute("SET LOCAL statement_timeout = '50s'")  # a tick's own time-out is a minute
            return self._connection.execute(statement(name), parameters or None)

    def _all(self, name: str, **parameters: Any) -> list[dict[str, Any]]:
        return self._run(name, **parameters).fetchall()

    def now(self) -> datetime:
        """What time it is."""
        now: datetime = self._all("read_clock")[0]["now"]
        return now

    def look(self) -> QueueLook:
        """Look at the queue: one statement, and two more where something is due soon."""
        look = QueueLook(**self._all("look_at_queue")[0])
        if not look.is_due_soon:
            return look
        runs = tuple(map(RunningRun.from_row, self._all("list_running_runs")))
        return replace(look, runs=runs, pauses=tuple(map(OpenPause.from_row, self._all("look_at_pauses"))))

    def is_due_within(self, seconds: float) -> bool:
        """Whether anything may be worked so soon, as far as one cheap statement can tell; `look` says for sure."""
        return bool(self._all("is_due_soon", seconds=seconds)[0]["yes"])

    def holders(self) -> Holders:
        """Who holds messages under a live lease."""
        row = self._all("list_holders")[0]
        seen = {run_id: datetime.fromisoformat(at) for run_id, at in row["seen"].items()}
        return Holders(row["owners"], row["now"], seen, row["up_since"])

    def end_leases(self, owner: str) -> int:
        """Give back all that an owner holds whose process has ended; see campaign_end_leases. Returns how much."""
        return len(self._all("end_leases_of", owner=owner))

    def note_presence(self, run_id: str, host: str) -> None:
        """The process of a Dagster run shows itself."""
        self._run("note_presence", run_id=run_id, host=host)

    def forget_presence(self, run_id: str) -> None:
        """The process of a Dagster run has ended, or is taken for dead."""
        self._run("forget_presence", run_id=run_id)

    def backlog(self, cutoffs: Mapping[UUID, datetime]) -> dict[UUID, Backlog]:
        """How many messages of each run were due before its cutoff."""
        if not cutoffs:
            return {}
        rows = self._all("count_backlog", run_ids=list(cutoffs), cutoffs=list(cutoffs.values()))
        return {row["run_id"]: Backlog(row["messages"], row["oldest"]) for row in rows}

    def unknown_messages(self) -> int:
        """How many messages ended without anybody knowing whether they went out."""
        count: int = self._all("count_unknown_messages")[0]["messages"]
        return count

    def requeue_failed(self, wanted: FailedMessages) -> Requeued:
        """Put failed messages back in the queue, what was sent of them left out.

        In transactions of a few thousand: one that is interrupted half way is gone on with by launching it again.
        """
        rows = self._all("list_failed_messages", **wanted.parameters())
        back = requeue(self._all, [row["id"] for row in rows], resend_unknown="unknown" in wanted.error_classes)
        return Requeued(len(rows), len(back), len({row["run_id"] for row in rows if row["id"] in back}))

    def erased_leads(self, days: int) -> list[str]:
        """Ids of the leads that were erased in so many days."""
        return [str(row["lead_id"]) for row in self._all("list_erased_leads", days=days)]

    def delete_old_logs(self, days: int) -> int:
        """Delete campaign_logs older than that, in small batches; returns how many rows."""
        return _in_batches(lambda: self._run("delete_old_logs", days=days, limit=DELETE_BATCH))

    def delete_old_model_calls(self, days: int) -> int:
        """Delete refused and changed texts older than that, in small batches; returns how many rows."""
        return _in_batches(lambda: self._run("delete_old_model_calls", days=days, limit=DELETE_BATCH))

    def delete_spent_pauses(self, days: int) -> int:
        """Delete slow-downs that are over, and pauses that nobody has tried for so long; returns how many.

        The sums of days that are over go with them.
        """
        self._run("delete_past_spending", days=days)
        return self._run("delete_spent_pauses", days=days).rowcount

    def trickle(self, made_by: str, leads: int) -> int:
        """Let a few made-up messages become due in the newest demo workspace; returns how many."""
        rows = self._all("trickle_demo_campaign", made_by=made_by, leads=leads)
        return sum(row["messages"] for row in rows)


def requeue(rows: Callable[..., list[dict[str, Any]]], ids: Sequence[UUID], *, resend_unknown: bool) -> set[UUID]:
    """Put failed messages back, in transactions of a few thousand; returns those that are back.

    `rows` runs a named statement with its parameters.
    """
    back: set[UUID] = set()
    for start in range(0, len(ids), REQUEUE_BATCH):
        some = list(ids[start : start + REQUEUE_BATCH])
        back.update(row["id"] for row in rows("requeue_failed", ids=some, resend_unknown=resend_unknown))
    return back


def _in_batches(delete: Callable[[], "psycopg.Cursor[DictRow]"]) -> int:
    """Delete until nothing is left; returns how many rows."""
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
