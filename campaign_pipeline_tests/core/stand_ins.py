"""A store, a language model and a channel in one process, on a simulated clock, for tests of timing.

What the real store promises is proven on the real store; here its ledger is kept by the same rules in a dictionary.
"""

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from campaign_pipeline.core.context import LeadContext
from campaign_pipeline.core.lease_keeper import Beat
from campaign_pipeline.core.model import (
    BatchSettings,
    CampaignSettings,
    Lead,
    LeasedMessage,
    PartRecord,
    PartStatus,
    Shard,
    SplitterSettings,
)
from campaign_pipeline.core.numbers import KnownNumber, NumberNote
from campaign_pipeline.core.ports import (
    Absent,
    Attempt,
    BeginPart,
    Begun,
    ChannelTraits,
    Completion,
    Envelope,
    Failure,
    FailureStreak,
    Found,
    LeaseStore,
    LogLine,
    LookUp,
    LookUpAnswer,
    NumberCheck,
    NumberExists,
    Outcome,
    Pause,
    Prompt,
    Scope,
    Sent,
    Settled,
    Settlement,
    Systemic,
    Throttled,
    Transient,
    Turn,
    Verdict,
)
from campaign_pipeline.core.runs import RunWait
from campaign_pipeline.core.shard_context import DeliveryPolicy
from campaign_pipeline.core.shard_worker import ShardWorker

T = TypeVar("T")
NOON = datetime(2026, 11, 23, 15, 0, tzinfo=UTC)  # of a Monday in São Paulo
ANA = Lead("lead", "11987654321", LeadContext(client_name="Ana"))
TEXT = "Olá, Ana! Podemos conversar por dez minutos?"


# Time -----------------------------------------------------------------------------------------------------------------


class _Leaping(selectors.DefaultSelector):
    """Never waits: if nothing is ready, the clock jumps to the next event."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise RuntimeError("Everybody waits for something that nobody will do.")
            self.now += max(0.0, timeout)
        return ready


class LeapingLoop(asyncio.SelectorEventLoop):
    """An event loop whose hours take no time."""

    def __init__(self) -> None:
        self._leaping = _Leaping()
        super().__init__(self._leaping)

    def time(self) -> float:
        """Seconds since the loop was made."""
        return self._leaping.now

    def oversleep(self, seconds: float) -> None:
        """Sleep as a process: time passes, and nothing runs."""
        self._leaping.now += seconds


def in_no_time(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on a simulated clock."""
    loop = LeapingLoop()
    try:
        return loop.run_until_complete(main)
    finally:
        loop.run_until_complete(_end(asyncio.all_tasks(loop)))
        loop.close()


async def _end(tasks: set["asyncio.Task[Any]"]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def now() -> float:
    """Return the seconds of the simulated clock."""
    return asyncio.get_running_loop().time()


class LeapingClock:
    """See `core.ports.Clock`."""

    def monotonic(self) -> float:
        """Seconds that only grow."""
        return now()

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)


# The queue ------------------------------------------------------------------------------------------------------------


@dataclass
class StoredPart:
    """A row of the ledger."""

    text: str
    status: str = "planned"
    attempts: int = 0
    attempted_at: float | None = None
    address: str | None = None
    lease_ended_at: float | None = None
    resend_approved: bool = False
    error_code: str | None = None


@dataclass
class StoredMessage:
    """A row of the queue."""

    id: str
    status: str = "queued"
    token: int | None = 1
    text: str | None = None
    parts: list[StoredPart] = field(default_factory=list)
    retry_count: int = 0
    code: str | None = None
    error_class: str | None = None
    due: float = 0.0
    worker_deaths: int = 0
    held_back_by: Exception | None = None  # raised by this message's next settlement


@dataclass
class Queue:
    """The rows, whoever holds them."""

    messages: dict[str, StoredMessage] = field(default_factory=dict)
    pauses: dict[tuple[Scope, str], tuple[float, Throttled | Systemic]] = field(default_factory=dict)
    failures: dict[tuple[Scope, str, str], list[str]] = field(default_factory=dict)
    log: list[LogLine] = field(default_factory=list)
    gap: float = 0.0  # seconds between two messages of the inbox; 0: it has no pace
    grace: float = 1.0
    next_at: float = 0.0  # when the next message may begin
    slowed: int = 0
    numbers: dict[str, KnownNumber] = field(default_factory=dict)
    notes: list[NumberNote] = field(default_factory=list)

    @classmethod
    def of(cls, count: int, **columns: Any) -> "Queue":
        """Some leased messages."""
        return cls({f"m{n:04d}": StoredMessage(f"m{n:04d}", **columns) for n in range(count)})

    def statuses(self) -> list[str]:
        """Of all messages, in their order."""
        return [message.status for message in self.messages.values()]

    def parts(self) -> list[list[str]]:
        """Status of the parts of each message."""
        return [[part.status for part in message.parts] for message in self.messages.values()]


@dataclass
class Store:
    """One holder of leases; see `core.ports.DeliveryStore`."""

    queue: Queue
    token: int = 1
    commit_seconds: float = 0.0
    start: datetime = NOON  # at second 0 of the simulated clock
    verdicts: Callable[[str, str], str] = lambda _, __: "go"  # step and message -> verdict
    holding: Callable[[], RunWait | None] = lambda: None  # what in the CRM's settings holds every run
    renewing: Callable[[], None] = lambda: None  # may raise
    beginning: Callable[[BeginPart], None] = lambda _: None  # after the commit; may raise
    renewals: list[float] = field(default_factory=list)
    asked: int = 0  # whether something may be requested

    def _held(self, message_id: str) -> StoredMessage | None:
        message = self.queue.messages[message_id]
        return (
            message if message.token == self.token and message.status in {"queued", "generating", "sending"} else None
        )

    async def renew(self, message_ids: Sequence[str]) -> set[str]:
        """Renew the leases."""
        await asyncio.sleep(self.commit_seconds)
        self.renewals.append(now())
        self.renewing()
        return {message_id for message_id in message_ids if self._held(message_id)}

    def _verdict(self, step: str, message_id: str) -> Verdict:
        self.asked += 1
        message = self._held(message_id)
        if message is None:
            return Verdict.LOST
        begun = any(part.status == "sent" for part in message.parts)
        scopes = {Scope.INBOX} if begun or step == "begin" else set(Scope)
        for (scope, _), (until, failure) in self.queue.pauses.items():
            if scope in scopes and (isinstance(failure, Systemic) or until > now()):
                return Verdict.SCOPE_PAUSED
        return Verdict(self.verdicts(step, message_id))

    async def start_generating(self, message_id: str) -> Verdict:
        """Return whether the model may be called."""
        await asyncio.sleep(self.commit_seconds)
        return self._verdict("generate", message_id)

    async def begin_part(self, begin: BeginPart) -> Begun:
        """Commit the text and the intent."""
        await asyncio.sleep(self.commit_seconds)
        verdict = self._verdict("begin", begin.message_id)
        message = self._held(begin.message_id)
        if message is not None:
            self._keep(message, begin)
        if message is not None and verdict == "go" and message.due > now():
            return Begun(Verdict.NOT_DUE, turn=Turn(message.due - now(), "not_due"))
        if message is not None and verdict == "go" and self.queue.gap:
            if self.queue.next_at > now():
                return Begun(Verdict.PACED, turn=Turn(self.queue.next_at - now(), "paced"))
            self.queue.next_at = now() + self.queue.gap
        if message is not None and verdict == "go":
            part = message.parts[begin.part_no - 1]
            if part.status != "planned" or part.attempts != begin.attempt_no - 1:
                return Begun(Verdict.LOST)
            part.status, part.attempts, part.attempted_at = "attempting", begin.attempt_no, now()
            part.address, message.status = begin.address, "sending"
        self.beginning(begin)
        return Begun(verdict, "conversation", grace_seconds=self.queue.grace if self.queue.gap else None)

    async def why_held(self, run_id: str) -> RunWait | None:
        """Return the configured wait."""
        await asyncio.sleep(self.commit_seconds)
        return self.holding()

    async def planned_times(self, message_ids: Sequence[str]) -> dict[str, float]:
        """Return the due times of held messages."""
        held = [message for message_id in message_ids if (message := self._held(message_id))]
        return {message.id: self.start.timestamp() + message.due for message in held}

    async def keep_text(self, begin: BeginPart) -> None:
        """Store a text."""
        await asyncio.sleep(self.commit_seconds)
        message = self._held(begin.message_id)
        if message is not None:
            self._keep(message, begin)

    def _keep(self, message: StoredMessage, begin: BeginPart) -> None:
        message.text = message.text or begin.text
        if not message.parts:
            message.parts = [StoredPart(text) for text in begin.parts or ()]

    async def settle(self, settlement: Settlement) -> Settled:
        """Commit a settlement."""
        await asyncio.sleep(self.commit_seconds)
        message = self.queue.messages[settlement.message_id]
        if message.held_back_by is not None:
            error, message.held_back_by = message.held_back_by, None
            raise error
        held, applied = self._held(message.id) is not None, False
        if settlement.outcome and settlement.part_no and (held or settlement.outcome == "sent"):
            part = message.parts[settlement.part_no - 1]
            if part.status in {"attempting", "unknown"} and part.attempts == settlement.attempt_no:
                part.status, applied = settlement.outcome, True
        if applied and all(part.status == "sent" for part in message.parts):
            message.status = "sent"
        elif held and settlement.status:
            message.status, message.code, message.error_class = (
                settlement.status,
                settlement.code,
                settlement.error_class,
            )
            message.retry_count += settlement.count_attempt
            if settlement.delay_seconds is not None:
                message.due = now() + settlement.delay_seconds
            message.token = None if settlement.status == "pending" else message.token
        return Settled(applied, settlement.status is not None and message.status == settlement.status, message.status)

    async def pauses(self) -> Sequence[Pause]:
        """Every paused scope."""
        return [
            Pause(
                *scope, "systemic" if isinstance(failure, Systemic) else "throttled", failure.code, failure.reason, left
            )
            for scope, (until, failure) in self.queue.pauses.items()
            if (left := until - now()) > 0 or isinstance(failure, Systemic)
        ]

    async def note_failure(self, scope: Scope, scope_id: str, code: str, recipient: str) -> FailureStreak:
        """Count a failure, by recipient."""
        met = self.queue.failures.setdefault((scope, scope_id, code), [])
        met.append(recipient)
        return FailureStreak(len(met), len(set(met)))

    async def forget_failures(self, scope: Scope, scope_id: str) -> None:
        """Reset the count."""
        self.queue.failures = {key: met for key, met in self.queue.failures.items() if key[:2] != (scope, scope_id)}

    async def open_pause(
        self, scope: Scope, scope_id: str, failure: Throttled | Systemic, message_id: str | None = None
    ) -> float:
        """Pause or slow down a scope."""
        seconds = 5.0 if failure.retry_after is None else failure.retry_after
        self.queue.pauses[scope, scope_id] = (now() + seconds, failure)
        return seconds

    async def next_turn(self, message_id: str) -> Turn:
        """Return when the inbox admits the next message."""
        await asyncio.sleep(self.commit_seconds)
        return Turn(max(0.0, self.queue.next_at - now()), "paced")

    async def slow_down(self, inbox_id: str) -> float:
        """Record the call."""
        self.queue.slowed += 1
        return 2.0**self.queue.slowed

    async def known_sends(self, inbox_id: str, attempt: Attempt) -> Attempt:
        """Nothing to add."""
        return attempt

    async def known_numbers(
        self, provider: str, numbers: Sequence[str], days: float, missing_days: float
    ) -> Sequence[KnownNumber]:
        """Return cached answers."""
        return [known for number, known in self.queue.numbers.items() if number in numbers]

    def note_number(self, provider: str, note: NumberNote) -> None:
        """Store it."""
        self.queue.numbers[note.known.number] = note.known
        self.queue.notes.append(note)

    def log(self, line: LogLine) -> None:
        """Store a line."""
        self.queue.log.append(line)

    async def flush(self) -> None:
        """Nothing to write."""


# Model and channel ----------------------------------------------------------------------------------------------------


class LoopHeartbeat:
    """A heartbeat in the event loop of its caller."""

    def __init__(self, store: LeaseStore) -> None:
        self._store = store

    def start(self, beat: Beat) -> None:
        """See core.lease_keeper.Heartbeat."""
        self._task = asyncio.create_task(beat(self._store))

    async def stop(self) -> None:
        """See core.lease_keeper.Heartbeat."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@dataclass
class Model:
    """Answers each prompt as configured, after a delay; see `core.ports.LanguageModel`."""

    seconds: Callable[[str], float] = lambda _: 0.0
    answers: Callable[[Prompt], Completion | Failure | None] = lambda _: None  # None: a good text
    asked: list[tuple[float, str]] = field(default_factory=list)

    async def complete(self, prompt: Prompt) -> Completion | Failure:
        """Generate once."""
        self.asked.append((now(), prompt.reference))
        await asyncio.sleep(self.seconds(prompt.reference))
        return self.answers(prompt) or Completion(TEXT, prompt.model, 100, 20, 0.001)


@dataclass
class Channel:
    """Accepts or refuses as configured; see `core.ports.MessageChannel`."""

    seconds: Callable[[str], float] = lambda _: 0.0
    answers: Callable[[Envelope], Outcome | None] = lambda _: None  # None: sent
    accepts: Callable[[Envelope, Outcome], bool] = lambda _, outcome: isinstance(outcome, Sent)
    connecting: Callable[[], None] = lambda: None  # before the request is written
    look_up: LookUp = LookUp.SEARCH
    refusal: Failure | None = None
    numbers: Callable[[str], NumberCheck] = NumberExists
    number_check: bool = False
    checked: list[str] = field(default_factory=list)  # numbers that were asked for
    asked: list[tuple[float, str]] = field(default_factory=list)  # when, idempotency key
    accepted: list[str] = field(default_factory=list)  # idempotency keys
    in_flight: int = 0
    most_in_flight: int = 0

    @property
    def traits(self) -> ChannelTraits:
        """Return its traits."""
        return ChannelTraits("stand-in", 4096, self.look_up, self.number_check)

    async def check_connection(self) -> Failure | None:
        """Return the configured answer."""
        return self.refusal

    async def send(self, envelope: Envelope) -> Outcome:
        """Accept when the request arrives, answer later."""
        self.connecting()
        if not envelope.may_leave():
            return Transient("unreachable", "Too late.")
        self.asked.append((now(), envelope.idempotency_key))
        outcome = self.answers(envelope) or Sent(f"id-{envelope.idempotency_key}")
        if self.accepts(envelope, outcome):
            self.accepted.append(envelope.idempotency_key)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(self.seconds(envelope.message_id))
        finally:
            self.in_flight -= 1
        return outcome

    async def find_accepted(self, attempt: Attempt) -> LookUpAnswer:
        """Return the truth."""
        key = attempt.envelope.idempotency_key
        return Found(f"id-{key}") if key in self.accepted else Absent(True, "It is not there.")

    async def check_number(self, number: str) -> NumberCheck:
        """Return the configured answer."""
        self.checked.append(number)
        return self.numbers(number)


# A shard --------------------------------------------------------------------------------------------------------------


def campaign(**columns: Any) -> CampaignSettings:
    """A campaign that may always send, in one part."""
    usual: dict[str, Any] = {
        "instructions": "Venda café.",
        "split_messages": False,
        "max_split_parts": 3,
        "start_time": None,
        "end_time": None,
        "timezone": "America/Sao_Paulo",
        "frequency": None,
    }
    return CampaignSettings(**{**usual, **columns})


def settings(splitter: SplitterSettings | None = None, **columns: Any) -> BatchSettings:
    """The settings that the messages share."""
    return BatchSettings(
        {"config": campaign(**columns)}, {"workspace": "vendor/model"}, {}, splitter or SplitterSettings()
    )


def leased(stored: StoredMessage, start: datetime = NOON) -> LeasedMessage:
    """A row as a shard reads it."""
    parts = [
        PartRecord(
            no,
            part.text,
            PartStatus(part.status),
            part.attempts,
            None if part.attempted_at is None else NOON.timestamp() + part.attempted_at,
            None if part.lease_ended_at is None else NOON.timestamp() + part.lease_ended_at,
            part.address,
            error_code=part.error_code,
            resend_approved=part.resend_approved,
        )
        for no, part in enumerate(stored.parts, start=1)
    ]
    return LeasedMessage(
        stored.id,
        "run",
        "config",
        "workspace",
        "inbox",
        "lead",
        None,
        stored.text,
        stored.retry_count,
        tuple(parts),
        worker_deaths=stored.worker_deaths,
        due_at=start.timestamp() + stored.due,
    )


def shard_of(
    store: Store,
    model: Model,
    channel: Channel,
    policy: DeliveryPolicy | None = None,
    batch_settings: BatchSettings | None = None,
    chance: float = 0.0,
    lead: Lead = ANA,
) -> ShardWorker:
    """A shard over all rows of its store."""
    held = [leased(message, store.start) for message in store.queue.messages.values() if message.token == store.token]
    return ShardWorker(
        shard=Shard("shard", "inbox", "batch", tuple(message.id for message in held)),
        messages=held,
        started_at=store.start + timedelta(seconds=now()),
        settings=batch_settings or settings(),
        leads={"lead": lead},
        store=store,
        model=model,
        channel=channel,
        channel_kind="whatsapp",
        heartbeat=LoopHeartbeat(store),
        clock=LeapingClock(),
        policy=policy or DeliveryPolicy(),
        chance=lambda: chance,
    )
