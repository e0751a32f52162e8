"""Messages that a shard holds before their planned time, on a simulated clock."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import pytest

from campaign_pipeline.core.model import ShardReport
from campaign_pipeline.core.runs import RunWait
from campaign_pipeline.core.shard_worker import PLANS_SECONDS, ShardWorker
from campaign_pipeline_tests.core.stand_ins import (
    Channel,
    Model,
    Queue,
    Store,
    StoredMessage,
    StoredPart,
    in_no_time,
    now,
    settings,
    shard_of,
)
from campaign_pipeline_tests.core.test_delivery import stopped_after


def planned(*seconds: float) -> Queue:
    """Leased messages that are planned so many seconds from now."""
    return Queue({f"m{n:04d}": StoredMessage(f"m{n:04d}", due=due) for n, due in enumerate(seconds)})


def work(store: Store, model: Model, channel: Channel, concurrency: int = 1, stop: float | None = None) -> ShardReport:
    """Deliver the messages of a store to their end, or until a stop."""

    async def run() -> ShardReport:
        delivery: ShardWorker = shard_of(store, model, channel)
        if stop is not None:
            stopped_after(stop, delivery)
        return await delivery.run(concurrency)

    return in_no_time(run())


def test_each_message_is_sent_at_its_planned_time_though_its_text_takes_long() -> None:
    model, channel = Model(seconds=lambda _: 4.0), Channel(seconds=lambda _: 0.5)
    report = work(Store(planned(0.0, 30.0, 31.0, 60.0)), model, channel)
    assert [when for when, _ in channel.asked] == [4.0, 30.0, 31.0, 60.0]
    assert [when for when, _ in model.asked] == [0.0, 4.5, 8.5, 12.5]
    assert report.sent == 4


def test_a_message_that_waits_for_its_time_holds_no_slot_and_keeps_its_lease() -> None:
    store, channel = Store(planned(*[299.0] * 50, 1.0)), Channel(seconds=lambda _: 1.0)
    report = work(store, Model(), channel, concurrency=2)
    assert channel.asked[0] == (1.0, "m0050:1")
    assert channel.most_in_flight == 2
    assert report.sent == 51
    assert len(store.renewals) >= 299 // 40


def test_the_text_is_kept_and_counted_once_though_its_worker_is_stopped_before_the_planned_time() -> None:
    queue, channel = planned(10.0, 200.0, 250.0), Channel()
    report = work(Store(queue), Model(), channel, concurrency=5, stop=100.0)
    assert queue.statuses() == ["sent", "pending", "pending"]
    assert [key for _, key in channel.asked] == ["m0000:1"]
    left = list(queue.messages.values())[1:]
    assert [(m.retry_count, len(m.parts), m.due) for m in left] == [(0, 1, 200.0), (0, 1, 250.0)]
    assert (report.sent, report.returned, report.seconds) == (1, 2, 100.0)


def test_a_message_replanned_while_it_waits_is_not_sent_at_its_old_time() -> None:
    queue, channel = planned(30.0, 40.0), Channel()

    async def run() -> ShardReport:
        delivery = shard_of(Store(queue), Model(), channel)
        queue.messages["m0000"].due = 90.0
        queue.messages["m0001"].due = 4000.0
        return await delivery.run(5)

    report = in_no_time(run())
    assert channel.asked == [(90.0, "m0000:1")]
    assert queue.statuses() == ["sent", "pending"]
    assert report.reasons == {"returned: not_due": 1}


def test_a_message_whose_turn_comes_after_midnight_counts_as_a_message_of_the_new_day() -> None:
    queue, days = planned(1.0), list[str | None]()
    minute_to_midnight = datetime(2026, 11, 24, 2, 59, tzinfo=UTC)
    store = Store(queue, start=minute_to_midnight, beginning=lambda begin: days.append(begin.local_day))

    async def run() -> ShardReport:
        one_a_day = replace(settings(), one_a_day=frozenset({"workspace"}))
        worker = shard_of(store, Model(), Channel(), batch_settings=one_a_day)
        queue.messages["m0000"].due = 90.0  # the store says so only when the message asks to go
        return await worker.run(1)

    assert in_no_time(run()).sent == 1
    assert days == ["2026-11-24"]


def test_one_failure_to_read_the_plans_is_told_and_not_the_last_look_at_them() -> None:
    queue, channel = planned(280.0), Channel()
    store = Store(queue)
    read = store.planned_times

    async def fail(message_ids: Sequence[str]) -> dict[str, float]:
        store.planned_times = read  # type: ignore[method-assign]
        raise OverflowError

    async def run() -> ShardReport:
        store.planned_times = fail  # type: ignore[method-assign]
        worker = asyncio.create_task(shard_of(store, Model(), channel).run(5))
        await asyncio.sleep(20)
        queue.messages["m0000"].due = 20.0
        return await worker

    assert in_no_time(run()).sent == 1
    assert channel.asked[0][0] <= 20 + PLANS_SECONDS
    assert "OverflowError in _follow_plans; this is a bug of the pipeline." in [line["message"] for line in queue.log]


@pytest.mark.parametrize("moved_at", [7.0, 200.0])
def test_a_message_that_is_moved_forward_while_it_waits_waits_at_most_five_seconds_more(moved_at: float) -> None:
    queue, channel = planned(280.0, 290.0), Channel()

    async def run() -> ShardReport:
        worker = asyncio.create_task(shard_of(Store(queue), Model(), channel).run(5))
        await asyncio.sleep(moved_at)
        queue.messages["m0000"].due = moved_at
        return await worker

    assert in_no_time(run()).sent == 2
    (moved, _), rest = channel.asked
    assert moved_at < moved <= moved_at + PLANS_SECONDS
    assert rest == (290.0, "m0001:1")


def test_a_message_that_is_moved_to_another_day_or_deleted_ends_no_later_than_five_seconds_after() -> None:
    queue, channel = planned(280.0, 290.0), Channel()

    async def run() -> ShardReport:
        worker = asyncio.create_task(shard_of(Store(queue), Model(), channel).run(5))
        await asyncio.sleep(12.0)
        queue.messages["m0000"].due = 4000.0
        queue.messages["m0001"].token = None
        return await worker

    report = in_no_time(run())
    assert channel.asked == []
    assert report.reasons == {"returned: not_due": 1, "left: lease_lost": 1}
    assert report.seconds <= 12.0 + PLANS_SECONDS


def test_what_holds_a_campaign_by_now_gives_its_waiting_messages_back_with_their_texts() -> None:
    queue, channel = planned(0.0, 30.0), Channel()
    switched_off = RunWait(UUID(int=1), "campaign_inactive", "The campaign is switched off.")
    report = work(Store(queue, holding=lambda: switched_off if now() >= 30.0 else None), Model(), channel)
    assert queue.statuses() == ["sent", "pending"]
    assert report.reasons == {"returned: campaign_inactive": 1}
    assert queue.messages["m0001"].parts, "the text that was paid for is kept"


@pytest.mark.parametrize("anew", [False, True], ids=["as planned", "planned anew"])
def test_the_window_is_checked_again_at_the_planned_time(anew: bool) -> None:
    queue, channel = planned(30.0 if anew else 120.0), Channel()
    noon_and_a_minute = settings(start_time="08:00", end_time="12:01")

    async def run() -> ShardReport:
        delivery = shard_of(Store(queue), Model(), channel, batch_settings=noon_and_a_minute)
        queue.messages["m0000"].due = 120.0
        return await delivery.run(5)

    report = in_no_time(run())
    assert channel.asked == []
    assert report.reasons == {"returned: window_closed": 1}
    assert queue.messages["m0000"].parts, "the text that was paid for is kept"


def test_messages_that_wait_for_a_window_are_sent_when_it_opens_and_not_before() -> None:
    # It is noon: two have been overdue since the night, one of them with its first part sent; one is planned.
    queue, channel = planned(-3600.0, -3600.0, 75.0), Channel()
    queue.messages["m0001"].parts = [StoredPart("a", "sent"), StoredPart("b")]
    opens = settings(start_time="12:01", end_time="18:00")

    async def run() -> ShardReport:
        return await shard_of(Store(queue), Model(), channel, batch_settings=opens).run(5)

    report = in_no_time(run())
    assert [when for when, _ in channel.asked] == [60.0, 60.0, 75.0]
    assert report.sent == 3


SPRING, AUTUMN = "2026-03-08T06:59:00+00:00", "2026-11-01T05:59:00+00:00"
"""A minute before New York's clocks go forward from 02:00 to 03:00, and back from 02:00 to 01:00."""


@pytest.mark.parametrize(
    ("start", "window", "sent_at"),
    [
        (SPRING, ("03:00", "18:00"), {0: 60.0, 90: 90.0}),
        (SPRING, ("02:30", "18:00"), {0: 60.0, 90: 90.0}),  # its opening is skipped
        (SPRING, ("00:00", "02:00"), {0: 0.0}),  # the one planned for 90 s later is after the end
        (AUTUMN, ("00:00", "02:00"), {0: 0.0, 90: 90.0}),  # the second 01:00 is before the end
        (AUTUMN, ("01:30", "18:00"), {0: 0.0, 90: 90.0}),  # it has opened, and does not close at the second 01:00
    ],
)
def test_planned_times_and_windows_hold_while_the_clocks_change(
    start: str, window: tuple[str, str], sent_at: dict[int, float]
) -> None:
    queue, channel = planned(0.0, 90.0), Channel()
    hours = settings(start_time=window[0], end_time=window[1], timezone="America/New_York")

    async def run() -> ShardReport:
        store = Store(queue, start=datetime.fromisoformat(start))
        return await shard_of(store, Model(), channel, batch_settings=hours).run(5)

    in_no_time(run())
    assert {queue.messages[key.split(":")[0]].due: when for when, key in channel.asked} == sent_at
