"""What the queue's tables say when they are only read: for reports, assets and their checks."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from campaign_pipeline.adapters.postgres import Statements

RECENT_DAYS = 31
"""How far back checks look where the whole past would be too long to read each hour."""

SHOWN = 20
"""How many rows a check shows; the column `of_all` has their full number."""


class Reports(Statements):
    """The queue as reports and checks see it; nothing here changes anything."""

    async def runs_at_work(self, closed: Sequence[UUID]) -> list[dict[str, Any]]:
        """The runs that are running, and those that were just closed, with counters and waits."""
        return await self._all("list_runs_at_work", closed=list(closed))

    async def campaign_day(self, start: datetime, end: datetime, timezone: str) -> list[dict[str, Any]]:
        """A row per campaign with messages from `start` until before `end`; the last row is all together."""
        return await self._all("report_campaign_day", day_start=start, day_end=end, timezone=timezone)

    async def text_rules(self, start: datetime, end: datetime) -> list[dict[str, Any]]:
        """How many answers of the model each rule changed or refused from `start` until before `end`, by campaign."""
        return await self._all("count_text_rules", day_start=start, day_end=end)

    async def failed_by_day(self, timezone: str, days: int = RECENT_DAYS) -> list[dict[str, Any]]:
        """How many messages failed, by business day and error class."""
        return await self._all("count_failed_by_day", timezone=timezone, days=days)

    async def wrong_counters(self) -> list[dict[str, Any]]:
        """Open runs whose counters differ from a recount (I6); should be none."""
        return await self._all("find_wrong_counters")

    async def forgotten_leases(self, lease_seconds: float) -> list[dict[str, Any]]:
        """Messages that nobody took back for a whole lease after theirs ran out."""
        return await self._all("find_forgotten_leases", lease_seconds=lease_seconds, shown=SHOWN)

    async def doubled_provider_ids(self, days: int = 2) -> list[dict[str, Any]]:
        """Provider ids that stand on two parts of one inbox; should be none. Two days: it is asked every hour."""
        return await self._all("find_doubled_provider_ids", days=days, shown=SHOWN)

    async def foreign_rows(self, days: int = 1) -> list[dict[str, Any]]:
        """What connects the rows of two workspaces, and the messages that were skipped for it in so many days."""
        return await self._all("find_foreign_rows", days=days, shown=SHOWN)

    async def undelivered(self, days: int = 7) -> list[dict[str, Any]]:
        """What each inbox's provider accepted in so many days until yesterday, and what its receipts say of it."""
        return await self._all("count_undelivered", days=days)

    async def foreign_changes(self, days: int = 7) -> list[dict[str, Any]]:
        """Who else took or finished messages while the pipeline was attached to a CRM; should be nobody."""
        return await self._all("count_foreign_changes", days=days)

    async def unknown_outcomes(self) -> list[dict[str, Any]]:
        """Messages that failed without anybody knowing whether they went out."""
        return await self._all("find_unknown_outcomes", shown=SHOWN)
