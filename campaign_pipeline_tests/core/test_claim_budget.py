import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from campaign_pipeline.core.claim_budget import CODES, REASONS, Budget, Pace, share_out
from campaign_pipeline.core.model import ShardReport
from campaign_pipeline.core.ports import Scope, Throttled, Turn
from campaign_pipeline.core.shard_context import DeliveryPolicy
from campaign_pipeline_tests.core.stand_ins import Channel, Model, Queue, Store, in_no_time, now, shard_of

NOON = datetime(2026, 3, 3, 15, tzinfo=UTC)  # 12:00 in São Paulo
MOST = 10_000


def pace(name: int = 1, scope: str = "inbox", wait: float = 0.0, **changes: Any) -> Pace:
    """An inbox at rest, without limits."""
    usual: dict[str, Any] = {
        "scope": (scope, UUID(int=name)),
        "now": NOON,
        "free_at": NOON + timedelta(seconds=wait),
        "code": "paced",
        "gap_seconds": 0.0,
        "jitter": 0.0,
        "slow_factor": 1.0,
        "hourly_limit": None,
        "hour_count": 0,
        "daily_limit": None,
        "day_count": 0,
        "leased": 0,
        "zone": "America/Sao_Paulo",
    }
    return Pace(**{**usual, **changes})


limits = st.none() | st.integers(0, 200)
paces = st.builds(
    lambda wait, gap, jitter, hourly, hour, daily, day, leased: pace(
        wait=wait,
        gap_seconds=gap,
        jitter=jitter,
        hourly_limit=hourly,
        hour_count=hour,
        daily_limit=daily,
        day_count=day,
        leased=leased,
    ),
    st.floats(0, 500),
    st.just(0.0) | st.floats(0.05, 300),
    st.floats(0, 2),
    limits,
    st.integers(0, 250),
    limits,
    st.integers(0, 250),
    st.integers(0, 30),
)


# How much goes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, MOST),
        ({"gap_seconds": 30.0}, 5),  # at 0, 30, 60, 90 and 120
        ({"gap_seconds": 30.0, "wait": 20.0}, 4),
        ({"gap_seconds": 30.0, "jitter": 1.0}, 3),  # 45 seconds apart on average
        ({"gap_seconds": 61.0}, 1),  # the second one would have to be waited for too long
        ({"gap_seconds": 30.0, "wait": 61.0}, 0),
        ({"daily_limit": 20, "day_count": 18}, 2),
        ({"hourly_limit": 20, "hour_count": 19, "daily_limit": 20, "day_count": 18}, 1),
        ({"daily_limit": 20, "day_count": 25}, 0),
    ],
)
def test_so_many_go_within_a_lease(changes: dict[str, Any], expected: int) -> None:
    assert pace(**changes).slots_within(120.0, 60.0, MOST) == expected


@given(paces, st.floats(1, 600), st.floats(0, 600), st.integers(1, 1000))
def test_admitted_messages_fit_the_time_and_every_limit(one: Pace, horizon: float, patience: float, most: int) -> None:
    slots = one.slots_within(horizon, patience, most)
    assert 0 <= slots <= most
    if slots:
        assert one.wait_seconds <= patience
        assert one.wait_seconds + (slots - 1) * one.gap_seconds <= horizon + 1e-6
        assert one.hourly_limit is None or one.hour_count + slots <= one.hourly_limit
        assert one.daily_limit is None or one.day_count + slots <= one.daily_limit
    if slots > 1:
        assert one.gap_seconds <= patience


@given(paces, st.floats(1, 600), st.floats(0, 600))
def test_more_time_or_patience_never_admits_fewer(one: Pace, horizon: float, patience: float) -> None:
    slots = one.slots_within(horizon, patience, MOST)
    assert one.slots_within(horizon + 60, patience, MOST) >= slots
    assert one.slots_within(horizon, patience + 60, MOST) >= slots


# Sharing --------------------------------------------------------------------------------------------------------------

runs_of = st.lists(st.integers(1, 1000), unique=True, max_size=12).map(lambda names: [UUID(int=n) for n in names])


@given(st.integers(-3, 200), runs_of, st.randoms(use_true_random=False))
def test_slots_are_shared_out_evenly_and_wholly(slots: int, runs: list[UUID], chance: Any) -> None:
    shares = share_out(slots, runs, chance.random)
    assert set(shares) == set(runs)
    if runs:
        assert sum(shares.values()) == max(0, slots)
        assert max(shares.values()) - min(shares.values()) <= 1


def test_whoever_gets_the_odd_slot_is_left_to_chance() -> None:
    runs = [UUID(int=n) for n in range(4)]
    numbers = iter([0.9, 0.1, 0.5, 0.7])
    assert share_out(1, runs, lambda: next(numbers)) == {runs[0]: 0, runs[1]: 1, runs[2]: 0, runs[3]: 0}


@st.composite
def worlds(draw: Any) -> tuple[list[Pace], dict[UUID, list[Any]], dict[UUID, int]]:
    """Random paces, runs with some of them, and the number of due messages in each run."""
    found = [
        pace(n, scope, daily_limit=draw(st.integers(0, 40)), leased=draw(st.integers(0, 10)))
        for n, scope in ((1, "inbox"), (2, "inbox"), (3, "campaign"), (4, "campaign"))
    ]
    scopes = [one.scope for one in found] + [("inbox", UUID(int=9))]  # the last one has no pace
    runs = {
        UUID(int=100 + n): draw(st.lists(st.sampled_from(scopes), unique=True, max_size=2))
        for n in range(draw(st.integers(1, 6)))
    }
    return found, runs, {run: draw(st.integers(0, 50)) for run in runs}


@given(worlds(), st.randoms(use_true_random=False))
def test_claims_use_exactly_what_the_paces_admit(
    drawn: tuple[list[Pace], dict[UUID, list[Any]], dict[UUID, int]], chance: Any
) -> None:
    found, runs, due = drawn
    budget = Budget.of(found, runs, 120.0, 60.0, 100)
    total: Counter[UUID] = Counter()
    rounds = 0
    while quotas := budget.quotas(100, chance.random):
        rounds += 1
        assert rounds < 50, "it does not come to an end"
        claimed = {run: min(quota, due[run] - total[run]) for run, quota in quotas.items()}
        total.update(claimed)
        budget.take(quotas, claimed)
    left = {}
    for one in found:
        used = sum(total[run] for run, scopes in runs.items() if one.scope in scopes)
        allowed = max(0, one.slots_within(120.0, 60.0, 100) - one.leased)
        assert used <= allowed
        left[one.scope] = allowed - used
    for run, scopes in runs.items():
        if total[run] < due[run] and total[run] < 100:
            assert any(left.get(scope) == 0 for scope in scopes), "something was due and could have gone"


# Explanations ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", sorted(CODES))
def test_each_wait_is_a_sentence_that_says_when_it_ends_on_the_inboxes_own_clock(code: str) -> None:
    told = pace(code=code, wait=3600, gap_seconds=90.0, hourly_limit=30, daily_limit=20).explain()
    assert told.startswith("The inbox ")
    assert told.endswith("2026-03-03 13:00:00 (America/Sao_Paulo).")
    assert REASONS[code].endswith(".")


def test_a_slow_down_is_explained() -> None:
    told = pace(scope="campaign", wait=60, gap_seconds=120.0, slow_factor=4.0).explain()
    assert told == (
        "The campaign sends a message every 120 seconds; the next may begin at 2026-03-03 12:01:00 (America/Sao_Paulo)."
        " It was throttled and goes 4 times slower for now."
    )


def test_a_zone_that_only_the_database_knows_is_shown_in_utc() -> None:
    assert pace(zone="Mars/Olympus", wait=60, gap_seconds=60).explain().endswith("2026-03-03 15:01:00 (UTC).")


# A shard that waits for its turns -------------------------------------------------------------------------------------


def worked(
    queue: Queue, *, concurrency: int = 5, channel: Channel | None = None, model: Model | None = None, **store: Any
) -> tuple[ShardReport, Store]:
    """Deliver a queue to its end, on a simulated clock."""

    async def run() -> tuple[ShardReport, Store]:
        holder = Store(queue, **store)
        delivery = shard_of(holder, model or Model(), channel or Channel())
        return await delivery.run(concurrency), holder

    return in_no_time(run())


def moments(asked: list[tuple[float, str]]) -> list[float]:
    return [round(at, 1) for at, _ in asked]


def test_messages_leave_at_their_turns_and_texts_are_written_ahead() -> None:
    queue, channel, model = Queue.of(5), Channel(), Model()
    queue.gap = 30.0
    report, _ = worked(queue, channel=channel, model=model)
    assert report.sent == 5
    assert moments(channel.asked) == [0, 30, 60, 90, 120]
    assert moments(model.asked) == [0] * 5


def test_while_many_wait_only_one_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue.of(20)
    queue.gap = 30.0
    peeks: list[float] = []
    look = Store.next_turn

    async def counted(store: Store, message_id: str) -> Turn:
        peeks.append(now())
        return await look(store, message_id)

    monkeypatch.setattr(Store, "next_turn", counted)
    report, store = worked(queue, concurrency=20)
    assert report.sent == 20
    # Each asks the model's turn once, its own turn once too early and once in time; and looks each second between.
    assert store.asked <= 3 * 20
    assert len(peeks) <= 19 * (30 + 2)


def test_a_distant_turn_is_waited_for_in_the_queue_at_no_cost() -> None:
    queue, channel, model = Queue.of(4), Channel(), Model()
    queue.gap = 100.0
    report, _ = worked(queue, channel=channel, model=model)
    assert (report.sent, report.returned, report.reasons["returned: paced"]) == (1, 3, 3)
    waiting = [message for message in queue.messages.values() if message.status == "pending"]
    assert [(m.code, m.error_class, m.retry_count, m.text is not None) for m in waiting] == [
        ("paced", None, 0, True)
    ] * 3
    assert {round(message.due) for message in waiting} == {100}
    assert len(model.asked) == 4
    assert len(channel.asked) == 1


def test_an_early_turn_is_noticed_within_a_second() -> None:
    queue, channel = Queue.of(2), Channel()
    queue.gap = 50.0

    async def run() -> None:
        delivery = shard_of(Store(queue), Model(), channel)
        asyncio.get_running_loop().call_later(10.2, lambda: setattr(queue, "next_at", 0.0))
        await delivery.run(2)

    in_no_time(run())
    assert moments(channel.asked)[0] == 0
    assert 10.2 <= moments(channel.asked)[1] <= 11.2


def test_a_request_that_would_leave_too_late_is_not_made() -> None:
    queue, channel = Queue.of(1), Channel()
    queue.gap, queue.grace = 30.0, 1.0
    report, _ = worked(queue, channel=channel, commit_seconds=1.5)
    assert channel.asked == []
    assert queue.messages["m0000"].code == "late"
    assert queue.parts() == [["planned"]]
    assert (report.returned, queue.messages["m0000"].retry_count) == (1, 0)


def test_one_late_answer_does_no_harm() -> None:
    queue, channel = Queue.of(1), Channel()
    queue.gap, queue.grace = 5.0, 1.0

    async def run() -> ShardReport:
        store = Store(queue, commit_seconds=1.5)
        asyncio.get_running_loop().call_later(4.0, lambda: setattr(store, "commit_seconds", 0.0))
        return await shard_of(store, Model(), channel).run(1)

    assert in_no_time(run()).sent == 1
    assert len(channel.asked) == 1


def test_stopping_ends_the_wait_for_a_turn_at_once() -> None:
    queue, channel = Queue.of(5), Channel()
    queue.gap = 50.0

    async def run() -> tuple[ShardReport, float]:
        delivery = shard_of(Store(queue), Model(), channel)
        asyncio.get_running_loop().call_later(7.0, delivery.stop, "Enough.")
        return await delivery.run(5), now()

    report, ended = in_no_time(run())
    assert (report.sent, report.returned) == (1, 4)
    assert 7 <= ended < 7.5


def test_a_message_lost_while_it_waits_is_left_alone() -> None:
    queue, channel = Queue.of(2), Channel()
    queue.gap = 50.0

    async def run() -> ShardReport:
        delivery = shard_of(Store(queue), Model(), channel, DeliveryPolicy(lease_seconds=30.0))

        def take_away() -> None:
            for message in queue.messages.values():
                message.token = 2

        asyncio.get_running_loop().call_later(5.0, take_away)
        return await delivery.run(2)

    report = in_no_time(run())
    assert len(channel.asked) == 1
    assert report.reasons["left: lease_lost"] == 1


def test_a_throttled_inbox_goes_slower_for_everybody_and_says_so() -> None:
    answers = iter([Throttled("rate_limited", "Too fast.", Scope.INBOX, 5.0)])
    queue, channel = Queue.of(1), Channel(answers=lambda _: next(answers, None))
    report, _ = worked(queue, channel=channel)
    assert report.sent == 1
    assert queue.slowed == 1
    (line,) = [line for line in queue.log if line["step_name"] == "pause"]
    assert line["message"] == "Too fast. The inbox goes 2 times slower than its pace until it has recovered."


def test_a_throttled_model_slows_no_inbox() -> None:
    answers = iter([Throttled("rate_limited", "Too fast.", Scope.MODEL, 5.0)])
    queue = Queue.of(1)
    worked(queue, model=Model(answers=lambda _: next(answers, None)))
    assert queue.slowed == 0
