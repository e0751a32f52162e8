"""How a batch is cut into shards, and what they are called in Dagster."""

from typing import Any
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from campaign_pipeline.core.model import split_batch

VENDAS = "23fec326-36e2-0884-16a6-a5029338c980"
ITS_NEIGHBOUR = "23fec326-36e3-0884-16a6-a5029338c980"
OTHER = "569266f0-6efd-7645-22b0-eb74603e27ca"


def rows(*inboxes: str) -> list[dict[str, Any]]:
    """A claimed message for each inbox that is named, in this order."""
    return [{"inbox_id": inbox, "message_id": f"m{n}", "lease_token": "t"} for n, inbox in enumerate(inboxes)]


def test_a_shard_has_the_messages_of_one_inbox_in_their_order_and_no_more_than_its_size() -> None:
    shards = split_batch(rows(OTHER, VENDAS, OTHER, OTHER, VENDAS), 2)
    assert [(shard.key, shard.inbox_id, shard.message_ids) for shard in shards] == [
        ("inbox_23fec326_000", VENDAS, ("m1", "m4")),
        ("inbox_569266f0_000", OTHER, ("m0", "m2")),
        ("inbox_569266f0_001", OTHER, ("m3",)),
    ]


def test_inboxes_that_begin_alike_are_told_apart_by_more_of_their_ids() -> None:
    shards = split_batch(rows(VENDAS, ITS_NEIGHBOUR, OTHER), 2)
    assert [shard.key for shard in shards] == [
        "inbox_23fec32636e2_000",
        "inbox_23fec32636e3_000",
        "inbox_569266f06efd_000",
    ]


@given(st.lists(st.uuids() | st.integers(0, 99).map(lambda n: UUID(int=n)), max_size=20), st.integers(1, 3))
def test_every_message_is_in_one_shard_and_every_shard_has_a_name_of_its_own(inboxes: list[UUID], size: int) -> None:
    batch = rows(*map(str, inboxes))
    shards = split_batch(batch, size)
    assert len({shard.key for shard in shards}) == len(shards)
    assert sorted(m for shard in shards for m in shard.message_ids) == sorted(row["message_id"] for row in batch)
