import asyncio
from collections import Counter
from uuid import UUID

import pytest

from campaign_pipeline.adapters.embedded import EmbeddedServer
from campaign_pipeline.adapters.queue import BatchOptions, Queue
from campaign_pipeline.core.ports import StoreUnavailable
from campaign_pipeline_tests.adapters.restarts import crash, start
from campaign_pipeline_tests.factories import World
from campaign_pipeline_tests.sql.holder import insert_due

OPTIONS = BatchOptions(batch_size=5, owner="test")


def test_claims_continue_after_an_immediate_restart_and_claim_nothing_twice(
    fragile: EmbeddedServer, fragile_url: str
) -> None:
    with World(fragile_url) as world:
        config = world.campaign()
        for _ in range(3):
            insert_due(world, world.run(config), 100)
    claimed: Counter[UUID] = Counter()
    queue = Queue(fragile_url)

    async def claimer(under_way: asyncio.Event) -> None:
        while rows := (await queue.claim_batch(OPTIONS)).rows:
            claimed.update(row.message_id for row in rows)
            under_way.set()

    async def main() -> None:
        under_way = asyncio.Event()
        claimers = [asyncio.create_task(claimer(under_way)) for _ in range(3)]
        await under_way.wait()
        await asyncio.to_thread(crash, fragile)
        await asyncio.to_thread(start, fragile)
        await asyncio.gather(*claimers)

    asyncio.run(asyncio.wait_for(main(), 60))
    assert set(claimed.values()) == {1}
    with World(fragile_url) as world:
        leased = world.value("SELECT count(*) FROM campaign_messages WHERE status = 'queued'")
        assert leased == 300
    # Each claimer's last answer may have been lost with the connection. Those messages return when their lease expires.
    assert 300 - len(claimed) <= 3 * OPTIONS.batch_size


def test_a_database_that_stays_away_is_one_sentence(fragile: EmbeddedServer, fragile_url: str) -> None:
    queue = Queue(fragile_url, patience_seconds=0.2)
    crash(fragile)
    try:
        for call in (queue.claim_batch(OPTIONS), queue.close_runs(), queue.get_lead_contexts([], [])):
            with pytest.raises(StoreUnavailable) as caught:
                asyncio.run(call)
            text = str(caught.value)
            assert text.startswith("The database did not answer for 0.2 seconds: ")
            assert "\n" not in text
            assert caught.value.__cause__ is None
    finally:
        start(fragile)
    assert asyncio.run(queue.close_runs()) == []


def test_the_sentence_contains_no_password() -> None:
    queue = Queue("postgresql://user:hunter2@127.0.0.1:1/db", patience_seconds=0.1)
    with pytest.raises(StoreUnavailable) as caught:
        asyncio.run(queue.close_runs())
    assert "hunter2" not in str(caught.value)
