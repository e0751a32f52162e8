"""The text of a message: written once by the model, checked, and cut into the parts that are sent.

A shard's writer knows what to ask and which answers may be sent. Whether the model may be asked now is decided by
`core.admission`; the message asks for it (`ModelAccess`).
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from campaign_pipeline.core.admission import Admission, WaitingPolicy
from campaign_pipeline.core.campaign_log import CampaignLog
from campaign_pipeline.core.generation import (
    EMAIL_SCHEMA,
    Message,
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
from campaign_pipeline.core.model import BatchSettings, ErrorClass, Lead, LeasedMessage, ShardReport, TemplateSettings
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
    Transient,
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
"""What a model is asked to answer when it proposes a split."""

MODEL_REFUSES = "model_refuses_requests"
"""A model that takes none of our requests: its own settings or ours are wrong, not a message."""

FIRST_REFUSALS = 3
"""Three rejections with no success mean that the model or the account is misconfigured, not a message."""

SPLIT_TIMEOUT_SECONDS = 20.0
"""A split that takes longer is not waited for: the local splitter needs no time."""


@dataclass(frozen=True)
class WritingPolicy(WaitingPolicy):
    """How texts are asked for."""

    generation_timeout_seconds: float = 30.0
    max_tokens: int = 500
    temperature: float = 0.7


@dataclass(frozen=True)
class Draft:
    """A text that passed its check; with what it took, where it was written now."""

    text: str
    subject: str | None = None  # where the channel has one
    template: Template | None = None  # that it goes out as; then `text` is only what the lead will read
    completion: Completion | None = None  # None: it was stored before
    milliseconds: int | None = None

    def columns(self) -> dict[str, Any]:
        """The fields of BeginPart that keep it; none where it is kept already."""
        if self.completion is None:
            return {}
        return {
            "text": self.text,
            "subject": self.subject,
            "ai_model": self.completion.model,
            "ai_tokens_used": self.completion.total_tokens,
            "ai_cost_usd": self.completion.cost,
            "ai_generation_time_ms": self.milliseconds,
        }


class NotWritten(Exception):
    """There is no text that may be sent; `model` is the one that was asked, where that matters."""

    def __init__(self, failure: Failure, model: str | None = None) -> None:
        super().__init__(failure.reason)
        self.failure = failure
        self.model = model


class ModelAccess(Protocol):
    """A message's access to the model. Either method may raise `results.Ended`."""

    async def acquire_model(self) -> None:
        """Come back when the model may be asked for this message."""
        ...

    async def try_acquire_model(self, model: str) -> bool:
        """Whether this model may be asked at once, for something that can be done without it."""
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
        report: ShardReport,  # what is paid is counted here
        admission: Admission,
        log: CampaignLog,
    ) -> None:
        self._model = model
        self._settings = settings
        self._traits = traits
        self._policy = policy
        self._clock = clock
        self._report = report
        self._admission = admission
        self._log = log
        self._warned: set[str] = set()  # campaigns whose settings were complained of
        self._refusals: Counter[str] = Counter()  # by model: invalid requests before any good one
        self._good_models: set[str] = set()
        self._without_schema: set[str] = set()  # models that refuse to answer in a given shape
        self._costs: dict[str, float] = {}  # by message: US dollars since pop_cost

    def pop_cost(self, message: LeasedMessage) -> float | None:
        """US dollars paid for a message's text and split since the last call; None where the provider does not say."""
        return self._costs.pop(message.id, None)

    async def write(self, message: LeasedMessage, lead: Lead | None, access: ModelAccess, *, free_text: bool) -> Draft:
        """The message's text: the stored one, else one written now (and paid for once).

        `free_text`: whether the channel takes more than approved templates for this lead now. Raises NotWritten.
        """
        if message.text is not None:
            if message.template is not None:
                return Draft(message.text, template=message.template)
            return self._stored(message, lead, message.text)
        template = None if free_text else self._template(message)
        if template is not None and not template.variables:
            return Draft(template.fill(()), template=Template(template.name, template.language))
        completion, milliseconds = await self._generate(message, lead, template, access)
        self._report.generation_ms.append(milliseconds)
        if template is None:
            read = self._read(message, lead, completion.text)
            return Draft(read.text, read.subject, None, completion, milliseconds)
        try:
            values = parse_variables(completion.text, len(template.variables), self._known(message, lead))
        except TextProblem as problem:
            raise NotWritten(Transient(problem.code, str(problem))) from problem
        chosen = Template(template.name, template.language, values)
        return Draft(template.fill(values), None, chosen, completion, milliseconds)

    def _template(self, message: LeasedMessage) -> TemplateSettings:
        """The template that a message has to go out as. Raises NotWritten where the campaign has none."""
        template = self._settings.campaigns[message.config_id].template
        if template is None:
            reason = (
                "The lead did not write within a day, so only an approved template may go out, and the campaign has "
                "none: set its template_name."
            )
            raise NotWritten(Systemic("no_template", reason, Scope.RUN))
        return template

    async def split(self, message: LeasedMessage, text: str, access: ModelAccess) -> tuple[str, ...]:
        """The parts in which a text is sent. Raises NotWritten where they cannot hold it."""
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

    def _read(self, message: LeasedMessage, lead: Lead | None, raw: str) -> Message:
        """The text and the subject of a model's answer. Raises NotWritten."""
        known = self._known(message, lead)
        try:
            if self._traits.has_subject:
                return read_email(raw, self._longest_text(message), known)
            return read_message(raw, self._longest_text(message), known)
        except TextProblem as problem:
            raise NotWritten(Transient(problem.code, str(problem))) from problem

    def _stored(self, message: LeasedMessage, lead: Lead | None, text: str) -> Draft:
        """A text that was written before, by us or by the system before us. Raises NotWritten.

        Its contacts are not judged again: they were when it was written, and the lead's data may have changed since.
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
        """What the model was told of, and so may repeat in its text."""
        campaign = self._settings.campaigns[message.config_id]
        own = (lead.phone, lead.email, *lead.other_phones, *lead.context.values()) if lead else ()
        body = campaign.template.body if campaign.template else None
        return Known.of([campaign.instructions, body or ""], [each for each in (*own, message.phone_number) if each])

    def _longest_text(self, message: LeasedMessage) -> int:
        """Characters that all parts of a message may have together."""
        return self._traits.max_part_chars * (self._max_parts(message) if self._splits(message) else 1)

    def _question(
        self, message: LeasedMessage, lead: Lead, template: TemplateSettings | None
    ) -> tuple[str, str, Mapping[str, Any] | None]:
        """System and user prompt, and the shape of the answer where it is not plain text."""
        instructions = self._settings.campaigns[message.config_id].instructions
        if template is not None:
            prompts = template_prompt(instructions, lead.context, template.variables, template.body)
            return *prompts, template_schema(template.variables)
        if self._traits.has_subject:
            return *email_prompt(instructions, lead.context), EMAIL_SCHEMA
        return *first_contact_prompt(instructions, lead.context), None

    async def _generate(
        self, message: LeasedMessage, lead: Lead | None, template: TemplateSettings | None, access: ModelAccess
    ) -> tuple[Completion, int]:
        model = self._settings.models.get(message.workspace_id)
        if model is None or lead is None:
            # Only since the claim, which holds such a run: the message waits with it.
            raise Ended(GiveBack(NO_MODEL, NO_MODEL_REASON, ErrorClass.SYSTEMIC))
        system, user, shape = self._question(message, lead, template)
        prompt = Prompt(
            model,
            system,
            user,
            max_tokens=self._policy.max_tokens,
            temperature=self._policy.temperature,
            timeout=self._policy.generation_timeout_seconds,
            json_schema=None if model in self._without_schema else shape,
            reference=message.id,
            workspace_id=message.workspace_id,
            fallback_models=self._settings.fallback_models.get(message.workspace_id, ()),
        )
        started = self._clock.monotonic()
        answer = await self._complete(message, prompt, access)
        if prompt.json_schema is not None and _refuses_schema(answer):
            # No endpoint of this model takes a schema, or it dislikes ours: the prompt asks for the same in words.
            prompt = replace(prompt, json_schema=None)
            answer = await self._complete(message, prompt, access)
            if isinstance(answer, Completion):
                self._without_schema.add(model)
        if isinstance(answer, Transient) and answer.code == "truncated":
            # Once with twice the room: the same room would only be paid for again.
            answer = await self._complete(message, replace(prompt, max_tokens=2 * prompt.max_tokens), access)
            if isinstance(answer, Transient) and answer.code == "truncated":
                answer = Permanent(answer.code, answer.reason)
        if not isinstance(answer, Completion):
            if isinstance(answer, Permanent) and answer.code == "invalid_request":
                answer = await self._judge_refusal(answer, model)
            raise NotWritten(answer, model)
        self._good_models.add(model)
        return answer, round(1000 * (self._clock.monotonic() - started))

    async def _judge_refusal(self, refusal: Permanent, model: str) -> Permanent | Systemic:
        """Systemic once a model rejected FIRST_REFUSALS requests with no success: then it is not the message."""
        if model in self._good_models:
            return refusal
        self._refusals[model] += 1
        if self._refusals[model] < FIRST_REFUSALS and not await self._admission.model_is_paused(model, MODEL_REFUSES):
            return refusal
        reason = f"{refusal.reason} The model {model} refused the first requests one and all; check ai_agents."
        return Systemic(MODEL_REFUSES, reason, Scope.MODEL)

    async def _complete(self, message: LeasedMessage, prompt: Prompt, access: ModelAccess) -> Completion | Failure:
        """Ask the model, with admission before each request; wait out its throttles where they are short."""
        for _ in range(self._policy.max_inline_waits):
            await access.acquire_model()
            answer = await self._ask_model(prompt)
            if not isinstance(answer, Throttled):
                break
            if await self._admission.open_circuit(message, answer, prompt.model) > self._policy.max_inline_wait_seconds:
                break
        return answer

    async def _ask_model(self, prompt: Prompt) -> Completion | Failure:
        answer = await self._model.complete(prompt)
        if isinstance(answer, Completion):
            self._report.tokens += answer.total_tokens
            self._report.cost_usd += answer.cost or 0.0
            if answer.cost is not None:
                message_id = prompt.reference.partition(":")[0]
                self._costs[message_id] = self._costs.get(message_id, 0.0) + answer.cost
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
        """The model's proposal, if it changes nothing of the text; None sends us to the local splitter."""
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
        proposal = parse_proposal(answer.text) if isinstance(answer, Completion) else None
        accepted = accept_proposal(text, proposal, max_parts, max_chars) if proposal else None
        if accepted is None:
            note = "The model's split was not usable or changed the text; it was split locally."
            self._log(message, "split", "warning", note)
        return accepted

    async def _ask_for_split(
        self, message: LeasedMessage, prompt: Prompt, access: ModelAccess
    ) -> Completion | Failure | None:
        """Ask once and never wait: a text that is written can be split locally."""
        if not await access.try_acquire_model(prompt.model):
            return None
        answer = await self._ask_model(prompt)
        if isinstance(answer, Systemic | Throttled):
            await self._admission.open_circuit(message, answer, prompt.model)
        return answer


def _refuses_schema(answer: Completion | Failure) -> bool:
    """Whether a request may have been refused for the shape that it asked for."""
    return isinstance(answer, Systemic | Permanent) and answer.code in {"model_unavailable", "invalid_request"}
