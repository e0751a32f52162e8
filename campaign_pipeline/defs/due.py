"""The sensor `next_batch_when_due`: it launches a run within seconds of something becoming due unplanned.

A message whose worker died becomes due again when its lease expires, unless another process took it over before.

An evaluation waits in the code server, and asks the database every second whether something is due. One question is one
short statement; one tick of Dagster's costs a hundred times more, and a row. Dagster allows an evaluation a minute, and
a code server that stops waits for it; so each ends after less than half a minute, and the next begins within seconds.

The daemon evaluates sensors in threads, so no other sensor waits for this one. Where dagster.yaml switches the threads
off (`sensors: {use_threads: false}`), the sensor only looks once each time.

While nothing is due, it does not open Dagster's instance; see `resources.QueueDatabase`.
"""

import time
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

import dagster as dg
from dagster import DagsterInstance, RunsFilter

from campaign_pipeline.adapters.environment import SettingError
from campaign_pipeline.adapters.operations import Operations
from campaign_pipeline.adapters.schema import DatabaseUnusable
from campaign_pipeline.core.ports import StoreUnavailable
from campaign_pipeline.defs.executor import IN_PROCESS
from campaign_pipeline.defs.jobs import process_campaign_queue
from campaign_pipeline.defs.resources import LanguageModelResource, QueueDatabase
from campaign_pipeline.defs.schedules import (
    DRAINING_SINCE,
    SMALL_BATCH,
    WHY,
    look_and_decide,
    process_campaign_queue_every_minute,
    runs_at_work,
    schedule_is_on,
    why_no_model,
)
from campaign_pipeline.defs.tags import MESSAGES, OWNERS

NAME = "next_batch_when_due"

WAIT = 25.0
"""Seconds that one evaluation waits, and that a code server may take to stop: Kubernetes gives a pod 30."""

ASK_EVERY = 1.0  # seconds

AFTER_A_NO = 5.0
"""Seconds until the next question if due messages may not be sent now: their obstacle lasts longer."""

SOON = 8.0
"""How many seconds before its planned time an unclaimed message gets a run: the time to launch it, to start it, and to
write the text."""

APART = timedelta(seconds=10)
"""Between two runs that this sensor launches, so that messages that become due one by one share runs."""

FRUITLESS = timedelta(seconds=60)
"""After a run of its own that had nothing to claim, the sensor leaves launching to the schedule for this long."""

_SWITCHED_OFF = f"The schedule {process_campaign_queue_every_minute.name} is switched off."


@dg.sensor(
    name=NAME,
    job=process_campaign_queue,
    minimum_interval_seconds=10,
    owners=OWNERS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Launches a run within seconds of something becoming due that no batch claimed ahead, while "
    "process_campaign_queue_every_minute is on, whose switch is meant for both.",
)
def next_batch_when_due(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Wait until something is due, and launch a run for it."""
    until = time.monotonic() + (WAIT if _has_threads(context) else 0.0)
    said = "Nothing became due that was not claimed ahead."
    for _ in _until(until, AFTER_A_NO):
        try:
            answer = _wait_and_ask(context, until)
        except (DatabaseUnusable, SettingError, StoreUnavailable) as error:
            answer = str(error)
        if isinstance(answer, dg.RunRequest):
            return answer
        said = answer or said
        if said == _SWITCHED_OFF:
            time.sleep(max(0.0, until - time.monotonic()))
            break
    return dg.SkipReason(said)


def _until(end: float, pause: float) -> Iterator[None]:
    """Yield at once, then after each pause that is over before the end."""
    yield
    while time.monotonic() + pause < end:
        time.sleep(pause)
        yield


def _wait_and_ask(context: dg.SensorEvaluationContext, until: float) -> dg.RunRequest | str | None:
    """Return a run as soon as a message is due, or why there is none; None if none became due in time."""
    database = QueueDatabase()
    with Operations(database.url()) as operations:
        if not any(operations.is_due_within(SOON) for _ in _until(until, ASK_EVERY)):
            return None
    return _request(context.instance, database, LanguageModelResource())


def _request(
    instance: DagsterInstance, database: QueueDatabase, language_model: LanguageModelResource
) -> dg.RunRequest | str:
    """Return a run for due messages, or why none is launched."""
    if not schedule_is_on(instance):
        return _SWITCHED_OFF
    look, decision, run_config = look_and_decide(database)
    if not decision.launch:
        return decision.reason
    at_work = runs_at_work(instance, database)
    obstacle = why_no_model(look, language_model) or at_work.obstacle or _why_too_soon(instance, look.now)
    if obstacle:
        return f"There is work ({decision.reason}), but: {obstacle}"
    if run_config is SMALL_BATCH:
        run_config = _small_batch(look.now, at_work.room)
    return dg.RunRequest(run_config=run_config, tags={WHY: decision.reason, DRAINING_SINCE: look.now.isoformat()})


def _small_batch(now: datetime, room: int) -> dict[str, Any]:
    """Return the run config of one process that claims ahead until the schedule's next batch does.

    The last run that CAMPAIGN_RUNS_AT_ONCE allows does not claim ahead: while it waited for a planned time, no run
    could be launched for messages that become due meanwhile.
    """
    ahead = 60.0 - now.second + 2 * SOON if room > 1 else SOON
    return {"execution": IN_PROCESS, "ops": {"fetch_message_batch": {"config": {"look_ahead_seconds": ahead}}}}


def _why_too_soon(instance: DagsterInstance, now: datetime) -> str | None:
    """One sentence if the newest run that this sensor launched is enough. Both times are the database's."""
    own = RunsFilter(job_name=process_campaign_queue.name, tags={"dagster/sensor_name": NAME})
    for run in instance.get_runs(own, limit=1):
        age = now - datetime.fromisoformat(run.tags[DRAINING_SINCE])
        if age < APART:
            return f"Run {run.run_id[:8]} was launched {age.total_seconds():.0f} s ago."
        if age < FRUITLESS and run.is_finished and MESSAGES not in run.tags:
            return f"Run {run.run_id[:8]} had nothing to claim; the schedule's next tick looks again."
    return None


def _has_threads(context: dg.SensorEvaluationContext) -> bool:
    """Return whether the daemon evaluates sensors in threads, so that this one may wait."""
    reference = context.instance_ref
    settings = reference.settings.get("sensors") if reference else context.instance.get_sensor_settings()
    return isinstance(settings, Mapping) and bool(settings.get("use_threads"))
