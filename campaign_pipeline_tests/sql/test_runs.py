import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import psycopg
import pytest

from campaign_pipeline.adapters import queue
from campaign_pipeline.adapters.queue import Queue
from campaign_pipeline.sql import statement
from campaign_pipeline_tests.factories import World
from campaign_pipeline_tests.sql.holder import (
    Holder,
    claim_batch,
    claimed_ids,
    holding,
    insert_due,
    look,
    message,
    rows,
    run_row,
)

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)


def close_runs(world: World) -> list[UUID]:
    return [row["id"] for row in asyncio.run(Queue(world.url).close_runs())]


def set_clock(world: World, instant: datetime) -> None:
    world.move_clock(instant - datetime.now(UTC))


def local(text: str, zone: str, fold: int = 0) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).astimezone(UTC)


# Closing --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["sent", "replied", "failed", "skipped"])
def test_a_run_closes_when_no_message_can_change(world: World, status: str) -> None:
    run = world.run(leads_total=2)
    insert_due(world, run, 2, status=status)
    assert close_runs(world) == [run]
    row = run_row(world, run)
    assert row["status"] == "completed"
    assert row["completed_at"] is not None
    assert row["leads_processed"] == 2


def test_no_plan_is_compiled_while_runs_are_closed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    # A server with LLVM compiled the plan for the messages of cancelled runs for 170 ms; there were no such runs.
    asked = {"close_runs": "SELECT current_setting('jit') AS id"}
    monkeypatch.setattr(queue, "statement", lambda name: asked.get(name) or statement(name))
    assert close_runs(world) == ["off"]


@pytest.mark.parametrize("status", ["pending", "queued", "generating", "sending"])
def test_a_message_that_may_change_keeps_its_run_open(world: World, status: str) -> None:
    run = world.run(leads_total=1)
    insert_due(world, run, 3, status="sent")
    world.due_message(run, status=status)
    assert close_runs(world) == []
    assert run_row(world, run)["status"] == "running"


def test_a_message_that_waits_for_its_next_attempt_keeps_its_run_open(world: World) -> None:
    run = world.run()
    due = world.due_message(run)
    assert holding(world, due).settle(due, status="pending", delay_seconds=1800.0)["moved"]
    assert close_runs(world) == []


def test_of_eight_closers_at_once_one_closes_each_run(world: World) -> None:
    config = world.campaign()
    runs = [world.run(config) for _ in range(20)]
    for run in runs:
        insert_due(world, run, 3, status="sent")

    async def main() -> list[list[dict[str, Any]]]:
        return await asyncio.gather(*(Queue(world.url).close_runs() for _ in range(8)))

    closed = [row["id"] for mine in asyncio.run(main()) for row in mine]
    assert sorted(closed) == sorted(runs)


def test_a_closer_does_not_wait_for_another_and_closes_nothing_twice(world: World) -> None:
    run = world.run()
    insert_due(world, run, 2, status="sent")
    with psycopg.connect(world.url) as first:
        assert len(first.execute(statement("close_runs")).fetchall()) == 1
        assert close_runs(world) == []
        first.commit()
    assert close_runs(world) == []


def test_a_closed_run_is_not_closed_again(world: World) -> None:
    run = world.run()
    insert_due(world, run, 1, status="sent")
    assert close_runs(world) == [run]
    ended = run_row(world, run)["completed_at"]
    world.move_clock(HOUR)
    assert close_runs(world) == []
    assert run_row(world, run)["completed_at"] == ended


@pytest.mark.parametrize("total", [0, 1, 500])
def test_a_wrong_total_keeps_no_run_open(world: World, total: int) -> None:
    run = world.run(leads_total=total)
    insert_due(world, run, 3, status="skipped")
    assert close_runs(world) == [run]


@pytest.mark.parametrize(("total", "minutes"), [(0, 5), (9, 60)])
def test_a_run_whose_messages_are_still_being_written_is_given_some_time(
    world: World, total: int, minutes: int
) -> None:
    run = world.run(leads_total=total, started_at=world.value("SELECT campaign_now()"))
    assert close_runs(world) == []
    world.move_clock(timedelta(minutes=minutes - 1))
    assert close_runs(world) == []
    world.move_clock(timedelta(minutes=minutes + 1))
    assert close_runs(world) == [run]


def test_a_run_whose_messages_were_all_deleted_closes(world: World) -> None:
    run = world.run(leads_total=3, started_at=world.value("SELECT campaign_now() - interval '1 hour'"))
    insert_due(world, run, 3, status="sent")
    world.do("DELETE FROM campaign_messages")
    assert close_runs(world) == [run]
    assert world.wrong_counters() == []


@pytest.mark.parametrize("status", ["paused", "failed", "completed"])
def test_only_running_and_cancelled_runs_are_closed(world: World, status: str) -> None:
    world.run(status=status)
    assert close_runs(world) == []


def test_closing_clears_the_noted_wait(world: World) -> None:
    run = world.run(wait_code="window_closed", wait_reason="Closed.")
    assert close_runs(world) == [run]
    assert run_row(world, run)["wait_code"] is None


# Cancelling -----------------------------------------------------------------------------------------------------------


def test_the_rest_of_a_cancelled_run_is_skipped_and_counted_and_the_run_ends_once(world: World) -> None:
    run = world.run(leads_total=5)
    insert_due(world, run, 1, status="sent")
    insert_due(world, run, 2)
    later = world.due_message(run, next_attempt_at=world.value("SELECT campaign_now() + interval '1 day'"))
    world.do("UPDATE campaign_runs SET status = 'cancelled' WHERE id = %s", run)
    assert close_runs(world) == [run]
    row = run_row(world, run)
    assert (row["status"], row["leads_success"], row["leads_skipped"]) == ("cancelled", 1, 3)
    assert row["completed_at"] is not None
    left = message(world, later)
    assert (left["status"], left["error_code"], left["error_class"]) == ("skipped", "run_cancelled", None)
    assert left["error_message"] == "The run was cancelled before this message was sent."
    assert left["finished_at"] is not None
    assert close_runs(world) == []
    assert world.wrong_counters() == []


def test_a_batch_settles_cancelled_runs_too(world: World) -> None:
    run = world.run(status="cancelled")
    insert_due(world, run, 4)
    assert claim_batch(world).cancelled == 4
    assert run_row(world, run)["leads_skipped"] == 4


@pytest.mark.parametrize(
    ("states", "error_class", "words"),
    [
        (["sent", "planned"], "exhausted", "after some parts of this message had gone out"),
        (["unknown", "planned"], "unknown", "while it was not known"),
        (["sent", "unknown"], "unknown", "while it was not known"),
        (["attempting"], "unknown", "while it was not known"),
    ],
)
def test_begun_messages_of_a_cancelled_run_fail_with_what_is_known(
    world: World, states: list[str], error_class: str, words: str
) -> None:
    run = world.run(status="cancelled")
    due = world.due_message(run)
    for number, status in enumerate(states, start=1):
        key = f"{due}:{number}"
        world.insert(
            "campaign_message_parts",
            message_id=due,
            part_no=number,
            text="Oi",
            status=status,
            idempotency_key=key,
            sent_at="2026-01-01",
        )
    assert close_runs(world) == [run]
    row = message(world, due)
    assert (row["status"], row["error_class"], row["error_code"]) == ("failed", error_class, "run_cancelled")
    assert words in row["error_message"]
    assert run_row(world, run)["leads_failed"] == 1


def test_a_message_under_way_keeps_a_cancelled_run_open_until_it_is_given_back(world: World) -> None:
    run = world.run()
    due = world.due_message(run)
    holder = holding(world, due)
    world.do("UPDATE campaign_runs SET status = 'cancelled' WHERE id = %s", run)
    assert close_runs(world) == []
    holder.settle(due, status="pending", code="run_cancelled", reason="The run is cancelled.")
    assert close_runs(world) == [run]
    assert message(world, due)["status"] == "skipped"


# Pausing and resuming -------------------------------------------------------------------------------------------------


def paused_for(world: World, run: UUID, pause: timedelta) -> None:
    """Pause and resume like an operator: with a plain UPDATE."""
    world.do("UPDATE campaign_runs SET status = 'paused' WHERE id = %s", run)
    assert not claim_batch(world).rows
    world.move_clock(pause)
    assert not claim_batch(world).rows
    world.do("UPDATE campaign_runs SET status = 'running' WHERE id = %s", run)


def due_times(world: World, run: UUID) -> list[timedelta]:
    """Return the due times of its waiting messages, relative to the first, in scheduled order."""
    times = [row["next_attempt_at"] for row in world.messages(run)]
    return [time - times[0] for time in times]


@pytest.mark.parametrize("interval", [30, 60])
def test_resuming_spreads_what_became_overdue_and_expires_nothing(world: World, interval: int) -> None:
    run = world.run(world.campaign(min_interval_seconds=interval))
    start = world.value("SELECT campaign_now()")
    dues = [world.due_message(run, scheduled_at=start + n * MINUTE) for n in range(6)]
    paused_for(world, run, timedelta(hours=5))
    batch = claim_batch(world, lease_seconds=86_400.0)
    assert (batch.spread, batch.expired, claimed_ids(batch)) == (6, 0, {dues[0]})
    assert due_times(world, run) == [n * timedelta(seconds=interval) for n in range(6)]
    assert run_row(world, run)["resumed_at"] is None
    for number, due in enumerate(dues[1:], start=1):
        world.move_clock(timedelta(hours=5, seconds=number * interval + 1))
        batch = claim_batch(world, lease_seconds=86_400.0)
        assert (batch.spread, batch.expired, claimed_ids(batch)) == (0, 0, {due})


def test_a_campaign_that_names_no_interval_is_spread_by_the_crms_own_minimum(world: World) -> None:
    run = world.run(world.campaign(min_interval_seconds=None))
    insert_due(world, run, 3)
    paused_for(world, run, 2 * HOUR)
    assert claim_batch(world).spread == 3
    assert due_times(world, run) == [timedelta(0), timedelta(seconds=30), timedelta(seconds=60)]


def test_a_campaign_that_names_no_interval_is_spread_within_ten_minutes_however_many_are_overdue(world: World) -> None:
    run = world.run(world.campaign(min_interval_seconds=None))
    insert_due(world, run, 60)
    paused_for(world, run, 2 * HOUR)
    assert claim_batch(world).spread == 60
    assert due_times(world, run) == [n * timedelta(seconds=10) for n in range(60)]


def test_messages_that_are_not_due_keep_their_times(world: World) -> None:
    run = world.run()
    later = world.value("SELECT campaign_now() + interval '1 day'")
    due = world.due_message(run, scheduled_at=later)
    paused_for(world, run, HOUR)
    claim_batch(world)
    row = message(world, due)
    assert (row["scheduled_at"], row["next_attempt_at"]) == (later, None)


def test_other_runs_are_not_spread(world: World) -> None:
    run, other = world.run(), world.run()
    insert_due(world, run, 3)
    paused_for(world, run, HOUR)
    insert_due(world, other, 3)
    assert len(claim_batch(world).rows) == 1 + 3


def test_messages_that_do_not_fit_before_the_window_closes_are_spread_when_it_opens(world: World) -> None:
    zone = "America/Sao_Paulo"
    run = world.run(world.campaign(start_time="09:00", end_time="18:00", timezone=zone, min_interval_seconds=60))
    set_clock(world, local("2026-03-03T17:57:00", zone))
    insert_due(world, run, 8)
    world.do("UPDATE campaign_runs SET status = 'paused'")
    world.do("UPDATE campaign_runs SET status = 'running'")
    batch = claim_batch(world, lease_seconds=86_400.0)
    assert (batch.spread, len(batch.rows)) == (8, 1)
    set_clock(world, local("2026-03-03T17:59:30", zone))
    assert len(claim_batch(world, lease_seconds=86_400.0).rows) == 2
    set_clock(world, local("2026-03-04T08:00:00", zone))
    assert claim_batch(world, lease_seconds=86_400.0).rows == []
    set_clock(world, local("2026-03-04T09:00:10", zone))
    batch = claim_batch(world, lease_seconds=86_400.0)
    assert (batch.spread, batch.expired) == (5, 0)
    assert len(batch.rows) == 1


@pytest.mark.parametrize("zone", ["America/Sao_Paulo", "Asia/Kathmandu"])
def test_a_run_that_is_resumed_at_night_is_spread_when_its_window_opens(world: World, zone: str) -> None:
    run = world.run(world.campaign(start_time="09:00", end_time="18:00", timezone=zone, min_interval_seconds=60))
    set_clock(world, local("2026-03-03T17:00:00", zone))
    insert_due(world, run, 5)
    world.do("UPDATE campaign_runs SET status = 'paused'")
    set_clock(world, local("2026-03-04T03:00:00", zone))
    world.do("UPDATE campaign_runs SET status = 'running'")
    assert claim_batch(world).rows == []
    assert run_row(world, run)["wait_code"] == "window_closed"
    assert {row["next_attempt_at"] for row in world.messages(run)} == {None}
    set_clock(world, local("2026-03-04T09:00:05", zone))
    batch = claim_batch(world)
    assert (batch.spread, batch.expired, len(batch.rows)) == (5, 0, 1)
    assert due_times(world, run) == [n * MINUTE for n in range(5)]


def test_a_disconnection_that_ends_at_night_is_spread_when_the_window_opens(world: World) -> None:
    zone = "America/New_York"
    run = world.run(world.campaign(start_time="09:00", end_time="18:00", timezone=zone, min_interval_seconds=60))
    set_clock(world, local("2026-03-03T12:00:00", zone))
    insert_due(world, run, 3)
    world.do("UPDATE instances SET status = 'disconnected'")
    claim_batch(world)
    set_clock(world, local("2026-03-03T23:00:00", zone))
    world.do("UPDATE instances SET status = 'connected'")
    assert claim_batch(world).rows == []
    set_clock(world, local("2026-03-04T09:00:05", zone))
    batch = claim_batch(world)
    assert (batch.spread, batch.expired, len(batch.rows)) == (3, 0, 1)


def test_an_inbox_that_is_connected_again_loses_nothing_and_bursts_nothing(world: World) -> None:
    run = world.run(world.campaign(min_interval_seconds=45))
    insert_due(world, run, 4)
    world.do("UPDATE instances SET status = 'disconnected'")
    assert not claim_batch(world).rows
    world.move_clock(timedelta(hours=7))
    assert not claim_batch(world).rows
    world.do("UPDATE instances SET status = 'connected'")
    batch = claim_batch(world)
    assert (batch.spread, batch.expired, len(batch.rows)) == (4, 0, 1)
    assert run_row(world, run)["wait_code"] is None


def test_a_resume_while_the_inbox_is_disconnected_is_dealt_with_when_it_is_back(world: World) -> None:
    run = world.run()
    insert_due(world, run, 3)
    world.do("UPDATE instances SET status = 'disconnected'")
    paused_for(world, run, 3 * HOUR)
    assert not claim_batch(world).rows
    world.move_clock(6 * HOUR)
    world.do("UPDATE instances SET status = 'connected'")
    batch = claim_batch(world)
    assert (batch.spread, batch.expired, len(batch.rows)) == (3, 0, 1)


# Expiry ---------------------------------------------------------------------------------------------------------------

OPEN_50_AND_70_MINUTES = {
    # zone, start, end, frequency: due, when 50 minutes of open time have passed, when 70 have
    "over midnight": (
        ("America/Sao_Paulo", "22:00", "06:00", "daily"),
        ("2026-03-03T05:30", 0),
        ("2026-03-03T22:20", 0),
        ("2026-03-03T22:40", 0),
    ),
    "quarter of an hour off": (
        ("Asia/Kathmandu", "22:00", "06:00", "daily"),
        ("2026-03-03T05:30", 0),
        ("2026-03-03T22:20", 0),
        ("2026-03-03T22:40", 0),
    ),
    "weekend": (
        ("America/Sao_Paulo", "09:00", "18:00", "weekdays"),
        ("2026-03-06T17:40", 0),  # a Friday
        ("2026-03-09T09:30", 0),
        ("2026-03-09T09:50", 0),
    ),
    "friday night runs into saturday": (
        ("America/New_York", "22:00", "06:00", "weekdays"),
        ("2026-03-14T05:30", 0),
        ("2026-03-16T22:20", 0),
        ("2026-03-16T22:40", 0),
    ),
    "clocks go back an hour": (
        ("America/New_York", "22:00", "06:00", "daily"),
        ("2026-11-01T01:30", 0),
        ("2026-11-01T01:20", 1),
        ("2026-11-01T01:40", 1),
    ),
    "clocks go forward an hour": (
        ("America/New_York", "22:00", "06:00", "daily"),
        ("2026-03-08T01:30", 0),
        ("2026-03-08T03:20", 0),
        ("2026-03-08T03:40", 0),
    ),
    "clocks go back half an hour": (
        ("Australia/Lord_Howe", "22:00", "06:00", "daily"),
        ("2026-04-05T01:20", 0),
        ("2026-04-05T01:40", 1),
        ("2026-04-05T02:00", 0),
    ),
    "clocks skip midnight": (
        ("America/Sao_Paulo", "22:00", "06:00", "daily"),
        ("2018-11-03T23:40", 0),
        ("2018-11-04T01:30", 0),
        ("2018-11-04T01:50", 0),
    ),
}


@pytest.mark.parametrize("case", OPEN_50_AND_70_MINUTES)
def test_only_open_time_makes_a_message_too_old(world: World, case: str) -> None:
    (zone, start, end, frequency), due_at, young, old = OPEN_50_AND_70_MINUTES[case]
    config = world.campaign(start_time=start, end_time=end, timezone=zone, frequency=frequency)
    run = world.run(config)
    due = world.due_message(run, scheduled_at=local(due_at[0], zone, due_at[1]))
    set_clock(world, local(young[0], zone, young[1]))
    with_young = claim_batch(world)
    assert (with_young.expired, claimed_ids(with_young)) == (0, {due})
    world.do("UPDATE campaign_messages SET status = 'pending', lease_token = NULL, lease_expires_at = NULL")
    set_clock(world, local(old[0], zone, old[1]))
    with_old = claim_batch(world)
    assert (with_old.expired, with_old.rows) == (1, [])


def test_too_old_messages_are_skipped_and_counted_with_their_due_time(world: World) -> None:
    run = world.run()
    due = world.due_message(run, scheduled_at=datetime(2026, 3, 3, 12, 30, tzinfo=UTC))
    set_clock(world, datetime(2026, 3, 3, 13, 31, tzinfo=UTC))
    assert claim_batch(world, max_age=HOUR).expired == 1
    row = message(world, due)
    assert (row["status"], row["error_code"]) == ("skipped", "too_old")
    assert row["error_message"] == (
        "Due since 2026-03-03 12:30 UTC, longer than the maximum age of 60 minutes of open time."
    )
    assert row["finished_at"] is not None
    assert run_row(world, run)["leads_skipped"] == 1
    assert close_runs(world) == [run]


@pytest.mark.parametrize("status", ["attempting", "unknown", "sent", "failed"])
def test_a_message_that_may_have_been_sent_never_becomes_too_old(world: World, status: str) -> None:
    run = world.run()
    due, unsent = world.due_messages(run, 2)
    for number, (of, state) in enumerate([(due, status), (due, "planned"), (unsent, "planned")], start=1):
        key = f"{of}:{number}"
        world.insert(
            "campaign_message_parts",
            message_id=of,
            part_no=number,
            text="Oi",
            status=state,
            idempotency_key=key,
            sent_at="2026-01-01",
        )
    world.move_clock(timedelta(days=9))
    batch = claim_batch(world)
    assert (batch.expired, claimed_ids(batch)) == (1, {due})
    assert message(world, unsent)["status"] == "skipped"


def test_a_message_ages_from_its_last_retry_not_from_its_schedule(world: World) -> None:
    run, now = world.run(), world.value("SELECT campaign_now()")
    due = world.due_message(run, scheduled_at=now - 5 * HOUR, next_attempt_at=now - 10 * MINUTE)
    assert claimed_ids(claim_batch(world)) == {due}


def test_a_run_that_waits_or_is_paused_expires_nothing(world: World) -> None:
    paused, held = world.run(status="paused"), world.run(world.campaign(is_active=False))
    dues = [world.due_message(run) for run in (paused, held)]
    world.move_clock(timedelta(days=2))
    assert claim_batch(world).expired == 0
    assert {message(world, due)["status"] for due in dues} == {"pending"}


def test_the_next_due_message_of_a_running_run_is_reported(world: World) -> None:
    now = world.value("SELECT campaign_now()")
    world.due_message(world.run(), scheduled_at=now + 2 * HOUR)
    world.due_message(world.run(), scheduled_at=now + HOUR)
    world.due_message(world.run(status="paused"))
    world.due_message(world.run(), status="sent")
    assert look(world).next_due == now + HOUR
    world.do("DELETE FROM campaign_messages WHERE status = 'pending'")
    assert look(world).next_due is None


def test_a_lease_that_ends_in_a_run_that_was_cancelled_meanwhile_ends_as_unknown(world: World) -> None:
    run = world.run()
    due = world.due_message(run)
    holder = Holder(world)
    assert holder.take_over([due], uuid4()) == {due: "taken"}
    holder.begin_new(due)
    world.do("UPDATE campaign_runs SET status = 'cancelled'")
    world.move_clock(timedelta(minutes=5))
    batch = claim_batch(world)
    assert (batch.recovered, batch.cancelled) == (1, 1)
    assert (message(world, due)["status"], message(world, due)["error_class"]) == ("failed", "unknown")
    assert [row["id"] for row in rows(world, "close_runs")] == [run]
