"""The cost of an idle queue: sensors that find nothing to do do not open Dagster's instance."""

from pathlib import Path
from unittest.mock import patch

import dagster as dg
import pytest
from dagster import DagsterInstance

from campaign_pipeline.defs.due import next_batch_when_due
from campaign_pipeline.defs.sensors import backlog_notifications
from campaign_pipeline_tests.factories import World


@pytest.mark.parametrize("sensor", [next_batch_when_due, backlog_notifications], ids=lambda sensor: sensor.name)
def test_an_evaluation_that_finds_nothing_to_do_does_not_open_dagsters_instance(
    world: World, environment: pytest.MonkeyPatch, tmp_path: Path, sensor: dg.SensorDefinition
) -> None:
    world.run()
    environment.setenv("OPENROUTER_API_KEY", "sk-or-test-key-of-no-account")
    overrides = {"telemetry": {"enabled": False}}  # without threads, next_batch_when_due looks once
    with DagsterInstance.local_temp(str(tmp_path), overrides=overrides) as instance:
        reference = instance.get_ref()
    with (
        patch.object(DagsterInstance, "from_ref", side_effect=AssertionError("opened")),
        dg.build_sensor_context(instance_ref=reference) as context,
    ):
        assert sensor.evaluate_tick(context).skip_message
