"""Read-only queries of the queue for reports, assets and their checks."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from campaign_pipeline.adapters.statements import Statements

RECENT_DAYS = 31
"""How far back hourly checks look; the whole past would take too long."""

SHOWN = 20
"""Rows that a check shows; the column `of_all` has the total."""


class Reports(Statements):
    """The queue for reports and checks; changes nothing."""

    async def runs_at_work(self, closed: Sequence[UUID]) -> list[dict[str, Any]]:
        """Return the running runs, and those that were just closed, with counters and waits."""
        return await self._all("list_runs_at_work", closed=list(closed))

    async def campaign_day(self, start: datetime, end: datetime, timezone: str) -> list[dict[str, Any]]:
        """Return a row per campaign with messages from `start` until before `end`; the last row is the total."""
        return await self._all("report_campaign_day", day_start=start, day_end=end, timezone=timezone)

    async def text_rules(self, start: datetime, end: datetime) -> list[dict[str, Any]]:
        """Return how many model answers each rule changed or refused from `start` until before `end`, by campaign."""
        return await self._all("count_text_rules", day_start=start, day_end=end)

    async def failed_by_day(self, timezone: str, days: int = RECENT_DAYS) -> list[dict[str, Any]]:
        """Count failed messages by business day and error class."""
        return await self._all("count_failed_by_day", timezone=timezone, days=days)

    async def wrong_counters(self) -> list[dict[str, Any]]:
        """Return open runs whose counters differ from a recount (I6); expected: none."""
        return await self._all("find_wrong_counters")

    async def forgotten_leases(self, lease_seconds: float) -> list[dict[str, Any]]:
        """Return messages that nobody recovered for a whole lease duration after theirs expired."""
        return await self._all("find_forgotten_leases", lease_seconds=lease_seconds, shown=SHOWN)

    async def doubled_provider_ids(self, days: int = 2) -> list[dict[str, Any]]:
        """Return provider ids that two parts of one inbox share; expected: none. The check runs every hour."""
        return await self._all("find_doubled_provider_ids", days=days, shown=SHOWN)

    async def foreign_rows(self, days: int = 1) -> list[dict[str, Any]]:
        """Return references between workspaces, and messages that were skipped for one in the last days."""
        return await self._all("find_foreign_rows", days=days, shown=SHOWN)

    async def undelivered(self, days: int = 7) -> list[dict[str, Any]]:
        """Return what each inbox's provider accepted in the last days until yesterday, and what the receipts say."""
        return await self._all("count_undelivered", days=days)

    async def foreign_changes(self, days: int = 7) -> list[dict[str, Any]]:
        """Return who else claimed or finished messages while the pipeline was attached to a CRM; expected: nobody."""
        return await self._all("count_foreign_changes", days=days)

    async def unknown_outcomes(self) -> list[dict[str, Any]]:
        """Return failed messages of unknown outcome."""
        return await self._all("find_unknown_outcomes", shown=SHOWN)
