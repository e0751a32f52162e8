"""Texts before they are sent: the next ones, the stored ones, and a person's decisions."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from math import ceil
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from campaign_pipeline.adapters.statements import Statements
from campaign_pipeline.core.model import LeasedMessage
from campaign_pipeline.core.ports import BeginPart, Pause, Scope


@dataclass(frozen=True)
class RunToReview:
    """A run that is not over, and its campaign's review setting."""

    id: UUID
    name: str
    status: str
    review: str  # none, first_n, all
    review_first: int | None


@dataclass(frozen=True)
class NextMessage:
    """A waiting message, as a shard would deliver it."""

    message: LeasedMessage
    lead: str | None  # its name
    planned_at: datetime | None
    now: datetime  # by the database's clock


@dataclass(frozen=True)
class Decision:
    """A person's decision on a text."""

    message_id: str
    decision: str  # approved, rejected
    text: str | None = None  # the edited text, if it was edited
    subject: str | None = None


class Reviews(Statements):
    """Previews and reviews on the queue's database."""

    async def find_run(self, name: str) -> RunToReview | None:
        """Return the newest run that is not over, by its name or id, or its campaign's."""
        rows = await self._all("find_runs", wanted=name)
        return RunToReview(*(rows[0][key] for key in RunToReview.__dataclass_fields__)) if rows else None

    async def next_messages(self, run_id: UUID, most: int, *, unwritten: bool = False) -> list[NextMessage]:
        """Return the next messages of a run without a sent part; `unwritten`: only those without a text."""
        rows = await self._all("list_next_messages", run_id=run_id, most=most, unwritten=unwritten)
        return [NextMessage(LeasedMessage.from_row(row), row["lead"], row["planned_at"], row["now"]) for row in rows]

    async def with_last_inbound(self, messages: Sequence[LeasedMessage], hours: float) -> list[LeasedMessage]:
        """Return the messages with the time when their leads last wrote to the inbox, if within some hours."""
        ids, inbox_id = [UUID(message.id) for message in messages], UUID(messages[0].inbox_id)
        rows = await self._all("read_last_inbound", ids=ids, inbox_id=inbox_id, hours=ceil(hours))
        last = {str(row["message_id"]): float(row["last_inbound_at"]) for row in rows}
        return [replace(message, last_inbound_at=last.get(message.id)) for message in messages]

    async def keep(self, texts: Iterable[BeginPart], inbox_id: str) -> set[str]:
        """Store texts for messages that still have none; return the messages whose text is now this one."""
        items = [_item(text, inbox_id) for text in texts]
        rows = await self._all("keep_texts", items=Jsonb(items)) if items else []
        return {str(row["message_id"]) for row in rows}

    async def note_costs(self, costs: Mapping[str, float]) -> None:
        """Book the cost of texts that were not stored, for spending limits."""
        items = [{"id": message_id, "cost": cost} for message_id, cost in costs.items() if cost > 0]
        if items:
            await self._all("note_trial_costs", items=Jsonb(items))

    async def pauses(self) -> list[Pause]:
        """Return what is paused now."""
        rows = await self._all("read_pauses")
        return [
            Pause(Scope(r["scope"]), r["scope_id"], r["kind"], r["code"], r["reason"], max(0.0, float(r["seconds"])))
            for r in rows
        ]

    async def waiting(self, run_id: UUID, most: int) -> list[dict[str, Any]]:
        """Return the texts of a run that wait for review."""
        return await self._all("list_reviews", run_id=run_id, most=most)

    async def decided(self, run_id: UUID) -> int:
        """Count the decided texts of a run."""
        return int((await self._all("count_decided", run_id=run_id))[0]["decided"])

    async def decide(self, decisions: Sequence[Decision], by: str) -> set[str]:
        """Record decisions; return the messages for which they came in time."""
        items = [
            {"id": each.message_id, "decision": each.decision, "text": each.text, "subject": each.subject}
            for each in decisions
        ]
        rows = await self._all("decide_reviews", items=Jsonb(items), by=by) if items else []
        return {str(row["message_id"]) for row in rows}


def _item(text: BeginPart, inbox_id: str) -> dict[str, Any]:
    """Return a text as campaign_begin_parts expects it."""
    fields = {key: value for key, value in vars(text).items() if value is not None}
    fields |= {"id": fields.pop("message_id"), "inbox_id": inbox_id}
    if text.template is not None:
        fields["template"] = asdict(text.template)
    return fields | {"calls": [asdict(call) for call in text.calls]}
