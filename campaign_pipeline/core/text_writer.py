"""The text of a message: written once by the model, checked, and split into parts.

A shard's writer knows what to ask and which answers may be sent. `core.admission` decides whether the model may be
called now; the message requests that (`ModelAccess`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from campaign_pipeline.core.admission import WaitingPolicy
from campaign_pipeline.core.answer_judge import AnswerJudge
from campaign_pipeline.core.campaign_log import CampaignLog
from campaign_pipeline.core.circuits import Circuits
from campaign_pipeline.core.generation import (
    EMAIL_SCHEMA,
    check_subject,
    email_prompt,
    first_contact_prompt,
    parse_variables,
    read_email,
    read_message,
    split_prompt,
    template_prompt,
    template_schema,
)
from campaign_pipeline.core.model import (
    AgentProfile,
    BatchSettings,
    ErrorClass,
    Lead,
    LeasedMessage,
    ShardReport,
    TemplateSettings,
)
from campaign_pipeline.core.model_bill import ModelBill, is_truncated
from campaign_pipeline.core.ports import (
    ChannelTraits,
    Clock,
    Completion,
    Failure,
    LanguageModel,
    Permanent,
    Prompt,
    Scope,
    Systemic,
    Template,
    Throttled,
)
from campaign_pipeline.core.results import Ended, GiveBack
from campaign_pipeline.core.runs import NO_MODEL, NO_MODEL_REASON
from campaign_pipeline.core.splitting import (
    TextTooLong,
    accept_proposal,
    effective_max_parts,
    parse_proposal,
    split_text,
)
from campaign_pipeline.core.text_checks import Known
from campaign_pipeline.core.text_cleaning import Markup
from campaign_pipeline.core.text_rules import TextProblem
from campaign_pipeline.core.token_budget import (
    REASONING_ROOM,
    TokenBudget,
    first_budget,
    larger_budget,
    was_reasoning,
)

SPLIT_SCHEMA: Mapping[str, Any] = {
    "name": "parts",
    "strict": True,
    "schema": {
        "type": "object",
        "properties": {"parts": {"type": "array", "items": {"type": "string"}}},
        "required": ["parts"],
        "additionalProperties": False,
    },
}
"""Schema of the model's answer when it proposes a split."""

NO_AGENT = AgentProfile()

SPLIT_TIMEOUT_SECONDS = 20.0
"""A slower split is abandoned: the local splitter needs no time."""


@dataclass(frozen=True)
class WritingPolicy(WaitingPolicy):
    """How texts are requested."""

    generation_timeout_seconds: float = 30.0
    max_tokens: int = 500
    temperature: float = 0.7


@dataclass(frozen=True)
class Draft:
    """A text that passed its checks, with its cost if it was written now."""

    text: str
    subject: str | None = None  # if the channel has one
    template: Template | None = None  # that it is sent as; then `text` is only what the lead will read
    completion: Completion | None = None  # None: the text was stored before
    milliseconds: int | None = None
    asked_model: str | None = None

    def columns(self) -> dict[str, Any]:
        """Return the fields of BeginPart that store it; none if it is stored already."""
        if self.completion is None:
            return {}
        return {
            "text": self.text,
            "subject": self.subject,
            "asked_model": self.asked_model,
            "ai_model": self.completion.model,
            "ai_tokens_used": self.completion.total_tokens,
            "ai_cost_usd": self.completion.cost,
            "ai_generation_time_ms": self.milliseconds,
        }


class NotWritten(Exception):
    """There is no text that may be sent; `model` is the requested model, if it matters."""

    def __init__(self, failure: Failure, model: str | None = None) -> None:
        super().__init__(failure.reason)
        self.failure = failure
        self.model = model


class ModelAccess(Protocol):
    """A message's access to the model. Either method may raise `results.Ended`."""

    @property
    def bill(self) -> ModelBill:
        """What its requests cost."""
        ...

    async def acquire_model(self) -> None:
        """Return when the model may be called for this message."""
        ...

    async def try_acquire_model(self, model: str) -> bool:
        """Return whether this model may be called at once, for an optional request."""
        ...


class TextWriter:
    """Writes the texts of one shard."""

    def __init__(
        self,
        model: LanguageModel,
        settings: BatchSettings,
        traits: ChannelTraits,
        policy: WritingPolicy,
        clock: Clock,
        report: ShardReport,  # costs are counted here
        circuits: Circuits,
        log: CampaignLog,
    ) -> None:
        self._model = model
        self._settings = settings
        self._traits = traits
        self._policy = policy
        self._clock = clock
        self._report = report
        self._circuits = circuits
        self._log = log
        self._warned: set[str] = set()  # campaigns with a logged warning about their settings
        self._without_schema: set[str] = set()  # models that reject structured output
        self._judge = AnswerJudge(settings, circuits)

    async def write(self, message: LeasedMessage, lead: Lead | None, access: ModelAccess, *, free_text: bool) -> Draft:
        """Return the message's text: the stored one, else one written now (and paid for once).

        `free_text`: whether the channel accepts more than approved templates for this lead now. Raises NotWritten.
        """
        if message.text is not None:
            if message.template is not None:
                return Draft(message.text, template=message.template)
            return self._stored(message, lead, message.text)
        template = None if free_text else self._template(message)
        if template is not None and not template.variables:
            return Draft(template.fill(()), template=Template(template.name, template.language))
        model = self._settings.models.get(message.workspace_id)
        if model is None or lead is None:
            # Missing since the claim, which holds a run without a model: the message waits with it.
            raise Ended(GiveBack(NO_MODEL, NO_MODEL_REASON, ErrorClass.SYSTEMIC))
        completion, milliseconds = await self._generate(message, lead, template, model, access)
        self._report.generation_ms.append(milliseconds)
        try:
            draft, changed = self._read(message, lead, template, completion)
        except TextProblem as problem:
            failure = self._judge.refuse(message, access.bill, model, completion, problem.code, str(problem))
            raise NotWritten(failure, model) from problem
        self._judge.accept(message, access.bill, model, completion, changed)
        return replace(draft, completion=completion, milliseconds=milliseconds, asked_model=model)

    def _template(self, message: LeasedMessage) -> TemplateSettings:
        """Return the template that a message must use. Raises NotWritten if the campaign has none."""
        template = self._settings.campaigns[message.config_id].template
        if template is None:
            reason = (
                "The lead has not written for a day, so only an approved template may be sent, and the campaign has "
                "none: set its template_name."
            )
            raise NotWritten(Systemic("no_template", reason, Scope.RUN))
        return template

    async def split(self, message: LeasedMessage, text: str, access: ModelAccess) -> tuple[str, ...]:
        """Return the parts in which a text is sent. Raises NotWritten if they cannot hold it."""
        if not self._splits(message):
            return (text,)
        splitter, max_parts, max_chars = self._settings.splitter, self._max_parts(message), self._traits.max_part_chars
        if splitter.strategy == "model" and len(text) >= splitter.min_chars and max_parts > 1:
            proposed = await self._proposed_split(message, text, max_parts, max_chars, access)
            if proposed:
                return proposed
        try:
            return split_text(text, max_parts, max_chars, splitter.min_chars)
        except TextTooLong as error:
            raise NotWritten(Permanent("too_long", str(error))) from error

    def _read(
        self, message: LeasedMessage, lead: Lead, template: TemplateSettings | None, completion: Completion
    ) -> tuple[Draft, tuple[str, ...]]:
        """Read the text of a model's answer, and the rules that changed it. Raises TextProblem."""
        known = self._known(message, lead)
        if template is not None:
            values = parse_variables(completion.text, len(template.variables), known)
            chosen = Template(template.name, template.language, values)
            return Draft(template.fill(values), template=chosen), ()
        read = read_email if self._traits.has_subject else read_message
        found = read(completion.text, self._longest_text(message), known)
        return Draft(found.text, found.subject), found.changed

    def _stored(self, message: LeasedMessage, lead: Lead | None, text: str) -> Draft:
        """Use a text that was stored before, by us or by the previous system. Raises NotWritten.

        Its contacts are not checked again: the lead's data may have changed since.
        """
        known = replace(self._known(message, lead), instructions=None)
        markup = Markup.PLAIN if self._traits.has_subject else Markup.WHATSAPP
        try:
            checked = read_message(text, self._longest_text(message), known, markup).text
            subject = check_subject(message.subject, checked, known) if self._traits.has_subject else None
        except TextProblem as problem:
            raise NotWritten(Permanent(problem.code, str(problem))) from problem
        return Draft(checked, subject)

    def _known(self, message: LeasedMessage, lead: Lead | None) -> Known:
        """Return what the model was told, and so may repeat in its text."""
        campaign = self._settings.campaigns[message.config_id]
        own = (lead.phone, lead.email, *lead.other_phones, *lead.context.values()) if lead else ()
        body = campaign.template.body if campaign.template else None
        author = self._agent(message).author
        told = (campaign.instructions, body or "", author.agent_prompt, author.workspace)
        return Known.of(told, [each for each in (*own, message.phone_number) if each])

    def _agent(self, message: LeasedMessage) -> AgentProfile:
        """Return the sender of the message's workspace."""
        return self._settings.agents.get(message.workspace_id, NO_AGENT)

    def _longest_text(self, message: LeasedMessage) -> int:
        """Return how many characters all parts of a message may have together."""
        return self._traits.max_part_chars * (self._max_parts(message) if self._splits(message) else 1)

    def _question(
        self, message: LeasedMessage, lead: Lead, template: TemplateSettings | None
    ) -> tuple[str, str, Mapping[str, Any] | None]:
        """Return system and user prompt, and the schema of the answer if it is not plain text."""
        instructions = self._settings.campaigns[message.config_id].instructions
        author = self._agent(message).author
        if template is not None:
            prompts = template_prompt(instructions, lead.context, template.variables, template.body, author)
            return *prompts, template_schema(template.variables)
        if self._traits.has_subject:
            return *email_prompt(instructions, lead.context, author), EMAIL_SCHEMA
        return *first_contact_prompt(instructions, lead.context, author), None

    async def _generate(
        self,
        message: LeasedMessage,
        lead: Lead,
        template: TemplateSettings | None,
        model: str,
        access: ModelAccess,
    ) -> tuple[Completion, int]:
        """Return a model's complete answer, and its duration in milliseconds. Raises NotWritten."""
        system, user, shape = self._question(message, lead, template)
        agent, policy = self._agent(message).settings, self._policy
        budget = first_budget(model, policy.max_tokens, agent, learned=self._judge.reasons(model))
        prompt = Prompt(
            model,
            system,
            user,
            temperature=policy.temperature,
            timeout=self._timeout(budget),
            json_schema=None if model in self._without_schema else shape,
            reference=message.id,
            workspace_id=message.workspace_id,
            session=message.config_id,
            fallback_models=self._settings.fallback_models.get(message.workspace_id, ()),
            **budget.fields(),
        )
        started = self._clock.monotonic()
        answer = await self._complete(message, prompt, access)
        if (prompt.json_schema is not None or prompt.reasoning is not None) and _refuses_parameters(answer):
            # No endpoint of this model accepts a schema, or it rejects ours: the prompt asks for the same in words.
            prompt = replace(prompt, json_schema=None, reasoning=None)
            answer = await self._complete(message, prompt, access)
            if isinstance(answer, Completion):
                self._without_schema.add(model)
        if is_truncated(answer) and agent.max_tokens is None:
            # Retry once with more room: the same room would only cost again.
            access.bill.keep_refused(model, answer, "truncated")
            if was_reasoning(answer):
                self._judge.note_reasoning(model)
            budget = larger_budget(budget, policy.max_tokens, answer)
            larger = replace(prompt, max_tokens=budget.max_tokens, timeout=self._timeout(budget))
            answer = await self._complete(message, larger, access)
        if isinstance(answer, Completion) and answer.failure is None:
            return answer, round(1000 * (self._clock.monotonic() - started))
        raise NotWritten(await self._judge.failure(message, access.bill, model, answer), model)

    def _timeout(self, budget: TokenBudget) -> float:
        """Return the timeout of a request in seconds; doubled if the model may reason."""
        seconds = self._policy.generation_timeout_seconds
        return 2 * seconds if budget.max_tokens > REASONING_ROOM else seconds

    async def _complete(self, message: LeasedMessage, prompt: Prompt, access: ModelAccess) -> Completion | Failure:
        """Call the model, with admission before each request; wait out short throttles."""
        for _ in range(self._policy.max_inline_waits):
            await access.acquire_model()
            answer = await self._ask_model(prompt)
            if not isinstance(answer, Throttled):
                break
            if await self._circuits.open(message, answer, prompt.model) > self._policy.max_inline_wait_seconds:
                break
        return answer

    async def _ask_model(self, prompt: Prompt) -> Completion | Failure:
        answer = await self._model.complete(prompt)
        if isinstance(answer, Completion):
            self._report.tokens += answer.total_tokens
            self._report.cost_usd += answer.cost or 0.0
        return answer

    def _splits(self, message: LeasedMessage) -> bool:
        return self._traits.may_split and self._settings.campaigns[message.config_id].split_messages

    def _max_parts(self, message: LeasedMessage) -> int:
        parts, warning = effective_max_parts(self._settings.campaigns[message.config_id].max_split_parts)
        if warning and message.config_id not in self._warned:
            self._warned.add(message.config_id)
            self._log(message, "split", "warning", warning)
        return parts

    async def _proposed_split(
        self, message: LeasedMessage, text: str, max_parts: int, max_chars: int, access: ModelAccess
    ) -> tuple[str, ...] | None:
        """Return the model's proposal if it keeps the text unchanged; None means to split locally."""
        splitter = self._settings.splitter
        model = splitter.model or self._settings.models.get(message.workspace_id)
        if model is None:
            return None
        system, user = split_prompt(text, max_parts)
        prompt = Prompt(
            model,
            splitter.system_prompt or system,
            user,
            max_tokens=splitter.max_tokens,
            temperature=splitter.temperature,
            timeout=SPLIT_TIMEOUT_SECONDS,
            json_schema=SPLIT_SCHEMA,
            reference=f"{message.id}:split",
            workspace_id=message.workspace_id,
        )
        answer = await self._ask_for_split(message, prompt, access)
        usable = isinstance(answer, Completion) and answer.failure is None
        proposal = parse_proposal(answer.text) if isinstance(answer, Completion) and usable else None
        accepted = accept_proposal(text, proposal, max_parts, max_chars) if proposal else None
        if isinstance(answer, Completion):
            if accepted is None:
                access.bill.keep_refused(model, answer, "split_not_usable", "split")
            else:
                access.bill.add_cost(answer)
        if accepted is None:
            note = "The model's split was not usable or changed the text; it was split locally."
            self._log(message, "split", "warning", note)
        return accepted

    async def _ask_for_split(
        self, message: LeasedMessage, prompt: Prompt, access: ModelAccess
    ) -> Completion | Failure | None:
        """Ask once and never wait: a written text can be split locally."""
        if not await access.try_acquire_model(prompt.model):
            return None
        answer = await self._ask_model(prompt)
        if isinstance(answer, Systemic | Throttled):
            await self._circuits.open(message, answer, prompt.model)
        return answer


def _refuses_parameters(answer: Completion | Failure) -> bool:
    """Return whether a request may have been refused because of its schema or its limit on reasoning."""
    return isinstance(answer, Systemic | Permanent) and answer.code in {"model_unavailable", "invalid_request"}
