"""Spending limits: enforced in the database for all workers, without losing messages."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import pytest

from campaign_pipeline_tests.defs.test_shard import Play, Rig, play
from campaign_pipeline_tests.factories import World
from campaign_pipeline_tests.sql.holder import Holder, holding

__all__ = ["play"]


def spent(world: World) -> float:
    return float(world.value("SELECT COALESCE(sum(ai_cost_usd), 0) FROM campaign_messages"))


def dearest(world: World) -> float:
    return float(world.value("SELECT max(ai_cost_usd) FROM campaign_messages"))


def test_a_limit_counts_what_was_spent_before_it_was_set(world: World) -> None:
    workspace = world.workspace()
    config = world.campaign(workspace)
    run, next_run = world.run(config), world.run(config)
    early, late, of_next_run = world.due_message(run), world.due_message(run), world.due_message(next_run)
    holder = holding(world, early, late, of_next_run)
    holder.begin_new(early, ai_cost_usd=0.25)
    assert world.all("SELECT * FROM campaign_pauses") == []
    world.do("UPDATE workspaces SET max_cost_usd_per_day = 0.5")
    world.do("UPDATE campaign_configs SET max_cost_usd_per_run = 0.4")
    holder.begin_new(late, ai_cost_usd=0.15)
    assert paused(world) == {("run", str(run))}, "0.25 of it was spent before"
    holder.begin_new(of_next_run, ai_cost_usd=0.1)
    assert paused(world) == {("run", str(run)), ("workspace", str(workspace))}


def paused(world: World) -> set[tuple[str, str]]:
    return {(row["scope"], row["scope_id"]) for row in world.all("SELECT scope, scope_id FROM campaign_pauses")}


def counted(world: World, scope: str) -> float:
    """Return the booked spending of the only run or workspace."""
    return float(world.value("SELECT sum(spent_usd) FROM campaign_spending WHERE scope = %s", scope))


@pytest.mark.parametrize("concurrency", [1, 10])
def test_a_run_overspends_by_no_more_than_what_is_in_flight(world: World, play: Play, concurrency: int) -> None:
    run = world.run(world.campaign(max_cost_usd_per_run=0.0003))
    world.due_messages(run, 60)

    async def scenario(rig: Rig) -> None:
        await rig.batch(concurrency=concurrency)
        of_run = counted(world, "run")
        assert of_run == pytest.approx(spent(world))
        assert 0.0003 <= of_run <= 0.0003 + concurrency * dearest(world)
        assert rig.statuses()["pending"] == 60 - rig.generations()
        pause = rig.pause()
        assert (pause["scope"], pause["scope_id"], pause["code"]) == ("run", str(run), "spending_limit")

    play(scenario)


def test_a_paid_text_is_sent_although_the_limit_was_reached_meanwhile(world: World, play: Play) -> None:
    world.due_messages(world.run(world.campaign(max_cost_usd_per_run=0.0000001)), 10)

    async def scenario(rig: Rig) -> None:
        await rig.batch(concurrency=10)
        written = world.value("SELECT count(*) FROM campaign_messages WHERE generated_message IS NOT NULL")
        assert rig.statuses()["sent"] == written == rig.generations() > 1

    play(scenario)


def test_a_run_waits_for_its_limit_with_that_reason_and_continues_once_it_is_raised(world: World, play: Play) -> None:
    run = world.run(world.campaign(max_cost_usd_per_run=0.0000001))
    world.due_messages(run, 4)

    async def scenario(rig: Rig) -> None:
        await rig.batch(concurrency=1)
        rig.later(minutes=30)
        assert await rig.batch() == []
        row = world.one("SELECT wait_code, wait_reason, wait_until, status FROM campaign_runs WHERE id = %s", run)
        assert (row["wait_code"], row["wait_until"], row["status"]) == ("spending_limit", None, "running")
        assert "max_cost_usd_per_run" in row["wait_reason"]
        world.do("UPDATE campaign_configs SET max_cost_usd_per_run = 1")
        await rig.until_quiet()
        assert rig.statuses() == {"sent": 4}
        assert world.all("SELECT * FROM campaign_pauses") == []

    play(scenario)


def local_noon(world: World, zone: str) -> timedelta:
    """Return how far the clock must be moved for noon tomorrow in a time zone."""
    by: timedelta = world.value(
        "SELECT ((now() AT TIME ZONE %s)::date + 1 + time '12:00') AT TIME ZONE %s - now()", zone, zone
    )
    return by


@pytest.mark.parametrize("zone", ["America/Sao_Paulo", "Asia/Tokyo", "Nowhere/Atlantis"])
def test_a_workspace_at_its_daily_limit_continues_at_its_own_midnight(world: World, play: Play, zone: str) -> None:
    known = "America/Sao_Paulo" if zone.startswith("Nowhere") else zone
    rig_day = local_noon(world, known)
    world.move_clock(rig_day)
    workspace = world.workspace()
    world.do(
        "UPDATE workspaces SET max_cost_usd_per_day = 0.0000001, settings = jsonb_build_object('timezone', %s::text)",
        zone,
    )
    run = world.run(world.campaign(workspace))
    other = world.run()
    world.due_messages(run, 3)
    world.due_messages(other, 3)

    async def scenario(rig: Rig) -> None:
        rig.later_by = rig_day
        await rig.batch(concurrency=1)
        assert (rig.pause()["scope"], rig.pause()["scope_id"]) == ("workspace", str(workspace))
        assert sent_of(world, run) == 1
        assert sent_of(world, other) == 3, "another workspace's texts cost it nothing"
        rig.later(hours=11, minutes=55)
        assert await rig.batch() == []
        until = world.value("SELECT wait_until FROM campaign_runs WHERE id = %s", run)
        assert timedelta(minutes=4) < until - world.value("SELECT campaign_now()") <= timedelta(minutes=5)
        world.do(
            "UPDATE campaign_messages SET scheduled_at = campaign_now(), next_attempt_at = NULL "
            "WHERE status = 'pending'"
        )
        rig.later(minutes=6)
        await rig.batch(concurrency=1)
        assert sent_of(world, run) == 2, "one a day is all that this limit lets go"
        rows = world.all("SELECT day FROM campaign_spending WHERE scope_id = %s", workspace)
        assert len({row["day"] for row in rows}) == 2

    play(scenario)


def sent_of(world: World, run: UUID) -> int:
    count: int = world.value("SELECT count(*) FROM campaign_messages WHERE run_id = %s AND status = 'sent'", run)
    return count


def test_a_text_that_may_not_be_sent_was_paid_all_the_same(world: World, play: Play) -> None:
    message = world.due_message(world.run(world.campaign(max_cost_usd_per_run=100)))

    async def scenario(rig: Rig) -> None:
        await rig.batch()
        first = rig.message(message)
        assert (first["status"], first["error_code"]) == ("pending", "placeholder")
        assert first["ai_cost_usd"] > 0
        world.do("UPDATE leads SET client_name = 'Bia Lima'")  # another prompt: it is no text written twice
        rig.later(minutes=10)
        await rig.batch()
        both = rig.message(message)
        assert both["status"] == "sent"
        assert both["ai_cost_usd"] > first["ai_cost_usd"]
        assert counted(world, "run") == pytest.approx(float(both["ai_cost_usd"]))

    play(scenario, "generation:placeholder:times=1")


def test_a_text_is_counted_once_though_its_intent_comes_again_after_a_lost_answer(world: World) -> None:
    message = world.due_message(world.run(world.campaign(max_cost_usd_per_run=100)))
    holder = holding(world, message)
    for _ in range(2):
        assert holder.begin_new(message, ai_cost_usd=0.25) == "go"
    assert counted(world, "run") == counted(world, "workspace") == 0.25
    assert float(world.value("SELECT ai_cost_usd FROM campaign_messages")) == 0.25


def test_only_whoever_holds_a_message_can_spend_for_it(world: World) -> None:
    message = world.due_message(world.run(world.campaign(max_cost_usd_per_run=100)))
    assert Holder(world).begin_new(message, ai_cost_usd=0.25) == "lost"
    assert world.all("SELECT * FROM campaign_spending") == []


def test_messages_of_several_runs_in_one_group_are_counted_separately(world: World) -> None:
    workspace = world.workspace()
    world.do("UPDATE workspaces SET max_cost_usd_per_day = 1")
    config = world.campaign(workspace, max_cost_usd_per_run=0.5)
    runs = [world.run(config) for _ in range(2)]
    messages = [world.due_message(run) for run in runs for _ in range(3)]
    holder = holding(world, *messages)
    holder.begin_all([{"id": one, "text": "Oi, Ana!", "parts": ["Oi, Ana!"], "ai_cost_usd": 0.1} for one in messages])
    sums = {row["scope_id"]: float(row["spent_usd"]) for row in world.all("SELECT * FROM campaign_spending")}
    assert sums == {runs[0]: pytest.approx(0.3), runs[1]: pytest.approx(0.3), workspace: pytest.approx(0.6)}
    assert world.all("SELECT * FROM campaign_pauses") == []


def test_two_shards_at_work_together_keep_one_limit(world: World, play: Play) -> None:
    workspace = world.workspace()
    world.do("UPDATE workspaces SET max_cost_usd_per_day = 0.0005")
    for _ in range(2):
        world.due_messages(world.run(world.campaign(workspace, world.inbox(workspace))), 40)

    async def scenario(rig: Rig) -> None:
        claimed = await rig.claim()
        one, two = claimed.shards
        await asyncio.gather(
            *(rig.send(replace(claimed, shards=[shard]), concurrency=5) for shard in (one, two)),
        )
        of_day = counted(world, "workspace")
        assert of_day == pytest.approx(spent(world))
        assert 0.0005 <= of_day <= 0.0005 + 2 * 5 * dearest(world)
        assert rig.pause()["scope_id"] == str(workspace)
        assert rig.statuses()["pending"] == 80 - rig.generations() > 0

    play(scenario)


def test_a_workspace_pays_with_its_own_key_which_is_read_late_and_written_nowhere(
    world: World, play: Play, environment: pytest.MonkeyPatch
) -> None:
    own = world.due_message(world.run())
    world.do("UPDATE ai_agents SET openrouter_api_key = 'sk-or-own-1234567'")
    other = world.due_message(world.run())

    async def scenario(rig: Rig) -> None:
        environment.delenv("OPENROUTER_API_KEY")
        claimed = await rig.claim()
        assert "sk-or-own" not in repr(claimed)
        reports = await rig.send(claimed)
        assert "sk-or-own" not in repr(reports)
        assert rig.message(own)["status"] == "sent"
        assert rig.message(other)["status"] == "pending", "nobody pays for another workspace"
        assert rig.pause()["code"] == "no_key"
        run = world.value("SELECT run_id FROM campaign_messages WHERE id = %s", own)
        later = world.due_message(run)
        await rig.batch()
        assert rig.message(later)["status"] == "sent", "the shared account's trouble is none of its"

    play(scenario)


def test_the_models_to_fall_back_on_are_the_workspaces_and_the_one_that_wrote_is_noted(
    world: World, play: Play
) -> None:
    message = world.due_message(world.run())
    world.do("UPDATE ai_agents SET fallback_models = '{mistral/small}'")

    async def scenario(rig: Rig) -> None:
        await rig.batch()
        assert (rig.message(message)["status"], rig.message(message)["ai_model"]) == ("sent", "mistral/small")
        assert world.all("SELECT * FROM campaign_pauses") == []

    play(scenario, "generation:model_404")


def test_a_text_whose_answer_was_lost_is_not_paid_twice_where_openrouter_may_keep_it(world: World, play: Play) -> None:
    message = world.due_message(world.run())

    async def scenario(rig: Rig) -> None:
        await rig.batch()
        assert rig.message(message)["error_code"] == "no_answer"
        rig.later(minutes=10)
        await rig.batch()
        assert rig.message(message)["status"] == "sent"
        assert len(rig.sandbox.record.where(kind="generation", accepted=True)) == 1

    play(scenario, "generation:cut_after:times=1", OPENROUTER_CACHE_SECONDS="3600")
