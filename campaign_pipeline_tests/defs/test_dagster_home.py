"""Dagster's settings, the shipped ones and those that the command line writes, loaded by a real instance."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from dagster import DagsterInstance
from dagster._core.run_coordinator.queued_run_coordinator import QueuedRunCoordinator

from campaign_pipeline.adapters import dagster_home
from campaign_pipeline.adapters.dagster_home import write_dagster_home
from campaign_pipeline.adapters.embedded import EmbeddedServer
from campaign_pipeline.definitions import defs
from campaign_pipeline.defs.tags import WORK
from campaign_pipeline.sandbox import SandboxProcess
from campaign_pipeline_tests.databases import Databases
from campaign_pipeline_tests.factories import World

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def storage_url(server: EmbeddedServer, databases: Databases) -> Iterator[str]:
    """An empty database for Dagster's own storage."""
    with databases.create() as name:
        yield server.url(name).replace("postgresql://", "postgresql+psycopg2://", 1)


def limits(instance: DagsterInstance) -> dict[str, int]:
    """Return the limit of concurrent runs per kind of work."""
    assert isinstance(instance.run_coordinator, QueuedRunCoordinator)
    config = instance.get_concurrency_config().run_queue_config
    assert config is not None
    # A code server that restarts must not fail the runs that are queued meanwhile.
    assert config.max_user_code_failure_retries * config.user_code_failure_retry_delay >= 600
    assert {limit["key"] for limit in config.tag_concurrency_limits} == {WORK}
    return {str(limit["value"]): int(limit["limit"]) for limit in config.tag_concurrency_limits}


def test_the_shipped_settings_make_an_instance_that_keeps_runs_in_postgresql(
    storage_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(CHECKOUT / "deploy" / "dagster.yaml", tmp_path / "dagster.yaml")
    parts = urlsplit(storage_url)
    # The embedded server listens on a Unix socket, for which libpq has its own syntax.
    monkeypatch.setenv("DAGSTER_PG_HOST", "")
    monkeypatch.setenv("PGHOST", parse_qs(parts.query)["host"][0])
    monkeypatch.setenv("DAGSTER_PG_PORT", "5432")
    monkeypatch.setenv("DAGSTER_PG_DB", parts.path.lstrip("/"))
    monkeypatch.setenv("DAGSTER_PG_USERNAME", "postgres")
    monkeypatch.setenv("DAGSTER_PG_PASSWORD", "none")
    with DagsterInstance.from_config(str(tmp_path)) as instance:
        run = instance.create_run_for_job(defs.resolve_job_def("process_campaign_queue"))
        # A NOTIFY with a bound parameter, which fails if SQLAlchemy's default driver is psycopg 3.
        instance.report_engine_event("a line", job_name=run.job_name, run_id=run.run_id)
        assert instance.get_run_by_id(run.run_id)
        assert limits(instance) == {"queue": 4, "back_fill": 2, "maintenance": 1}
        assert instance.run_monitoring_enabled
        assert instance.run_monitoring_max_runtime_seconds == 7200
        assert instance.run_retries_enabled
        assert not instance.run_retries_retry_on_asset_or_op_failure


def test_the_settings_of_one_person_make_an_instance_with_limits_too(storage_url: str, tmp_path: Path) -> None:
    home = write_dagster_home(tmp_path, storage_url)
    with DagsterInstance.from_config(str(home)) as instance:
        assert limits(instance) == {"queue": 3, "back_fill": 1}
        assert instance.run_monitoring_enabled


def test_what_steps_printed_under_earlier_settings_is_deleted(storage_url: str, tmp_path: Path) -> None:
    home = write_dagster_home(tmp_path, storage_url)
    logs, other = home / "storage" / "a-run" / "compute_logs", home / "storage" / "a-run" / "a-step" / "result"
    for file in (logs / "send_shard.err", other):
        file.parent.mkdir(parents=True)
        file.touch()
    write_dagster_home(tmp_path, storage_url)
    assert not logs.exists()
    assert other.exists()


def test_dagster_looks_for_its_tables_until_they_exist(storage_url: str, tmp_path: Path) -> None:
    for create in ("true", "false"):
        home = write_dagster_home(tmp_path, storage_url)
        assert f"should_autocreate_tables: {create}\n" in (home / "dagster.yaml").read_text(encoding="utf-8")
        with DagsterInstance.from_config(str(home)) as instance:
            assert list(instance.get_runs()) == []


def top_level_keys(text: str) -> set[str]:
    return set(re.findall(r"^(\w+):", text, re.MULTILINE))


def test_both_settings_name_the_same_topics() -> None:
    shipped = top_level_keys((CHECKOUT / "deploy" / "dagster.yaml").read_text(encoding="utf-8"))
    written = top_level_keys(dagster_home._DAGSTER_YAML)
    assert written == shipped


def test_every_job_says_what_kind_of_work_it_is() -> None:
    for name in ("process_campaign_queue", "retry_failed_messages", "clean_up_old_data"):
        assert WORK in defs.resolve_job_def(name).tags


def test_a_run_from_a_shell_waits_for_no_daemon_under_these_settings(
    world: World, storage_url: str, environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home = write_dagster_home(tmp_path, storage_url)
    world.due_messages(world.run(), 3)
    with SandboxProcess() as sandbox:
        variables = {
            **os.environ,
            "DAGSTER_HOME": str(home),
            "OPENROUTER_API_KEY": "sk-or-test-key-of-no-account",
            "OPENROUTER_BASE_URL": sandbox.openrouter_url,
            "EVOLUTION_API_URL": sandbox.evolution_url,
        }
        command = [
            str(Path(sys.executable).parent / "dagster"),
            "job",
            "execute",
            "-m",
            "campaign_pipeline.definitions",
        ]
        done = subprocess.run(
            [*command, "-j", "process_campaign_queue"], env=variables, capture_output=True, timeout=120, check=False
        )
    assert done.returncode == 0, done.stderr[-2000:]
    assert [message["status"] for message in world.messages()] == ["sent"] * 3


def test_the_code_location_is_valid(environment: pytest.MonkeyPatch) -> None:
    command = [str(Path(sys.executable).parent / "dagster"), "definitions", "validate", "-w", "workspace.yaml"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
