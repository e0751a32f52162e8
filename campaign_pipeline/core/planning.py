"""The plan of a campaign's day: when each message is due, and how many do not fit into the day.

Only messages that could be sent are planned: each is due as long after the previous one as the campaign's interval and
the inbox's pace require, so a plan does not fall behind by itself, and the last one ends within the window. A failing
text or a slow provider may still make a day too short; such messages are skipped as too old, and their leads are
planned again another day.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta

from campaign_pipeline.core.window import SendingWindow

SEND_SECONDS = 10.0
"""Duration of a message, from its turn to the provider's answer: a pace counts from the answer."""


@dataclass(frozen=True)
class InboxDay:
    """The pace of an inbox on a day, and the messages it already has."""

    gap_seconds: float = 0.0  # between any two messages, jitter included
    hourly_limit: int | None = None
    remaining: int | None = None  # of its daily or warm-up limit; None: no limit
    pause_after: int | None = None  # messages, after which it rests …
    pause_seconds: float = 0.0  # … for this long
    hours: SendingWindow | None = None  # outside its quiet hours; None: always
    taken: Sequence[datetime] = ()  # when its other messages of the day are due, in order

    @property
    def spacing(self) -> timedelta:
        """Return the time between two messages, by gap and hourly limit."""
        by_hour = 3600 / self.hourly_limit if self.hourly_limit else 0.0
        apart = max(self.gap_seconds, by_hour)
        return timedelta(seconds=apart + SEND_SECONDS if apart else 0)


@dataclass(frozen=True)
class CampaignDay:
    """The settings of a campaign for a day."""

    window: SendingWindow
    day: date  # in the zone of the window
    now: datetime
    interval_seconds: float = 0.0
    remaining: int | None = None  # of its daily limit; None: no limit
    last_due: datetime | None = None  # its last message that is already planned for the day


@dataclass(frozen=True)
class DayPlan:
    """When messages are due, and how many leads wait for another day, by reason."""

    times: tuple[datetime, ...] = ()
    left_out: dict[str, int] = field(default_factory=dict)


WINDOW_CLOSED = "window_closed"
DAILY_LIMIT = "daily_limit"
INBOX_LIMIT = "inbox_daily_limit"
DAY_TOO_SHORT = "day_too_short"

REASONS = {
    WINDOW_CLOSED: "the campaign's window does not open any more on this day",
    DAILY_LIMIT: "the campaign's daily limit is reached",
    INBOX_LIMIT: "the inbox's daily limit, or that of its warm-up, is reached",
    DAY_TOO_SHORT: "the window closes before their turn would come by interval and pace",
}
"""Why leads wait for another day, in words."""


def plan_day(campaign: CampaignDay, inbox: InboxDay, wanted: int) -> DayPlan:
    """Find a time for as many of `wanted` messages as fit into the day, the earliest first."""
    opening = campaign.window.opening(campaign.day)
    if wanted <= 0:
        return DayPlan()
    if opening is None or opening[1] <= campaign.now:
        return DayPlan(left_out={WINDOW_CLOSED: wanted})
    left_out: dict[str, int] = {}
    count = wanted
    for reason, remaining in ((DAILY_LIMIT, campaign.remaining), (INBOX_LIMIT, inbox.remaining)):
        if remaining is not None and count > max(0, remaining):
            left_out[reason] = count - max(0, remaining)
            count = max(0, remaining)
    times = _times(campaign, inbox, max(opening[0], campaign.now), opening[1], count)
    if len(times) < count:
        left_out[DAY_TOO_SHORT] = count - len(times)
    return DayPlan(tuple(times), left_out)


def _times(campaign: CampaignDay, inbox: InboxDay, start: datetime, closes: datetime, count: int) -> list[datetime]:
    step = timedelta(seconds=campaign.interval_seconds + SEND_SECONDS if campaign.interval_seconds else 0)
    last_start = closes - timedelta(seconds=SEND_SECONDS)
    earliest = start if campaign.last_due is None else max(start, campaign.last_due + step)
    times: list[datetime] = []
    since_rest = 0
    while len(times) < count:
        due = _free(earliest, inbox)
        if times and inbox.pause_after is not None:
            since_rest += bisect_left(inbox.taken, due) - bisect_left(inbox.taken, times[-1])
            if since_rest >= inbox.pause_after:
                due = _free(max(due, times[-1] + timedelta(seconds=inbox.pause_seconds + SEND_SECONDS)), inbox)
                since_rest = 0
        if due > last_start:
            break
        times.append(due)
        since_rest += 1
        earliest = due + max(step, inbox.spacing)
    return times


def _free(instant: datetime, inbox: InboxDay) -> datetime:
    """Return the first instant from this one on that is not quiet, nor too near to another message of the inbox."""
    spacing = inbox.spacing
    while True:
        found = inbox.hours.next_opening(instant) if inbox.hours else instant
        if spacing:
            near = bisect_right(inbox.taken, found - spacing)
            if near < len(inbox.taken) and inbox.taken[near] < found + spacing:
                found = inbox.taken[near] + spacing
        if found == instant:
            return found
        instant = found
