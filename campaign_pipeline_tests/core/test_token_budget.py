"""The token budget of a model for a text."""

import pytest

from campaign_pipeline.core.ports import Completion, Reasoning
from campaign_pipeline.core.token_budget import AgentSettings, TokenBudget, first_budget, larger_budget, was_reasoning

NOTHING_SET = AgentSettings()


@pytest.mark.parametrize(
    ("model", "reasoning"),
    [
        ("openai/o3-mini", Reasoning(effort="low")),
        ("openai/gpt-5-nano", Reasoning(effort="low")),
        ("openai/gpt-oss-120b", Reasoning(effort="low")),
        ("x-ai/grok-4-fast", Reasoning(effort="low")),
        ("anthropic/claude-3.7-sonnet:thinking", Reasoning(max_tokens=1024)),
        ("google/gemini-2.5-pro", Reasoning(max_tokens=1024)),
        ("qwen/qwq-32b", Reasoning(max_tokens=1024)),
        ("deepseek/deepseek-r1-0528:free", None),
        ("moonshotai/kimi-k2-thinking", None),
        ("mistralai/magistral-small", None),
        ("z-ai/glm-4.6", None),
    ],
)
def test_a_model_that_reasons_gets_room_for_it_from_the_first_request_on(
    model: str, reasoning: Reasoning | None
) -> None:
    assert first_budget(model, 500, NOTHING_SET, learned=False) == TokenBudget(2500, reasoning)


@pytest.mark.parametrize(
    "model",
    ["openai/gpt-4o-mini", "anthropic/claude-sonnet-4.5", "google/gemini-2.0-flash", "qwen/qwen3-8b-instruct", "a/o1x"],
)
def test_any_other_model_gets_what_a_text_needs(model: str) -> None:
    assert first_budget(model, 500, NOTHING_SET, learned=False) == TokenBudget(500)


def test_a_model_seen_reasoning_gets_room_although_its_family_is_unknown() -> None:
    assert first_budget("new/model", 500, NOTHING_SET, learned=True) == TokenBudget(2500)


def test_an_agent_sets_its_own_budget() -> None:
    agent = AgentSettings.from_json({"max_tokens": 900, "reasoning_effort": "minimal", "tone": "leve"})
    assert first_budget("openai/o3", 500, agent, learned=True) == TokenBudget(900, Reasoning(effort="minimal"))


@pytest.mark.parametrize(
    "config", [None, [], "x", {"max_tokens": "many"}, {"max_tokens": True}, {"max_tokens": 1}, {"max_tokens": 10**9}]
)
def test_settings_that_no_request_could_have_are_left_out(config: object) -> None:
    assert AgentSettings.from_json(config) == NOTHING_SET


def answer(text: str, tokens: int, reasoning: int = 0) -> Completion:
    return Completion(text, "m", 90, tokens, 0.001, reasoning_tokens=reasoning)


@pytest.mark.parametrize(
    ("cut", "larger"),
    [(answer("Olá, An", 500), 1000), (answer("", 500), 4500), (answer("Olá", 500, 490), 4500)],
)
def test_the_second_request_has_room_for_what_was_cut(cut: Completion, larger: int) -> None:
    assert larger_budget(TokenBudget(500), 500, cut) == TokenBudget(larger)


def test_an_answer_of_nothing_but_reasoning_is_told_from_a_text_that_is_too_long() -> None:
    assert was_reasoning(answer(" ", 500))
    assert was_reasoning(answer("Olá", 500, 480))
    assert not was_reasoning(answer("Olá, Ana! Vi que", 500, 20))
