"""What the model's answers cost, and what they say about a message, its run or its model."""

from collections import Counter
from typing import Any, TypeGuard
from uuid import uuid4

from campaign_pipeline.core.circuits import Circuits
from campaign_pipeline.core.model import BatchSettings, LeasedMessage
from campaign_pipeline.core.ports import Completion, Failure, ModelCall, Permanent, Scope, Systemic, Transient
from campaign_pipeline.core.text_cleaning import plain_characters
from campaign_pipeline.core.token_budget import was_reasoning

LONGEST_KEPT_ANSWER = 20_000
"""Characters of a refused answer that are stored."""

MODEL_REFUSES = "model_refuses_requests"
"""A model that rejects all our requests: its settings or ours are wrong, not a message."""

FIRST_REFUSALS = 3
"""Three rejections with no success mean that the model or the account is misconfigured, not a message."""

MODEL_UNFIT = "model_unfit"
"""A model whose answers never contain a usable text, whatever the message: another model must be chosen."""

TEXTS_REFUSED = "texts_refused"
"""A run whose texts break the rules again and again: its instructions ask for what may not be sent."""

MOST_REFUSED_IN_A_ROW = 5
"""So many refused answers in a row are no coincidence."""

MODEL_RULES: frozenset[str] = frozenset({"reasoning", "control_tokens", "truncated", "empty", "malformed"})
"""Rules that a model breaks whatever the prompt; the others depend on a campaign's instructions."""


class AnswerBook:
    """Books the answers of one shard, and judges those that cannot be sent."""

    def __init__(self, settings: BatchSettings, circuits: Circuits) -> None:
        self._circuits = circuits
        self._refusals: Counter[str] = Counter()  # by model: invalid requests before any good one
        self._good_models: set[str] = set()
        self._refused_in_a_row: Counter[str] = Counter(  # by model or run: refused answers since the last good one
            {name: record.refused_in_a_row for name, record in settings.text_records.items()}
        )
        self._reasoning_models = {name for name, record in settings.text_records.items() if record.reasons}
        self._costs: dict[str, float] = {}  # by message: US dollars since pop_bill
        self._calls: dict[str, list[ModelCall]] = {}  # by message: since pop_bill

    def pop_bill(self, message: LeasedMessage) -> dict[str, Any]:
        """Return the fields of BeginPart that book the requests for a message since the last call of this method.

        They are the cost of its text and split, and the calls that are stored on their own; none if nothing was
        requested, or if the provider does not report its charge.
        """
        cost, calls = self._costs.pop(message.id, None), self._calls.pop(message.id, None)
        return ({} if cost is None else {"ai_cost_usd": cost}) | ({"calls": tuple(calls)} if calls else {})

    def reasons(self, model: str) -> bool:
        """Return whether a model was seen to spend its tokens on reasoning."""
        return model in self._reasoning_models

    def note_reasoning(self, model: str) -> None:
        """Note that a model reasons."""
        self._reasoning_models.add(model)

    async def failure(self, message: LeasedMessage, model: str, answer: Completion | Failure) -> Failure:
        """Return what a missing or incomplete answer means for a message."""
        if not isinstance(answer, Completion):
            if isinstance(answer, Permanent) and answer.code == "invalid_request":
                return await self._judge_refusal(answer, model)
            return answer
        failure = answer.failure
        assert failure is not None
        if failure.code not in MODEL_RULES:  # withheld by a filter: that is about this prompt
            self.keep_call(message, model, answer, failure.code)
            return failure
        if not is_truncated(answer):
            return self.refuse(message, model, answer, failure.code, failure.reason)
        self.keep_call(message, model, answer, failure.code)
        if was_reasoning(answer):
            self.note_reasoning(model)
            reason = (
                f"The model {model} spent all its tokens on reasoning and wrote no text; choose another in ai_agents, "
                "or set max_tokens or reasoning_effort in ai_agents.behavior_config."
            )
            return Systemic(MODEL_UNFIT, reason, Scope.MODEL)
        return self._judge_rule(message, model, failure.code, failure.reason, asked_twice=True)

    def accept(self, message: LeasedMessage, model: str, completion: Completion, changed: tuple[str, ...]) -> None:
        """Book a good answer; the cost of its text is stored with the text."""
        self._good_models.add(model)
        self._refused_in_a_row[model] = self._refused_in_a_row[message.run_id] = 0
        self.add_cost(message, completion)
        if changed or completion.used_cache:
            self._calls.setdefault(message.id, []).append(_call(completion, "text", model, changed=changed))

    def refuse(self, message: LeasedMessage, model: str, completion: Completion, rule: str, reason: str) -> Failure:
        """Book an answer that may not be sent, and decide what it means for its message."""
        self.keep_call(message, model, completion, rule)
        return self._judge_rule(message, model, rule, reason, asked_twice=rule in message.refused_rules)

    def _judge_rule(
        self, message: LeasedMessage, model: str, rule: str, reason: str, *, asked_twice: bool
    ) -> Systemic | Permanent | Transient:
        """Decide about a broken rule: a second break ends the message; many in a row pause their model or run."""
        about_model = rule in MODEL_RULES
        cause = model if about_model else message.run_id
        self._refused_in_a_row[cause] += 1
        times = self._refused_in_a_row[cause]
        if times >= MOST_REFUSED_IN_A_ROW:
            last = f"{times} answers in a row could not be sent, the last by the rule {rule}: {reason}"
            if about_model:
                why = f"The model {model} is not fit for these texts: {last} Choose another in ai_agents."
                return Systemic(MODEL_UNFIT, why, Scope.MODEL)
            why = f"The texts of this run are refused: {last} Look at the campaign's instructions."
            return Systemic(TEXTS_REFUSED, why, Scope.RUN)
        if asked_twice:
            return Permanent(rule, f"{reason} It was so twice; see campaign_pipeline.campaign_model_calls.")
        return Transient(rule, reason)

    def keep_call(
        self, message: LeasedMessage, model: str, completion: Completion, rule: str, purpose: str = "text"
    ) -> None:
        """Keep an answer that was billed and not used, with the rule that it broke."""
        call = _call(completion, purpose, model, rule=rule)
        self._calls.setdefault(message.id, []).append(call)

    def add_cost(self, message: LeasedMessage, completion: Completion) -> None:
        """Add the charge of an answer that is used."""
        if completion.cost is not None:
            self._costs[message.id] = self._costs.get(message.id, 0.0) + completion.cost

    async def _judge_refusal(self, refusal: Permanent, model: str) -> Permanent | Systemic:
        """Return Systemic once a model rejected FIRST_REFUSALS requests with no success: then it is not the message."""
        if model in self._good_models:
            return refusal
        self._refusals[model] += 1
        if self._refusals[model] < FIRST_REFUSALS and not await self._circuits.model_is_paused(model, MODEL_REFUSES):
            return refusal
        reason = f"{refusal.reason} The model {model} has refused every request so far; check ai_agents."
        return Systemic(MODEL_REFUSES, reason, Scope.MODEL)


def is_truncated(answer: Completion | Failure) -> TypeGuard[Completion]:
    """Return whether an answer ended because its tokens were used up."""
    return isinstance(answer, Completion) and answer.failure is not None and answer.failure.code == "truncated"


LOST_TEXT = "lease_lost"
"""Rule of a paid text that could not be stored because its lease was lost meanwhile. The text itself is fine."""


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
