"""The whole job, schedules and the command line through PgBouncer in transaction mode, and on a distant database."""

import os
from collections import Counter
from pathlib import Path
from uuid import UUID

import pytest

from benchmarks.ours import JobRun, JobSpec, run_job
from benchmarks.wire import DistantProxy
from campaign_pipeline.adapters.queue import BatchOptions, Queue
from campaign_pipeline.defs.shard import run_async
from campaign_pipeline.sandbox import Behaviour, Kind, Latency, SandboxProcess
from campaign_pipeline_tests.commands import run as run_command
from campaign_pipeline_tests.conftest import point_at
from campaign_pipeline_tests.factories import World

ROOT = Path(__file__).parents[2]
SHORT_LEASE = 3.0
"""Seconds. A renewal is due each second, and may be late by one and a half."""


def run_on(
    url: str, environment: pytest.MonkeyPatch, sandbox: SandboxProcess, tmp_path: Path, spec: JobSpec | None = None
) -> JobRun:
    point_at(environment, sandbox)
    environment.setenv("CAMPAIGN_DATABASE_URL", url)
    (tmp_path / "dagster").mkdir(exist_ok=True)
    variables = {**os.environ, "DAGSTER_HOME": str(tmp_path / "dagster"), "PYTHONPATH": str(ROOT)}
    return run_job(variables, spec or JobSpec(20, shard_size=30, in_process=True))


def test_a_batch_in_two_shards_is_sent_through_a_pooler(
    world: World, pooled_url: str, environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = world.run(world.campaign(split_messages=True))
    world.due_messages(run, 60)
    with SandboxProcess() as sandbox:
        done = run_on(pooled_url, environment, sandbox, tmp_path)
        assert done.sent == 60
        assert sandbox.summary()["accepted_twice"] == []
    assert Counter(message["status"] for message in world.messages()) == {"sent": 60}
    assert world.value("SELECT status FROM campaign_runs") == "completed"
    assert world.wrong_counters() == []


def test_claimers_that_share_the_connections_of_a_pooler_take_every_message_once(world: World, pooled_url: str) -> None:
    world.due_messages(world.run(), 90)

    async def claim_all() -> list[list[UUID]]:
        import asyncio

        options = BatchOptions(batch_size=15, owner="test")
        batches = await asyncio.gather(*(Queue(pooled_url).claim_batch(options) for _ in range(6)))
        return [[row.message_id for row in batch.rows] for batch in batches]

    batches = run_async(claim_all())
    taken = [message for batch in batches for message in batch]
    assert len(taken) == len(set(taken)) == 90


def test_the_command_line_works_through_a_pooler(world: World, pooled_url: str, tmp_path: Path) -> None:
    assert run_command(tmp_path, "db", "upgrade", CAMPAIGN_DATABASE_URL=pooled_url).returncode == 0
    listed = run_command(tmp_path, "consent", "list", CAMPAIGN_DATABASE_URL=pooled_url)
    assert (listed.returncode, listed.stdout.strip()) == (0, "Nobody is suppressed.")


@pytest.mark.parametrize("milliseconds", [20, 80])
def test_on_a_database_far_away_leases_are_renewed_in_time_and_a_message_costs_little(
    world: World, environment: pytest.MonkeyPatch, tmp_path: Path, milliseconds: int
) -> None:
    world.due_messages(world.run(), 40)
    # Shorter than the shard takes: without its heartbeat the leases would run out.
    environment.setenv("CAMPAIGN_LEASE_SECONDS", str(SHORT_LEASE))
    slow = Behaviour(latencies={Kind.GENERATION: Latency(1.5), Kind.SEND: Latency(0.3)})
    with SandboxProcess(slow) as sandbox, DistantProxy(world.url, tmp_path / "far", milliseconds / 1000) as far:
        done = run_on(far.url, environment, sandbox, tmp_path, JobSpec(20, in_process=True))
        assert done.sent == 40
        assert sandbox.summary()["accepted_twice"] == []
        (seconds,) = done.shard_seconds
        generations = sum(entry["kind"] == Kind.GENERATION.value for entry in sandbox.record())
    assert generations == 40  # none was taken over by a second shard, which would have written anew
    assert seconds > SHORT_LEASE
    # Two rounds of 20 take 3.6 s wherever the database is. Each message asks it twice, one after the other.
    assert seconds < 3.6 + 2 * 5 * milliseconds / 1000 + 3.0
    assert world.wrong_counters() == []
