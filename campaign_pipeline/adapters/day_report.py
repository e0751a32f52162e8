"""The detail tables of a daily report."""

from dataclasses import dataclass
from datetime import date, datetime

from campaign_pipeline.adapters.statements import Statements


@dataclass(frozen=True)
class Unsent:
    """Failed or skipped messages with one reason: a row of `report_failures`."""

    status: str
    error_class: str  # empty: none
    code: str
    messages: int


@dataclass(frozen=True)
class InboxDay:
    """One inbox's day: a row of `report_inboxes`."""

    inbox: str
    instance: str | None
    sent: int
    failed: int
    skipped: int
    first_at: datetime | None
    last_at: datetime | None


@dataclass(frozen=True)
class Spending:
    """What the texts of a workspace or a run cost, and its limit: a row of `report_spending`."""

    scope: str
    name: str
    spent_usd: float
    limit_usd: float


@dataclass(frozen=True)
class WaitingRun:
    """Messages of a run that wait for one reason: a row of `report_waits`."""

    campaign: str
    status: str
    wait_code: str | None  # None: their turn comes with the next batch
    wait_reason: str | None
    messages: int


@dataclass(frozen=True)
class DayDetails:
    """The details of a day, by table."""

    failures: list[Unsent]
    inboxes: list[InboxDay]
    spending: list[Spending]
    waits: list[WaitingRun]


class DayReport(Statements):
    """Reads one day of the queue; changes nothing."""

    async def read(self, day: date, start: datetime, end: datetime) -> DayDetails:
        """Read the day from `start` until before `end`."""
        span = {"day_start": start, "day_end": end}
        return DayDetails(
            failures=await self._records(Unsent, "report_failures", **span),
            inboxes=await self._records(InboxDay, "report_inboxes", **span),
            spending=await self._records(Spending, "report_spending", day=day),
            waits=await self._records(WaitingRun, "report_waits", **span),
        )
