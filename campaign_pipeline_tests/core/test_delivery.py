"""A shard over time: concurrency without barriers, leases, throttles, stops; on a simulated clock."""

import asyncio
import itertools
import random
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from campaign_pipeline.core.model import ShardReport, SplitterSettings
from campaign_pipeline.core.ports import (
    MAY_HAVE_NO_RECORD,
    UNRECOGNISED,
    BeginPart,
    Completion,
    Envelope,
    Failure,
    LookUp,
    NotReady,
    NumberCheck,
    NumberExists,
    Outcome,
    Permanent,
    Prompt,
    Scope,
    Sent,
    Settled,
    Settlement,
    StoreUnavailable,
    Systemic,
    Throttled,
    Transient,
    Unknown,
)
from campaign_pipeline.core.results import RetryPolicy
from campaign_pipeline.core.shard_context import DeliveryPolicy
from campaign_pipeline.core.shard_worker import ShardWorker
from campaign_pipeline_tests.core.stand_ins import (
    NOON,
    TEXT,
    Channel,
    LeapingLoop,
    Model,
    Queue,
    Store,
    StoredPart,
    in_no_time,
    now,
    settings,
    shard_of,
)

SLOW_DOWN = Throttled("rate_limited", "Too fast.", Scope.INBOX, 10.0)
MODEL_SLOW_DOWN = Throttled("rate_limited", "Too fast.", Scope.MODEL, 10.0)
TWO_PARTS = [StoredPart("Olá, Ana!"), StoredPart("Podemos conversar?")]


def work(
    queue: Queue, concurrency: int = 5, *, model: Model | None = None, channel: Channel | None = None
) -> ShardReport:
    """Deliver a queue to its end."""

    async def run() -> ShardReport:
        return await shard_of(Store(queue), model or Model(), channel or Channel()).run(concurrency)

    return in_no_time(run())


# The window -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 7, 20, 100])
def test_the_wall_clock_is_all_latency_divided_by_the_concurrency_and_never_that_of_chunks(concurrency: int) -> None:
    dice = random.Random(7)
    generating = {f"m{n:04d}": dice.lognormvariate(0.5, 0.6) for n in range(600)}
    sending = {message: dice.lognormvariate(-0.5, 0.6) for message in generating}
    channel = Channel(seconds=sending.__getitem__)
    queue = Queue.of(600)
    report = work(queue, concurrency, model=Model(seconds=generating.__getitem__), channel=channel)
    latencies = [generating[message] + sending[message] for message in generating]
    ideal = sum(latencies) / concurrency
    chunks = sum(max(latencies[start : start + concurrency]) for start in range(0, 600, concurrency))
    assert report.sent == 600
    assert ideal - 0.001 <= report.seconds <= 1.05 * ideal + max(latencies)
    assert channel.most_in_flight <= concurrency
    if concurrency > 1:
        assert report.seconds < 0.75 * chunks


def test_a_hanging_message_delays_no_other() -> None:
    channel = Channel(seconds=lambda message: 500.0 if message == "m0000" else 1.0)
    work(Queue.of(41), 2, channel=channel)
    others = [when for when, key in channel.asked if key != "m0000:1"]
    assert max(others) <= 40.0


def test_only_the_intent_is_committed_while_a_message_holds_its_slot() -> None:
    channel, count = Channel(seconds=lambda _: 2.0), 50

    async def run() -> ShardReport:
        store = Store(Queue.of(count), commit_seconds=0.5)
        return await shard_of(store, Model(seconds=lambda _: 7.0), channel).run(1)

    report = in_no_time(run())
    # No other request overlaps the first question and the last outcome.
    assert (report.sent, report.seconds) == (count, count * (7.0 + 0.5 + 2.0) + 0.5 + 0.5)
    assert channel.most_in_flight == 1


def test_no_more_results_are_uncommitted_than_there_are_slots() -> None:
    class Stuck(Store):
        async def settle(self, settlement: Settlement) -> Settled:
            await asyncio.sleep(1000.0)  # a lock that another holds
            return await super().settle(settlement)

    channel = Channel(seconds=lambda _: 1.0)

    async def run() -> None:
        work = asyncio.ensure_future(shard_of(Stuck(Queue.of(50, text=TEXT)), Model(), channel).run(3))
        await asyncio.sleep(900.0)
        assert len(channel.asked) == 6
        await work

    in_no_time(run())
    assert len(channel.asked) == 50


def test_a_prefetched_go_expires() -> None:
    model, queue = Model(seconds=lambda _: 60.0), Queue.of(3)

    def paused_after_half_a_minute(step: str, _: str) -> str:
        return "run_paused" if step == "generate" and now() > 30.0 else "go"

    async def run() -> None:
        await shard_of(Store(queue, verdicts=paused_after_half_a_minute), model, Channel()).run(1)

    in_no_time(run())
    assert (len(model.asked), queue.statuses()) == (1, ["sent", "pending", "pending"])


def test_nothing_is_prefetched_under_a_spending_limit() -> None:
    model, queue = Model(), Queue.of(5)
    limit_reached: list[str] = []

    def spent_by_the_second(step: str, message_id: str) -> str:
        if step == "begin" and message_id == "m0001":
            limit_reached.append(message_id)
        return "run_paused" if step == "generate" and limit_reached else "go"

    async def run() -> None:
        store = Store(queue, verdicts=spent_by_the_second)
        shard = shard_of(store, model, Channel(), None, replace(settings(), limited=frozenset({"config"})))
        await shard.run(1)

    in_no_time(run())
    assert (len(model.asked), queue.statuses()) == (2, ["sent", "sent", "pending", "pending", "pending"])


def test_a_failed_prefetch_is_repeated_by_the_message_itself() -> None:
    queue = Queue.of(3)
    failed: list[str] = []

    def stumble_once(step: str, message_id: str) -> str:
        if step == "generate" and message_id == "m0001" and not failed:
            failed.append(message_id)
            raise ZeroDivisionError
        return "go"

    async def run() -> None:
        await shard_of(Store(queue, verdicts=stumble_once), Model(), Channel()).run(1)

    in_no_time(run())
    assert (failed, queue.statuses()) == (["m0001"], ["sent"] * 3)


def test_a_shard_of_no_messages_ends_at_once() -> None:
    assert work(Queue()).claimed == 0


def test_an_inbox_that_refuses_costs_no_generation_and_no_questions() -> None:
    model, queue = Model(), Queue.of(50)
    store, channel = Store(queue), Channel(refusal=Systemic("inbox_disconnected", "It is closed.", Scope.INBOX))

    async def run() -> ShardReport:
        return await shard_of(store, model, channel).run(5)

    report = in_no_time(run())
    assert (model.asked, store.asked, report.returned) == ([], 0, 50)
    assert set(queue.statuses()) == {"pending"}
    assert {message.error_class for message in queue.messages.values()} == {"systemic"}


def test_a_bug_in_asking_for_the_connection_holds_nothing_back() -> None:
    class Broken(Channel):
        async def check_connection(self) -> Failure | None:
            raise KeyError("state")

    queue = Queue.of(3)
    work(queue, channel=Broken())
    assert queue.statuses() == ["sent"] * 3
    assert "KeyError" in str(queue.log)


# Leases ---------------------------------------------------------------------------------------------------------------


def test_leases_are_renewed_three_times_in_their_life_while_the_shard_works() -> None:
    queue = Queue.of(10)
    store = Store(queue)

    async def run() -> None:
        await shard_of(store, Model(), Channel(seconds=lambda _: 60.0)).run(1)

    in_no_time(run())
    assert store.renewals == [40.0 * n for n in range(1, 15)] + [600.0] * (600.0 in store.renewals)
    assert queue.statuses() == ["sent"] * 10


def test_a_process_that_slept_past_its_lease_sends_nothing_after_go_and_returns_the_message_unsent() -> None:
    queue, channel = Queue.of(1), Channel()

    def fall_asleep(_: BeginPart) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, LeapingLoop)
        loop.oversleep(121.0)

    async def run() -> ShardReport:
        return await shard_of(Store(queue, beginning=fall_asleep), Model(), channel).run(1)

    report = in_no_time(run())
    assert channel.asked == []
    assert queue.parts() == [["planned"]], "it surely did not go out"
    assert (queue.statuses(), report.reasons) == (["pending"], {"returned: overslept": 1})
    assert queue.messages["m0000"].text == TEXT


def test_no_part_is_sent_after_a_number_check_that_outlasts_the_lease() -> None:
    def answer_late(number: str) -> NumberCheck:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, LeapingLoop)
        loop.oversleep(121.0)
        return NumberExists(number)

    queue, connected = Queue.of(1), list[float]()
    channel = Channel(numbers=answer_late, number_check=True, connecting=lambda: connected.append(now()))

    async def run() -> ShardReport:
        policy = DeliveryPolicy(number_check_days=30.0)
        return await shard_of(Store(queue), Model(), channel, policy=policy).run(1)

    report = in_no_time(run())
    assert len(channel.checked) == 1
    assert connected == [], "not even a connection is opened for it"
    assert queue.parts() == [["planned"]]
    assert (queue.statuses(), report.reasons) == (["pending"], {"returned: overslept": 1})


def test_a_process_that_slept_past_its_lease_on_the_way_to_the_connection_writes_nothing() -> None:
    def fall_asleep() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, LeapingLoop)
        loop.oversleep(121.0)

    queue, channel = Queue.of(1), Channel(connecting=fall_asleep)
    report = work(queue, channel=channel)
    assert (channel.asked, queue.parts(), queue.statuses()) == ([], [["planned"]], ["pending"])
    assert (report.reasons, queue.messages["m0000"].retry_count) == ({"returned: late": 1}, 0)


def test_a_request_that_left_stays_in_doubt_though_its_repetition_was_not_let_out() -> None:
    class CutAndReconnected(Channel):
        async def send(self, envelope: Envelope) -> Outcome:
            assert envelope.may_leave()
            loop = asyncio.get_running_loop()
            assert isinstance(loop, LeapingLoop)
            loop.oversleep(121.0)
            assert not envelope.may_leave()
            return Unknown("no_answer", "The connection was cut.")

    queue = Queue.of(1)
    work(queue, channel=CutAndReconnected(look_up=LookUp.NONE))
    assert (queue.parts(), queue.messages["m0000"].error_class) == ([["unknown"]], "unknown")


def test_no_request_is_made_in_the_last_sixth_of_a_lease() -> None:
    queue, channel = Queue.of(20), Channel(seconds=lambda _: 7.0)

    def away() -> None:
        raise StoreUnavailable("away")

    async def run() -> None:
        await shard_of(Store(queue, renewing=away), Model(), channel).run(1)

    in_no_time(run())
    assert 90.0 < max(when for when, _ in channel.asked) < 100.0


def test_a_process_that_slept_while_another_took_over_leaves_the_message_alone() -> None:
    queue, channel = Queue.of(1), Channel()

    def be_robbed(_: BeginPart) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, LeapingLoop)
        loop.oversleep(121.0)
        queue.messages["m0000"].token = 2

    async def run() -> ShardReport:
        return await shard_of(Store(queue, beginning=be_robbed), Model(), channel).run(1)

    report = in_no_time(run())
    assert channel.asked == []
    assert (queue.parts(), report.reasons) == ([["attempting"]], {"left: lease_lost": 1})


def test_an_older_go_does_not_outlive_a_heartbeat_that_says_lost() -> None:
    queue, channel = Queue.of(1), Channel()
    store = Store(queue)
    begin = store.begin_part

    async def slow_answer(begin_part: BeginPart) -> object:
        answer = await begin(begin_part)
        queue.messages["m0000"].token = 2  # taken over while the answer is on its way
        await asyncio.sleep(50.0)
        return answer

    store.begin_part = slow_answer  # type: ignore[method-assign,assignment]

    async def run() -> None:
        await shard_of(store, Model(), channel).run(1)

    in_no_time(run())
    assert channel.asked == []


def test_nothing_is_sent_once_leases_could_not_be_renewed_for_their_life() -> None:
    queue = Queue.of(20)
    channel = Channel(seconds=lambda _: 30.0)

    def away() -> None:
        raise StoreUnavailable("away")

    async def run() -> None:
        await shard_of(Store(queue, renewing=away), Model(), channel).run(1)

    in_no_time(run())
    assert max(when for when, _ in channel.asked) < 120.0


def test_the_heartbeat_continues_after_a_bug() -> None:
    queue = Queue.of(10)
    stumbles = itertools.count()

    def stumble() -> None:
        if next(stumbles) == 0:
            raise ValueError("a line of the log that cannot be stored")

    async def run() -> None:
        await shard_of(Store(queue, renewing=stumble), Model(), Channel(seconds=lambda _: 60.0)).run(1)

    in_no_time(run())
    assert queue.statuses() == ["sent"] * 10


def test_messages_that_were_lost_while_they_waited_are_not_begun() -> None:
    queue, channel = Queue.of(4), Channel(seconds=lambda _: 60.0)

    def rob() -> None:
        queue.messages["m0003"].token = 2

    async def run() -> ShardReport:
        return await shard_of(Store(queue, renewing=rob), Model(), channel).run(1)

    report = in_no_time(run())
    assert (report.sent, report.reasons) == (3, {"left: lease_lost": 1})
    assert "m0003:1" not in [key for _, key in channel.asked]


def test_the_lease_counts_from_before_the_messages_were_taken_over() -> None:
    queue, channel = Queue.of(1), Channel()

    async def run() -> None:
        await asyncio.sleep(130.0)
        delivery = shard_of(Store(queue), Model(), channel)
        late = replace(delivery, leased_at=0.0)
        await late.run(1)

    in_no_time(run())
    assert channel.asked == []


def test_a_look_up_proves_no_absence_before_the_lease_of_the_dead_worker_has_long_ended() -> None:
    # The attempt is two minutes old; the worker may have slept, and made its request as late as five seconds ago.
    part = StoredPart("Olá!", "unknown", 1, attempted_at=-120.0, lease_ended_at=-5.0)
    queue, channel = Queue.of(1, text="x", parts=[part]), Channel()
    work(queue, channel=channel)
    message = queue.messages["m0000"]
    assert (message.status, message.code, message.due) == ("pending", "look_up_pending", 85.0)
    assert channel.asked == []
    part.lease_ended_at = -90.0
    queue.messages["m0000"].status, queue.messages["m0000"].token = "queued", 1
    work(queue, channel=channel)
    assert queue.parts() == [["planned"]], "it surely was not sent, and may be tried again"


@pytest.mark.parametrize("code", sorted(MAY_HAVE_NO_RECORD))
def test_a_message_that_waits_for_its_look_up_keeps_the_code_that_decides_what_an_absence_proves(code: str) -> None:
    queue, channel = Queue.of(1), Channel(answers=lambda _: Unknown(code, "r"), accepts=lambda *_: False)
    work(queue, channel=channel)
    assert (queue.messages["m0000"].status, queue.messages["m0000"].code) == ("pending", code)
    assert queue.parts() == [["unknown"]]


@pytest.mark.parametrize("code", sorted(MAY_HAVE_NO_RECORD))
def test_a_part_is_not_sent_again_if_its_stored_code_says_that_an_absence_proves_nothing(code: str) -> None:
    part = StoredPart("Olá!", "unknown", 1, attempted_at=-3600.0, error_code=code)
    queue, channel = Queue.of(1, text="x", parts=[part]), Channel()
    work(queue, channel=channel)
    message = queue.messages["m0000"]
    assert (message.status, message.error_class, message.code) == ("failed", "unknown", code)
    assert channel.asked == []


@pytest.mark.parametrize(("model", "seconds"), [("vendor/model", 30.0), ("openai/gpt-5", 60.0)])
def test_a_model_that_reasons_gets_twice_the_time(model: str, seconds: float) -> None:
    timeouts: list[float] = []
    writer = Model(answers=lambda prompt: timeouts.append(prompt.timeout))

    async def run() -> None:
        known = replace(settings(), models={"workspace": model})
        await shard_of(Store(Queue.of(1)), writer, Channel(), batch_settings=known).run(1)

    in_no_time(run())
    assert timeouts == [seconds]


def test_a_message_whose_worker_died_is_delivered_alone_and_last() -> None:
    queue = Queue.of(6)
    queue.messages["m0000"].worker_deaths = queue.messages["m0003"].worker_deaths = 1
    model, channel = Model(seconds=lambda _: 3.0), Channel(seconds=lambda _: 2.0)
    work(queue, 4, model=model, channel=channel)
    assert sorted(model.asked) == [
        *((0.0, f"m000{n}") for n in (1, 2, 4, 5)),
        (5.0, "m0000"),
        (10.0, "m0003"),
    ]
    assert queue.statuses() == ["sent"] * 6


def test_a_message_whose_worker_died_is_not_marked_as_begun_before_its_turn() -> None:
    queue, asked = Queue.of(2), dict[str, float]()
    queue.messages["m0001"].worker_deaths = 1

    def note(_: str, message: str) -> str:
        asked.setdefault(message, now())
        return "go"

    async def run() -> None:
        await shard_of(Store(queue, verdicts=note), Model(seconds=lambda _: 3.0), Channel(seconds=lambda _: 2.0)).run(1)

    in_no_time(run())
    assert asked == {"m0000": 0.0, "m0001": 5.0}


# Throttles ------------------------------------------------------------------------------------------------------------


def once(failure: Failure) -> "itertools.chain[Failure | None]":
    return itertools.chain([failure], itertools.repeat(None))


def test_a_text_in_between_clears_the_unrecognised_answers_of_its_model() -> None:
    unrecognised: list[Failure | None] = [Transient(UNRECOGNISED, "r")] * 4  # the fifth in a row pauses the model
    answers = iter([*unrecognised, None, *unrecognised])
    queue = Queue.of(9)
    report = work(queue, 1, model=Model(answers=lambda _: next(answers)))
    assert (report.sent, queue.pauses) == (1, {})


def test_no_message_asks_a_throttled_model_before_its_time() -> None:
    answers = once(MODEL_SLOW_DOWN)
    model = Model(answers=lambda _: next(answers), seconds=lambda _: 1.0)
    queue = Queue.of(12)
    work(queue, 3, model=model)
    started = [when for when, _ in model.asked]
    assert [when for when in started if 1.0 < when < 11.0] == []
    assert queue.statuses() == ["sent"] * 12
    assert sum(message.retry_count for message in queue.messages.values()) == 0


def test_a_throttled_model_does_not_delay_texts_that_are_written() -> None:
    # The second message is throttled while the first is being written, and while the third is between its parts.
    queue = Queue.of(3)
    queue.messages["m0002"].text, queue.messages["m0002"].parts = "x", [replace(part) for part in TWO_PARTS]
    answers = once(MODEL_SLOW_DOWN)
    model = Model(
        seconds=lambda message: 1.0 if message == "m0000" else 0.5,
        answers=lambda prompt: next(answers) if prompt.reference == "m0001" else None,
    )
    channel = Channel(seconds=lambda _: 2.0)
    work(queue, 3, model=model, channel=channel)
    sent_at = {key: when for when, key in channel.asked}
    assert sent_at == {"m0002:1": 0.0, "m0000:1": 1.0, "m0002:2": 2.0, "m0001:1": 11.0}


def test_a_throttled_inbox_is_waited_out_and_counts_no_attempt() -> None:
    answers = once(SLOW_DOWN)
    channel = Channel(answers=lambda _: next(answers))
    queue = Queue.of(5)
    work(queue, 1, channel=channel)
    assert [when for when, _ in channel.asked][:2] == [0.0, 10.0]
    assert queue.statuses() == ["sent"] * 5
    assert {message.retry_count for message in queue.messages.values()} == {0}


def test_a_running_shard_reports_its_progress_and_what_slows_it_down() -> None:
    answers = itertools.chain([None] * 6, [replace(SLOW_DOWN, retry_after=40.0)], itertools.repeat(None))
    channel = Channel(answers=lambda _: next(answers), seconds=lambda _: 2.0)
    told: list[str] = []

    async def run() -> ShardReport:
        delivery = shard_of(Store(Queue.of(9)), Model(), channel)
        delivery.report.claimed = 9
        for at in (11.0, 30.0):
            asyncio.get_running_loop().call_later(at, lambda: told.append(delivery.progress()))
        return await delivery.run(1)

    assert in_no_time(run()).sent == 9
    assert told == [
        "Inbox inbox: 5 sent of 9; 1 at work, 3 waiting; 27.3 a minute. "
        "Nothing slows it down: 0.0 s a text, 2.0 s a part.",
        "Inbox inbox: 6 sent of 9; 1 at work, 2 waiting; 12.0 a minute. Too fast.",
    ]


def test_a_throttle_that_is_renewed_meanwhile_is_waited_out_too() -> None:
    model = Model(answers=lambda _: MODEL_SLOW_DOWN if now() < 25.0 else None)
    work(Queue.of(3), 3, model=model)
    asked = sorted(when for when, _ in model.asked)
    assert all(later - earlier < 0.001 or later - earlier >= 9.999 for earlier, later in itertools.pairwise(asked))


@pytest.mark.parametrize("retry_after", [61.0, 3600.0])
def test_a_long_throttle_returns_the_message_to_the_queue(retry_after: float) -> None:
    failure = replace(MODEL_SLOW_DOWN, retry_after=retry_after)
    queue, model = Queue.of(30), Model(answers=lambda _: failure)
    report = work(queue, 3, model=model)
    assert report.seconds < 1.0
    assert len(model.asked) <= 3
    assert (set(queue.statuses()), report.returned) == ({"pending"}, 30)
    assert {message.error_class for message in queue.messages.values()} == {"throttled"}


def test_a_retry_after_of_nothing_makes_no_loop_as_fast_as_the_network() -> None:
    failure = replace(MODEL_SLOW_DOWN, retry_after=0.0)
    model = Model(answers=lambda _: failure)
    work(Queue.of(1), 1, model=model)
    asked = [when for when, _ in model.asked]
    assert len(asked) == 3
    assert all(later - earlier >= 1.0 for earlier, later in itertools.pairwise(asked))


def test_an_inbox_that_stays_throttled_returns_the_message_after_three_requests() -> None:
    queue, channel = Queue.of(1), Channel(answers=lambda _: SLOW_DOWN)
    work(queue, channel=channel)
    message = queue.messages["m0000"]
    assert len(channel.asked) == 3
    assert (message.status, message.error_class, message.retry_count) == ("pending", "throttled", 0)
    assert message.parts[0].status == "planned"


def test_a_message_that_is_throttled_repeatedly_continues_in_the_next_batch() -> None:
    model, queue = Model(), Queue.of(1)
    policy = DeliveryPolicy(max_inline_waits=3)
    store = Store(queue, verdicts=lambda step, _: "scope_paused" if step == "generate" else "go")

    async def run() -> None:
        await shard_of(store, model, Channel(), policy).run(1)

    in_no_time(run())
    message = queue.messages["m0000"]
    assert (message.status, message.code, message.due, message.retry_count) == ("pending", "scope_paused", 5.0, 0)
    assert (store.asked, model.asked) == (3, [])


def test_a_throttle_of_others_is_waited_out_and_a_pause_of_others_is_heeded() -> None:
    queue, channel = Queue.of(2), Channel()
    queue.pauses[Scope.INBOX, "inbox"] = (20.0, SLOW_DOWN)
    work(queue, channel=channel)
    assert min(when for when, _ in channel.asked) >= 20.0
    paused, silent = Queue.of(2), Channel()
    paused.pauses[Scope.INBOX, "inbox"] = (20.0, Systemic("inbox_disconnected", "It is closed.", Scope.INBOX))
    report = work(paused, channel=silent)
    assert (silent.asked, report.returned) == ([], 2)
    assert {message.code for message in paused.messages.values()} == {"inbox_disconnected"}


def test_a_pause_of_others_is_asked_for_once() -> None:
    queue = Queue.of(20, text=TEXT)
    queue.pauses[Scope.INBOX, "inbox"] = (20.0, Systemic("inbox_disconnected", "It is closed.", Scope.INBOX))
    store = Store(queue)

    async def run() -> None:
        await shard_of(store, Model(), Channel()).run(1)

    in_no_time(run())
    assert store.asked == 1, "the others know"


def test_an_inbox_that_says_it_is_throttled_is_not_asked_to_send_before() -> None:
    channel = Channel(refusal=SLOW_DOWN)
    work(Queue.of(2), channel=channel)
    assert min(when for when, _ in channel.asked) >= 10.0


def test_a_stop_ends_the_wait_for_an_inbox_that_connects() -> None:
    class Connecting(Channel):
        questions = 0

        async def check_connection(self) -> Failure | NotReady | None:  # type: ignore[override]
            self.questions += 1
            return NotReady("connecting", "It connects.", 5.0) if self.questions < 50 else None

    channel, queue = Connecting(), Queue.of(2)

    async def run() -> None:
        delivery = shard_of(Store(queue), Model(), channel)
        asyncio.get_running_loop().call_later(7.0, delivery.stop, "Terminated.")
        await delivery.run(1)
        assert now() == 7.0

    in_no_time(run())
    assert (channel.questions, queue.statuses()) == (3, ["pending"] * 2)


# Windows --------------------------------------------------------------------------------------------------------------


def test_when_a_window_closes_in_mid_shard_the_rest_waits_for_the_next_opening() -> None:
    queue, channel = Queue.of(30), Channel(seconds=lambda _: 10.0)

    async def run() -> ShardReport:
        # Noon in São Paulo is 12:00; it closes at 12:02.
        until_two_past = settings(start_time="08:00:00", end_time="12:02:00")
        return await shard_of(Store(queue), Model(), channel, batch_settings=until_two_past).run(2)

    report = in_no_time(run())
    assert max(when for when, _ in channel.asked) < 120.0
    assert (report.sent, report.returned) == (24, 6)
    assert {message.code for message in queue.messages.values() if message.status == "pending"} == {"window_closed"}


def test_a_message_that_waited_past_the_closing_of_its_window_is_not_sent_and_its_text_is_kept() -> None:
    queue, channel = Queue.of(1), Channel()

    async def run() -> None:
        closing = settings(start_time="08:00:00", end_time="12:02:00")
        await shard_of(Store(queue), Model(seconds=lambda _: 125.0), channel, batch_settings=closing).run(1)

    in_no_time(run())
    message = queue.messages["m0000"]
    assert channel.asked == []
    assert (message.status, message.code, message.text) == ("pending", "window_closed", TEXT)


def test_a_message_whose_first_part_is_out_is_finished_though_its_window_closes() -> None:
    queue = Queue.of(1, text="x", parts=[replace(part) for part in TWO_PARTS])

    async def run() -> None:
        closing = settings(start_time="08:00:00", end_time="12:02:00")
        await shard_of(Store(queue), Model(), Channel(seconds=lambda _: 130.0), batch_settings=closing).run(1)

    in_no_time(run())
    assert queue.parts() == [["sent", "sent"]]


# Stopping -------------------------------------------------------------------------------------------------------------


def stopped_after(seconds: float, delivery: ShardWorker) -> None:
    asyncio.get_running_loop().call_later(seconds, delivery.stop, "Enough.")


def test_a_stop_ends_waits_at_once_and_lets_requests_finish() -> None:
    queue, channel = Queue.of(20), Channel(seconds=lambda _: 25.0)
    answers = itertools.chain([None] * 2, itertools.repeat(replace(MODEL_SLOW_DOWN, retry_after=55.0)))

    async def run() -> ShardReport:
        delivery = shard_of(Store(queue), Model(answers=lambda _: next(answers)), channel)
        stopped_after(3.0, delivery)
        return await delivery.run(4)

    report = in_no_time(run())
    assert (report.sent, report.returned) == (2, 18)
    assert report.seconds == 25.0
    assert Counter(queue.statuses()) == {"sent": 2, "pending": 18}


def test_a_send_that_outlasts_the_grace_of_a_cancelled_shard_is_unknown_and_not_resendable() -> None:
    queue, channel = Queue.of(3), Channel(seconds=lambda _: 1000.0)

    async def run() -> None:
        task = asyncio.create_task(shard_of(Store(queue), Model(), channel).run(1))
        asyncio.get_running_loop().call_later(5.0, task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert now() == 25.0, "20 seconds of grace"

    in_no_time(run())
    assert queue.parts() == [["unknown"], [], []]
    assert queue.statuses() == ["pending"] * 3
    message = queue.messages["m0000"]
    assert (message.error_class, message.due) == ("unknown", 115.0), "looked up when a late record must be there"


@pytest.mark.parametrize("cancel_at", [0.5, 1.5, 2.5])
def test_a_commit_under_way_is_not_torn_by_a_cancellation(cancel_at: float) -> None:
    # Each commit takes a second: generation is asked for until 1, the part begun until 2, its outcome settled until 3.
    queue, channel = Queue.of(1), Channel()

    async def run() -> None:
        policy = DeliveryPolicy(grace_seconds=0.0)
        task = asyncio.create_task(shard_of(Store(queue, commit_seconds=1.0), Model(), channel, policy).run(1))
        asyncio.get_running_loop().call_later(cancel_at, task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await task

    in_no_time(run())
    message = queue.messages["m0000"]
    if cancel_at < 1:
        assert (message.status, message.parts) == ("pending", [])
    elif cancel_at < 2:
        assert (message.status, queue.parts(), channel.asked) == ("pending", [["planned"]], [])
        assert message.error_class is None, "nothing left, so nothing is in doubt"
    else:
        assert (message.status, queue.parts()) == ("sent", [["sent"]])


def test_a_bug_between_generation_and_ledger_does_not_cost_the_text() -> None:
    queue = Queue.of(1)

    def stumble(step: str, _: str) -> str:
        if step == "begin":
            raise ZeroDivisionError
        return "go"

    async def run() -> None:
        await shard_of(Store(queue, verdicts=stumble), Model(), Channel()).run(1)

    in_no_time(run())
    message = queue.messages["m0000"]
    assert (message.text, message.status, message.code) == (TEXT, "pending", "internal_error")


def test_settings_that_no_policy_can_read_leave_no_message_leased() -> None:
    queue = Queue.of(1)
    unreadable: Any = (None,)

    async def run() -> None:
        channel = Channel(answers=lambda _: Transient("x", "r"))
        await shard_of(Store(queue), Model(), channel, None, settings(retry_delays_minutes=unreadable)).run(1)

    in_no_time(run())
    message = queue.messages["m0000"]
    assert (message.status, message.code, message.retry_count) == ("pending", "internal_error", 1)
    assert queue.parts() == [["planned"]]


# Trouble --------------------------------------------------------------------------------------------------------------


def test_a_database_that_stays_away_ends_the_shard_and_leaves_leases_to_expire() -> None:
    queue, channel = Queue.of(10), Channel(seconds=lambda _: 1.0)
    queue.messages["m0003"].held_back_by = StoreUnavailable("The database did not answer for 60 seconds.")

    async def run() -> None:
        await shard_of(Store(queue), Model(), channel).run(2)

    with pytest.raises(StoreUnavailable, match="60 seconds"):
        in_no_time(run())
    assert Counter(queue.statuses())["sending"] >= 1


def test_a_settlement_that_cannot_be_stored_harms_no_neighbour_and_leaves_the_part_unknown() -> None:
    queue, channel = Queue.of(6), Channel()
    queue.messages["m0002"].held_back_by = ValueError("numeric field overflow")
    report = work(queue, 2, channel=channel)
    assert report.sent == 5
    message = queue.messages["m0002"]
    assert (message.status, message.error_class, message.parts[0].status) == ("pending", "unknown", "unknown")
    assert len(channel.asked) == 6


@pytest.mark.parametrize(
    ("outcome", "status", "error_class", "part"),
    [
        (Permanent("x", "r"), "failed", "permanent", "failed"),
        (Transient("x", "r"), "pending", "transient", "planned"),
        (Systemic("x", "r", Scope.INBOX), "pending", "systemic", "planned"),
        (Unknown("x", "r"), "failed", "unknown", "unknown"),
    ],
)
def test_each_outcome_gives_its_message_and_part_the_right_state(
    outcome: Outcome, status: str, error_class: str, part: str
) -> None:
    queue = Queue.of(1)
    work(queue, channel=Channel(answers=lambda _: outcome, look_up=LookUp.NONE))
    message = queue.messages["m0000"]
    assert (message.status, message.error_class, message.parts[0].status) == (status, error_class, part)


def test_a_transient_failure_waits_at_least_as_long_as_the_provider_says() -> None:
    queue = Queue.of(1)
    work(queue, channel=Channel(answers=lambda _: Transient("x", "r", retry_after=5000.0)))
    assert queue.messages["m0000"].due >= 5000.0


@pytest.mark.parametrize(
    ("first", "numbers"),
    [("planned", ["5511987654321"] * 2), ("sent", ["5511955554444"])],
    ids=["none sent", "one sent"],
)
def test_a_corrected_number_is_used_unless_a_part_went_to_the_old_one(first: str, numbers: list[str]) -> None:
    parts = [StoredPart("Olá, Ana!", first, 1, 0.0, address="5511955554444"), StoredPart("Podemos conversar?")]
    sent_to: list[str] = []
    work(Queue.of(1, text="x", parts=parts), channel=Channel(answers=lambda part: sent_to.append(part.address)))
    assert sent_to == numbers


@pytest.mark.parametrize(("look_up", "status"), [(LookUp.NONE, "failed"), (LookUp.SEARCH, "pending")])
def test_a_resend_that_was_approved_and_is_in_doubt_again_stays_unknown_and_no_later_part_goes_out(
    look_up: LookUp, status: str
) -> None:
    parts = [StoredPart("Olá, Ana!", "unknown", 1, 0.0, resend_approved=True), StoredPart("Podemos conversar?")]
    queue, channel = Queue.of(1, text="x", parts=parts), Channel(answers=lambda _: Unknown("x", "r"), look_up=look_up)
    report = work(queue, channel=channel)
    message = queue.messages["m0000"]
    assert [key for _, key in channel.asked] == ["m0000:1"]
    assert queue.parts() == [["unknown", "planned"]]
    assert (message.status, message.error_class, report.sent, report.skipped) == (status, "unknown", 0, 0)


def test_results_of_all_messages_add_up_to_the_claimed_number() -> None:
    outcomes = itertools.cycle([None, Permanent("x", "r"), Transient("x", "r"), Unknown("x", "r")])
    queue = Queue.of(40)

    def rob() -> None:
        queue.messages["m0038"].token = queue.messages["m0039"].token = 2

    async def run() -> ShardReport:
        channel = Channel(seconds=lambda _: 5.0, answers=lambda _: next(outcomes), look_up=LookUp.NONE)
        delivery = shard_of(Store(queue, renewing=rob), Model(), channel)
        stopped_after(70.0, delivery)
        return await delivery.run(2)

    report = in_no_time(run())
    left = sum(count for key, count in report.reasons.items() if key.startswith("left: "))
    assert (report.claimed, left) == (40, 2)
    assert report.sent + report.failed + report.skipped + report.returned + left == report.claimed


# Everything at once ---------------------------------------------------------------------------------------------------

FATES = st.sampled_from(
    [
        "sent",
        "sent",
        "sent",
        "unknown_accepted",
        "unknown_not_accepted",
        "transient",
        "throttled",
        "raises_accepted",
        "raises_not_accepted",
        "hangs_accepted",
    ]
)
POLICY = DeliveryPolicy(retry=RetryPolicy(max_attempts=30, delays_seconds=(1.0,)), grace_seconds=1.0)


class Fateful(Channel):
    """Applies a random event to each request."""

    def __init__(self, fates: list[str], look_up: LookUp) -> None:
        super().__init__(look_up=look_up)
        self._fates = itertools.chain(fates, itertools.repeat("sent"))

    async def send(self, envelope: Envelope) -> Outcome:
        key, fate = envelope.idempotency_key, next(self._fates)
        self.asked.append((now(), key))
        if fate == "sent" or (fate.endswith("_accepted") and "not" not in fate):
            self.accepted.append(key)
        await asyncio.sleep(40.0 if fate.startswith("hangs") else 0.7)
        if fate.startswith("raises"):
            raise KeyError(fate)
        outcomes: dict[str, Outcome] = {
            "sent": Sent(f"id-{key}"),
            "transient": Transient("x", "r"),
            "throttled": replace(SLOW_DOWN, retry_after=2.0),
        }
        return outcomes.get(fate, Unknown("no_answer", "r"))


class Batches:
    """Delivers a queue batch after batch, under a new token each, like a series of new processes."""

    def __init__(self, queue: Queue, channel: Channel, model: Model, commit_seconds: float) -> None:
        self._queue, self._channel, self._model = queue, channel, model
        self._commit_seconds = commit_seconds
        self._tokens = itertools.count(1)

    async def one(self, cancel_after: float | None) -> None:
        """Deliver a batch, optionally cancelled after a while."""
        token = next(self._tokens)
        for message in self._queue.messages.values():
            if message.status in {"pending", "queued"}:
                message.status, message.token = "queued", token
        store = Store(self._queue, token, self._commit_seconds)
        two_parts = settings(SplitterSettings(min_chars=10), split_messages=True)
        task = asyncio.create_task(shard_of(store, self._model, self._channel, POLICY, two_parts).run(3))
        if cancel_after is not None:
            asyncio.get_running_loop().call_later(cancel_after, task.cancel)
        await asyncio.wait([task])
        for message in self._queue.messages.values():
            assert message.status in {"pending", "sent", "failed"}, "nothing stays leased after an orderly end"
            assert all(part.status != "attempting" for part in message.parts)

    async def until_quiet(self, cancellations: list[float]) -> None:
        """Continue until nothing is pending."""
        for cancel_after in [*cancellations, *[None] * 200]:
            await self.one(cancel_after)
            if "pending" not in self._queue.statuses():
                return
            await asyncio.sleep(100.0)
        raise AssertionError("it never ends")


@given(
    fates=st.lists(FATES, max_size=40),
    cancellations=st.lists(st.floats(0.1, 60.0), max_size=6),
    look_up=st.sampled_from([LookUp.SEARCH, LookUp.NONE]),
    commit_seconds=st.sampled_from([0.0, 0.05, 1.0]),
)
def test_whatever_happens_no_part_is_accepted_twice_no_text_paid_twice_and_no_message_is_lost(
    fates: list[str], cancellations: list[float], look_up: LookUp, commit_seconds: float
) -> None:
    queue, channel, model = Queue.of(5), Fateful(fates, look_up), Model(seconds=lambda _: 0.4, answers=two_paragraphs)
    in_no_time(Batches(queue, channel, model, commit_seconds).until_quiet(cancellations))
    assert max(Counter(channel.accepted).values(), default=0) <= 1
    for message in queue.messages.values():
        if message.status == "sent":
            assert {f"{message.id}:1", f"{message.id}:2"} <= set(channel.accepted)
        else:
            assert (message.status, message.error_class, look_up) == ("failed", "unknown", LookUp.NONE)
            assert "unknown" in [part.status for part in message.parts]
    if not cancellations:
        assert max(Counter(reference for _, reference in model.asked).values()) == 1


def two_paragraphs(prompt: Prompt) -> Completion:
    """A text of two parts."""
    return Completion("Olá, Ana! Tudo bem com você?\n\nPodemos conversar nesta semana?", prompt.model, 100, 20, 0.001)


def test_the_stand_in_of_the_clock_starts_at_noon() -> None:
    async def run() -> None:
        delivery = shard_of(Store(Queue.of(1)), Model(), Channel())
        await asyncio.sleep(90.0)
        assert delivery.time.now() == NOON + timedelta(seconds=90)

    in_no_time(run())
