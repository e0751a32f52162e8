"""How many tokens a model may use for a text: more for models that reason before they answer.

Reasoning tokens count as output. A reasoning model may spend a small budget on reasoning alone and return no text, so
it gets room for both from the first request on, and is asked to reason little. Reasoning models are recognised by
their family, or by an answer that was cut off without text.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeAlias, get_args

from campaign_pipeline.core.ports import Completion, Reasoning

Effort: TypeAlias = Literal["none", "minimal", "low", "medium", "high", "xhigh"]

REASONING_ROOM: Final = 2_000
"""Tokens for reasoning in addition to the text; models that are asked to reason little rarely need more."""

MOST_TOKENS: Final = 32_000
"""The largest budget that can be set: beyond it, one text costs as much as a campaign."""

_THINKING_TOKENS: Final = 1_024  # the smallest budget that models with a reasoning budget accept

Control: TypeAlias = Literal["effort", "max_tokens", "none"]
"""How a family is asked to reason little: by an effort, by a number of tokens, or not at all."""

REASONING_FAMILIES: Final[tuple[tuple[str, Control], ...]] = (
    # Part of a model's name -> how to limit its reasoning. See OpenRouter's guide on reasoning tokens.
    (r"^openai/(?:o[134]\b|o[134]-|gpt-5|gpt-oss|codex)", "effort"),
    (r"^x-ai/grok-(?:3-mini|[4-9])", "effort"),
    (r"^anthropic/.*:thinking$", "max_tokens"),
    (r"^google/gemini-(?:2\.5|[3-9])", "max_tokens"),
    (r"^qwen/(?:qwq|qwen3(?!.*instruct).*)", "max_tokens"),
    (r"^deepseek/(?:deepseek-r1|deepseek-reasoner)", "none"),
    (r"^(?:moonshotai|kimi)/.*thinking", "none"),
    (r"^minimax/minimax-m[12]", "none"),
    (r"^z-ai/glm-(?:4\.[5-9]|[5-9])", "none"),
    (r"^mistralai/magistral", "none"),
    (r"(?:^|[/:_.-])(?:thinking|reasoning|reasoner)\b", "none"),
)


@dataclass(frozen=True)
class AgentSettings:
    """An agent's settings for its texts; None if it leaves the default."""

    max_tokens: int | None = None  # of a text, reasoning included
    reasoning_effort: Effort | None = None

    @classmethod
    def from_json(cls, config: object) -> "AgentSettings":
        """Build from `ai_agents.behavior_config`; values that no request could use are dropped."""
        if not isinstance(config, Mapping):
            return cls()
        most, effort = config.get("max_tokens"), config.get("reasoning_effort")
        valid = isinstance(most, int) and not isinstance(most, bool) and 16 <= most <= MOST_TOKENS
        return cls(most if valid else None, effort if effort in get_args(Effort) else None)


@dataclass(frozen=True)
class TokenBudget:
    """The token budget of a request."""

    max_tokens: int
    reasoning: Reasoning | None = None  # None: the request says nothing about reasoning

    def fields(self) -> dict[str, Any]:
        """Return the fields of Prompt that it sets."""
        return {"max_tokens": self.max_tokens, "reasoning": self.reasoning}


def first_budget(model: str, text_tokens: int, agent: AgentSettings, *, learned: bool) -> TokenBudget:
    """Return the budget of the first request. `learned`: an answer of this model was cut off during reasoning."""
    control = _control(model)
    if control is None and learned:
        control = "none"
    reasoning = Reasoning(effort=agent.reasoning_effort) if agent.reasoning_effort else _little(control)
    if agent.max_tokens is not None:
        return TokenBudget(agent.max_tokens, reasoning)
    return TokenBudget(text_tokens if control is None else text_tokens + REASONING_ROOM, reasoning)


def larger_budget(budget: TokenBudget, text_tokens: int, answer: Completion) -> TokenBudget:
    """Return the budget after a first answer was cut off: twice the text, or room to reason."""
    if was_reasoning(answer):
        return replace(budget, max_tokens=max(2 * budget.max_tokens, text_tokens + 2 * REASONING_ROOM))
    return replace(budget, max_tokens=2 * budget.max_tokens)


def was_reasoning(answer: Completion) -> bool:
    """Return whether a cut-off answer was spent on reasoning rather than on text."""
    return not answer.text.strip() or 2 * answer.reasoning_tokens > answer.completion_tokens


def _control(model: str) -> Control | None:
    """Return how a model's reasoning is controlled; None if it is not known to reason."""
    name = model.lower()
    return next((control for pattern, control in REASONING_FAMILIES if re.search(pattern, name)), None)


def _little(control: Control | None) -> Reasoning | None:
    if control == "effort":
        return Reasoning(effort="low")
    return Reasoning(max_tokens=_THINKING_TOKENS) if control == "max_tokens" else None
