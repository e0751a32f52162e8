"""What is kept for a while only. Everything goes in small batches, and each step says how much it removed."""

from collections.abc import Iterator
from datetime import datetime, timedelta

import dagster as dg
from dagster import DagsterInstance, DagsterRunStatus, RunsFilter
from pydantic import Field

from campaign_pipeline.adapters.environment import Environment, OperationsSettings
from campaign_pipeline.adapters.operations import Operations
from campaign_pipeline.defs.io import PrivateFiles
from campaign_pipeline.defs.ops import plain_failures
from campaign_pipeline.defs.resources import QueueDatabase

UNTRIED_PAUSE_DAYS = 7
RUNS_AT_A_TIME = 50
OUR_JOBS = (
    "process_campaign_queue",
    "retry_failed_messages",
    "clean_up_old_data",
    "refresh_campaign_report",
    "check_campaign_queue",
    "trickle_demo_campaign",
)
"""Whose runs are ours to delete: an instance may serve other code locations too."""

_FINISHED = [DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED]


class KeepConfig(dg.Config):
    """How long to keep it."""

    keep_days: int | None = Field(
        default=None, description="Days to keep, at least 1; unset: as the environment says (CAMPAIGN_KEEP_…_DAYS)."
    )


def _days(config: KeepConfig, default: int) -> int:
    days = default if config.keep_days is None else config.keep_days
    if days < 1:
        raise dg.Failure(description=f"keep_days is {days}, but must be at least 1.", allow_retries=False)
    return days


@dg.op(out={"deleted_outputs": dg.Out(io_manager_key="handles", description="How many files.")})
def delete_old_outputs(context: dg.OpExecutionContext, config: KeepConfig, database: QueueDatabase) -> int:
    """Delete the step outputs of runs that wrote nothing for CAMPAIGN_KEEP_OUTPUTS_DAYS: they hold personal data.

    Such a run can be re-executed as a whole, but not from failure any more.
    """
    with plain_failures():
        days = _days(config, OperationsSettings.from_environment().keep_outputs_days)
        with Operations(database.url()) as operations:
            before = operations.now() - timedelta(days=days)
    folders, files = PrivateFiles(Environment.read().outputs_path).delete_older_than(before)
    context.log.info(f"Deleted {files} output files of {folders} runs that are older than {days} days.")
    context.add_output_metadata({"files": files, "runs": folders, "keep_days": days}, output_name="deleted_outputs")
    return files


@dg.op(out={"deleted_logs": dg.Out(io_manager_key="handles", description="How many rows.")})
def delete_old_logs(context: dg.OpExecutionContext, config: KeepConfig, database: QueueDatabase) -> int:
    """Delete rows of campaign_logs after CAMPAIGN_KEEP_LOGS_DAYS, and pauses of which nothing is left but their row."""
    with plain_failures():
        days = _days(config, OperationsSettings.from_environment().keep_logs_days)
        with Operations(database.url()) as operations:
            rows, pauses = operations.delete_old_logs(days), operations.delete_spent_pauses(UNTRIED_PAUSE_DAYS)
    context.log.info(f"Deleted {rows} rows of campaign_logs older than {days} days, and {pauses} spent pauses.")
    context.add_output_metadata({"rows": rows, "pauses": pauses, "keep_days": days}, output_name="deleted_logs")
    return rows


@dg.op(out={"deleted_runs": dg.Out(io_manager_key="handles", description="How many runs.")})
def delete_old_runs(context: dg.OpExecutionContext, config: KeepConfig, database: QueueDatabase) -> int:
    """Delete finished Dagster runs of this code location and all their events after CAMPAIGN_KEEP_RUNS_DAYS.

    Dagster itself keeps event logs for ever. Other code locations' runs are theirs to keep.
    """
    with plain_failures():
        days = _days(config, OperationsSettings.from_environment().keep_runs_days)
        with Operations(database.url()) as operations:
            before = operations.now() - timedelta(days=days)
    deleted = 0
    for run_id in _old_runs(context.instance, before):
        context.instance.delete_run(run_id)
        deleted += 1
    context.log.info(f"Deleted {deleted} Dagster runs that ended more than {days} days ago, and their events.")
    context.add_output_metadata({"runs": deleted, "keep_days": days}, output_name="deleted_runs")
    return deleted


def _old_runs(instance: DagsterInstance, before: datetime) -> Iterator[str]:
    """The runs of our jobs that ended before that; each must be gone before the next is asked for."""
    for job in OUR_JOBS:
        wanted = RunsFilter(job_name=job, statuses=_FINISHED, updated_before=before)
        while run_ids := instance.get_run_ids(wanted, limit=RUNS_AT_A_TIME):
            yield from run_ids
