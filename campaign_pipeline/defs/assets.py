"""The assets in the UI: the tables of a batch, the runs that it sent, and a daily report.

`process_campaign_queue` writes the first three and reports their materializations; Dagster never makes them itself. The
report is made here, from the database alone, so any day can be materialized again at any time.
"""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import dagster as dg

from campaign_pipeline.adapters.day_report import DayReport
from campaign_pipeline.adapters.reports import CampaignDay, Reports, RuleCount
from campaign_pipeline.defs.day_tables import day_tables
from campaign_pipeline.defs.days import DAY_FORMAT, days
from campaign_pipeline.defs.io import markdown_table
from campaign_pipeline.defs.ops import plain_failures
from campaign_pipeline.defs.plots import day_picture, in_words
from campaign_pipeline.defs.resources import QueueDatabase
from campaign_pipeline.defs.shard import run_async
from campaign_pipeline.defs.tags import OWNERS, WORK

if TYPE_CHECKING:
    import pandas as pd

GROUP = "campaigns"

message_batch = dg.AssetSpec(
    "message_batch",
    group_name=GROUP,
    kinds={"postgres", "parquet"},
    description="The messages of the latest batch: ids and times, one row per message. Each run of "
    "process_campaign_queue writes them to a private file.",
)

lead_contexts = dg.AssetSpec(
    "lead_contexts",
    deps=[message_batch],
    group_name=GROUP,
    kinds={"postgres", "parquet"},
    description="The CRM's data about each lead of the latest batch, as in the prompt. It is a private file with "
    "personal data: only its size is shown here.",
)

campaign_runs = dg.AssetSpec(
    "campaign_runs",
    deps=[message_batch, lead_contexts],
    group_name=GROUP,
    kinds={"postgres"},
    description="The campaign runs after the latest batch: sent, failed and skipped messages, waiting runs with the "
    "reason, and runs that the batch closed.",
)

COUNTS = (
    *(
        "due",
        "sent",
        "receipts",
        "delivered",
        "read",
        "replied",
        "failed",
        "failed_permanent",
        "failed_exhausted",
        "failed_unknown",
        "failed_other",
    ),
    *("skipped", "waiting", "tokens", "cached_tokens", "active_minutes"),
)
TIMES = tuple(f"{figure}_{stage}_s" for stage in ("generation", "send", "wait") for figure in ("median", "p95"))
COSTS = ("cost_usd", "cache_saved_usd")
COLUMNS = ("campaign_id", "campaign", *COUNTS, *COSTS, *TIMES, "messages_per_minute")
"""Columns of the report's table, named as in the statement `report_campaign_day`; times in seconds."""


@dg.asset(
    partitions_def=days,
    deps=[campaign_runs],
    group_name=GROUP,
    kinds={"postgres", "parquet"},
    io_manager_key="tables",
    # Materialized at five past each hour; the UI shows when it is late.
    freshness_policy=dg.FreshnessPolicy.cron(
        deadline_cron="20 * * * *", lower_bound_delta=timedelta(minutes=20), timezone=str(days.timezone)
    ),
)
def campaign_report(context: dg.AssetExecutionContext, database: QueueDatabase) -> dg.MaterializeResult[Any]:
    """Report the day's messages by campaign: counts, failures by class, tokens, cost, time per stage and pace."""
    import pandas as pd

    day, window = context.partition_key, context.partition_time_window
    with plain_failures():
        reports = Reports(database.url())
        *campaigns, total = run_async(reports.campaign_day(window.start, window.end, str(days.timezone)))
        text_rules = run_async(reports.text_rules(window.start, window.end))
        details = run_async(DayReport(database.url()).read(date.fromisoformat(day), window.start, window.end))
    context.log.info(_in_a_sentence(day, total, len(campaigns)))
    table = pd.DataFrame([asdict(row) | {"campaign_id": str(row.campaign_id)} for row in campaigns], columns=COLUMNS)
    table.insert(0, "day", day)
    return dg.MaterializeResult(
        value=table,
        metadata={
            # What an operator looks for comes first; the UI keeps this order.
            "next_step": _next_step(day, total),
            # Two tables: one with all columns would be wider than the page, and cut off every row.
            "campaigns": dg.MetadataValue.md(markdown_table(_outcomes(campaigns))),
            **day_tables(details, str(days.timezone)),
            "costs_and_times": dg.MetadataValue.md(markdown_table(_costs_and_times(campaigns))),
            "text_rules": dg.MetadataValue.md(markdown_table(_text_rules(campaigns, text_rules))),
            "picture": dg.MetadataValue.md(day_picture(day, total)),
            **_figures(total),
        },
    )


def _figures(total: CampaignDay) -> dict[str, int | float]:
    """Return the figures that the UI plots over the days; unmeasured times are left out, not plotted as zero."""
    counts: dict[str, int | float] = {name: getattr(total, name) for name in COUNTS}
    counts |= {name: round(getattr(total, name), 6) for name in COSTS}
    times = {name: getattr(total, name) for name in (*TIMES, "messages_per_minute")}
    return counts | {name: round(value, 3) for name, value in times.items() if value is not None}


def _outcomes(campaigns: Sequence[CampaignDay]) -> "pd.DataFrame":
    """Tabulate the outcomes of each campaign's messages for people; the file has every figure."""
    import pandas as pd

    return pd.DataFrame(
        [
            {
                "campaign": row.campaign,
                "due": row.due,
                "sent": row.sent,
                # Without receipts the columns are empty: not every provider sends them.
                "delivered": f"{row.delivered} ({row.read} read)" if row.receipts else "not known",
                "replied": row.replied,
                "failed": row.failed,
                "to send again": row.failed_exhausted,
                "unknown": row.failed_unknown,
                "skipped": row.skipped,
                "waiting": row.waiting,
            }
            for row in campaigns
        ]
    )


def _costs_and_times(campaigns: Sequence[CampaignDay]) -> "pd.DataFrame":
    """Tabulate the cost and the times of each campaign."""
    import pandas as pd

    return pd.DataFrame(
        [
            {
                "campaign": row.campaign,
                "tokens (cached)": _with(f"{row.tokens:,}", row.cached_tokens, "{:,}"),
                "US$ (saved by caching)": _with(f"{row.cost_usd:.4f}", row.cache_saved_usd, "{:.4f}"),
                "writing (p95)": _times(row, "generation"),
                "sending (p95)": _times(row, "send"),
                "due until sent (p95)": _times(row, "wait"),
                "a minute": "" if row.messages_per_minute is None else f"{row.messages_per_minute:.1f}",
            }
            for row in campaigns
        ]
    )


def _with(figure: str, of_cache: float, form: str) -> str:
    """Append to a figure what the providers' prompt caches contributed, if anything."""
    return f"{figure} ({form.format(of_cache)})" if of_cache else figure


def _text_rules(campaigns: Sequence[CampaignDay], rules: Sequence[RuleCount]) -> "pd.DataFrame":
    """Tabulate how many texts of each campaign a rule changed or refused."""
    import pandas as pd

    names = {row.campaign_id: row.campaign for row in campaigns}
    return pd.DataFrame(
        [
            {
                "campaign": names.get(row.campaign_id, str(row.campaign_id)),
                "rule": row.rule,
                "texts": f"{row.texts:,} {row.what}",
                "US$ of refused ones": f"{row.cost_usd:.4f}",
            }
            for row in rules
        ],
        columns=["campaign", "rule", "texts", "US$ of refused ones"],
    )


def _failed(row: CampaignDay) -> str:
    classes = {name: getattr(row, f"failed_{name}") for name in ("permanent", "exhausted", "unknown", "other")}
    named = ", ".join(f"{count} {name}" for name, count in classes.items() if count)
    return f"{row.failed} ({named})" if named else str(row.failed)


def _times(row: CampaignDay, stage: str) -> str:
    """Format median and 95th percentile of a stage."""
    median, p95 = getattr(row, f"median_{stage}_s"), getattr(row, f"p95_{stage}_s")
    return "" if median is None else f"{in_words(median)} ({in_words(p95)})"


def _in_a_sentence(day: str, total: CampaignDay, campaigns: int) -> str:
    return (
        f"{day}: {total.due} messages of {campaigns} campaigns were due; {total.sent} sent "
        f"({total.replied} answered), failed {_failed(total)}, {total.skipped} skipped, "
        f"{total.waiting} waiting; US$ {total.cost_usd:.4f}. {_next_step(day, total)}"
    )


def _next_step(day: str, total: CampaignDay) -> str:
    refused = total.failed_permanent + total.failed_other
    return next_step(day, exhausted=total.failed_exhausted, unknown=total.failed_unknown, refused=refused)


def next_step(day: str, *, exhausted: int, unknown: int, refused: int) -> str:
    """Say what to do about a day's failed messages, given how many failed in which way."""
    steps = []
    if exhausted:
        steps.append(
            f"{exhausted} failed for a temporary reason: launch retry_failed_messages for {day} to send them again."
        )
    if unknown:
        steps.append(
            f"{unknown} may have gone out: look at the chats; retry_failed_messages sends them again "
            'only with error_classes ["unknown"].'
        )
    if refused:
        steps.append(f"{refused} were refused for good: campaign_messages.error_message says why of each.")
    return " ".join(steps) or "Nothing to do."


refresh_campaign_report = dg.define_asset_job(
    "refresh_campaign_report",
    selection=dg.AssetSelection.assets(campaign_report),
    executor_def=dg.in_process_executor,
    tags={WORK: "report"},
    owners=OWNERS,
    description="Rebuild the report of a day from the database, and check which days have messages to send again.",
)

BACK_FILL = "retry_failed_messages"
SETTLED_WITHIN = timedelta(hours=2)
"""How long after a back-fill the day's report is refreshed hourly, while its failures decrease."""


@dg.schedule(
    job=refresh_campaign_report,
    cron_schedule="5 * * * *",
    owners=OWNERS,
    execution_timezone=str(days.timezone),
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Every hour: rebuilds the reports of today, yesterday, and days that a back-fill has just changed.",
)
def refresh_campaign_report_hourly(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest]:
    """Request one run per day."""
    now = context.scheduled_execution_time.astimezone(ZoneInfo(str(days.timezone)))
    wanted = {(now - timedelta(days=back)).strftime(DAY_FORMAT) for back in (0, 1)}
    back_fills = dg.RunsFilter(job_name=BACK_FILL, updated_after=now - SETTLED_WITHIN)
    for record in context.instance.get_run_records(back_fills):
        wanted.add(record.dagster_run.tags.get("dagster/partition", now.strftime(DAY_FORMAT)))
    return [
        dg.RunRequest(run_key=f"{day} at {now.isoformat()}", partition_key=day)
        for day in sorted(wanted)
        if days.has_partition_key(day)
    ]
