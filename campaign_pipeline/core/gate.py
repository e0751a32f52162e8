"""The gate before every request of a shard: whether a message may ask the model, or send, now.

What this shard finds broken or too fast is known here at once, and told to everybody through the store; what others
found is taken over. Short throttles and turns of the pace are waited out in place. What takes longer is refused by
NotNow; what that, or any other word of the store, means for the message's life is the shard's to say.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

from campaign_pipeline.core.model import BatchSettings, ErrorClass, LeasedMessage
from campaign_pipeline.core.pacing import REASONS
from campaign_pipeline.core.ports import Clock, DeliveryStore, Scope, Systemic, Throttled
from campaign_pipeline.core.work import MessageLog, Work

LANGUAGE_MODEL_ACCOUNT = "openrouter"
"""Scope id of the language-model account that all tenants share."""

ScopeKey: TypeAlias = tuple[Scope, str]
"""A scope, and the id of what it covers."""


@dataclass(frozen=True)
class WaitingPolicy:
    """How long a message waits in place before it goes back to the queue."""

    max_inline_wait_seconds: float = 60.0  # throttles up to this long are waited out in place
    max_inline_waits: int = 3  # per message
    turn_slice_seconds: float = 1.0  # after which a message that waits for its turn asks again


class NotNow(Exception):
    """The message is better back in the queue: what it needs is paused, or its turn is too far off."""

    def __init__(
        self, code: str, reason: str, error_class: ErrorClass | None = None, delay_seconds: float | None = None
    ) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.error_class = error_class
        self.delay_seconds = delay_seconds  # None: when the scope is well again


class Throttle(NamedTuple):
    """Why a scope goes no further until an instant of the shard's clock. The one that ends last is the greatest."""

    until: float
    code: str
    reason: str


@dataclass(frozen=True)
class Watch:
    """How a shard watches over a message at the gate. Both may end its life by an exception."""

    asking: Callable[[Work], Awaitable[None]]  # before each question to the store
    queueing: Callable[[Work], Awaitable[None]]  # again and again while it waits for its turn


class Gate:
    """Lets the messages of one shard pass, one question at a time."""

    def __init__(
        self,
        settings: BatchSettings,
        policy: WaitingPolicy,
        store: DeliveryStore,
        clock: Clock,
        chance: Callable[[], float],
        stopped: asyncio.Event,  # set when the shard is told to stop: nothing is waited out any more
        log: MessageLog,
        watch: Watch,
    ) -> None:
        self._settings = settings
        self._policy = policy
        self._store = store
        self._clock = clock
        self._chance = chance
        self._stopped = stopped
        self._log = log
        self._watch = watch
        self._broken: dict[ScopeKey, Systemic] = {}  # scopes in which nothing works: no further request
        self._throttles: dict[ScopeKey, Throttle] = {}
        self._slow_factor = 1.0  # of the inbox, as last heard
        self._lines: dict[str, asyncio.Lock] = {}  # by campaign: who waits for its turn
        self._first: dict[str, asyncio.Lock] = {}  # by message: the line that it heads

    async def verdict(self, work: Work, ask: Callable[[], Awaitable[str]]) -> str:
        """Ask the store until it says `go`, or a no that no waiting changes.

        Raises NotNow where waiting would take too long.
        """
        waits = 0
        while waits < self._policy.max_inline_waits:
            await self._wait_for_throttle(work)
            await self._watch.asking(work)
            match await ask():
                case "paced":
                    await self._wait_for_turn(work)
                case "scope_paused":
                    await self._wait_for_others(work)
                    waits += 1
                case verdict:
                    return verdict
        reason = "Slowed down too often; it goes on with the next batch."
        raise NotNow("scope_paused", reason, delay_seconds=5.0)

    def leave_line(self, work: Work) -> None:
        """Let the next message of the campaign ask for its turn, if this one was the one that asks."""
        if line := self._first.pop(work.id, None):
            line.release()

    async def sleep(self, seconds: float) -> None:
        """Wait, but no longer than until the shard is told to stop."""
        waits = [asyncio.ensure_future(self._clock.sleep(seconds)), asyncio.ensure_future(self._stopped.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    # Scopes ---------------------------------------------------------------------------------------------------------

    def broken(self, work: Work) -> Systemic | None:
        """What is known to be wrong with a scope that the message needs."""
        return next((self._broken[scope] for scope in self._needed(work) if scope in self._broken), None)

    def model_is_well(self, message: LeasedMessage, model: str) -> bool:
        """Whether nothing is known that keeps this model from being asked at once."""
        scopes = [(Scope.WORKSPACE, message.workspace_id), (Scope.MODEL, model)]
        if message.workspace_id not in self._settings.own_accounts:
            scopes.append((Scope.PROVIDER, LANGUAGE_MODEL_ACCOUNT))
        return not self._throttle(scopes) and not any(scope in self._broken for scope in scopes)

    async def close(self, message: LeasedMessage, failure: Systemic | Throttled, model: str | None = None) -> float:
        """Pause or slow down a scope, here at once and for everybody through the database. Returns seconds.

        `model` is the one that was asked, where it is not the workspace's own.
        """
        scope = (failure.scope, self._scope_id(message, failure.scope, model))
        if failure.retry_after is not None:
            # "Come back at once" would make a loop as fast as the network.
            failure = replace(failure, retry_after=max(1.0, failure.retry_after))
        if isinstance(failure, Systemic):
            first = scope not in self._broken
            self._broken[scope] = failure
            if first:
                self._log(message, "pause", "error", failure.reason, scope=failure.scope.value, code=failure.code)
        seconds = await self._store.open_pause(*scope, failure)
        if isinstance(failure, Throttled):
            seconds = max(seconds, failure.retry_after or 0.0)
            self._slow_down(scope, seconds, failure.code, failure.reason)
            if failure.scope is Scope.INBOX:
                await self._slow_inbox(message, failure)
        return seconds

    async def _slow_inbox(self, message: LeasedMessage, failure: Throttled) -> None:
        """Not only wait: go slower from then on, whoever sends through this inbox."""
        factor = await self._store.slow_down(message.inbox_id)
        if factor != self._slow_factor:
            self._slow_factor = factor
            text = f"{failure.reason} The inbox goes {factor:g} times slower than its pace until it has recovered."
            self._log(message, "pause", "warning", text, scope="inbox", code=failure.code, factor=factor)

    def _needed(self, work: Work) -> list[ScopeKey]:
        """The scopes that a message needs to be well."""
        message = work.message
        needed = [Scope.INBOX, Scope.RUN]
        if work.needs_model:
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

    def _slow_down(self, scope: ScopeKey, seconds: float, code: str, reason: str) -> None:
        until = self._clock.monotonic() + seconds
        if scope not in self._throttles or until > self._throttles[scope].until:
            self._throttles[scope] = Throttle(until, code, reason)

    def _throttle(self, scopes: Sequence[ScopeKey]) -> Throttle | None:
        """The longest throttle of some scopes that still holds."""
        longest = max((self._throttles[scope] for scope in scopes if scope in self._throttles), default=None)
        return longest if longest and longest.until > self._clock.monotonic() else None

    # Waiting --------------------------------------------------------------------------------------------------------

    async def _wait_for_throttle(self, work: Work) -> None:
        """Wait until no throttle of the message's scopes holds any more. Raises NotNow."""
        while not self._stopped.is_set() and (throttle := self._throttle(self._needed(work))):
            left = throttle.until - self._clock.monotonic()
            if left > self._policy.max_inline_wait_seconds:
                raise NotNow(throttle.code, throttle.reason, ErrorClass.THROTTLED)
            # Not all at the same instant, or they would be throttled together again.
            await self.sleep(left * (1 + 0.1 * self._chance()))

    async def _wait_for_others(self, work: Work) -> None:
        """Somebody paused one of our scopes: take it over, so that the next message need not ask. Raises NotNow."""
        scopes = self._needed(work)
        for pause in await self._store.pauses():
            scope = (pause.scope, pause.scope_id)
            if scope not in scopes:
                continue
            if pause.kind == "systemic":
                self._broken.setdefault(scope, Systemic(pause.code, pause.reason, pause.scope))
                raise NotNow(pause.code, pause.reason, ErrorClass.SYSTEMIC)
            if pause.seconds > self._policy.max_inline_wait_seconds:
                raise NotNow(pause.code, pause.reason, ErrorClass.THROTTLED)
            self._slow_down(scope, pause.seconds, pause.code, pause.reason)

    async def _wait_for_turn(self, work: Work) -> None:
        """Wait until the pace of the inbox and the campaign lets a message go. Raises NotNow.

        Of a campaign only one message asks: the others would ask for the same turn. It asks every second, because
        settings may change, the clock be moved, and the turn go to a worker elsewhere.
        """
        if work.id not in self._first:
            line = self._lines.setdefault(work.message.config_id, asyncio.Lock())
            await line.acquire()
            self._first[work.id] = line
        while True:
            await self._watch.queueing(work)
            turn = await self._store.next_turn(work.id)
            if turn.seconds <= 0:
                return
            if turn.seconds > self._policy.max_inline_wait_seconds:
                raise NotNow(turn.code, REASONS[turn.code], delay_seconds=turn.seconds)
            await self.sleep(min(turn.seconds, self._policy.turn_slice_seconds))
