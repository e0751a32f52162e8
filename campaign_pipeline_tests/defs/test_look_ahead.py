"""The schedule's small batches: one process, each message at its planned time."""

import threading
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest
from dagster import DagsterInstance

from campaign_pipeline.core.shard_worker import TERMINATED
from campaign_pipeline.definitions import defs
from campaign_pipeline.defs import stopping
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


def test_a_small_batch_that_no_signal_reaches_ends_when_its_run_is_terminated(
    world: World, environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment.setenv("CAMPAIGN_OUTPUTS", str(tmp_path / "outputs"))
    environment.setattr(stopping, "LOOK_SECONDS", 0.05)
    workspace = world.workspace()
    runs = [world.run(world.campaign(workspace, world.inbox(workspace))) for _ in range(2)]
    now = world.value("SELECT campaign_now()")
    for run in runs:
        world.due_message(run, scheduled_at=now)
        world.due_message(run, scheduled_at=now + timedelta(seconds=60))
    job = defs.resolve_job_def("process_campaign_queue")

    def terminate(instance: DagsterInstance, world: World) -> None:
        deadline = time.monotonic() + 60
        while [message["status"] for message in world.messages()].count("sent") < len(runs):
            assert time.monotonic() < deadline
        instance.report_run_canceling(instance.get_runs()[0])

    with (
        SandboxProcess() as sandbox,
        DagsterInstance.local_temp(str(tmp_path)) as instance,
        World(world.url) as another,
    ):
        point_at(environment, sandbox)
        terminating = threading.Thread(target=terminate, args=(instance, another))
        terminating.start()
        result = job.execute_in_process(run_config={"ops": SMALL_BATCH["ops"]}, instance=instance, raise_on_error=False)
        terminating.join()
    assert TERMINATED in str(result.failure_data_for_node("send_batch"))
    assert Counter(message["status"] for message in world.messages()) == {"sent": 2, "pending": 2}
    assert {message["lease_token"] for message in world.messages() if message["status"] == "pending"} == {None}
