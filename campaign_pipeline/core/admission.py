"""Admission: whether a message may ask the model, or send, now.

Short throttles and turns are waited out inline, longer ones in the queue. `core.circuits` knows what is broken.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from campaign_pipeline.core.circuits import Circuits
from campaign_pipeline.core.claim_budget import REASONS
from campaign_pipeline.core.model import BatchSettings, ErrorClass, LeasedMessage
from campaign_pipeline.core.ports import Clock, DeliveryStore, NotReady, Verdict
from campaign_pipeline.core.results import GiveBack, Result

Ask: TypeAlias = Callable[[], Awaitable[Verdict]]
"""Asks the store whether a message may go on."""

SLOWED_DOWN_SECONDS = 5.0
"""Delay of a message that was throttled too often: it is retried in the next batch, not in a loop."""

PREFETCHED_SECONDS = 10.0
"""How long a prefetched `go` is valid. A stale one costs a text, which is stored; sending is checked again."""


@dataclass(frozen=True)
class WaitingPolicy:
    """How long a message waits inline before it returns to the queue."""

    max_inline_wait_seconds: float = 60.0  # longer throttles return the message to the queue
    max_inline_waits: int = 3  # per message
    turn_slice_seconds: float = 1.0  # interval at which a message that waits for its turn asks again
    most_unrecognised_answers: int = 5  # in a row; then the inbox or the model is paused


@dataclass(frozen=True)
class Admitted:
    """The message may make its request."""


@dataclass(frozen=True)
class Deferred:
    """The message ends for now, without a refusal: a scope that it needs is paused, or the wait would be too long."""

    result: Result


@dataclass(frozen=True)
class Refused:
    """The store refused, and waiting would not change its answer."""

    verdict: Verdict


class Applicant(Protocol):
    """A message that asks for admission."""

    @property
    def message(self) -> LeasedMessage:
        """The message as it was leased."""
        ...

    @property
    def needs_model(self) -> bool:
        """Return whether its text is still to be written."""
        ...

    def stop_if_not_started(self) -> Result | None:
        """Return how it ends if the shard stops, or nothing can come of it, before any part was sent."""
        ...

    def stop_if_waiting(self) -> Result | None:
        """Return how it ends if the shard stops or its lease is lost while it waits for its turn."""
        ...


class StopSignal:
    """Tells the tasks of a shard to start nothing new, and why."""

    def __init__(self, clock: Clock) -> None:
        self.reason: str | None = None
        self._clock = clock
        self._event = asyncio.Event()

    def set(self, reason: str) -> None:
        """Stop. Only the first reason is kept."""
        self.reason = self.reason or reason
        self._event.set()

    async def sleep(self, seconds: float, alarm: asyncio.Event | None = None) -> None:
        """Sleep until the time is over, the shard stops, or the alarm is set."""
        waits = [asyncio.ensure_future(self._clock.sleep(seconds)), asyncio.ensure_future(self._event.wait())]
        if alarm is not None:
            waits.append(asyncio.ensure_future(alarm.wait()))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()


class Admission:
    """Admits the messages of one shard, one question at a time."""

    def __init__(
        self,
        settings: BatchSettings,
        policy: WaitingPolicy,
        store: DeliveryStore,
        circuits: Circuits,
        clock: Clock,
        chance: Callable[[], float],
        stop: StopSignal,
    ) -> None:
        self._settings = settings
        self._policy = policy
        self._store = store
        self._circuits = circuits
        self._clock = clock
        self._chance = chance
        self._stop = stop
        self.not_ready: NotReady | None = None  # the inbox is still connecting: the shard returns its messages
        self._prefetch = _VerdictPrefetch(store.start_generating, clock)
        self._next: LeasedMessage | None = None
        self._turn_locks: dict[str, asyncio.Lock] = {}  # by campaign: only the holder asks for a turn
        self._turn_reason: str | None = None  # why a message waits for its turn now

    async def acquire(self, applicant: Applicant, ask: Ask) -> Admitted | Deferred | Refused:
        """Ask the store until it answers GO or a final refusal; wait inline if the wait is short."""
        waits, turn_lock = 0, None
        try:
            while waits < self._policy.max_inline_waits:
                if deferred := await self._wait_for_throttle(applicant):
                    return deferred
                if result := applicant.stop_if_not_started():
                    return Deferred(result)
                match await ask():
                    case Verdict.GO:
                        return Admitted()
                    case Verdict.PACED:
                        # Only one message per campaign asks on: the others would ask for the same turn.
                        turn_lock = turn_lock or await self._lock_turn(applicant.message.config_id)
                        deferred = await self._wait_for_turn(applicant)
                    case Verdict.SCOPE_PAUSED:
                        waits += 1
                        deferred = await self._adopt_pauses(applicant)
                    case verdict:
                        return Refused(verdict)
                if deferred:
                    return deferred
        finally:
            if turn_lock:
                turn_lock.release()
        reason = "Slowed down too often; it goes on with the next batch."
        return Deferred(GiveBack("scope_paused", reason, delay_seconds=SLOWED_DOWN_SECONDS))

    @property
    def slowed_by(self) -> str | None:
        """Say in a sentence why messages wait here now; None if none does."""
        return self._circuits.throttled_by or self._turn_reason or self._circuits.slowed_by

    # The model's verdicts -------------------------------------------------------------------------------------------

    async def ask_for_model(self, message_id: str) -> Verdict:
        """Return the store's verdict on whether the model may be called for a message, prefetched or not."""
        verdict = await self._prefetch.verdict(message_id)
        if verdict == Verdict.GO and self._next is not None:
            # Sent together with the result of the previous message, in one round trip.
            self._prefetch.ask(self._next.id)
        return verdict

    def announce(self, message: LeasedMessage | None) -> None:
        """Prefetch the verdict on the next message if it surely needs the model, so its turn begins with its request.

        Only messages in flight may exceed a spending limit. This one is not in flight yet, so it asks for itself.
        """
        limited = message is not None and message.config_id in self._settings.limited
        self._next = None if limited else message

    async def cancel_prefetch(self) -> None:
        """Cancel the prefetched verdicts."""
        await self._prefetch.cancel()

    # Waiting --------------------------------------------------------------------------------------------------------

    async def _wait_for_throttle(self, applicant: Applicant) -> Deferred | None:
        """Wait until no throttle of the message's scopes is in force."""
        while not self._stop.reason:
            throttle = self._circuits.throttle_of(applicant.message, needs_model=applicant.needs_model)
            if throttle is None:
                break
            left = throttle.until - self._clock.monotonic()
            if left > self._policy.max_inline_wait_seconds:
                return Deferred(GiveBack(throttle.code, throttle.reason, ErrorClass.THROTTLED))
            # Spread out, or all would be throttled together again.
            await self._stop.sleep(left * (1 + 0.1 * self._chance()))
        return None

    async def _adopt_pauses(self, applicant: Applicant) -> Deferred | None:
        result = await self._circuits.adopt_pauses(
            applicant.message,
            needs_model=applicant.needs_model,
            longest_wait=self._policy.max_inline_wait_seconds,
        )
        return Deferred(result) if result else None

    async def _lock_turn(self, config_id: str) -> asyncio.Lock:
        """Return the lock of a campaign's turn once it is acquired."""
        lock = self._turn_locks.setdefault(config_id, asyncio.Lock())
        await lock.acquire()
        return lock

    async def _wait_for_turn(self, applicant: Applicant) -> Deferred | None:
        """Wait until the paces of the inbox and the campaign admit a message.

        It asks every second, because settings may change, the clock may be moved, and another worker may take the turn.
        """
        message = applicant.message
        while True:
            if result := applicant.stop_if_waiting():
                return Deferred(result)
            turn = await self._store.next_turn(message.id)
            self._turn_reason = REASONS[turn.code] if turn.seconds > 0 else None
            if turn.seconds <= 0:
                return None
            if turn.seconds > self._policy.max_inline_wait_seconds:
                return Deferred(GiveBack(turn.code, REASONS[turn.code], delay_seconds=turn.seconds))
            await self._stop.sleep(min(turn.seconds, self._policy.turn_slice_seconds))


class _VerdictPrefetch:
    """Verdicts on messages whose turn has not come yet."""

    def __init__(self, ask: Callable[[str], Awaitable[Verdict]], clock: Clock) -> None:
        self._ask = ask
        self._clock = clock
        self._asked: dict[str, asyncio.Task[tuple[Verdict, float]]] = {}

    def ask(self, message_id: str) -> None:
        """Ask for a message, unless that was done."""
        if message_id not in self._asked:
            asking = asyncio.create_task(self._timed(message_id))
            # If it fails, the caller that needs the answer asks again and finds out why.
            asking.add_done_callback(lambda asked: asked.cancelled() or asked.exception())
            self._asked[message_id] = asking

    async def _timed(self, message_id: str) -> tuple[Verdict, float]:
        return await self._ask(message_id), self._clock.monotonic()

    async def verdict(self, message_id: str) -> Verdict:
        """GO, if that was answered and is young; every other answer is asked for again."""
        if asking := self._asked.pop(message_id, None):
            with contextlib.suppress(Exception):
                verdict, at = await asking
                if verdict == Verdict.GO and self._clock.monotonic() - at < PREFETCHED_SECONDS:
                    return verdict
        return await self._ask(message_id)

    async def cancel(self) -> None:
        """Wait for no answer any more."""
        left = list(self._asked.values())
        for asking in left:
            asking.cancel()
        await asyncio.gather(*left, return_exceptions=True)
