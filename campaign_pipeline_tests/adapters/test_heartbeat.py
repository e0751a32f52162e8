"""A heartbeat that continues while the event loop is blocked, and ends on request."""

import asyncio
import threading
from collections.abc import Sequence

from campaign_pipeline.adapters.heartbeat import ThreadHeartbeat
from campaign_pipeline.core.campaign_log import CampaignLog
from campaign_pipeline.core.lease_keeper import LeaseKeeper
from campaign_pipeline.core.model import LeasedMessage
from campaign_pipeline.core.ports import StoreUnavailable

MESSAGE = LeasedMessage("m", "run", "config", "workspace", "inbox", None, None, None, 0, ())


class Clock:
    """Passes with so many sleeps, then stands still: a busy machine makes no renewal late. See `core.ports.Clock`."""

    def __init__(self, sleeps: int) -> None:
        self._now = 0.0
        self._left = sleeps

    def monotonic(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        if not self._left:
            await asyncio.Event().wait()
        self._left -= 1
        self._now += seconds


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


def keeper(beats: int) -> LeaseKeeper:
    clock = Clock(beats)
    return LeaseKeeper([MESSAGE], clock, 120.0, clock.monotonic(), CampaignLog(lambda _: None))


def test_leases_are_renewed_while_a_message_blocks_the_event_loop() -> None:
    leases, renewals = keeper(beats=4), Renewals(4)

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
        heartbeat.start(keeper(beats=0).beat)
        await heartbeat.stop()

    asyncio.run(main())
    assert "lease heartbeat" not in [thread.name for thread in threading.enumerate()]
