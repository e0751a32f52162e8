"""How long leases are certain, and when they are no longer renewed."""

import asyncio
from collections.abc import Sequence

from campaign_pipeline.core.campaign_log import CampaignLog
from campaign_pipeline.core.lease_keeper import STALLED_LEASES, LeaseKeeper
from campaign_pipeline.core.model import LeasedMessage
from campaign_pipeline_tests.core.stand_ins import LeapingClock, in_no_time, now

MESSAGE = LeasedMessage("m", "run", "config", "workspace", "inbox", None, None, None, 0, ())
LEASE, MARGIN = 120.0, 20.0


class Renewals:
    """Renews every lease, slowly."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.at: list[float] = []
        self._seconds = seconds

    async def renew(self, message_ids: Sequence[str]) -> set[str]:
        self.at.append(now())
        await asyncio.sleep(self._seconds)
        return set(message_ids)


def keeper() -> LeaseKeeper:
    return LeaseKeeper([MESSAGE], LeapingClock(), LEASE, now(), CampaignLog(lambda _: None))


def test_a_renewal_counts_from_when_it_was_asked_for_and_not_from_its_answer() -> None:
    async def run() -> None:
        leases = keeper()
        beating = asyncio.create_task(leases.beat(Renewals(seconds=30.0)))
        await asyncio.sleep(LEASE / 3 + 30.0 + 1.0)
        beating.cancel()
        left = LEASE - MARGIN - 31.0  # of the renewal that was answered a second ago
        await asyncio.sleep(left - 1.0)
        assert leases.holds("m")
        await asyncio.sleep(2.0)
        assert not leases.holds("m")

    in_no_time(run())


def test_a_permanently_blocked_event_loop_loses_its_leases() -> None:
    async def run() -> None:
        leases, renewals = keeper(), Renewals()
        beating = asyncio.create_task(leases.beat(renewals))
        while now() < 2 * STALLED_LEASES * LEASE:
            await asyncio.sleep(LEASE / 3)
            leases.note_alive()
        assert leases.holds("m"), "it shows that it lives"
        hangs_since = now()
        await asyncio.sleep(2 * STALLED_LEASES * LEASE)
        beating.cancel()
        assert hangs_since + (STALLED_LEASES - 1) * LEASE < renewals.at[-1] <= hangs_since + STALLED_LEASES * LEASE
        assert not leases.holds("m")

    in_no_time(run())
