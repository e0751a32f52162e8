"""Workers are killed and stopped while they hold messages that are planned for later."""

import signal

import pytest

from campaign_pipeline.sandbox import SandboxProcess
from campaign_pipeline_tests.crash.harness import many_messages, recover, start_worker, violations
from campaign_pipeline_tests.factories import World

pytestmark = pytest.mark.crash

MESSAGES = 30


def test_kills_and_stops_during_the_horizon_send_nothing_early_nothing_twice_and_lose_nothing(world: World) -> None:
    many_messages(world, MESSAGES, runs=2, split=False)
    world.do("UPDATE campaign_messages SET scheduled_at = campaign_now() + interval '80 seconds'")
    with SandboxProcess() as sandbox:
        # Half each, as of two overlapping runs.
        workers = [start_worker(world.url, sandbox, batch=MESSAGES // 2, CRASH_AHEAD="90") for _ in range(2)]
        written = "SELECT count(*) FROM campaign_messages WHERE generated_message IS NOT NULL AND status = 'queued'"
        while world.value(written) < MESSAGES:
            pass  # until all texts wait for their time
        killed, stopped = workers
        killed.send_signal(signal.SIGKILL)
        stopped.send_signal(signal.SIGTERM)
        for worker in workers:
            worker.wait(60)
        untouched = world.all("SELECT retry_count, scheduled_at FROM campaign_messages WHERE status = 'pending'")
        assert len(untouched) == MESSAGES // 2, "of the stopped worker: given back at once"
        assert {row["retry_count"] for row in untouched} == {0}
        assert [entry for entry in sandbox.record() if entry["kind"] == "send"] == []
        recover(world, sandbox)
        record = sandbox.record()
    assert violations(world, record) == []
    assert sum(entry["kind"] == "generation" for entry in record) == MESSAGES, "no text was paid for twice"
    counts = world.one(
        "SELECT count(*) FILTER (WHERE status = 'sent') AS sent,"
        " count(*) FILTER (WHERE sent_at < scheduled_at) AS early,"
        " (SELECT count(*) FROM campaign_pipeline.campaign_worker_deaths) AS deaths FROM campaign_messages"
    )
    assert counts == {"sent": MESSAGES, "early": 0, "deaths": 0}
