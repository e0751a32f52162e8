"""Commits what one message did: its text, its attempts, its end. `MessageDelivery` decides; this class writes.

A commit under way is finished even if the message's task is cancelled meanwhile.
"""

import asyncio
from collections.abc import Coroutine, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from campaign_pipeline.core.model import ErrorClass, LeasedMessage, MessageStatus, PartStatus
from campaign_pipeline.core.model_bill import ModelBill, lost_call
from campaign_pipeline.core.parts import Part, recorded
from campaign_pipeline.core.ports import (
    BeginPart,
    Begun,
    ModelCall,
    Outcome,
    Settled,
    Settlement,
    StoreUnavailable,
    Verdict,
)
from campaign_pipeline.core.results import LEASE_LOST, MESSAGE_GONE, Fail, Lost, Result, Sent
from campaign_pipeline.core.shard_context import ShardContext

T = TypeVar("T")


class MessageLedger:
    """Holds what the database does not know yet of one message, and commits it."""

    def __init__(self, message: LeasedMessage, shared: ShardContext) -> None:
        self._message = message
        self._id = message.id
        self._shared = shared
        self._commit: asyncio.Task[Any] | None = None
        self.text: dict[str, Any] = {}  # of BeginPart: to be committed with the first attempt, or with the end
        self.bill = ModelBill()
        # The settlement of the attempt under way if nothing more happened to it.
        self.attempt: Settlement | None = None

    async def durably(self, commit: Coroutine[Any, Any, T]) -> T:
        """Await a commit that continues even if this message's task is cancelled."""
        self._commit = task = asyncio.ensure_future(commit)
        try:
            return await asyncio.shield(task)
        finally:
            if task.done():
                self._commit = None

    async def wait_for_commit(self) -> None:
        """Wait until no commit is under way; a cancelled task may have left one."""
        if self._commit is not None:
            await asyncio.wait([self._commit])

    # An attempt -----------------------------------------------------------------------------------------------------

    async def begin(self, part: Part, begin: BeginPart) -> Begun:
        """Commit the text, and the intent to send a part."""
        return await self.durably(self._begin(part, begin))

    async def _begin(self, part: Part, begin: BeginPart) -> Begun:
        begun = await self._shared.store.begin_part(replace(begin, **self.text))
        if begun.verdict in {Verdict.GO, Verdict.PACED, Verdict.NOT_DUE}:
            self.text = {}  # it is stored: a message that waits for a turn asks without it
        if begun.verdict == Verdict.GO:
            self.note_unrequested(part)
        return begun

    def note_unrequested(self, part: Part) -> None:
        """Note that only the intent is committed: no request was made."""
        planned = PartStatus.PLANNED.value
        self.attempt = Settlement(self._id, part.no, part.attempts, outcome=planned, unrequested=True)

    def note_request(self, part: Part) -> None:
        """Note that a request is made now: until it is answered, its outcome is unknown."""
        self.attempt = Settlement(self._id, part.no, part.attempts, PartStatus.UNKNOWN.value)

    def note_look_up(self, part: Part, *, asked: bool) -> None:
        """Note that the provider was asked about an earlier attempt, if it can be asked."""
        unknown = PartStatus.UNKNOWN.value
        self.attempt = Settlement(self._id, part.no, part.attempts, outcome=unknown, looked_up=asked)

    def note_outcome(self, outcome: Outcome, milliseconds: int | None = None) -> None:
        """Note the provider's answer."""
        assert self.attempt is not None
        self.attempt = recorded(self.attempt, outcome, milliseconds)

    def note_not_sent(self) -> None:
        """Note that the attempt surely was not sent."""
        assert self.attempt is not None
        self.attempt = replace(self.attempt, outcome=PartStatus.PLANNED.value)

    def drop_answer(self) -> bool:
        """Drop the provider's answer, in case it is what cannot be stored; return whether the request left."""
        attempt = self.attempt
        assert attempt is not None
        left = attempt.outcome in {PartStatus.UNKNOWN, PartStatus.SENT}
        outcome = PartStatus.UNKNOWN if left else PartStatus.PLANNED
        self.attempt = Settlement(
            self._id, attempt.part_no, attempt.attempt_no, outcome.value, unrequested=attempt.unrequested
        )
        return left

    async def record(self, part: Part, status: PartStatus, code: str | None = None, reason: str | None = None) -> None:
        """Commit the outcome of the attempt under way; the message goes on."""
        assert self.attempt is not None
        attempt = replace(self.attempt, outcome=status.value, code=code, reason=reason)
        await self.durably(self._settle(attempt))
        part.status = status

    async def _settle(self, settlement: Settlement) -> Settled:
        settled = await self._shared.store.settle(settlement)
        if settlement.outcome is not None:
            self.attempt = None
        if settlement.outcome == PartStatus.SENT:
            self._shared.report.parts_sent += 1
            if settlement.duration_ms is not None:
                self._shared.report.send_ms.append(settlement.duration_ms)
        return settled

    # Its end --------------------------------------------------------------------------------------------------------

    async def end(self, result: Result) -> Result:
        """Commit a result; return it, or what happened to the lease if the store could not commit it."""
        settled = await self._settle(self._settlement(result))
        done = (
            settled.final in {MessageStatus.SENT, MessageStatus.REPLIED} if isinstance(result, Sent) else settled.moved
        )
        if done:
            return result
        return MESSAGE_GONE if settled.final is None else LEASE_LOST

    def _settlement(self, result: Result) -> Settlement:
        """Combine the result with what is known of the attempt under way."""
        attempt = self.attempt or Settlement(self._id)
        if isinstance(result, Sent):
            return attempt  # the message is sent by its last part
        if isinstance(result, Fail) and result.error_class is ErrorClass.PERMANENT and attempt.part_no is not None:
            attempt = replace(attempt, outcome=PartStatus.FAILED.value)
        return replace(
            attempt,
            status=None if result.status is None else result.status.value,
            error_class=result.error_class,
            code=result.code,
            reason=result.reason,
            delay_seconds=result.delay_seconds,
            count_attempt=result.count_attempt,
        )

    def given_back(self, result: Result) -> Result:
        """Return the give-back of a message whose request may have left: looked up once a late record must be there."""
        if self.attempt is None or self.attempt.outcome != PartStatus.UNKNOWN:
            return result
        delay = self._shared.policy.retry.look_up_patience_seconds
        return replace(result, error_class=ErrorClass.UNKNOWN, delay_seconds=delay)

    # Its text -------------------------------------------------------------------------------------------------------

    async def store_text(self, address: str) -> None:
        """Store the text, if it is not stored yet."""
        if self.text:
            await self.durably(self._store(address, self.text))
            self.text = {}

    async def keep_text(self, address: str, result: Result) -> None:
        """Store a text that was paid for, though its first part may not leave now (I3).

        The cost of its requests is booked however the message ended, because spending limits count it. If the lease is
        lost, only the cost is booked: the message's new holder writes its own text.
        """
        text, self.text = self.text | self.bill.pop(), {}
        if isinstance(result, Lost):
            calls: tuple[ModelCall, ...] = text.get("calls", ())
            if cost := text.get("ai_cost_usd"):
                calls += (lost_call(text.get("ai_model"), cost),)
            text = {"calls": calls} if calls else {}
        if not text:
            return
        try:
            await self.durably(self._store(address, text))
        except StoreUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 (a text that cannot be stored must not keep its message from ending)
            reason = f"The text could not be kept ({type(error).__name__}); it will be written anew."
            self._shared.log(self._message, "prepare", "warning", reason)

    async def _store(self, address: str, text: Mapping[str, Any]) -> None:
        await self._shared.store.keep_text(BeginPart(self._id, 1, 1, address, self._shared.channel_kind, **text))
