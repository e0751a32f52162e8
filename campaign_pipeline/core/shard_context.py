"""The context that the messages of one shard share: policy, clock, sending windows, and services."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from campaign_pipeline.core.admission import Admission, StopSignal
from campaign_pipeline.core.campaign_log import CampaignLog
from campaign_pipeline.core.circuits import Circuits
from campaign_pipeline.core.lease_keeper import LeaseKeeper
from campaign_pipeline.core.model import BatchSettings, Lead, LeasedMessage, ShardReport
from campaign_pipeline.core.phone_numbers import NumberDirectory
from campaign_pipeline.core.ports import Clock, DeliveryStore, MessageChannel
from campaign_pipeline.core.results import RetryPolicy
from campaign_pipeline.core.text_writer import TextWriter, WritingPolicy
from campaign_pipeline.core.window import InvalidWindow, SendingWindow


@dataclass(frozen=True)
class DeliveryPolicy(WritingPolicy):
    """The settings of a shard."""

    retry: RetryPolicy = field(default_factory=RetryPolicy)
    lease_seconds: float = 120.0
    number_check_days: float = 0.0  # how long "has an account" is cached; 0: numbers are not checked
    number_recheck_days: float = 7.0  # how long "has none" is cached
    grace_seconds: float = 20.0  # for requests in flight when the shard is told to stop


class ShardTime:
    """The database's time: its value when the messages were read, plus the time since."""

    def __init__(self, clock: Clock, started_at: datetime) -> None:
        self._clock = clock
        self._origin = clock.monotonic()
        self._started_at = started_at

    def now(self) -> datetime:
        """Return the time by the database's clock."""
        return self._started_at + timedelta(seconds=self.seconds())

    def seconds(self) -> float:
        """Return the seconds since the shard began."""
        return self._clock.monotonic() - self._origin


class SendingHours:
    """The windows of a batch's campaigns, each parsed once."""

    def __init__(self, settings: BatchSettings) -> None:
        self._settings = settings
        self._windows: dict[str, SendingWindow | InvalidWindow] = {}

    def of(self, config_id: str) -> SendingWindow | InvalidWindow:
        """Return when a campaign may send, or what is wrong with its settings."""
        if config_id not in self._windows:
            try:
                self._windows[config_id] = self._settings.campaigns[config_id].window()
            except InvalidWindow as error:
                self._windows[config_id] = error
        return self._windows[config_id]

    def local_day(self, message: LeasedMessage, now: datetime) -> str | None:
        """Return today in the campaign's zone, if its leads get one message a day."""
        window = self.of(message.config_id)
        if message.workspace_id not in self._settings.one_a_day or isinstance(window, InvalidWindow):
            return None
        return now.astimezone(window.zone).date().isoformat()

    def seconds_of_day_left(self, message: LeasedMessage, now: datetime) -> float:
        """Return the seconds until the next day begins in the campaign's zone."""
        window = self.of(message.config_id)
        assert not isinstance(window, InvalidWindow)  # otherwise it would have no local day
        tomorrow = now.astimezone(window.zone).date() + timedelta(days=1)
        return (datetime.combine(tomorrow, datetime.min.time(), window.zone) - now).total_seconds() + 1.0


@dataclass(frozen=True)
class ShardContext:
    """The context of one shard's messages."""

    inbox_id: str
    settings: BatchSettings
    policy: DeliveryPolicy
    leads: Mapping[str, Lead]
    store: DeliveryStore
    channel: MessageChannel
    channel_kind: str  # whatsapp, email
    clock: Clock
    time: ShardTime
    hours: SendingHours
    chance: Callable[[], float]
    stop: StopSignal
    leases: LeaseKeeper
    admission: Admission
    circuits: Circuits
    numbers: NumberDirectory
    writer: TextWriter
    log: CampaignLog
    report: ShardReport

    @property
    def checks_numbers(self) -> bool:
        """Return whether a number is checked before its first part is sent."""
        return self.policy.number_check_days > 0 and self.channel_kind == "whatsapp"

    def lead_of(self, message: LeasedMessage) -> Lead | None:
        """Return the lead of a message; None if it was deleted."""
        return self.leads.get(message.lead_id) if message.lead_id else None
