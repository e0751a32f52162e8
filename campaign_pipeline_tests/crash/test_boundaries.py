"""A worker is killed before and after every persisted boundary; others recover, and everything is verified."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from campaign_pipeline.sandbox import Behaviour, SandboxProcess
from campaign_pipeline_tests.crash.harness import (
    PATIENCE,
    STEP,
    many_messages,
    open_messages,
    recover,
    start_worker,
    violations,
)
from campaign_pipeline_tests.crash.worker import POINTS
from campaign_pipeline_tests.factories import World

pytestmark = pytest.mark.crash

# A look-up happens only after an earlier death, and is tried on its own below.
BOUNDARIES = [f"{side}:{point}" for point in POINTS if point != "look_up" for side in ("before", "after")]
# Only there may a request of unknown outcome exist: elsewhere there is nothing to look up.
IN_DOUBT = [boundary for boundary in BOUNDARIES if boundary.endswith((":begin_part", ":send", ":settle"))]


@pytest.fixture(scope="module")
def provider() -> Iterator[SandboxProcess]:
    with SandboxProcess() as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(provider: SandboxProcess) -> SandboxProcess:
    """The provider of all these tests, well-behaved and with an empty record."""
    provider.set_behaviour(Behaviour())
    provider.reset()
    return provider


@pytest.mark.parametrize(
    ("boundary", "saves"),
    [
        *(pytest.param(boundary, True, id=f"{boundary}, with look-up") for boundary in BOUNDARIES),
        *(pytest.param(boundary, False, id=f"{boundary}, without look-up") for boundary in IN_DOUBT),
    ],
)
def test_a_kill_at_a_boundary_loses_nothing_and_sends_nothing_twice(
    world: World, sandbox: SandboxProcess, boundary: str, saves: bool
) -> None:
    sandbox.set_behaviour(Behaviour(saves_messages=saves))
    many_messages(world, 40, runs=2)
    once = boundary.endswith((":claim", ":contexts", ":close", ":take_over"))
    doomed = start_worker(world.url, sandbox, CRASH_AT=f"{boundary}:{1 if once else 9}")
    assert doomed.wait() == -signal.SIGKILL
    recover(world, sandbox)
    record = sandbox.record()
    assert violations(world, record) == []
    sent = world.value("SELECT count(*) FROM campaign_messages WHERE status = 'sent'")
    unknown = world.value("SELECT count(*) FROM campaign_messages WHERE error_class = 'unknown' AND status = 'failed'")
    assert sent + unknown == 40
    if saves:
        assert unknown == 0


@pytest.mark.parametrize("side", ["before", "after"])
def test_a_kill_while_looking_up_leaves_the_question_open_for_the_next(
    world: World, sandbox: SandboxProcess, side: str
) -> None:
    many_messages(world, 30, runs=2)
    for boundary in ("after:send:7", f"{side}:look_up:1"):
        doomed = start_worker(world.url, sandbox, CRASH_AT=boundary)
        assert doomed.wait() == -signal.SIGKILL
        world.do(
            "UPDATE campaign_messages SET lease_expires_at = campaign_now() WHERE status <> 'pending'"
            " AND lease_expires_at IS NOT NULL"
        )
    recover(world, sandbox)
    record = sandbox.record()
    assert violations(world, record) == []
    assert world.value("SELECT count(*) FROM campaign_messages WHERE status = 'sent'") == 30


def test_a_message_that_every_worker_dies_of_is_set_aside_and_all_others_are_sent(
    world: World, sandbox: SandboxProcess
) -> None:
    many_messages(world, 30, runs=1)
    poisoned = world.messages()[4]["id"]
    for death in (1, 2):
        doomed = start_worker(world.url, sandbox, CRASH_FOR=str(poisoned))
        assert doomed.wait() == -signal.SIGKILL
        world.move_clock(STEP * death)
    recover(world, sandbox, STEP * 2)
    record = sandbox.record()
    assert violations(world, record) == []
    row = world.one("SELECT status, error_class, error_code FROM campaign_messages WHERE id = %s", poisoned)
    assert tuple(row.values()) == ("failed", "permanent", "worker_died_twice")
    assert world.value("SELECT count(*) FROM campaign_messages WHERE status = 'sent'") == 29


def outlast_lease(since: float) -> None:
    """Let the lease expire in real time too: a worker measures it with its own clock, which no test can move."""
    time.sleep(max(0.0, since + float(PATIENCE["CAMPAIGN_LEASE_SECONDS"]) - time.monotonic()))


@pytest.mark.parametrize("boundary", ["after:begin_part:9", "before:send:9", "before:settle:9"])
def test_a_worker_that_sleeps_at_a_boundary_until_all_is_done_sends_and_changes_nothing(
    world: World, sandbox: SandboxProcess, boundary: str
) -> None:
    many_messages(world, 40, runs=2)
    sleeper = start_worker(world.url, sandbox, STOP_AT=boundary)
    status = Path(f"/proc/{sleeper.pid}/stat")
    while status.read_text().rpartition(")")[2].split()[0] != "T":
        pass  # until it sleeps
    asleep = time.monotonic()
    moved = recover(world, sandbox)
    outlast_lease(asleep)
    sleeper.send_signal(signal.SIGCONT)
    sleeper.finish()
    recover(world, sandbox, moved)
    record = sandbox.record()
    assert violations(world, record) == []
    assert world.value("SELECT count(*) FROM campaign_messages WHERE status = 'sent'") == 40


def test_a_stopped_worker_that_wakes_after_its_lease_changes_and_sends_nothing(
    world: World, sandbox: SandboxProcess
) -> None:
    many_messages(world, 60, runs=2)
    sleeper = start_worker(world.url, sandbox, concurrency=3)
    while not sandbox.record(accepted=True):
        pass  # until it is in the middle of its work
    sleeper.send_signal(signal.SIGSTOP)
    asleep = time.monotonic()
    moved = recover(world, sandbox)
    assert open_messages(world) == 0
    outlast_lease(asleep)
    sleeper.send_signal(signal.SIGCONT)
    sleeper.finish()
    recover(world, sandbox, moved)
    record = sandbox.record()
    assert violations(world, record) == []
    assert world.value("SELECT count(*) FROM campaign_messages WHERE status = 'sent'") == 60
