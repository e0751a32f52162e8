"""The table of notices, and the queue's data in a notice: names, counts, the daily summary."""

from collections.abc import Sequence
from datetime import date, datetime
from typing import Any
from uuid import UUID

from campaign_pipeline.adapters.doctor import Doctor
from campaign_pipeline.core.notices import Concern, SlowRun, Standing


class Notices(Doctor):
    """The sent notices, and the doctor's checks, on one connection for one tick."""

    def standing(self) -> dict[str, Standing]:
        """Return the open notices by key."""
        return {row["key"]: Standing(**row) for row in self._all("list_notices")}

    def keep(self, concern: Concern, title: str, since: datetime, job: str | None = None) -> None:
        """Record that a notice was sent."""
        self._run(
            "keep_notice",
            key=concern.key,
            title=title,
            since=since,
            size=concern.size,
            run_ids=list(concern.runs),
            job=job,
        )

    def shrink(self, key: str, size: int) -> None:
        """Record that a reported concern has become smaller."""
        self._run("shrink_notice", key=key, size=size)

    def end(self, key: str) -> None:
        """Delete a notice whose end was reported."""
        self._run("end_notice", key=key)

    def name(self, scope: str, scope_id: str) -> str:
        """Return the display name of a scope; its id if it has no name, empty if there is no scope."""
        return (self._all("name_scope", scope=scope, id=scope_id)[0]["name"] or scope_id) if scope else ""

    def sent_since(self, run_ids: Sequence[UUID], since: datetime) -> int:
        """Count the messages of these campaign runs that were sent."""
        sent: int = self._all("count_sent_since", run_ids=list(run_ids), since=since)[0]["sent"]
        return sent

    def held_by(self, owner: str) -> tuple[int, datetime | None]:
        """Return how many messages a Dagster run still holds, and when its last lease ends."""
        row = self._all("count_held_by", owner=owner)[0]
        return row["messages"], row["until"]

    def exhausted(self, since: datetime) -> list[dict[str, Any]]:
        """List the messages that exhausted their attempts, by code and campaign."""
        return self._all("summarize_failures", since=since)

    def slow_runs(self, day_end: datetime) -> list[SlowRun]:
        """Return the runs that a spending limit or a pace delays, with their messages due until then."""
        return [SlowRun(**row) for row in self._all("summarize_waits", day_end=day_end)]

    def first_day(self, timezone: str) -> date:
        """Return the first day with data; today if there is none."""
        day: date = self._all("find_first_day", timezone=timezone)[0]["day"]
        return day
