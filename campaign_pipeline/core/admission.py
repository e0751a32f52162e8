"""Admission: whether a message may ask the model, or send, now.

A shard that finds a scope broken or throttled opens a circuit locally at once, and for all workers through the store;
it adopts circuits that others opened. Short throttles and turns are waited out inline, longer ones in the queue.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, TypeAlias

from campaign_pipeline.core.campaign_log import CampaignLog
from campaign_pipeline.core.claim_budget import REASONS
from campaign_pipeline.core.model import BatchSettings, ErrorClass, LeasedMessage
from campaign_pipeline.core.ports import (
    UNRECOGNISED,
    Clock,
    DeliveryStore,
    Failure,
    NotReady,
    Scope,
    Systemic,
    Throttled,
    Transient,
    Verdict,
)
from campaign_pipeline.core.results import GiveBack, Result

LANGUAGE_MODEL_ACCOUNT = "openrouter"
"""Scope id of the language-model account that all tenants share."""

ScopeKey: TypeAlias = tuple[Scope, str]
"""A scope, and the id of its object."""

Ask: TypeAlias = Callable[[], Awaitable[Verdict]]
"""Asks the store whether a message may go on."""

SLOWED_DOWN_SECONDS = 5.0
"""Delay of a message that was throttled too often: it is retried in the next batch, not in a loop."""

PREFETCHED_SECONDS = 10.0
"""How long a prefetched `go` is valid. A stale one costs a text, which is stored; sending is checked again."""


UNRECOGNISED_IN_A_ROW = "unrecognised_answers"
"""Code of a pause for unrecognised answers."""

UNRECOGNISED_PAUSE_SECONDS = 3600.0
"""Until one message may probe: each message with such an answer may be lost, so few are risked."""


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

    async def sleep(self, seconds: float) -> None:
        """Sleep until the time is over or the shard stops."""
        waits = [asyncio.ensure_future(self._clock.sleep(seconds)), asyncio.ensure_future(self._event.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()


class _Throttle(NamedTuple):
    """Why a scope is throttled, and until when on the shard's clock. The one that ends last compares as greatest."""

    until: float
    code: str
    reason: str


class Admission:
    """Admits the messages of one shard, one question at a time."""

    def __init__(
        self,
        settings: BatchSettings,
        policy: WaitingPolicy,
        store: DeliveryStore,
        clock: Clock,
        chance: Callable[[], float],
        stop: StopSignal,
        log: CampaignLog,
    ) -> None:
        self._settings = settings
        self._policy = policy
        self._store = store
        self._clock = clock
        self._chance = chance
        self._stop = stop
        self._log = log
        self._doubted_models: set[str] = set()  # models with a recent unrecognised answer
        self.not_ready: NotReady | None = None  # the inbox is still connecting: the shard returns its messages
        self._prefetch = _VerdictPrefetch(store.start_generating, clock)
        self._next: LeasedMessage | None = None
        self._open: dict[ScopeKey, Systemic] = {}  # open circuits: no further request
        self._throttles: dict[ScopeKey, _Throttle] = {}
        self._slow_factor = 1.0  # of the inbox, from the store's last answer
        self._turn_locks: dict[str, asyncio.Lock] = {}  # by campaign: only the holder asks for a turn
        self._turn_held: dict[str, asyncio.Lock] = {}  # by message: the lock that it holds
        self._turn_reason: str | None = None  # why a message waits for its turn now

    async def acquire(self, applicant: Applicant, ask: Ask) -> Admitted | Deferred | Refused:
        """Ask the store until it answers GO or a final refusal; wait inline if the wait is short."""
        waits = 0
        while waits < self._policy.max_inline_waits:
            if deferred := await self._wait_for_throttle(applicant):
                return deferred
            if result := applicant.stop_if_not_started():
                return Deferred(result)
            match await ask():
                case Verdict.GO:
                    return Admitted()
                case Verdict.PACED:
                    deferred = await self._wait_for_turn(applicant)
                case Verdict.SCOPE_PAUSED:
                    waits += 1
                    deferred = await self._take_over_pauses(applicant)
                case verdict:
                    return Refused(verdict)
            if deferred:
                return deferred
        reason = "Slowed down too often; it goes on with the next batch."
        return Deferred(GiveBack("scope_paused", reason, delay_seconds=SLOWED_DOWN_SECONDS))

    @property
    def slowed_by(self) -> str | None:
        """Say in a sentence why messages wait here now; None if none does."""
        if throttle := self._throttle(list(self._throttles)):
            return throttle.reason
        if self._turn_reason is not None:
            return self._turn_reason
        if self._slow_factor > 1:
            return f"The inbox goes {self._slow_factor:g} times slower than its pace until it has recovered."
        return None

    def release_turn(self, message_id: str) -> None:
        """Let the next message of the campaign ask for a turn, if this message was the one that asks."""
        if lock := self._turn_held.pop(message_id, None):
            lock.release()

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

    # Circuits -------------------------------------------------------------------------------------------------------

    def open_circuit_for(self, message: LeasedMessage, *, needs_model: bool) -> Systemic | None:
        """Return the known failure of a scope that the message needs, or None."""
        return None if not self._open else self._first_open(self._needed(message, needs_model=needs_model))

    def model_is_available(self, message: LeasedMessage, model: str) -> bool:
        """Return whether no known failure or throttle keeps this model from being called at once."""
        scopes = [(Scope.WORKSPACE, message.workspace_id), (Scope.MODEL, model)]
        if message.workspace_id not in self._settings.own_accounts:
            scopes.append((Scope.PROVIDER, LANGUAGE_MODEL_ACCOUNT))
        return not self._throttle(scopes) and not self._first_open(scopes)

    async def model_is_paused(self, model: str, code: str) -> bool:
        """Return whether the store has paused this model with this code."""
        return any(pause.code == code and pause.scope_id == model for pause in await self._store.pauses())

    async def open_circuit(
        self, message: LeasedMessage, failure: Systemic | Throttled, model: str | None = None
    ) -> float:
        """Pause or slow down a scope, here at once and for all workers through the store. Returns seconds.

        `model` is the model that was called, if it is not the workspace's own.
        """
        scope = (failure.scope, self._scope_id(message, failure.scope, model))
        if failure.retry_after is not None:
            # A retry after zero seconds would loop as fast as the network.
            failure = replace(failure, retry_after=max(1.0, failure.retry_after))
        if isinstance(failure, Systemic):
            first = scope not in self._open
            self._open[scope] = failure
            if first:
                self._log(message, "pause", "error", failure.reason, scope=failure.scope.value, code=failure.code)
        seconds = await self._store.open_pause(*scope, failure, message.id)
        if isinstance(failure, Throttled):
            seconds = max(seconds, failure.retry_after or 0.0)
            self._slow_down(scope, seconds, failure.code, failure.reason)
            if failure.scope is Scope.INBOX:
                await self._slow_inbox(message, failure)
        return seconds

    async def confirmed(
        self,
        message: LeasedMessage,
        failure: Systemic,
        check_connection: Callable[[], Awaitable[Failure | NotReady | None]],
    ) -> Failure:
        """Confirm a failure that was inferred from an error text alone.

        It is the inbox's if the inbox's state or a second recipient confirms it. Otherwise only this message is retried
        later: trouble with one recipient must not stop an inbox.
        """
        if await self._is_confirmed(message, failure):
            return failure
        state = await check_connection()
        if isinstance(state, Systemic):
            return state
        reason = f"{failure.reason} No other lead's message met it so far."
        return Transient(failure.code, reason, answer=failure.answer)

    async def _is_confirmed(self, message: LeasedMessage, failure: Systemic) -> bool:
        """Return whether an error text is enough to call a scope broken: it is paused, or a second recipient met it."""
        scope = (failure.scope, self._scope_id(message, failure.scope))
        if scope in self._open or failure.scope is not Scope.INBOX:
            return True
        paused = {(pause.scope, pause.scope_id, pause.code) for pause in await self._store.pauses()}
        if (*scope, failure.code) in paused:
            return True
        streak = await self._store.note_failure(*scope, failure.code, message.lead_id or message.id)
        return streak.recipients > 1

    async def note_unrecognised(self, message: LeasedMessage, model: str | None = None) -> Systemic | None:
        """Count an unrecognised answer of the inbox or a model. Returns the reason to pause it after too many."""
        scope = Scope.INBOX if model is None else Scope.MODEL
        if model is not None:
            self._doubted_models.add(model)
        streak = await self._store.note_failure(
            scope, self._scope_id(message, scope, model), UNRECOGNISED, message.lead_id or message.id
        )
        if streak.failures < self._policy.most_unrecognised_answers:
            return None
        whom = "this inbox's provider" if model is None else f"the model {model}"
        reason = (
            f"The last {streak.failures} answers of {whom} were of kinds that the pipeline does not know, so nothing "
            "more is requested for an hour; what came is in campaign_message_parts (provider_response) or in "
            "campaign_logs."
        )
        return Systemic(UNRECOGNISED_IN_A_ROW, reason, scope, UNRECOGNISED_PAUSE_SECONDS)

    async def model_worked(self, message: LeasedMessage) -> None:
        """A text was written: reset the failure count of its model."""
        model = self._scope_id(message, Scope.MODEL)
        if model in self._doubted_models:
            self._doubted_models.discard(model)
            await self._store.forget_failures(Scope.MODEL, model)

    async def _slow_inbox(self, message: LeasedMessage, failure: Throttled) -> None:
        """Slow the inbox down for all its senders, beyond this one wait."""
        factor = await self._store.slow_down(message.inbox_id)
        if factor != self._slow_factor:
            self._slow_factor = factor
            text = f"{failure.reason} The inbox goes {factor:g} times slower than its pace until it has recovered."
            self._log(message, "pause", "warning", text, scope="inbox", code=failure.code, factor=factor)

    def _needed(self, message: LeasedMessage, *, needs_model: bool) -> list[ScopeKey]:
        """Return the scopes whose circuits must be closed for this message."""
        needed = [Scope.INBOX, Scope.RUN]
        if needs_model:
            needed += [Scope.WORKSPACE, Scope.MODEL]
            if message.workspace_id not in self._settings.own_accounts:
                needed.append(Scope.PROVIDER)
        return [(scope, self._scope_id(message, scope)) for scope in needed]

    def _scope_id(self, message: LeasedMessage, scope: Scope, model: str | None = None) -> str:
        ids = {
            Scope.INBOX: message.inbox_id,
            Scope.RUN: message.run_id,
            Scope.WORKSPACE: message.workspace_id,
            Scope.MODEL: model or self._settings.models.get(message.workspace_id, ""),
            Scope.PROVIDER: LANGUAGE_MODEL_ACCOUNT,
        }
        return ids[scope]

    def _first_open(self, scopes: Sequence[ScopeKey]) -> Systemic | None:
        return next((self._open[scope] for scope in scopes if scope in self._open), None)

    def _slow_down(self, scope: ScopeKey, seconds: float, code: str, reason: str) -> None:
        until = self._clock.monotonic() + seconds
        if scope not in self._throttles or until > self._throttles[scope].until:
            self._throttles[scope] = _Throttle(until, code, reason)

    def _throttle(self, scopes: Sequence[ScopeKey]) -> _Throttle | None:
        """Return the longest throttle in force among some scopes."""
        longest = max((self._throttles[scope] for scope in scopes if scope in self._throttles), default=None)
        return longest if longest and longest.until > self._clock.monotonic() else None

    # Waiting --------------------------------------------------------------------------------------------------------

    async def _wait_for_throttle(self, applicant: Applicant) -> Deferred | None:
        """Wait until no throttle of the message's scopes is in force."""
        while self._throttles and not self._stop.reason:
            throttle = self._throttle(self._needed(applicant.message, needs_model=applicant.needs_model))
            if throttle is None:
                break
            left = throttle.until - self._clock.monotonic()
            if left > self._policy.max_inline_wait_seconds:
                return Deferred(GiveBack(throttle.code, throttle.reason, ErrorClass.THROTTLED))
            # Spread out, or all would be throttled together again.
            await self._stop.sleep(left * (1 + 0.1 * self._chance()))
        return None

    async def _take_over_pauses(self, applicant: Applicant) -> Deferred | None:
        """Adopt a pause that another worker opened for our scopes, so that the next message need not ask."""
        scopes = self._needed(applicant.message, needs_model=applicant.needs_model)
        for pause in await self._store.pauses():
            scope = (pause.scope, pause.scope_id)
            if scope not in scopes:
                continue
            if pause.kind == "systemic":
                self._open.setdefault(scope, Systemic(pause.code, pause.reason, pause.scope))
                return Deferred(GiveBack(pause.code, pause.reason, ErrorClass.SYSTEMIC))
            if pause.seconds > self._policy.max_inline_wait_seconds:
                return Deferred(GiveBack(pause.code, pause.reason, ErrorClass.THROTTLED))
            self._slow_down(scope, pause.seconds, pause.code, pause.reason)
        return None

    async def _wait_for_turn(self, applicant: Applicant) -> Deferred | None:
        """Wait until the paces of the inbox and the campaign admit a message.

        Only one message per campaign asks: the others would ask for the same turn. It asks every second, because
        settings may change, the clock may be moved, and another worker may take the turn.
        """
        message = applicant.message
        if message.id not in self._turn_held:
            lock = self._turn_locks.setdefault(message.config_id, asyncio.Lock())
            await lock.acquire()
            self._turn_held[message.id] = lock
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
