"""Requeues the messages that failed on a day: the first step of `retry_failed_messages`."""

from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

import dagster as dg
from pydantic import Field

from campaign_pipeline.adapters.operations import FailedMessages, Operations
from campaign_pipeline.defs.ops import plain_failures
from campaign_pipeline.defs.resources import QueueDatabase

ERROR_CLASSES = ("transient", "exhausted", "throttled", "systemic", "permanent", "unknown")


class RequeueFailedMessagesConfig(dg.Config):
    """Selects the day's failed messages to send again."""

    error_classes: list[str] = Field(
        default=["transient", "exhausted"],
        description="transient, exhausted, throttled, systemic; permanent (refused for good) and unknown (may have "
        "gone out: looked up once more, and sent again where it is not found) only where they are named.",
    )
    run_ids: list[str] = Field(default=[], description="Only messages of these campaign runs; empty: all runs.")
    campaign: str | None = Field(default=None, description="Only messages of this campaign (campaign_configs.id).")
    workspace: str | None = Field(default=None, description="Only messages of this workspace.")
    requeue_only: bool = Field(
        default=False,
        description="Only put them back in the queue; the schedule sends them, not this run.",
    )


@dg.op(
    out={
        "requeue_report": dg.Out(io_manager_key="handles", description="How many were found, and are due again."),
        "requeued": dg.Out(dg.Nothing, is_required=False, description="They are in the queue: go on and send."),
    }
)
def requeue_failed_messages(
    context: dg.OpExecutionContext, config: RequeueFailedMessagesConfig, database: QueueDatabase
) -> Iterator[dg.Output[Any]]:
    """Return the failed messages of the partition's day to the queue; sent parts stay sent.

    Idempotent: a message that was requeued or sent meanwhile is no longer failed, and one that fails again belongs to
    the day of its new failure.
    """
    wanted = _wanted(context, config)
    with plain_failures(), Operations(database.url()) as operations:
        done = operations.requeue_failed(wanted)
    context.log.info(
        f"{context.partition_key}: {done.found} failed messages of class {', '.join(wanted.error_classes)}; "
        f"{done.requeued} of them, of {done.runs} runs, are due again."
        + (f" {done.found - done.requeued} changed meanwhile." if done.found > done.requeued else "")
    )
    figures = {"found": done.found, "requeued": done.requeued, "runs": done.runs}
    yield dg.Output(figures, "requeue_report", metadata=figures)
    if config.requeue_only:
        context.log.info("Asked to requeue only: the schedule's next run sends them.")
    else:
        yield dg.Output(None, "requeued")


def _wanted(context: dg.OpExecutionContext, config: RequeueFailedMessagesConfig) -> FailedMessages:
    if not context.has_partition_key:
        raise _refusal("retry_failed_messages needs a day: choose a partition, such as 2026-03-31.")
    unknown = sorted(set(config.error_classes) - set(ERROR_CLASSES))
    if unknown or not config.error_classes:
        said = f"has {unknown[0]!r}" if unknown else "is empty"
        raise _refusal(f"error_classes {said}, but must name some of {', '.join(ERROR_CLASSES)}.")
    day = context.partition_time_window
    return FailedMessages(
        since=day.start,
        until=day.end,
        error_classes=config.error_classes,
        run_ids=_ids("run_ids", config.run_ids) or None,
        config_id=next(iter(_ids("campaign", [config.campaign] if config.campaign else [])), None),
        workspace_id=next(iter(_ids("workspace", [config.workspace] if config.workspace else [])), None),
    )


def _ids(field: str, values: Sequence[str]) -> list[UUID]:
    def parsed(value: str) -> UUID:
        try:
            return UUID(value)
        except ValueError:
            raise _refusal(f"{field} has {value!r}, but must be a UUID as in the CRM's id columns.") from None

    return [parsed(value) for value in values]


def _refusal(text: str) -> dg.Failure:
    return dg.Failure(description=text, allow_retries=False)
