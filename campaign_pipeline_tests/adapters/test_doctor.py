"""The doctor's findings about a database, and which of them keep messages from being sent."""

import asyncio
from datetime import timedelta
from uuid import uuid4

from campaign_pipeline.adapters.doctor import database_findings
from campaign_pipeline.adapters.findings import Finding, State
from campaign_pipeline.adapters.http import http_client
from campaign_pipeline.adapters.openrouter import check_key
from campaign_pipeline.adapters.operator import Operator
from campaign_pipeline.core.ports import Systemic
from campaign_pipeline.sandbox import SandboxProcess
from campaign_pipeline_tests.factories import World
from campaign_pipeline_tests.sql.holder import holding

HOUR, QUARTER = timedelta(hours=1), timedelta(minutes=15)


def findings(world: World) -> dict[str, Finding]:
    return {finding.what: finding for finding in database_findings(world.url, HOUR, QUARTER)}


def test_a_healthy_queue_has_nothing_that_stops(world: World) -> None:
    world.due_message(world.run())
    assert {finding.state for finding in findings(world).values()} == {State.FINE}


def test_findings_that_hold_messages_are_stops_and_say_what_to_do(world: World) -> None:
    workspace = world.workspace()
    world.due_message(world.run(world.campaign(workspace, world.inbox(workspace, status="disconnected")), name="Hoje"))
    world.campaign(timezone="Brazil/Nowhere")
    with Operator(world.url) as desk:
        desk.pause("all", None, "ana", "wrong prices")
    found = findings(world)
    assert [found[what].state for what in ("waiting runs", "pauses by hand", "window")] == [State.STOPS] * 3
    assert found["waiting runs"].found.startswith("Hoje: The instance")
    assert "ana paused all sending: wrong prices" in found["pauses by hand"].found


def test_late_messages_that_nothing_keeps_stop_and_stale_leases_are_worth_a_look(world: World) -> None:
    run = world.run()
    world.due_message(run)
    holding(world, world.due_message(run))
    world.move_clock(timedelta(minutes=40))
    found = findings(world)
    assert found["overdue"].found == "1 message overdue by more than 15 minutes in an open window"
    assert [found[what].state for what in ("overdue", "leases", "clock")] == [State.STOPS, State.LOOK, State.LOOK]


def test_a_database_that_does_not_answer_is_one_finding() -> None:
    (only,) = database_findings("postgresql://crm:secret@127.0.0.1:1/crm", HOUR, QUARTER)
    assert only.state is State.STOPS
    assert "secret" not in only.found


def test_a_key_is_asked_for_without_a_generation() -> None:
    async def ask(url: str) -> list[object]:
        async with http_client(connections=1) as client:
            return [await check_key(client, url, key, "K", 10.0) for key in (f"sk-or-{uuid4().hex}", "ção")]

    with SandboxProcess() as sandbox:
        good, bad = asyncio.run(ask(sandbox.openrouter_url))
        assert sandbox.record(kind="generation") == []
    assert isinstance(good, float)
    assert good > 0
    assert isinstance(bad, Systemic)
