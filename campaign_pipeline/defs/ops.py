"""The steps of a batch. Each does one thing to the queue through a resource, which guards the invariants."""

import contextlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import partial
from operator import attrgetter
from typing import Any, TypeVar

import dagster as dg
import psycopg
from pydantic import Field

from campaign_pipeline.adapters.batches import Batches
from campaign_pipeline.adapters.cloud_api_events import read_status
from campaign_pipeline.adapters.environment import DeliverySettings, SettingError
from campaign_pipeline.adapters.operations import Operations
from campaign_pipeline.adapters.queue import Batch, BatchOptions, Queue
from campaign_pipeline.adapters.reports import Reports, RunAtWork
from campaign_pipeline.adapters.schema import DatabaseUnusable
from campaign_pipeline.adapters.statements import Lender, kept_connection
from campaign_pipeline.adapters.status_events import settle_status_events
from campaign_pipeline.adapters.webhook_store import WebhookStore
from campaign_pipeline.core.batch_outcome import BatchCounts, BatchOutcome, batch_outcome
from campaign_pipeline.core.model import BatchSettings, ClaimedMessage, Shard, ShardMember, ShardReport, split_batch
from campaign_pipeline.core.notices import listed
from campaign_pipeline.core.ports import StoreUnavailable
from campaign_pipeline.core.shard_worker import ShardWorker
from campaign_pipeline.defs.io import INSTANT, Rows, arrow_table, column, table_metadata
from campaign_pipeline.defs.report import (
    describe_batch,
    describe_runs,
    describe_shard,
    materialize_runs,
    tell_of_shards,
    told_when_stopped,
)
from campaign_pipeline.defs.reruns import ended_runs_before, lease_owner, step_owner
from campaign_pipeline.defs.resources import LanguageModelResource, ProvidersResource, QueueDatabase
from campaign_pipeline.defs.run_checks import evaluations
from campaign_pipeline.defs.shard import deliver, deliver_side_by_side, run_async
from campaign_pipeline.defs.stopping import fail_if_run_ended, why_to_stop
from campaign_pipeline.defs.tags import CAMPAIGNS, MESSAGES

BATCH_COLUMNS = dict.fromkeys(ClaimedMessage.__slots__, "string") | {"due_at": INSTANT, "retry_count": "int64"}
"""Columns of the table of claimed messages, with their kinds; so are those of the contexts."""

CONTEXT_COLUMNS = dict.fromkeys(("lead_id", "phone", "context"), "string")

Number = TypeVar("Number", int, float)


@contextlib.contextmanager
def plain_failures() -> Iterator[None]:
    """Let an error of the pipeline fail the step with one sentence instead of a traceback (I9)."""
    try:
        yield
    except (DatabaseUnusable, SettingError, StoreUnavailable) as error:
        raise dg.Failure(description=str(error)) from None


def _within(name: str, value: Number, lowest: int, highest: int) -> Number:
    if not lowest <= value <= highest:
        text = f"{name} is {value}, but must be between {lowest:,} and {highest:,}."
        raise dg.Failure(description=text, allow_retries=False)
    return value


class FetchMessageBatchConfig(dg.Config):
    """The size of a claim."""

    batch_size: int = Field(
        default=1000,
        description="Most due messages to claim, 1 to 10,000; a claimed message waits for its turn.",
    )
    look_ahead_seconds: float = Field(
        default=0.0,
        description="Also claim what is planned for so soon, 0 to 300. The whole batch is then sent by one step, "
        "send_batch, which waits for each message's planned time. The schedule looks 90 s ahead.",
    )


@dg.op(
    ins={"requeued": dg.In(dg.Nothing, description="What to wait for: in a back-fill, that failed messages are back.")},
    out={
        "message_batch": dg.Out(
            io_manager_key="tables",
            is_required=False,
            description="One row per claimed message, ids and times: to be cut into shards.",
        ),
        "whole_batch": dg.Out(
            io_manager_key="handles",
            is_required=False,
            description="The same, where the batch looks ahead: to be sent by one step.",
        ),
    },
)
def fetch_message_batch(
    context: dg.OpExecutionContext,
    config: FetchMessageBatchConfig,
    database: QueueDatabase,
    language_model: LanguageModelResource,
) -> Iterator[dg.Output[Any]]:
    """Recover expired leases, skip messages that are too old, and claim due messages, fairly between runs."""
    size = _within("batch_size", config.batch_size, 1, 10_000)
    ahead = _within("look_ahead_seconds", config.look_ahead_seconds, 0, 300)
    with plain_failures():
        settings = DeliverySettings.from_environment()
        _refuse_without_key(database, language_model)
        options = BatchOptions(
            batch_size=size,
            owner=lease_owner(context.run_id),
            lease_seconds=settings.lease_seconds,
            max_age=settings.max_age,
            max_wait_seconds=settings.max_inline_wait_seconds,
            ahead=timedelta(seconds=ahead),
        )
        batch, campaigns = run_async(_claim(context, database.url(), options))
        if batch.rows:
            # What a person looks for in the list of runs.
            context.instance.add_run_tags(
                context.run_id, {CAMPAIGNS: listed(campaigns), MESSAGES: str(len(batch.rows))}
            )
    if ahead:
        rows = [row.to_row() for row in batch.rows]
        describe_batch(context, batch, size, "whole_batch", {"dagster/row_count": len(rows)})
        yield dg.Output(rows, "whole_batch")
        return
    table = arrow_table({name: map(attrgetter(name), batch.rows) for name in BATCH_COLUMNS}, BATCH_COLUMNS)
    describe_batch(context, batch, size, "message_batch", table_metadata(table))
    yield dg.Output(table, "message_batch")


async def _claim(context: dg.OpExecutionContext, url: str, options: BatchOptions) -> tuple[Batch, list[str]]:
    """Apply events that wait, and claim a batch; return it with the names of its campaign runs."""
    async with kept_connection(url) as connection:
        await _settle_status_events(context, connection)
        await _settle_webhook_events(context, WebhookStore(url, connection=connection))
        batch = await Queue(connection).claim_batch(options)
        runs = {row.run_id for row in batch.rows}
        return batch, await Batches(connection).campaigns(runs) if runs else []


def _refuse_without_key(database: QueueDatabase, language_model: LanguageModelResource) -> None:
    if missing := language_model.missing_setting():
        with Operations(database.url()) as operations:
            missing = operations.look().blocked_by(missing)
        if missing:
            raise dg.Failure(description=f"{missing} Nothing was claimed.", allow_retries=False)


async def _settle_status_events(context: dg.OpExecutionContext, connection: Lender) -> None:
    """Apply Meta's status events of earlier parts to the ledger first; a failure here stops no message."""
    try:
        verdicts = await settle_status_events(connection, read_status)
    except psycopg.Error as error:
        context.log.warning(f"{type(error).__name__} while status events were settled; they wait for the next batch.")
        return
    if verdicts:
        context.log.info(f"Status events of the Cloud API: {', '.join(f'{n} {v}' for v, n in verdicts.items())}.")


async def _settle_webhook_events(context: dg.OpExecutionContext, events: WebhookStore) -> None:
    """Apply the events that our own webhook stored and could not apply before it ended."""
    try:
        verdicts = await events.settle()
        await events.drop_old()
    except (psycopg.Error, StoreUnavailable) as error:
        context.log.warning(f"{type(error).__name__} while webhook events were settled; they wait for the next batch.")
        return
    if verdicts:
        context.log.info(f"Events of the webhook: {', '.join(f'{n} {v}' for v, n in verdicts.items())}.")


def _plain(value: Any) -> Any:
    """Convert ids to text, as an output that is loaded again has them."""
    return str(value) if type(value).__name__ == "UUID" else value


@dg.op(
    out={
        "lead_contexts": dg.Out(io_manager_key="tables", description="One row per lead: phone and context."),
        "batch_settings": dg.Out(io_manager_key="handles", description="What the messages of the batch share."),
    }
)
def fetch_lead_contexts(
    context: dg.OpExecutionContext, database: QueueDatabase, message_batch: Rows
) -> tuple[Any, dict[str, Any]]:
    """Fetch the context of every lead of the batch in one statement, and the settings that its messages share."""
    with plain_failures():
        rows, settings = run_async(_read_contexts(database.url(), message_batch))
    contexts = arrow_table({name: column(rows, name) for name in CONTEXT_COLUMNS}, CONTEXT_COLUMNS)
    context.log_event(dg.AssetMaterialization("lead_contexts", metadata=table_metadata(contexts)))
    return contexts, settings


async def _read_contexts(
    url: str, messages: Sequence[Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Read the CRM's data of some messages' leads, in their order, and what the messages share."""
    pairs = dict.fromkeys(zip(column(messages, "lead_id"), column(messages, "workspace_id"), strict=True))
    asked = [(lead, workspace) for lead, workspace in pairs if lead]
    leads, workspaces = [lead for lead, _ in asked], [workspace for _, workspace in asked]
    shared = (
        [each for each in dict.fromkeys(column(messages, name)) if each]
        for name in ("config_id", "workspace_id", "inbox_id")
    )
    async with kept_connection(url) as connection:
        queue = Queue(connection)
        found = {row["lead_id"]: row for row in await queue.get_lead_contexts(leads, workspaces)}
        settings = await queue.get_batch_settings(*shared)
    return [found[lead] for lead in dict.fromkeys(leads) if lead in found], settings


class SplitIntoShardsConfig(dg.Config):
    """The size of a shard."""

    shard_size: int = Field(
        default=250,
        description="Most messages per mapped step, 1 to 10,000. 1 gives one step per message, at about "
        "a third of a second each.",
    )


@dg.op(out=dg.DynamicOut(io_manager_key="handles", description="The messages of one inbox for one step."))
def split_into_shards(config: SplitIntoShardsConfig, message_batch: Rows) -> Iterator[dg.DynamicOutput[dict[str, Any]]]:
    """Split the batch into shards, by inbox and then by size."""
    size = _within("shard_size", config.shard_size, 1, 10_000)
    for shard in split_batch(_members(message_batch), size):
        yield dg.DynamicOutput(shard.to_json(), mapping_key=shard.key)


def _members(messages: Sequence[Mapping[str, Any]]) -> Iterator[ShardMember]:
    return map(ShardMember, *(column(messages, name) for name in ShardMember._fields))


class SendShardConfig(dg.Config):
    """The concurrency of a shard."""

    concurrency: int = Field(
        default=20,
        description="Messages of the shard that are in flight at once, 1 to 500, in a sliding window.",
    )


@dg.op(out={"shard_report": dg.Out(io_manager_key="handles", description="Counts and times; no content.")})
def send_shard(
    context: dg.OpExecutionContext,
    config: SendShardConfig,
    database: QueueDatabase,
    providers: ProvidersResource,
    shard: dict[str, Any],
    lead_contexts: Rows,
    batch_settings: dict[str, Any],
) -> dict[str, Any]:
    """Write and send the messages of one shard; those that must wait return to the queue with the reason."""
    concurrency = _within("concurrency", config.concurrency, 1, 500)
    owner = step_owner(context.run_id, shard["key"])
    workers: list[ShardWorker] = []
    with plain_failures(), told_when_stopped(context, workers):
        _take_back_from_ended_steps(context, database.url(), shard)
        report = run_async(
            deliver(
                database.url(),
                Shard.from_json(shard),
                lead_contexts,
                BatchSettings.from_json(batch_settings),
                providers,
                concurrency,
                owner=owner,
                on_started=workers.append,
                tell=context.log.info,
                why_to_stop=partial(why_to_stop, context.instance, context.run_id),
            )
        )
    describe_shard(context, report)
    fail_if_run_ended(report.stopped_by)
    return report.to_json()


def _take_back_from_ended_steps(context: dg.OpExecutionContext, url: str, shard: dict[str, Any]) -> None:
    """Take over the messages of a repeated step's predecessor at once, instead of waiting for its leases to expire."""
    ended = ended_runs_before(context)
    if context.retry_number:
        ended.append(lease_owner(context.run_id))  # the earlier attempt of this step
    ended = [f"{run} {shard['key']}" for run in ended]
    if not ended:
        return
    for holder, count in run_async(Batches(url).end_leases(shard["message_ids"], ended)).items():
        context.log.info(
            f"{count} messages were held by {holder}, whose step has ended; this step continues with them."
        )


@dg.op(out={"closed_runs": dg.Out(io_manager_key="handles", description="The runs that this batch closed.")})
def close_completed_runs(
    context: dg.OpExecutionContext, database: QueueDatabase, shard_reports: list[Any], message_batch: Rows
) -> Iterator[dg.AssetCheckEvaluation | dg.Output[list[dict[str, Any]]]]:
    """Close each completed run exactly once, and report the outcome of the batch.

    Messages that the batch claimed and no step delivers any more return to the queue first; then the step fails,
    because a run that did not work its batch is no success.
    """
    closed, outcome = yield from _close(context, database, shard_reports, message_batch)
    context.add_output_metadata(describe_runs(context, shard_reports, closed), output_name="closed_runs")
    yield dg.Output([{key: _plain(value) for key, value in row.items()} for row in closed], "closed_runs")
    _fail_unless_worked(outcome)


def _close(
    context: dg.OpExecutionContext,
    database: QueueDatabase,
    shard_reports: Sequence[Mapping[str, Any]],
    batch: Sequence[Mapping[str, Any]],
) -> Generator[dg.AssetCheckEvaluation, None, tuple[list[dict[str, Any]], BatchOutcome]]:
    """Finish a batch and close runs; return the closed runs and the outcome of the batch."""
    with plain_failures():
        outcome, closed, runs = run_async(_finish(context, database.url(), shard_reports, batch))
    if shard_reports or closed or batch:  # an empty batch each minute would only fill Dagster's event log
        materialize_runs(context, runs, closed, outcome)
    if batch:
        yield from evaluations(context, outcome)
    return closed, outcome


def _fail_unless_worked(outcome: BatchOutcome) -> None:
    if not outcome.is_worked:
        raise dg.Failure(description=outcome.work_sentence(), allow_retries=False)


@dg.op(out={})
def send_batch(
    context: dg.OpExecutionContext,
    config: SendShardConfig,
    database: QueueDatabase,
    providers: ProvidersResource,
    whole_batch: list[Any],
) -> Iterator[dg.AssetCheckEvaluation]:
    """Write and send a batch that looks ahead: all inboxes at once, each message at its planned time.

    Then close completed runs. The batches of a minute are small, and their main cost is starting processes and
    Dagster's events per step, so this is one step in one process. For the same reason it has no output: the outcome
    of the batch is on the materialization of `campaign_runs`.
    """
    concurrency = _within("concurrency", config.concurrency, 1, 500)
    shards = split_batch(_members(whole_batch), len(whole_batch) or 1)
    workers: list[ShardWorker] = []
    with plain_failures(), told_when_stopped(context, workers):
        url = database.url()
        ended = ended_runs_before(context)
        if context.retry_number:
            ended.append(lease_owner(context.run_id))
        if whole_batch and ended:
            run_async(Batches(url).end_leases(column(whole_batch, "message_id"), ended))
        reports = run_async(_send_side_by_side(context, url, providers, whole_batch, shards, concurrency, workers))
    tell_of_shards(context, reports)
    fail_if_run_ended(next((report.stopped_by for report in reports if report.stopped_by), None))
    rows = [report.to_json() for report in reports]
    closed, outcome = yield from _close(context, database, rows, whole_batch)
    describe_runs(context, rows, closed)
    _fail_unless_worked(outcome)


async def _send_side_by_side(
    context: dg.OpExecutionContext,
    url: str,
    providers: ProvidersResource,
    rows: Sequence[Mapping[str, Any]],
    shards: Sequence[Shard],
    concurrency: int,
    workers: list[ShardWorker],
) -> list[ShardReport]:
    if not shards:
        return []
    contexts, settings = await _read_contexts(url, rows)
    return await deliver_side_by_side(
        url,
        shards,
        contexts,
        BatchSettings.from_json(settings),
        providers,
        concurrency,
        owner=lease_owner(context.run_id),
        on_started=workers.append,
        tell=context.log.info,
        why_to_stop=partial(why_to_stop, context.instance, context.run_id),
    )


async def _finish(
    context: dg.OpExecutionContext,
    url: str,
    shard_reports: Sequence[Mapping[str, Any]],
    batch: Sequence[Mapping[str, Any]],
) -> tuple[BatchOutcome, list[dict[str, Any]], list[RunAtWork]]:
    """Give back what is left of a batch, and close runs; return the outcome, the closed runs, and those at work."""
    async with kept_connection(url) as connection:
        outcome = await _settle_batch(context, Batches(connection), shard_reports, batch)
        closed = await Queue(connection).close_runs()
        return outcome, closed, await Reports(connection).runs_at_work([row["id"] for row in closed])


async def _settle_batch(
    context: dg.OpExecutionContext,
    batches: Batches,
    shard_reports: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
) -> BatchOutcome:
    """Give back what ended steps still hold of the batch, and count the outcome."""
    if not rows:
        return batch_outcome(0, BatchCounts(), 0, ())
    ids = column(rows, "message_id")
    # All shards of this run have ended, or this step would not run.
    ended = [lease_owner(context.run_id), *ended_runs_before(context)]
    taken_back = await batches.end_leases(ids, ended)
    given_back = sum(count for owner, count in taken_back.items() if owner.startswith(tuple(ended)))
    return batch_outcome(len(ids), await batches.count(ids), given_back, shard_reports)
