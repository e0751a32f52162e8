import asyncio
import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.rows import dict_row

from campaign_pipeline.adapters import queue
from campaign_pipeline.adapters.queue import BatchOptions, Queue
from campaign_pipeline.adapters.statements import Connection
from campaign_pipeline.sql import statement
from campaign_pipeline_tests.factories import World
from campaign_pipeline_tests.sql.holder import claim_batch, claimed_ids, insert_due, look, message, rows, run_row

MINUTE = timedelta(minutes=1)


def per_run(batch: queue.Batch) -> Counter[UUID]:
    return Counter(row.run_id for row in batch.rows)


def claim(world: World, quotas: dict[UUID, int], batch_size: int) -> Counter[UUID]:
    """The claiming statement alone."""
    claimed = rows(
        world,
        "claim_messages",
        run_ids=list(quotas),
        quotas=list(quotas.values()),
        batch_size=batch_size,
        token=uuid4(),
        owner="test",
        lease_seconds=120.0,
        tried_ids=None,
        ahead_seconds=0.0,
    )
    return Counter(row["run_id"] for row in claimed)


# Fairness -------------------------------------------------------------------------------------------------------------


def test_a_run_with_thousands_due_does_not_starve_one_with_ten(world: World) -> None:
    large, small = world.run(), world.run()
    insert_due(world, large, 3000, age=40 * MINUTE)
    insert_due(world, small, 10)
    assert per_run(claim_batch(world, 100)) == {large: 90, small: 10}


def test_runs_with_enough_due_get_equal_shares(world: World) -> None:
    runs = [world.run() for _ in range(5)]
    for run in runs:
        insert_due(world, run, 50)
    assert per_run(claim_batch(world, 100)) == dict.fromkeys(runs, 20)


def test_unused_shares_go_to_the_other_runs(world: World) -> None:
    runs = [world.run() for _ in range(4)]
    for run, count in zip(runs, (1, 5, 200, 200), strict=True):
        insert_due(world, run, count)
    claimed = per_run(claim_batch(world, 100))
    assert (claimed[runs[0]], claimed[runs[1]]) == (1, 5)
    assert claimed[runs[2]] + claimed[runs[3]] == 94
    assert abs(claimed[runs[2]] - claimed[runs[3]]) <= 2


def test_a_batch_smaller_than_the_number_of_runs_takes_one_of_each_of_some(world: World) -> None:
    for _ in range(30):
        insert_due(world, world.run(world.campaign()), 5)
    assert sorted(per_run(claim_batch(world, 10)).values()) == [1] * 10


def test_no_run_is_always_left_out_of_small_batches(world: World) -> None:
    config = world.campaign()
    runs = [world.run(config) for _ in range(12)]
    for run in runs:
        insert_due(world, run, 1)
    served: set[UUID] = set()
    for _ in range(100):  # one that each time has 1 in 3 chances is missed by all with 2 in 10**18
        with world.connection.transaction(force_rollback=True):
            served |= set(claim(world, dict.fromkeys(runs, 4), 4))
    assert served == set(runs)


@pytest.mark.parametrize("seed", range(4))
def test_quotas_and_batch_size_are_respected_and_nothing_within_them_is_left(world: World, seed: int) -> None:
    chance = random.Random(seed)
    config = world.campaign()
    runs = [world.run(config) for _ in range(7)]
    for _ in range(12):
        with world.connection.transaction(force_rollback=True):
            due = {run: chance.choice([0, 1, 2, 7, 30]) for run in runs}
            quotas = {run: chance.choice([0, 1, 3, 5, 12, 100]) for run in runs}
            batch_size = chance.choice([1, 3, 8, 21, 60, 400])
            for run, count in due.items():
                insert_due(world, run, count)
            claimed = claim(world, quotas, batch_size)
            most = {run: min(due[run], quotas[run]) for run in runs}
            assert all(claimed[run] <= most[run] for run in runs), (due, quotas, batch_size, claimed)
            assert claimed.total() == min(batch_size, sum(most.values())), (due, quotas, batch_size, claimed)


def test_a_quota_holds_over_all_rounds(world: World) -> None:
    config = world.campaign()
    large, small, *idle = (world.run(config) for _ in range(10))
    insert_due(world, large, 200)
    insert_due(world, small, 15)
    # First 10 each, then 40 and 5, then the rest of the first one's quota.
    assert claim(world, {large: 60, small: 200, **dict.fromkeys(idle, 200)}, 100) == {large: 60, small: 15}


# Due times ------------------------------------------------------------------------------------------------------------


def test_only_due_messages_are_claimed_the_oldest_first(world: World) -> None:
    run, now = world.run(), world.value("SELECT campaign_now()")
    old = world.due_message(run, scheduled_at=now - 9 * MINUTE)
    retried = world.due_message(run, scheduled_at=now - 30 * MINUTE, next_attempt_at=now - 5 * MINUTE)
    unscheduled = world.due_message(run, scheduled_at=None, created_at=now - 7 * MINUTE)
    world.due_message(run, scheduled_at=now + MINUTE)
    world.due_message(run, next_attempt_at=now + MINUTE)
    batch = claim_batch(world)
    assert [row.message_id for row in batch.rows] == [old, unscheduled, retried]


def test_the_oldest_are_taken_when_not_all_fit(world: World) -> None:
    run, now = world.run(), world.value("SELECT campaign_now()")
    by_age = [world.due_message(run, scheduled_at=now - age * MINUTE) for age in (1, 30, 2, 20, 3)]
    assert claimed_ids(claim_batch(world, 2)) == {by_age[1], by_age[3]}


def test_due_times_follow_the_database_clock(world: World) -> None:
    run, now = world.run(), world.value("SELECT campaign_now()")
    later = world.due_message(run, scheduled_at=now + timedelta(hours=5))
    assert not claim_batch(world).rows
    world.move_clock(timedelta(hours=5, minutes=1))
    assert claimed_ids(claim_batch(world)) == {later}


def test_a_claimed_message_is_leased_and_says_to_whom(world: World) -> None:
    due = world.due_message(world.run())
    batch = claim_batch(world, lease_seconds=77.0)
    row = message(world, due)
    assert (row["status"], row["lease_owner"], str(row["lease_token"])) == ("queued", "test", batch.token)
    assert row["lease_expires_at"] - row["queued_at"] == timedelta(seconds=77)
    assert not claim_batch(world).rows


@pytest.mark.parametrize("status", ["sent", "replied", "failed", "skipped"])
def test_finished_messages_are_not_claimed(world: World, status: str) -> None:
    run = world.run()
    world.due_message(run, status=status)
    world.due_message(run, scheduled_at=world.value("SELECT campaign_now() + interval '1 hour'"))
    assert not claim_batch(world).rows


@pytest.mark.parametrize("moment", ["infinity", "9999-12-31 23:59:59+00", "12000-01-01 00:00:00+00"])
def test_a_message_that_is_never_due_does_no_harm(world: World, moment: str) -> None:
    held, open_run = world.run(), world.run()
    waiting, due = world.due_message(held), world.due_message(open_run)
    world.do("UPDATE campaign_messages SET scheduled_at = %s::timestamptz WHERE id = %s", moment, waiting)
    assert claimed_ids(claim_batch(world)) == {due}
    assert not look(world).is_due


def test_a_message_due_since_ever_is_skipped_as_too_old(world: World) -> None:
    run = world.run()
    oldest, due = world.due_message(run), world.due_message(run)
    world.do("UPDATE campaign_messages SET scheduled_at = '-infinity' WHERE id = %s", oldest)
    assert look(world).is_due
    assert claimed_ids(claim_batch(world)) == {due}
    assert world.value("SELECT error_code FROM campaign_messages WHERE id = %s", oldest) == "too_old"


# Concurrency ----------------------------------------------------------------------------------------------------------


def test_eight_claimers_at_once_claim_everything_and_nothing_twice(world: World) -> None:
    for _ in range(4):
        insert_due(world, world.run(), 200)
    queue = Queue(world.url)
    claimed: list[UUID] = []

    async def claimer(number: int) -> None:
        while len(claimed) < 800:
            batch = await queue.claim_batch(BatchOptions(batch_size=17 + number, owner=f"claimer {number}"))
            claimed.extend(row.message_id for row in batch.rows)

    async def main() -> None:
        await asyncio.wait_for(asyncio.gather(*(claimer(number) for number in range(8))), 60)

    asyncio.run(main())
    assert len(claimed) == len(set(claimed)) == 800


def test_eight_threads_that_only_claim_never_get_the_same_message(world: World) -> None:
    config = world.campaign()
    runs = [world.run(config) for _ in range(3)]
    for run in runs:
        insert_due(world, run, 150)

    def claimer(number: int) -> list[UUID]:
        token, mine = uuid4(), []
        with psycopg.connect(world.url, autocommit=True, row_factory=dict_row) as connection:
            while True:
                found = connection.execute(
                    statement("claim_messages"),
                    {
                        "run_ids": runs,
                        "quotas": [450] * 3,
                        "batch_size": 9 + number,
                        "token": token,
                        "owner": f"thread {number}",
                        "lease_seconds": 120.0,
                        "tried_ids": None,
                        "ahead_seconds": 0.0,
                    },
                ).fetchall()
                mine += [row["message_id"] for row in found]
                left = connection.execute(
                    "SELECT count(*) AS n FROM campaign_messages WHERE status = 'pending'"
                ).fetchone()
                if not found and left and left["n"] == 0:
                    return mine

    with ThreadPoolExecutor(8) as pool:
        claimed = [message_id for mine in pool.map(claimer, range(8)) for message_id in mine]
    assert len(claimed) == len(set(claimed)) == 450


def test_a_claimer_skips_rows_that_another_has_not_committed(world: World) -> None:
    config = world.campaign()
    first, second = world.run(config), world.run(config)
    insert_due(world, first, 5)
    insert_due(world, second, 5)
    with psycopg.connect(world.url, row_factory=dict_row) as other:  # a transaction that stays open
        held = other.execute(
            statement("claim_messages"),
            {
                "run_ids": [first],
                "quotas": [3],
                "batch_size": 3,
                "token": uuid4(),
                "owner": "slow",
                "lease_seconds": 120.0,
                "tried_ids": None,
                "ahead_seconds": 0.0,
            },
        ).fetchall()
        name = world.value("SELECT current_database()")
        world.do(f"ALTER DATABASE {name} SET lock_timeout = '500ms'")  # whoever blocks, fails
        batch = claim_batch(world)
        assert len(held) == 3
        assert len(batch.rows) == 7
        assert not claimed_ids(batch) & {row["message_id"] for row in held}


def test_dead_leases_and_old_messages_that_another_has_locked_block_no_claimer(world: World) -> None:
    run, now = world.run(), world.value("SELECT campaign_now()")
    dead = world.due_message(run, status="sending", lease_token=uuid4(), lease_expires_at=now - MINUTE)
    old = world.due_message(run, scheduled_at=now - timedelta(hours=3))
    due = world.due_message(run)
    with psycopg.connect(world.url) as other:
        other.execute("SELECT 1 FROM campaign_messages WHERE id = ANY (%s) FOR UPDATE", [[dead, old]])
        world.do(f"ALTER DATABASE {world.value('SELECT current_database()')} SET lock_timeout = '500ms'")
        batch = claim_batch(world)
    assert (claimed_ids(batch), batch.recovered, batch.expired) == ({due}, 0, 0)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("idle_in_transaction_session_timeout", "30s"), ("jit", "off")],
    ids=["the server ends a claimer that falls asleep", "the server compiles no plan"],
)
def test_a_claims_transaction_has_its_own_settings(
    world: World, monkeypatch: pytest.MonkeyPatch, setting: str, value: str
) -> None:
    world.due_message(world.run())

    seen: list[Any] = []

    async def run(self: Any) -> queue.Batch:
        connection: Connection = self._connection
        seen.append(await (await connection.execute("SELECT current_setting(%s) AS value", [setting])).fetchone())
        return queue.Batch()

    monkeypatch.setattr(queue._ClaimBatch, "run", run)
    claim_batch(world)
    assert seen == [{"value": value}]


# Waiting --------------------------------------------------------------------------------------------------------------

Arrange = Callable[[World], UUID]


def campaign_with(**columns: Any) -> Arrange:
    return lambda world: world.run(world.campaign(**columns))


def campaign_from(start: str, end: str | None) -> Arrange:
    """Written in SQL: PostgreSQL accepts 24:00 as a time of day, Python does not."""

    def arrange(world: World) -> UUID:
        config = world.campaign(timezone="Australia/Lord_Howe")
        world.do(
            "UPDATE campaign_configs SET start_time = %s::time, end_time = %s::time WHERE id = %s", start, end, config
        )
        return world.run(config)

    return arrange


def run_without_campaign(world: World) -> UUID:
    run = world.run()
    world.do("UPDATE campaign_runs SET config_id = NULL WHERE id = %s", run)
    return run


def run_of_deleted_campaign(world: World) -> UUID:
    config = world.campaign()
    run = world.run(config)
    world.do("DELETE FROM campaign_configs WHERE id = %s", config)
    return run


def inbox_in_state(status: str | None) -> Arrange:
    def arrange(world: World) -> UUID:
        workspace = world.workspace()
        return world.run(world.campaign(workspace, world.inbox(workspace, status=status)))

    return arrange


def without_inbox(world: World) -> UUID:
    config = world.campaign()
    world.do("UPDATE campaign_configs SET inbox_id = NULL WHERE id = %s", config)
    return world.run(config)


def closed_window(world: World) -> UUID:
    """From two hours on, for one hour, in Kathmandu."""
    local = world.value("SELECT campaign_now() AT TIME ZONE 'Asia/Kathmandu'")
    start, end = ((local + timedelta(hours=h)).time().replace(second=0, microsecond=0) for h in (2, 3))
    return world.run(world.campaign(start_time=start, end_time=end, timezone="Asia/Kathmandu"))


WAITS: dict[str, tuple[Arrange, str, str]] = {
    "window_closed": (closed_window, "window_closed", "Asia/Kathmandu"),
    "inactive": (campaign_with(is_active=False), "campaign_inactive", "switched off"),
    "disconnected": (inbox_in_state("disconnected"), "inbox_disconnected", "is disconnected, not connected"),
    "of_no_status": (inbox_in_state(""), "inbox_disconnected", "of no known status"),
    "without_instance": (inbox_in_state(None), "inbox_without_instance", "Link one in inbox_instances"),
    "without_inbox": (without_inbox, "no_inbox", "campaign_configs.inbox_id"),
    "unknown_zone": (
        campaign_with(timezone="America/Sao_Paolo"),
        "invalid_window",
        "did you mean 'America/Sao_Paulo'?",
    ),
    "unknown_frequency": (campaign_with(frequency="hourly"), "invalid_window", "'daily' or 'weekdays'"),
    "impossible_start": (campaign_from("24:00", None), "invalid_window", "start_time is '24:00:00'"),
    "half_seconds": (campaign_with(start_time="08:00:00.5"), "invalid_window", "start_time is '08:00:00.5'"),
    "without_campaign": (run_without_campaign, "no_campaign", "config_id"),
    "deleted_campaign": (run_of_deleted_campaign, "no_campaign", "config_id"),
}


@pytest.mark.parametrize("case", WAITS)
def test_a_run_that_cannot_be_sent_waits_with_a_reason_and_affects_no_other(world: World, case: str) -> None:
    arrange, code, words = WAITS[case]
    waiting, neighbour = arrange(world), world.run()
    insert_due(world, waiting, 3)
    due = world.due_message(neighbour)
    batch = claim_batch(world)
    assert claimed_ids(batch) == {due}
    row = run_row(world, waiting)
    assert row["wait_code"] == code
    assert words in row["wait_reason"]
    assert row["wait_reason"].endswith((".", "?"))
    assert [(wait.run_id, wait.code) for wait in batch.waits] == [(waiting, code)]
    assert {m["status"] for m in world.messages(waiting)} == {"pending"}
    assert run_row(world, neighbour)["wait_code"] is None


def test_a_closed_window_says_when_it_opens(world: World) -> None:
    run = closed_window(world)
    world.due_message(run)
    claim_batch(world)
    until, now = run_row(world, run)["wait_until"], datetime.now(UTC)
    assert timedelta(hours=1, minutes=58) < until - now <= timedelta(hours=2)


@pytest.mark.parametrize("status", ["paused", "cancelled", "failed", "completed"])
def test_a_run_that_is_not_running_is_not_claimed(world: World, status: str) -> None:
    run, neighbour = world.run(status=status), world.run()
    world.due_message(run)
    due = world.due_message(neighbour)
    assert claimed_ids(claim_batch(world)) == {due}


def test_a_window_that_ends_at_twenty_four_is_open_until_midnight(world: World) -> None:
    due = world.due_message(campaign_from("00:00", "24:00")(world))
    assert claimed_ids(claim_batch(world)) == {due}


def test_an_inbox_with_one_connected_instance_among_others_is_connected(world: World) -> None:
    workspace = world.workspace()
    inbox = world.inbox(workspace, status="disconnected")
    second = world.insert("instances", workspace_id=workspace, name="segundo", status="connected")
    world.insert("inbox_instances", inbox_id=inbox, instance_id=second)
    due = world.due_message(world.run(world.campaign(workspace, inbox)))
    assert claimed_ids(claim_batch(world)) == {due}


def test_a_wait_is_cleared_when_its_cause_is_gone(world: World) -> None:
    run = inbox_in_state("disconnected")(world)
    due = world.due_message(run)
    claim_batch(world)
    world.do("UPDATE instances SET status = 'connected'")
    assert claimed_ids(claim_batch(world)) == {due}
    row = run_row(world, run)
    assert (row["wait_code"], row["wait_reason"], row["wait_until"]) == (None, None, None)


def test_an_unchanged_wait_is_not_written_again(world: World) -> None:
    run = closed_window(world)
    world.due_message(run)
    claim_batch(world)
    version = world.value("SELECT xmin::text FROM campaign_runs WHERE id = %s", run)
    claim_batch(world)
    assert world.value("SELECT xmin::text FROM campaign_runs WHERE id = %s", run) == version


def test_a_run_without_anything_due_waits_silently(world: World) -> None:
    run = inbox_in_state("disconnected")(world)
    world.due_message(run, scheduled_at=world.value("SELECT campaign_now() + interval '1 hour'"))
    assert claim_batch(world).waits == []
    assert run_row(world, run)["wait_code"] == "inbox_disconnected"


# Claims ahead of planned times ----------------------------------------------------------------------------------------


def test_a_claim_ahead_takes_messages_planned_soon_and_no_retries(world: World) -> None:
    run = world.run()
    now = world.value("SELECT campaign_now()")
    soon, later, again, due = (
        world.due_message(run, scheduled_at=now + timedelta(seconds=seconds), next_attempt_at=next_attempt)
        for seconds, next_attempt in ((80, None), (100, None), (-300, now + timedelta(seconds=30)), (-1, None))
    )
    assert claimed_ids(claim_batch(world, 10)) == {due}
    assert claimed_ids(claim_batch(world, 10, ahead=timedelta(seconds=90))) == {soon}
    assert {message(world, each)["status"] for each in (later, again)} == {"pending"}
