"""Deletes expired data in small batches; each step logs how much it deleted."""

import contextlib
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import dagster as dg
from dagster import DagsterInstance, DagsterRunStatus, RunsFilter
from pydantic import Field

from campaign_pipeline.adapters.dagster_home import CODE_LOCATION
from campaign_pipeline.adapters.environment import Environment, OperationsSettings
from campaign_pipeline.adapters.operations import Operations
from campaign_pipeline.defs.io import PrivateFiles
from campaign_pipeline.defs.ops import plain_failures
from campaign_pipeline.defs.resources import QueueDatabase
from campaign_pipeline.defs.tags import WORK

MODULE = "campaign_pipeline.definitions"
"""The module of the code location; also its name, unless it was given one."""

UNTRIED_PAUSE_DAYS = 7
RUNS_AT_A_TIME = 50
OUR_JOBS = (
    "process_campaign_queue",
    "retry_failed_messages",
    "plan_campaign_runs",
    "preview_messages",
    "approve_messages",
    "clean_up_old_data",
    "refresh_campaign_report",
    "check_campaign_queue",
    "trickle_demo_campaign",
    "refresh_overview",
    "explain_message",
    "pause_sending",
    "resume_sending",
    "cancel_campaign_run",
    "resend_messages",
    "lift_pause",
)
"""Jobs whose runs may be ours to delete; see `_is_ours`: an instance may serve other code locations too."""

_FINISHED = [DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED]


class KeepConfig(dg.Config):
    """The retention time."""

    keep_days: int | None = Field(default=None, description="Days to keep, at least 1. Default: CAMPAIGN_KEEP_…_DAYS.")


def _days(config: KeepConfig, default: int) -> int:
    days = default if config.keep_days is None else config.keep_days
    if days < 1:
        raise dg.Failure(description=f"keep_days is {days}, but must be at least 1.", allow_retries=False)
    return days


@dg.op(out={"deleted_outputs": dg.Out(io_manager_key="handles", description="How many files.")})
def delete_old_outputs(context: dg.OpExecutionContext, config: KeepConfig, database: QueueDatabase) -> int:
    """Delete the step outputs of runs that wrote nothing for CAMPAIGN_KEEP_OUTPUTS_DAYS: they contain personal data.

    Such a run can be re-executed as a whole, but no longer from failure. Recently erased leads are removed from the
    remaining outputs again: another machine may have erased them, or a batch was being written at that time.
    """
    with plain_failures():
        days = _days(config, OperationsSettings.from_environment().keep_outputs_days)
        with Operations(database.url()) as operations:
            before, erased = operations.now() - timedelta(days=days), operations.erased_leads(days + 1)
    outputs = PrivateFiles(Environment.read().outputs_path)
    folders, files = outputs.delete_older_than(before)
    for lead_id in erased:
        with _told(context, f"The erased lead {lead_id} may still be in some output files"):
            outputs.forget_lead(lead_id)
    context.log.info(f"Deleted {files} output files of {folders} runs that are older than {days} days.")
    context.add_output_metadata({"files": files, "runs": folders, "keep_days": days}, output_name="deleted_outputs")
    return files


@dg.op(out={"deleted_logs": dg.Out(io_manager_key="handles", description="How many rows.")})
def delete_old_logs(context: dg.OpExecutionContext, config: KeepConfig, database: QueueDatabase) -> int:
    """Delete rows of campaign_logs and refused texts after CAMPAIGN_KEEP_LOGS_DAYS, and obsolete pauses."""
    with plain_failures():
        days = _days(config, OperationsSettings.from_environment().keep_logs_days)
        with Operations(database.url()) as operations:
            rows, pauses = operations.delete_old_logs(days), operations.delete_spent_pauses(UNTRIED_PAUSE_DAYS)
            texts = operations.delete_old_model_calls(days)
    context.log.info(
        f"Deleted {rows} rows of campaign_logs and {texts} refused or changed texts older than {days} days, "
        f"and {pauses} spent pauses."
    )
    context.add_output_metadata(
        {"rows": rows, "texts": texts, "pauses": pauses, "keep_days": days}, output_name="deleted_logs"
    )
    return rows


@dg.op(out={"deleted_runs": dg.Out(io_manager_key="handles", description="How many runs.")})
def delete_old_runs(context: dg.OpExecutionContext, config: KeepConfig, database: QueueDatabase) -> int:
    """Delete finished Dagster runs of this code location, with events and compute logs, after CAMPAIGN_KEEP_RUNS_DAYS.

    Dagster itself keeps them for ever. Runs of other code locations are not touched, even if their jobs have our names.
    """
    with plain_failures():
        days = _days(config, OperationsSettings.from_environment().keep_runs_days)
        with Operations(database.url()) as operations:
            now = operations.now()
    before = now - timedelta(days=days)
    old = [run_id for job in OUR_JOBS for run_id in _old_runs(context.instance, context.run, job, before)]
    for run_id in old:
        with _told(context, f"The compute logs of run {run_id[:8]} could not be deleted"):
            context.instance.compute_log_manager.delete_logs(prefix=[run_id])
        context.instance.delete_run(run_id)
    # Except those of a run that is being created right now.
    forgotten = list(_logs_without_run(context.instance, now - timedelta(days=1)))
    for run_id in forgotten:
        with _told(context, f"The compute logs of run {run_id[:8]}, which was deleted, could not be deleted"):
            # Only these: another code location may store its runs' outputs beside them.
            context.instance.compute_log_manager.delete_logs(prefix=[run_id, LOG_FOLDER])
    context.log.info(f"Deleted the compute logs of {len(forgotten)} runs that somebody had deleted.")
    context.log.info(f"Deleted {len(old)} Dagster runs that ended more than {days} days ago, and their events.")
    context.add_output_metadata({"runs": len(old), "keep_days": days}, output_name="deleted_runs")
    return len(old)


@contextlib.contextmanager
def _told(context: dg.OpExecutionContext, what: str) -> Iterator[None]:
    """Log an error of a store of any kind; the other clean-ups continue."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - each store has its own errors
        context.log.warning(f"{what}: {type(error).__name__}.")


LOG_FOLDER = "compute_logs"
"""In the folder of each run: the steps' output that Dagster stores on a local disk."""


def _logs_without_run(instance: DagsterInstance, before: datetime) -> Iterator[str]:
    """Yield runs that were deleted in the UI or a shell, which leaves their compute logs on a local disk.

    In a bucket, its life-cycle rule deletes them.
    """
    local_path = getattr(instance.compute_log_manager, "get_captured_local_path", None)
    if local_path is None:
        return
    base = Path(local_path(["run", LOG_FOLDER, "step"], "out")).parents[2]
    for folder in base.iterdir() if base.is_dir() else ():
        is_run = (folder / LOG_FOLDER).is_dir() and folder.stat().st_mtime < before.timestamp()
        if is_run and not instance.has_run(folder.name):
            yield folder.name


def _old_runs(instance: DagsterInstance, own: dg.DagsterRun, job: str, before: datetime) -> Iterator[str]:
    """Yield the runs of one of our jobs that ended before an instant, read in small pages."""
    wanted = RunsFilter(job_name=job, statuses=_FINISHED, updated_before=before)
    cursor: str | None = None
    while runs := instance.get_runs(wanted, cursor=cursor, limit=RUNS_AT_A_TIME):
        cursor = runs[-1].run_id
        yield from (run.run_id for run in runs if _is_ours(instance, run, own))


def _is_ours(instance: DagsterInstance, run: dg.DagsterRun, own: dg.DagsterRun) -> bool:
    """Return whether a run of a job with one of our names belongs to the code location of `own`.

    A run shows its origin in one of three ways: its code location if a daemon or the UI launched it, its module if a
    shell did, and otherwise only the tag that all our jobs have.
    """
    if run.remote_job_origin is not None:
        location = run.remote_job_origin.location_name
        if own.remote_job_origin is not None:
            return location == own.remote_job_origin.location_name
        return location in {CODE_LOCATION, MODULE}  # launched from a shell, where locations have no names
    if run.job_code_origin is not None:
        pointer = run.job_code_origin.get_repo_pointer()
        module = getattr(pointer, "module", None) or Path(getattr(pointer, "python_file", "")).as_posix()
        return bool(module == MODULE or module.endswith(MODULE.replace(".", "/") + ".py"))
    if WORK in run.tags or run.job_snapshot_id is None:
        return WORK in run.tags
    return WORK in instance.get_job_snapshot(run.job_snapshot_id).tags
