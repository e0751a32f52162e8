"""Deliveries that leave no trace in the queue: previews, which send nothing, and test sends.

`ShardWorker` delivers them like any message, against a store that only records what it is told. So a preview shows what
the model and all checks make of a message now, split as it would be sent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from campaign_pipeline.core.lease_keeper import Beat
from campaign_pipeline.core.model import BatchSettings, CampaignSettings, LeasedMessage
from campaign_pipeline.core.numbers import KnownNumber, NumberNote
from campaign_pipeline.core.ports import (
    Attempt,
    BeginPart,
    Begun,
    ChannelTraits,
    Envelope,
    Failure,
    FailureStreak,
    LogLine,
    LookUpAnswer,
    LookUpFailed,
    MessageChannel,
    NotReady,
    NumberCheck,
    NumberNotChecked,
    Outcome,
    Pause,
    Scope,
    Sent,
    Settled,
    Settlement,
    Systemic,
    Throttled,
    Turn,
    Verdict,
)
from campaign_pipeline.core.runs import RunWait

Row = TypeVar("Row", bound=Mapping[str, Any])


@dataclass
class TrialText:
    """The outcome of one message of a trial."""

    message_id: str
    parts: list[str] = field(default_factory=list)
    subject: str | None = None
    begin: BeginPart | None = None  # with the text to be stored; None: stored before, or none written
    cost_usd: float = 0.0
    tokens: int = 0
    model: str | None = None
    sent: int = 0  # accepted parts
    status: str | None = None  # sent, or why not
    why: str | None = None  # the sentence that explains why it was not sent
    warnings: list[str] = field(default_factory=list)


class TrialStore:
    """See core.ports.DeliveryStore: admits everything, and records what it is told."""

    def __init__(self, messages: Sequence[LeasedMessage], pauses: Sequence[Pause]) -> None:
        self.texts = {message.id: TrialText(message.id) for message in messages}
        self._pauses = pauses

    async def start_generating(self, message_id: str) -> Verdict:
        """See DeliveryStore."""
        return Verdict.GO

    async def begin_part(self, begin: BeginPart) -> Begun:
        """See DeliveryStore."""
        self._note(begin)
        return Begun(Verdict.GO)

    async def why_held(self, run_id: str) -> RunWait | None:
        """Nothing: it is a person who sends."""
        return None

    async def planned_times(self, message_ids: Sequence[str]) -> dict[str, float]:
        """None: nothing is planned."""
        return {}

    async def keep_text(self, begin: BeginPart) -> None:
        """See DeliveryStore."""
        self._note(begin)

    def _note(self, begin: BeginPart) -> None:
        text = self.texts[begin.message_id]
        text.cost_usd += (begin.ai_cost_usd or 0.0) + sum(
            call.cost_usd or 0.0 for call in begin.calls if call.rule is not None
        )
        text.tokens += begin.ai_tokens_used or 0
        text.model = begin.ai_model or text.model
        if begin.text is not None:
            text.begin, text.parts, text.subject = begin, list(begin.parts or ()), begin.subject

    async def settle(self, settlement: Settlement) -> Settled:
        """See DeliveryStore."""
        text = self.texts[settlement.message_id]
        if settlement.outcome == "sent":
            text.sent += 1
        if settlement.status is not None:
            text.status, text.why = settlement.status, settlement.reason
        elif settlement.outcome == "sent" and text.sent >= len(text.parts):
            text.status = "sent"
        return Settled(applied=True, moved=True, final=text.status or "sending")

    async def pauses(self) -> Sequence[Pause]:
        """See DeliveryStore."""
        return self._pauses

    async def open_pause(
        self, scope: Scope, scope_id: str, failure: Throttled | Systemic, message_id: str | None = None
    ) -> float:
        """See DeliveryStore. A trial pauses nothing else."""
        return failure.retry_after or 1.0

    async def note_failure(self, scope: Scope, scope_id: str, code: str, recipient: str) -> FailureStreak:
        """See DeliveryStore."""
        return FailureStreak(1, 1)

    async def forget_failures(self, scope: Scope, scope_id: str) -> None:
        """See DeliveryStore."""

    async def next_turn(self, message_id: str) -> Turn:
        """See DeliveryStore."""
        return Turn(0.0, "paced")

    async def slow_down(self, inbox_id: str) -> float:
        """See DeliveryStore."""
        return 1.0

    async def known_sends(self, inbox_id: str, attempt: Attempt) -> Attempt:
        """See DeliveryStore."""
        return attempt

    async def known_numbers(
        self, provider: str, numbers: Sequence[str], days: float, missing_days: float
    ) -> Sequence[KnownNumber]:
        """See DeliveryStore."""
        return ()

    def note_number(self, provider: str, note: NumberNote) -> None:
        """See DeliveryStore."""

    def log(self, line: LogLine) -> None:
        """See DeliveryStore. Warnings are shown to the person who asked for the trial."""
        text = self.texts.get(str(line.get("message_id")))
        if text is not None and line.get("level") == "warning":
            text.warnings.append(str(line.get("message")))

    async def flush(self) -> None:
        """See DeliveryStore."""


class SilentChannel:
    """A channel that accepts everything and sends nothing; see core.ports.MessageChannel."""

    def __init__(self, channel: MessageChannel) -> None:
        self._traits = replace(channel.traits, part_gap_seconds=0.0)

    @property
    def traits(self) -> ChannelTraits:
        """Return the traits of the channel that it replaces, without its waits."""
        return self._traits

    async def check_connection(self) -> Failure | NotReady | None:
        """Nothing is sent, so nothing needs to be connected."""
        return None

    async def send(self, envelope: Envelope) -> Outcome:
        """Send nothing."""
        return Sent(None)

    async def find_accepted(self, attempt: Attempt) -> LookUpAnswer:
        """Nothing was sent."""
        return LookUpFailed("This is a preview.")

    async def check_number(self, number: str) -> NumberCheck:
        """Ask nobody."""
        return NumberNotChecked("This is a preview.")


class NoHeartbeat:
    """A trial holds no lease; see core.lease_keeper.Heartbeat."""

    def start(self, beat: Beat) -> None:
        """See Heartbeat."""

    async def stop(self) -> None:
        """See Heartbeat."""


def at_any_time(settings: BatchSettings) -> BatchSettings:
    """Return the same settings with every window open: a person asks for a trial at any time."""
    return replace(settings, campaigns={key: _always_open(each) for key, each in settings.campaigns.items()})


def _always_open(campaign: CampaignSettings) -> CampaignSettings:
    return replace(campaign, start_time=None, end_time=None, frequency="daily", weekdays=None, holidays=None)
