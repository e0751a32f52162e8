"""What a model's unusable answer means: for its message, its run, or the model itself."""

from collections import Counter

from campaign_pipeline.core.circuits import Circuits
from campaign_pipeline.core.model import BatchSettings, LeasedMessage
from campaign_pipeline.core.model_bill import MODEL_RULES, ModelBill, is_truncated
from campaign_pipeline.core.ports import Completion, Failure, Permanent, Scope, Systemic, Transient
from campaign_pipeline.core.token_budget import was_reasoning

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


class AnswerJudge:
    """Judges the answers that one shard's models gave."""

    def __init__(self, settings: BatchSettings, circuits: Circuits) -> None:
        self._circuits = circuits
        self._refusals: Counter[str] = Counter()  # by model: invalid requests before any good one
        self._good_models: set[str] = set()
        self._refused_in_a_row: Counter[str] = Counter(  # by model or run: refused answers since the last good one
            {name: record.refused_in_a_row for name, record in settings.text_records.items()}
        )
        self._reasoning_models = {name for name, record in settings.text_records.items() if record.reasons}

    def reasons(self, model: str) -> bool:
        """Return whether a model was seen to spend its tokens on reasoning."""
        return model in self._reasoning_models

    def note_reasoning(self, model: str) -> None:
        """Note that a model reasons."""
        self._reasoning_models.add(model)

    async def failure(
        self, message: LeasedMessage, bill: ModelBill, model: str, answer: Completion | Failure
    ) -> Failure:
        """Return what a missing or incomplete answer means; bill it if it was charged."""
        if not isinstance(answer, Completion):
            if isinstance(answer, Permanent) and answer.code == "invalid_request":
                return await self._judge_refusal(answer, model)
            return answer
        failure = answer.failure
        assert failure is not None
        if failure.code not in MODEL_RULES:  # withheld by a filter: that is about this prompt
            bill.keep_refused(model, answer, failure.code)
            return failure
        if not is_truncated(answer):
            return self.refuse(message, bill, model, answer, failure.code, failure.reason)
        bill.keep_refused(model, answer, failure.code)
        if was_reasoning(answer):
            self.note_reasoning(model)
            reason = (
                f"The model {model} spent all its tokens on reasoning and wrote no text; choose another in ai_agents, "
                "or set max_tokens or reasoning_effort in ai_agents.behavior_config."
            )
            return Systemic(MODEL_UNFIT, reason, Scope.MODEL)
        return self._judge_rule(message, model, failure.code, failure.reason, asked_twice=True)

    def accept(
        self, message: LeasedMessage, bill: ModelBill, model: str, completion: Completion, changed: tuple[str, ...]
    ) -> None:
        """Note a good answer, and bill it: its cost is stored with the text."""
        self._good_models.add(model)
        self._refused_in_a_row[model] = self._refused_in_a_row[message.run_id] = 0
        bill.add_cost(completion)
        if changed or completion.used_cache:
            bill.keep_used(model, completion, changed)

    def refuse(
        self, message: LeasedMessage, bill: ModelBill, model: str, completion: Completion, rule: str, reason: str
    ) -> Failure:
        """Bill an answer that may not be sent, and return what it means."""
        bill.keep_refused(model, completion, rule)
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

    async def _judge_refusal(self, refusal: Permanent, model: str) -> Permanent | Systemic:
        """Return Systemic once a model rejected FIRST_REFUSALS requests with no success: then it is not the message."""
        if model in self._good_models:
            return refusal
        self._refusals[model] += 1
        if self._refusals[model] < FIRST_REFUSALS and not await self._circuits.model_is_paused(model, MODEL_REFUSES):
            return refusal
        reason = f"{refusal.reason} The model {model} has refused every request so far; check ai_agents."
        return Systemic(MODEL_REFUSES, reason, Scope.MODEL)
