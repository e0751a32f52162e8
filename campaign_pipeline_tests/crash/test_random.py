"""A short random campaign of kills, stops, restarts and mixed faults; `make crash-test` runs longer ones."""

import contextlib
from collections.abc import Iterator

import psycopg
import pytest

from campaign_pipeline.adapters.embedded import EmbeddedServer
from campaign_pipeline.sandbox import Behaviour, SandboxProcess
from campaign_pipeline_tests.adapters.restarts import own_database, own_server
from campaign_pipeline_tests.crash import harness
from campaign_pipeline_tests.crash.campaign import Plan, run
from campaign_pipeline_tests.crash.harness import many_messages, open_messages, recover
from campaign_pipeline_tests.factories import World

pytestmark = pytest.mark.crash


@pytest.fixture
def server_to_crash(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A separate server, with its data really on the disk."""
    with own_server(tmp_path_factory.mktemp("crashing")) as server:
        yield server


@pytest.mark.parametrize("looks_up", [True, False], ids=["with look-up", "without look-up"])
def test_a_random_campaign_of_kills_and_stops_ends_with_every_invariant_intact(
    server_to_crash: EmbeddedServer, looks_up: bool
) -> None:
    plan = Plan(100, 3, 2, seed=11, looks_up=looks_up, stops=3, database_restarts=1, provider_kills=1)
    with own_database(server_to_crash) as url, World(url) as world:
        assert run(plan, server_to_crash, world) == []
        assert world.value("SELECT count(*) FROM campaign_messages WHERE status IN ('sent', 'failed')") == 100


def test_recovery_takes_the_messages_of_a_suspended_claimer(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    # All its rounds may be over before the server ends the claimer's transaction.
    monkeypatch.setattr(harness, "ROUNDS", 2)
    many_messages(world, 3)
    with (
        SandboxProcess(Behaviour()) as sandbox,
        contextlib.suppress(psycopg.errors.IdleInTransactionSessionTimeout),
        psycopg.connect(world.url) as claimer,
    ):
        claimer.execute("SET LOCAL idle_in_transaction_session_timeout = '5s'")
        claimer.execute("SELECT FROM campaign_messages FOR UPDATE")
        recover(world, sandbox)
    assert open_messages(world) == 0
