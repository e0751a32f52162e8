"""Detects and ends runs of the queue whose process is gone.

If a host loses power, Dagster treats its runs as running for hours. Such a run has no message under a live lease, and
its process no longer reports its presence. It does not count as a run at work, and a sensor ends it with a reason, by
Dagster's own means. If its process is alive after all, no harm is done: leases, not a run's status, decide what may be
sent, and the process stops when it learns of it.
"""

import json
from datetime import timedelta

import dagster as dg
from dagster import DagsterInstance, DagsterRunStatus, RunsFilter

from campaign_pipeline.adapters.environment import DeliverySettings, SettingError
from campaign_pipeline.adapters.operations import Holders, Operations
from campaign_pipeline.adapters.schema import DatabaseUnusable
from campaign_pipeline.core.ports import StoreUnavailable
from campaign_pipeline.defs.jobs import process_campaign_queue, retry_failed_messages
from campaign_pipeline.defs.resources import QueueDatabase
from campaign_pipeline.defs.tags import OWNERS

ABSENT = timedelta(seconds=75)
"""How long a run's process may be silent (`defs.presence`): five beats. Its leases usually last longer."""

QUIET = timedelta(minutes=4)
"""How long a run whose process has never shown itself may add no event while it holds no message: it did not start."""

TO_START = [DagsterRunStatus.NOT_STARTED, DagsterRunStatus.STARTING]
AT_WORK = [*TO_START, DagsterRunStatus.STARTED]


def holders(database: QueueDatabase) -> Holders:
    """Return who holds messages under a live lease. Raises like `Operations`."""
    with Operations(database.url()) as operations:
        return operations.holders()


def is_lost(run_id: str, held: Holders) -> bool:
    """Return whether the process of a run that Dagster treats as running reported its presence, and no longer does."""
    silent = held.silent(run_id)
    return silent is not None and silent > ABSENT and not held.has(run_id)


class SilentRuns:
    """Runs at work whose process has never shown itself: their newest event, and since when it has been the newest.

    That time is the database's, noted when the sensor first saw the event. An event's own time comes from the host that
    wrote it, whose clock may be wrong.
    """

    def __init__(self, cursor: str | None) -> None:
        """Read them from the sensor's cursor."""
        self._noted: dict[str, tuple[int, float]] = json.loads(cursor) if cursor else {}
        self._now: dict[str, tuple[int, float]] = {}

    def is_lost(self, instance: DagsterInstance, run_id: str, held: Holders) -> bool:
        """Whether the run has added no event for so long that it cannot have started."""
        if held.has(run_id) or held.silent(run_id) is not None:
            return False
        records = instance.get_records_for_run(run_id, limit=1, ascending=False).records
        newest = records[0].storage_id if records else 0
        event, since = self._noted.get(run_id, (None, 0.0))
        if event != newest:
            since = held.now.timestamp()
        self._now[run_id] = (newest, since)
        # A run may wait for a lease to expire, and adds no event meanwhile: allow two leases, if that is longer.
        quiet = max(QUIET, timedelta(seconds=2 * DeliverySettings.from_environment().lease_seconds))
        return held.now.timestamp() - since > quiet.total_seconds()

    def cursor(self) -> str:
        """Those that were asked about this time."""
        return json.dumps(self._now)


def _runs_at_work(instance: DagsterInstance) -> list[dg.DagsterRun]:
    jobs = {process_campaign_queue.name, retry_failed_messages.name}
    return [run for run in instance.get_runs(RunsFilter(statuses=AT_WORK)) if run.job_name in jobs]


@dg.sensor(
    name="lost_run_cleanup",
    minimum_interval_seconds=60,
    owners=OWNERS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Ends runs of the queue whose process is gone: no live lease, and no heartbeat.",
)
def lost_run_cleanup(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """End the runs that a host without power left running."""
    database = QueueDatabase()
    at_work = _runs_at_work(context.instance)
    if not at_work:
        return dg.SkipReason("No run is at work.")
    try:
        held = holders(database)
    except (DatabaseUnusable, SettingError, StoreUnavailable) as error:
        return dg.SkipReason(f"It is unknown which runs still hold messages: {error}")
    silent = SilentRuns(context.cursor)
    lost = [run for run in at_work if is_lost(run.run_id, held) or silent.is_lost(context.instance, run.run_id, held)]
    context.update_cursor(silent.cursor())
    for run in lost:
        context.instance.report_run_failed(
            run,
            "The process of this run is gone: it holds no message under a live lease, and has shown no sign of life "
            "for minutes. What it held is due again, and the next batch takes it up where it stood. "
            "What it printed last is in its compute logs, if its machine still has them.",
        )
    if not lost:
        return dg.SkipReason("No run is lost.")
    with Operations(database.url()) as operations:
        for run in lost:
            operations.forget_presence(run.run_id)
    return dg.SkipReason(f"Ended {len(lost)} lost runs: {', '.join(run.run_id[:8] for run in lost)}.")
