"""Resending failed messages: never one that may have been sent, unless a person requests it explicitly."""

from typing import Any
from uuid import UUID

from campaign_pipeline.adapters.queue import Queue
from campaign_pipeline.sandbox import Behaviour, Fault
from campaign_pipeline_tests.defs.test_shard import Play, Rig, inbox_of, play
from campaign_pipeline_tests.factories import World

__all__ = ["play"]  # the fixture


def requeue(world: World, message: UUID, **named: Any) -> int:
    """Return how many messages were requeued."""
    return len(world.all("SELECT campaign_requeue_failed(%s, %s)", [message], named.get("resend_unknown", False)))


async def closed_run(rig: Rig, run: UUID) -> str:
    """Return the run's status after closing runs."""
    await Queue(rig.world.url).close_runs()
    status: str = rig.world.value("SELECT status FROM campaign_runs WHERE id = %s", run)
    return status


def test_an_unknown_message_is_sent_again_only_when_it_is_asked_for_by_name(world: World, play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        _, _, run = inbox_of(world)
        message = world.due_message(run)
        # Never accepted, no answer, and a server that stores nothing: the outcome stays unknown.
        rig.sandbox.set_behaviour(Behaviour(saves_messages=False, faults=(Fault.parse("send:cut_before:times=1"),)))
        for _ in range(3):
            await rig.batch()
            rig.later(hours=3)
        assert rig.message(message)["error_class"] == "unknown"
        assert await closed_run(rig, run) == "completed"
        assert requeue(world, message) == 0
        assert requeue(world, message, resend_unknown=True) == 1
        assert world.wrong_counters() == []
        await rig.batch()
        assert rig.message(message)["status"] == "sent"
        assert await closed_run(rig, run) == "completed"
        assert len(rig.arrived()) == 1
        assert requeue(world, message, resend_unknown=True) == 0
        assert rig.generations() == 1

    play(scenario)


def test_an_unknown_message_found_to_be_sent_is_corrected_and_not_resent(world: World, play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        _, inbox, run = inbox_of(world)
        await rig.a_message_surely_sent(inbox)
        message = world.due_message(run)
        # Accepted, but the provider could not be asked for a day.
        faults = (Fault.parse("send:cut_after:times=1"), Fault.parse("look_up:server_error_500"))
        rig.sandbox.set_behaviour(Behaviour(faults=faults))
        await rig.batch()
        for _ in range(3):
            rig.later(hours=13)
            await rig.batch()
        assert rig.message(message)["error_class"] == "unknown"
        sends = rig.sends()
        rig.sandbox.set_behaviour(Behaviour())
        assert requeue(world, message, resend_unknown=True) == 1
        await rig.batch()
        assert rig.message(message)["status"] == "sent"
        assert rig.sends() == sends

    play(scenario)


def test_a_refused_message_continues_at_the_refused_part(world: World, play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        _, _, run = inbox_of(world)
        world.do("UPDATE campaign_configs SET split_messages = true")
        long = "Primeira parte da mensagem, que é comprida o bastante para ser dividida em duas. " * 2
        message = world.due_message(run, generated_message=f"{long.strip()}\n\nSegunda parte: podemos conversar?")
        rig.sandbox.set_behaviour(Behaviour(faults=(Fault.parse("send:schema:text=Segunda:times=1"),)))
        await rig.batch()
        assert (rig.message(message)["status"], rig.parts(message)[-1]) == ("failed", "failed")
        went_out = len(rig.arrived())
        assert requeue(world, message) == 1
        await rig.batch()
        assert rig.message(message)["status"] == "sent"
        assert set(rig.parts(message)) == {"sent"}
        assert len(rig.arrived()) == went_out + 1
        assert requeue(world, message) == 0

    play(scenario)
