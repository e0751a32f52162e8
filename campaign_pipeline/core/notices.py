"""What a person is told, and when: once when it begins, again after hours, and when it is over."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

REMIND_AFTER = timedelta(hours=4)
"""How long after the last word a notice that still stands is told again."""

SHOWN_NAMES = 3


@dataclass(frozen=True)
class Concern:
    """Something that needs a person; the same one as long as its key is the same.

    The key is made of the cause and its scope, so that a cause that stops ten campaigns is one concern.
    """

    key: str
    what: str  # a sentence
    step: str  # what to do, an imperative without its full stop; empty: `what` says it
    scope: str = ""  # inbox, workspace, campaign, run, model, provider, job; empty: the whole queue
    scope_id: str = ""
    since: datetime | None = None  # None: since it was noticed
    messages: int = 0  # that wait for it
    runs: Mapping[UUID, str] = field(default_factory=dict)  # the campaign runs that it concerns, and their names
    size: int = 0  # a growing one of these is news; 0: its being there is all the news

    @property
    def names(self) -> list[str]:
        """The campaigns, each once."""
        return list(dict.fromkeys(self.runs.values()))


@dataclass(frozen=True)
class Standing:
    """What was told and is not over, as the table of notices has it."""

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
    """Which concerns are to be told now, and why."""
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
    """The headline. `name`: how people call the scope; empty: none."""
    waiting = f"{messages(concern.messages)} waiting" if concern.messages else ""
    place = f"{concern.scope} {name}" if name and concern.scope != "all" else ""
    code = concern.key.partition(":")[0].replace("_", " ")
    head = f"{place}: {code}" if place else code
    head = head[:1].upper() + head[1:]
    return f"{head}, {waiting}" if waiting else head


def lines_of(kind: Kind, concern: Concern, since: datetime, now: datetime) -> list[str]:
    """What happened, to whom, since when, and what to do."""
    lines = [concern.what]
    stands = f"Since {since:%Y-%m-%d %H:%M} UTC" + (f" ({span(now - since)})" if kind is Kind.REMINDER else "")
    if concern.messages:
        lines.append(f"{stands}. Waiting: {messages(concern.messages)} of {listed(concern.names)}. Nothing is lost.")
    else:
        lines.append(f"{stands}.")
    if concern.step:
        lines.append(f"What to do: {concern.step}.")
    return lines


def over_line(notice: Standing, now: datetime, sent: int) -> str:
    """How long what is over has lasted, and what went out since it began."""
    went = f" Of the campaigns it held {messages(sent)} went out since it began." if notice.run_ids else ""
    return f"It lasted {span(now - notice.since)}, since {notice.since:%Y-%m-%d %H:%M} UTC.{went}"


def messages(count: int) -> str:
    """How many messages, in words."""
    return "1 message" if count == 1 else f"{count} messages"


def listed(names: Sequence[str]) -> str:
    """A few names, and how many more."""
    shown = ", ".join(names[:SHOWN_NAMES]) or "unnamed campaigns"
    return f"{shown} and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else shown


def span(time: timedelta) -> str:
    """A duration in words."""
    seconds = max(0, round(time.total_seconds()))
    if seconds < 120:
        return f"{seconds} seconds"
    if seconds < 7200:
        return f"{seconds // 60} minutes"
    return f"{seconds / 3600:.0f} hours" if seconds < 172_800 else f"{seconds // 86_400} days"


@dataclass(frozen=True)
class SlowRun:
    """A campaign run that a spending limit or a pace holds."""

    campaign: str
    code: str | None
    reason: str | None
    until: datetime | None
    messages: int  # due before the day ends
    sent_in_hour: int

    def sentence(self, now: datetime, day_end: datetime) -> str | None:
        """What of it does not go out today; None where all of it does."""
        if self.code == "spending_limit":
            waiting = messages(self.messages)
            return f"{self.campaign}: a spending limit is reached, and {waiting} must wait. {self.reason}"
        held_until = max(now, self.until) if self.until and self.code else now
        hours = max(0.0, (day_end - held_until).total_seconds() / 3600)
        goes = int(self.sent_in_hour * hours)
        if self.messages <= goes:
            return None
        why = self.reason or f"It sends {self.sent_in_hour} an hour."
        return f"{self.campaign}: of {self.messages} messages due today about {goes} will go out. {why}"


def summary_lines(
    exhausted: Sequence[Mapping[str, object]],
    slow: Sequence[SlowRun],
    checks: Iterable[str],
    now: datetime,
    end: datetime,
) -> list[str]:
    """What a day's summary says; nothing where all is well."""
    lines = [f"{row['campaign']}: {row['messages']} failed for good ({row['code']})." for row in exhausted]
    if lines:
        lines.append("To send these again, launch retry_failed_messages for today.")
    lines += [sentence for run in slow if (sentence := run.sentence(now, end))]
    return [*lines, *(f"Check {line}" for line in checks)]
