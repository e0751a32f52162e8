"""Interfaces that the core needs (a language model, a message channel, a store), and the outcomes that they return.

All adapters share the vocabulary of outcomes. An adapter says *what happened*; `core.results` alone decides what that
means for a message (its status, its next attempt).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, TypeAlias

from campaign_pipeline.core.numbers import KnownNumber, NumberNote
from campaign_pipeline.core.runs import RunWait


class Scope(StrEnum):
    """The scope of a systemic or throttled outcome."""

    MESSAGE = "message"
    RUN = "run"  # this execution of a campaign: wrong configuration
    INBOX = "inbox"  # this number or mailbox: disconnected, refused, too fast
    WORKSPACE = "workspace"  # this tenant: no credit, or its own key is invalid
    MODEL = "model"  # this language model, for all tenants that use it
    PROVIDER = "provider"  # the language-model account that all tenants share


@dataclass(frozen=True)
class Sent:
    """The provider accepted the part."""

    provider_message_id: str | None  # None: it accepted the part without naming an id
    response: Mapping[str, Any] = field(default_factory=dict)  # its response, trimmed and without keys
    address: str | None = None  # the address that the provider actually used (a jid), if it returns it
    in_conversation: bool = False  # the provider itself stored the part in the CRM's conversation


@dataclass(frozen=True)
class Permanent:
    """This message or recipient will never work: no retry."""

    code: str  # stable, machine-readable: `not_on_whatsapp`
    reason: str  # one sentence of ours for the operator: never the provider's text, which may quote the prompt
    answer: Mapping[str, Any] = field(default_factory=dict)  # the provider's answer, for the ledger only


@dataclass(frozen=True)
class Transient:
    """Certainly not accepted, may work later; counts as an attempt."""

    code: str
    reason: str
    retry_after: float | None = None  # seconds, if the provider gave a hint
    attempts: int | None = None  # maximum for the message, if lower than usual
    answer: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Throttled:
    """Certainly not accepted because of a rate limit: the scope slows down, no attempt is counted."""

    code: str
    reason: str
    scope: Scope
    retry_after: float | None = None  # seconds
    answer: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Systemic:
    """Nothing in this scope can work until the cause is fixed: the message is returned unchanged, the scope paused."""

    code: str
    reason: str
    scope: Scope
    retry_after: float | None = None  # seconds, if the provider said when to retry
    by_words: bool = False  # inferred from a text alone: the scope is broken once a second recipient gets the same
    answer: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Unknown:
    """The request left, and no answer can be trusted: never followed by a blind resend."""

    code: str
    reason: str
    answer: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class NotReady:
    """The inbox is connecting and can send shortly: a short wait; nothing is wrong or too fast."""

    code: str
    reason: str
    retry_after: float  # seconds until the next check is useful


UNRECOGNISED = "unrecognised_answer"
"""Code of an answer without a row in its adapter's table; counted separately, so that somebody adds a row."""

NOT_STORED = "not_stored"
"""Code of an answer that reports a failure of the provider's own database during the send."""

OLD_PROCESSOR = "old_processor"
"""The CRM's own processor may have sent it, split in its own way; set by campaign_settle_old_processor."""

MAY_HAVE_NO_RECORD = frozenset({UNRECOGNISED, NOT_STORED, OLD_PROCESSOR})
"""Codes of unknown outcomes after which the provider itself may have no record of what it sent: then a failed look-up
proves nothing."""

Failure: TypeAlias = Permanent | Transient | Throttled | Systemic | Unknown
Outcome: TypeAlias = Sent | Failure


class LookUp(StrEnum):
    """How reliably a channel can tell whether it accepted a part whose answer was lost."""

    EXACT = "exact"  # by our own key
    SEARCH = "search"  # by address, text and time: a miss counts only if a known message was found the same way
    NONE = "none"


@dataclass(frozen=True)
class ChannelTraits:
    """The capabilities of a channel; each adapter declares them."""

    name: str  # `evolution`
    max_part_chars: int  # the longest text of one part
    look_up: LookUp
    number_check: bool = False
    free_text_hours: float | None = None  # since the lead last wrote to the inbox; later only templates. None: always
    part_gap_seconds: float = 0.0  # between the parts of a message, if the provider itself does not show "typing"
    may_split: bool = True  # False if a message must be sent in one part (templates, e-mail)
    has_subject: bool = False  # True if a message has a subject line (e-mail)
    business_scoped_ids: bool = False  # True if a lead may be addressed by an id instead of a number


@dataclass(frozen=True)
class Template:
    """A message that the provider approved beforehand, with the values of its variables."""

    name: str
    language: str  # the provider's code: `pt_BR`
    variables: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, row: Mapping[str, Any] | None) -> "Template | None":
        """Build from `campaign_messages.template`."""
        return cls(row["name"], row["language"], tuple(row["variables"])) if row else None


def always() -> bool:
    """Return True: the default of `may_leave`."""
    return True


@dataclass(frozen=True)
class Envelope:
    """One part to be sent, with everything that a channel needs."""

    message_id: str
    part_no: int  # from 1
    text: str
    address: str  # international digits for WhatsApp (`5511987654321`), or an e-mail address
    delay_ms: int = 0  # how long the provider should show "typing" before it sends
    conversation_id: str | None = None
    subject: str | None = None  # if the channel has one
    contact_name: str | None = None  # of the recipient
    attempted_at: float = 0.0  # seconds since the epoch, by the database's clock
    attempt_no: int = 1  # from 1
    template: Template | None = None  # then `text` is only what the lead will read
    may_leave: Callable[[], bool] = field(default=always, compare=False, repr=False)
    """Returns whether the request may still be made: called right before it is written to the connection, because the
    process may have slept past its lease."""

    @property
    def idempotency_key(self) -> str:
        """Return the key that all attempts at this part share; given to each provider that accepts one."""
        return idempotency_key(self.message_id, self.part_no)


def idempotency_key(message_id: str, part_no: int) -> str:
    """Return the permanent name of a part: `<message id>:<part no>`."""
    return f"{message_id}:{part_no}"


@dataclass(frozen=True)
class Attempt:
    """An attempt of unknown outcome, from the ledger."""

    envelope: Envelope
    started_at: float  # seconds since the epoch, by the database's clock
    control_provider_id: str | None = None  # id of a part that this inbox certainly sent, to prove that look-ups work
    taken_provider_ids: frozenset[str] = frozenset()  # ids that belong to other parts: never a result
    conversation_ids: tuple[str, ...] = ()  # provider ids of the CRM's later records of this text, oldest first


@dataclass(frozen=True)
class Found:
    """The provider has the part: it was sent."""

    provider_message_id: str
    response: Mapping[str, Any] = field(default_factory=dict)
    in_conversation: bool = False  # see Sent


@dataclass(frozen=True)
class Absent:
    """The provider does not have the part. `proven` is False if a miss proves nothing."""

    proven: bool
    reason: str
    may_improve: bool = False  # a later look-up may prove more: the means of proof are still missing


@dataclass(frozen=True)
class LookUpFailed:
    """The provider could not be asked now."""

    reason: str


@dataclass(frozen=True)
class StatusEvent:
    """A provider's notification of what became of a part that it accepted."""

    message_id: str
    part_no: int
    provider_message_id: str | None
    status: str  # sent, delivered, read, failed
    at: float | None  # seconds since the epoch, by the provider's clock
    error_class: str | None = None  # with `failed`, like the following fields
    code: str | None = None
    reason: str | None = None


LookUpAnswer: TypeAlias = Found | Absent | LookUpFailed


@dataclass(frozen=True)
class NumberExists:
    """The number has an account, whose name at the provider may differ from the number asked for."""

    number: str  # the account's own international digits; without the ninth one if it was registered without
    jid: str | None = None  # `553187654321@s.whatsapp.net`
    lid: str | None = None  # the name that hides the number, if the provider returns it


@dataclass(frozen=True)
class NumberMissing:
    """The provider says with certainty that the number has no account."""

    reason: str


@dataclass(frozen=True)
class NumberNotChecked:
    """Unknown: the provider cannot be asked, or did not answer. Must not be treated as `exists`."""

    reason: str


NumberCheck: TypeAlias = NumberExists | NumberMissing | NumberNotChecked


class MessageChannel(Protocol):
    """One inbox of one provider."""

    @property
    def traits(self) -> ChannelTraits:
        """Return the capabilities of this channel."""
        ...

    async def check_connection(self) -> Failure | NotReady | None:
        """Ask whether the inbox can send now; None means yes."""
        ...

    async def send(self, envelope: Envelope) -> Outcome:
        """Send one part, once. Never raises for failures of the provider or the network.

        Checks `envelope.may_leave` at the last instant before the request is written; if it returns False, nothing is
        written and the outcome is Transient.
        """
        ...

    async def find_accepted(self, attempt: Attempt) -> LookUpAnswer:
        """Look up a part whose answer was lost. Never raises for failures of the provider or the network."""
        ...

    async def check_number(self, number: str) -> NumberCheck:
        """Ask whether a number (international digits) has an account; NumberNotChecked without the trait.

        One number per call, just before it is needed: bulk checks get inboxes banned. Never raises for failures of the
        provider or the network.
        """
        ...


@dataclass(frozen=True)
class Reasoning:
    """How much a model may reason before it answers; either field, as its provider accepts it."""

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
    json_schema: Mapping[str, Any] | None = None  # request structured output of this shape
    reference: str = ""  # the message's id: distinguishes equal prompts
    workspace_id: str = ""  # whose account pays, if the workspace has its own
    session: str = ""  # shared by requests whose prompts begin alike: they are routed to the cache of that prefix
    fallback_models: tuple[str, ...] = ()  # tried by the provider in this order if the model cannot answer
    reasoning: Reasoning | None = None  # None: the model's default


@dataclass(frozen=True)
class Completion:
    """A language model's answer, and its cost."""

    text: str  # what there is of it, if it may not be used
    model: str  # the model that actually ran
    prompt_tokens: int
    completion_tokens: int
    cost: float | None  # US dollars as charged; None if the provider does not say
    generation_id: str | None = None
    reasoning_tokens: int = 0  # part of the completion tokens
    cached_tokens: int = 0  # prompt tokens read from the provider's cache
    cache_write_tokens: int = 0  # prompt tokens written to the cache
    cache_saved_usd: float | None = None  # negative if writing cost more; None: unknown
    failure: Transient | Permanent | None = None  # why the text may not be used; None: it may

    @property
    def total_tokens(self) -> int:
        """Return prompt and completion tokens."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def used_cache(self) -> bool:
        """Return whether any prompt token was read from, or written to, the provider's cache."""
        return self.cached_tokens > 0 or self.cache_write_tokens > 0


class LanguageModel(Protocol):
    """Writes texts."""

    async def complete(self, prompt: Prompt) -> Completion | Failure:
        """Generate once. Never raises for failures of the provider or the network."""
        ...


class Clock(Protocol):
    """Elapsed time in this process: for waiting and measuring, never for deciding what is due."""

    def monotonic(self) -> float:
        """Return seconds that never decrease and include suspensions of the process or machine."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after this many seconds."""
        ...


LogLine: TypeAlias = Mapping[str, Any]
Rows: TypeAlias = Sequence[Mapping[str, Any]]


class StoreUnavailable(RuntimeError):
    """The queue's database was unavailable for longer than the store waits."""


@dataclass(frozen=True)
class ModelCall:
    """An answer of a model that is stored and counted on its own.

    Its text was changed or discarded, or its prompt was cached.
    """

    id: str  # the provider's, or our own: the call is booked once under it
    purpose: str  # text, split
    model: str  # the requested model
    prompt_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    cost_usd: float | None
    rule: str | None = None  # that refused the answer: its cost is booked with this record
    about_model: bool = False  # the model breaks this rule whatever the prompt
    reasons: bool = False  # it was cut off during reasoning
    changed: tuple[str, ...] = ()  # rules that changed it: its cost is booked with the message's text
    answer: str | None = None  # unchanged, if it was refused
    cached_tokens: int = 0  # see Completion
    cache_write_tokens: int = 0
    cache_saved_usd: float | None = None


@dataclass(frozen=True)
class BeginPart:
    """The intent to send a part, committed before its request."""

    message_id: str
    part_no: int
    attempt_no: int
    address: str
    channel: str  # whatsapp, email
    contact_name: str | None = None
    parts: tuple[str, ...] | None = None  # with the first attempt at a message: its text, immutable from then on
    text: str | None = None
    ai_model: str | None = None
    ai_tokens_used: int | None = None
    ai_cost_usd: float | None = None
    ai_generation_time_ms: int | None = None
    subject: str | None = None  # of an e-mail; fixed together with its text
    template: Template | None = None  # that it is sent as; fixed together with its text
    asked_model: str | None = None  # the model requested for the text
    calls: tuple[ModelCall, ...] = ()
    local_day: str | None = None  # today in the campaign's zone (2026-11-23), if a lead gets one message a day


class Verdict(StrEnum):
    """The store's answer to whether a message may go on; shared with sql/functions.

    `RUN_...`: the status of its run, if it is not `running`.
    """

    GO = "go"
    LOST = "lost"  # the lease is not ours, or has expired
    SCOPE_PAUSED = "scope_paused"  # the circuit of a scope that it needs is open
    NOT_DUE = "not_due"  # its planned time has not come
    PACED = "paced"  # its turn has not come
    SUPPRESSED = "suppressed"  # its lead or address must not be contacted
    FOREIGN_WORKSPACE = "foreign_workspace"  # it references a row of another workspace than its campaign's
    LEAD_DELETED = "lead_deleted"  # nobody is left to send it to
    CONTACTED_TODAY = "contacted_today"  # its lead gets one message a day and has had it
    NUMBER_CONTACTED = "number_contacted"  # another message went to its number recently
    AWAITING_REVIEW = "awaiting_review"  # a person must first approve its text, or others of its run
    PAUSED_BY_PERSON = "paused_by_person"  # a person paused its inbox, its workspace, or all sending
    RUN_PAUSED = "run_paused"
    RUN_COMPLETED = "run_completed"
    RUN_FAILED = "run_failed"
    RUN_CANCELLED = "run_cancelled"

    @classmethod
    def _missing_(cls, value: object) -> "Verdict":
        """Return LOST for a word of a newer schema, beside which code of an earlier version works during an upgrade.

        So the message is left alone, and newer code takes it over when its lease expires. An error would also leave
        the other messages of its statement, whose requests may leave, with an unknown outcome.
        """
        return cls.LOST


@dataclass(frozen=True)
class Turn:
    """When a message may begin, by the paces of its inbox and campaign."""

    seconds: float  # from now; 0: its turn has come
    code: str  # why not earlier: see `core.claim_budget.REASONS`


@dataclass(frozen=True)
class Begun:
    """The store's answer to the intent to send a part: the request may leave only if `verdict` is GO."""

    verdict: Verdict
    conversation_id: str | None = None
    turn: Turn | None = None  # with the verdicts NOT_DUE and PACED
    grace_seconds: float | None = None  # send within this many seconds of the call, or return the slot; None: no pace


@dataclass(frozen=True)
class Settlement:
    """The new state of a part, of its message, or of both; committed together."""

    message_id: str
    part_no: int | None = None
    attempt_no: int | None = None
    outcome: str | None = None  # the part's new status
    status: str | None = None  # the message's; None: unchanged
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
    in_conversation: bool = False  # the provider itself stored the part in the CRM's conversation
    unrequested: bool = False  # no request was made for the attempt: its turn is free for another message


@dataclass(frozen=True)
class Settled:
    """The changes that a settlement made."""

    applied: bool  # the ledger has the outcome
    moved: bool  # the message has its new status
    final: str | None  # its status now; None: the message was deleted


@dataclass(frozen=True)
class Pause:
    """A scope for which no request may be made now."""

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
    """Failures of one code in a scope, with no success in between."""

    failures: int
    recipients: int  # how many different recipients met it


class DeliveryStore(Protocol):
    """The queue as one shard sees it: every write is fenced by the shard's own lease.

    Each method raises StoreUnavailable if the database stays unavailable.
    """

    async def start_generating(self, message_id: str) -> Verdict:
        """Ask whether the model may be called for a message."""
        ...

    async def begin_part(self, begin: BeginPart) -> Begun:
        """Commit the text and the intent to send a part."""
        ...

    async def why_held(self, run_id: str) -> RunWait | None:
        """Return what in the CRM's settings, at most one second old, holds a run's written texts; None if nothing."""
        ...

    async def planned_times(self, message_ids: Sequence[str]) -> Mapping[str, float]:
        """Return when messages that this shard holds are due now, in seconds since the epoch."""
        ...

    async def keep_text(self, begin: BeginPart) -> None:
        """Store a text that was paid for and whose sending may not begin now."""
        ...

    async def settle(self, settlement: Settlement) -> Settled:
        """Commit the new state of a part, a message, or both."""
        ...

    async def pauses(self) -> Sequence[Pause]:
        """Return every paused scope, at most one second old."""
        ...

    async def open_pause(
        self, scope: Scope, scope_id: str, failure: Throttled | Systemic, message_id: str | None = None
    ) -> float:
        """Pause or slow down a scope for all workers; returns for how many seconds.

        `message_id` is the message that met the cause; another one will be the probe.
        """
        ...

    async def note_failure(self, scope: Scope, scope_id: str, code: str, recipient: str) -> FailureStreak:
        """Record a failure of a scope, and return its failures of this code with no success in between.

        `recipient` is a lead's id, or the message's id if it has no lead.
        """
        ...

    async def forget_failures(self, scope: Scope, scope_id: str) -> None:
        """Reset the failures of a scope that worked."""
        ...

    async def next_turn(self, message_id: str) -> Turn:
        """Return how long a message waits for its turn, without taking it."""
        ...

    async def slow_down(self, inbox_id: str) -> float:
        """Slow an inbox down for all workers; returns by which factor it is now slower than its pace."""
        ...

    async def known_sends(self, inbox_id: str, attempt: Attempt) -> Attempt:
        """Return the attempt with a control id and the ids of other parts."""
        ...

    async def known_numbers(
        self, provider: str, numbers: Sequence[str], days: float, missing_days: float
    ) -> Sequence[KnownNumber]:
        """Return the provider's cached answers about these numbers: existing ones, and missing ones."""
        ...

    def note_number(self, provider: str, note: NumberNote) -> None:
        """Store what was learned about a number, soon and in bulk."""
        ...

    def log(self, line: LogLine) -> None:
        """Write a line of the campaign's log, soon and in bulk."""
        ...

    async def flush(self) -> None:
        """Write the notes and log lines so far."""
        ...
