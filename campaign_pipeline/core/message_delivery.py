"""Delivers one message; `MessageDelivery._run_stages` is its life, stage by stage.

Every request to a provider is preceded by a commit of its intent and followed by a commit of its outcome (I2). Every
step asks the store, which answers GO only to the holder of the lease (I1).
"""

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from campaign_pipeline.core.address import InvalidAddress, business_scoped_id, normalize_email
from campaign_pipeline.core.admission import Admitted, Deferred, Refused
from campaign_pipeline.core.message_ledger import MessageLedger
from campaign_pipeline.core.model import ErrorClass, LeasedMessage, PartStatus
from campaign_pipeline.core.model_bill import ModelBill
from campaign_pipeline.core.numbers import NOT_ON_WHATSAPP
from campaign_pipeline.core.parts import Departure, Part
from campaign_pipeline.core.personal_data import personal_values, without_values
from campaign_pipeline.core.phone_numbers import own_number
from campaign_pipeline.core.ports import (
    MAY_HAVE_NO_RECORD,
    UNRECOGNISED,
    Absent,
    Attempt,
    BeginPart,
    Begun,
    Envelope,
    Failure,
    Found,
    LookUp,
    LookUpAnswer,
    LookUpFailed,
    Outcome,
    Permanent,
    Scope,
    StoreUnavailable,
    Systemic,
    Template,
    Throttled,
    Transient,
    Unknown,
    Verdict,
)
from campaign_pipeline.core.ports import Sent as Accepted
from campaign_pipeline.core.results import (
    ALL_PARTS_SENT,
    ALREADY_SENT,
    LEAD_DELETED,
    LEASE_LOST,
    Ended,
    GiveBack,
    Lost,
    Released,
    Result,
    Sent,
    count_result,
    refused,
)
from campaign_pipeline.core.runs import SETTINGS_CHANGED
from campaign_pipeline.core.shard_context import ShardContext
from campaign_pipeline.core.slots import Slots
from campaign_pipeline.core.text_writer import NotWritten
from campaign_pipeline.core.window import InvalidWindow, SendingWindow

OutcomeT = TypeVar("OutcomeT", bound=Outcome)

WORKER_DIED = Unknown("worker_died", "The process that sent this part ended before it could record an answer.")

TOO_LATE = "The database or the connection took so long that its turn was over; nothing was requested."

OVERSLEPT = GiveBack("overslept", "Its lease ended before the request could be made, so nothing was requested.")

LONGEST_SLEEP_SECONDS = 300.0
"""A message planned for later than this waits in the queue rather than in its shard."""

NEXT_BATCH_SECONDS = 5.0
"""Delay of a message that was tried too often in one turn: it is retried in the next batch, not in a loop."""


class MessageDelivery:
    """One message at work. `deliver` delivers it; `release` gives it back if its shard ends first."""

    def __init__(self, message: LeasedMessage, shared: ShardContext, slots: Slots) -> None:
        """Adopt the slot that the shard acquired for the message."""
        self.message = message
        self.id = message.id
        self.lead = shared.lead_of(message)
        self.parts = [Part.from_record(record) for record in message.parts]
        self._shared = shared
        self._ledger = MessageLedger(message, shared)
        self._slots = slots
        self._holds_slot = True
        self._address = ""
        self._other_numbers: deque[str] = deque()  # to be tried if the address has no account
        self._subject: str | None = message.subject
        self._template: Template | None = message.template  # that it is sent as
        self._conversation_id: str | None = None
        self._send_deadline = 0.0  # on the shard's clock: no request may be made later
        self._model_answer: Mapping[str, Any] = {}  # the model provider's answer when it gave no text
        self._due_at = message.due_at
        self._alarm: asyncio.Event | None = None  # while it sleeps
        self._is_early = True  # its planned time, or its window's opening, may be in the future
        self._ended = False

    # Its life -------------------------------------------------------------------------------------------------------

    async def deliver(self) -> None:
        """Deliver the message and commit its result. Raises StoreUnavailable; a bug ends this message alone."""
        try:
            await self._finish(await self._run_stages())
        except StoreUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 (whatever fails here, the other messages go on)
            await self._finish_after_bug(error)

    async def _run_stages(self) -> Result:
        """Run the stages of the message in order. A stage that ends the message raises Ended."""
        try:
            for part in self._parts_in_doubt():
                await self._resolve_unknown_outcome(part, WORKER_DIED)
            self._check_preconditions()
            self._address = await self._find_address()
            if not self.parts:
                await self._write_text()
            await self._wait_until_due()
            for part in self._unsent_parts():
                await self._wait_between_parts(part)
                await self._send(part)
            return ALREADY_SENT  # the last part that is sent ends the message: nothing was left to send
        except Ended as end:
            return end.result

    async def release(self, reason: str) -> None:
        """Give the message back, unless it has ended, because its shard ends."""
        await self._ledger.wait_for_commit()
        if not self._ended:
            held = self._shared.leases.was_held(self.id)
            await self._finish(self._ledger.given_back(Released("given_back", reason)) if held else LEASE_LOST)

    def release_slot(self) -> None:
        """No more requests for this message: free its slot, then commit."""
        if self._holds_slot:
            self._holds_slot = False
            self._slots.give_back()

    # Stages ---------------------------------------------------------------------------------------------------------

    def _parts_in_doubt(self) -> list[Part]:
        return [part for part in self.parts if part.status is PartStatus.UNKNOWN]

    def _unsent_parts(self) -> list[Part]:
        return [part for part in self.parts if part.status is not PartStatus.SENT]

    @property
    def _partly_sent(self) -> bool:
        """Return whether a part was sent already: then the message is finished despite later pauses."""
        return any(part.status is PartStatus.SENT for part in self.parts)

    @property
    def needs_model(self) -> bool:
        """Return whether its text is still to be written."""
        return self.message.text is None and not self.parts and not self._ledger.text

    def _check_preconditions(self) -> None:
        """Skip or give back a message that cannot be sent, before it costs anything. Raises Ended."""
        if not self._partly_sent and (result := self._precondition_failure()):
            raise Ended(result)

    def _precondition_failure(self) -> Result | None:
        message, shared = self.message, self._shared
        if self.lead is None:
            return LEAD_DELETED
        if message.config_id not in shared.settings.campaigns or message.inbox_id != shared.inbox_id:
            reason = "The campaign or its inbox was exchanged after this batch was read; the next batch reads it anew."
            return GiveBack(SETTINGS_CHANGED, reason)
        window = shared.hours.of(message.config_id)
        if isinstance(window, InvalidWindow):
            return GiveBack("invalid_window", str(window))
        if not window.is_open(shared.time.now()) and not (self._is_early and self._seconds_until_opening()):
            return GiveBack("window_closed", "The campaign's sending window closed before its turn came.")
        if state := shared.admission.not_ready:
            return GiveBack(state.code, state.reason)
        if failure := shared.circuits.open_for(message, needs_model=self.needs_model):
            return GiveBack(failure.code, failure.reason, ErrorClass.SYSTEMIC)
        return None

    async def _find_address(self) -> str:
        """Return the address: that of a sent part, else the message's own number, else the lead's number or address."""
        for part in self.parts:
            if part.address and part.status is PartStatus.SENT:
                return part.address
        try:
            if self._shared.channel_kind == "email":
                return normalize_email(self.lead.email if self.lead else None)
            if self._shared.channel.traits.business_scoped_ids and (user := self._business_scoped_id()):
                return user
            number = own_number(self.message, self.lead)
        except InvalidAddress as error:
            raise await self._ended_by(Permanent(error.code, str(error))) from error
        return await self._first_possible(number) if self._shared.checks_numbers else number

    def _business_scoped_id(self) -> str | None:
        """Return the id by which a lead without a number can be reached; None if it has a number."""
        return business_scoped_id(self.message.phone_number or (self.lead.phone if self.lead else None))

    async def _write_text(self) -> None:
        """Determine text and parts. Both are stored with the first attempt, or when the message ends before that."""
        writer, message = self._shared.writer, self.message
        try:
            draft = await writer.write(message, self.lead, self, free_text=self._in_service_window())
            self._ledger.text = draft.columns()
            # A template is sent as it was approved: in one piece.
            texts = (draft.text,) if draft.template else await writer.split(message, draft.text, self)
        except NotWritten as problem:
            self._model_answer = self._without_personal_data(problem.failure).answer
            raise await self._ended_by(problem.failure, problem.model) from problem
        await self._shared.circuits.model_worked(message)
        self._subject, self._template = draft.subject, draft.template
        self._ledger.text |= {"text": draft.text, "parts": texts, "subject": draft.subject, "template": draft.template}
        self._ledger.text |= self.bill.pop()
        self.parts = [Part(number, text) for number, text in enumerate(texts, start=1)]

    def _in_service_window(self) -> bool:
        """Return whether the lead wrote to this inbox recently enough for free text."""
        hours, last = self._shared.channel.traits.free_text_hours, self.message.last_inbound_at
        return hours is None or (last is not None and self._shared.time.now().timestamp() - last < 3600 * hours)

    async def _wait_until_due(self) -> None:
        """Wait for its planned time and its window's opening, if it was claimed ahead of them."""
        while (seconds := self._seconds_until_due()) > 0:
            await self._sleep_without_slot(seconds)
            await self._check_again()
        if self._is_early:
            self._is_early = False
            self._check_preconditions()

    async def _check_again(self) -> None:
        """Give back a message whose campaign, window or inbox changed while it waited. Raises Ended."""
        if not self._partly_sent and (wait := await self._shared.store.why_held(self.message.run_id)):
            raise Ended(GiveBack(wait.code, wait.reason))
        self._check_preconditions()

    @property
    def is_asleep(self) -> bool:
        """Return whether it waits for its planned time, or for its window's opening."""
        return self._alarm is not None

    def note_plan(self, due_at: float | None) -> None:
        """Wake up if its planned time (in seconds since the epoch) has changed; None: it is not ours any more."""
        if due_at is None:
            self._shared.leases.drop(self.id)
        if self._alarm is not None and due_at != self._due_at:
            self._alarm.set()
        self._due_at = self._due_at if due_at is None else due_at

    def _seconds_until_due(self) -> float:
        """Return zero or less if it may go now. The planned time of a begun message has passed."""
        planned = 0.0 if self._partly_sent else self._due_at - self._shared.time.now().timestamp()
        return max(planned, self._seconds_until_opening())

    def _seconds_until_opening(self) -> float:
        """Return zero if its window is open, or opens later than a message waits inline."""
        config_id, now = self.message.config_id, self._shared.time.now()
        window = self._shared.hours.of(config_id) if config_id in self._shared.settings.campaigns else None
        if not isinstance(window, SendingWindow):
            return 0.0
        seconds = (window.next_opening(now) - now).total_seconds()
        return seconds if seconds <= LONGEST_SLEEP_SECONDS else 0.0

    async def _sleep_without_slot(self, seconds: float) -> None:
        """Store the text, and sleep. Raises Ended if the shard stops, the lease is lost, or the wait is too long."""
        if seconds > LONGEST_SLEEP_SECONDS:
            raise Ended(GiveBack(Verdict.NOT_DUE, "It was planned anew for a later time; it waits in the queue."))
        await self._ledger.store_text(self._address)
        self._holds_slot = False
        with self._slots.asleep():
            self._alarm = asyncio.Event()
            await self._shared.stop.sleep(seconds, self._alarm)
            self._alarm = None
            if self._shared.stop.reason:
                raise Ended(Released("given_back", self._shared.stop.reason))
            if not self._shared.leases.was_held(self.id):
                raise Ended(LEASE_LOST)
            await self._slots.take_in_turn()
        self._holds_slot = True

    async def _wait_between_parts(self, part: Part) -> None:
        if part.no > 1 and self._shared.channel.traits.part_gap_seconds:
            await self._shared.stop.sleep(self._shared.channel.traits.part_gap_seconds)

    async def _send(self, part: Part) -> None:
        """Send one part: intent committed, request, outcome committed. Returns once the part was sent."""
        for tries_left in reversed(range(self._shared.policy.max_inline_waits)):
            await self._begin_attempt(part)
            outcome = await self._request(part)
            match outcome:
                case Accepted():
                    await self._accepted(part)
                case Unknown():
                    self._shared.report.unknown_outcomes += 1
                    await self._resolve_unknown_outcome(part, outcome)
                case Throttled(scope=scope) if scope is not Scope.MESSAGE:
                    await self._wait_for_slower_pace(part, outcome, tries_left)
                case Permanent(code=code) if self._is_first_contact and code == NOT_ON_WHATSAPP:
                    await self._try_next_number(part, outcome.reason)
                case _:
                    raise await self._ended_by(outcome)
            if part.status is PartStatus.SENT:
                return
        reason = "Too many tries in one turn; it goes on with the next batch."
        raise Ended(GiveBack(NOT_ON_WHATSAPP, reason, delay_seconds=NEXT_BATCH_SECONDS))

    # One attempt ----------------------------------------------------------------------------------------------------

    async def _begin_attempt(self, part: Part) -> None:
        """Commit the intent; return only while the turn that it took is valid."""
        for tries_left in reversed(range(self._shared.policy.max_inline_waits)):
            await self._begin_reachable(part)
            if not self._is_late():
                return
            await self._ledger.record(part, PartStatus.PLANNED, "late", TOO_LATE)
            if not tries_left:
                text = f"{TOO_LATE} It goes on with the next batch."
                raise Ended(GiveBack("late", text, delay_seconds=NEXT_BATCH_SECONDS))

    def _is_late(self) -> bool:
        """Return whether the turn, or the lease, that the intent was committed under is over.

        A part sent now might come too close to the next one, whose turn is counted from ours.
        """
        return self._shared.clock.monotonic() > self._send_deadline

    def _may_leave(self) -> bool:
        return not self._is_late() and self._shared.leases.holds(self.id)

    def _seconds_to_send(self, begun: Begun) -> float:
        """Return how long an intent is valid after it was requested: as long as the lease and its turn."""
        usable = self._shared.leases.usable_seconds
        return usable if begun.grace_seconds is None else min(usable, begun.grace_seconds)

    async def _begin_reachable(self, part: Part) -> None:
        """Commit the intent, and verify that the number has an account; if it has none, try the next number.

        The provider is asked after the intent: only then has the message its turn, so numbers are checked no faster
        than messages are sent. Whatever the answer, no part of the message has left yet.
        """
        while True:
            await self._commit_intent(part)
            if not self._is_first_contact:
                return
            missing = await self._shared.numbers.why_missing(self.message, self._address)
            if missing is None:
                if not self._shared.leases.holds(self.id):
                    raise Ended(OVERSLEPT)
                return
            await self._try_next_number(part, missing)

    async def _commit_intent(self, part: Part) -> None:
        """Commit text and intent; return only if the request may leave."""
        part.attempts += 1
        part.address, part.inbox_id = self._address, self._shared.inbox_id
        asked_at, begun = 0.0, Begun(Verdict.NOT_DUE)

        async def ask() -> Verdict:
            nonlocal asked_at, begun
            asked_at = self._shared.clock.monotonic()
            begun = await self._ledger.begin(part, self._intent(part))
            return begun.verdict

        while (answer := await self._shared.admission.acquire(self, ask)) == Refused(Verdict.NOT_DUE):
            # The database's clock decides: the message was replanned, or our clocks differ.
            await self._sleep_without_slot(begun.turn.seconds if begun.turn else 0.0)
            await self._check_again()
        self._require_admission(answer)
        self._conversation_id = begun.conversation_id
        self._send_deadline = asked_at + self._seconds_to_send(begun)
        part.status = PartStatus.ATTEMPTING
        part.interrupted = part.resend_approved = False  # these were facts about an earlier attempt
        part.attempted_at = part.may_have_left_until = self._shared.time.now().timestamp()

    def _intent(self, part: Part) -> BeginPart:
        """Return what is committed before a part's request, by today's date: a message may wait past midnight."""
        return BeginPart(
            self.id,
            part.no,
            part.attempts,
            address=self._address,
            channel=self._shared.channel_kind,
            local_day=self._shared.hours.local_day(self.message, self._shared.time.now()),
            contact_name=self.lead.context.client_name if self.lead else None,
        )

    async def _request(self, part: Part) -> Outcome:
        """Make the request, and note its outcome for the ledger."""
        shared, departure = self._shared, Departure(self._may_leave)
        envelope = Envelope(
            self.id,
            part.no,
            part.text,
            self._address,
            delay_ms=shared.settings.splitter.delay_ms if part.no > 1 else 0,
            conversation_id=self._conversation_id,
            subject=self._subject,
            contact_name=self.lead.context.client_name if self.lead else None,
            attempted_at=part.attempted_at,
            attempt_no=part.attempts,
            template=self._template,
            may_leave=departure,
        )
        started = shared.clock.monotonic()
        self._ledger.note_request(part)
        outcome = await shared.channel.send(envelope)
        if departure.refused and not isinstance(outcome, Accepted | Unknown):
            self._ledger.note_unrequested(part)
            raise Ended(GiveBack("late", TOO_LATE, delay_seconds=NEXT_BATCH_SECONDS) if self._is_late() else OVERSLEPT)
        milliseconds = round(1000 * (shared.clock.monotonic() - started))
        self._ledger.note_outcome(self._without_personal_data(outcome), milliseconds)
        if not isinstance(outcome, Accepted) and outcome.code == UNRECOGNISED:
            shared.report.unrecognised_answers[outcome.reason] += 1
            if broken := await shared.circuits.note_unrecognised(self.message):
                await shared.circuits.open(self.message, broken)
        return outcome

    def _without_personal_data(self, outcome: OutcomeT) -> OutcomeT:
        """Return the provider's description of a failure without the lead's data and the text that it repeats."""
        if isinstance(outcome, Accepted) or not outcome.answer:
            return outcome
        texts = (self.message.text, self._subject, self._address, *(part.text for part in self.parts))
        return replace(outcome, answer=without_values(outcome.answer, personal_values(self.message, self.lead, texts)))

    async def _accepted(self, part: Part) -> None:
        """Record an accepted part, together with the end of the message if no part is left."""
        if all(other.status is PartStatus.SENT for other in self.parts if other is not part):
            raise Ended(ALL_PARTS_SENT)
        await self._ledger.record(part, PartStatus.SENT)
        # The lease is checked before the next part.

    async def _wait_for_slower_pace(self, part: Part, failure: Throttled, tries_left: int) -> None:
        """Slow the scope down; return to try again if the wait is short. Raises Ended."""
        seconds = await self._shared.circuits.open(self.message, failure)
        if not tries_left or seconds > self._shared.policy.max_inline_wait_seconds:
            raise await self._ended_by(failure)
        await self._ledger.record(part, PartStatus.PLANNED, failure.code, failure.reason)

    async def _resolve_unknown_outcome(self, part: Part, unknown: Unknown) -> None:
        """Resolve a part that may have been sent (I5).

        Returns if it was sent, or if it surely was not and may be tried again at once; `part.status` says which.
        """
        shared, look_up = self._shared, self._shared.channel.traits.look_up
        if part.status is PartStatus.ATTEMPTING:
            # Committed before asking: if this process dies meanwhile, the next one knows that it has to ask.
            await self._ledger.record(part, PartStatus.UNKNOWN, unknown.code, unknown.reason)
            part.unknown_code = unknown.code if unknown.code in MAY_HAVE_NO_RECORD else None
        looks_up = look_up is not LookUp.NONE
        answer = await self._look_up(part) if looks_up else None
        self._ledger.note_look_up(part, asked=looks_up)
        age = shared.time.now().timestamp() - part.may_have_left_until
        decision = shared.policy.retry.decide_unknown(
            look_up, answer, age, code=part.unknown_code or unknown.code, approved=part.resend_approved
        )
        match decision:
            case Found() as found:
                shared.report.recovered_sends += 1
                shared.log(self.message, "look_up", "warning", "It had gone out: found at the provider.", part=part.no)
                sent = Accepted(found.provider_message_id, found.response, in_conversation=found.in_conversation)
                self._ledger.note_outcome(sent)
                await self._accepted(part)
            case Transient(code, reason) if part.interrupted or part.resend_approved:
                # Not the message's fault: no attempt is spent, and there is nothing to wait for.
                await self._ledger.record(part, PartStatus.PLANNED, code, reason)
            case Transient() as failure:
                self._ledger.note_not_sent()
                raise await self._ended_by(failure)
            case Result() as result:
                # The code of such an answer stays with the part: the next look-up must know it.
                code = part.unknown_code or result.code
                raise Ended(replace(result, code=code, reason=f"{unknown.reason} {result.reason}"))

    async def _look_up(self, part: Part) -> LookUpAnswer:
        inbox_id = self._shared.inbox_id
        if part.inbox_id not in {None, inbox_id}:
            # A search of this inbox finds no message of another inbox, which would prove nothing.
            return Absent(proven=False, reason="It was sent through another inbox than the campaign has now.")
        attempt = Attempt(Envelope(self.id, part.no, part.text, part.address or self._address), part.attempted_at)
        return await self._shared.channel.find_accepted(await self._shared.store.known_sends(inbox_id, attempt))

    # Its number -----------------------------------------------------------------------------------------------------

    @property
    def _is_first_contact(self) -> bool:
        """Return whether the number is still to be chosen: nothing was sent to it, and the provider checks numbers."""
        return self._shared.checks_numbers and not self._partly_sent

    async def _first_possible(self, number: str) -> str:
        """Return the lead's first number that is not known to have no account; keep the others for later."""
        possible = self._shared.numbers.possible(number, self.lead)
        if not possible:
            reason = "The provider said of every number of the lead, not long ago, that it has no account."
            raise await self._ended_by(Permanent(NOT_ON_WHATSAPP, reason))
        self._other_numbers = deque(possible[1:])
        return possible[0]

    async def _try_next_number(self, part: Part, reason: str) -> None:
        """Record that a number has no account; return if another number is left to try."""
        self._shared.numbers.note_missing(self.message, self._address, last=not self._other_numbers)
        if not self._other_numbers:
            raise await self._ended_by(Permanent(NOT_ON_WHATSAPP, reason))
        await self._ledger.record(part, PartStatus.PLANNED, NOT_ON_WHATSAPP, reason)
        text = "The number has no account; the lead's next one is tried."
        self._shared.log(self.message, "send", "info", text, part=part.no)
        self._address = self._other_numbers.popleft()

    # Admission ------------------------------------------------------------------------------------------------------

    @property
    def bill(self) -> ModelBill:
        """See text_writer.ModelAccess."""
        return self._ledger.bill

    async def acquire_model(self) -> None:
        """See text_writer.ModelAccess. Raises Ended."""
        admission = self._shared.admission
        self._require_admission(await admission.acquire(self, lambda: admission.ask_for_model(self.id)))

    async def try_acquire_model(self, model: str) -> bool:
        """See text_writer.ModelAccess. Raises Ended where the lease is lost."""
        if self._shared.stop.reason or not self._shared.circuits.model_is_available(self.message, model):
            return False
        verdict = await self._shared.store.start_generating(self.id)
        if verdict == Verdict.LOST:
            raise Ended(LEASE_LOST)
        return verdict == Verdict.GO and self._shared.leases.holds(self.id)  # else the part's intent finds out why

    def _require_admission(self, answer: Admitted | Deferred | Refused) -> None:
        """Return if the message may make its request. Raises Ended."""
        match answer:
            case Deferred(result):
                raise Ended(result)
            case Refused(verdict):
                raise Ended(
                    refused(verdict, partly_sent=self._partly_sent, seconds_of_day_left=self._seconds_of_day_left)
                )
            case Admitted():
                if not self._shared.leases.holds(self.id):
                    # The database said GO; a process that has slept since then must not act on it.
                    raise Ended(OVERSLEPT)

    def _seconds_of_day_left(self) -> float:
        return self._shared.hours.seconds_of_day_left(self.message, self._shared.time.now())

    def stop_if_not_started(self) -> Result | None:
        """See admission.Applicant."""
        if self._partly_sent:
            return None
        if self._shared.stop.reason:
            return GiveBack("given_back", self._shared.stop.reason)
        return self._precondition_failure()

    def stop_if_waiting(self) -> Result | None:
        """See admission.Applicant."""
        if self._shared.stop.reason:
            return GiveBack("given_back", self._shared.stop.reason)
        return None if self._shared.leases.was_held(self.id) else LEASE_LOST

    # Its end --------------------------------------------------------------------------------------------------------

    async def _ended_by(self, failure: Failure, model: str | None = None) -> Ended:
        """Return the end that the retry policy chooses. A systemic failure opens the circuit for everybody."""
        shared = self._shared
        if isinstance(failure, Systemic) and failure.by_words:
            failure = await shared.circuits.confirmed(self.message, failure, shared.channel.check_connection)
        elif failure.code == UNRECOGNISED and model is not None:
            failure = await shared.circuits.note_unrecognised(self.message, model) or failure
        if isinstance(failure, Systemic):
            await shared.circuits.open(self.message, failure, model)
        campaign = shared.settings.campaigns.get(self.message.config_id)
        retry = shared.policy.retry.with_delays(campaign.retry_delays_minutes if campaign else None)
        return Ended(retry.decide(failure, self.message.retry_count, shared.chance))

    async def _finish(self, result: Result) -> None:
        """Commit, count and log the result of the message; no other method does."""
        self.release_slot()
        await self._ledger.keep_text(self._address, result)
        await self._ledger.durably(self._commit_result(result))

    async def _commit_result(self, result: Result) -> None:
        if not isinstance(result, Lost):
            step = "prepare" if self._ledger.attempt is None else "send"
            result = await self._ledger.end(result)
        if isinstance(result, Lost):
            step = "lease"
        self._ended, self._ledger.attempt = True, None
        self._shared.leases.drop(self.id)
        count_result(self._shared.report, result, self.id)
        if result.level is not None:
            details: dict[str, object] = {"parts": len(self.parts)}
            if not isinstance(result, Sent):
                details = {} if result.status is None else {"status": result.status, "code": result.code}
                details |= {"answer": self._model_answer} if self._model_answer else {}
            self._shared.log(self.message, step, result.level, result.reason, **details)

    async def _finish_after_bug(self, error: Exception) -> None:
        """Handle a bug: retry like a transient failure, unless a request may have left; then the outcome is unknown."""
        reason = f"{type(error).__name__} while it was worked; this is a bug of the pipeline."
        try:
            await self._finish(await self._result_of_bug(reason))
        except StoreUnavailable:
            raise
        except Exception:  # noqa: BLE001 (not even that could be committed: the lease expires, the ledger is safe)
            self._ended = True
            self._shared.leases.drop(self.id)
            count_result(self._shared.report, Lost("internal_error", reason), self.id)

    async def _result_of_bug(self, reason: str) -> Result:
        retry = self._shared.policy.retry
        if self._ledger.attempt is not None:
            if self._ledger.drop_answer():
                return self._ledger.given_back(GiveBack("internal_error", reason))
        elif doubtful := self._parts_in_doubt():
            age = self._shared.time.now().timestamp() - doubtful[0].may_have_left_until
            decision = retry.decide_unknown(self._shared.channel.traits.look_up, LookUpFailed(reason), age)
            if isinstance(decision, Result):
                return decision
        # Not with the campaign's own settings, which may be the cause.
        return retry.decide(Transient("internal_error", reason), self.message.retry_count, self._shared.chance)
