"""A heartbeat that continues while the event loop is blocked, and ends on request."""

import asyncio
import threading
import time
from collections.abc import Sequence

from campaign_pipeline.adapters.heartbeat import ThreadHeartbeat
from campaign_pipeline.core.campaign_log import CampaignLog
from campaign_pipeline.core.lease_keeper import LeaseKeeper
from campaign_pipeline.core.model import LeasedMessage
from campaign_pipeline.core.ports import StoreUnavailable

MESSAGE = LeasedMessage("m", "run", "config", "workspace", "inbox", None, None, None, 0, ())


class Clock:
    """Real time; see `core.ports.Clock`."""

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Renewals:
    """Says so often that leases were renewed."""

    def __init__(self, enough: int) -> None:
        self.count = 0
        self.enough = threading.Event()
        self._enough = enough

    async def renew(self, message_ids: Sequence[str]) -> set[str]:
        self.count += 1
        if self.count >= self._enough:
            self.enough.set()
        if self.count == 1:
            raise StoreUnavailable("away")
        return set(message_ids)


def keeper(lease_seconds: float) -> LeaseKeeper:
    clock = Clock()
    return LeaseKeeper([MESSAGE], clock, lease_seconds, clock.monotonic(), CampaignLog(lambda _: None))


def test_leases_are_renewed_while_a_message_blocks_the_event_loop() -> None:
    leases, renewals = keeper(0.3), Renewals(4)

    async def main() -> None:
        heartbeat = ThreadHeartbeat(renewals)
        heartbeat.start(leases.beat)
        assert renewals.enough.wait(10), "this event loop does nothing else meanwhile"
        assert leases.holds("m")
        await heartbeat.stop()

    asyncio.run(main())
    assert "lease heartbeat" not in [thread.name for thread in threading.enumerate()]


def test_a_heartbeat_that_is_stopped_at_once_leaves_no_thread() -> None:
    async def main() -> None:
        heartbeat = ThreadHeartbeat(Renewals(1))
        heartbeat.start(keeper(100.0).beat)
        await heartbeat.stop()

    asyncio.run(main())
    assert "lease heartbeat" not in [thread.name for thread in threading.enumerate()]
