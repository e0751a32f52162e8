"""Read-only queries of the queue for reports, assets and their checks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from campaign_pipeline.adapters.statements import Statements

RECENT_DAYS = 31
"""How far back hourly checks look; the whole past would take too long."""

SHOWN = 20
"""Rows that a check shows; the column `of_all` has the total."""


@dataclass(frozen=True)
class RunAtWork:
    """A campaign run with its counters, and why it waits: a row of `list_runs_at_work`."""

    run_id: UUID
    campaign: str
    status: str
    leads_total: int
    leads_success: int
    leads_failed: int
    leads_skipped: int
    wait_code: str | None  # None: it does not wait
    wait_reason: str | None
    wait_until: datetime | None


@dataclass(frozen=True)
class CampaignDay:
    """One campaign's day, or the total of all: a row of `report_campaign_day`. Times are None if nothing was timed."""

    campaign_id: UUID | None  # None: the total
    campaign: str | None
    due: int
    sent: int
    replied: int
    receipts: int  # messages with a delivery receipt
    delivered: int
    read: int
    failed: int
    failed_permanent: int
    failed_exhausted: int
    failed_unknown: int
    failed_other: int
    skipped: int
    waiting: int
    tokens: int
    cached_tokens: int
    cost_usd: float
    cache_saved_usd: float
    median_generation_s: float | None
    p95_generation_s: float | None
    median_send_s: float | None
    p95_send_s: float | None
    median_wait_s: float | None  # from the first due time to the last part
    p95_wait_s: float | None
    active_minutes: int  # in which anything was sent
    messages_per_minute: float | None  # over the active minutes
    by_hour: Mapping[str, Sequence[int]] | None  # hour -> sent, failed, skipped; only of the total


@dataclass(frozen=True)
class RuleCount:
    """How many texts of a campaign a rule changed or refused: a row of `count_text_rules`."""

    campaign_id: UUID
    rule: str
    what: str  # changed, refused
    texts: int
    cost_usd: float  # of refused ones


@dataclass(frozen=True)
class FailedOnDay:
    """How many messages of a class failed on a business day: a row of `count_failed_by_day`."""

    day: str
    error_class: str
    messages: int


@dataclass(frozen=True)
class WrongCounters:
    """An open run whose counters differ from a recount: a row of `find_wrong_counters`."""

    run_id: UUID
    leads_success: int
    leads_failed: int
    leads_skipped: int
    leads_processed: int
    success: int  # recounted, as the two below
    failed: int
    skipped: int


@dataclass(frozen=True)
class ForgottenLease:
    """A message whose lease expired and was not recovered: a row of `find_forgotten_leases`."""

    message_id: UUID
    run_id: UUID
    status: str
    lease_owner: str | None
    lease_expires_at: datetime
    of_all: int


@dataclass(frozen=True)
class DoubledProviderId:
    """A provider id that two parts of an inbox share: a row of `find_doubled_provider_ids`."""

    inbox_id: UUID
    provider_message_id: str
    message_ids: Sequence[UUID]
    of_all: int


@dataclass(frozen=True)
class ForeignRow:
    """A reference to a row of another workspace: a row of `find_foreign_rows`."""

    kind: str
    id: UUID
    sentence: str
    of_all: int


@dataclass(frozen=True)
class Undelivered:
    """What an inbox's provider accepted, and its receipts: a row of `count_undelivered`."""

    inbox_id: UUID
    inbox: str | None
    accepted: int
    delivered: int
    failed_later: int
    receipts: int
    never_delivered: int


@dataclass(frozen=True)
class ForeignChange:
    """Messages that another program claimed or finished: a row of `count_foreign_changes`."""

    by_role: str | None
    application: str | None
    became: str
    messages: int
    last_at: datetime
    examples: Sequence[UUID]


@dataclass(frozen=True)
class UnknownOutcome:
    """A failed message of unknown outcome: a row of `find_unknown_outcomes`."""

    message_id: UUID
    run_id: UUID
    error_code: str | None
    finished_at: datetime | None
    of_all: int


class Reports(Statements):
    """The queue for reports and checks; changes nothing."""

    async def runs_at_work(self, closed: Sequence[UUID]) -> list[RunAtWork]:
        """Return the running runs, and those that were just closed, with counters and waits."""
        return await self._records(RunAtWork, "list_runs_at_work", closed=list(closed))

    async def campaign_day(self, start: datetime, end: datetime, timezone: str) -> list[CampaignDay]:
        """Return a row per campaign with messages from `start` until before `end`; the last row is the total."""
        return await self._records(CampaignDay, "report_campaign_day", day_start=start, day_end=end, timezone=timezone)

    async def text_rules(self, start: datetime, end: datetime) -> list[RuleCount]:
        """Return how many model answers each rule changed or refused from `start` until before `end`, by campaign."""
        return await self._records(RuleCount, "count_text_rules", day_start=start, day_end=end)

    async def failed_by_day(self, timezone: str, days: int = RECENT_DAYS) -> list[FailedOnDay]:
        """Count failed messages by business day and error class."""
        return await self._records(FailedOnDay, "count_failed_by_day", timezone=timezone, days=days)

    async def wrong_counters(self) -> list[WrongCounters]:
        """Return open runs whose counters differ from a recount (I6); expected: none."""
        return await self._records(WrongCounters, "find_wrong_counters")

    async def forgotten_leases(self, lease_seconds: float) -> list[ForgottenLease]:
        """Return messages that nobody recovered for a whole lease duration after theirs expired."""
        return await self._records(ForgottenLease, "find_forgotten_leases", lease_seconds=lease_seconds, shown=SHOWN)

    async def doubled_provider_ids(self, days: int = 2) -> list[DoubledProviderId]:
        """Return provider ids that two parts of one inbox share; expected: none. The check runs every hour."""
        return await self._records(DoubledProviderId, "find_doubled_provider_ids", days=days, shown=SHOWN)

    async def foreign_rows(self, days: int = 1) -> list[ForeignRow]:
        """Return references between workspaces, and messages that were skipped for one in the last days."""
        return await self._records(ForeignRow, "find_foreign_rows", days=days, shown=SHOWN)

    async def undelivered(self, days: int = 7) -> list[Undelivered]:
        """Return what each inbox's provider accepted in the last days until yesterday, and what the receipts say."""
        return await self._records(Undelivered, "count_undelivered", days=days)

    async def foreign_changes(self, days: int = 7) -> list[ForeignChange]:
        """Return who else claimed or finished messages while the pipeline was attached to a CRM; expected: nobody."""
        return await self._records(ForeignChange, "count_foreign_changes", days=days)

    async def unknown_outcomes(self) -> list[UnknownOutcome]:
        """Return failed messages of unknown outcome."""
        return await self._records(UnknownOutcome, "find_unknown_outcomes", shown=SHOWN)
