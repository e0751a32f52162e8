"""What a person is told of, once each: runs that failed, and a queue that does not move."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta

import dagster as dg
import orjson
from dagster import DagsterInstance, DagsterRunStatus, RunsFilter

from campaign_pipeline.adapters.environment import NotifierSettings, OperationsSettings, SettingError
from campaign_pipeline.adapters.notify import Notice, Notifier
from campaign_pipeline.adapters.operations import Operations
from campaign_pipeline.adapters.schema import DatabaseUnusable
from campaign_pipeline.core.ports import StoreUnavailable
from campaign_pipeline.core.upkeep import Concern, backlog_cutoffs, find_concerns
from campaign_pipeline.defs.resources import LanguageModelResource, QueueDatabase

MOST_LINES = 20


@dg.run_failure_sensor(
    name="run_failure_notifications",
    minimum_interval_seconds=15,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Tells of every run that failed; not again where the run before failed of the same.",
)
def run_failure_notifications(context: dg.RunFailureSensorContext) -> dg.SkipReason:
    """Tell of a run that failed, with the sentence of the step that did."""
    run, instance = context.dagster_run, context.instance
    # A run that died says when it was noticed, so this is never empty.
    causes = _causes(instance, run.run_id) or [context.failure_event.message or "No reason was given."]
    before = _run_before(instance, run)
    if before and before.status == DagsterRunStatus.FAILURE and _causes(instance, before.run_id) == causes:
        return dg.SkipReason(f"Told already: run {before.run_id[:8]} of {run.job_name}, before it, failed of the same.")
    title = f"The run {run.run_id[:8]} of {run.job_name} failed"
    troubles = _notifier(context.log.warning).tell(Notice(title, [*causes[:MOST_LINES], f"Run id {run.run_id}."]))
    if troubles:
        context.log.error(" ".join(troubles))
        return dg.SkipReason(f"{title}, which nobody but this log was told: {' '.join(troubles)}")
    return dg.SkipReason(f"{title}: told.")


def _causes(instance: DagsterInstance, run_id: str) -> list[str]:
    """A sentence for each step that failed."""
    records = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.STEP_FAILURE).records
    return sorted(
        {
            sentence
            for record in records
            if record.event_log_entry.dagster_event is not None
            for sentence in _sentences(record.event_log_entry.dagster_event)
        }
    )


def _sentences(event: dg.DagsterEvent) -> Iterator[str]:
    data = event.step_failure_data
    told = data.user_failure_data.description if data.user_failure_data else None
    if told:
        yield told
    elif data.error is not None:
        error = data.error.cause or data.error
        yield f"{event.step_key}: {error.cls_name or 'error'}; see the run's log."


def _run_before(instance: DagsterInstance, run: dg.DagsterRun) -> dg.DagsterRun | None:
    """The run of the same job that was made before this one, if it has ended."""
    finished = [DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED]
    wanted = RunsFilter(job_name=run.job_name, statuses=finished)
    return next(iter(instance.get_runs(wanted, cursor=run.run_id, limit=1)), None)


@dg.sensor(
    name="backlog_notifications",
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Tells once of what needs a person: overdue messages, inboxes that are paused or disconnected with "
    "messages waiting, outcomes that nobody knows; and once when it is over.",
)
def backlog_notifications(
    context: dg.SensorEvaluationContext, database: QueueDatabase, language_model: LanguageModelResource
) -> dg.SensorResult:
    """Tell what is new since the last tick; what could not be told is told at the next."""
    told: dict[str, int] = orjson.loads(context.cursor) if context.cursor else {}
    concerns = {concern.key: concern for concern in _concerns(database, language_model)}
    news = [concern for key, concern in concerns.items() if key not in told or concern.size > told[key]]
    over = sorted(told.keys() - concerns.keys())
    standing = {key: min(concerns[key].size, size) for key, size in told.items() if key in concerns}
    if not news and not over:
        text = f"{len(concerns)} concerns, all told before." if concerns else "All is well."
        return dg.SensorResult(skip_reason=text, cursor=_cursor(standing))
    troubles = _notifier(context.log.warning).tell(_notice(news, over))
    if troubles:
        text = f"Not told, to be tried again at the next tick: {' '.join(troubles)}"
        context.log.error(text)
        return dg.SensorResult(skip_reason=text, cursor=_cursor(told))
    told_now = standing | {concern.key: concern.size for concern in news}
    return dg.SensorResult(
        skip_reason=f"Told: {len(news)} new, {len(over)} over, {len(concerns)} in all.", cursor=_cursor(told_now)
    )


def _concerns(database: QueueDatabase, language_model: LanguageModelResource) -> Iterator[Concern]:
    overdue = timedelta(minutes=OperationsSettings.from_environment().overdue_minutes)
    try:
        with Operations(database.url()) as operations:
            look = operations.look()
            backlog = operations.backlog(backlog_cutoffs(look, overdue))
            unknown = operations.unknown_messages()
    except (DatabaseUnusable, SettingError, StoreUnavailable) as error:
        yield Concern("database", f"The queue cannot be read: {error}")
        return
    if missing := look.blocked_by(language_model.missing_setting()):
        yield Concern("language_model", f"Messages are due, but nothing can be sent: {missing}")
    yield from find_concerns(look, backlog, unknown, overdue)


def _notice(news: Sequence[Concern], over: Sequence[str]) -> Notice:
    lines = [concern.text for concern in news] + [f"Over: {key.replace('_', ' ')}." for key in over]
    if len(lines) > MOST_LINES:
        lines = [*lines[:MOST_LINES], f"… and {len(lines) - MOST_LINES} more; see campaign_runs.wait_reason."]
    title = f"Campaigns: {len(news)} things need a person" if news else "Campaigns: what was told before is over"
    return Notice(title, lines)


def _cursor(told: Mapping[str, int]) -> str:
    return orjson.dumps(told, option=orjson.OPT_SORT_KEYS).decode()


def _notifier(log: Callable[[str], None]) -> Notifier:
    return Notifier(NotifierSettings.from_environment(), log)
