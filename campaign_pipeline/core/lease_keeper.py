"""The leases of one shard: renewed by a heartbeat, checked before every request."""

from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Protocol, TypeAlias

from campaign_pipeline.core.campaign_log import CampaignLog
from campaign_pipeline.core.model import LeasedMessage
from campaign_pipeline.core.ports import Clock, LeaseStore, StoreUnavailable

MARGIN = 1 / 6
"""Share of the lease: no request starts in this last part of it. An earlier request arrives before the lease ends, even
if this machine's clock runs slower than the database's."""

STALLED_LEASES = 5
"""After so many leases without a sign of life, a message has blocked the event loop for good: the leases are no longer
renewed, other workers take the messages over, and the blocking message is set aside when it does so again."""

Beat: TypeAlias = Callable[[LeaseStore], Coroutine[Any, Any, None]]


class Heartbeat(Protocol):
    """Renews the leases of a shard outside its event loop, which one message may block."""

    def start(self, beat: Beat) -> None:
        """Run `beat` with its own store until it is stopped."""
        ...

    async def stop(self) -> None:
        """Stop it, and wait until it has ended."""
        ...


class LeaseKeeper:
    """Knows which messages this shard holds, and until when that is certain.

    `beat` may run in another thread: shared values are replaced or removed in one step each.
    """

    def __init__(
        self,
        messages: Iterable[LeasedMessage],
        clock: Clock,
        lease_seconds: float,
        leased_at: float,  # by `clock`, before the messages were taken over
        log: CampaignLog,
    ) -> None:
        self._held = {message.id: message for message in messages}
        self._clock = clock
        self._lease_seconds = lease_seconds
        self._good_until = leased_at + self.usable_seconds
        self._alive_at = clock.monotonic()
        self._log = log

    @property
    def usable_seconds(self) -> float:
        """Return how long after a renewal requests may be made."""
        return self._lease_seconds * (1 - MARGIN)

    @property
    def beat_seconds(self) -> float:
        """Return the seconds between two renewals. One renewal may fail without the lease expiring."""
        return self._lease_seconds / 3

    def was_held(self, message_id: str) -> bool:
        """Return whether the message was held at the last heartbeat."""
        return message_id in self._held

    def holds(self, message_id: str) -> bool:
        """Return whether the lease is surely valid now and for its margin. A process that may have slept asks again."""
        return message_id in self._held and self._clock.monotonic() < self._good_until

    def drop(self, message_id: str) -> None:
        """Stop renewing this message: it ended, or its lease is lost."""
        self._held.pop(message_id, None)

    def note_alive(self) -> None:
        """Record that the event loop of the messages is alive."""
        self._alive_at = self._clock.monotonic()

    async def beat(self, store: LeaseStore) -> None:
        """Renew the leases three times per lease duration, until cancelled."""
        while True:
            await self._clock.sleep(self.beat_seconds)
            if self._clock.monotonic() - self._alive_at < STALLED_LEASES * self._lease_seconds:
                await self._renew(store)

    async def _renew(self, store: LeaseStore) -> None:
        asked_at, asked_for = self._clock.monotonic(), list(self._held)
        try:
            renewed = await store.renew(asked_for)
        except StoreUnavailable:
            return  # the leases run on; `holds` stops every message before they expire
        except Exception as error:  # noqa: BLE001 (if the heartbeat ends, every lease of the shard expires)
            if message := next(iter(self._held.values()), None):
                self._log(message, "lease", "error", f"{type(error).__name__} while leases were renewed.")
            return
        # A message that ended meanwhile is not held either; dropping it twice is harmless.
        for message_id in asked_for:
            if message_id not in renewed:
                self.drop(message_id)
        self._good_until = asked_at + self.usable_seconds
