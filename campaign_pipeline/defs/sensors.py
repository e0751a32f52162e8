"""Sensors that notify a person, once per cause: failed runs, and a queue that does not move."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import orjson
from dagster import DagsterInstance, DagsterRunStatus, RunsFilter

from campaign_pipeline.adapters.doctor import disk_finding
from campaign_pipeline.adapters.environment import Environment, OperationsSettings, SettingError
from campaign_pipeline.adapters.findings import Finding, State
from campaign_pipeline.adapters.first_day import keep_first_day
from campaign_pipeline.adapters.notices import Notices
from campaign_pipeline.adapters.schema import DatabaseUnusable
from campaign_pipeline.core.notices import Concern, Standing, counted
from campaign_pipeline.core.ports import StoreUnavailable
from campaign_pipeline.core.upkeep import OVERDUE
from campaign_pipeline.defs.days import at, days
from campaign_pipeline.defs.notices import (
    Desk,
    causes_of,
    day_to_summarize,
    failed_title,
    fingerprint,
    tell_concerns,
    tell_failed_run,
    tell_summary,
)
from campaign_pipeline.defs.resources import LanguageModelResource, QueueDatabase
from campaign_pipeline.defs.tags import OWNERS

MOST_CAUSES = 20

UNREADABLE = "unreadable"
"""In the cursor: since when the queue is unreadable, which the database cannot store."""

SUMMARIZED = "summarized"
"""In the cursor: the day whose summary was sent."""

HELD = "held"
"""In the cursor: the runs that some cause held, and when that was last seen, in epoch seconds."""


@dg.run_failure_sensor(
    name="run_failure_notifications",
    minimum_interval_seconds=120,  # each evaluation opens Dagster's instance, see `resources.QueueDatabase`
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Reports a failed run: once per job and cause, and again when the job succeeds.",
)
def run_failure_notifications(context: dg.RunFailureSensorContext, database: QueueDatabase) -> dg.SkipReason:
    """Notify of a failed run, with the error of the step that failed."""
    run, instance, desk = context.dagster_run, context.instance, Desk(context.log.warning)
    # A run that died has an event with the time it was noticed, so this is never empty.
    causes = causes_of(instance, run.run_id) or [context.failure_event.message or "No reason was given."]
    record = instance.get_run_record_by_id(run.run_id)
    try:
        with Notices(database.url()) as notices:
            at = datetime.fromtimestamp(record.end_time, UTC) if record and record.end_time else notices.now()
            text = tell_failed_run(desk, notices, run, causes[:MOST_CAUSES], at)
    except (DatabaseUnusable, SettingError, StoreUnavailable):
        text = _tell_without_database(desk, instance, run, causes[:MOST_CAUSES])
    if desk.troubles:
        context.log.error(" ".join(desk.troubles))
    return dg.SkipReason(text)


def _tell_without_database(desk: Desk, instance: DagsterInstance, run: dg.DagsterRun, causes: list[str]) -> str:
    """Notify without the table of notices, unless the previous run failed for the same reason."""
    finished = [DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED]
    wanted = RunsFilter(job_name=run.job_name, statuses=finished)
    before = next(iter(instance.get_runs(wanted, cursor=run.run_id, limit=1)), None)
    failed_before = before is not None and before.status == DagsterRunStatus.FAILURE
    if before and failed_before and fingerprint(causes_of(instance, before.run_id)) == fingerprint(causes):
        return f"Told already: run {before.run_id[:8]} of {run.job_name}, before it, failed of the same."
    title = failed_title(run)
    told = desk.tell(title, [*causes, f"Run id {run.run_id}."], f"runs/{run.run_id}", "The run")
    return f"{title}: told." if told else f"{title}, which nobody but this log was told: {' '.join(desk.troubles)}"


@dg.sensor(
    name="backlog_notifications",
    minimum_interval_seconds=60,
    owners=OWNERS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Reports each cause that needs a person: overdue messages; inboxes, keys and settings that keep "
    "messages waiting; unknown outcomes; a full disk. Repeats it after hours, and reports its end. At 18:00 a summary.",
)
def backlog_notifications(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Notify of what is new since the last tick; failed notifications are retried at the next."""
    state: dict[str, Any] = orjson.loads(context.cursor) if context.cursor else {}
    state = {key: state[key] for key in (UNREADABLE, SUMMARIZED, HELD) if key in state}
    desk = Desk(lambda text: context.log.warning(text))  # noqa: PLW0108 (`context.log` opens Dagster's instance)
    try:
        with Notices(QueueDatabase().url()) as notices:
            now = notices.now()
            keep_first_day(Environment.read().home, notices.first_day(str(days.timezone)))
            _tell_readable(desk, state)
            findings = [*notices.surroundings(), disk_finding(Environment.read().home)]
            concerns = {concern.key: concern for concern in _concerns(notices, LanguageModelResource(), findings)}
            _leave_time_to_catch_up(concerns, state, now, notices.standing())
            begun, ended = tell_concerns(desk, notices, lambda: context.instance, concerns, now)
            day = day_to_summarize(now, state.get(SUMMARIZED))
            if day and tell_summary(desk, notices, context.instance, day, now, findings):
                state[SUMMARIZED] = day
        text = f"Told: {begun} new, {ended} over, {len(concerns)} in all." if begun or ended else _standing(concerns)
    except (DatabaseUnusable, SettingError, StoreUnavailable) as error:
        text = _tell_unreadable(desk, state, str(error), context.last_tick_completion_time)
    if desk.troubles:
        text = f"Not told, to be tried again at the next tick: {' '.join(desk.troubles)}"
        context.log.error(text)
    cursor = orjson.dumps(state, option=orjson.OPT_SORT_KEYS).decode()
    return dg.SensorResult(skip_reason=text, cursor=cursor)


def _leave_time_to_catch_up(
    concerns: dict[str, Concern], state: dict[str, Any], now: datetime, standing: Mapping[str, Standing]
) -> None:
    """Drop messages that are late for a reported cause that ended recently."""
    oldest = now.timestamp() - OperationsSettings.from_environment().overdue_minutes * 60
    held = {run: at for run, at in state.get(HELD, {}).items() if at >= oldest}
    held |= {str(run): now.timestamp() for key, each in concerns.items() if key != OVERDUE for run in each.runs}
    state[HELD] = held
    late = concerns.get(OVERDUE)
    if late is not None and OVERDUE not in standing and {str(run) for run in late.runs} <= held.keys():
        del concerns[OVERDUE]


def _standing(concerns: dict[str, Concern]) -> str:
    return f"Told before: {counted(len(concerns), 'concern', 'concerns')}." if concerns else "All is well."


def _tell_unreadable(desk: Desk, state: dict[str, Any], reason: str, readable: float | None) -> str:
    """Notify that the database is unreadable. `readable`: when the last tick ended, in epoch seconds; None at first."""
    if UNREADABLE in state:
        return "The queue cannot be read, as was told before."
    text = "Nothing is sent meanwhile, and nothing is lost. It goes on by itself when the database answers again."
    if desk.tell("The queue cannot be read", [reason, text]):
        state[UNREADABLE] = readable
    return "Told: the queue cannot be read."


def _tell_readable(desk: Desk, state: dict[str, Any]) -> None:
    if UNREADABLE in state:
        since = state[UNREADABLE]
        last = f" It could last be read at {at(datetime.fromtimestamp(since, UTC))}." if since else ""
        line = f"The queue can be read again.{last}"
        if desk.tell("Over: the queue cannot be read", [line]):
            del state[UNREADABLE]


def _concerns(
    notices: Notices, language_model: LanguageModelResource, findings: Sequence[Finding]
) -> Iterator[Concern]:
    """Return what needs a person now, by the doctor's checks."""
    overdue = timedelta(minutes=OperationsSettings.from_environment().overdue_minutes)
    found = notices.concerns(overdue, language_model.missing_setting())
    yield from found
    stopping: dict[str, list[Finding]] = {}
    for finding in findings:
        if finding.state is State.STOPS:
            stopping.setdefault(finding.what, []).append(finding)
    if any(concern.key.startswith("invalid_window:") for concern in found):
        stopping.pop("window", None)  # told together with what it holds
    for what, same in stopping.items():
        text = " ".join(f"{finding.found}." for finding in same)
        yield Concern(what, f"{text[0].upper()}{text[1:]}", same[0].todo.removesuffix("."), size=len(same))
