"""Decides what the queue needs now, given one look at it: a run, a person, or nothing."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID
from zoneinfo import ZoneInfo

from campaign_pipeline.core.next_steps import step_of_wait
from campaign_pipeline.core.notices import Concern, span
from campaign_pipeline.core.runs import (
    CONNECTING,
    SLOWED_DOWN,
    WINDOW_CLOSED,
    OpenPause,
    RunningRun,
    RunState,
    RunWait,
    judge_run,
)

SHOWN_RUNS = 3

OVERDUE, UNKNOWN = "overdue", "unknown_outcome"
"""Keys of concerns without a run's wait."""

AHEAD = timedelta(seconds=90)
"""How far a batch of the schedule looks ahead: a minute until the next tick, and the time to start a run and write its
texts. So two runs overlap, and every planned time is covered."""

LEAD_TIME = timedelta(seconds=30)
"""How long before a message's turn a run is launched for it; shards wait inline for the rest."""


@dataclass(frozen=True)
class QueueLook:
    """The result of one look at the queue; the runs are read only if something is due."""

    now: datetime
    next_due: datetime | None  # of running runs; in the past: now
    running_runs: int
    has_leased: bool  # messages are being delivered
    has_dead_leases: bool
    has_cancelled: bool  # cancelled runs must be settled
    has_complete: bool  # runs whose messages are all final must be closed
    runs: Sequence[RunningRun] = ()
    pauses: Sequence[OpenPause] = ()

    @property
    def is_due(self) -> bool:
        """Return whether a message is due, even in a run that waits."""
        return self.next_due is not None and self.next_due <= self.now

    @property
    def is_due_soon(self) -> bool:
        """Return whether a message is due, or will be within the time that a batch looks ahead."""
        return self.next_due is not None and self.next_due <= self.now + AHEAD

    def blocked_by(self, missing: str | None) -> str | None:
        """Return what is missing for the shared model account, if no due message can be written without it.

        If a workspace has its own key, there is work: the others wait, and their pause says for what.
        """
        return missing if self.is_due_soon and not any(run.own_account for run in self.runs) else None


@dataclass(frozen=True)
class LaunchDecision:
    """Whether to launch a run, and the sentence that says why, or why not."""

    launch: bool
    reason: str
    unpaced: Sequence[UUID] = ()  # runs whose due messages may all be claimed at once


def decide_launch(look: QueueLook, max_age: timedelta, zone: ZoneInfo) -> LaunchDecision:
    """Decide whether a run of process_campaign_queue has anything to do now.

    It has nothing to do while all due messages wait for a window or a person. One run is launched whenever such a wait
    begins or ends: it records the wait, and spreads the messages that became overdue during it.
    """
    # A run that is launched for a turn of its pace needs time until it can take the turn.
    soon = look.now + LEAD_TIME
    states = [judge_run(run, look.pauses, max_age, AHEAD).with_noted_pace_wait(soon) for run in look.runs]
    names = {run.run_id: run.name or str(run.run_id) for run in look.runs}
    written = {run.run_id: run.wait_code for run in look.runs}
    reasons = list(_reasons(look, states, written))
    if reasons:
        unpaced = [s.run_id for s in states if s.has_due and s.wait is None and not s.pace_held]
        return LaunchDecision(True, "; ".join(reasons), unpaced)
    held = [state for state in states if state.has_due and state.wait]
    if held:
        return LaunchDecision(False, _held_sentence(held, names))
    return LaunchDecision(False, _idle_sentence(look, zone))


def _idle_sentence(look: QueueLook, zone: ZoneInfo) -> str:
    if look.next_due is not None:
        local = look.next_due.astimezone(zone)
        wait = span(look.next_due - look.now)
        return f"The next message is due at {local:%Y-%m-%d %H:%M:%S} ({zone}), in {wait}."
    if look.has_leased:
        return "Nothing else is due: the remaining messages are being sent now."
    if look.running_runs:
        return f"No message waits; {look.running_runs} runs are running."
    return "No message waits: no run is running."


def _reasons(look: QueueLook, states: Sequence[RunState], written: Mapping[UUID, str | None]) -> Iterator[str]:
    ready = sum(state.has_due and state.wait is None for state in states)
    if ready:
        yield f"messages of {ready} runs are due"
    probe_due = {(pause.scope, pause.scope_id) for pause in look.pauses if pause.probe_due}
    if any(state.has_due and state.may_probe(probe_due) for state in states):
        yield "one message may try whether the cause of a pause is gone"
    # While a pause lasts, only the time of the next probe changes, which the probe's own run records.
    news = (state for state in states if state.note_changed and not (state.has_due and state.wait is None))
    codes = ((state.wait.code if state.wait else None, written[state.run_id]) for state in news)
    if any(code != before or code == WINDOW_CLOSED for code, before in codes):
        yield "why a run waits has changed and is to be written down"
    for found, text in (
        (look.has_dead_leases, "a process stopped renewing its leases"),
        (look.has_cancelled, "a cancelled run is to be settled"),
        (look.has_complete, "a complete run is to be closed"),
    ):
        if found:
            yield text


def _held_sentence(held: Sequence[RunState], names: Mapping[UUID, str]) -> str:
    by_reason: dict[str, list[str]] = {}
    for state in held:
        assert state.wait is not None
        by_reason.setdefault(state.wait.reason, []).append(names[state.run_id])
    told = [
        f"{_listed(runs)} {'waits' if len(runs) == 1 else 'wait'}: {reason}"
        for reason, runs in list(by_reason.items())[:SHOWN_RUNS]
    ]
    more = f" … and {len(by_reason) - SHOWN_RUNS} other reasons." if len(by_reason) > SHOWN_RUNS else ""
    return "The due messages must wait. " + " ".join(told) + more


def _listed(runs: Sequence[str]) -> str:
    shown = ", ".join(runs[:SHOWN_RUNS])
    return f"{shown} and {len(runs) - SHOWN_RUNS} more runs" if len(runs) > SHOWN_RUNS else shown


@dataclass(frozen=True)
class Backlog:
    """How many messages of a run were due before its cutoff, and since when."""

    messages: int
    oldest: datetime


def backlog_cutoffs(look: QueueLook, overdue: timedelta) -> dict[UUID, datetime]:
    """Return per run the due time before which a message counts as overdue. Only time in which it may send counts."""
    cutoffs: dict[UUID, datetime] = {}
    for run in look.runs:
        state = judge_run(run, look.pauses, overdue)
        if state.wait is None:
            cutoffs[state.run_id] = state.too_old_before
        elif state.wait.code not in {WINDOW_CLOSED, SLOWED_DOWN, CONNECTING}:
            cutoffs[state.run_id] = look.now
    return cutoffs


def find_concerns(
    look: QueueLook, backlog: Mapping[UUID, Backlog], unknown: int, overdue: timedelta
) -> Iterator[Concern]:
    """Return what needs a person: overdue messages, waits that only a person can end, unknown outcomes.

    One cause is one concern, however many runs it holds.
    """
    held: dict[str, list[_Held]] = {}
    for run in look.runs:
        state, waiting = judge_run(run, look.pauses, overdue), backlog.get(run.run_id)
        if waiting is None or not waiting.messages:
            continue
        if state.wait is None:
            held.setdefault(OVERDUE, []).append(_Held(run, waiting, None, waiting.oldest))
        elif state.wait.code not in {WINDOW_CLOSED, SLOWED_DOWN, CONNECTING}:
            scope, scope_id, since = _cause(run, state, look.pauses)
            key = f"{state.wait.code}:{scope}:{scope_id}"
            held.setdefault(key, []).append(_Held(run, waiting, state.wait, since or waiting.oldest))
    for key, members in held.items():
        yield _concern(key, members, overdue)
    if unknown:
        text = f"{unknown} messages have an unknown delivery status: they failed with class unknown."
        step = 'look at their chats; to send them again, launch retry_failed_messages with error_classes ["unknown"]'
        yield Concern(UNKNOWN, text, step, size=unknown)


@dataclass(frozen=True)
class _Held:
    """A run that waits, or is late."""

    run: RunningRun
    backlog: Backlog
    wait: RunWait | None
    since: datetime


_SCOPES = {
    "inbox": ("inbox_id", ("inbox_disconnected", "inbox_without_instance")),
    "workspace": ("workspace_id", ("no_model",)),
    "campaign": ("config_id", ("campaign_inactive", "no_inbox", "invalid_window")),
}
"""The scope of a wait without a pause: the column with its id, and the codes."""


def _cause(run: RunningRun, state: RunState, pauses: Sequence[OpenPause]) -> tuple[str, str, datetime | None]:
    """Return the scope of what holds a run, its id, and since when, if a pause says so."""
    assert state.wait is not None
    for pause in pauses:
        if pause.code == state.wait.code and (pause.scope, pause.scope_id) in state.pauses:
            return pause.scope, pause.scope_id, pause.since
    for scope, (column, codes) in _SCOPES.items():
        if state.wait.code in codes:
            return scope, str(getattr(run, column)), None
    return "run", str(state.run_id), None


def _concern(key: str, members: Sequence[_Held], overdue: timedelta) -> Concern:
    wait = members[0].wait
    code, _, scope = key.partition(":")
    kind, _, scope_id = scope.partition(":")
    if wait is None:
        what = f"Messages are overdue by more than {overdue.total_seconds() / 60:g} minutes in an open window."
        step = "see whether the schedule process_campaign_queue_every_minute is on and its runs succeed"
    else:
        what, step = wait.reason, step_of_wait(code)
    return Concern(
        key=key,
        what=what,
        step=step,
        scope=kind,
        scope_id=scope_id,
        since=min(member.since for member in members),
        messages=sum(member.backlog.messages for member in members),
        runs={member.run.run_id: member.run.name or "unnamed" for member in members},
    )
