"""The logs and metadata of ops: a few lines and figures per step, with counts and ids, never personal data.

Level of a line: INFO if all is well, WARNING if someone should look, ERROR if messages cannot be sent until a person
fixes the cause.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import dagster as dg

from campaign_pipeline.adapters.queue import Batch
from campaign_pipeline.adapters.reports import RunAtWork
from campaign_pipeline.core.batch_outcome import BatchOutcome, needs_person
from campaign_pipeline.core.model import ErrorClass, ShardReport
from campaign_pipeline.core.next_steps import next_step, step_of_wait
from campaign_pipeline.core.notices import counted
from campaign_pipeline.core.runs import RunWait
from campaign_pipeline.core.shard_worker import ShardWorker
from campaign_pipeline.defs.days import at
from campaign_pipeline.defs.io import PREVIEW_ROWS, preview

BATCH = "batch"
"""Metadata of the materialization of `campaign_runs`: the outcome of the batch, see `BatchOutcome`."""

SHOWN_RUNS = 20

SHOWN_KINDS = 5
"""Kinds of failure in a shard's log; its table has all of them."""


def describe_batch(
    context: dg.OpExecutionContext, batch: Batch, batch_size: int, output_name: str, shape: Mapping[str, Any]
) -> None:
    """Report what was claimed, what was cleaned up, and which runs wait for what.

    The materialization of `message_batch` shows whether the batch was full; `next_batch_after_run` reads it.
    `shape`: its rows and columns, under Dagster's names.
    """
    size = {"messages": len(batch.rows), "batch_size": batch_size}
    rows = preview([row.to_row() for row in batch.rows[:PREVIEW_ROWS]])
    context.log_event(dg.AssetMaterialization("message_batch", metadata={**shape, **size, "preview": rows}))
    runs, inboxes = ({getattr(row, key) for row in batch.rows} for key in ("run_id", "inbox_id"))
    if batch.rows:
        rest = " The batch is full: more may be due." if len(batch.rows) == batch_size else ""
        context.log.info(
            f"Claimed {len(batch.rows)} due messages of {len(runs)} runs for {len(inboxes)} inboxes. They are now "
            f"written and sent, in shards by inbox.{rest}"
        )
    else:
        context.log.info(f"Claimed nothing: no message is due{', except in waiting runs' if batch.waits else ''}.")
    for count, text in (
        (batch.recovered, "messages taken back from processes that stopped renewing their lease; they are due again."),
        (batch.expired, "messages skipped: due for longer than the maximum age (CAMPAIGN_MAX_AGE_MINUTES)."),
        (batch.suppressed, "messages skipped: the lead or its address is suppressed (campaign_suppressions)."),
        (
            batch.foreign,
            "messages skipped (foreign_workspace): they touch a row of another workspace than their campaign's; the "
            "check rows_stay_in_their_workspace names it.",
        ),
        (
            batch.contacted,
            "messages skipped or put off (number_contacted): their number got another message not long ago "
            "(workspaces.number_rest_hours).",
        ),
        (batch.cancelled, "messages of cancelled runs settled: skipped, or failed where a part had gone out."),
        (batch.spread, "overdue messages of resumed runs spread over time, so that they are no burst."),
    ):
        if count:
            context.log.info(f"{count} {text}")
    for run_id, inbox_id in list(batch.fallback_inboxes.items())[:SHOWN_RUNS]:
        context.log.warning(f"Run {run_id} sends through its fallback inbox {inbox_id}: its own is down.")
    for wait in batch.waits[:SHOWN_RUNS]:
        context.log.warning(
            f"Run {wait.run_id} has due messages but waits ({wait.code}): {wait.reason} {_until(wait)}".rstrip()
        )
    if len(batch.waits) > SHOWN_RUNS:
        context.log.warning(f"{len(batch.waits) - SHOWN_RUNS} more runs wait; see campaign_runs.wait_reason.")
    waits = [
        {"run": str(wait.run_id), "code": wait.code, "why": wait.reason, "what next": _what_next(wait)}
        for wait in batch.waits[:SHOWN_RUNS]
    ]
    context.add_output_metadata(
        {
            **({"waits": _table(waits)} if waits else {}),
            **size,
            "runs": len(runs),
            "inboxes": len(inboxes),
            "recovered": batch.recovered,
            "expired": batch.expired,
            "suppressed": batch.suppressed,
            "contacted": batch.contacted,
            "foreign": batch.foreign,
            "cancelled": batch.cancelled,
            "spread": batch.spread,
            "runs_waiting": len(batch.waits),
        },
        output_name=output_name,
    )


def _what_next(wait: RunWait) -> str:
    step = step_of_wait(wait.code)
    return f"{step[0].upper()}{step[1:]}. {_until(wait)}".rstrip()


def _until(wait: RunWait) -> str:
    """Say when a wait ends, if known. Its messages stay pending meanwhile (I8)."""
    if wait.until is None:
        return ""
    return f"It is checked again from {at(wait.until)}."


def describe_shard(context: dg.OpExecutionContext, report: ShardReport) -> None:
    """Report the outcome of a shard; messages that were not sent as a table by kind, with a few message ids."""
    kinds = tell_of_shards(context, [report])
    row = report.to_json()
    metadata: dict[str, Any] = {
        "sent": report.sent,
        "failed": report.failed,
        "skipped": report.skipped,
        "returned": report.returned,
        "parts_sent": report.parts_sent,
        "unknown_outcomes": report.unknown_outcomes,
        "unrecognised_answers": sum(report.unrecognised_answers.values()),
        "tokens": report.tokens,
        "cost_usd": round(report.cost_usd, 6),
        "recovered_sends": report.recovered_sends,
        "generation_ms_median": row["generation_ms"]["median"],
        "generation_ms_p95": row["generation_ms"]["p95"],
        "send_ms_median": row["send_ms"]["median"],
        "send_ms_p95": row["send_ms"]["p95"],
        "seconds": report.seconds,
    }
    if kinds:
        metadata["not_sent"] = _table(kinds)
        metadata["one_message"] = "To see a message's history, launch the job explain_message with an id of the table."
    context.add_output_metadata(metadata, output_name="shard_report")


def tell_of_shards(context: dg.OpExecutionContext, reports: Sequence[ShardReport]) -> list[dict[str, str | int]]:
    """Log the outcome of shards; return the messages that were not sent, by kind.

    The counts are one entry of the log, since Dagster stores each entry in its own transaction.
    """
    if reports:
        context.log.info("\n".join(_counts(report) for report in reports))
    return [kind for report in reports for kind in _tell_details(context, report)]


def _counts(report: ShardReport) -> str:
    text = (
        f"{report.inbox}: {report.claimed} messages; {report.sent} sent, {report.failed} failed, "
        f"{report.skipped} skipped, {report.returned} returned to the queue, in {report.seconds:.1f} s."
    )
    return text if report.reasons or not report.sent else f"{text} Everything that was taken over went out."


def _tell_details(context: dg.OpExecutionContext, report: ShardReport) -> list[dict[str, str | int]]:
    """Log what a shard's counts do not say; return the messages that were not sent, by kind."""
    for why, count in report.left.items():
        context.log.info(f"{count} messages of this shard were left alone: {why.replace('_', ' ')}.")
    for shape, count in report.unrecognised_answers.items():
        context.log.warning(f"{count} times: {shape} Its body is in campaign_message_parts.provider_response.")
    if report.stopped_by:
        context.log.warning(f"{report.stopped_by} What was not sent went back to the queue.")
    kinds = [_kind(report, key, count) for key, count in report.reasons.most_common()]
    for kind in kinds[:SHOWN_KINDS]:
        _log_of_kind(context, kind)(
            f"{kind['messages']} {kind['what']} ({kind['code']}): {kind['why']} Next: {kind['what next']}. "
            f"Messages: {kind['message ids']}."
        )
    return kinds


def _log_of_kind(context: dg.OpExecutionContext, kind: Mapping[str, Any]) -> Callable[[str], None]:
    """Return the log level for a kind of message that was not sent."""
    if kind["what"] == "returned" and needs_person(kind["class"], kind["code"]):
        return context.log.error
    return context.log.warning if kind["what"] == "failed" else context.log.info


@contextlib.contextmanager
def told_when_stopped(context: dg.OpExecutionContext, workers: Sequence[ShardWorker]) -> Iterator[None]:
    """Report the outcome of shards that were stopped from outside. `workers`: the running ones, once they run."""
    try:
        yield
    except dg.DagsterExecutionInterruptedError:
        for worker in workers:
            context.log.warning(_stopped(worker.report))
        raise


def _stopped(report: ShardReport) -> str:
    """Say in one sentence that a shard was stopped."""
    in_doubt = sum(
        count for key, count in report.reasons.items() if report.classes.get(key) == ErrorClass.UNKNOWN.value
    )
    doubt = (
        f"of {in_doubt} it is not known whether they went out, they are looked up before anything is sent again"
        if in_doubt
        else "none is left in doubt"
    )
    return (
        f"The run was terminated. {report.inbox}: of {report.claimed} messages {report.sent} were sent, "
        f"{report.failed} failed, {report.skipped} were skipped and {report.returned} given back to the queue; {doubt}."
    )


def _kind(report: ShardReport, key: str, count: int) -> dict[str, str | int]:
    """Return one kind of message that was not sent, as a row."""
    what, _, code = key.partition(": ")
    ids, error_class = report.examples[key], report.classes.get(key, "")
    return {
        "what": what,
        "code": code,
        "class": error_class,
        "messages": count,
        "why": report.sentences[key],
        "what next": next_step(what, error_class, code),
        "message ids": ", ".join(ids) + (", …" if count > len(ids) else ""),
    }


def _table(rows: Sequence[Mapping[str, str | int]]) -> dg.TableMetadataValue:
    return dg.MetadataValue.table([dg.TableRecord(dict(row)) for row in rows])


def describe_runs(
    context: dg.OpExecutionContext, reports: Sequence[Mapping[str, Any]], closed: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Report the outcome of the whole batch, and the runs that it closed; return the figures."""
    totals = Counter[str]()
    for report in reports:
        totals.update({key: report[key] for key in ("sent", "failed", "skipped", "returned", "tokens")})
    context.log.info(
        f"The batch: {totals['sent']} sent, {totals['failed']} failed, {totals['skipped']} skipped, "
        f"{totals['returned']} returned; {counted(len(closed), 'run', 'runs')} closed."
    )
    for run in closed[:SHOWN_RUNS]:
        context.log.info(
            f"Run {run['id']} ({run['name'] or 'unnamed'}) is {run['status']}: {run['leads_success']} sent, "
            f"{run['leads_failed']} failed, {run['leads_skipped']} skipped."
        )
    if len(closed) > SHOWN_RUNS:
        context.log.info(f"{len(closed) - SHOWN_RUNS} more runs were closed; the output closed_runs names them all.")
    cost = sum(report["cost_usd"] for report in reports)
    return {**totals, "cost_usd": round(cost, 6), "runs_closed": len(closed)}


def materialize_runs(
    context: dg.OpExecutionContext,
    runs: Sequence[RunAtWork],
    closed: Sequence[Mapping[str, Any]],
    outcome: BatchOutcome,
) -> None:
    """Materialize `campaign_runs` with figures to plot over time and a table of the runs."""
    closed_now = {str(run["id"]) for run in closed}
    waiting = [run for run in runs if run.wait_code]
    shown = sorted(runs, key=lambda run: (str(run.run_id) not in closed_now, -run.leads_failed))[:SHOWN_RUNS]
    figures = {
        "running": sum(run.status == "running" for run in runs),
        "waiting": len(waiting),
        "closed": len(closed),
        "sent": sum(run.leads_success for run in runs),
        "failed": sum(run.leads_failed for run in runs),
        "skipped": sum(run.leads_skipped for run in runs),
    }
    table: list[dict[str, str | int]] = [
        {
            "run": str(run.run_id),
            "campaign": run.campaign,
            "status": f"{run.status}, just now" if str(run.run_id) in closed_now else run.status,
            "of": run.leads_total,
            "sent": run.leads_success,
            "failed": run.leads_failed,
            "skipped": run.leads_skipped,
            "waits for": f"{run.wait_code}: {run.wait_reason}" if run.wait_code else "",
        }
        for run in shown
    ]
    context.log_event(
        dg.AssetMaterialization(
            "campaign_runs",
            description=f"{figures['running']} runs are running, {figures['waiting']} of them wait; "
            f"{figures['closed']} were closed by this batch.",
            metadata={
                **figures,
                **({"runs": _table(table)} if table else {}),
                BATCH: dg.MetadataValue.json(asdict(outcome)),
            },
        )
    )
