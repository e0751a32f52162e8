"""One queue on several hosts: a whole job, a host that is cut off and dies, a stopped run and a stopped worker."""

import os
import signal

import pytest

from campaign_pipeline.adapters.embedded import EmbeddedServer
from campaign_pipeline.sandbox import Behaviour, Kind, Latency
from campaign_pipeline_tests.crash.harness import STEP, many_messages, open_messages, violations
from campaign_pipeline_tests.distributed.hosts import kill
from campaign_pipeline_tests.distributed.site import ended, site, wait_until
from campaign_pipeline_tests.factories import World

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # about a minute on two free cores

MESSAGES = 160
ROUNDS = 3
BEHAVIOUR = Behaviour(latencies={Kind.GENERATION: Latency(0.05), Kind.SEND: Latency(0.15)})


def test_hosts_share_a_queue_and_the_death_of_one_or_of_a_run_neither_loses_nor_repeats_anything(
    server: EmbeddedServer, world: World
) -> None:
    many_messages(world, MESSAGES, runs=2)
    with site(server, world, BEHAVIOUR, ("one", "two")) as hosts:
        workers = {name: hosts.start_worker(name) for name in ("one", "two")}
        run = hosts.start_run(shard_size=20, concurrency=2)
        hosts.wait_for_workers("one", "two")

        # A worker's host is cut off in the middle, then dies: the other one takes its shards over.
        wait_until(lambda: hosts.sent() >= MESSAGES // 3, "a third is sent")
        hosts.hosts.cut_off("two")
        kill(workers["two"])
        assert ended(run) == 0
        # A request that was lost with the cable may have arrived: its message waits until a look-up can tell.
        assert open_messages(world) == in_doubt(world)
        assert list(hosts.runs().values()) == ["SUCCESS"]

        # A run is terminated: requests in flight end and are recorded, the rest goes back.
        many_messages(world, MESSAGES, runs=2)
        before = hosts.sent()
        run = hosts.start_run(shard_size=80, concurrency=2)
        wait_until(lambda: hosts.sent() >= before + 10, "some of the second job is sent")
        cancelled = hosts.cancel_run()
        run.send_signal(signal.SIGTERM)
        ended(run)
        assert hosts.runs()[cancelled] == "CANCELED"
        wait_until(lambda: leased(world) == 0, "the shards of the terminated run have let go", 30)
        assert open_messages(world) > 0
        assert world.value("SELECT count(*) FROM campaign_message_parts WHERE status = 'attempting'") == 0

        # The schedule continues, with the returned host.
        hosts.hosts.heal("two")
        hosts.start_worker("two")
        assert hosts.tick() == "launches a run"
        before = hosts.sent()
        run = hosts.start_run(shard_size=40, concurrency=3)

        # A worker's process dies: its messages are free at once, not when its leases expire, and the run continues.
        wait_until(lambda: hosts.sent() >= before + 10, "some of the third job is sent")
        owner = world.value("SELECT max(lease_owner) FROM campaign_messages WHERE status = 'sending'")
        os.kill(int(owner.partition(":")[2]), signal.SIGKILL)
        world.do(
            "UPDATE campaign_messages SET lease_expires_at = lease_expires_at + interval '5 minutes'"
            " WHERE lease_owner = %s AND campaign_pipeline.campaign_is_leased(status)",
            owner,
        )
        wait_until(lambda: holds(world, owner) == 0, "nothing is held by a process that died")

        # A worker is shut down: it waits for no shard to be done, and what is left of its shards goes back.
        workers["one"].send_signal(signal.SIGTERM)
        assert ended(workers["one"], 60) == 0
        ended(run)
        for rounds in range(1, ROUNDS + 1):
            world.move_clock(rounds * STEP)  # past what in-doubt messages wait for: a look-up that proves absence
            assert ended(hosts.start_run(shard_size=40, concurrency=10)) == 0
            if open_messages(world) == 0:
                break
        assert open_messages(world) == 0
        assert violations(world, hosts.record()) == []


def leased(world: World) -> int:
    """Count leased messages."""
    count: int = world.value(
        "SELECT count(*) FROM campaign_messages WHERE status IN ('queued', 'generating', 'sending')"
    )
    return count


def in_doubt(world: World) -> int:
    """Count the messages with a part whose request was lost: looked up later, or to be sent again."""
    count: int = world.value(
        "SELECT count(DISTINCT message_id) FROM campaign_message_parts"
        " WHERE attempts > 0 AND status IN ('unknown', 'planned')"
    )
    return count


def holds(world: World, owner: str) -> int:
    """Count the messages that a process holds. A finished message keeps its last owner and token, but is not held."""
    query = (
        "SELECT count(*) FROM campaign_messages WHERE lease_owner = %s AND campaign_pipeline.campaign_is_leased(status)"
    )
    count: int = world.value(query, owner)
    return count
