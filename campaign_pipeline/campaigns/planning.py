"""Plan a campaign's day: select leads, give each a time, and insert the messages, in one transaction.

A campaign has one run per day. Planning again adds the leads that can be contacted by now and still fit. A run that
another planner made for the day is not changed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import psycopg
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from campaign_pipeline.adapters.queue_connection import connect_rows
from campaign_pipeline.campaigns.finding import find_campaign
from campaign_pipeline.core.notices import counted
from campaign_pipeline.core.planning import REASONS, CampaignDay, InboxDay, plan_day
from campaign_pipeline.core.window import DEFAULT_ZONE, SendingWindow
from campaign_pipeline.sql import statement

MOST_MESSAGES = 100_000
"""Most messages per campaign and day, if it has no limit of its own."""

REFUSED = {
    "no_address": "no number or address that can be used",
    "suppressed": "suppressed",
    "same_number": "another lead has the same number",
    "contacted_by_another": "another campaign is contacting the lead, or just has",
}
"""Why leads are not selected, in words."""


class CannotPlan(RuntimeError):
    """The campaign's day cannot be planned; the message says why and what to do."""


@dataclass(frozen=True)
class Planned:
    """The result of planning."""

    campaign: str
    day: date
    zone: str
    run_id: UUID | None = None  # None: no lead could be contacted
    run: str | None = None  # its name
    planned: int = 0  # added messages
    first_due: datetime | None = None
    last_due: datetime | None = None
    left_out: dict[str, int] = field(default_factory=dict)  # leads that wait for another day, by reason
    refused: dict[str, int] = field(default_factory=dict)  # leads that are not contacted, by reason
    review: str = "none"  # which texts a person approves first

    def sentences(self) -> list[str]:
        """Describe the result to the operator."""
        return [
            self._what(),
            *(
                f"{counted(count, 'lead waits', 'leads wait')} for another day: {REASONS[reason]}."
                for reason, count in self.left_out.items()
            ),
            *(
                f"{counted(count, 'lead was', 'leads were')} not selected: {REFUSED[reason]}."
                for reason, count in self.refused.items()
            ),
            *([f'Nothing goes out before a review: campaign-pipeline review "{self.run}".'] if self._waits else []),
        ]

    @property
    def _waits(self) -> bool:
        return self.review != "none" and self.planned > 0

    def _what(self) -> str:
        if self.first_due is None or self.last_due is None:
            return f"{self.campaign}: no message was planned for {self.day}."
        first, last = (due.astimezone(ZoneInfo(self.zone)) for due in (self.first_due, self.last_due))
        return (
            f"{self.campaign}: {counted(self.planned, 'message is', 'messages are')} due on {self.day}, from "
            f"{first:%H:%M} to {last:%H:%M} ({self.zone}), in run {self.run}."
        )


def plan_campaign(url: str, name: str, day: date | None = None, *, dry_run: bool = False) -> Planned:
    """Plan a day of one campaign, given by name or id; the default is today in the campaign's time zone.

    A dry run does the same and rolls back. Raises finding.NotFound, CannotPlan, window.InvalidWindow, psycopg.Error.
    """
    with connect_rows(url) as connection, connection.transaction(force_rollback=dry_run):
        return _plan(connection, find_campaign(connection, name), day)


def campaigns_to_plan(url: str) -> list[tuple[UUID, str]]:
    """Return id and name of each active campaign from a campaign file."""
    with connect_rows(url) as connection:
        rows = connection.execute(statement("list_campaigns_to_plan")).fetchall()
    return [(row["id"], row["name"]) for row in rows]


def crm_plans(url: str) -> bool:
    """Whether a CRM plans the runs of this database."""
    with connect_rows(url) as connection:
        row = connection.execute(statement("look_at_campaign_tables")).fetchone()
    return row is None or not row["has_names"]


def _plan(connection: psycopg.Connection[DictRow], campaign: Mapping[str, Any], day: date | None) -> Planned:
    name = campaign["name"] or str(campaign["id"])
    if not campaign["active"]:
        raise CannotPlan(f"The campaign {name} is not active. Set active: true in its file and apply it.")
    window = SendingWindow.parse(
        *(campaign["opens"], campaign["closes"], campaign["timezone"], campaign["frequency"]),
        *(campaign["weekdays"], campaign["holidays"]),
    )
    day = day or campaign["now"].astimezone(window.zone).date()
    since, until = (datetime.combine(day + timedelta(days=n), time(0), window.zone) for n in (0, 1))
    opening = window.opening(day)
    until = max(until, opening[1]) if opening else until

    def rows(statement_name: str, /, **values: Any) -> list[DictRow]:
        given = {"config_id": campaign["id"], "inbox_id": campaign["inbox_id"], "day": day, **values}
        return connection.execute(statement(statement_name), given).fetchall()

    known = rows("take_planned_day")[0]["run_id"]
    rows("lock_planned_inbox")
    run = next(iter(rows("find_run_of_day", run_id=known)), None)
    if run is not None and not run["ours"]:
        raise CannotPlan(f"Another planner made the run of the campaign {name} for {day}: {run['name']}.")
    if run is not None and run["status"] not in {"running", "completed"}:
        raise CannotPlan(f"The run {run['name']} of {name} is {run['status']}. Resume it, or wait for the next day.")

    looked = rows("look_at_campaign_day", since=since, until=until)[0]
    limit = campaign["daily_limit"]
    remaining = None if limit is None else max(0, limit - looked["used"])
    most = MOST_MESSAGES if remaining is None else remaining
    picked = rows("pick_leads", until=until, most=most)[0]
    wanted = CampaignDay(
        *(window, day, looked["now"], float(campaign["interval_seconds"] or 0), remaining, looked["last_due"])
    )
    plan = plan_day(wanted, _inbox_day(looked), picked["free"])
    result: dict[str, Any] = {"left_out": plan.left_out, "refused": picked["refused"], "review": campaign["review"]}
    if not plan.times:
        return Planned(name, day, str(window.zone), known, run["name"] if run else None, **result)

    run_name = run["name"] if run is not None else f"{name} {day}"
    run_id = known if run is not None else rows("insert_planned_run", name=run_name)[0]["id"]
    lead_ids = picked["lead_ids"][: len(plan.times)]
    messages = {"run_id": run_id, "lead_ids": lead_ids, "times": list(plan.times)}
    connection.execute(statement("insert_planned_messages"), messages)
    noted = {"run_id": run_id, "config_id": campaign["id"], "day": day, "added": len(lead_ids)}
    connection.execute(statement("note_planned_run"), noted)
    span = (plan.times[0], plan.times[-1])
    planned = Planned(name, day, str(window.zone), run_id, run_name, len(lead_ids), *span, **result)
    connection.execute(
        statement("log_plan"),
        {"run_id": run_id, "message": " ".join(planned.sentences()), "details": Jsonb(result)},
    )
    return planned


def _inbox_day(row: Mapping[str, Any]) -> InboxDay:
    """Return the inbox's rate limit; without one there is no limit."""
    limit, gap = row["inbox_limit"], row["min_gap_seconds"] or 0.0
    hours = None
    if row["quiet_from"] is not None:
        hours = SendingWindow(row["quiet_until"], row["quiet_from"], ZoneInfo(row["timezone"] or DEFAULT_ZONE))
    return InboxDay(
        gap_seconds=gap * (1 + (row["jitter"] or 0.0)),
        hourly_limit=row["hourly_limit"],
        remaining=None if limit is None else limit - row["inbox_used"] - len(row["taken"]),
        pause_after=row["pause_after"],
        pause_seconds=row["pause_seconds"] or 0.0,
        hours=hours,
        taken=tuple(row["taken"]),
    )
