"""The nightly clean-up deletes expired data, and nothing else."""

import os
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import dagster as dg
import pandas as pd
import pytest
from dagster import DagsterInstance
from dagster._core.code_pointer import CodePointer
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster._core.remote_origin import GrpcServerCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.storage.local_compute_log_manager import LocalComputeLogManager

from campaign_pipeline.adapters import operations
from campaign_pipeline.definitions import defs
from campaign_pipeline.defs import maintenance
from campaign_pipeline.defs.maintenance import OUR_JOBS
from campaign_pipeline.defs.tags import WORK
from campaign_pipeline_tests.factories import World


@pytest.fixture
def instance(environment: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[DagsterInstance]:
    with DagsterInstance.local_temp(str(tmp_path), overrides={"telemetry": {"enabled": False}}) as instance:
        yield instance


@pytest.fixture
def outputs(environment: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    folder = tmp_path / "outputs"
    folder.mkdir()
    environment.setenv("CAMPAIGN_OUTPUTS", str(folder))
    return folder


def clean_up(instance: DagsterInstance, **days: int) -> dict[str, Any]:
    """Run the job once; return the figures of its steps."""
    config = {"ops": {op: {"config": {"keep_days": keep}} for op, keep in days.items()}}
    job = defs.resolve_job_def("clean_up_old_data")
    result = job.execute_in_process(instance=instance, run_config=config, raise_on_error=False)
    assert result.success, [str(event.event_specific_data)[:2000] for event in result.all_events if event.is_failure]
    figures: dict[str, Any] = {}
    for event in result.all_events:
        if event.is_successful_output:
            data = event.step_output_data
            figures[data.output_name] = {name: entry.value for name, entry in data.metadata.items()}
    return figures


def files_of_a_run(outputs: Path, ages: tuple[timedelta, ...], now: datetime, name: str | None = None) -> Path:
    folder = outputs / (name or str(uuid4()))
    for number, age in enumerate(ages):
        file = folder / f"step{number}" / "result.json"
        file.parent.mkdir(parents=True)
        file.write_text("{}")
        stamp = (now - age).timestamp()
        os.utime(file, (stamp, stamp))
    return folder


def test_outputs_go_when_their_run_wrote_nothing_for_a_week(
    world: World, instance: DagsterInstance, outputs: Path
) -> None:
    now: datetime = world.value("SELECT campaign_now()")
    day = timedelta(days=1)
    old = files_of_a_run(outputs, (8 * day, 9 * day), now)
    still_at_it = files_of_a_run(outputs, (8 * day, 6 * day), now)
    foreign = files_of_a_run(outputs, (800 * day,), now, name="family photos")
    assert clean_up(instance)["deleted_outputs"] == {"files": 2, "runs": 1, "keep_days": 7}
    assert (old.exists(), still_at_it.exists(), foreign.exists()) == (False, True, True)
    world.move_clock(2 * day)
    assert clean_up(instance)["deleted_outputs"]["files"] == 2
    assert not still_at_it.exists()


def test_an_erased_lead_is_removed_from_later_outputs(world: World, instance: DagsterInstance, outputs: Path) -> None:
    lead = world.lead(world.workspace())
    world.value("SELECT campaign_erase_lead(%s, 'Rui')", lead)
    table = outputs / str(uuid4()) / "lead_contexts.parquet"
    table.parent.mkdir()
    pd.DataFrame({"lead_id": [str(lead), "another"]}).to_parquet(table, index=False)
    clean_up(instance)
    assert list(pd.read_parquet(table)["lead_id"]) == ["another"]


def test_an_outputs_folder_that_is_not_there_yet_is_no_trouble(
    world: World, instance: DagsterInstance, environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment.setenv("CAMPAIGN_OUTPUTS", str(tmp_path / "none"))
    assert clean_up(instance)["deleted_outputs"]["files"] == 0


def test_logs_go_in_small_batches_and_only_the_old_ones(
    world: World, instance: DagsterInstance, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "DELETE_BATCH", 7)
    world.do(
        "INSERT INTO campaign_logs (message, created_at)"
        " SELECT 'x', campaign_now() - make_interval(days => n) FROM generate_series(80, 119) n"
    )
    assert clean_up(instance)["deleted_logs"]["rows"] == 30
    assert world.value("SELECT count(*) FROM campaign_logs") == 10
    assert clean_up(instance, delete_old_logs=85)["deleted_logs"]["rows"] == 5


def test_ended_pauses_are_deleted_and_active_ones_stay(world: World, instance: DagsterInstance, outputs: Path) -> None:
    for scope, kind, ended in (
        ("a", "throttled", "1 hour"),
        ("b", "throttled", "5 minutes"),
        ("c", "systemic", "8 days"),
        ("d", "systemic", "6 days"),
    ):
        world.do(
            "INSERT INTO campaign_pauses (scope, scope_id, kind, code, reason, since, until)"
            " VALUES ('inbox', %s, %s, 'x', 'x', now() - interval '9 days', now() - %s::interval)",
            *(scope, kind, ended),
        )
    assert clean_up(instance)["deleted_logs"]["pauses"] == 2
    assert {row["scope_id"] for row in world.all("SELECT scope_id FROM campaign_pauses")} == {"b", "d"}


@dg.job
def of_another_code_location() -> None:
    """A job that is not ours."""


@dg.job(name="process_campaign_queue")
def called_like_ours() -> None:
    """Another code location's job with the name of one of ours."""


def from_location(name: str, job: str) -> RemoteJobOrigin:
    """Return the origin tags of a run that a daemon launched."""
    location = GrpcServerCodeLocationOrigin(host="localhost", port=1, location_name=name)
    return RemoteJobOrigin(RemoteRepositoryOrigin(location, "__repository__"), job)


def from_module(module: str, job: str) -> JobPythonOrigin:
    """Return the origin tags of a run that `dagster job execute` launched."""
    pointer = CodePointer.from_module(module, "defs", None)
    return JobPythonOrigin(job, RepositoryPythonOrigin("python", pointer, None, None, None))


def test_an_empty_folder_is_as_old_as_itself(world: World, instance: DagsterInstance, outputs: Path) -> None:
    starting, forgotten = outputs / str(uuid4()), outputs / str(uuid4())
    (forgotten / "some_step").mkdir(parents=True)
    starting.mkdir()
    stamp = (world.value("SELECT campaign_now()") - timedelta(days=8)).timestamp()
    for folder in (forgotten / "some_step", forgotten):
        os.utime(folder, (stamp, stamp))
    assert clean_up(instance)["deleted_outputs"] == {"files": 0, "runs": 1, "keep_days": 7}
    assert (starting.exists(), forgotten.exists()) == (True, False)


def test_finished_runs_of_our_jobs_go_with_their_events(
    world: World, instance: DagsterInstance, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "RUNS_AT_A_TIME", 2)
    job = defs.resolve_job_def("process_campaign_queue")
    foreign = of_another_code_location.execute_in_process(instance=instance).run_id
    old = [instance.create_run_for_job(job, status=dg.DagsterRunStatus.SUCCESS).run_id for _ in range(5)]
    working = instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED).run_id
    for run_id in old:
        instance.report_engine_event("something happened", job_name=job.name, run_id=run_id)
    assert clean_up(instance)["deleted_runs"] == {"runs": 0, "keep_days": 30}
    world.move_clock(timedelta(days=31))
    # The previous clean-up is deleted too; this one is running.
    assert clean_up(instance)["deleted_runs"]["runs"] == 6
    assert [instance.get_run_by_id(run_id) for run_id in old] == [None] * 5
    assert instance.all_logs(old[0]) == []
    assert instance.get_run_by_id(working)
    assert instance.get_run_by_id(foreign)


def test_runs_of_other_code_locations_stay_whatever_their_jobs_are_called(
    world: World, instance: DagsterInstance, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "RUNS_AT_A_TIME", 2)
    ours, name = defs.resolve_job_def("process_campaign_queue"), "process_campaign_queue"
    done = dg.DagsterRunStatus.SUCCESS

    def run(job: dg.JobDefinition, **origin: Any) -> str:
        return instance.create_run_for_job(job, status=done, **origin).run_id

    gone, kept = [], []
    for _ in range(3):  # a page holds two: of both kinds, and of one
        gone += [
            run(ours),
            run(ours, remote_job_origin=from_location("campaign_pipeline", name)),
            run(ours, job_code_origin=from_module("campaign_pipeline.definitions", name)),
        ]
        kept += [
            run(called_like_ours),
            run(ours, remote_job_origin=from_location("campaigns_of_another_team", name)),
            run(ours, job_code_origin=from_module("another_team.definitions", name)),
        ]
    world.move_clock(timedelta(days=31))
    assert clean_up(instance)["deleted_runs"]["runs"] == len(gone)
    assert [bool(instance.get_run_by_id(run_id)) for run_id in [*gone, *kept]] == [False] * 9 + [True] * 9


def test_a_clean_up_of_one_location_leaves_the_other_locations_of_the_same_code_alone(
    instance: DagsterInstance,
) -> None:
    job = defs.resolve_job_def("clean_up_old_data")
    (own, same, other) = (
        instance.create_run_for_job(job, remote_job_origin=from_location(location, job.name))
        for location in ("north", "north", "south")
    )
    assert [maintenance._is_ours(instance, run, own) for run in (same, other)] == [True, False]


def test_compute_logs_of_a_deleted_run_are_deleted(world: World, instance: DagsterInstance, outputs: Path) -> None:
    job = defs.resolve_job_def("process_campaign_queue")
    manager = instance.compute_log_manager
    assert isinstance(manager, LocalComputeLogManager)
    files = []
    for _ in range(2):
        run_id = instance.create_run_for_job(job, status=dg.DagsterRunStatus.SUCCESS).run_id
        file = Path(manager.get_captured_local_path([run_id, "compute_logs", "send_shard"], "out"))
        file.parent.mkdir(parents=True)
        file.write_text("what a library printed")
        files.append(file)
    # Somebody deleted this run in the UI, which leaves what its steps printed.
    forgotten = Path(manager.get_captured_local_path([str(uuid4()), "compute_logs", "send_shard"], "out"))
    forgotten.parent.mkdir(parents=True)
    forgotten.write_text("what a library printed")
    clean_up(instance)
    assert all(file.exists() for file in [*files, forgotten])
    os.utime(forgotten.parents[1], times=(0, 0))
    clean_up(instance)
    assert [file.exists() for file in [*files, forgotten]] == [True, True, False]
    world.move_clock(timedelta(days=31))
    clean_up(instance)
    assert not any(file.exists() for file in files)


def test_a_time_of_less_than_a_day_is_refused(world: World, instance: DagsterInstance, outputs: Path) -> None:
    job = defs.resolve_job_def("clean_up_old_data")
    result = job.execute_in_process(
        instance=instance,
        run_config={"ops": {"delete_old_runs": {"config": {"keep_days": 0}}}},
        raise_on_error=False,
    )
    assert not result.success
    (failure,) = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    assert failure.user_failure_data
    assert failure.user_failure_data.description == "keep_days is 0, but must be at least 1."


def test_every_job_of_this_code_location_is_cleaned_up_after() -> None:
    names = {name for name in defs.get_repository_def().job_names if not name.startswith("__")}
    assert names <= set(OUR_JOBS)
    assert all(WORK in defs.resolve_job_def(name).tags for name in names)
