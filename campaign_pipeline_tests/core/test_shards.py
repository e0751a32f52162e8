"""Splitting a batch into shards, and their names in Dagster."""

from datetime import UTC, datetime
from uuid import UUID

import orjson
from hypothesis import given
from hypothesis import strategies as st

from campaign_pipeline.core.model import ClaimedMessage, Shard, ShardMember, split_batch

VENDAS = "23fec326-36e2-0884-16a6-a5029338c980"
ITS_NEIGHBOUR = "23fec326-36e3-0884-16a6-a5029338c980"
OTHER = "569266f0-6efd-7645-22b0-eb74603e27ca"


def claimed(*inboxes: UUID | str) -> list[ClaimedMessage]:
    """A claimed message for each given inbox, in this order."""
    some, at = UUID(int=9), datetime(2026, 11, 23, tzinfo=UTC)
    return [
        ClaimedMessage(UUID(int=n), some, some, some, UUID(str(inbox)), None, some, at, 0)
        for n, inbox in enumerate(inboxes)
    ]


def numbers(shard: Shard) -> list[int]:
    """Return which of those messages are in a shard."""
    return [UUID(message_id).int for message_id in shard.message_ids]


def test_a_shard_has_the_messages_of_one_inbox_in_their_order_and_no_more_than_its_size() -> None:
    shards = split_batch(claimed(OTHER, VENDAS, OTHER, OTHER, VENDAS), 2)
    assert [(shard.key, shard.inbox_id, numbers(shard)) for shard in shards] == [
        ("inbox_23fec326_000", VENDAS, [1, 4]),
        ("inbox_569266f0_000", OTHER, [0, 2]),
        ("inbox_569266f0_001", OTHER, [3]),
    ]


def test_inboxes_that_begin_alike_are_told_apart_by_more_of_their_ids() -> None:
    shards = split_batch(claimed(VENDAS, ITS_NEIGHBOUR, OTHER), 2)
    assert [shard.key for shard in shards] == [
        "inbox_23fec32636e2_000",
        "inbox_23fec32636e3_000",
        "inbox_569266f06efd_000",
    ]


@given(st.lists(st.uuids() | st.integers(0, 99).map(lambda n: UUID(int=n)), max_size=20), st.integers(1, 3))
def test_every_message_is_in_one_shard_and_every_shard_has_a_name_of_its_own(inboxes: list[UUID], size: int) -> None:
    shards = split_batch(claimed(*inboxes), size)
    assert len({shard.key for shard in shards}) == len(shards)
    assert sorted(number for shard in shards for number in numbers(shard)) == list(range(len(inboxes)))


def test_a_batch_is_split_in_the_same_way_after_the_output_that_carries_it() -> None:
    messages = claimed(OTHER, VENDAS, OTHER)
    carried = [ShardMember(*(message.to_row()[name] for name in ShardMember._fields)) for message in messages]
    assert split_batch(carried, 2) == split_batch(messages, 2)


def test_a_shard_survives_the_output_that_carries_it() -> None:
    (shard,) = split_batch(claimed(VENDAS, VENDAS), 2)
    assert Shard.from_json(orjson.loads(orjson.dumps(shard.to_json()))) == shard
