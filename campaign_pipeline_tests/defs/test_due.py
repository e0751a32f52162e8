"""Unplanned messages are launched within seconds; messages that cannot be sent cause no loop of runs."""

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import dagster as dg
import pytest
from dagster import DagsterInstance, DagsterRunStatus

from campaign_pipeline.adapters.operations import Operations
from campaign_pipeline.adapters.queue import BatchOptions, Queue
from campaign_pipeline.definitions import defs
from campaign_pipeline.defs.due import NAME, next_batch_when_due
from campaign_pipeline.defs.jobs import process_campaign_queue
from campaign_pipeline.defs.schedules import DRAINING_SINCE, WHY
from campaign_pipeline.defs.shard import run_async
from campaign_pipeline.defs.tags import MESSAGES
from campaign_pipeline_tests.factories import World

SWITCH = "campaign_pipeline.defs.due.schedule_is_on"


@pytest.fixture
def instance(environment: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[DagsterInstance]:
    environment.setenv("OPENROUTER_API_KEY", "sk-or-test-key-of-no-account")
    overrides = {"telemetry": {"enabled": False}, "sensors": {"use_threads": True}}
    with DagsterInstance.local_temp(str(tmp_path), overrides=overrides) as instance:
        yield instance


class Pauses:
    """Replaces sleeping: something happens in the first pause, and the pauses are counted."""

    def __init__(self, first: Callable[[], Any] = lambda: None) -> None:
        self.seconds = 0.0
        self._first = first

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        if not self.seconds:
            self._first()
        self.seconds += seconds


def evaluate(instance: DagsterInstance, pauses: Pauses | None = None, *, on: bool = True) -> dg.RunRequest | str:
    """Return the result of one tick of the sensor."""
    with (
        patch(SWITCH, return_value=on),
        patch("campaign_pipeline.defs.due.time", pauses or Pauses()),
        dg.build_sensor_context(instance=instance) as context,
    ):
        data = next_batch_when_due.evaluate_tick(context)
    if data.run_requests:
        (request,) = data.run_requests
        return request
    return data.skip_message or ""


def a_run(instance: DagsterInstance, status: DagsterRunStatus, **named: Any) -> dg.DagsterRun:
    """A run; a started one has claimed its batch."""
    if status == DagsterRunStatus.STARTED:
        named.setdefault("tags", {MESSAGES: "3"})
    return instance.create_run_for_job(defs.resolve_job_def(process_campaign_queue.name), status=status, **named)


def look_ahead(request: dg.RunRequest | str) -> float:
    assert isinstance(request, dg.RunRequest)
    seconds: float = request.run_config["ops"]["fetch_message_batch"]["config"]["look_ahead_seconds"]
    return seconds


def test_a_message_that_appears_while_the_sensor_waits_gets_a_run_within_a_second(
    world: World, instance: DagsterInstance
) -> None:
    run = world.run()
    pauses = Pauses(lambda: world.due_message(run))
    now: datetime = world.value("SELECT campaign_now()")
    request = evaluate(instance, pauses)
    # It takes what is due until the schedule's next batch has claimed.
    assert 60 - now.second < look_ahead(request) < 80
    assert pauses.seconds == 1.0


def test_a_message_planned_at_short_notice_gets_its_run_before_its_time(
    world: World, instance: DagsterInstance
) -> None:
    run = world.run()
    world.due_message(run, scheduled_at=world.value("SELECT campaign_now() + interval '20 s'"))
    assert evaluate(instance) == "Nothing became due that was not claimed ahead."
    world.move_clock(timedelta(seconds=13))
    assert isinstance(evaluate(instance), dg.RunRequest)


def test_messages_whose_worker_died_get_a_run_when_their_leases_have_expired(
    world: World, instance: DagsterInstance
) -> None:
    world.due_messages(world.run(), 3)
    assert len(run_async(Queue(world.url).claim_batch(BatchOptions(batch_size=10, owner="test"))).rows) == 3
    assert evaluate(instance) == "Nothing became due that was not claimed ahead.", "somebody may be at work"
    world.move_clock(timedelta(seconds=125))
    pauses = Pauses()
    request = evaluate(instance, pauses)
    assert isinstance(request, dg.RunRequest)
    assert request.tags[WHY] == "a process stopped renewing its leases"
    assert pauses.seconds == 0, "at the first question"


def test_one_tick_waits_for_part_of_the_minute_that_dagster_gives_it_and_not_at_all_without_threads(
    world: World, instance: DagsterInstance
) -> None:
    pauses, unthreaded = Pauses(), Pauses()
    assert evaluate(instance, pauses) == "Nothing became due that was not claimed ahead."
    assert 20 < pauses.seconds <= 30, "a code server that stops waits for it, and has 30 s"
    with patch.object(DagsterInstance, "get_sensor_settings", return_value={}):
        evaluate(instance, unthreaded)
        assert unthreaded.seconds == 0
        world.due_message(world.run())
        assert isinstance(evaluate(instance), dg.RunRequest)


def test_the_schedules_switch_is_its_switch(world: World, instance: DagsterInstance) -> None:
    world.due_message(world.run())
    pauses = Pauses()
    assert "is switched off" in str(evaluate(instance, pauses, on=False))
    assert pauses.seconds > 10, "a sensor that comes back at once would have twelve ticks a minute"


def test_held_messages_launch_nothing_and_are_not_queried_every_second(world: World, instance: DagsterInstance) -> None:
    workspace = world.workspace()
    kept = world.run(world.campaign(workspace, is_active=False))
    world.due_message(kept)
    run_async(Queue(world.url).claim_batch(BatchOptions(batch_size=10, owner="test")))  # the schedule's run notes why
    with patch.object(Operations, "look", side_effect=AssertionError("a look costs more")):
        assert evaluate(instance) == "Nothing became due that was not claimed ahead."
    world.do("UPDATE campaign_runs SET wait_code = NULL, wait_reason = NULL")
    world.do("UPDATE campaign_configs SET is_active = true")
    assert isinstance(evaluate(instance), dg.RunRequest)


def test_no_run_is_launched_beside_one_that_is_about_to_claim_or_was_launched_just_now(
    world: World, instance: DagsterInstance
) -> None:
    world.due_message(world.run())
    run = a_run(instance, DagsterRunStatus.NOT_STARTED)
    instance.report_run_canceled(run)
    starting = a_run(instance, DagsterRunStatus.STARTING)
    instance.report_dagster_event(dg.DagsterEvent("PIPELINE_START", starting.job_name), starting.run_id)
    assert f"Run {starting.run_id[:8]} is about to start" in str(evaluate(instance))
    instance.report_run_failed(starting)
    assert isinstance(evaluate(instance), dg.RunRequest)
    by_sensor = {"dagster/sensor_name": NAME, DRAINING_SINCE: str(world.value("SELECT campaign_now()"))}
    launched = a_run(instance, DagsterRunStatus.SUCCESS, tags={**by_sensor, MESSAGES: "3"})
    assert f"Run {launched.run_id[:8]} was launched" in str(evaluate(instance))
    world.move_clock(timedelta(seconds=15))
    assert isinstance(evaluate(instance), dg.RunRequest)
    a_run(instance, DagsterRunStatus.SUCCESS, tags=by_sensor)
    assert "had nothing to claim" in str(evaluate(instance)), "or it would launch runs without end"
    world.move_clock(timedelta(seconds=65))
    assert isinstance(evaluate(instance), dg.RunRequest)


def test_the_last_run_that_is_allowed_keeps_no_planned_message(
    world: World, instance: DagsterInstance, environment: pytest.MonkeyPatch
) -> None:
    world.due_message(world.run())
    environment.setenv("CAMPAIGN_RUNS_AT_ONCE", "2")
    a_run(instance, DagsterRunStatus.STARTED)
    assert look_ahead(evaluate(instance)) < 10
    a_run(instance, DagsterRunStatus.STARTED)
    assert "CAMPAIGN_RUNS_AT_ONCE allows 2." in str(evaluate(instance))


def test_a_question_that_the_database_does_not_answer_ends_by_itself(world: World) -> None:
    """Otherwise each tick that Dagster gave up would leave a thread and a connection waiting for a locked table."""
    asked = "SELECT current_setting('statement_timeout') = '50s' AND %(seconds)s > 0 AS yes"
    answer = patch("campaign_pipeline.adapters.operations.statement", return_value=asked)
    with answer, Operations(world.url) as operations:
        assert operations.is_due_within(8.0)
