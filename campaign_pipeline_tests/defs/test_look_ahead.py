"""The schedule's small batches: one process, each message at its planned time."""

from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest
from dagster import DagsterInstance

from campaign_pipeline.definitions import defs
from campaign_pipeline.defs.schedules import SMALL_BATCH
from campaign_pipeline.sandbox import SandboxProcess
from campaign_pipeline_tests.conftest import point_at
from campaign_pipeline_tests.factories import World

MOST_EVENTS = 25


def test_a_small_batch_is_sent_on_time_in_one_process_with_few_events(
    world: World, environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment.setenv("CAMPAIGN_OUTPUTS", str(tmp_path / "outputs"))
    workspace = world.workspace()
    runs = [world.run(world.campaign(workspace, world.inbox(workspace))) for _ in range(3)]
    now = world.value("SELECT campaign_now()")
    for run, seconds in zip([*runs, runs[0]], (-5, 4, 4, 5), strict=True):
        world.due_message(run, scheduled_at=now + timedelta(seconds=seconds))
    with SandboxProcess() as sandbox, DagsterInstance.local_temp(str(tmp_path)) as instance:
        point_at(environment, sandbox)
        result = defs.resolve_job_def("process_campaign_queue").execute_in_process(
            run_config={"ops": SMALL_BATCH["ops"]}, instance=instance
        )
        entries = instance.all_logs(result.run_id)
    assert result.success
    assert Counter(message["status"] for message in world.messages()) == {"sent": 4}
    late = [row["late"] for row in world.all("SELECT sent_at - scheduled_at AS late FROM campaign_messages")]
    assert all(timedelta(0) <= each for each in late)
    events = [entry.dagster_event.event_type_value for entry in entries if entry.dagster_event]
    assert len(events) <= MOST_EVENTS, Counter(events)
    assert {row["status"] for row in world.all("SELECT status FROM campaign_runs")} == {"completed"}
