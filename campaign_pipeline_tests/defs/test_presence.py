"""The process of a run reports its presence, and stops when its run has ended without it."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from dagster import DagsterInstance, DagsterRunStatus

from campaign_pipeline.adapters.deployment import CelerySettings
from campaign_pipeline.adapters.operations import Operations
from campaign_pipeline.core.shard_worker import TERMINATED
from campaign_pipeline.definitions import defs
from campaign_pipeline.defs import presence
from campaign_pipeline.defs.celery_settings import BrokerMemory
from campaign_pipeline.defs.presence import Presence
from campaign_pipeline.defs.stopping import RUN_ENDED, why_to_stop
from campaign_pipeline_tests.factories import World

REDIS = os.environ.get("REDIS", "/usr/bin/redis-server")


@pytest.fixture
def instance(environment: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[DagsterInstance]:
    with DagsterInstance.local_temp(str(tmp_path), overrides={"telemetry": {"enabled": False}}) as instance:
        yield instance


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Set when this process is interrupted; beats are short."""
    monkeypatch.setattr(presence, "BEAT_SECONDS", 0.05)
    received = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: received.set())
    yield received
    signal.signal(signal.SIGINT, before)


def seen(world: World) -> list[str]:
    with Operations(world.url) as operations:
        return list(operations.holders().seen)


def test_a_process_shows_itself_until_it_leaves_and_is_interrupted_when_its_run_has_ended(
    world: World, instance: DagsterInstance, interrupted: threading.Event
) -> None:
    run = instance.create_run_for_job(defs.resolve_job_def("process_campaign_queue"))
    with Presence(instance, run, lambda: None):
        deadline = time.monotonic() + 30
        while seen(world) != [run.run_id]:
            assert time.monotonic() < deadline
        assert not interrupted.is_set()
        assert why_to_stop(instance, run.run_id) is None
        instance.report_run_failed(run, "Another process says so.")
        assert interrupted.wait(30)
    assert seen(world) == []
    assert why_to_stop(instance, run.run_id) == RUN_ENDED


def test_a_step_that_no_signal_reaches_learns_that_its_run_is_being_terminated(
    environment: pytest.MonkeyPatch, instance: DagsterInstance
) -> None:
    run = instance.create_run_for_job(defs.resolve_job_def("process_campaign_queue"), status=DagsterRunStatus.STARTED)
    assert why_to_stop(instance, run.run_id) is None
    instance.report_run_canceling(run)
    assert why_to_stop(instance, run.run_id) == TERMINATED


def test_a_run_whose_broker_lost_its_steps_ends_with_that_reason(
    world: World, instance: DagsterInstance, interrupted: threading.Event
) -> None:
    run = instance.create_run_for_job(defs.resolve_job_def("process_campaign_queue"))
    with Presence(instance, run, lambda: "The broker restarted."):
        assert interrupted.wait(30)
    ended = instance.get_run_by_id(run.run_id)
    assert ended is not None
    assert ended.is_finished
    assert any("The broker restarted." in str(entry.message) for entry in instance.all_logs(run.run_id))


@contextmanager
def broker(port: int) -> Iterator[None]:
    """Redis without persistence."""
    process = subprocess.Popen([REDIS, "--port", str(port), "--save", ""], stdout=subprocess.DEVNULL)
    try:
        with redis.Redis(port=port) as client:
            deadline = time.monotonic() + 30
            while True:
                try:
                    client.ping()
                    break
                except redis.ConnectionError:
                    assert time.monotonic() < deadline
        yield
    finally:
        process.kill()
        process.wait()


def test_a_brokers_data_loss_is_noticed_and_its_absence_waited_out(free_port: int) -> None:
    url = f"redis://127.0.0.1:{free_port}/0"
    memory = BrokerMemory(CelerySettings(url, url))
    with broker(free_port):
        assert memory.why_lost() is None
        assert memory.why_lost() is None
    assert memory.why_lost() is None
    with broker(free_port):
        assert "The broker restarted without the steps" in str(memory.why_lost())
