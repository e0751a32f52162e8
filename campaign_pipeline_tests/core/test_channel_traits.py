"""A shard respects its channel's traits, and failures that concern one recipient alone."""

import itertools
from dataclasses import dataclass, replace

import pytest

from campaign_pipeline.core.model import ShardReport
from campaign_pipeline.core.ports import (
    UNRECOGNISED,
    ChannelTraits,
    Envelope,
    LookUp,
    Permanent,
    Scope,
    Throttled,
    Transient,
    Unknown,
)
from campaign_pipeline.core.results import RetryPolicy
from campaign_pipeline_tests.core.stand_ins import Channel, Model, Queue, Store, StoredPart, in_no_time, shard_of

PARTS = ("Olá, Ana!", "Tudo bem?", "Podemos conversar?")


@dataclass
class GappedChannel(Channel):
    """A channel without a typing indicator."""

    gap: float = 6.0

    @property
    def traits(self) -> ChannelTraits:
        """What it can do."""
        return ChannelTraits("stand-in", 4096, LookUp.NONE, part_gap_seconds=self.gap)


def work(queue: Queue, channel: Channel) -> ShardReport:
    """Deliver a queue to its end, one message at a time."""

    async def run() -> ShardReport:
        return await shard_of(Store(queue), Model(), channel).run(1)

    return in_no_time(run())


@pytest.mark.parametrize("gap", [0.0, 6.0])
def test_parts_to_the_same_person_are_spaced_where_the_channel_asks_for_it(gap: float) -> None:
    queue = Queue.of(1, text="x", parts=[StoredPart(text) for text in PARTS])
    channel = GappedChannel(gap=gap)
    report = work(queue, channel)
    assert report.parts_sent == 3
    times = [when for when, _ in channel.asked]
    assert [later - earlier for earlier, later in itertools.pairwise(times)] == pytest.approx([gap, gap])


def test_a_throttle_of_one_recipient_delays_its_message_alone_and_counts_no_attempt() -> None:
    def too_much(envelope: Envelope) -> Throttled | None:
        first = envelope.message_id == "m0000"
        return Throttled("pair_rate_limited", "Too much for one.", Scope.MESSAGE, 4.0) if first else None

    queue = Queue.of(3)
    report = work(queue, Channel(answers=too_much))
    assert (report.sent, report.returned) == (2, 1)
    held = queue.messages["m0000"]
    assert (held.status, held.error_class, held.retry_count) == ("pending", "throttled", 0)
    assert held.due >= 4.0
    assert queue.pauses == {}, "nobody else waits"


def test_each_attempt_is_numbered_for_the_channel() -> None:
    seen: list[int] = []

    def refuse_twice(envelope: Envelope) -> Throttled | None:
        seen.append(envelope.attempt_no)
        return Throttled("rate_limited", "Too fast.", Scope.INBOX, 1.0) if len(seen) < 3 else None

    assert work(Queue.of(1), Channel(answers=refuse_twice)).sent == 1
    assert seen == [1, 2, 3]


@pytest.mark.parametrize("kind", [Transient, Unknown])
def test_an_answer_that_no_table_knows_is_counted_by_its_shape(kind: type[Transient] | type[Unknown]) -> None:
    outcome = kind(UNRECOGNISED, "Meta answered 418 with an empty body.", answer={"status": 418, "body": ""})
    report = work(Queue.of(4), Channel(answers=lambda _: outcome))
    assert report.to_json()["unrecognised_answers"] == {"Meta answered 418 with an empty body.": 4}


def test_a_report_holds_no_enum_of_ours_which_dagster_would_refuse() -> None:
    report = work(
        Queue.of(1), Channel(answers=lambda _: Permanent("not_on_whatsapp", "The number is not on WhatsApp."))
    )
    assert {name: type(value) for name, value in report.classes.items()} == {"failed: not_on_whatsapp": str}


def test_a_failure_may_ask_for_fewer_attempts_than_usual() -> None:
    policy, capped = RetryPolicy(max_attempts=5), Transient("marketing_cap", "Meta's cap.", 86_400.0, attempts=2)
    first, second = (policy.decide(capped, before, lambda: 0.0) for before in (0, 1))
    assert (first.status, first.delay_seconds) == ("pending", 86_400.0)
    assert (second.status, second.error_class) == ("failed", "exhausted")
    assert policy.decide(replace(capped, attempts=None), 1, lambda: 0.0).status == "pending"
