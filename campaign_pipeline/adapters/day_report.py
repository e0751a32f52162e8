"""The detail tables of a daily report."""

from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from campaign_pipeline.adapters.statements import Statements


@dataclass(frozen=True)
class DayDetails:
    """Rows of the statements in `day_report.sql`."""

    failures: list[dict[str, Any]]
    inboxes: list[dict[str, Any]]
    spending: list[dict[str, Any]]
    waits: list[dict[str, Any]]


class DayReport(Statements):
    """Reads one day of the queue; changes nothing."""

    async def read(self, day: date, start: datetime, end: datetime) -> DayDetails:
        """Read the day from `start` until before `end`."""
        span = {"day_start": start, "day_end": end}
        return DayDetails(
            failures=await self._all("report_failures", **span),
            inboxes=await self._all("report_inboxes", **span),
            spending=await self._all("report_spending", day=day),
            waits=await self._all("report_waits", **span),
        )
