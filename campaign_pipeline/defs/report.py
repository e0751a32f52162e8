"""What ops tell the operator: a few lines and figures per step, counts and ids, never a person."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from campaign_pipeline.adapters.postgres import Batch
from campaign_pipeline.core.model import ShardReport

SHOWN_RUNS = 20


def describe_batch(context: dg.OpExecutionContext, batch: Batch, batch_size: int) -> None:
    """Say what was claimed, what was put in order on the way, and which runs wait for what."""
    runs, inboxes = ({row[key] for row in batch.rows} for key in ("run_id", "inbox_id"))
    context.log.info(f"Claimed {len(batch.rows)} due messages of {len(runs)} runs for {len(inboxes)} inboxes.")
    for count, text in (
        (batch.recovered, "messages taken back from processes that stopped renewing their lease."),
        (batch.expired, "messages skipped: due for longer than the maximum age."),
        (batch.cancelled, "messages of cancelled runs settled."),
        (batch.spread, "overdue messages of resumed runs spread over time."),
    ):
        if count:
            context.log.info(f"{count} {text}")
    for wait in batch.waits[:SHOWN_RUNS]:
        context.log.warning(f"Run {wait.run_id} has messages due but waits ({wait.code}): {wait.reason}")
    if len(batch.waits) > SHOWN_RUNS:
        context.log.warning(f"{len(batch.waits) - SHOWN_RUNS} more runs wait; see campaign_runs.wait_reason.")
    context.add_output_metadata(
        {
            "messages": len(batch.rows),
            "batch_size": batch_size,
            "runs": len(runs),
            "inboxes": len(inboxes),
            "recovered": batch.recovered,
            "expired": batch.expired,
            "runs_waiting": len(batch.waits),
        },
        output_name="message_batch",
    )


def describe_shard(context: dg.OpExecutionContext, report: ShardReport) -> None:
    """Say what came of a shard; what did not go out as a table by kind, each with an example to look up."""
    row = report.to_json()
    context.log.info(
        f"Inbox {report.inbox_id}: {report.sent} sent, {report.failed} failed, {report.skipped} skipped, "
        f"{report.returned} returned to the queue, in {report.seconds:.1f} s."
    )
    for why, count in report.left.items():
        context.log.info(f"{count} messages of this shard were left alone: {why.replace('_', ' ')}.")
    for shape, count in report.unrecognised_answers.items():
        context.log.warning(f"{count} times: {shape} Its body is in campaign_message_parts.provider_response.")
    if report.stopped_by:
        context.log.warning(f"{report.stopped_by} What was not sent went back to the queue.")
    metadata: dict[str, Any] = {
        "sent": report.sent,
        "failed": report.failed,
        "skipped": report.skipped,
        "returned": report.returned,
        "parts_sent": report.parts_sent,
        "unknown_outcomes": report.unknown_outcomes,
        "tokens": report.tokens,
        "unrecognised_answers": sum(report.unrecognised_answers.values()),
        "cost_usd": round(report.cost_usd, 6),
        "generation_ms_p95": row["generation_ms"]["p95"],
        "send_ms_p95": row["send_ms"]["p95"],
        "seconds": report.seconds,
    }
    if report.reasons:
        records = [
            dg.TableRecord(
                {"what": key, "messages": count, "example": report.examples[key][0], "why": report.examples[key][1]}
            )
            for key, count in report.reasons.most_common()
        ]
        metadata["not_sent"] = dg.MetadataValue.table(records)
    context.add_output_metadata(metadata, output_name="shard_report")


def describe_runs(
    context: dg.OpExecutionContext, reports: Sequence[Mapping[str, Any]], closed: Sequence[Mapping[str, Any]]
) -> None:
    """Say what the whole batch came to, and which runs it closed."""
    totals = Counter[str]()
    for report in reports:
        totals.update({key: report[key] for key in ("sent", "failed", "skipped", "returned", "tokens")})
    context.log.info(
        f"The batch: {totals['sent']} sent, {totals['failed']} failed, {totals['skipped']} skipped, "
        f"{totals['returned']} returned; {len(closed)} runs closed."
    )
    for run in closed[:SHOWN_RUNS]:
        context.log.info(
            f"Run {run['id']} ({run['name'] or 'unnamed'}) is {run['status']}: {run['leads_success']} sent, "
            f"{run['leads_failed']} failed, {run['leads_skipped']} skipped."
        )
    cost = sum(report["cost_usd"] for report in reports)
    metadata = {**totals, "cost_usd": round(cost, 6), "runs_closed": len(closed)}
    context.add_output_metadata(metadata, output_name="closed_runs")
