"""Runs, inboxes and pauses for the operator, and the masks of personal data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, time
from decimal import Decimal
from typing import Any, Self
from uuid import UUID
from zoneinfo import ZoneInfo

from campaign_pipeline.core.address import masked
from campaign_pipeline.core.forecast import Limits
from campaign_pipeline.core.runs import RunWait
from campaign_pipeline.core.window import SendingWindow

_TEXTS = ("text", "subject", "answer_of_model")
_RAW = ("provider_response",)
"""The provider's answer, verbatim; shown only on request."""


def mask(row: Mapping[str, Any]) -> dict[str, Any]:
    """Mask a row: initials for names, the ends of numbers, the length of texts."""
    shown = dict(row)
    for name, value in row.items():
        if not value:
            continue
        if name == "lead":
            shown[name] = " ".join(f"{word[0]}." for word in str(value).split())
        elif name == "address":
            shown[name] = masked(str(value))
        elif name in _TEXTS:
            shown[name] = f"({len(value)} characters)"
        elif name in _RAW:
            del shown[name]
    return shown


@dataclass(frozen=True)
class RunOverview:
    """A campaign run with progress and pace: a row of `overview_runs`, and the forecast of its end."""

    run_id: UUID
    name: str
    status: str
    workspace: str | None
    config_id: UUID | None
    inbox_id: UUID | None
    inbox: str | None
    started_at: datetime | None
    completed_at: datetime | None
    total: int
    sent: int
    failed: int
    skipped: int
    pending: int
    leased: int
    next_due: datetime | None
    sent_last_hour: int
    wait_code: str | None  # None: it does not wait
    wait_reason: str | None
    wait_until: datetime | None
    finished_at: datetime | None = None  # when it ended, or is expected to

    def at_present(self, wait: RunWait | None, expected_end: datetime | None) -> Self:
        """Return it with its present wait in place of that at the last claim, and with its end."""
        return replace(
            self,
            wait_code=wait.code if wait else None,
            wait_reason=wait.reason if wait else None,
            wait_until=wait.until if wait else None,
            finished_at=self.completed_at or expected_end,
        )


@dataclass(frozen=True)
class FoundLead:
    """A lead, its messages, and whether it is suppressed: a row of `find_leads`."""

    lead_id: UUID
    lead: str | None
    address: str | None
    messages: int
    suppressed_because: str | None  # None: it is not


@dataclass(frozen=True)
class FoundMessage:
    """A message that matches a search: a row of `find_messages`."""

    message_id: UUID
    run_id: UUID
    run: str
    lead_id: UUID | None
    lead: str | None
    address: str | None
    status: str
    error_class: str | None
    reason_code: str | None
    reason: str | None
    due_at: datetime | None  # None: never
    finished_at: datetime | None
    inbox: str | None
    retry_count: int


@dataclass(frozen=True)
class ClaimedShare:
    """What a claim takes of one run for one inbox: a row of `describe_claim`."""

    run_id: UUID
    run: str
    inbox_id: UUID | None
    inbox: str | None
    messages: int
    to_write: int  # messages without a text
    usd_a_text: Decimal | None  # average of the campaign's texts in the last week; None: it wrote none

    @property
    def usd(self) -> float | None:
        """Return the expected cost of the texts."""
        return None if self.usd_a_text is None else self.to_write * float(self.usd_a_text)


@dataclass(frozen=True)
class InboxOverview:
    """An inbox of a campaign: a row of `overview_inboxes`, and why it is paused."""

    inbox_id: UUID
    name: str | None
    workspace: str | None
    instance: str | None
    provider: str | None
    connection: str
    last_connected_at: datetime | None
    gap_seconds: float | None  # slow-down included, without jitter
    jitter: float | None
    slow_factor: float
    pause_after: int | None  # a rest of `pause_seconds` after so many messages
    pause_seconds: float | None
    hourly_limit: int | None
    hour_count: int
    daily_limit: int | None
    day_count: int | None
    quiet_from: str | None
    quiet_until: str | None
    zone: str
    warm_up_day: int | None
    day_limits: Sequence[int | None]  # of today and the 13 days after it; None: no limit
    free_at: datetime | None  # None: now, or never
    wait_code: str | None
    sent_today: int
    failed_today: int
    waiting: int
    pauses: Sequence[str] = ()  # their reasons

    @property
    def limits(self) -> Limits:
        """Return how fast it may send."""
        gap = (self.gap_seconds or 0.0) * (1 + (self.jitter or 0.0) / 2)
        if self.pause_after:
            gap += (self.pause_seconds or 0.0) / self.pause_after
        zone, hours = ZoneInfo(self.zone), None
        if self.quiet_from and self.quiet_until:
            hours = SendingWindow(time.fromisoformat(self.quiet_until), time.fromisoformat(self.quiet_from), zone)
        return Limits(
            zone=zone,
            gap_seconds=gap,
            hourly_limit=self.hourly_limit,
            day_limits=self.day_limits,
            day_count=self.day_count or 0,
            hours=hours,
            free_at=self.free_at,
        )


@dataclass(frozen=True)
class CampaignPace:
    """The pace of a campaign with a running run: a row of `forecast_campaigns`."""

    config_id: UUID
    gap_seconds: float | None
    daily_limit: int | None
    day_count: int | None
    zone: str | None

    @property
    def limits(self) -> Limits | None:
        """Return how fast it may send; None: as fast as its inboxes."""
        if self.zone is None or not (self.gap_seconds or self.daily_limit is not None):
            return None
        return Limits(
            zone=ZoneInfo(self.zone),
            gap_seconds=self.gap_seconds or 0.0,
            day_limits=(self.daily_limit,),
            day_count=self.day_count or 0,
        )


@dataclass(frozen=True)
class PauseOverview:
    """A scope that is paused or slowed down: a row of `overview_pauses`."""

    scope: str
    scope_id: str
    name: str | None
    kind: str
    code: str
    reason: str
    since: datetime
    until: datetime | None  # None: unknown
    failures: int
    paused_by: str | None  # None: the pipeline

    @property
    def pause(self) -> str:
        """Return the pause's name, which `lift` accepts."""
        return self.scope if self.scope == "all" else f"{self.scope}:{self.scope_id}"

    def covers_inbox(self, inbox_id: UUID) -> bool:
        """Return whether it is a pause of this inbox or of all sending."""
        return self.scope == "all" or (self.scope, self.scope_id) == ("inbox", str(inbox_id))
