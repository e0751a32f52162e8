"""A holder of leases: the named statements as the adapters issue them, on one plain connection."""

import asyncio
import time
from collections.abc import Iterable
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

from psycopg.types.json import Jsonb

from campaign_pipeline.adapters.operations import Operations
from campaign_pipeline.adapters.queue import Batch, BatchOptions, Queue
from campaign_pipeline.core.upkeep import QueueLook
from campaign_pipeline.sql import statement
from campaign_pipeline_tests.factories import World

PHONE = "5511987654321"


def rows(world: World, name: str, **parameters: Any) -> list[dict[str, Any]]:
    """What a named statement returns."""
    return world.connection.execute(statement(name), parameters).fetchall()


def run_statement(world: World, name: str, **parameters: Any) -> int:
    """Run a named statement that returns nothing; return the number of rows that it changed."""
    return world.connection.execute(statement(name), parameters).rowcount


def look(world: World) -> QueueLook:
    """Return a tick's look at the queue."""
    with Operations(world.url) as operations:
        return operations.look()


def claim_batch(world: World, batch_size: int = 100, **options: Any) -> Batch:
    """A whole batch, as the first step of the job claims it."""
    queue = Queue(world.url, patience_seconds=0)
    return asyncio.run(queue.claim_batch(BatchOptions(batch_size=batch_size, owner="test", **options)))


def claimed_ids(batch: Batch) -> set[UUID]:
    """The messages of a batch."""
    return {row.message_id for row in batch.rows}


def insert_due(world: World, run: UUID, count: int, age: timedelta = timedelta(minutes=1), **columns: Any) -> None:
    """Many due messages to leads of no workspace, in one statement; the first one is the oldest."""
    names = "".join(f", {name}" for name in columns)
    lead = "" if "lead_id" in columns else ", lead_id"
    world.do(
        "WITH made AS (INSERT INTO leads (client_name) SELECT 'Ana' FROM generate_series(1, %s) RETURNING id)"
        f"INSERT INTO campaign_messages (run_id, scheduled_at{names}{lead}) "
        f"SELECT %s, campaign_now() - %s + row_number() OVER () * interval '1 ms'{', %s' * len(columns)}"
        f"{lead and ', id'} FROM made",
        count,
        run,
        age,
        *columns.values(),
    )


def wait_until_blocked(world: World) -> None:
    """Return when a connection to this database waits for a lock of another."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    give_up = time.monotonic() + 20
    while not world.value(query):
        assert time.monotonic() < give_up, "nobody waits"


class Holder:
    """A separate shard: takes over messages and delivers them under one token."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.token = uuid4()

    def take_over(
        self, messages: Iterable[UUID], batch_token: UUID | None = None, lease_seconds: float = 120.0
    ) -> dict[UUID, str]:
        """Verdicts by message."""
        taken = rows(
            self.world,
            "take_over_messages",
            ids=list(messages),
            batch_token=batch_token or uuid4(),
            token=self.token,
            owner="run 1234 inbox_1",
            lease_seconds=lease_seconds,
        )
        return {UUID(row["message_id"]): row["verdict"] for row in taken}

    def renew(self, messages: Iterable[UUID], lease_seconds: float = 120.0) -> set[UUID]:
        """What is still held."""
        renewed = rows(self.world, "renew_leases", ids=list(messages), token=self.token, lease_seconds=lease_seconds)
        return {row["id"] for row in renewed}

    def _items(self, items: Iterable[dict[str, Any]]) -> Jsonb:
        plain = [{k: str(v) if isinstance(v, UUID) else v for k, v in item.items()} for item in items]
        return Jsonb([{"token": str(self.token), **item} for item in plain])

    def start_generating(self, message: UUID) -> str:
        """The verdict."""
        (row,) = rows(self.world, "start_generating", starts=self._items([{"id": message}]))
        return str(row["verdict"])

    def begin_all(self, items: Iterable[dict[str, Any]]) -> dict[UUID, dict[str, Any]]:
        """One group of intents; answers by message."""
        common = {"part_no": 1, "attempt_no": 1, "address": PHONE, "channel": "whatsapp", "contact_name": "Ana"}
        begun = rows(self.world, "begin_parts", items=self._items({**common, **item} for item in items))
        return {row["message_id"]: row for row in begun}

    def begin(self, message: UUID, part_no: int = 1, attempt_no: int = 1, **item: Any) -> str:
        """Commit one intent; return the verdict."""
        answers = self.begin_all([{"id": message, "part_no": part_no, "attempt_no": attempt_no, **item}])
        return str(answers[message]["verdict"])

    def begin_new(self, message: UUID, *parts: str, **item: Any) -> str:
        """Commit the intent to send the first part of a new text."""
        parts = parts or ("Olá, Ana!",)
        return self.begin(message, text=" ".join(parts), parts=list(parts), ai_model="m", ai_tokens_used=9, **item)

    def settle_all(self, items: Iterable[dict[str, Any]]) -> dict[UUID, dict[str, Any]]:
        """One group of settlements; answers by message."""
        settled = rows(self.world, "settle", ends=self._items(items))
        return {row["message_id"]: row for row in settled}

    def settle(self, message: UUID, **item: Any) -> dict[str, Any]:
        """One settlement: applied, moved, final."""
        answer = self.settle_all([{"id": message, **item}])[message]
        return {key: answer[key] for key in ("applied", "moved", "final")}

    def sent(self, message: UUID, part_no: int = 1, attempt_no: int = 1, **item: Any) -> dict[str, Any]:
        """The provider accepted a part."""
        provider_id = f"WA-{message.hex[:8]}-{part_no}"
        return self.settle(
            message,
            **{
                "part_no": part_no,
                "attempt_no": attempt_no,
                "outcome": "sent",
                "provider_message_id": provider_id,
                "duration_ms": 40,
                **item,
            },
        )


def holding(world: World, *messages: UUID) -> Holder:
    """A holder of these due messages."""
    holder = Holder(world)
    assert set(holder.take_over(messages).values()) == {"taken"}
    return holder


def message(world: World, message_id: UUID) -> dict[str, Any]:
    """A message's row."""
    return world.one("SELECT * FROM campaign_messages WHERE id = %s", message_id)


def parts(world: World, message_id: UUID) -> list[dict[str, Any]]:
    """A message's ledger, in order."""
    return world.all("SELECT * FROM campaign_message_parts WHERE message_id = %s ORDER BY part_no", message_id)


def part_states(world: World, message_id: UUID) -> list[tuple[str, int]]:
    """Status and number of attempts of each part, in order."""
    return [(part["status"], part["attempts"]) for part in parts(world, message_id)]


def run_row(world: World, run: UUID) -> dict[str, Any]:
    """A run's row."""
    return world.one("SELECT * FROM campaign_runs WHERE id = %s", run)
