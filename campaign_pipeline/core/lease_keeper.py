"""The leases of one shard: renewed by a heartbeat, and asked for before every request."""

from collections.abc import Iterable

from campaign_pipeline.core.campaign_log import CampaignLog
from campaign_pipeline.core.model import LeasedMessage
from campaign_pipeline.core.ports import Clock, DeliveryStore, StoreUnavailable

MARGIN = 1 / 6
"""Of the lease: so long before its end no request is made any more. A request that was written then arrives before the
lease is over, also where this machine's clock runs slower than the database's."""


class LeaseKeeper:
    """Knows which messages this shard holds, and until when that is sure."""

    def __init__(
        self,
        messages: Iterable[LeasedMessage],
        store: DeliveryStore,
        clock: Clock,
        lease_seconds: float,
        leased_at: float,  # by `clock`, before the messages were taken over
        log: CampaignLog,
    ) -> None:
        self._held = {message.id: message for message in messages}
        self._store = store
        self._clock = clock
        self._lease_seconds = lease_seconds
        self._good_until = leased_at + self.usable_seconds
        self._log = log

    @property
    def usable_seconds(self) -> float:
        """For how long after a renewal requests may be made."""
        return self._lease_seconds * (1 - MARGIN)

    def has(self, message_id: str) -> bool:
        """Whether the message is held, as far as the last heartbeat knew."""
        return message_id in self._held

    def holds(self, message_id: str) -> bool:
        """Whether the lease is surely good now and for its margin: asked anew by a process that may have slept."""
        return message_id in self._held and self._clock.monotonic() < self._good_until

    def drop(self, message_id: str) -> None:
        """Renew this message no more: it ended, or it is lost."""
        self._held.pop(message_id, None)

    async def beat(self) -> None:
        """Renew the leases three times in their life, until cancelled."""
        while True:
            await self._clock.sleep(self._lease_seconds / 3)
            await self._renew()

    async def _renew(self) -> None:
        asked_at, asked_for = self._clock.monotonic(), list(self._held)
        try:
            renewed = await self._store.renew(asked_for)
        except StoreUnavailable:
            return  # the leases run on; `holds` stops every message before they end
        except Exception as error:  # noqa: BLE001 (if the heartbeat ends, every lease of the shard expires)
            if message := next(iter(self._held.values()), None):
                self._log(message, "lease", "error", f"{type(error).__name__} while leases were renewed.")
            return
        # A message that ended in the meantime is not held any more either; dropping it twice does no harm.
        for message_id in asked_for:
            if message_id not in renewed:
                self.drop(message_id)
        self._good_until = asked_at + self.usable_seconds
