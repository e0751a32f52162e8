"""The fixed cost of a step: counted, not timed."""

import os
from pathlib import Path

import pytest

from benchmarks.imports import imported_by, watch_imports
from benchmarks.ours import JobSpec, run_job
from benchmarks.wire import CountingProxy
from campaign_pipeline.sandbox import SandboxProcess
from campaign_pipeline_tests.conftest import point_at
from campaign_pipeline_tests.factories import World

ROOT = Path(__file__).parents[2]
MOST_MODULES = 20
"""A handful, which differs a little between versions; where the fork server has not preloaded them it is hundreds."""

BATCH_ROUND_TRIPS = 34  # a heartbeat every few seconds among them, on a machine that is busy
"""Of a batch that finds something, beyond those of one that finds nothing, however many its messages are."""


def test_a_step_imports_next_to_nothing_that_its_fork_server_has_not(
    world: World, environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    world.due_messages(world.run(), 3)
    folder = watch_imports(tmp_path / "imports")
    (tmp_path / "dagster").mkdir()
    with SandboxProcess() as sandbox:
        point_at(environment, sandbox)
        variables = {**os.environ, "DAGSTER_HOME": str(tmp_path / "dagster"), "PYTHONPATH": str(ROOT)}
        run = run_job(variables, JobSpec(5), preload_folder=folder)
    assert run.sent == 3
    modules = {step.partition("[")[0]: imported_by(folder, pid) for step, pid in run.step_pids.items()}
    assert len(modules) == 5
    assert {step: found for step, found in modules.items() if len(found) > MOST_MODULES} == {}


def test_a_message_costs_no_more_than_two_round_trips_to_the_database(
    world: World, environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "dagster").mkdir()
    with SandboxProcess() as sandbox, CountingProxy(world.url, tmp_path / "proxy") as proxy:
        point_at(environment, sandbox)
        environment.setenv("CAMPAIGN_DATABASE_URL", proxy.url)
        variables = {**os.environ, "DAGSTER_HOME": str(tmp_path / "dagster"), "PYTHONPATH": str(ROOT)}
        run_job(variables, JobSpec(1, in_process=True))
        idle = proxy.round_trips
        world.due_messages(world.run(), 40)
        run = run_job(variables, JobSpec(1, in_process=True))
        batch = proxy.round_trips - 2 * idle
    assert run.sent == 40
    # One at a time: its intent, and its end together with the start of the next one. What a batch needs as such is
    # shared by all.
    assert batch <= 2 * 40 + BATCH_ROUND_TRIPS
