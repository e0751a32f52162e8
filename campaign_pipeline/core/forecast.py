"""A forecast of what will be sent when: due messages laid out by hour over windows, paces and limits.

It uses what is planned and what limits it; it cannot know who will reply or which number fails. The database decides
about each message (sql/functions/pacing.sql).
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID
from zoneinfo import ZoneInfo

from campaign_pipeline.core.window import SendingWindow

HORIZON_HOURS = 14 * 24
"""How far the forecast reaches: as far as `overview_inboxes` has daily limits."""

_HOUR = timedelta(hours=1)


@dataclass(frozen=True)
class Limits:
    """How fast an inbox or a campaign may send; without limits, as fast as messages become due."""

    zone: ZoneInfo
    gap_seconds: float = 0.0  # average between two messages, rests included
    hourly_limit: int | None = None
    day_limits: Sequence[int | None] = ()  # for today and the days after it; the last one holds on
    day_count: int = 0  # how much of today's limit is used
    hours: SendingWindow | None = None  # outside its quiet hours; None: always
    free_at: datetime | None = None  # nothing is sent before this


@dataclass(frozen=True)
class RunPlan:
    """The messages that a running run has to send."""

    run_id: UUID
    inbox_id: UUID
    config_id: UUID
    window: SendingWindow
    due: Mapping[datetime, int]  # the hour in which they become due -> messages
    held: bool = False  # waits for something that no clock ends: sends nothing


@dataclass(frozen=True)
class Slot:
    """What an inbox sends in an hour."""

    inbox_id: UUID
    hour: datetime
    messages: int
    waiting: int  # due, and still waiting at the end of the hour


@dataclass
class Forecast:
    """Slots by hour; per run, when its last message is sent (None: not within the horizon)."""

    slots: list[Slot] = field(default_factory=list)
    finished_at: dict[UUID, datetime | None] = field(default_factory=dict)


class _Budget:
    """How many messages one inbox or campaign may still send."""

    def __init__(self, limits: Limits, now: datetime) -> None:
        self._limits = limits
        self._today = now.astimezone(limits.zone).date()
        self._used = defaultdict(int, {0: limits.day_count})

    def _day(self, hour: datetime) -> int:
        return (hour.astimezone(self._limits.zone).date() - self._today).days

    def remaining(self, start: datetime, end: datetime) -> float:
        """Return how many messages may begin in this hour, or in the rest of it."""
        limits = self._limits
        start = max(start, limits.free_at) if limits.free_at else start
        seconds = (limits.hours.open_time_between(start, end) if limits.hours else end - start).total_seconds()
        if seconds <= 0:
            return 0
        most = math.inf if limits.gap_seconds <= 0 else max(1, math.floor(seconds / limits.gap_seconds))
        if limits.hourly_limit is not None:
            most = min(most, limits.hourly_limit)
        if limits.day_limits:
            day = self._day(start)
            limit = limits.day_limits[min(day, len(limits.day_limits) - 1)]
            if limit is not None:
                most = min(most, max(0, limit - self._used[day]))
        return most

    def take(self, hour: datetime, messages: int) -> None:
        """Count messages that begin in this hour."""
        self._used[self._day(hour)] += messages


def forecast(
    now: datetime,
    runs: Sequence[RunPlan],
    inboxes: Mapping[UUID, Limits],
    campaigns: Mapping[UUID, Limits],
    hours: int = HORIZON_HOURS,
) -> Forecast:
    """Lay out due messages over the next hours; the runs of an inbox share its pace evenly."""
    result = Forecast()
    going = [run for run in runs if not run.held]
    backlog = {run.run_id: 0 for run in going}
    left = {run.run_id: sum(run.due.values()) for run in going}
    result.finished_at = {run.run_id: None for run in runs}
    inbox_budgets = {inbox: _Budget(limits, now) for inbox, limits in inboxes.items()}
    campaign_budgets = {campaign: _Budget(limits, now) for campaign, limits in campaigns.items()}
    first = now.replace(minute=0, second=0, microsecond=0)
    for hour in (first + n * _HOUR for n in range(hours)):
        if not any(left.values()):
            break
        start, end = max(hour, now), hour + _HOUR
        for run in going:
            backlog[run.run_id] += run.due.get(hour, 0)
        for inbox_id in dict.fromkeys(run.inbox_id for run in going):
            mine = [run for run in going if run.inbox_id == inbox_id and backlog[run.run_id]]
            sent = _share(mine, backlog, start, end, inbox_budgets.get(inbox_id), campaign_budgets)
            for run_id, messages in sent.items():
                backlog[run_id] -= messages
                left[run_id] -= messages
                if messages and not left[run_id]:
                    result.finished_at[run_id] = end
            if mine:
                waiting = sum(backlog[run.run_id] for run in mine)
                result.slots.append(Slot(inbox_id, hour, sum(sent.values()), waiting))
    return result


def _share(
    runs: Iterable[RunPlan],
    backlog: Mapping[UUID, int],
    start: datetime,
    end: datetime,
    inbox: _Budget | None,
    campaigns: Mapping[UUID, _Budget],
) -> dict[UUID, int]:
    """Return how many messages each run sends in an hour through one inbox; an unused share goes to the other runs."""
    budget = inbox.remaining(start, end) if inbox else math.inf
    sent: dict[UUID, int] = {}
    ordered = sorted(runs, key=lambda run: backlog[run.run_id])
    for place, run in enumerate(ordered):
        opened = run.window.open_time_between(start, end)
        campaign = campaigns.get(run.config_id)
        most: float = backlog[run.run_id] if opened else 0
        if campaign:
            most = min(most, campaign.remaining(end - opened, end))
        fair = budget if math.isinf(budget) else budget // (len(ordered) - place)
        sent[run.run_id] = int(min(most, fair))
        budget -= sent[run.run_id]
        if campaign:
            campaign.take(start, sent[run.run_id])
    if inbox:
        inbox.take(start, sum(sent.values()))
    return sent
