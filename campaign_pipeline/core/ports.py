"""What the core asks of the outside: a language model, a message channel, a store; and the outcomes they answer with.

The vocabulary of outcomes is the same for every adapter. An adapter says *what happened*; what that means for a message
(its status, its next attempt) is decided in `core.results` alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, TypeAlias

from campaign_pipeline.core.numbers import KnownNumber, NumberNote


class Scope(StrEnum):
    """How far a systemic or throttled outcome reaches."""

    MESSAGE = "message"
    RUN = "run"  # this execution of a campaign: its configuration is wrong
    INBOX = "inbox"  # this number or mailbox: disconnected, refused, too fast
    WORKSPACE = "workspace"  # this tenant: no credit, bad key of its own
    MODEL = "model"  # this language model, for every tenant that uses it
    PROVIDER = "provider"  # the language-model account that all tenants share


@dataclass(frozen=True)
class Sent:
    """The provider accepted the part."""

    provider_message_id: str | None  # None: it says that it sent, and could not say under which id
    response: Mapping[str, Any] = field(default_factory=dict)  # what it answered, trimmed and without keys
    address: str | None = None  # the address that the provider really used (a jid), where it tells
    in_conversation: bool = False  # the provider itself wrote the part into the CRM's conversation


@dataclass(frozen=True)
class Permanent:
    """This message or recipient will never work: no retry."""

    code: str  # stable, machine readable: `not_on_whatsapp`
    reason: str  # one sentence of ours for the operator: never the provider's words, which may quote the prompt
    answer: Mapping[str, Any] = field(default_factory=dict)  # what came, for the ledger alone; so of each failure


@dataclass(frozen=True)
class Transient:
    """Surely not accepted, may work later: counts as an attempt."""

    code: str
    reason: str
    retry_after: float | None = None  # seconds, when the provider gave a hint
    attempts: int | None = None  # of the message in all, where fewer than usual make sense
    answer: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Throttled:
    """Surely not accepted because we go too fast: the scope slows down, no attempt is counted."""

    code: str
    reason: str
    scope: Scope
    retry_after: float | None = None  # seconds
    answer: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Systemic:
    """Nothing in this scope can work until its cause is gone: the claim goes back untouched, the scope is paused."""

    code: str
    reason: str
    scope: Scope
    retry_after: float | None = None  # seconds, when the provider said when to come back
    by_words: bool = False  # read from a text alone: the scope is broken once a second recipient met the same
    answer: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Unknown:
    """The request left and no answer can be trusted: never followed by a blind resend."""

    code: str
    reason: str
    answer: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class NotReady:
    """The inbox is connecting and will be able to send shortly: a short wait, and nothing is wrong or too fast."""

    code: str
    reason: str
    retry_after: float  # seconds until it is worth asking again


UNRECOGNISED = "unrecognised_answer"
"""Code of an answer that an adapter's table does not know; counted apart, so that somebody adds a row for it."""

NOT_STORED = "not_stored"
"""Code of an answer that says that the provider's own database failed while it sent."""

OLD_PROCESSOR = "old_processor"
"""The CRM's own processor may have sent it, in pieces of its own cutting: campaign_settle_old_processor gives it."""

MAY_HAVE_NO_RECORD = frozenset({UNRECOGNISED, NOT_STORED, OLD_PROCESSOR})
"""Codes of unknown outcomes after which the provider itself may have no record of what it sent: that a look-up does not
find the part proves nothing then."""

Failure: TypeAlias = Permanent | Transient | Throttled | Systemic | Unknown
Outcome: TypeAlias = Sent | Failure


class LookUp(StrEnum):
    """How well a channel can say whether it accepted a part whose answer was lost."""

    EXACT = "exact"  # by our own key
    SEARCH = "search"  # by address, text and time: a miss counts only once a known message was found the same way
    NONE = "none"


@dataclass(frozen=True)
class ChannelTraits:
    """What a channel can do; declared by each adapter."""

    name: str  # `evolution`
    max_part_chars: int  # the longest text that one part may have
    look_up: LookUp
    number_check: bool = False
    free_text_hours: float | None = None  # since the lead last wrote to the inbox; later only templates. None: always
    part_gap_seconds: float = 0.0  # between the parts of a message, where the provider itself shows no typing
    may_split: bool = True  # False where a message must go out as one (templates, e-mail)
    has_subject: bool = False  # True where a message has a subject line (e-mail)
    business_scoped_ids: bool = False  # True where a lead may be written to by an id instead of a number


@dataclass(frozen=True)
class Template:
    """A message that the provider approved beforehand, and what is put in its places."""

    name: str
    language: str  # as the provider names it: `pt_BR`
    variables: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, row: Mapping[str, Any] | None) -> "Template | None":
        """Build from `campaign_messages.template`."""
        return cls(row["name"], row["language"], tuple(row["variables"])) if row else None


def always() -> bool:
    """No reason not to."""
    return True


@dataclass(frozen=True)
class Envelope:
    """One part on its way: all that a channel needs to send it."""

    message_id: str
    part_no: int  # from 1
    text: str
    address: str  # international digits for WhatsApp (`5511987654321`), an e-mail address for e-mail
    delay_ms: int = 0  # how long the provider should show "typing" before it sends
    conversation_id: str | None = None
    subject: str | None = None  # where the channel has one
    contact_name: str | None = None  # of whom it goes to
    attempted_at: float = 0.0  # seconds since the epoch, by the database's clock
    attempt_no: int = 1  # from 1
    template: Template | None = None  # then `text` is only what the lead will read
    may_leave: Callable[[], bool] = field(default=always, compare=False, repr=False)
    """Whether the request may still be made: asked at the last instant before it is written to the connection, for a
    process may have slept past its lease on the way there."""

    @property
    def idempotency_key(self) -> str:
        """The same for every attempt at this part; given to each provider that takes one."""
        return idempotency_key(self.message_id, self.part_no)


def idempotency_key(message_id: str, part_no: int) -> str:
    """Name a part for ever: `<message id>:<part no>`."""
    return f"{message_id}:{part_no}"


@dataclass(frozen=True)
class Attempt:
    """An attempt whose outcome is not known, as the ledger has it."""

    envelope: Envelope
    started_at: float  # seconds since the epoch, by the database's clock
    control_provider_id: str | None = None  # id of a part that this inbox surely sent, to prove that looking up works
    taken_provider_ids: frozenset[str] = frozenset()  # ids that belong to other parts already: never an answer
    conversation_ids: tuple[str, ...] = ()  # provider ids of the CRM's own records of this text since, oldest first


@dataclass(frozen=True)
class Found:
    """The provider has the part: it was sent."""

    provider_message_id: str
    response: Mapping[str, Any] = field(default_factory=dict)
    in_conversation: bool = False  # see Sent


@dataclass(frozen=True)
class Absent:
    """The provider does not have the part. `proven` is False where a miss proves nothing."""

    proven: bool
    reason: str
    may_improve: bool = False  # a later look may prove more: the means of proof are still missing


@dataclass(frozen=True)
class LookUpFailed:
    """The provider could not be asked just now."""

    reason: str


@dataclass(frozen=True)
class StatusEvent:
    """What a provider says, of its own accord, became of a part that it accepted."""

    message_id: str
    part_no: int
    provider_message_id: str | None
    status: str  # sent, delivered, read, failed
    at: float | None  # seconds since the epoch, by the provider's clock
    error_class: str | None = None  # with `failed`, and so the rest
    code: str | None = None
    reason: str | None = None


LookUpAnswer: TypeAlias = Found | Absent | LookUpFailed


@dataclass(frozen=True)
class NumberExists:
    """The number has an account, which the provider may know by another name than the one asked for."""

    number: str  # the account's own international digits; without the ninth one where it was registered so
    jid: str | None = None  # `553187654321@s.whatsapp.net`
    lid: str | None = None  # the name that hides the number, where the provider tells it


@dataclass(frozen=True)
class NumberMissing:
    """The provider says for sure that the number has no account."""

    reason: str


@dataclass(frozen=True)
class NumberNotChecked:
    """Nobody knows: the provider cannot be asked, or did not answer. Never to be taken for `exists`."""

    reason: str


NumberCheck: TypeAlias = NumberExists | NumberMissing | NumberNotChecked


class MessageChannel(Protocol):
    """One inbox of one provider."""

    @property
    def traits(self) -> ChannelTraits:
        """What this channel can do."""
        ...

    async def check_connection(self) -> Failure | NotReady | None:
        """Ask whether the inbox can send now; None means yes."""
        ...

    async def send(self, envelope: Envelope) -> Outcome:
        """Send one part, once. Never raises for what a provider or the network does.

        Asks `envelope.may_leave` at the last instant before the request is written; where it says no, nothing is
        written and the outcome is Transient.
        """
        ...

    async def find_accepted(self, attempt: Attempt) -> LookUpAnswer:
        """Look a part up whose answer was lost. Never raises for what a provider or the network does."""
        ...

    async def check_number(self, number: str) -> NumberCheck:
        """Ask whether a number (international digits) has an account; NumberNotChecked without the trait.

        One number a call, just before it is needed: asking for many at once gets inboxes banned. Never raises for what
        a provider or the network does.
        """
        ...


@dataclass(frozen=True)
class Reasoning:
    """How much a model may reason before it answers; one of the two, as its provider takes it."""

    effort: str | None = None  # none, minimal, low, medium, high, xhigh
    max_tokens: int | None = None


@dataclass(frozen=True)
class Prompt:
    """One request to a language model."""

    model: str
    system: str
    user: str
    max_tokens: int = 500
    temperature: float = 0.7
    timeout: float = 30.0  # seconds
    json_schema: Mapping[str, Any] | None = None  # ask for structured output of this shape
    reference: str = ""  # the message's id: tells two equal prompts apart
    workspace_id: str = ""  # whose account pays, where a workspace has one of its own
    session: str = ""  # of requests whose prompts begin alike: they go where that beginning is cached
    fallback_models: tuple[str, ...] = ()  # asked by the provider in this order where the model cannot answer
    reasoning: Reasoning | None = None  # None: as the model does by itself


@dataclass(frozen=True)
class Completion:
    """What a language model answered, and what it charged for it."""

    text: str  # what there is of it, where it may not be used
    model: str  # the model that really ran
    prompt_tokens: int
    completion_tokens: int
    cost: float | None  # US dollars as charged; None where the provider does not say
    generation_id: str | None = None
    reasoning_tokens: int = 0  # of the completion's
    cached_tokens: int = 0  # of the prompt's: read from the provider's cache
    cache_write_tokens: int = 0  # of the prompt's: written into it
    cache_saved_usd: float | None = None  # what the cache saved, negative where writing cost more; None: not known
    failure: Transient | Permanent | None = None  # why the text may not be used; None: it may

    @property
    def total_tokens(self) -> int:
        """Tokens in and out."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def used_cache(self) -> bool:
        """Whether any of the prompt was read from the provider's cache or written into it."""
        return self.cached_tokens > 0 or self.cache_write_tokens > 0


class LanguageModel(Protocol):
    """Where texts come from."""

    async def complete(self, prompt: Prompt) -> Completion | Failure:
        """Generate once. Never raises for what the provider or the network does."""
        ...


class Clock(Protocol):
    """Time as it passes in this process: for waiting and measuring, never for deciding what is due."""

    def monotonic(self) -> float:
        """Seconds that only grow, also while the process or its machine is suspended."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Come back after so many seconds."""
        ...


LogLine: TypeAlias = Mapping[str, Any]
Rows: TypeAlias = Sequence[Mapping[str, Any]]


class StoreUnavailable(RuntimeError):
    """The queue's database stayed away for longer than it is waited for."""


@dataclass(frozen=True)
class ModelCall:
    """An answer of a model that is kept and counted by itself.

    Its text was changed or not used at all, or its prompt was cached.
    """

    id: str  # the provider's, or one of ours: under it the call is booked once
    purpose: str  # text, split
    model: str  # that was asked
    prompt_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    cost_usd: float | None
    rule: str | None = None  # that refused the answer: its cost is booked with this record
    about_model: bool = False  # the rule is one that the model breaks by itself, whatever it is asked for
    reasons: bool = False  # it was cut off while it reasoned
    changed: tuple[str, ...] = ()  # rules that changed it: its cost is booked with the message's text
    answer: str | None = None  # as it came, where it was refused
    cached_tokens: int = 0  # see Completion
    cache_write_tokens: int = 0
    cache_saved_usd: float | None = None


@dataclass(frozen=True)
class BeginPart:
    """The intent to send a part, committed before its request leaves."""

    message_id: str
    part_no: int
    attempt_no: int
    address: str
    channel: str  # whatsapp, email
    contact_name: str | None = None
    parts: tuple[str, ...] | None = None  # with the first attempt at a message: its text for ever
    text: str | None = None
    ai_model: str | None = None
    ai_tokens_used: int | None = None
    ai_cost_usd: float | None = None
    ai_generation_time_ms: int | None = None
    subject: str | None = None  # of an e-mail; fixed together with its text
    template: Template | None = None  # that it goes out as; fixed together with its text
    asked_model: str | None = None  # the model that was asked for the text
    calls: tuple[ModelCall, ...] = ()
    local_day: str | None = None  # today in the campaign's zone (2026-11-23), where a lead gets one message a day


class Verdict(StrEnum):
    """What the store answers when it is asked whether a message may go on; the words of sql/functions.

    `RUN_...`: the status of its run, where that is not `running`.
    """

    GO = "go"
    LOST = "lost"  # the lease is not ours, or has ended
    SCOPE_PAUSED = "scope_paused"  # the circuit of something that it needs is open
    NOT_DUE = "not_due"  # its planned time has not come
    PACED = "paced"  # its turn has not come
    SUPPRESSED = "suppressed"  # its lead or address may not be written to
    FOREIGN_WORKSPACE = "foreign_workspace"  # it touches a row of another workspace than its campaign's
    CONTACTED_TODAY = "contacted_today"  # its lead gets one message a day and has it
    NUMBER_CONTACTED = "number_contacted"  # another message went to its number not long ago
    AWAITING_REVIEW = "awaiting_review"  # a person has to approve its text, or others of its run, first
    PAUSED_BY_PERSON = "paused_by_person"  # a person paused its inbox, its workspace, or all sending
    RUN_PAUSED = "run_paused"
    RUN_COMPLETED = "run_completed"
    RUN_FAILED = "run_failed"
    RUN_CANCELLED = "run_cancelled"


@dataclass(frozen=True)
class Turn:
    """When a message may begin by the pace of its inbox and campaign."""

    seconds: float  # from now; 0: its turn has come
    code: str  # why not before: see `core.claim_budget.REASONS`


@dataclass(frozen=True)
class Begun:
    """What the store answers to the intent to send a part: the request may leave only if `verdict` is GO."""

    verdict: Verdict
    conversation_id: str | None = None
    turn: Turn | None = None  # with the verdicts NOT_DUE and PACED
    grace_seconds: float | None = None  # send within so many seconds of the call, or return the slot; None: no pace


@dataclass(frozen=True)
class Settlement:
    """What is now known of a part, where its message goes, or both; committed together."""

    message_id: str
    part_no: int | None = None
    attempt_no: int | None = None
    outcome: str | None = None  # the part's new status
    status: str | None = None  # the message's; None: it stays
    error_class: str | None = None
    code: str | None = None
    reason: str | None = None
    delay_seconds: float | None = None
    count_attempt: bool = False
    provider_message_id: str | None = None
    response: Mapping[str, Any] | None = None
    address: str | None = None
    duration_ms: int | None = None
    looked_up: bool = False
    in_conversation: bool = False  # the provider itself wrote the part into the CRM's conversation
    unrequested: bool = False  # no request was made of the attempt: its turn goes to somebody else


@dataclass(frozen=True)
class Settled:
    """What a settlement changed."""

    applied: bool  # the ledger has the outcome
    moved: bool  # the message is where it was sent to
    final: str | None  # its status now; None: the message is gone


@dataclass(frozen=True)
class Pause:
    """A scope in which nothing may be requested now."""

    scope: Scope
    scope_id: str
    kind: str  # systemic, throttled
    code: str
    reason: str
    seconds: float  # from now


class LeaseStore(Protocol):
    """Keeps the leases of one shard."""

    async def renew(self, message_ids: Sequence[str]) -> set[str]:
        """Renew the leases; returns the messages that are still held. Raises StoreUnavailable."""
        ...


@dataclass(frozen=True)
class FailureStreak:
    """Failures of one code that a scope met with no success between."""

    failures: int
    recipients: int  # different ones that met it


class DeliveryStore(Protocol):
    """The queue as one shard sees it: every write is fenced by the shard's own lease.

    Each method raises StoreUnavailable when the database stays away.
    """

    async def start_generating(self, message_id: str) -> Verdict:
        """Whether the model may be called for a message."""
        ...

    async def begin_part(self, begin: BeginPart) -> Begun:
        """Commit the text and the intent to send a part."""
        ...

    async def keep_text(self, begin: BeginPart) -> None:
        """Keep a text that was paid for and whose sending may not begin now."""
        ...

    async def settle(self, settlement: Settlement) -> Settled:
        """Commit what came of it."""
        ...

    async def pauses(self) -> Sequence[Pause]:
        """Every paused scope, at most a second old."""
        ...

    async def open_pause(
        self, scope: Scope, scope_id: str, failure: Throttled | Systemic, message_id: str | None = None
    ) -> float:
        """Pause or slow down a scope for everybody; returns for how many seconds.

        `message_id` is the message that met the cause; the probe that tries whether it is gone is another one.
        """
        ...

    async def note_failure(self, scope: Scope, scope_id: str, code: str, recipient: str) -> FailureStreak:
        """Note that a scope met a failure, and return what it met of this code with no success between.

        `recipient` is a lead's id, or a message's where it has no lead.
        """
        ...

    async def forget_failures(self, scope: Scope, scope_id: str) -> None:
        """The scope worked: what was noted of it is over."""
        ...

    async def next_turn(self, message_id: str) -> Turn:
        """How long a message waits for its turn; takes nothing."""
        ...

    async def slow_down(self, inbox_id: str) -> float:
        """Let an inbox go slower for everybody; returns how many times slower than its pace it goes now."""
        ...

    async def known_sends(self, inbox_id: str, attempt: Attempt) -> Attempt:
        """The attempt, completed with a control id and with the ids that are taken."""
        ...

    async def known_numbers(
        self, provider: str, numbers: Sequence[str], days: float, missing_days: float
    ) -> Sequence[KnownNumber]:
        """What the provider said of these numbers in the last days: of those that exist, and of those that do not."""
        ...

    def note_number(self, provider: str, note: NumberNote) -> None:
        """Keep what was learned about a number, soon and in bulk."""
        ...

    def log(self, line: LogLine) -> None:
        """Write a line of the campaign's log, soon and in bulk."""
        ...

    async def flush(self) -> None:
        """Write what was noted and logged so far."""
        ...
