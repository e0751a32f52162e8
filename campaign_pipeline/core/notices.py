"""Notices to the operator: one when a cause begins, a reminder after hours, and one when it is over."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, tzinfo
from enum import StrEnum
from uuid import UUID

REMIND_AFTER = timedelta(hours=4)
"""Time after which an open notice is repeated."""

SHOWN_NAMES = 3


@dataclass(frozen=True)
class Concern:
    """Something that needs a person. The key identifies it.

    The key consists of the cause and its scope, so a cause that stops ten campaigns is one concern.
    """

    key: str
    what: str  # a sentence
    step: str  # what to do, an imperative without a full stop; empty: `what` says it
    scope: str = ""  # inbox, workspace, campaign, run, model, provider, job; empty: the whole queue
    scope_id: str = ""
    since: datetime | None = None  # None: since it was noticed
    messages: int = 0  # waiting messages
    runs: Mapping[UUID, str] = field(default_factory=dict)  # the affected campaign runs, and their names
    size: int = 0  # a larger size is news; 0: the concern has no size

    @property
    def names(self) -> list[str]:
        """The campaigns, each once."""
        return list(dict.fromkeys(self.runs.values()))


@dataclass(frozen=True)
class Standing:
    """An open notice; a row of the table of notices."""

    key: str
    title: str
    since: datetime
    told_at: datetime
    size: int
    run_ids: Sequence[UUID]
    job: str | None  # of a failed run: over once a later run of this job succeeds


class Kind(StrEnum):
    """Why a notice is sent."""

    NEW = "new"
    MORE = "more"
    REMINDER = "reminder"


def to_tell(concerns: Iterable[Concern], standing: Mapping[str, Standing], now: datetime) -> list[tuple[Kind, Concern]]:
    """Return the concerns to report now, and why."""
    told = []
    for concern in concerns:
        before = standing.get(concern.key)
        if before is None:
            told.append((Kind.NEW, concern))
        elif concern.size > before.size:
            told.append((Kind.MORE, concern))
        elif now - before.told_at >= REMIND_AFTER:
            told.append((Kind.REMINDER, concern))
    return told


def title_of(concern: Concern, name: str) -> str:
    """Return the headline. `name` is the scope's name, or empty."""
    waiting = f"{messages(concern.messages)} waiting" if concern.messages else ""
    place = f"{concern.scope} {name}" if name and concern.scope != "all" else ""
    code = concern.key.partition(":")[0].replace("_", " ")
    head = f"{place}: {code}" if place else code
    head = head[:1].upper() + head[1:]
    return f"{head}, {waiting}" if waiting else head


def lines_of(kind: Kind, concern: Concern, since: datetime, now: datetime, zone: tzinfo) -> list[str]:
    """Return what happened, where, since when, and what to do; times in `zone`."""
    lines = [concern.what]
    stands = f"Since {_at(since, zone)}" + (f", {span(now - since)}" if kind is Kind.REMINDER else "")
    if concern.messages:
        lines.append(f"{stands}. Waiting: {messages(concern.messages)} of {listed(concern.names)}. Nothing is lost.")
    else:
        lines.append(f"{stands}.")
    if concern.step:
        lines.append(f"What to do: {concern.step}.")
    return lines


def over_line(notice: Standing, now: datetime, sent: int, zone: tzinfo) -> str:
    """Say how long a cause lasted, and how many messages its campaigns sent since it began."""
    went = f" The affected campaigns have sent {messages(sent)} since it began." if notice.run_ids else ""
    return f"It lasted {span(now - notice.since)}, since {_at(notice.since, zone)}.{went}"


def _at(instant: datetime, zone: tzinfo) -> str:
    return f"{instant.astimezone(zone):%Y-%m-%d %H:%M} ({zone})"


def counted(count: int, one: str, more: str) -> str:
    """Format a count with its noun and verb: `1 lead was`, `2 leads were`."""
    return f"{count:,} {one if count == 1 else more}"


def messages(count: int) -> str:
    """Format a number of messages."""
    return counted(count, "message", "messages")


def listed(names: Sequence[str]) -> str:
    """List a few names, and how many more there are."""
    shown = ", ".join(names[:SHOWN_NAMES]) or "unnamed campaigns"
    return f"{shown} and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else shown


def span(time: timedelta) -> str:
    """Format a duration in words."""
    seconds = max(0, round(time.total_seconds()))
    if seconds < 120:
        return f"{seconds} seconds"
    if seconds < 7200:
        return f"{seconds // 60} minutes"
    return f"{seconds / 3600:.0f} hours" if seconds < 172_800 else f"{seconds // 86_400} days"


@dataclass(frozen=True)
class SlowRun:
    """A campaign run that a spending limit or a rate limit delays."""

    campaign: str
    code: str | None
    reason: str | None
    until: datetime | None
    messages: int  # due before the day ends
    sent_in_hour: int

    def sentence(self, now: datetime, day_end: datetime) -> str | None:
        """Say what will not be sent today; None if all will."""
        if self.code == "spending_limit":
            waiting = messages(self.messages)
            return f"{self.campaign}: a spending limit is reached, and {waiting} must wait. {self.reason}"
        held_until = max(now, self.until) if self.until and self.code else now
        hours = max(0.0, (day_end - held_until).total_seconds() / 3600)
        goes = int(self.sent_in_hour * hours)
        if self.messages <= goes:
            return None
        why = self.reason or f"It sends {self.sent_in_hour} per hour."
        return f"{self.campaign}: about {goes} of {self.messages} messages due today will be sent. {why}"


def summary_lines(
    exhausted: Sequence[Mapping[str, object]],
    slow: Sequence[SlowRun],
    checks: Iterable[str],
    now: datetime,
    end: datetime,
) -> list[str]:
    """Return the lines of a daily summary; none if there is nothing to report."""
    lines = [f"{row['campaign']}: {row['messages']} failed for good ({row['code']})." for row in exhausted]
    if lines:
        lines.append("To send these again, launch retry_failed_messages for today.")
    lines += [sentence for run in slow if (sentence := run.sentence(now, end))]
    return [*lines, *(f"Check {line}" for line in checks)]
