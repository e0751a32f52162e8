"""Circuit breakers and throttles of the scopes that a shard's messages need: inbox, run, workspace, model, provider.

A shard that finds a scope broken or throttled opens its circuit here at once, and for all workers through the store;
it adopts circuits that others opened.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeAlias

from campaign_pipeline.core.campaign_log import CampaignLog
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
)
from campaign_pipeline.core.results import GiveBack

LANGUAGE_MODEL_ACCOUNT = "openrouter"
"""Scope id of the language-model account that all tenants share."""

ScopeKey: TypeAlias = tuple[Scope, str]
"""A scope, and the id of its object."""

UNRECOGNISED_IN_A_ROW = "unrecognised_answers"
"""Code of a pause for unrecognised answers."""

UNRECOGNISED_PAUSE_SECONDS = 3600.0
"""Until one message may probe: each message with such an answer may be lost, so few are risked."""


class Throttle(NamedTuple):
    """Why a scope is throttled, and until when on the shard's clock. The one that ends last compares as greatest."""

    until: float
    code: str
    reason: str


class Circuits:
    """The circuits of one shard: open ones admit no further request, throttled ones none for a while."""

    def __init__(
        self,
        settings: BatchSettings,
        store: DeliveryStore,
        clock: Clock,
        log: CampaignLog,
        most_unrecognised: int,
    ) -> None:
        self._settings = settings
        self._store = store
        self._clock = clock
        self._log = log
        self._most_unrecognised = most_unrecognised
        self._doubted_models: set[str] = set()  # models with a recent unrecognised answer
        self._open: dict[ScopeKey, Systemic] = {}
        self._throttles: dict[ScopeKey, Throttle] = {}
        self._slow_factor = 1.0  # of the inbox, from the store's last answer

    @property
    def throttled_by(self) -> str | None:
        """Say in a sentence which throttle is in force; None if none is."""
        throttle = self._throttle(list(self._throttles))
        return throttle.reason if throttle else None

    @property
    def slowed_by(self) -> str | None:
        """Say in a sentence that the inbox goes slower than its pace; None if it does not."""
        if self._slow_factor > 1:
            return f"The inbox goes {self._slow_factor:g} times slower than its pace until it has recovered."
        return None

    def open_for(self, message: LeasedMessage, *, needs_model: bool) -> Systemic | None:
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

    async def open(self, message: LeasedMessage, failure: Systemic | Throttled, model: str | None = None) -> float:
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
        if streak.failures < self._most_unrecognised:
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
            self._throttles[scope] = Throttle(until, code, reason)

    def throttle_of(self, message: LeasedMessage, *, needs_model: bool) -> Throttle | None:
        """Return the longest throttle in force among the message's scopes."""
        return self._throttle(self._needed(message, needs_model=needs_model)) if self._throttles else None

    async def adopt_pauses(self, message: LeasedMessage, *, needs_model: bool, longest_wait: float) -> GiveBack | None:
        """Adopt the pauses that other workers opened for the message's scopes, so that the next one need not ask.

        Returns the message's result if one of them is no throttle, or a longer one than `longest_wait` seconds.
        """
        scopes = self._needed(message, needs_model=needs_model)
        for pause in await self._store.pauses():
            scope = (pause.scope, pause.scope_id)
            if scope not in scopes:
                continue
            if pause.kind == "systemic":
                self._open.setdefault(scope, Systemic(pause.code, pause.reason, pause.scope))
                return GiveBack(pause.code, pause.reason, ErrorClass.SYSTEMIC)
            if pause.seconds > longest_wait:
                return GiveBack(pause.code, pause.reason, ErrorClass.THROTTLED)
            self._slow_down(scope, pause.seconds, pause.code, pause.reason)
        return None

    def _throttle(self, scopes: Sequence[ScopeKey]) -> Throttle | None:
        """Return the longest throttle in force among some scopes."""
        longest = max((self._throttles[scope] for scope in scopes if scope in self._throttles), default=None)
        return longest if longest and longest.until > self._clock.monotonic() else None
