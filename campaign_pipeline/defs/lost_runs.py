"""Runs of the queue whose process is gone.

A host that lost power tells nobody, and Dagster believes for hours that its runs are at work. Such a run has no message
under a live lease, and its process does not show itself any more: it does not count as a run at work, and it is ended
with a sentence, by Dagster's own means. Should its process live after all, no harm is done: leases decide what may be
sent, not a run's status, and the process stops when it learns of it.
"""

from collections.abc import Iterator
from datetime import timedelta

import dagster as dg
from dagster import DagsterInstance, DagsterRunStatus, RunRecord, RunsFilter

from campaign_pipeline.adapters.environment import DeliverySettings, SettingError
from campaign_pipeline.adapters.operations import Holders, Operations
from campaign_pipeline.adapters.schema import DatabaseUnusable
from campaign_pipeline.core.ports import StoreUnavailable
from campaign_pipeline.defs.jobs import process_campaign_queue, retry_failed_messages
from campaign_pipeline.defs.resources import QueueDatabase
from campaign_pipeline.defs.tags import OWNERS

ABSENT = timedelta(seconds=75)
"""For how long a run's process may not show itself (`defs.presence`): five beats. Its leases last longer, as a rule."""

QUIET = timedelta(minutes=4)
"""How long a run with nothing in hand may be silent whose process has never shown itself: it did not start."""

TO_START = [DagsterRunStatus.NOT_STARTED, DagsterRunStatus.STARTING]
AT_WORK = [*TO_START, DagsterRunStatus.STARTED]


def holders(database: QueueDatabase) -> Holders:
    """Who holds messages under a live lease. Raises as `Operations` does."""
    with Operations(database.url()) as operations:
        return operations.holders()


def is_lost(instance: DagsterInstance, record: RunRecord, held: Holders) -> bool:
    """Whether nobody works on a run any more that Dagster believes to be starting or started."""
    run_id = record.dagster_run.run_id
    if held.has(run_id):
        return False
    silent = held.silent(run_id)
    if silent is not None:
        return silent > ABSENT
    # Waiting for a lease to expire is a way of being at work, too: twice its length, if that is longer.
    quiet = max(QUIET, timedelta(seconds=2 * DeliverySettings.from_environment().lease_seconds))
    newest = instance.get_records_for_run(run_id, limit=1, ascending=False).records
    last = newest[0].event_log_entry.timestamp if newest else record.create_timestamp.timestamp()
    return held.now.timestamp() - last > quiet.total_seconds()


def lost_runs(instance: DagsterInstance, database: QueueDatabase) -> Iterator[dg.DagsterRun]:
    """The runs of the queue that are lost. Raises as `Operations` does where the database cannot be asked."""
    records = [
        record
        for job in (process_campaign_queue, retry_failed_messages)
        for record in instance.get_run_records(RunsFilter(job_name=job.name, statuses=AT_WORK))
    ]
    if not records:
        return
    held = holders(database)
    yield from (record.dagster_run for record in records if is_lost(instance, record, held))


@dg.sensor(
    name="lost_run_cleanup",
    minimum_interval_seconds=30,
    owners=OWNERS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Ends runs of the queue whose process is gone: no live lease, and no heartbeat.",
)
def lost_run_cleanup(context: dg.SensorEvaluationContext, database: QueueDatabase) -> dg.SkipReason:
    """End what a host that lost power left started."""
    try:
        lost = list(lost_runs(context.instance, database))
    except (DatabaseUnusable, SettingError, StoreUnavailable) as error:
        return dg.SkipReason(f"It is unknown which runs still hold messages: {error}")
    for run in lost:
        context.instance.report_run_failed(
            run,
            "The process of this run is gone: it holds no message under a live lease, and has shown no sign of life "
            "for minutes. Nothing is lost: what it held is due again, and the next batch takes it up where it stood. "
            "What it printed last is in its compute logs, if its machine still has them.",
        )
    if not lost:
        return dg.SkipReason("No run is lost.")
    with Operations(database.url()) as operations:
        for run in lost:
            operations.forget_presence(run.run_id)
    return dg.SkipReason(f"Ended {len(lost)} lost runs: {', '.join(run.run_id[:8] for run in lost)}.")
