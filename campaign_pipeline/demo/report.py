"""Results of campaign runs, read from the database and formatted for a terminal."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from uuid import UUID

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from campaign_pipeline.adapters.queue_connection import connect_rows

STAGES = {"writing_ms": "writing", "sending_ms": "sending"}
"""The stages of a message: the language model, and the message provider with typing delays."""

_RUNS = """
    SELECT r.id, r.name, r.leads_total AS total,
           count(*) FILTER (WHERE m.status IN ('sent', 'replied')) AS sent,
           count(*) FILTER (WHERE m.status NOT IN ('sent', 'replied', 'failed', 'skipped')) AS waiting,
           COALESCE(sum(m.ai_tokens_used), 0) AS tokens, COALESCE(sum(m.ai_cost_usd), 0) AS cost_usd,
           EXTRACT(epoch FROM max(m.finished_at) - min(m.queued_at))::double precision AS seconds,
           percentile_cont(0.5) WITHIN GROUP (ORDER BY m.ai_generation_time_ms)
               FILTER (WHERE m.sent_at IS NOT NULL) AS writing_ms,
           percentile_cont(0.5) WITHIN GROUP (ORDER BY m.send_time_ms)
               FILTER (WHERE m.sent_at IS NOT NULL) AS sending_ms
    FROM public.campaign_runs r LEFT JOIN public.campaign_messages m ON m.run_id = r.id
    WHERE r.id = ANY (%s)
    GROUP BY r.id
    ORDER BY array_position(%s, r.id)
"""

_REASONS = """
    SELECT run_id, status, COALESCE(error_code, 'no reason') AS code, count(*) AS messages
    FROM public.campaign_messages
    WHERE run_id = ANY (%s) AND status IN ('failed', 'skipped')
    GROUP BY run_id, status, code
    ORDER BY messages DESC, code
"""

_SAMPLES = """
    SELECT r.name AS campaign, l.client_name AS lead, l.company, m.parts
    FROM public.campaign_runs r
    CROSS JOIN LATERAL (
        SELECT m.lead_id, array_agg(p.text ORDER BY p.part_no) AS parts
        FROM public.campaign_messages m JOIN campaign_pipeline.campaign_message_parts p ON p.message_id = m.id
        WHERE m.run_id = r.id AND m.status = 'sent'
        GROUP BY m.id
        ORDER BY count(*) DESC, m.sent_at, m.id
        LIMIT 1) m
    JOIN public.leads l ON l.id = m.lead_id
    WHERE r.id = ANY (%s)
    ORDER BY array_position(%s, r.id)
"""


@dataclass(frozen=True)
class RunReport:
    """The result of one campaign run."""

    name: str
    total: int
    sent: int
    failed: Mapping[str, int]  # reason -> messages
    skipped: Mapping[str, int]  # reason -> messages
    waiting: int  # not finished: pending or leased
    tokens: int
    cost_usd: Decimal
    seconds: float | None  # from the first claim to the last end; None: nothing was finished
    stages: Mapping[str, float]  # stage -> median milliseconds per sent message

    @property
    def per_second(self) -> float | None:
        """Messages sent per second."""
        return self.sent / self.seconds if self.seconds else None

    @property
    def slowest_stage(self) -> tuple[str, float] | None:
        """The stage with the largest median, and its milliseconds; None if nothing was sent."""
        return max(self.stages.items(), key=lambda stage: stage[1], default=None)


@dataclass(frozen=True)
class Sample:
    """A message as its recipient sees it."""

    campaign: str
    lead: str
    company: str | None
    parts: tuple[str, ...]


def read_report(url: str, run_ids: Sequence[UUID]) -> list[RunReport]:
    """Count the messages of these runs, in this order."""
    with connect_rows(url) as connection:
        runs = connection.execute(_RUNS, [list(run_ids), list(run_ids)]).fetchall()
        reasons = connection.execute(_REASONS, [list(run_ids)]).fetchall()
    return [_to_report(run, [reason for reason in reasons if reason["run_id"] == run["id"]]) for run in runs]


def _to_report(run: Mapping[str, Any], reasons: Sequence[Mapping[str, Any]]) -> RunReport:
    return RunReport(
        name=run["name"],
        total=run["total"],
        sent=run["sent"],
        failed={row["code"]: row["messages"] for row in reasons if row["status"] == "failed"},
        skipped={row["code"]: row["messages"] for row in reasons if row["status"] == "skipped"},
        waiting=run["waiting"],
        tokens=run["tokens"],
        cost_usd=run["cost_usd"],
        seconds=run["seconds"],
        stages={stage: run[column] for column, stage in STAGES.items() if run[column] is not None},
    )


def read_samples(url: str, run_ids: Sequence[UUID]) -> list[Sample]:
    """Return one sent message of each run, preferring those in several parts."""
    with connect_rows(url) as connection:
        rows = connection.execute(_SAMPLES, [list(run_ids), list(run_ids)]).fetchall()
    return [Sample(row["campaign"], row["lead"], row["company"], tuple(row["parts"])) for row in rows]


def report_table(reports: Sequence[RunReport]) -> Table:
    """Build a table with one column per campaign and one for the total."""
    columns = [*reports, _sum(reports)] if len(reports) > 1 else [*reports]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for report in columns:
        # Names and codes come from the database: they must not be read as markup.
        table.add_column(Text(report.name))
    rows: list[tuple[str, Callable[[RunReport], str]]] = [
        ("Sent", lambda report: f"{report.sent:,} of {report.total:,}"),
        ("Failed, by reason", lambda report: _reasons(report.failed)),
        ("Skipped, by reason", lambda report: _reasons(report.skipped)),
        ("Tokens", lambda report: f"{report.tokens:,}"),
        ("Cost", lambda report: f"US$ {report.cost_usd:.4f}"),
        ("Sent per second", lambda report: _figure(report.per_second)),
        ("Slowest stage", _stage),
    ]
    if any(report.waiting for report in reports):
        rows.insert(3, ("Waiting", lambda report: f"{report.waiting:,}"))
    for heading, cell in rows:
        table.add_row(heading, *(Text(cell(report)) for report in columns))
    return table


def _sum(reports: Sequence[RunReport]) -> RunReport:
    """Sum the reports; the runs overlapped, so the duration is the longest one."""
    failed, skipped = Counter[str](), Counter[str]()
    for report in reports:
        failed.update(report.failed)
        skipped.update(report.skipped)
    return RunReport(
        name="All",
        total=sum(report.total for report in reports),
        sent=sum(report.sent for report in reports),
        failed=dict(failed.most_common()),
        skipped=dict(skipped.most_common()),
        waiting=sum(report.waiting for report in reports),
        tokens=sum(report.tokens for report in reports),
        cost_usd=sum((report.cost_usd for report in reports), Decimal(0)),
        seconds=max((report.seconds for report in reports if report.seconds), default=None),
        stages={},
    )


def sample_panels(samples: Sequence[Sample]) -> RenderableType:
    """Show messages as their recipients see them, one paragraph per part."""
    panels = []
    for sample in samples:
        to = sample.lead + (f", {sample.company}" if sample.company else "")
        parts = "" if len(sample.parts) == 1 else f" · {len(sample.parts)} parts"
        text = Text("\n⋯\n".join(sample.parts))
        panels.append(Panel(text, title=Text(f"{sample.campaign} → {to}{parts}"), title_align="left"))
    return Group(*panels)


def _reasons(reasons: Mapping[str, int]) -> str:
    if not reasons:
        return "0"
    lines = [f"{count:,} {code.replace('_', ' ')}" for code, count in reasons.items()]
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _stage(report: RunReport) -> str:
    slowest = report.slowest_stage
    return "" if slowest is None else f"{slowest[0]}, {slowest[1] / 1000:.1f} s"
