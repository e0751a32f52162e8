"""Records of a batch: its settings, its shards, their messages, and their results."""

import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple
from uuid import UUID

from campaign_pipeline.core.context import LeadContext
from campaign_pipeline.core.generation import Author
from campaign_pipeline.core.ports import Template
from campaign_pipeline.core.token_budget import AgentSettings
from campaign_pipeline.core.window import InvalidWindow, SendingWindow


class MessageStatus(StrEnum):
    """Status of a message, in the CRM's words."""

    PENDING = "pending"
    QUEUED = "queued"
    GENERATING = "generating"
    SENDING = "sending"
    SENT = "sent"
    REPLIED = "replied"
    FAILED = "failed"
    SKIPPED = "skipped"


class ErrorClass(StrEnum):
    """Class of the error that ended or delays a message."""

    PERMANENT = "permanent"
    TRANSIENT = "transient"
    EXHAUSTED = "exhausted"
    THROTTLED = "throttled"
    SYSTEMIC = "systemic"
    UNKNOWN = "unknown"


class PartStatus(StrEnum):
    """Status of a part, in the ledger's words."""

    PLANNED = "planned"
    ATTEMPTING = "attempting"
    UNKNOWN = "unknown"
    SENT = "sent"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class PartRecord:
    """One row of the ledger, as read at the take-over of its message."""

    part_no: int
    text: str
    status: PartStatus
    attempts: int
    attempted_at: float | None = None  # seconds since the epoch, by the database's clock
    lease_ended_at: float | None = None  # the same, if the last attempt's worker died: it may have left until then
    address: str | None = None  # of the last attempt
    inbox_id: str | None = None  # through which the last attempt was made
    error_code: str | None = None  # of the last attempt
    resend_approved: bool = False  # a person approved sending it again, despite its unknown outcome

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "PartRecord":
        """Build from the ledger's JSON."""
        at, lease_ended_at = row.get("attempted_at"), row.get("lease_ended_at")
        return cls(
            part_no=int(row["part_no"]),
            text=str(row["text"]),
            status=PartStatus(row["status"]),
            attempts=int(row["attempts"]),
            attempted_at=None if at is None else float(at),
            lease_ended_at=None if lease_ended_at is None else float(lease_ended_at),
            address=row.get("address"),
            inbox_id=row.get("inbox_id"),
            error_code=row.get("error_code"),
            resend_approved=bool(row.get("resend_approved")),
        )


@dataclass(frozen=True, slots=True)
class LeasedMessage:
    """A message that this shard holds, with its stored text and ledger."""

    id: str
    run_id: str
    config_id: str
    workspace_id: str
    inbox_id: str
    lead_id: str | None
    phone_number: str | None
    text: str | None  # immutable once set; None: not yet written
    retry_count: int
    parts: tuple[PartRecord, ...]
    subject: str | None = None  # of an e-mail, fixed together with its text
    template: Template | None = None  # that it is sent as, fixed together with its text
    worker_deaths: int = 0  # workers that died while they delivered it
    refused_rules: frozenset[str] = frozenset()  # rules that refused an earlier text for it
    last_inbound_at: float | None = None  # when its lead last wrote to the inbox, if the channel needs it
    due_at: float = 0.0  # seconds since the epoch: no part is sent before

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "LeasedMessage":
        """Build from `read_leased_messages`, or from `list_next_messages`, whose ids are UUID objects."""
        return cls(
            id=str(row["id"]),
            # One string for all messages that share it; a shard may hold ten thousand.
            run_id=sys.intern(str(row["run_id"])),
            config_id=sys.intern(str(row["config_id"])),
            workspace_id=sys.intern(str(row["workspace_id"])),
            inbox_id=sys.intern(str(row["inbox_id"])),
            lead_id=None if row["lead_id"] is None else str(row["lead_id"]),
            phone_number=row["phone_number"],
            text=row["text"],
            retry_count=int(row["retry_count"]),
            parts=tuple(PartRecord.from_row(part) for part in row["parts"]),
            subject=row.get("subject"),
            template=Template.from_json(row.get("template")),
            worker_deaths=int(row.get("worker_deaths") or 0),
            refused_rules=frozenset(row.get("refused_rules") or ()),
            due_at=row["due_at"].timestamp(),
        )

    @property
    def begun(self) -> bool:
        """Return whether any part was sent, or may have been."""
        return any(part.status is not PartStatus.PLANNED for part in self.parts)


@dataclass(frozen=True)
class Lead:
    """A lead of the batch: its addresses, and the data that the model may read."""

    id: str
    phone: str | None
    context: LeadContext
    email: str | None = None
    other_phones: tuple[str, ...] = ()  # tried in this order if the first has no account


_VARIABLE = re.compile(r"\{\{\s*(\d{1,2})\s*\}\}")


@dataclass(frozen=True)
class TemplateSettings:
    """The approved template of a campaign."""

    name: str
    language: str
    variables: tuple[str, ...] = ()  # the purpose of each
    body: str | None = None  # with {{1}}, {{2}}, …

    @classmethod
    def from_json(cls, row: Mapping[str, Any] | None) -> "TemplateSettings | None":
        """Build from the settings of a batch; None if the campaign has no template."""
        if not row or not row.get("name"):
            return None
        return cls(row["name"], row.get("language") or "pt_BR", tuple(row.get("variables") or ()), row.get("body"))

    def fill(self, values: Sequence[str]) -> str:
        """Return what the lead will read; without a body, the known values."""
        if self.body is None:
            return "\n".join([f"[{self.name}]", *values])

        def value(place: "re.Match[str]") -> str:
            number = int(place[1])
            return values[number - 1] if 1 <= number <= len(values) else place[0]

        return _VARIABLE.sub(value, self.body)


@dataclass(frozen=True)
class CampaignSettings:
    """Settings that the messages of one campaign share."""

    instructions: str
    split_messages: bool
    max_split_parts: int | None
    start_time: str | None
    end_time: str | None
    timezone: str | None
    frequency: str | None
    retry_delays_minutes: tuple[float, ...] | None = None  # None: the default of all campaigns
    template: TemplateSettings | None = None  # for leads to whom free text is not allowed
    weekdays: Sequence[int] | None = None  # on which it may send; None: by the frequency
    holidays: Sequence[str] | None = None  # on which it may not send

    def window(self) -> SendingWindow:
        """Return its sending window. Raises InvalidWindow."""
        return SendingWindow.parse(
            self.start_time, self.end_time, self.timezone, self.frequency, self.weekdays, self.holidays
        )


@dataclass(frozen=True)
class SplitterSettings:
    """How texts are split into parts."""

    strategy: str = "local"  # or `model`: the model proposes, the pipeline checks
    min_chars: int = 150
    delay_ms: int = 500
    max_tokens: int = 1000
    temperature: float = 0.3
    model: str | None = None
    system_prompt: str | None = None

    @classmethod
    def from_json(cls, row: Mapping[str, Any] | None) -> "SplitterSettings":
        """Build from the settings of a batch; unset values keep their defaults."""
        return cls(**{key: value for key, value in (row or {}).items() if value is not None})


def _known_numbers(values: Sequence[float | None] | None) -> tuple[float, ...] | None:
    """Return the numbers of an SQL array, without NULLs; None if there is none."""
    return tuple(value for value in values or () if value is not None) or None


@dataclass(frozen=True)
class AgentProfile:
    """The sender of a workspace's texts, and its agent's settings for them."""

    author: Author = field(default_factory=Author)
    settings: AgentSettings = field(default_factory=AgentSettings)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "AgentProfile":
        """Build from the settings of a batch."""
        author = Author(row.get("system_prompt") or "", row.get("workspace") or "")
        return cls(author, AgentSettings.from_json(row.get("behavior_config")))


@dataclass(frozen=True)
class TextRecord:
    """Statistics of the last answers of a model, or of the last texts of a run."""

    refused_in_a_row: int = 0  # answers without a usable text, since the last good one
    reasons: bool = False  # an answer was cut off during reasoning


@dataclass(frozen=True)
class BatchSettings:
    """Everything that is read once per batch."""

    campaigns: Mapping[str, CampaignSettings]
    models: Mapping[str, str]  # workspace -> language model
    inbox_names: Mapping[str, str]
    splitter: SplitterSettings
    one_a_day: frozenset[str] = frozenset()  # workspaces whose leads get one message a day, over all campaigns
    limited: frozenset[str] = frozenset()  # campaigns with a spending limit of their own or of their workspace
    fallback_models: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # workspace -> tried in this order
    own_accounts: frozenset[str] = frozenset()  # workspaces with their own account for the language model
    agents: Mapping[str, AgentProfile] = field(default_factory=dict)  # workspace -> sender
    text_records: Mapping[str, TextRecord] = field(default_factory=dict)  # by model, and by run

    @classmethod
    def from_json(cls, settings: Mapping[str, Any]) -> "BatchSettings":
        """Build from the statement `get_batch_settings`."""
        return cls(
            campaigns={
                key: CampaignSettings(
                    **{
                        **row,
                        "instructions": row["instructions"] or "",
                        "template": TemplateSettings.from_json(row.get("template")),
                        "retry_delays_minutes": _known_numbers(row.get("retry_delays_minutes")),
                    }
                )
                for key, row in (settings.get("campaigns") or {}).items()
            },
            models=settings.get("models") or {},
            inbox_names={key: row["name"] or key for key, row in (settings.get("inboxes") or {}).items()},
            splitter=SplitterSettings.from_json(settings.get("splitter")),
            one_a_day=frozenset(settings.get("one_a_day") or ()),
            limited=frozenset(settings.get("limited") or ()),
            fallback_models={key: tuple(models) for key, models in (settings.get("fallback_models") or {}).items()},
            own_accounts=frozenset(settings.get("own_accounts") or ()),
            agents={key: AgentProfile.from_json(row) for key, row in (settings.get("agents") or {}).items()},
            text_records={key: TextRecord(**row) for key, row in (settings.get("text_records") or {}).items()},
        )


@dataclass(frozen=True, slots=True)
class ClaimedMessage:
    """One message of a batch; a row of `claim_messages`, and in the output `message_batch` with ids as strings."""

    message_id: UUID
    run_id: UUID
    config_id: UUID
    workspace_id: UUID
    inbox_id: UUID
    lead_id: UUID | None  # None: its lead was deleted
    lease_token: UUID
    due_at: datetime
    retry_count: int

    def to_row(self) -> dict[str, Any]:
        """Return the row for the output."""
        values = ((name, getattr(self, name)) for name in self.__slots__)
        return {name: str(value) if isinstance(value, UUID) else value for name, value in values}


class ShardMember(NamedTuple):
    """What a shard needs to know of a claimed message, as the output `message_batch` has it."""

    message_id: str
    inbox_id: str
    lease_token: str


@dataclass(frozen=True)
class Shard:
    """The messages of one inbox that one mapped step delivers: a handle without content."""

    key: str  # also Dagster's mapping key
    inbox_id: str
    batch_token: str  # the lease under which the batch claimed them
    message_ids: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the step's output."""
        return dict(vars(self))  # `asdict` would copy thousands of ids one by one

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "Shard":
        """Build from the step's input."""
        return cls(row["key"], row["inbox_id"], row["batch_token"], tuple(row["message_ids"]))


KEPT_EXAMPLES = 5
"""Message ids per kind in a shard's report: enough for a look, however many failed."""


@dataclass
class ShardReport:
    """The results of a shard: counts and times, never content."""

    key: str
    inbox_id: str
    inbox_name: str = ""  # its display name; empty: unknown
    claimed: int = 0  # messages of the shard; each is in one of the counts below
    sent: int = 0
    failed: int = 0
    skipped: int = 0
    returned: int = 0  # to the queue, for a reason in `reasons`
    left: dict[str, int] = field(default_factory=dict)  # held by others, or gone: by reason
    reasons: Counter[str] = field(default_factory=Counter)  # `failed: not_on_whatsapp` -> how many
    examples: dict[str, list[str]] = field(default_factory=dict)  # the same key -> a few message ids
    sentences: dict[str, str] = field(default_factory=dict)  # the same key -> the first message's reason
    classes: dict[str, str] = field(default_factory=dict)  # the same key -> its error class, if it has one
    unrecognised_answers: Counter[str] = field(default_factory=Counter)  # unrecognised answers by shape -> how often
    parts_sent: int = 0
    unknown_outcomes: int = 0
    recovered_sends: int = 0  # found at the provider after the answer was lost
    tokens: int = 0
    cost_usd: float = 0.0
    generation_ms: list[int] = field(default_factory=list)
    send_ms: list[int] = field(default_factory=list)
    seconds: float = 0.0
    stopped_by: str | None = None  # why the shard ended early

    @property
    def inbox(self) -> str:
        """Return the inbox's display name."""
        return f"Inbox {self.inbox_name or self.inbox_id}"

    def count(self, status: str, code: str, message_id: str, reason: str, error_class: str | None = None) -> None:
        """Count one message that was not sent, and keep a few ids of its kind for the operator."""
        key = f"{status}: {code}"
        self.reasons[key] += 1
        self.sentences.setdefault(key, reason)
        if error_class:
            self.classes.setdefault(key, str(error_class))  # a plain string: metadata cannot hold an enum
        if len(kept := self.examples.setdefault(key, [])) < KEPT_EXAMPLES:
            kept.append(message_id)

    def to_json(self) -> dict[str, Any]:
        """Return the step's output: times as statistics, not as lists of thousands."""
        row = asdict(self)
        row["reasons"] = dict(self.reasons)
        row["unrecognised_answers"] = dict(self.unrecognised_answers)
        row["generation_ms"] = summarize(self.generation_ms)
        row["send_ms"] = summarize(self.send_ms)
        return row


def summarize(values: Sequence[int]) -> dict[str, int]:
    """Return count, sum, median and 95th percentile (nearest rank) of some milliseconds."""
    if not values:
        return {"count": 0, "sum": 0, "median": 0, "p95": 0}
    ordered = sorted(values)
    last = len(ordered) - 1
    return {
        "count": len(ordered),
        "sum": sum(ordered),
        "median": ordered[last // 2],
        "p95": ordered[min(last, round(0.95 * last))],
    }


def split_batch(messages: Iterable[ClaimedMessage | ShardMember], shard_size: int) -> list[Shard]:
    """Group the messages of a batch by inbox, then cut by `shard_size`; messages keep their order."""
    by_inbox: dict[str, list[ClaimedMessage | ShardMember]] = {}
    for message in messages:
        by_inbox.setdefault(str(message.inbox_id), []).append(message)
    names = _short_names(list(by_inbox))
    shards = []
    for inbox_id, members in sorted(by_inbox.items()):
        for number, start in enumerate(range(0, len(members), shard_size)):
            piece = members[start : start + shard_size]
            shards.append(
                Shard(
                    key=f"inbox_{names[inbox_id]}_{number:03d}",
                    inbox_id=inbox_id,
                    batch_token=str(piece[0].lease_token),
                    message_ids=tuple(str(message.message_id) for message in piece),
                )
            )
    return shards


def _short_names(ids: Sequence[str]) -> dict[str, str]:
    """Return the first eight characters of each id, to fit a Gantt chart; more if those are not unique."""
    plain = {each: each.replace("-", "") for each in ids}
    longest = max(map(len, plain.values()), default=0)
    length = next((n for n in range(8, longest) if len({each[:n] for each in plain.values()}) == len(ids)), longest)
    return {each: name[:length] for each, name in plain.items()}


__all__ = [
    "BatchSettings",
    "CampaignSettings",
    "ErrorClass",
    "InvalidWindow",
    "Lead",
    "LeasedMessage",
    "MessageStatus",
    "PartRecord",
    "PartStatus",
    "Shard",
    "ShardReport",
    "SplitterSettings",
    "split_batch",
    "summarize",
]
