"""The life of a shard, above the life of a message, above the life of a part.

A shard keeps a window of `concurrency` messages in flight: as one ends the next begins, and none waits for a chunk to
finish. A message leaves its place when its last request is answered, not when that is written down: places are for
requests. Every request to a provider has its intent committed before it and its outcome after it; every step asks the
store, which answers `go` only to the holder of the lease.
"""

import asyncio
import math
import random
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, NoReturn, TypeVar

from campaign_pipeline.core.address import InvalidAddress, normalize_email
from campaign_pipeline.core.ahead import AskedAhead
from campaign_pipeline.core.crew import Crew
from campaign_pipeline.core.gate import Gate, NotNow, Watch
from campaign_pipeline.core.model import (
    BatchSettings,
    ErrorClass,
    Lead,
    LeasedMessage,
    MessageStatus,
    PartStatus,
    Shard,
    ShardReport,
)
from campaign_pipeline.core.number_book import NumberBook, own_number
from campaign_pipeline.core.numbers import NOT_ON_WHATSAPP
from campaign_pipeline.core.ports import (
    Absent,
    Attempt,
    BeginPart,
    Clock,
    DeliveryStore,
    Envelope,
    Failure,
    Found,
    LanguageModel,
    LookUp,
    LookUpAnswer,
    LookUpFailed,
    MessageChannel,
    Permanent,
    Scope,
    Sent,
    Settled,
    Settlement,
    StoreUnavailable,
    Systemic,
    Throttled,
    Transient,
    Unknown,
)
from campaign_pipeline.core.retry import Decision, RetryPolicy
from campaign_pipeline.core.window import InvalidWindow, SendingWindow
from campaign_pipeline.core.work import MessageLog, OpenAttempt, Part, Work
from campaign_pipeline.core.writing import NotWritten, TextWriter, Turns, WritingPolicy

T = TypeVar("T")

SUPPRESSED = "suppressed"
"""The store's word for a lead or address that may not be written to."""

CONTACTED_TODAY = "contacted_today"
"""The store's word for a lead that gets one message a day and has it."""


@dataclass(frozen=True)
class DeliveryPolicy(WritingPolicy):
    """How a shard works."""

    retry: RetryPolicy = field(default_factory=RetryPolicy)
    lease_seconds: float = 120.0
    number_check_days: float = 0.0  # how long "has an account" is believed; 0: no number is checked
    number_recheck_days: float = 7.0  # how long "has none" is believed
    grace_seconds: float = 20.0  # for requests in flight when the shard is told to stop


class _Stop(Exception):
    """End a message's life here; everything about it is committed."""


@dataclass
class ShardDelivery:
    """One shard at work."""

    shard: Shard
    messages: Sequence[LeasedMessage]
    started_at: datetime  # by the database's clock, when the messages were read
    settings: BatchSettings
    leads: Mapping[str, Lead]
    store: DeliveryStore
    model: LanguageModel
    channel: MessageChannel
    channel_kind: str  # whatsapp, email
    clock: Clock
    policy: DeliveryPolicy = field(default_factory=DeliveryPolicy)
    chance: Callable[[], float] = random.random
    leased_at: float | None = None  # by `clock`, before the messages were taken over; None: now
    report: ShardReport = field(init=False)

    def __post_init__(self) -> None:
        self.report = ShardReport(self.shard.key, self.shard.inbox_id, claimed=len(self.messages))
        self._waiting: deque[LeasedMessage] = deque(self.messages)
        self._live: dict[str, LeasedMessage] = {message.id: message for message in self.messages}
        self._works: dict[str, Work] = {}  # under way
        self._open: dict[str, OpenAttempt] = {}  # by message
        self._commits: dict[str, asyncio.Future[Any]] = {}  # by message: what must not be torn by a cancellation
        self._crew = Crew()
        self._leaving: set[str] = set()  # messages whose end is being committed, out of their place
        self._places = 0
        self._ahead = AskedAhead(self.store.start_generating, self.clock)
        self._windows: dict[str, SendingWindow | InvalidWindow] = {}
        self._checks_numbers = self.policy.number_check_days > 0 and self.channel_kind == "whatsapp"
        self._stopping: str | None = None
        self._stopped = asyncio.Event()
        self._origin = self.clock.monotonic()
        leased_at = self._origin if self.leased_at is None else self.leased_at
        self._lease_good_until = leased_at + self.policy.lease_seconds
        self._log = MessageLog(self.store.log)
        self._numbers = NumberBook(self.store, self.channel, self._log)
        watch = Watch(self._end_unbegun, self._end_waiting)
        self._gate = Gate(
            self.settings, self.policy, self.store, self.clock, self.chance, self._stopped, self._log, watch
        )
        turns = Turns(self._model_turn, self._model_now, self._gate.close, self.store.pauses, self._log, self._hears)
        self._writer = TextWriter(
            self.model, self.settings, self.channel.traits, self.policy, self.clock, self.report, turns
        )

    # A shard's life -------------------------------------------------------------------------------------------------

    async def run(self, concurrency: int) -> ShardReport:
        """Work every message, at most `concurrency` at once; give back what is left, whatever ends it.

        Raises StoreUnavailable when the database stays away: leases then expire by themselves.
        """
        self._places = concurrency
        heartbeat = asyncio.create_task(self._keep_leases())
        try:
            await self._check_connection()
            await self._recall_numbers()
            for _ in range(min(concurrency, len(self.messages))):
                self._crew.start(self._work())
            await self._crew.ended()
        except asyncio.CancelledError:
            self.stop("The run was terminated.")
            await self._crew.finish(self.policy.grace_seconds)
            raise
        except StoreUnavailable:
            self._live.clear()  # nothing can be given back: the leases expire
            raise
        finally:
            heartbeat.cancel()
            await asyncio.gather(self._crew.cancel(), self._ahead.forget(), heartbeat, return_exceptions=True)
            await self._give_back_rest()
            self.report.seconds = round(self.clock.monotonic() - self._origin, 3)
        return self.report

    def stop(self, reason: str) -> None:
        """Start nothing new: requests in flight end and are recorded, the rest goes back to the queue."""
        self._stopping = self._stopping or reason
        self.report.stopped_by = self._stopping
        self._stopped.set()

    async def _check_connection(self) -> None:
        """Ask once for the whole shard, before anything is generated for an inbox that cannot send."""
        if not self.messages:
            return
        try:
            refusal = await self.channel.check_connection()
        except Exception as error:  # noqa: BLE001 (a question that could not be asked: sending will tell)
            text = f"{type(error).__name__} while the inbox was asked for its state; this is a bug of the pipeline."
            self._log(self.messages[0], "prepare", "warning", text)
            return
        if isinstance(refusal, Systemic | Throttled):
            await self._gate.close(self.messages[0], refusal)

    async def _recall_numbers(self) -> None:
        if self._checks_numbers:
            messages = [(message, self._lead_of(message)) for message in self.messages]
            await self._numbers.recall(messages, self.policy.number_check_days, self.policy.number_recheck_days)

    def _lead_of(self, message: LeasedMessage) -> Lead | None:
        return self.leads.get(message.lead_id) if message.lead_id else None

    async def _work(self) -> None:
        """Work one message after the other, until none is left or a successor has taken the place over."""
        while self._waiting and not self._stopping:
            message = self._waiting.popleft()
            if message.id not in self._live:
                continue  # lost while it waited, and reported by the heartbeat
            try:
                await self._live_message(message)
            except _Stop:
                pass
            except StoreUnavailable:
                raise
            except Exception as error:  # noqa: BLE001 (whatever one message does, its neighbours go on)
                await self._end_after_bug(message, error)
            self._live.pop(message.id, None)
            self._works.pop(message.id, None)
            self._open.pop(message.id, None)
            if message.id in self._leaving:
                self._leaving.discard(message.id)
                return

    def _leave_place(self, work: Work) -> None:
        """Nothing more is requested for a message, only its end is to be committed: the next one takes its place.

        No more messages than there are places are let out like this: what a provider accepted and nobody has written
        down would have to be looked up if this process died.
        """
        if self._waiting and not self._stopping and work.id not in self._leaving and len(self._leaving) < self._places:
            self._leaving.add(work.id)
            self._crew.start(self._work())

    async def _start_generating(self, message: LeasedMessage) -> str:
        """The store's verdict. Where it is `go`, it is asked for the next message too.

        That question goes to the store together with the end of the message before, in one round trip.
        """
        verdict = await self._ahead.verdict(message.id)
        if verdict == "go" and self._waiting and self._may_be_asked_ahead(self._waiting[0]):
            self._ahead.ask(self._waiting[0].id)
        return verdict

    def _may_be_asked_ahead(self, message: LeasedMessage) -> bool:
        if self.channel.traits.free_text_hours is not None:  # a template may need no model at all
            return False
        # Of a limit on spending only what is in flight may go beyond, which this message is not yet.
        return message.text is None and not message.parts and message.config_id not in self.settings.limited

    async def _end_after_bug(self, message: LeasedMessage, error: Exception) -> None:
        """Our own mistake. Tried again like a transient failure, unless a request may be out: then it is unknown."""
        reason = f"{type(error).__name__} while it was worked; this is a bug of the pipeline."
        try:
            await self._end_bugged(self._works.get(message.id) or Work(message, None, []), reason)
        except _Stop:
            pass
        except StoreUnavailable:
            raise
        except Exception:  # noqa: BLE001 (not even that could be written down: the lease expires, the ledger is safe)
            self.report.count("left", "internal_error", message.id, reason)

    async def _end_bugged(self, work: Work, reason: str) -> NoReturn:
        attempt = self._open.get(work.id)
        if attempt is not None and attempt.left:
            delay = self.policy.retry.look_up_patience_seconds
            decision = Decision(MessageStatus.PENDING, ErrorClass.UNKNOWN, "internal_error", reason, delay)
            settlement = Settlement(work.id, attempt.part_no, attempt.attempt_no, outcome=PartStatus.UNKNOWN.value)
            await self._apply(work, decision, settlement)
        doubtful = next((part for part in work.parts if part.status is PartStatus.UNKNOWN), None)
        if doubtful is not None:
            age = self.now().timestamp() - doubtful.attempted_at
            look_up = self.channel.traits.look_up
            verdict = self.policy.retry.decide_unknown(look_up, LookUpFailed(reason), age)
            if isinstance(verdict, Decision):
                await self._apply(work, verdict, Settlement(work.id))
        settlement = Settlement(work.id, attempt.part_no, attempt.attempt_no) if attempt else Settlement(work.id)
        await self._end(work, Transient("internal_error", reason), settlement)

    async def _keep_leases(self) -> None:
        while True:
            await self.clock.sleep(self.policy.lease_seconds / 3)
            asked = self.clock.monotonic()
            asked_for = list(self._live)
            try:
                held = await self.store.renew(asked_for)
            except StoreUnavailable:
                continue  # the leases run on; `_still_ours` stops every message before they end
            except Exception as error:  # noqa: BLE001 (a heart that stops would lose every message of the shard)
                self._log(self.messages[0], "lease", "error", f"{type(error).__name__} while leases were renewed.")
                continue
            # Those in flight too: an older `go` must not outlive this answer. One that ended meanwhile is not held any
            # more either, and is nobody's loss.
            waiting = {message.id for message in self._waiting}
            for message_id in asked_for:
                if message_id in held:
                    continue
                if self._live.pop(message_id, None) is not None and message_id in waiting:
                    self.report.count("left", "lease_lost", message_id, "The lease was lost before its turn came.")
            self._lease_good_until = asked + self.policy.lease_seconds

    def _still_ours(self, message: LeasedMessage) -> bool:
        """Whether the lease is surely good. A process that slept past it must not trust an older `go`."""
        return message.id in self._live and self.clock.monotonic() < self._lease_good_until

    async def _give_back_rest(self) -> None:
        """Return what was not finished, in an orderly way."""
        # What was being committed when its task was cancelled is committed all the same: first see what came of it.
        await asyncio.gather(*self._commits.values(), return_exceptions=True)
        rest = list(self._live.values())
        self._live.clear()
        # Where even this fails the database is away, and the leases will expire.
        await asyncio.gather(*(self._give_back_one(message) for message in rest), return_exceptions=True)

    async def _give_back_one(self, message: LeasedMessage) -> None:
        reason = self._stopping or "The shard ended before this message was finished."
        work, attempt = self._works.get(message.id), self._open.get(message.id)
        if work is not None:
            await self._keep_text(work)
        settlement = Settlement(message.id, status=MessageStatus.PENDING.value, code="given_back", reason=reason)
        if attempt is not None:
            settlement = attempt.closed(settlement)
            if attempt.left:
                delay = self.policy.retry.look_up_patience_seconds
                settlement = replace(settlement, error_class=ErrorClass.UNKNOWN.value, delay_seconds=delay)
        if (await self.store.settle(settlement)).moved:
            self.report.returned += 1
            self.report.count("returned", "given_back", message.id, reason)

    async def _durably(self, message_id: str, commit: Coroutine[Any, Any, T]) -> T:
        """Await a commit that goes on though this message's task be cancelled meanwhile."""
        task = asyncio.ensure_future(commit)
        self._commits[message_id] = task
        try:
            return await asyncio.shield(task)
        finally:
            if task.done():
                self._commits.pop(message_id, None)

    # A message's life -----------------------------------------------------------------------------------------------

    async def _live_message(self, message: LeasedMessage) -> None:
        parts = [Part.of(record) for record in message.parts]
        work = Work(message, self._lead_of(message), parts, subject=message.subject, template=message.template)
        self._works[message.id] = work
        for part in parts:
            if part.status in {PartStatus.ATTEMPTING, PartStatus.UNKNOWN}:
                part.status = PartStatus.UNKNOWN
                died = Unknown("worker_died", "The process that sent this part ended before it could record an answer.")
                await self._settle_unknown(work, part, died)
        if not work.begun:
            await self._refuse_hopeless(work)
        work.address = await self._address(work)
        if not parts:
            await self._write_text(work)
        for part in work.parts:
            if part.status is not PartStatus.SENT:
                if part.no > 1 and self.channel.traits.part_gap_seconds:
                    await self._gate.sleep(self.channel.traits.part_gap_seconds)
                await self._send(work, part)
        # The last part that is sent ends the message, so nothing was left to send: somebody put it back by hand.
        reason = "All parts of this message were sent before; it was put back in the queue by hand."
        await self._conclude(work, Settlement(work.id, status="skipped", code="already_sent", reason=reason))

    async def _refuse_hopeless(self, work: Work) -> None:
        """End what need not be begun: its lead is gone, its window is closed, its scope is broken."""
        message = work.message
        if work.lead is None:
            reason = "The lead was deleted before this message was sent."
            await self._conclude(work, Settlement(work.id, status="skipped", code="lead_deleted", reason=reason))
        if message.config_id not in self.settings.campaigns or message.inbox_id != self.shard.inbox_id:
            reason = "The campaign or its inbox was exchanged after this batch was read; the next batch reads it anew."
            await self._give_back(work, "settings_changed", reason)
        window = self._window(message.config_id)
        if isinstance(window, InvalidWindow):
            await self._give_back(work, "invalid_window", str(window))
        elif not window.is_open(self.now()):
            await self._give_back(work, "window_closed", "The campaign's sending window closed before its turn came.")
        if broken := self._gate.broken(work):
            await self._give_back(work, broken.code, broken.reason, ErrorClass.SYSTEMIC)

    def now(self) -> datetime:
        """The database's time: what it was when the messages were read, and what has passed since."""
        return self.started_at + timedelta(seconds=self.clock.monotonic() - self._origin)

    def _window(self, config_id: str) -> SendingWindow | InvalidWindow:
        if config_id not in self._windows:
            try:
                self._windows[config_id] = self.settings.campaigns[config_id].window()
            except InvalidWindow as error:
                self._windows[config_id] = error
        return self._windows[config_id]

    async def _address(self, work: Work) -> str:
        """Where to: as a part before, else the message's own number, else the lead's; by e-mail, the lead's address."""
        for part in work.parts:
            if part.address and part.status is PartStatus.SENT:
                return part.address
        try:
            if self.channel_kind == "email":
                return normalize_email(work.lead.email if work.lead else None)
            number = own_number(work.message, work.lead)
            return await self._first_number(work, number) if self._checks_numbers else number
        except InvalidAddress as error:
            await self._end(work, Permanent(error.code, str(error)))

    # Its text -------------------------------------------------------------------------------------------------------

    async def _write_text(self, work: Work) -> None:
        """Fix the message's text and parts. Both are kept with its first attempt, or when its life ends before it."""
        try:
            draft = await self._writer.write(work.message, work.lead)
            work.text = draft.columns()
            # A template goes out as it was approved: in one piece.
            texts = (draft.text,) if draft.template else await self._writer.split(work.message, draft.text)
        except NotWritten as problem:
            if (paid := self._writer.paid(work.message)) is not None:
                work.text |= {"ai_cost_usd": paid}  # for a text that may not be sent, too: a limit must know of it
            await self._end(work, problem.failure, model=problem.model)
        work.subject = draft.subject
        work.template = draft.template
        work.text |= {"text": draft.text, "parts": texts, "subject": draft.subject, "template": draft.template}
        if (paid := self._writer.paid(work.message)) is not None:
            work.text |= {"ai_cost_usd": paid}
        work.parts = [Part(number, part) for number, part in enumerate(texts, start=1)]

    def _hears(self, message: LeasedMessage) -> bool:
        """Whether the lead wrote to this inbox so lately that free text may go to it."""
        hours = self.channel.traits.free_text_hours
        if hours is None:
            return True
        return message.heard_at is not None and self.now().timestamp() - message.heard_at < 3600 * hours

    async def _model_turn(self, message: LeasedMessage) -> None:
        """Come back when the model may be asked for this message; otherwise end its life here."""
        await self._cleared(self._works[message.id], lambda: self._start_generating(message))

    async def _model_now(self, message: LeasedMessage, model: str) -> bool:
        """Whether this model may be asked right now, for something that can be done without."""
        if self._stopping or not self._gate.model_is_well(message, model):
            return False
        verdict = await self.store.start_generating(message.id)
        if verdict == "lost":
            await self._lost(self._works[message.id])
        return verdict == "go" and self._still_ours(message)  # whoever begins the part finds out why not

    # A part's life --------------------------------------------------------------------------------------------------

    async def _send(self, work: Work, part: Part) -> None:
        """Send one part: intent committed, request, outcome committed. Short throttles are waited out."""
        for waits_left in reversed(range(self.policy.max_inline_waits)):
            conversation_id, open_attempt = await self._intend_in_time(work, part)
            delay = self.settings.splitter.delay_ms if part.no > 1 else 0
            name = work.lead.context.client_name if work.lead else None
            envelope = Envelope(
                work.id, part.no, part.text, work.address, delay, conversation_id, work.subject, name, part.attempted_at
            )
            envelope = replace(envelope, attempt_no=part.attempts, template=work.template)
            started = self.clock.monotonic()
            open_attempt.left = open_attempt.requested = True
            outcome = await self.channel.send(envelope)
            open_attempt.left = isinstance(outcome, Sent | Unknown)
            milliseconds = round(1000 * (self.clock.monotonic() - started))
            settlement = Settlement(work.id, part.no, part.attempts, duration_ms=milliseconds)
            if isinstance(outcome, Transient | Unknown) and outcome.answer:
                self.report.unrecognised_answers[outcome.reason] += 1
                settlement = replace(settlement, response=outcome.answer)
            match outcome:
                case Sent():
                    await self._settle_sent(work, part, settlement, outcome)
                    return
                case Unknown():
                    self.report.unknown_outcomes += 1
                    await self._settle_unknown(work, part, outcome)
                    return
                case Throttled(scope=Scope.MESSAGE):
                    await self._end(work, outcome, settlement)  # its recipient alone gets too much just now
                case Throttled(code, reason):
                    seconds = await self._gate.close(work.message, outcome)
                    if not waits_left or seconds > self.policy.max_inline_wait_seconds:
                        await self._end(work, outcome, settlement)
                    planned = PartStatus.PLANNED
                    await self._commit(work, replace(settlement, outcome=planned.value, code=code, reason=reason))
                    part.status = planned
                case Permanent(code=code) if code == NOT_ON_WHATSAPP and self._checks_numbers and not work.begun:
                    await self._number_missing(work, part, settlement, outcome.reason)
                case _:
                    await self._end(work, outcome, settlement)
        await self._give_back(
            work, NOT_ON_WHATSAPP, "Too many tries in one turn; it goes on with the next batch.", delay=5.0
        )

    async def _intend_in_time(self, work: Work, part: Part) -> tuple[str | None, OpenAttempt]:
        """Commit the intent; comes back only while the turn that was taken with it is good."""
        tries = self.policy.max_inline_waits
        while True:
            intended = await self._intend_reachable(work, part)
            if self.clock.monotonic() <= work.leave_by:
                return intended
            # Sent now, it might come too close to the next one: whoever takes that turn counts from ours.
            part.status = PartStatus.PLANNED
            reason = "The database took so long to answer that its turn was over; nothing was requested."
            late = Settlement(work.id, part.no, part.attempts, outcome=part.status.value, code="late", reason=reason)
            await self._commit(work, replace(late, unrequested=True))
            tries -= 1
            if not tries:
                await self._give_back(work, "late", f"{reason} It goes on with the next batch.", delay=5.0)

    # Its number -----------------------------------------------------------------------------------------------------

    async def _first_number(self, work: Work, number: str) -> str:
        """The first of the lead's numbers that is not known to have no account; the rest is kept for later."""
        possible = self._numbers.possible(number, work.lead)
        if not possible:
            reason = "The provider said of every number of the lead, not long ago, that it has no account."
            await self._end(work, Permanent(NOT_ON_WHATSAPP, reason))
        work.other_numbers = deque(possible[1:])
        return possible[0]

    async def _intend_reachable(self, work: Work, part: Part) -> tuple[str | None, OpenAttempt]:
        """Commit the intent, and make sure that the number has an account; the next number is tried where it has none.

        The provider is asked after the intent: only then has the message its turn, and numbers are asked for no faster
        than messages leave. Nothing of the message has left then, whatever the answer.
        """
        while True:
            intended = await self._intend(work, part)
            if not self._checks_numbers or work.begun:
                return intended
            missing = await self._numbers.why_missing(work.message, work.address)
            if missing is None:
                if not self._still_ours(work.message):
                    reason = "Its lease ended while its number was asked for, so nothing was requested."
                    await self._give_back(work, "overslept", reason)
                return intended
            nothing_left = Settlement(work.id, part.no, part.attempts, unrequested=True)
            await self._number_missing(work, part, nothing_left, missing)

    async def _number_missing(self, work: Work, part: Part, settlement: Settlement, reason: str) -> None:
        """Remember that a number has no account; comes back if another is left to be tried."""
        self._numbers.note_missing(work.message, work.address, last=not work.other_numbers)
        if not work.other_numbers:
            await self._end(work, Permanent(NOT_ON_WHATSAPP, reason), settlement)
        planned = PartStatus.PLANNED
        await self._commit(work, replace(settlement, outcome=planned.value, code=NOT_ON_WHATSAPP, reason=reason))
        part.status = planned
        self._log(
            work.message, "send", "info", "The number has no account; the lead's next one is tried.", part=part.no
        )
        work.address = work.other_numbers.popleft()

    async def _intend(self, work: Work, part: Part) -> tuple[str | None, OpenAttempt]:
        """Commit the intent; returns the conversation. Comes back only if the request may leave."""
        part.attempts += 1
        part.address, part.inbox_id = work.address, self.shard.inbox_id
        begin = BeginPart(
            work.id,
            part.no,
            part.attempts,
            address=work.address,
            channel=self.channel_kind,
            local_day=self._local_day(work.message),
            contact_name=work.lead.context.client_name if work.lead else None,
        )
        conversation_id: str | None = None

        async def commit() -> str:
            nonlocal conversation_id
            asked = self.clock.monotonic()
            begun = await self.store.begin_part(replace(begin, **work.text))
            if begun.verdict in {"go", "paced"}:
                work.text = {}  # it is kept: whoever waits for a turn asks without it
            if begun.verdict == "go":
                self._open[work.id] = OpenAttempt(part.no, part.attempts)
                conversation_id = begun.conversation_id
                work.leave_by = math.inf if begun.grace_seconds is None else asked + begun.grace_seconds
            return begun.verdict

        try:
            await self._cleared(work, lambda: self._durably(work.id, commit()))
        finally:
            self._gate.leave_line(work)
        part.status = PartStatus.ATTEMPTING
        part.attempted_at = self.now().timestamp()
        return conversation_id, self._open[work.id]

    async def _settle_sent(self, work: Work, part: Part, settlement: Settlement, sent: Sent) -> None:
        """Write down that a part went out. Comes back only if further parts follow."""
        # The address of the ledger stays the one that was asked for: it is what the part is searched by, and what tells
        # which ids belong to other parts. The provider's own name for it goes with its answer.
        address = {"address": sent.address} if sent.address else {}
        if part is work.parts[-1]:
            self._leave_place(work)
        answer = await self._settle(
            replace(
                settlement,
                outcome=PartStatus.SENT.value,
                provider_message_id=sent.provider_message_id,
                response={**sent.response, **address},
                in_conversation=sent.in_conversation,
            )
        )
        part.status = PartStatus.SENT
        self.report.parts_sent += 1
        if settlement.duration_ms is not None:
            self.report.send_ms.append(settlement.duration_ms)
        if answer.final in {MessageStatus.SENT.value, MessageStatus.REPLIED.value}:
            self.report.sent += 1
            self._log(work.message, "send", "success", "Sent.", parts=len(work.parts))
            raise _Stop
        # Whether the lease is lost is asked before the next part.

    async def _settle_unknown(self, work: Work, part: Part, unknown: Unknown) -> None:
        """Find out about a part that may have gone out (I5).

        Comes back only if it turns out to be sent, or surely not and may be sent right away.
        """
        look_up = self.channel.traits.look_up
        settlement = Settlement(work.id, part.no, part.attempts, looked_up=look_up is not LookUp.NONE)
        if part.status is PartStatus.ATTEMPTING:
            # Written down before asking: if we die while we ask, the next one knows that there is something to ask.
            noted = replace(settlement, outcome=PartStatus.UNKNOWN.value, code=unknown.code, reason=unknown.reason)
            await self._commit(work, replace(noted, looked_up=False, response=unknown.answer or None))
            part.status = PartStatus.UNKNOWN
        answer: LookUpAnswer | None = None
        if settlement.looked_up:
            envelope = Envelope(work.id, part.no, part.text, part.address or work.address)
            attempt = Attempt(envelope, part.attempted_at)
            if part.inbox_id not in {None, self.shard.inbox_id}:
                # This inbox's search finds nothing of another's, and that would prove nothing.
                answer = Absent(proven=False, reason="It was sent through another inbox than the campaign has now.")
            else:
                answer = await self.channel.find_accepted(await self.store.known_sends(self.shard.inbox_id, attempt))
        age = self.now().timestamp() - part.attempted_at
        decision = self.policy.retry.decide_unknown(look_up, answer, age, approved=part.resend_approved)
        match decision:
            case Found(provider_message_id, response):
                self.report.recovered_sends += 1
                self._log(work.message, "look_up", "warning", "It had gone out: found at the provider.", part=part.no)
                sent = Sent(provider_message_id, response, in_conversation=decision.in_conversation)
                await self._settle_sent(work, part, settlement, sent)
            case Transient(code, reason) if part.interrupted or part.resend_approved:
                # Not the message's fault, so no attempt of its three; and nothing to wait for.
                part.status = PartStatus.PLANNED
                await self._commit(work, replace(settlement, outcome=part.status.value, code=code, reason=reason))
            case Transient():
                await self._end(work, decision, settlement)
            case Decision():
                decided = replace(decision, reason=f"{unknown.reason} {decision.reason}")
                await self._apply(work, decided, replace(settlement, outcome=PartStatus.UNKNOWN.value))

    # Ends -----------------------------------------------------------------------------------------------------------

    async def _end(
        self, work: Work, failure: Failure, settlement: Settlement | None = None, model: str | None = None
    ) -> NoReturn:
        """End the message's life here by what the policy says of a failure. Always raises _Stop."""
        if isinstance(failure, Systemic):
            await self._gate.close(work.message, failure, model)
        retry, campaign = self.policy.retry, self.settings.campaigns.get(work.message.config_id)
        if campaign is not None and campaign.retry_delays_minutes:
            retry = replace(retry, delays_seconds=tuple(60 * minutes for minutes in campaign.retry_delays_minutes))
        decision = retry.decide(failure, work.message.retry_count, self.chance)
        settlement = settlement or Settlement(work.id)
        if settlement.part_no is not None:
            outcome = PartStatus.FAILED if isinstance(failure, Permanent) else PartStatus.PLANNED
            settlement = replace(settlement, outcome=outcome.value)
        await self._apply(work, decision, settlement)

    async def _apply(self, work: Work, decision: Decision, settlement: Settlement) -> NoReturn:
        await self._conclude(
            work,
            replace(
                settlement,
                status=decision.status.value,
                error_class=decision.error_class.value,
                code=decision.code,
                reason=decision.reason,
                delay_seconds=decision.delay_seconds,
                count_attempt=decision.count_attempt,
            ),
        )

    async def _give_back(
        self, work: Work, code: str, reason: str, error_class: ErrorClass | None = None, delay: float | None = None
    ) -> NoReturn:
        """Return the message to the queue as it was. Always raises _Stop."""
        settlement = Settlement(
            work.id,
            status=MessageStatus.PENDING.value,
            error_class=error_class.value if error_class else None,
            code=code,
            reason=reason,
            delay_seconds=delay,
        )
        attempt = self._open.get(work.id)
        await self._conclude(work, attempt.closed(settlement) if attempt else settlement)

    async def _conclude(self, work: Work, settlement: Settlement) -> NoReturn:
        """Commit the end of the message's life here, count it and log it. Always raises _Stop."""
        self._leave_place(work)
        await self._keep_text(work)
        await self._commit(work, settlement)
        status, code, reason = settlement.status or "", settlement.code or "", settlement.reason or ""
        match status:
            case "failed":
                self.report.failed += 1
            case "skipped":
                self.report.skipped += 1
            case _:
                self.report.returned += 1
        what = "returned" if status == "pending" else status
        self.report.count(what, code, work.id, reason, settlement.error_class)
        level = {"failed": "error", "skipped": "warning"}.get(status, "info")
        self._log(work.message, "send" if settlement.part_no else "prepare", level, reason, status=status, code=code)
        raise _Stop

    async def _keep_text(self, work: Work) -> None:
        """Keep a text that was paid for, though its first part may not leave now (I3)."""
        if not work.text:
            return
        begin = BeginPart(work.id, 1, 1, work.address, self.channel_kind, **work.text)
        work.text = {}
        try:
            await self._durably(work.id, self._kept(begin))
        except StoreUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 (a text that cannot be stored must not keep the message from ending)
            reason = f"The text could not be kept ({type(error).__name__}); it will be written anew."
            self._log(work.message, "prepare", "warning", reason)

    async def _kept(self, begin: BeginPart) -> None:
        await self.store.keep_text(begin)

    async def _commit(self, work: Work, settlement: Settlement) -> None:
        answer = await self._settle(settlement)
        if settlement.status is not None and not answer.moved:
            await self._lost(work)

    async def _settle(self, settlement: Settlement) -> Settled:
        async def commit() -> Settled:
            answer = await self.store.settle(settlement)
            if settlement.outcome is not None:
                self._open.pop(settlement.message_id, None)
            if answer.moved or answer.final in {MessageStatus.SENT.value, MessageStatus.REPLIED.value}:
                self._live.pop(settlement.message_id, None)  # it ended: nothing to give back
            return answer

        return await self._durably(settlement.message_id, commit())

    async def _lost(self, work: Work) -> NoReturn:
        """Somebody else has the message, or may take it any moment: leave it alone, and say so. Always raises _Stop."""
        self._live.pop(work.id, None)
        self._open.pop(work.id, None)
        reason = "The lease was lost before this message was finished; its new holder goes on with it."
        self.report.count("left", "lease_lost", work.id, reason)
        self._log(work.message, "lease", "warning", reason)
        raise _Stop

    # At the gate ----------------------------------------------------------------------------------------------------

    async def _cleared(self, work: Work, ask: Callable[[], Awaitable[str]]) -> None:
        """Come back when the store says `go`; otherwise end the message's life here."""
        try:
            verdict = await self._gate.verdict(work, ask)
        except NotNow as refusal:
            await self._give_back(work, refusal.code, refusal.reason, refusal.error_class, refusal.delay_seconds)
        if verdict == "lost":
            await self._lost(work)
        if verdict in {SUPPRESSED, CONTACTED_TODAY}:
            await self._end_refused(work, verdict)
        if verdict != "go":
            await self._give_back(work, verdict, f"The run is {verdict.removeprefix('run_')}.")
        if not self._still_ours(work.message):
            # The database said `go`; a process that was asleep since then may not act on it.
            reason = "This process was asleep for longer than its lease, so nothing was requested."
            await self._give_back(work, "overslept", reason)

    async def _end_unbegun(self, work: Work) -> None:
        """End what was not begun and need not be: the shard stops, or nothing can come of it."""
        if not work.begun:
            if self._stopping:
                await self._give_back(work, "given_back", self._stopping)
            await self._refuse_hopeless(work)

    async def _end_waiting(self, work: Work) -> None:
        """End what may not wait for its turn any longer: the shard stops, or the message is not ours any more."""
        if self._stopping:
            await self._give_back(work, "given_back", self._stopping)
        if work.id not in self._live:
            await self._lost(work)

    async def _end_refused(self, work: Work, verdict: str) -> NoReturn:
        """Consent refuses what is left of a message. Always raises _Stop."""
        if verdict == CONTACTED_TODAY:
            reason = "The lead gets one message a day and has today's; this one waits for the next day."
            await self._give_back(work, verdict, reason, delay=self._seconds_of_day_left(work.message))
        if work.begun:
            # Something went out, so `skipped` would be wrong; the rest never goes.
            reason = "The lead or its address was suppressed after a part had gone out; the rest is not sent."
            ended = Settlement(
                work.id, status="failed", error_class=ErrorClass.PERMANENT.value, code=verdict, reason=reason
            )
        else:
            reason = "The lead or its address is suppressed (campaign_suppressions), so nothing was sent."
            ended = Settlement(work.id, status="skipped", code=verdict, reason=reason)
        await self._conclude(work, ended)

    def _local_day(self, message: LeasedMessage) -> str | None:
        """Today in the campaign's zone, where its leads get one message a day."""
        window = self._window(message.config_id)
        if message.workspace_id not in self.settings.one_a_day or isinstance(window, InvalidWindow):
            return None
        return self.now().astimezone(window.zone).date().isoformat()

    def _seconds_of_day_left(self, message: LeasedMessage) -> float:
        """Until the next day begins in the campaign's zone."""
        window = self._window(message.config_id)
        assert not isinstance(window, InvalidWindow)  # it had no local day, then
        local = self.now().astimezone(window.zone)
        midnight = datetime.combine(local.date() + timedelta(days=1), datetime.min.time(), window.zone)
        return (midnight - self.now()).total_seconds() + 1.0
