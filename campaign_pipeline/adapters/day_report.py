"""What the report of a day says beside its counts by campaign."""

from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from campaign_pipeline.adapters.postgres import Statements


@dataclass(frozen=True)
class DayDetails:
    """Rows of the statements in `day_report.sql`."""

    failures: list[dict[str, Any]]
    inboxes: list[dict[str, Any]]
    spending: list[dict[str, Any]]
    waits: list[dict[str, Any]]


class DayReport(Statements):
    """One day of the queue; nothing here changes anything."""

    async def read(self, day: date, start: datetime, end: datetime) -> DayDetails:
        """The day from `start` until before `end`."""
        span = {"day_start": start, "day_end": end}
        return DayDetails(
            failures=await self._all("report_failures", **span),
            inboxes=await self._all("report_inboxes", **span),
            spending=await self._all("report_spending", day=day),
            waits=await self._all("report_waits", **span),
        )
