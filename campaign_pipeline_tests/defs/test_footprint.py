"""What a step costs before it does anything: counted, not timed."""

import os
from pathlib import Path

import pytest

from benchmarks.imports import imported_by, watch_imports
from benchmarks.ours import JobSpec, run_job
from campaign_pipeline.sandbox import SandboxProcess
from campaign_pipeline_tests.conftest import point_at
from campaign_pipeline_tests.factories import World

ROOT = Path(__file__).parents[2]
MOST_MODULES = 20
"""A handful, which differs a little between versions; where the fork server has not preloaded them it is hundreds."""


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
