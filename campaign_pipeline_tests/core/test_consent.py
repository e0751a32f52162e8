"""The end, or the wait, of a message that consent refuses; on a simulated clock."""

from dataclasses import replace

import pytest

from campaign_pipeline.core.model import BatchSettings, ShardReport
from campaign_pipeline.core.ports import BeginPart
from campaign_pipeline_tests.core.stand_ins import (
    Channel,
    Model,
    Queue,
    Store,
    StoredPart,
    in_no_time,
    settings,
    shard_of,
)


def work(
    queue: Queue, verdict: str, batch: BatchSettings | None = None
) -> tuple[ShardReport, Channel, list[BeginPart]]:
    """Deliver a queue whose store gives this verdict for every intent."""
    channel = Channel()
    begun: list[BeginPart] = []

    async def run() -> ShardReport:
        store = Store(queue, verdicts=lambda step, _: verdict if step == "begin" else "go", beginning=begun.append)
        return await shard_of(store, Model(), channel, batch_settings=batch).run(1)

    return in_no_time(run()), channel, begun


def test_a_message_to_a_suppressed_lead_ends_as_skipped_with_the_reason() -> None:
    queue = Queue.of(2)
    report, channel, _ = work(queue, "suppressed")
    assert {(m.status, m.code, m.error_class) for m in queue.messages.values()} == {("skipped", "suppressed", None)}
    assert (report.skipped, report.reasons["skipped: suppressed"], channel.asked) == (2, 2, [])


def test_a_message_with_a_sent_part_ends_as_failed_and_the_rest_is_not_sent() -> None:
    queue = Queue.of(1, parts=[StoredPart("Um", "sent", 1, 0.0, "5511987654321"), StoredPart("Dois")], text="Um Dois")
    report, channel, _ = work(queue, "suppressed")
    stored = queue.messages["m0000"]
    assert (stored.status, stored.code, stored.error_class) == ("failed", "suppressed", "permanent")
    assert (queue.parts(), channel.asked, report.failed) == ([["sent", "planned"]], [], 1)


@pytest.mark.parametrize(
    ("zone", "hours", "day"),
    # NOON is three in the afternoon, UTC: noon in São Paulo, 20:45 in Kathmandu, the next day already in Auckland.
    [
        ("America/Sao_Paulo", 12.0, "2026-11-23"),
        ("Asia/Kathmandu", 3.25, "2026-11-23"),
        ("Pacific/Auckland", 20.0, "2026-11-24"),
        ("UTC", 9.0, "2026-11-23"),
    ],
)
def test_a_lead_that_has_its_message_waits_for_the_next_day_of_the_campaigns_zone(
    zone: str, hours: float, day: str
) -> None:
    batch = replace(settings(timezone=zone), one_a_day=frozenset({"workspace"}))
    queue = Queue.of(1)
    report, channel, begun = work(queue, "contacted_today", batch)
    stored = queue.messages["m0000"]
    assert (stored.status, stored.code, stored.retry_count) == ("pending", "contacted_today", 0)
    assert stored.due == pytest.approx(hours * 3600, abs=3)
    assert (report.returned, channel.asked) == (1, [])
    (begin,) = begun
    assert begin.local_day == day


def test_no_day_is_asked_for_where_a_lead_may_get_several_messages() -> None:
    _, _, begun = work(Queue.of(1), "go", settings())
    assert [begin.local_day for begin in begun] == [None]


def test_a_day_of_another_workspace_is_not_ours() -> None:
    _, _, begun = work(Queue.of(1), "go", replace(settings(), one_a_day=frozenset({"another"})))
    assert [begin.local_day for begin in begun] == [None]


def test_a_paid_text_is_kept_for_the_next_day() -> None:
    queue = Queue.of(1)
    work(queue, "contacted_today", replace(settings(), one_a_day=frozenset({"workspace"})))
    assert queue.messages["m0000"].text is not None


def test_a_message_whose_number_another_one_has_waits_for_the_next_claim_with_its_text_kept() -> None:
    queue = Queue.of(1)
    report, channel, _ = work(queue, "number_contacted")
    stored = queue.messages["m0000"]
    assert (stored.status, stored.code, stored.retry_count) == ("pending", "number_contacted", 0)
    assert stored.due == pytest.approx(60, abs=3)
    assert (report.returned, channel.asked, stored.text is not None) == (1, [], True)
