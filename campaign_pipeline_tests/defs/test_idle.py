"""The cost of an idle queue: sensors and a schedule that find nothing to do do not open Dagster's instance."""

from datetime import UTC, datetime, time
from pathlib import Path
from unittest.mock import patch

import dagster as dg
import pytest
from dagster import DagsterInstance

from benchmarks import empty_location
from campaign_pipeline.definitions import defs
from campaign_pipeline.defs.due import next_batch_when_due
from campaign_pipeline.defs.schedules import process_campaign_queue_every_minute
from campaign_pipeline.defs.sensors import backlog_notifications
from campaign_pipeline_tests.factories import World


@pytest.mark.parametrize("sensor", [next_batch_when_due, backlog_notifications], ids=lambda sensor: sensor.name)
def test_an_evaluation_that_finds_nothing_to_do_does_not_open_dagsters_instance(
    world: World, environment: pytest.MonkeyPatch, tmp_path: Path, sensor: dg.SensorDefinition
) -> None:
    world.run()
    morning = datetime.combine(datetime.now(UTC), time(12), UTC)
    world.move_clock(morning - datetime.now(UTC))  # from 18:00 in Sao Paulo on, a summary is due
    environment.setenv("OPENROUTER_API_KEY", "sk-or-test-key-of-no-account")
    overrides = {"telemetry": {"enabled": False}}  # without threads, next_batch_when_due looks once
    with DagsterInstance.local_temp(str(tmp_path), overrides=overrides) as instance:
        reference = instance.get_ref()
    with (
        patch.object(DagsterInstance, "from_ref", side_effect=AssertionError("opened")),
        dg.build_sensor_context(instance_ref=reference) as context,
    ):
        assert sensor.evaluate_tick(context).skip_message


def test_a_tick_of_the_schedule_that_finds_nothing_to_do_does_not_open_dagsters_instance(
    world: World, environment: pytest.MonkeyPatch
) -> None:
    assert world.url
    environment.setenv("OPENROUTER_API_KEY", "sk-or-test-key-of-no-account")
    schedule = defs.get_repository_def().get_schedule_def(process_campaign_queue_every_minute.name)
    assert schedule.required_resource_keys == set()  # Dagster opens its instance for a resource
    with patch.object(DagsterInstance, "get", side_effect=AssertionError("opened")):
        assert schedule.evaluate_tick(dg.build_schedule_context()).skip_message


def test_the_race_compares_with_as_many_jobs_and_sensors_as_the_pipeline_has() -> None:
    repository = defs.get_repository_def()
    running = [each for each in repository.sensor_defs if each.default_status == dg.DefaultSensorStatus.RUNNING]
    assert len(running) == empty_location.SENSORS
    assert len(repository.get_all_jobs()) == empty_location.JOBS
