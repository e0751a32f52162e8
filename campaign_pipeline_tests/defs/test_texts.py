"""Messages with bad texts of the model: cleaned, refused and booked, without wasting messages."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from campaign_pipeline.adapters.operations import Operations
from campaign_pipeline.adapters.reports import Reports
from campaign_pipeline.core.ports import Completion, Prompt, Reasoning, Transient
from campaign_pipeline_tests.defs.test_shard import Play, Rig, Watch, play
from campaign_pipeline_tests.factories import World
from campaign_pipeline_tests.sql.holder import holding

__all__ = ["play"]

GOOD = "Olá, Ana! Vi que a Padaria Aurora abriu uma segunda loja. Podemos conversar?"
TRUNCATED = Transient("truncated", "The text did not fit in the tokens allowed.")
COST = 0.001


def answer(text: str, prompt: Prompt, **fields: Any) -> Completion:
    return Completion(text, prompt.model, 100, 20, COST, **fields)


def always(text: str) -> Watch:
    return Watch(answers=lambda prompt: answer(text, prompt))


def calls(world: World) -> list[dict[str, Any]]:
    return world.all("SELECT * FROM campaign_pipeline.campaign_model_calls ORDER BY called_at, id")


def test_a_text_with_reasoning_is_cleaned_and_paid_for_once(world: World, play: Play) -> None:
    world.due_messages(world.run(), 3)
    asked: list[Prompt] = []

    async def scenario(rig: Rig) -> None:
        def answers(prompt: Prompt) -> Completion:
            asked.append(prompt)
            return answer(f"<think>\nplano\n</think>\n\n{GOOD}", prompt)

        await rig.batch(Watch(answers=answers))
        assert rig.arrived() == [GOOD] * 3
        assert [(call["rule"], call["changed"], call["answer"]) for call in calls(world)] == [
            (None, ["reasoning_cut"], None)
        ] * 3
        assert {float(row["ai_cost_usd"]) for row in world.messages()} == {COST}

    play(scenario)
    assert len(asked) == 3


def test_savings_of_a_cached_prompt_are_stored_with_the_call_and_reported(world: World, play: Play) -> None:
    run = world.run()
    world.due_messages(run, 2)

    async def scenario(rig: Rig) -> None:
        def answers(prompt: Prompt) -> Completion:
            assert prompt.session == world.value("SELECT config_id::text FROM campaign_runs WHERE id = %s", run)
            return answer(GOOD, prompt, cached_tokens=90, cache_saved_usd=0.002)

        await rig.batch(Watch(answers=answers))
        kept = [(call["rule"], call["cached_tokens"], float(call["cache_saved_usd"])) for call in calls(world)]
        assert kept == [(None, 90, 0.002)] * 2
        now = world.value("SELECT campaign_now()")
        reports = Reports(world.url)
        start, end = now - timedelta(hours=1), now + timedelta(hours=1)
        of_campaign, total = await reports.campaign_day(start, end, "UTC")
        for row in (of_campaign, total):
            assert row.cached_tokens == 180
            assert row.cache_saved_usd == pytest.approx(0.004)
            assert row.cost_usd == pytest.approx(2 * COST)
        assert await reports.text_rules(start, end) == []

    play(scenario)


def test_the_same_rule_refuses_a_message_twice_and_not_a_third_time(world: World, play: Play) -> None:
    message = world.due_message(world.run())
    refused = "Olá, (nome)! Aqui é o (seu nome)."

    async def scenario(rig: Rig) -> None:
        await rig.batch(always(refused))
        row = rig.message(message)
        assert (row["status"], row["error_class"], row["error_code"]) == ("pending", "transient", "placeholder")
        rig.later(minutes=10)
        (report,) = await rig.batch(always(refused))
        row = rig.message(message)
        assert (row["status"], row["error_class"], row["error_code"]) == ("failed", "permanent", "placeholder")
        assert [(call["rule"], call["answer"]) for call in calls(world)] == [("placeholder", refused)] * 2
        assert float(row["ai_cost_usd"]) == pytest.approx(2 * COST)
        assert "(nome)" not in str(report), "the text is in the database only"
        assert rig.sends() == 0

    play(scenario)


def test_a_model_whose_answers_are_never_a_text_is_paused_and_its_messages_wait(world: World, play: Play) -> None:
    world.due_messages(world.run(), 8)

    async def scenario(rig: Rig) -> None:
        await rig.batch(always("<think>\nplano sem fim"), concurrency=1)
        pause = rig.pause()
        assert (pause["scope"], pause["kind"], pause["code"]) == ("model", "systemic", "model_unfit")
        assert rig.statuses() == {"pending": 8}
        assert len(calls(world)) == 5
        rig.later(hours=2)
        await rig.batch(always(GOOD), concurrency=1)
        await rig.until_quiet()
        assert rig.statuses() == {"sent": 8}
        assert world.all("SELECT * FROM campaign_pauses") == []
        rows = world.all("SELECT refused_in_a_row FROM campaign_pipeline.campaign_text_records")
        assert {row["refused_in_a_row"] for row in rows} == {0}

    play(scenario)


def test_refused_answers_are_counted_over_shards_of_one_message_each(world: World, play: Play) -> None:
    """A paced campaign asks for one text at a time."""
    run = world.run()

    async def scenario(rig: Rig) -> None:
        for _ in range(6):
            world.due_message(run)
            await rig.batch(always("<|im_end|>"))
        assert rig.pause()["code"] == "model_unfit"
        assert rig.statuses() == {"pending": 6}

    play(scenario)


def test_a_campaign_whose_texts_are_all_refused_pauses_its_run_and_no_other(world: World, play: Play) -> None:
    bad, good = world.run(), world.run()
    world.due_messages(bad, 7)
    world.due_messages(good, 7)

    async def scenario(rig: Rig) -> None:
        workspace = world.value(
            "SELECT c.workspace_id::text FROM campaign_runs r JOIN campaign_configs c ON c.id = r.config_id "
            "WHERE r.id = %s",
            bad,
        )

        def answers(prompt: Prompt) -> Completion:
            return answer("Olá! Ligue (21) 99999-1234." if prompt.workspace_id == workspace else GOOD, prompt)

        await rig.batch(Watch(answers=answers), concurrency=1)
        pause = rig.pause()
        assert (pause["scope"], pause["scope_id"], pause["code"]) == ("run", str(bad), "texts_refused")
        assert {row["status"] for row in world.messages(bad)} == {"pending"}
        assert {row["status"] for row in world.messages(good)} == {"sent"}

    play(scenario)


# Tokens -----------------------------------------------------------------------------------------------------------


def reasoner(needed: int, asked: list[int]) -> Callable[[Prompt], Completion]:
    """A model that writes nothing unless it may use so many tokens."""

    def answers(prompt: Prompt) -> Completion:
        asked.append(prompt.max_tokens)
        if prompt.max_tokens < needed:
            return answer("", prompt, reasoning_tokens=20, failure=TRUNCATED)
        return answer(GOOD, prompt, reasoning_tokens=10)

    return answers


def test_a_model_that_spends_its_tokens_on_reasoning_gets_more_and_keeps_them(world: World, play: Play) -> None:
    run = world.run()
    world.due_messages(run, 6)
    asked: list[int] = []

    async def scenario(rig: Rig) -> None:
        watch = Watch(answers=reasoner(2000, asked))
        await rig.batch(watch, concurrency=1)
        assert rig.statuses() == {"sent": 6}
        assert asked == [500, 4500, *[2500] * 5]
        (cut,) = calls(world)
        assert (cut["rule"], cut["reasoning_tokens"]) == ("truncated", 20)
        asked.clear()
        world.due_message(run)
        await rig.batch(watch)
        assert asked == [2500], "the next batch knows it too"
        assert world.value("SELECT sum(ai_cost_usd)::float8 FROM campaign_messages") == pytest.approx(8 * COST)

    play(scenario)


def test_a_model_that_never_produces_a_text_is_paused_and_fails_no_message(world: World, play: Play) -> None:
    world.due_messages(world.run(), 6)
    asked: list[int] = []

    async def scenario(rig: Rig) -> None:
        (report,) = await rig.batch(Watch(answers=reasoner(10**6, asked)), concurrency=5)
        assert rig.statuses() == {"pending": 6}
        assert {row["retry_count"] for row in world.messages()} == {0}
        pause = rig.pause()
        assert (pause["scope"], pause["kind"], pause["code"]) == ("model", "systemic", "model_unfit")
        assert "behavior_config" in pause["reason"]
        assert report.cost_usd == pytest.approx(len(asked) * COST)
        assert world.value("SELECT sum(ai_cost_usd)::float8 FROM campaign_messages") == pytest.approx(len(asked) * COST)

    play(scenario)


def test_an_agent_sets_tokens_effort_and_prompt_of_its_texts(world: World, play: Play) -> None:
    world.due_message(world.run())
    world.do(
        "UPDATE ai_agents SET system_prompt = 'Você é a Bia.', behavior_config = "
        """'{"max_tokens": 900, "reasoning_effort": "low", "tone": "leve"}'"""
    )
    world.do("UPDATE workspaces SET name = 'Pão Certo'")
    world.do("UPDATE campaign_configs SET ai_instructions = ''")
    asked: list[Prompt] = []

    async def scenario(rig: Rig) -> None:
        await rig.batch(Watch(before_generation=asked.append))
        assert rig.statuses() == {"sent": 1}

    play(scenario)
    (prompt,) = asked
    assert (prompt.max_tokens, prompt.reasoning) == (900, Reasoning(effort="low"))
    assert prompt.system.startswith(
        "Você é a Bia.\n\nVocê escreve em nome da empresa Pão Certo.\n\nVocê é um vendedor experiente e cordial."
    )


# What it cost -----------------------------------------------------------------------------------------------------


def test_refused_answers_alone_reach_a_spending_limit(world: World, play: Play) -> None:
    world.due_messages(world.run(world.campaign(max_cost_usd_per_run=1.5 * COST)), 4)

    async def scenario(rig: Rig) -> None:
        await rig.batch(always("Olá, (nome)! Tudo bem por aí?"), concurrency=1)
        spent = float(world.value("SELECT spent_usd FROM campaign_spending WHERE scope = 'run'"))
        assert spent == pytest.approx(len(calls(world)) * COST)
        assert 2 <= len(calls(world)) <= 3, "of the limit only what is in flight goes beyond"
        assert rig.pause()["code"] == "spending_limit"

    play(scenario)


def test_a_split_that_is_of_no_use_is_booked(world: World, play: Play) -> None:
    world.due_message(world.run(world.campaign(split_messages=True, max_split_parts=3)))
    world.do("DELETE FROM ai_message_splitter_config")
    world.insert("ai_message_splitter_config", strategy="model", min_chars_to_split=20, model="openai/gpt-4o-mini")

    async def scenario(rig: Rig) -> None:
        def answers(prompt: Prompt) -> Completion:
            return answer('{"parts": ["outro texto"]}' if prompt.reference.endswith(":split") else GOOD, prompt)

        await rig.batch(Watch(answers=answers))
        assert rig.statuses() == {"sent": 1}
        assert [(call["purpose"], call["rule"]) for call in calls(world)] == [("split", "split_not_usable")]
        assert world.value("SELECT ai_cost_usd::float8 FROM campaign_messages") == pytest.approx(2 * COST)

    play(scenario)


def test_a_call_is_booked_once_though_its_item_is_repeated(world: World) -> None:
    run = world.run(world.campaign(max_cost_usd_per_run=1))
    message = world.due_message(run)
    holder = holding(world, message)
    call = {"id": "gen-1", "purpose": "text", "model": "a/b", "prompt_tokens": 1, "completion_tokens": 2}
    call |= {"reasoning_tokens": 0, "cost_usd": 0.25, "rule": "refusal", "changed": [], "answer": "Não posso."}
    for _ in range(2):
        assert holder.begin(message, part_no=0, calls=[call]) == "go"
    assert float(world.value("SELECT ai_cost_usd FROM campaign_messages")) == 0.25
    assert float(world.value("SELECT spent_usd FROM campaign_spending WHERE scope = 'run'")) == 0.25
    assert [row["id"] for row in calls(world)] == ["gen-1"]


def test_a_text_whose_lease_was_lost_while_it_was_written_is_booked(world: World, play: Play) -> None:
    world.due_message(world.run(world.campaign(max_cost_usd_per_run=1)))

    async def scenario(rig: Rig) -> None:
        def rob(prompt: Prompt) -> Completion:
            world.do("UPDATE campaign_messages SET lease_token = gen_random_uuid()")
            return answer(GOOD, prompt)

        await rig.batch(Watch(answers=rob))
        assert rig.statuses() == {"generating": 1}, "its new holder has it"
        assert [(call["purpose"], call["rule"]) for call in calls(world)] == [("text", "lease_lost")]
        assert world.value("SELECT ai_cost_usd::float8 FROM campaign_messages") == pytest.approx(COST)
        assert world.value("SELECT spent_usd::float8 FROM campaign_spending WHERE scope = 'run'") == pytest.approx(COST)

    play(scenario)


# What an operator sees, and what is forgotten -----------------------------------------------------------------------


def test_a_day_says_how_many_texts_each_rule_changed_and_refused(world: World, play: Play) -> None:
    config = world.campaign()
    world.due_messages(world.run(config), 3)

    async def scenario(rig: Rig) -> None:
        texts = iter([f"**{GOOD}**", "Olá, None! Tudo bem por aí?", f"Segue a mensagem:\n\n**{GOOD}**"])
        await rig.batch(Watch(answers=lambda prompt: answer(next(texts), prompt)), concurrency=1)
        start = world.value("SELECT campaign_now() - interval '1 day'")
        end = world.value("SELECT campaign_now() + interval '1 day'")
        rows = await Reports(world.url).text_rules(start, end)
        assert [(row.campaign_id, row.rule, row.what, row.texts) for row in rows] == [
            (config, "markdown_converted", "changed", 2),
            (config, "empty_value", "refused", 1),
            (config, "preamble_cut", "changed", 1),
        ]

    play(scenario)


def test_a_refused_answer_is_forgotten_with_its_lead_and_with_old_logs(world: World, play: Play) -> None:
    message = world.due_message(world.run())

    async def scenario(rig: Rig) -> None:
        await rig.batch(always("Olá, Ana Maria! Aqui é o (seu nome)."))
        (call,) = calls(world)
        assert call["answer"]
        lead = rig.message(message)["lead_id"]
        (exported,) = world.value("SELECT campaign_pipeline.campaign_export_lead(%s)", lead)["model_answers"]
        assert exported["answer"] == call["answer"]
        world.do("DELETE FROM campaign_messages WHERE id = %s", message)  # as the CRM does
        world.do("SELECT campaign_pipeline.campaign_erase_lead(%s, 'Rui')", lead)
        (call,) = calls(world)
        assert (call["answer"], call["rule"]) == (None, "placeholder")
        rig.later(days=40)
        with Operations(world.url) as operations:
            assert operations.delete_old_model_calls(30) == 1
        assert calls(world) == []

    play(scenario)
