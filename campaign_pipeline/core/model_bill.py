"""What the model requests for one message cost, until it is stored with the message."""

from dataclasses import dataclass, field
from typing import Any, TypeGuard
from uuid import uuid4

from campaign_pipeline.core.ports import Completion, Failure, ModelCall
from campaign_pipeline.core.text_cleaning import plain_characters
from campaign_pipeline.core.token_budget import was_reasoning

LONGEST_KEPT_ANSWER = 20_000
"""Characters of a refused answer that are stored."""

LOST_TEXT = "lease_lost"
"""Rule of a paid text that could not be stored because its lease was lost meanwhile. The text itself is fine."""

MODEL_RULES: frozenset[str] = frozenset({"reasoning", "control_tokens", "truncated", "empty", "malformed"})
"""Rules that a model breaks whatever the prompt; the others depend on a campaign's instructions."""


@dataclass
class ModelBill:
    """The charges for one message that are not stored yet."""

    cost_usd: float | None = None  # of its text and split; None: nothing was requested, or the provider does not say
    calls: list[ModelCall] = field(default_factory=list)  # answers that are stored on their own

    def add_cost(self, completion: Completion) -> None:
        """Add the charge of an answer that is used."""
        if completion.cost is not None:
            self.cost_usd = (self.cost_usd or 0.0) + completion.cost

    def keep_refused(self, model: str, completion: Completion, rule: str, purpose: str = "text") -> None:
        """Keep an answer that was charged and not used, with the rule that it broke."""
        self.calls.append(_call(completion, purpose, model, rule=rule))

    def keep_used(self, model: str, completion: Completion, changed: tuple[str, ...]) -> None:
        """Keep a text's answer with the rules that changed it."""
        self.calls.append(_call(completion, "text", model, changed=changed))

    def pop(self) -> dict[str, Any]:
        """Return the fields of BeginPart that store the charges since the last call of this method."""
        cost, calls = self.cost_usd, tuple(self.calls)
        self.cost_usd, self.calls = None, []
        return ({} if cost is None else {"ai_cost_usd": cost}) | ({"calls": calls} if calls else {})


def is_truncated(answer: Completion | Failure) -> TypeGuard[Completion]:
    """Return whether an answer ended because its tokens were used up."""
    return isinstance(answer, Completion) and answer.failure is not None and answer.failure.code == "truncated"


def lost_call(model: str | None, cost_usd: float) -> ModelCall:
    """Record what the text of a lost message cost, its split included."""
    return ModelCall(f"local-{uuid4()}", "text", model or "", 0, 0, 0, cost_usd, rule=LOST_TEXT)


def _call(
    completion: Completion, purpose: str, model: str, rule: str | None = None, changed: tuple[str, ...] = ()
) -> ModelCall:
    """Record an answer. It is quoted only if it was refused, as far as the database can hold it."""
    return ModelCall(
        completion.generation_id or f"local-{uuid4()}",
        purpose,
        model,
        completion.prompt_tokens,
        completion.completion_tokens,
        completion.reasoning_tokens,
        completion.cost,
        rule,
        rule in MODEL_RULES,
        rule == "truncated" and was_reasoning(completion),
        changed,
        None if rule is None else plain_characters(completion.text)[:LONGEST_KEPT_ANSWER],
        completion.cached_tokens,
        completion.cache_write_tokens,
        completion.cache_saved_usd,
    )
