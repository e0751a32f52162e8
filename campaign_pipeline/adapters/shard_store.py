"""The queue for one shard: leases, texts, the ledger, pauses, turns.

Over a small pool, with group commit for the frequent writes: a message's intent, and its end with the start of the next
one.
"""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from operator import attrgetter, itemgetter
from typing import Any
from uuid import UUID, uuid4

import psycopg
from psycopg_pool import AsyncConnectionPool

from campaign_pipeline.adapters.group_commit import GroupCommit, Turns
from campaign_pipeline.adapters.statements import (
    PATIENCE_SECONDS,
    Connection,
    ConnectionPool,
    Statements,
    borrowed,
    id_array,
    json_items,
    patiently,
)
from campaign_pipeline.core.model import LeasedMessage, Shard
from campaign_pipeline.core.numbers import KnownNumber, NumberNote
from campaign_pipeline.core.ports import (
    Attempt,
    BeginPart,
    Begun,
    FailureStreak,
    LogLine,
    Pause,
    Scope,
    Settled,
    Settlement,
    StoreUnavailable,
    Systemic,
    Throttled,
    Turn,
    Verdict,
)
from campaign_pipeline.core.results import FinishedMessage, Result
from campaign_pipeline.core.runs import RunningRun, RunWait, why_held
from campaign_pipeline.sql import statement

FRESH_SECONDS = 1.0
"""How long what was read of pauses and of the CRM's settings is used again."""


@dataclass(frozen=True)
class _Start:
    """A message that wants to ask the model."""

    id: str


@dataclass(frozen=True)
class _End:
    """The result of a message, or of a part of it."""

    id: str
    settlement: Settlement


class LeaseRenewals(Statements):
    """Renews the leases of one holder; see `core.ports.LeaseStore`. Connects for each renewal: they are rare."""

    def __init__(self, url: str, token: UUID, lease_seconds: float, patience_seconds: float) -> None:
        super().__init__(url, patience_seconds)
        self._token = token
        self._lease_seconds = lease_seconds

    async def renew(self, message_ids: Sequence[str]) -> set[str]:
        """See LeaseStore."""
        ids = id_array(message_ids)
        rows = await self._all("renew_leases", ids=ids, token=self._token, lease_seconds=self._lease_seconds)
        return {str(row["id"]) for row in rows}


class ShardStore:
    """The queue for one shard: `core.ports.DeliveryStore` under the shard's own lease token."""

    def __init__(
        self,
        pool: AsyncConnectionPool[Connection],
        url: str,
        shard: Shard,
        owner: str,
        lease_seconds: float,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self._pool = pool
        self._url = url
        self._patience = patience_seconds
        self._shard = shard
        self._owner = owner
        self._lease_seconds = lease_seconds
        self._token = uuid4()
        self._lines: list[LogLine] = []
        self._notes: dict[str, list[NumberNote]] = {}  # by provider
        self._pauses: tuple[float, list[Pause]] = (float("-inf"), [])
        self._held: dict[str, tuple[float, RunWait | None]] = {}  # run -> when it was read, and what holds it
        turns = Turns()
        # At most one item per message in a group: a set-based statement would apply only one of two.
        self._beginning = GroupCommit[dict[str, Any], Begun](self._begin_group, key=itemgetter("id"), turns=turns)
        # Together, because one message ends when another one starts: one round trip and one commit for both.
        self._turning = GroupCommit[_Start | _End, Verdict | Settled](
            self._turn_group, key=attrgetter("id"), turns=turns
        )

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        pool: ConnectionPool,
        url: str,
        shard: Shard,
        owner: str,
        lease_seconds: float,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> AsyncIterator["ShardStore"]:
        """Serve one shard over an open pool, which shards may share; write the rest of its log at the end.

        `url` is for renewals of leases, which have connections of their own. `patience_seconds` is how long each call
        waits for an unavailable database.
        """
        store = cls(pool, url, shard, owner, lease_seconds, patience_seconds)
        try:
            yield store
        finally:
            with contextlib.suppress(StoreUnavailable):
                await store.flush()

    def renewals(self) -> LeaseRenewals:
        """Return the renewer of this shard's leases, for any thread and event loop."""
        # A renewal that waited longer than until the next one would come too late.
        patience = min(self._patience, self._lease_seconds / 3)
        return LeaseRenewals(self._url, self._token, self._lease_seconds, patience)

    async def _all(self, name: str, **parameters: Any) -> list[dict[str, Any]]:
        async def call() -> list[dict[str, Any]]:
            async with borrowed(self._pool) as connection:
                return await (await connection.execute(statement(name), parameters)).fetchall()

        return await patiently(call, self._patience)

    async def take_over(self) -> tuple[list[LeasedMessage], dict[str, str], datetime | None]:
        """Put the shard's messages under our own token.

        Returns the messages that are now ours, why others were left (message -> verdict), and the database's time.
        """
        verdicts = await self._all(
            "take_over_messages",
            ids=id_array(self._shard.message_ids),
            batch_token=UUID(self._shard.batch_token),
            token=self._token,
            owner=self._owner,
            lease_seconds=self._lease_seconds,
        )
        verdict_of = {row["message_id"]: row["verdict"] for row in verdicts}
        # In the shard's order, which is by due time.
        taken = [message_id for message_id in self._shard.message_ids if verdict_of[message_id] == "taken"]
        left = {message_id: verdict for message_id, verdict in verdict_of.items() if verdict != "taken"}
        messages: list[LeasedMessage] = []
        now: datetime | None = None
        # In thousands: all rows of a large shard at once would be its largest use of memory.
        for first in range(0, len(taken), 1000):
            ids = id_array(taken[first : first + 1000])
            rows = await self._all("read_leased_messages", ids=ids, token=self._token)
            now = now or (rows[0]["now"] if rows else None)
            messages += [LeasedMessage.from_row(row) for row in rows]
        return messages, left, now

    async def finished(self, message_ids: Sequence[str]) -> list[tuple[str, Result]]:
        """Return which of these messages are finished, with their results from the ledger, whoever delivered them."""
        rows = await self._all("read_finished_messages", ids=id_array(message_ids))
        return [(str(message.id), message.result) for message in (FinishedMessage(**row) for row in rows)]

    async def with_last_inbound(self, messages: Sequence[LeasedMessage], hours: float) -> list[LeasedMessage]:
        """Return the messages with the time when their leads last wrote to this inbox, if within some hours."""
        ids = id_array(message.id for message in messages)
        inbox_id = UUID(self._shard.inbox_id)
        rows = await self._all("read_last_inbound", ids=ids, inbox_id=inbox_id, hours=math.ceil(hours))
        last = {str(row["message_id"]): float(row["last_inbound_at"]) for row in rows}
        return [replace(message, last_inbound_at=last.get(message.id)) for message in messages]

    async def start_generating(self, message_id: str) -> Verdict:
        """See DeliveryStore."""
        verdict = await self._turning.submit(_Start(message_id))
        assert isinstance(verdict, Verdict)
        return verdict

    async def begin_part(self, begin: BeginPart) -> Begun:
        """See DeliveryStore."""
        item = dict(vars(begin))
        item |= {"id": item.pop("message_id"), "token": str(self._token), "inbox_id": self._shard.inbox_id}
        item["template"] = None if begin.template is None else asdict(begin.template)
        item["calls"] = [asdict(call) for call in begin.calls]
        return await self._beginning.submit(item)

    async def why_held(self, run_id: str) -> RunWait | None:
        """See DeliveryStore."""
        now = asyncio.get_running_loop().time()
        read_at, wait = self._held.get(run_id, (float("-inf"), None))
        if now - read_at > FRESH_SECONDS:
            rows = await self._all("list_running_runs", run_id=UUID(run_id))
            # One that no longer runs is refused by its status.
            wait = why_held(RunningRun.from_row(rows[0]), UUID(self._shard.inbox_id)) if rows else None
            self._held[run_id] = (now, wait)
        return wait

    async def planned_times(self, message_ids: Sequence[str]) -> Mapping[str, float]:
        """See DeliveryStore."""
        ids = id_array(message_ids)
        rows = await self._all("read_planned_times", ids=ids, token=self._token)
        return {str(row["id"]): row["due_at"].timestamp() for row in rows}

    async def keep_text(self, begin: BeginPart) -> None:
        """See DeliveryStore."""
        await self.begin_part(replace(begin, part_no=0))

    async def _begin_group(self, items: Sequence[dict[str, Any]]) -> list[Begun]:
        rows = await self._all("begin_parts", items=json_items(items))
        begun = {
            str(row["message_id"]): Begun(
                Verdict(row["verdict"]),
                str(row["conversation_id"]) if row["conversation_id"] else None,
                Turn(row["wait_seconds"], row["wait_code"]) if row["wait_seconds"] is not None else None,
                row["grace_seconds"],
            )
            for row in rows
        }
        return [begun[item["id"]] for item in items]

    async def settle(self, settlement: Settlement) -> Settled:
        """See DeliveryStore."""
        settled = await self._turning.submit(_End(settlement.message_id, settlement))
        assert isinstance(settled, Settled)
        return settled

    async def _turn_group(self, items: Sequence[_Start | _End]) -> list[Verdict | Settled]:
        token = str(self._token)
        ends, starts = [], []
        for item in items:
            if isinstance(item, _End):
                fields = dict(vars(item.settlement))
                ends.append(fields | {"id": fields.pop("message_id"), "token": token})
            else:
                starts.append({"id": item.id, "token": token})
        if not starts:
            rows = await self._all("settle", ends=json_items(ends))
        elif not ends:
            rows = await self._all("start_generating", starts=json_items(starts))
        else:
            rows = await self._all("settle_and_start", ends=json_items(ends), starts=json_items(starts))
        answers: dict[str, Verdict | Settled] = {
            str(row["message_id"]): Verdict(row["verdict"])
            if row.get("verdict")
            else Settled(row["applied"], row["moved"], row["final"])
            for row in rows
        }
        return [answers[item.id] for item in items]

    async def pauses(self) -> Sequence[Pause]:
        """See DeliveryStore."""
        now = asyncio.get_running_loop().time()
        if now - self._pauses[0] > FRESH_SECONDS:
            rows = await self._all("read_pauses")
            found = [
                Pause(
                    Scope(r["scope"]), r["scope_id"], r["kind"], r["code"], r["reason"], max(0.0, float(r["seconds"]))
                )
                for r in rows
            ]
            self._pauses = (now, found)
        return self._pauses[1]

    async def open_pause(
        self, scope: Scope, scope_id: str, failure: Throttled | Systemic, message_id: str | None = None
    ) -> float:
        """See DeliveryStore."""
        rows = await self._all(
            "open_pause",
            scope=scope.value,
            scope_id=scope_id,
            kind="systemic" if isinstance(failure, Systemic) else "throttled",
            code=failure.code,
            reason=failure.reason,
            seconds=failure.retry_after,
            message_id=UUID(message_id) if message_id else None,
        )
        self._pauses = (float("-inf"), [])
        return max(0.0, float(rows[0]["seconds"])) if rows else 0.0

    async def note_failure(self, scope: Scope, scope_id: str, code: str, recipient: str) -> FailureStreak:
        """See DeliveryStore."""
        rows = await self._all(
            "note_failure", scope=scope.value, scope_id=scope_id, code=code, recipient=UUID(recipient)
        )
        return FailureStreak(rows[0]["failures"], rows[0]["recipients"])

    async def forget_failures(self, scope: Scope, scope_id: str) -> None:
        """See DeliveryStore."""
        await self._all("forget_failures", scope=scope.value, scope_id=scope_id)

    async def next_turn(self, message_id: str) -> Turn:
        """See DeliveryStore."""
        rows = await self._all("peek_turn", message_id=UUID(message_id), inbox_id=UUID(self._shard.inbox_id))
        return Turn(float(rows[0]["wait_seconds"]), rows[0]["wait_code"] or "paced")

    async def slow_down(self, inbox_id: str) -> float:
        """See DeliveryStore."""
        rows = await self._all("slow_inbox_down", inbox_id=UUID(inbox_id))
        return float(rows[0]["factor"])

    async def known_sends(self, inbox_id: str, attempt: Attempt) -> Attempt:
        """See DeliveryStore."""
        rows = await self._all(
            "find_control_part",
            inbox_id=UUID(inbox_id),
            address=attempt.envelope.address,
            started_at=attempt.started_at,
            message_id=UUID(attempt.envelope.message_id),
            text=attempt.envelope.text,
        )
        return replace(
            attempt,
            control_provider_id=rows[0]["control_provider_id"],
            taken_provider_ids=frozenset(rows[0]["taken_provider_ids"]),
            conversation_ids=tuple(rows[0]["conversation_ids"]),
        )

    def log(self, line: LogLine) -> None:
        """See DeliveryStore. Kept in memory until the next flush."""
        self._lines.append(line)

    async def known_numbers(
        self, provider: str, numbers: Sequence[str], days: float, missing_days: float
    ) -> Sequence[KnownNumber]:
        """See DeliveryStore."""
        rows = await self._all(
            "read_number_checks", provider=provider, numbers=list(numbers), days=days, missing_days=missing_days
        )
        return [KnownNumber.from_row(row) for row in rows]

    def note_number(self, provider: str, note: NumberNote) -> None:
        """See DeliveryStore. Kept in memory until the next flush; if lost with us, the number is checked again."""
        self._notes.setdefault(provider, []).append(note)

    async def _flush_numbers(self) -> None:
        pending, self._notes = self._notes, {}
        for provider, notes in pending.items():
            leads = {note.lead_id: note for note in notes if note.lead_id and note.reachable is not None}
            parameters = {
                "provider": provider,
                "inbox_id": UUID(self._shard.inbox_id),
                "checks": json_items(
                    vars(known) for known in {note.known.number: note.known for note in notes}.values()
                ),
                "leads": json_items(
                    {"lead_id": lead_id, "reachable": note.reachable, "jid": note.known.jid}
                    for lead_id, note in leads.items()
                ),
            }
            # If the CRM refuses this (by its own constraint), the heartbeat must survive; a check can be repeated.
            with contextlib.suppress(psycopg.DataError, psycopg.IntegrityError, psycopg.ProgrammingError):
                await self._do("keep_number_checks", parameters)

    async def flush(self) -> None:
        """See DeliveryStore."""
        await self._flush_numbers()
        lines, self._lines = self._lines, []
        if not lines:
            return
        try:
            await self._write(lines)
        except StoreUnavailable:
            self._lines = lines + self._lines  # with the next flush
            raise
        except psycopg.Error:
            # A line that the CRM's table refuses (by its own constraint, or for an invalid id) must not affect other
            # lines or the heartbeat that writes them.
            for line in lines:
                with contextlib.suppress(psycopg.Error):
                    await self._write([line])

    async def _write(self, lines: Sequence[LogLine]) -> None:
        await self._do("write_logs", {"lines": json_items(lines)})

    async def _do(self, name: str, parameters: Mapping[str, Any]) -> None:
        async def call() -> None:
            async with borrowed(self._pool) as connection:
                await connection.execute(statement(name), parameters)

        await patiently(call, self._patience)
