"""The detail tables of a daily report: reasons, inboxes and models, costs, and waits."""

from collections.abc import Mapping, Sequence
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg

from campaign_pipeline.adapters.day_report import DayDetails, InboxDay, Spending, Unsent, WaitingRun
from campaign_pipeline.core.next_steps import next_step, step_of_wait
from campaign_pipeline.defs.io import markdown_table

SHOWN_ROWS = 30


def day_tables(details: DayDetails, timezone: str) -> dict[str, dg.MarkdownMetadataValue]:
    """Return the tables that have rows, in the order of an operator's questions."""
    tables = {
        "not_sent": [_failure(row) for row in details.failures],
        "waits": [_wait(row) for row in details.waits],
        "inboxes": [_inbox(row, ZoneInfo(timezone)) for row in details.inboxes],
        "spending": [_spending(row) for row in details.spending],
    }
    return {name: dg.MetadataValue.md(_table(rows)) for name, rows in tables.items() if rows}


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    import pandas as pd  # imported only for a report

    more = f"\n\n… and {len(rows) - SHOWN_ROWS} more." if len(rows) > SHOWN_ROWS else ""
    return markdown_table(pd.DataFrame(rows[:SHOWN_ROWS])) + more


def _failure(row: Unsent) -> dict[str, Any]:
    return {
        "messages": row.messages,
        "what": row.status + (f" ({row.error_class})" if row.error_class else ""),
        "code": row.code,
        "what next": next_step(row.status, row.error_class, row.code),
    }


def _wait(row: WaitingRun) -> dict[str, Any]:
    code, why = row.wait_code, row.wait_reason
    if row.status == "paused":
        code, why = "run_paused", "The run is paused."
    return {
        "campaign": row.campaign,
        "messages": row.messages,
        "waits for": f"{code}: {why}" if code else "its turn",
        "what next": step_of_wait(code) if code else "nothing: the next batch takes it",
    }


def _inbox(row: InboxDay, zone: ZoneInfo) -> dict[str, Any]:
    first, last = (f"{at.astimezone(zone):%H:%M}" if at else "" for at in (row.first_at, row.last_at))
    return {
        "inbox": row.inbox + (f" ({row.instance})" if row.instance else ""),
        "sent": row.sent,
        "failed": row.failed,
        "skipped": row.skipped,
        "from, to": f"{first}, {last}" if first else "",
    }


def _spending(row: Spending) -> dict[str, Any]:
    share = row.spent_usd / row.limit_usd if row.limit_usd else 1.0
    return {
        "of": f"{row.scope} {row.name}",
        "US$": f"{row.spent_usd:.4f}",
        "limit": f"{row.limit_usd:.2f}",
        "used": f"{share:.0%}",
    }
