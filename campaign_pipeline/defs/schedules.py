"""Schedules for the queue: a tick every minute, and the next batch at once while full batches are due.

`process_campaign_queue_every_minute` launches a run only if it would find something to do; a skipped tick records the
reason. Expired leases, cancelled runs and completed runs count as work too: such a run claims nothing, and its log says
what it cleaned up, which a change made by the tick itself would not.

The schedule's batches claim what is planned within the next minute and a half. The sensor `next_batch_when_due`
launches runs for other messages within seconds (`defs.due`); it obeys the schedule's switch. One run is one batch: one
materialized table of claimed messages, one unit to re-run, fairness between campaigns and new settings in every batch.
A loop inside `send_shard` would lose all of that to save the start time of a run. Overlap hides that time instead:
while full batches are due, the next run is launched as soon as one has claimed, beside the one that sends.
`next_batch_after_run` continues a back-fill, which no schedule's switch stops, and full batches for which
CAMPAIGN_RUNS_AT_ONCE allowed no run to begin. It follows only automatically launched runs that claimed as much as they
could, and only until CAMPAIGN_DRAIN_MINUTES after the tick that began.

Overlapping runs are safe, because each message has one lease. Still, no more than CAMPAIGN_RUNS_AT_ONCE are launched,
and none while another has not claimed yet: both would look at the same messages.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg
from dagster import DagsterInstance, DagsterRunStatus, RunsFilter

from campaign_pipeline.adapters.environment import BusinessDays, DeliverySettings, OperationsSettings
from campaign_pipeline.adapters.operations import Operations
from campaign_pipeline.adapters.schema import Detached
from campaign_pipeline.core.upkeep import AHEAD, LaunchDecision, QueueLook, decide_launch
from campaign_pipeline.defs.assets import message_batch
from campaign_pipeline.defs.executor import IN_PROCESS
from campaign_pipeline.defs.jobs import clean_up_old_data, process_campaign_queue, retry_failed_messages
from campaign_pipeline.defs.lost_runs import AT_WORK, holders, is_lost
from campaign_pipeline.defs.resources import LanguageModelResource, QueueDatabase
from campaign_pipeline.defs.tags import MESSAGES, OWNERS

WHY = "campaign/why"
"""Tag: why a run was launched."""

DRAINING_SINCE = ".dagster/campaign_draining_since"
"""Tag: the tick that began to drain the queue, by the database's clock. The UI hides tags with this prefix."""

BACK_FILL = "campaign/back_fill"
"""Tag: the run of retry_failed_messages that this one continues, which no schedule's switch stops."""

SMALL_BATCH: dict[str, Any] = {
    "execution": IN_PROCESS,
    "ops": {"fetch_message_batch": {"config": {"look_ahead_seconds": AHEAD.total_seconds()}}},
}
"""Run config of a batch of one minute: one process, which waits for each message's planned time."""

_settings = OperationsSettings.from_environment()


USUAL_BATCH, LARGEST_BATCH = 1000, 10_000

MOST_TO_LOOK_AHEAD = 100
"""Due messages above which a batch is split into shards and does not look ahead."""


def look_and_decide(database: QueueDatabase) -> tuple[QueueLook, LaunchDecision, dict[str, Any]]:
    """Return the state of the queue, whether a run should be launched, and its config."""
    zone = ZoneInfo(BusinessDays.from_environment().timezone)
    with Operations(database.url()) as operations:
        look = operations.look()
        decision = decide_launch(look, DeliverySettings.from_environment().max_age, zone)
        due = operations.backlog(dict.fromkeys(decision.unpaced, look.now)) if look.is_due else {}
    messages = sum(backlog.messages for backlog in due.values())
    return look, decision, SMALL_BATCH if messages <= MOST_TO_LOOK_AHEAD else _large_batch(messages)


def _large_batch(due: int) -> dict[str, Any]:
    """Return the run config of a batch that is split into shards: all due messages, since the next waits for a tick."""
    return {"ops": {"fetch_message_batch": {"config": {"batch_size": min(LARGEST_BATCH, max(USUAL_BATCH, due))}}}}


def why_occupied(instance: DagsterInstance, database: QueueDatabase) -> str | None:
    """Return one sentence if enough runs are at work."""
    return runs_at_work(instance, database).obstacle


@dataclass(frozen=True)
class RunsAtWork:
    """How many more runs of the queue may be launched, or why none may."""

    room: int
    obstacle: str | None = None


def runs_at_work(instance: DagsterInstance, database: QueueDatabase) -> RunsAtWork:
    """Count the runs at work, without those whose process is gone (see `lost_runs`)."""
    statuses = [DagsterRunStatus.QUEUED, *AT_WORK]
    runs = instance.get_runs(RunsFilter(job_name=process_campaign_queue.name, statuses=statuses))
    limit = OperationsSettings.from_environment().runs_at_once
    if not runs:
        return RunsAtWork(limit)
    held = holders(database)
    working = []
    for run in runs:
        if run.status != DagsterRunStatus.QUEUED and is_lost(run.run_id, held):
            continue
        if run.status != DagsterRunStatus.STARTED or _is_about_to_claim(run):
            return RunsAtWork(0, f"Run {run.run_id[:8]} is about to start and takes what is due.")
        working.append(run.run_id[:8])
    if len(working) < limit:
        return RunsAtWork(limit - len(working))
    text = f"{len(working)} runs are at work ({', '.join(working)}), and CAMPAIGN_RUNS_AT_ONCE allows {limit}."
    return RunsAtWork(0, text)


def _is_about_to_claim(run: dg.DagsterRun) -> bool:
    """Whether a run that has started has not claimed its batch yet. A re-execution may never claim one."""
    return MESSAGES not in run.tags and run.parent_run_id is None


def why_no_model(look: QueueLook, language_model: LanguageModelResource) -> str | None:
    """Return why the model is unusable: each run would fail, one a minute. backlog_notifications tells a person."""
    missing = look.blocked_by(language_model.missing_setting())
    return f"{missing} No run is launched before that." if missing else None


@dg.schedule(
    job=process_campaign_queue,
    cron_schedule="* * * * *",
    owners=OWNERS,
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING if _settings.schedules_on else dg.DefaultScheduleStatus.STOPPED,
    description="Every minute: launches a run if there is work; otherwise records what it waits for.",
)
def process_campaign_queue_every_minute(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Launch a run if it would find something to do."""
    database, language_model = QueueDatabase(), LanguageModelResource()
    try:
        look, decision, run_config = look_and_decide(database)
    except Detached as error:
        return dg.SkipReason(str(error))
    if not decision.launch:
        return dg.SkipReason(decision.reason)
    obstacle = why_no_model(look, language_model) or why_occupied(context.instance, database)
    if obstacle:
        return dg.SkipReason(f"There is work ({decision.reason}), but: {obstacle}")
    return dg.RunRequest(
        # Keyed by the tick's minute: a tick that is evaluated twice launches one run.
        run_key=context.scheduled_execution_time.isoformat(),
        run_config=run_config,
        tags={WHY: decision.reason, DRAINING_SINCE: look.now.isoformat()},
    )


@dg.run_status_sensor(
    run_status=DagsterRunStatus.SUCCESS,
    name="next_batch_after_run",
    monitored_jobs=[process_campaign_queue, retry_failed_messages],
    request_job=process_campaign_queue,
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="While full batches are due: launches the next run as soon as one has ended.",
)
def next_batch_after_run(context: dg.RunStatusSensorContext, database: QueueDatabase) -> dg.RunRequest | dg.SkipReason:
    """Launch the next run if the one that ended left work behind."""
    return _follow(context.dagster_run, context.instance, database)


def _follow(run: dg.DagsterRun, instance: DagsterInstance, database: QueueDatabase) -> dg.RunRequest | dg.SkipReason:
    """Return the next run if a run left work behind that may be continued; at most one."""
    obstacle = _why_not_to_follow(run, instance)
    if obstacle:
        return dg.SkipReason(obstacle)
    try:
        look, decision, run_config = look_and_decide(database)
    except Detached as error:
        return dg.SkipReason(str(error))
    since = datetime.fromisoformat(run.tags[DRAINING_SINCE]) if DRAINING_SINCE in run.tags else look.now
    minutes = OperationsSettings.from_environment().drain_minutes
    if look.now - since >= timedelta(minutes=minutes):
        return dg.SkipReason(f"CAMPAIGN_DRAIN_MINUTES ({minutes:g}) are over: the schedule's next tick continues.")
    if not decision.launch:
        return dg.SkipReason(decision.reason)
    if not look.is_due:
        return dg.SkipReason(f"No message is due; the rest ({decision.reason}) is for the schedule's next tick.")
    occupied = why_occupied(instance, database)
    if occupied:
        return dg.SkipReason(f"There is work ({decision.reason}), but: {occupied}")
    back_fill = run.run_id if _is_back_fill(run) else run.tags.get(BACK_FILL)
    return dg.RunRequest(
        run_key=f"after {run.run_id}",
        run_config=run_config,
        tags={WHY: decision.reason, DRAINING_SINCE: since.isoformat(), **({BACK_FILL: back_fill} if back_fill else {})},
    )


def _is_back_fill(run: dg.DagsterRun) -> bool:
    return run.job_name == retry_failed_messages.name


def _why_not_to_follow(run: dg.DagsterRun, instance: DagsterInstance) -> str | None:
    """Return one sentence if no run may follow this one, whatever is due."""
    name = run.run_id[:8]
    if not _is_back_fill(run) and DRAINING_SINCE not in run.tags:
        return f"Run {name} was launched by a person, who asked for one batch."
    if not _is_back_fill(run) and BACK_FILL not in run.tags and not schedule_is_on(instance):
        return f"The schedule {process_campaign_queue_every_minute.name} is switched off."
    if not _claimed_all_it_might(instance, run.run_id):
        return f"Run {name} found less than a full batch: what becomes due is for the schedule's next tick."
    return None


def schedule_is_on(instance: DagsterInstance) -> bool:
    """Return whether the schedule runs: by its switch, else by its declared default.

    Dagster documents no way to read a switch; `all_instigator_state` is what its own UI uses. Only this function uses
    it.
    """
    for state in instance.all_instigator_state():
        named = state.instigator_name == process_campaign_queue_every_minute.name
        if named and state.status.value in {"RUNNING", "STOPPED"}:
            return state.status.value == "RUNNING"
    return process_campaign_queue_every_minute.default_status == dg.DefaultScheduleStatus.RUNNING


def _claimed_all_it_might(instance: DagsterInstance, run_id: str) -> bool:
    """Return whether a run's batch was full, by the figures of its materialization."""
    records = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION).records
    for record in records:
        table = record.event_log_entry.asset_materialization
        if table is not None and table.asset_key == message_batch.key:
            figures = {name: entry.value for name, entry in table.metadata.items()}
            return bool(figures.get("messages", 0) and figures["messages"] == figures.get("batch_size"))
    return False


@dg.schedule(
    job=clean_up_old_data,
    cron_schedule="30 3 * * *",
    owners=OWNERS,
    execution_timezone=BusinessDays.from_environment().timezone,
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Every night: deletes data past its retention. See CAMPAIGN_KEEP_…_DAYS.",
)
def clean_up_every_night(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    """Launch the clean-up."""
    return dg.RunRequest(run_key=context.scheduled_execution_time.isoformat())
