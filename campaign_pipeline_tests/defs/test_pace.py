"""The pace at the provider: real processes on one inbox, a provider that throttles, a missing number."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest

from campaign_pipeline.sandbox import SandboxProcess
from campaign_pipeline_tests.crash.harness import variables, violations
from campaign_pipeline_tests.defs.test_shard import Play, Rig, play
from campaign_pipeline_tests.defs.test_spending import local_noon
from campaign_pipeline_tests.factories import World

WORKER = "campaign_pipeline_tests.defs.paced_worker"
WORKERS = 4

__all__ = ["play"]  # a fixture that is made for shards, wherever they are tested


class Worker:
    """A process that delivers a batch on request."""

    def __init__(self, world: World, sandbox: SandboxProcess, **more: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", WORKER, world.url],
            env=variables(world.url, sandbox, CAMPAIGN_LEASE_SECONDS="120", **more),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def begin(self) -> None:
        """Start a batch."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def end(self) -> int:
        """Wait for its end; return how many messages it claimed."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the worker died"
        return int(line)

    def close(self) -> None:
        """Let it end by itself."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.process.stdout.close()


@contextmanager
def workers(world: World, sandbox: SandboxProcess, **more: str) -> Iterator[list[Worker]]:
    """Four running workers."""
    with ExitStack() as stack:
        started = []
        for _ in range(WORKERS):
            started.append(Worker(world, sandbox, **more))
            stack.callback(started[-1].close)
        yield started


def paced_run(world: World, count: int, **pace: Any) -> tuple[UUID, UUID]:
    """An inbox with a pace, and a run with so many due messages; returns both ids."""
    workspace = world.workspace()
    inbox = world.inbox(workspace)
    world.insert("campaign_inbox_pace", inbox_id=inbox, **pace)
    run = world.run(world.campaign(workspace, inbox), leads_total=count)
    world.due_messages(run, count)
    return inbox, run


def sends(sandbox: SandboxProcess) -> list[dict[str, Any]]:
    """The messages that reached the provider, in order."""
    return sorted(sandbox.record(kind="send", accepted=True), key=lambda entry: entry["received_at"])


def test_four_workers_keep_the_pace_of_one_inbox_for_an_hour(world: World) -> None:
    """Return the provider's record: real arrivals on the moved clock."""
    gap, jitter, hour = 150.0, 0.2, timedelta(hours=1)
    inbox, _ = paced_run(world, 30, min_gap_seconds=gap, jitter=jitter)
    start = world.value("SELECT campaign_now()")
    moves = [(0.0, timedelta(0))]  # since when (this machine's clock) the database's clock is off by how much
    with SandboxProcess() as sandbox, workers(world, sandbox, CAMPAIGN_MAX_INLINE_WAIT_SECONDS="0") as team:
        while True:
            turn = world.one(
                "SELECT greatest(free_at, campaign_now()) AS at, campaign_now() AS now, clock_timestamp() AS real"
                " FROM campaign_pace('inbox', %s)",
                inbox,
            )
            if turn["at"] >= start + hour:
                break
            moved = moves[-1][1] + (turn["at"] - turn["now"]) + timedelta(milliseconds=5)
            moves.append((turn["real"].timestamp(), moved))
            world.move_clock(moved)
            for worker in team:
                worker.begin()
            assert sum(worker.end() for worker in team) >= 1
        arrived = sends(sandbox)
        wrong = violations_while_open(world, sandbox)
    at = [entry["received_at"] + offset_at(moves, entry["received_at"]).total_seconds() for entry in arrived]
    gaps = [later - earlier for earlier, later in pairwise(at)]
    assert min(gaps) >= gap
    assert sum(gaps) / len(gaps) == pytest.approx(gap * (1 + jitter / 2), rel=0.05)
    begun = [
        row["attempted_at"]
        for row in world.all("SELECT attempted_at FROM campaign_message_parts WHERE status = 'sent' ORDER BY 1")
    ]
    assert len(begun) == len(arrived) > 20
    assert min((later - earlier).total_seconds() for earlier, later in pairwise(begun)) >= gap
    assert wrong == []


def offset_at(moves: list[tuple[float, timedelta]], moment: float) -> timedelta:
    return [offset for since, offset in moves if since <= moment][-1]


def violations_while_open(world: World, sandbox: SandboxProcess) -> list[str]:
    """Return the violations, ignoring messages that are merely unfinished."""
    return [text for text in violations(world, sandbox.record()) if "without what that takes" not in text]


def test_four_workers_that_wait_in_place_keep_a_gap_in_real_time(world: World) -> None:
    gap, count = 1.0, 8
    paced_run(world, count, min_gap_seconds=gap, jitter=0)
    done = threading.Event()

    def drive(worker: Worker) -> None:
        while not done.is_set():
            worker.begin()
            if not worker.end():
                done.wait(0.1)

    with SandboxProcess() as sandbox, workers(world, sandbox, CAMPAIGN_MAX_INLINE_WAIT_SECONDS="60") as team:
        drivers = [threading.Thread(target=drive, args=(worker,)) for worker in team]
        for driver in drivers:
            driver.start()
        give_up = datetime.now(UTC) + timedelta(seconds=120)
        while world.value("SELECT count(*) FROM campaign_messages WHERE status <> 'sent'"):
            assert datetime.now(UTC) < give_up, "it does not come to an end"
            done.wait(0.2)
        done.set()
        for driver in drivers:
            driver.join()
        arrived = [entry["received_at"] for entry in sends(sandbox)]
        wrong = violations(world, sandbox.record())
    gaps = sorted(later - earlier for earlier, later in pairwise(arrived))
    assert len(gaps) == count - 1
    assert gaps[0] >= gap
    assert gaps[len(gaps) // 2] < 1.2 * gap  # the median: a machine that is busy may lose a turn now and then
    assert wrong == []


# A relay that throttles, a number that is missing ---------------------------------------------------------------------


def paced(world: World, count: int, **pace: Any) -> UUID:
    inbox, _ = paced_run(world, count, **{"jitter": 0, **pace})
    return inbox


def test_a_throttled_inbox_goes_slower_and_recovers(world: World, play: Play) -> None:
    inbox = paced(world, 12, min_gap_seconds=20)

    def gap() -> float:
        return float(world.value("SELECT gap_seconds FROM campaign_pace('inbox', %s)", inbox))

    async def scenario(rig: Rig) -> None:
        found = []
        for _ in range(4):
            await rig.batch()
            found.append(gap())
            rig.later(seconds=200)
        assert found == [40, 80, 160, 160]
        assert {row["retry_count"] for row in world.messages()} == {0}
        rig.later(minutes=46)
        assert gap() == 20
        for _ in range(40):
            if not world.value("SELECT count(*) FROM campaign_messages WHERE status <> 'sent'"):
                break
            await rig.batch()
            rig.later(seconds=60)
        assert {row["status"] for row in world.messages()} == {"sent"}
        logged = world.all(
            "SELECT message FROM campaign_logs WHERE message LIKE '%%times slower%%' ORDER BY created_at"
        )
        assert [row["message"].split("goes ")[1][0] for row in logged][:3] == ["2", "4", "8"]

    play(scenario, "send:rate_overlimit:times=4", CAMPAIGN_MAX_INLINE_WAIT_SECONDS="0", CAMPAIGN_MAX_AGE_MINUTES="9999")


def test_unsent_messages_use_up_no_limit(world: World, play: Play) -> None:
    noon = local_noon(world, "America/Sao_Paulo")  # all three batches on one day
    world.move_clock(noon)
    inbox = paced(world, 3, daily_limit=2)
    missing = world.value("SELECT phone FROM leads ORDER BY phone LIMIT 1")
    digits = "".join(character for character in missing if character.isdigit())

    async def scenario(rig: Rig) -> None:
        rig.later_by = noon
        for _ in range(3):
            await rig.batch()
            rig.later(seconds=10)
        assert sorted(row["status"] for row in world.messages()) == ["failed", "sent", "sent"]
        assert world.value("SELECT day_count FROM campaign_pace('inbox', %s)", inbox) == 2

    play(scenario, f"send:not_on_whatsapp:phone={digits}")


def test_a_fallback_inbox_really_sends_while_the_first_is_down(world: World, play: Play) -> None:
    workspace = world.workspace()
    first, second = world.inbox(workspace, name="first"), world.inbox(workspace, name="second")
    config = world.campaign(workspace, first, fallback_inbox_ids=[second], when_inbox_down="fallback")
    run = world.run(config)

    def connect(status: str) -> None:
        world.do("UPDATE instances SET status = %s WHERE name = 'first'", status)

    async def scenario(rig: Rig) -> None:
        for status in ("connected", "disconnected", "connected"):
            connect(status)
            world.due_messages(run, 2)
            await rig.batch()
            rig.later(minutes=1)
        assert [entry["instance"] for entry in rig.sandbox.record.sent()] == ["first"] * 2 + ["second"] * 2 + [
            "first"
        ] * 2
        assert {row["status"] for row in world.messages()} == {"sent"}

    play(scenario)
