"""Decides whether a run may be sent now, and if not, why. People set a run's `status`; its wait is computed."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from typing import Any
from uuid import UUID

from campaign_pipeline.core import claim_budget
from campaign_pipeline.core.window import InvalidWindow, SendingWindow

DEFAULT_INTERVAL_SECONDS = 30.0
"""Between overdue messages that are sent after a pause, if the campaign has no interval; the CRM's own minimum."""

DEFAULT_SPREAD_SECONDS = 600.0
"""Within which all of them are sent then: no burst, but not days either without a configured pace."""

WINDOW_CLOSED = "window_closed"

SETTINGS_CHANGED = "settings_changed"

CLOCKS_DIFFER = timedelta(seconds=1)
"""By how much a worker that waits for a window's opening may wake too early by the database's clock."""

SLOWED_DOWN = "slowed_down"
"""The wait for a throttle that ends soon: not a pause, so the messages then go on at once, not spread."""

CONNECTING = "connecting"
"""The wait for an instance that reconnects: short, so the messages then go on at once, not spread."""

SHORT_THROTTLE = timedelta(minutes=10)

NO_MODEL = "no_model"

NO_MODEL_REASON = "The workspace has no active agent with a model. Set one in ai_agents; the run then continues."


@dataclass(frozen=True)
class RunWait:
    """Why a running run is not sent."""

    run_id: UUID
    code: str
    reason: str
    until: datetime | None = None


@dataclass(frozen=True)
class RunState:
    """A running run with the decision about it."""

    run_id: UUID
    wait: RunWait | None
    has_due: bool  # due now, or planned within the requested time
    resumed: bool  # messages that became overdue during the hold are to be spread
    interval_seconds: float
    spread_within_seconds: float | None  # over which overdue messages are spread; None: by the interval
    too_old_before: datetime  # messages due before this are skipped
    resumed_at: datetime  # when the pause ended
    closes_at: datetime | None  # when its window closes; None: never, or it is closed
    noted: tuple[str | None, str | None, datetime | None]  # the wait in its row: code, reason, until
    pauses: tuple[tuple[str, str], ...] = ()  # paused scopes that apply to it
    only_paused: bool = False  # only pauses hold it
    config_id: UUID | None = None
    inbox_id: UUID | None = None  # through which it sends now
    own_inbox_id: UUID | None = None
    noted_inbox_id: UUID | None = None  # the fallback inbox in its row
    own_inbox_pauses: tuple[tuple[str, str], ...] = ()  # why it uses another inbox, if a probe could find out more
    pace_held: bool = False  # more became due lately than its pace admits

    @property
    def note_changed(self) -> bool:
        """Return whether its wait differs from the one in its row."""
        wait = self.wait
        return self.noted != ((wait.code, wait.reason, wait.until) if wait else (None, None, None))

    @property
    def active_inbox_id(self) -> UUID | None:
        """Return the fallback inbox that it uses; None: its own inbox."""
        return None if self.inbox_id == self.own_inbox_id else self.inbox_id

    def waiting(self, wait: RunWait) -> "RunState":
        """Return the same run with a wait that was found later."""
        return replace(self, wait=wait)

    def with_noted_pace_wait(self, until: datetime) -> "RunState":
        """Return the run with the wait that the last claim noted, if its pace holds it longer. Only a claim knows."""
        code, reason, noted_until = self.noted
        if self.wait is None and code in claim_budget.CODES and noted_until is not None and noted_until > until:
            return self.waiting(RunWait(self.run_id, code, reason or "", noted_until))
        return self

    def may_probe_own_inbox(self, probe_due: Set[tuple[str, str]]) -> bool:
        """Return whether one message may probe the inbox that the run had to leave."""
        return self.wait is None and bool(self.own_inbox_pauses) and probe_due >= set(self.own_inbox_pauses)

    def may_probe(self, probe_due: Set[tuple[str, str]]) -> bool:
        """Return whether only these scopes hold it, each of which may be probed now.

        All scopes at once: if each waited until the others are resumed, two paused scopes would block each other.
        """
        return self.only_paused and probe_due >= set(self.pauses)


@dataclass(frozen=True)
class Fallback:
    """An inbox that a run may use while its own is down, with the instance that serves it."""

    inbox_id: UUID
    instance_id: UUID
    instance_status: str | None
    instance_name: str | None

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "Fallback":
        """Build from an element of `fallbacks` of `list_running_runs`."""
        ids = (UUID(row["inbox_id"]), UUID(row["instance_id"]))
        return cls(*ids, row["instance_status"], row["instance_name"])


@dataclass(frozen=True)
class RunningRun:
    """A running run with the data that decides whether it may be sent: a row of `list_running_runs`."""

    run_id: UUID
    name: str | None
    wait_code: str | None  # its wait at the last claim; None: it did not wait
    wait_reason: str | None
    wait_until: datetime | None
    resumed_at: datetime | None
    now: datetime
    config_id: UUID | None
    workspace_id: UUID | None
    inbox_id: UUID | None  # of its campaign; while a fallback is used, the fallback
    is_active: bool | None
    start_time: str | None  # as text: Python has no time of day 24:00
    end_time: str | None
    timezone: str | None
    frequency: str | None
    weekdays: Sequence[int] | None
    holidays: Sequence[date] | None
    min_interval_seconds: float | None
    pace_held_since: datetime | None
    active_inbox_id: UUID | None  # the fallback in its row
    fallbacks: tuple[Fallback, ...]  # by preference
    instance_id: UUID | None
    instance_status: str | None
    instance_name: str | None
    model: str | None
    has_due: bool
    own_account: bool = False  # its workspace has its own account for the language model
    next_planned: datetime | None = None  # its first message that may be claimed ahead of its time

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "RunningRun":
        """Build from the statement `list_running_runs`."""
        return cls(**{**row, "fallbacks": tuple(map(Fallback.from_json, row["fallbacks"] or ()))})


@dataclass(frozen=True)
class OpenPause:
    """A scope for which no request may be made now: a row of `list_pauses` or `look_at_pauses`."""

    scope: str
    scope_id: str
    kind: str  # systemic, throttled
    code: str
    reason: str
    since: datetime
    until: datetime | None  # None: unknown
    probe_due: bool = False  # one message may test whether the cause is gone
    tried_message_ids: tuple[UUID, ...] = ()  # that met the cause

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "OpenPause":
        """Build from either statement."""
        return cls(**{**row, "tried_message_ids": tuple(row.get("tried_message_ids") or ())})


def judge_run(
    run: RunningRun,
    pauses: Sequence[OpenPause],
    max_age: timedelta,
    ahead: timedelta = timedelta(0),
) -> RunState:
    """Decide about a running run, given the open pauses.

    A message planned within `ahead` counts as due, and a window that opens within it as open.
    """
    now: datetime = run.now
    own, run = run, _route(run, pauses)
    held_since: datetime | None = run.pace_held_since
    covering = [pause for pause in pauses if _covers(pause, run)]
    waits = list(_configuration_waits(run))
    found = _window_of(run)
    window = found if isinstance(found, SendingWindow) else None
    if isinstance(found, RunWait):
        waits.append(found)
    only_paused = not waits and bool(covering) and window is not None and window.is_open(now)
    pause_waits = [_pause_wait(run.run_id, pause) for pause in covering]
    waits += [wait for wait in pause_waits if wait.code != SLOWED_DOWN]
    held = any(wait.code != CONNECTING for wait in waits)
    waits += [wait for wait in pause_waits if wait.code == SLOWED_DOWN]
    was_paced = run.wait_code in claim_budget.CODES and held_since is not None
    was_held = run.wait_code not in {None, WINDOW_CLOSED, SLOWED_DOWN, CONNECTING} and not was_paced
    to_be_spread = run.resumed_at is not None and run.resumed_at <= now
    opening = window.next_opening(now) if window else now
    # Messages that wait only for the opening are claimed ahead of it, like planned ones. Overdue ones are not spread
    # yet.
    if window and opening > now + (timedelta(0) if was_held or to_be_spread else ahead):
        waits.append(_window_wait(run.run_id, window, opening))
    wait = waits[0] if waits else None
    # Messages that our own pace delays do not become too old by it.
    aging_until = now if held_since is None else min(now, held_since)
    return RunState(
        run_id=run.run_id,
        wait=wait,
        has_due=run.has_due or _is_planned(run, ahead),
        resumed=not held and (was_held or to_be_spread),
        interval_seconds=float(run.min_interval_seconds or DEFAULT_INTERVAL_SECONDS),
        spread_within_seconds=None if run.min_interval_seconds else DEFAULT_SPREAD_SECONDS,
        too_old_before=window.age_cutoff(aging_until, max_age) if window else aging_until - max_age,
        resumed_at=run.resumed_at or now,
        closes_at=window.closes_at(now) if window else None,
        noted=(run.wait_code, run.wait_reason, run.wait_until),
        pauses=tuple((pause.scope, pause.scope_id) for pause in covering),
        only_paused=only_paused,
        config_id=run.config_id,
        inbox_id=run.inbox_id,
        own_inbox_id=own.inbox_id,
        noted_inbox_id=run.active_inbox_id,
        own_inbox_pauses=() if run is own or own.instance_status != "connected" else _inbox_pauses(own, pauses),
        pace_held=held_since is not None,
    )


def why_held(run: RunningRun, inbox_id: UUID) -> RunWait | None:
    """Return what in the CRM's settings keeps written texts of a run from being sent through this inbox now.

    A missing model keeps no text that is written. The database answers for pauses with the verdict on each message.
    """
    ways = [run, *(_through(run, fallback) for fallback in run.fallbacks)]
    way = next((each for each in ways if each.inbox_id == inbox_id), None)
    if way is None:
        return RunWait(run.run_id, SETTINGS_CHANGED, "The campaign uses another inbox now; the next batch takes that.")
    waits = [wait for wait in _configuration_waits(way) if wait.code != NO_MODEL]
    if waits:
        return waits[0]
    window = _window_of(run)
    if isinstance(window, RunWait):
        return window
    opening = window.next_opening(run.now)
    return _window_wait(run.run_id, window, opening) if opening > run.now + CLOCKS_DIFFER else None


def _window_of(run: RunningRun) -> SendingWindow | RunWait:
    try:
        return SendingWindow.parse(
            *(run.start_time, run.end_time, run.timezone, run.frequency, run.weekdays, run.holidays)
        )
    except InvalidWindow as error:
        return RunWait(run.run_id, "invalid_window", str(error))


def _window_wait(run_id: UUID, window: SendingWindow, opening: datetime) -> RunWait:
    local = opening.astimezone(window.zone)
    text = f"The sending window is closed; it opens at {local:%Y-%m-%d %H:%M} ({window.zone})."
    return RunWait(run_id, WINDOW_CLOSED, text, opening)


def _route(run: RunningRun, pauses: Sequence[OpenPause]) -> RunningRun:
    """Return the run with its own inbox or, while that is down, with its first healthy fallback."""
    if _is_well(run, pauses):
        return run
    for fallback in run.fallbacks:
        detour = _through(run, fallback)
        if _is_well(detour, pauses):
            return detour
    return run


def _through(run: RunningRun, fallback: Fallback) -> RunningRun:
    return replace(
        run,
        inbox_id=fallback.inbox_id,
        instance_id=fallback.instance_id,
        instance_status=fallback.instance_status,
        instance_name=fallback.instance_name,
    )


def _is_well(run: RunningRun, pauses: Sequence[OpenPause]) -> bool:
    return run.instance_status == "connected" and not _inbox_pauses(run, pauses)


def _inbox_pauses(run: RunningRun, pauses: Sequence[OpenPause]) -> tuple[tuple[str, str], ...]:
    return tuple(
        (pause.scope, pause.scope_id)
        for pause in pauses
        if pause.scope == "inbox" and pause.kind == "systemic" and pause.scope_id == str(run.inbox_id)
    )


def _pause_wait(run_id: UUID, pause: OpenPause) -> RunWait:
    short = pause.kind == "throttled" and pause.until is not None and pause.until - pause.since <= SHORT_THROTTLE
    return RunWait(run_id, SLOWED_DOWN if short else pause.code, pause.reason, pause.until)


def _covers(pause: OpenPause, run: RunningRun) -> bool:
    ids = {
        "run": run.run_id,
        "inbox": run.inbox_id,
        "workspace": run.workspace_id,
        "all": pause.scope_id,
        "model": run.model,
        "provider": None if run.own_account else pause.scope_id,  # the shared account
    }
    return str(ids[pause.scope]) == str(pause.scope_id)


def _is_planned(run: RunningRun, ahead: timedelta) -> bool:
    planned: datetime | None = run.next_planned
    return planned is not None and planned <= run.now + ahead


def _configuration_waits(run: RunningRun) -> list[RunWait]:
    """Yield what in the CRM's settings holds the run, the most basic first."""
    run_id = run.run_id
    if run.config_id is None:
        return [RunWait(run_id, "no_campaign", "The run has no campaign config (config_id).")]
    if not run.is_active:
        return [RunWait(run_id, "campaign_inactive", "The campaign is switched off (campaign_configs.is_active).")]
    if run.inbox_id is None:
        return [RunWait(run_id, "no_inbox", "The campaign has no inbox (campaign_configs.inbox_id).")]
    if run.instance_id is None:
        text = f"The inbox {run.inbox_id} has no instance. Link one in inbox_instances."
        return [RunWait(run_id, "inbox_without_instance", text)]
    if run.instance_status == "connecting":
        name = run.instance_name or run.instance_id
        return [RunWait(run_id, CONNECTING, f"The instance {name} is connecting; the run then continues.")]
    if run.instance_status != "connected":
        name, status = run.instance_name or run.instance_id, run.instance_status or "of no known status"
        text = f"The instance {name} is {status}, not connected. Connect it; the run then continues."
        return [RunWait(run_id, "inbox_disconnected", text)]
    if run.model is None:
        return [RunWait(run_id, NO_MODEL, NO_MODEL_REASON)]
    return []
