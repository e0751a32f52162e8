import asyncio
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from campaign_pipeline.adapters.queue import BatchOptions, Queue
from campaign_pipeline_tests.factories import PLAIN_NAMES, World
from campaign_pipeline_tests.sql.holder import (
    Holder,
    claim_batch,
    claimed_ids,
    insert_due,
    message,
    rows,
    run_row,
    run_statement,
)

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)


def open_pause(
    world: World,
    scope: str,
    scope_id: Any,
    kind: str = "systemic",
    seconds: float | None = None,
    code: str = "trouble",
    message_id: UUID | None = None,
) -> float | None:
    """Return the seconds until it may be probed; None if nothing changed."""
    opened = rows(
        world,
        "open_pause",
        scope=scope,
        scope_id=str(scope_id),
        kind=kind,
        code=code,
        reason="There is trouble.",
        seconds=seconds,
        message_id=message_id,
    )
    return round(float(opened[0]["seconds"]), 1) if opened else None


def pauses(world: World) -> list[dict[str, Any]]:
    return world.all("SELECT * FROM campaign_pauses ORDER BY scope, scope_id")


def inbox_of(world: World, run: UUID) -> UUID:
    found: UUID = world.value(
        "SELECT c.inbox_id FROM campaign_runs r JOIN campaign_configs c ON c.id = r.config_id WHERE r.id = %s", run
    )
    return found


@pytest.fixture
def run(world: World) -> UUID:
    return world.run()


class Clock:
    """The database's clock, moved step by step."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._offset = timedelta(0)

    def move_on(self, by: timedelta) -> None:
        self._offset += by
        self._world.move_clock(self._offset)


@pytest.fixture
def clock(world: World) -> Clock:
    return Clock(world)


def taken(world: World, batch: Any) -> Holder:
    """A shard that took over a batch."""
    holder = Holder(world)
    assert set(holder.take_over(claimed_ids(batch), UUID(batch.token)).values()) == {"taken"}
    return holder


# Opening --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "seconds"), [("systemic", 60.0), ("throttled", 5.0)])
def test_a_pause_lasts_a_minute_and_a_slow_down_five_seconds_unless_the_provider_says(
    world: World, kind: str, seconds: float
) -> None:
    assert open_pause(world, "inbox", 1, kind) == seconds
    assert open_pause(world, "inbox", 2, kind, seconds=17.0) == 17.0
    assert open_pause(world, "inbox", 3, kind, seconds=0.0) == 0.0


def test_a_pause_whose_cause_stays_waits_twice_as_long_each_time_up_to_a_quarter_of_an_hour(
    world: World, clock: Clock
) -> None:
    waits = []
    for _ in range(7):
        wait = open_pause(world, "provider", "openrouter")
        assert wait is not None
        waits.append(wait)
        clock.move_on(wait * SECOND + SECOND)
    assert waits == [60.0, 120.0, 240.0, 480.0, 900.0, 900.0, 900.0]


def test_a_slow_down_that_comes_again_doubles_up_to_a_minute_and_is_forgotten_after_half_an_hour(
    world: World, clock: Clock
) -> None:
    waits = []
    for _ in range(6):
        wait = open_pause(world, "inbox", 1, "throttled")
        assert wait is not None
        waits.append(wait)
        clock.move_on(wait * SECOND + SECOND)
    assert waits == [5.0, 10.0, 20.0, 40.0, 60.0, 60.0]
    assert run_statement(world, "drop_spent_throttles") == 0
    clock.move_on(31 * MINUTE)
    assert run_statement(world, "drop_spent_throttles") == 1
    assert open_pause(world, "inbox", 1, "throttled") == 5.0


def test_many_that_fail_together_of_one_cause_count_once(world: World) -> None:
    for _ in range(20):
        assert open_pause(world, "inbox", 1) == 60.0
    assert pauses(world)[0]["failures"] == 1


def test_a_longer_known_wait_wins_and_a_shorter_one_does_not(world: World) -> None:
    open_pause(world, "inbox", 1, "throttled", seconds=30.0)
    assert open_pause(world, "inbox", 1, "throttled", seconds=90.0) == 90.0
    assert open_pause(world, "inbox", 1, "throttled", seconds=10.0) == 90.0


def test_a_mere_throttle_neither_replaces_nor_shortens_a_systemic_pause(world: World) -> None:
    open_pause(world, "inbox", 1, code="disconnected")
    assert open_pause(world, "inbox", 1, "throttled", seconds=600.0) is None
    (row,) = pauses(world)
    assert (row["kind"], row["code"], row["until"] - row["since"]) == ("systemic", "disconnected", MINUTE)


def test_a_systemic_pause_replaces_a_throttle_and_is_a_first_failure(world: World, clock: Clock) -> None:
    for _ in range(5):
        open_pause(world, "inbox", 1, "throttled")
        clock.move_on(2 * MINUTE)
    assert open_pause(world, "inbox", 1, code="disconnected") == 60.0
    (row,) = pauses(world)
    assert (row["kind"], row["code"], row["failures"]) == ("systemic", "disconnected", 1)
    assert row["until"] - row["since"] == MINUTE


@pytest.mark.parametrize("seconds", [1e9, 1e300])
def test_an_absurd_retry_after_is_capped_at_a_week(world: World, seconds: float) -> None:
    for _ in range(2):
        assert open_pause(world, "inbox", 1, "throttled", seconds=seconds) == 604_800.0


def test_a_shard_reads_what_is_paused_now(world: World, clock: Clock) -> None:
    open_pause(world, "inbox", 1, "throttled", seconds=10.0)
    open_pause(world, "provider", "openrouter")
    clock.move_on(11 * SECOND)
    (read,) = rows(world, "read_pauses")
    assert (read["scope"], read["kind"], round(read["seconds"])) == ("provider", "systemic", 49)
    clock.move_on(2 * MINUTE)
    assert [row["scope"] for row in rows(world, "read_pauses")] == ["provider"]


# Waiting --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["run", "inbox", "workspace", "model", "provider"])
def test_a_paused_scope_holds_its_runs_says_why_and_harms_no_other(world: World, run: UUID, scope: str) -> None:
    workspace = world.workspace(model="other/model")
    elsewhere = world.run(world.campaign(workspace))
    scope_id = {
        "run": run,
        "inbox": inbox_of(world, run),
        "workspace": world.value("SELECT workspace_id FROM ai_agents WHERE model = 'openai/gpt-4o-mini'"),
        "model": "openai/gpt-4o-mini",
        "provider": "openrouter",
    }[scope]
    held, free = world.due_message(run), world.due_message(elsewhere)
    open_pause(world, scope, scope_id, code="no_credit")
    batch = claim_batch(world)
    assert claimed_ids(batch) == (set() if scope == "provider" else {free})
    row = run_row(world, run)
    assert (row["wait_code"], row["wait_reason"]) == ("no_credit", "There is trouble.")
    assert row["wait_until"] == pauses(world)[0]["until"]
    assert message(world, held)["status"] == "pending"


def test_a_prolonged_pause_updates_the_waits_end(world: World, run: UUID) -> None:
    world.due_message(run)
    open_pause(world, "inbox", inbox_of(world, run), "throttled", seconds=20.0)
    claim_batch(world)
    open_pause(world, "inbox", inbox_of(world, run), "throttled", seconds=50.0)
    claim_batch(world)
    assert run_row(world, run)["wait_until"] == pauses(world)[0]["until"]


def test_after_a_short_slow_down_everything_continues_at_once(world: World, run: UUID, clock: Clock) -> None:
    insert_due(world, run, 5)
    open_pause(world, "inbox", inbox_of(world, run), "throttled", seconds=30.0)
    assert not claim_batch(world).rows
    assert run_row(world, run)["wait_code"] == "slowed_down"
    clock.move_on(31 * SECOND)
    batch = claim_batch(world)
    assert (batch.spread, len(batch.rows)) == (0, 5)


def test_after_a_long_slow_down_nothing_has_become_too_old_and_nothing_bursts(
    world: World, run: UUID, clock: Clock
) -> None:
    insert_due(world, run, 5)
    open_pause(world, "inbox", inbox_of(world, run), "throttled", seconds=3 * 3600.0, code="daily_limit")
    assert not claim_batch(world).rows
    assert run_row(world, run)["wait_code"] == "daily_limit"
    clock.move_on(timedelta(hours=3, seconds=1))
    batch = claim_batch(world)
    assert (batch.spread, batch.expired, len(batch.rows)) == (5, 0, 1)


def test_a_slow_down_does_not_make_a_longer_hold_forgotten(world: World, run: UUID, clock: Clock) -> None:
    insert_due(world, run, 3)
    world.do("UPDATE instances SET status = 'disconnected'")
    claim_batch(world)
    clock.move_on(timedelta(hours=2))
    world.do("UPDATE instances SET status = 'connected'")
    open_pause(world, "inbox", inbox_of(world, run), "throttled", seconds=30.0)
    assert not claim_batch(world).rows
    clock.move_on(31 * SECOND)
    batch = claim_batch(world)
    assert (batch.spread, batch.expired, len(batch.rows)) == (3, 0, 1)


# Probing --------------------------------------------------------------------------------------------------------------


def paused_inbox_with(world: World, run: UUID, count: int) -> None:
    insert_due(world, run, count, lead_id=world.lead())
    open_pause(world, "inbox", inbox_of(world, run), code="disconnected")


def test_when_the_time_is_up_exactly_one_message_may_try(world: World, run: UUID, clock: Clock) -> None:
    paused_inbox_with(world, run, 5)
    assert not claim_batch(world).rows
    clock.move_on(61 * SECOND)
    (probe,) = claim_batch(world).rows
    assert pauses(world)[0]["probe_message_id"] == probe.message_id
    assert not claim_batch(world).rows


def test_a_probe_that_goes_out_closes_the_circuit(world: World, run: UUID, clock: Clock) -> None:
    paused_inbox_with(world, run, 5)
    clock.move_on(61 * SECOND)
    batch = claim_batch(world)
    holder = taken(world, batch)
    (probe,) = claimed_ids(batch)
    assert holder.start_generating(probe) == "go"
    assert holder.begin_new(probe) == "go"
    assert len(pauses(world)) == 1
    holder.sent(probe)
    assert pauses(world) == []
    after = claim_batch(world)
    assert after.expired == 0
    assert len(after.rows) + after.spread > 0


def test_a_probe_that_fails_reopens_the_circuit_for_longer(world: World, run: UUID, clock: Clock) -> None:
    paused_inbox_with(world, run, 5)
    for wait in (120.0, 240.0, 480.0):
        clock.move_on(timedelta(seconds=1000))
        batch = claim_batch(world)
        (probe,) = claimed_ids(batch)
        holder = taken(world, batch)
        assert holder.begin_new(probe) == "go"
        assert open_pause(world, "inbox", inbox_of(world, run), code="disconnected") == wait
        holder.settle(probe, part_no=1, attempt_no=1, outcome="planned", status="pending", error_class="systemic")
        assert pauses(world)[0]["probe_message_id"] is None
        assert not claim_batch(world).rows
        world.do("DELETE FROM campaign_message_parts")


def test_a_probe_that_never_reports_is_followed_by_another_after_a_minute(
    world: World, run: UUID, clock: Clock
) -> None:
    paused_inbox_with(world, run, 2)
    clock.move_on(61 * SECOND)
    (first,) = claimed_ids(claim_batch(world, lease_seconds=600.0))
    clock.move_on(50 * SECOND)
    assert not claim_batch(world).rows
    clock.move_on(11 * SECOND)
    (second,) = claimed_ids(claim_batch(world))
    assert second != first
    assert pauses(world)[0]["probe_message_id"] == second


def test_of_two_concurrent_claimers_one_sends_the_probe(world: World, run: UUID, clock: Clock) -> None:
    paused_inbox_with(world, run, 50)
    clock.move_on(61 * SECOND)

    async def main() -> list[int]:
        options = BatchOptions(batch_size=10, owner="test")
        batches = await asyncio.gather(*(Queue(world.url).claim_batch(options) for _ in range(6)))
        return [len(batch.rows) for batch in batches]

    assert sum(asyncio.run(main())) == 1


def test_a_claimer_does_not_wait_for_one_that_is_about_to_probe(world: World, run: UUID, clock: Clock) -> None:
    paused_inbox_with(world, run, 5)
    free = world.due_message(world.run())
    clock.move_on(61 * SECOND)
    with psycopg.connect(world.url, options=PLAIN_NAMES) as other:
        other.execute("SELECT 1 FROM campaign_pauses FOR UPDATE")
        world.do(f"ALTER DATABASE {world.value('SELECT current_database()')} SET lock_timeout = '500ms'")
        assert claimed_ids(claim_batch(world)) == {free}


def test_one_run_probes_a_scope_that_several_share(world: World, clock: Clock) -> None:
    config = world.campaign()
    for _ in range(4):
        insert_due(world, world.run(config), 3)
    open_pause(world, "provider", "openrouter")
    clock.move_on(61 * SECOND)
    assert len(claim_batch(world).rows) == 1


def test_two_paused_scopes_do_not_keep_each_other_from_being_probed(world: World, run: UUID, clock: Clock) -> None:
    """No credit and a disconnected inbox at once: one message probes both."""
    insert_due(world, run, 3, lead_id=world.lead())
    open_pause(world, "inbox", inbox_of(world, run), code="disconnected")
    open_pause(world, "provider", "openrouter", code="no_credit")
    clock.move_on(61 * SECOND)
    batch = claim_batch(world)
    (probe,) = claimed_ids(batch)
    assert {row["probe_message_id"] for row in pauses(world)} == {probe}
    holder = taken(world, batch)
    assert holder.start_generating(probe) == "go"
    assert holder.begin_new(probe) == "go"
    assert [row["scope"] for row in pauses(world)] == ["inbox"]
    holder.sent(probe)
    assert pauses(world) == []


def test_a_scope_is_not_probed_while_another_holds_the_run_for_longer(world: World, run: UUID, clock: Clock) -> None:
    insert_due(world, run, 3)
    open_pause(world, "inbox", inbox_of(world, run), seconds=30.0)
    open_pause(world, "provider", "openrouter", seconds=600.0)
    clock.move_on(61 * SECOND)
    assert not claim_batch(world).rows
    assert {row["probe_message_id"] for row in pauses(world)} == {None}


def test_a_run_held_by_something_else_sends_no_probe(world: World, run: UUID, clock: Clock) -> None:
    insert_due(world, run, 3)
    open_pause(world, "inbox", inbox_of(world, run))
    world.do("UPDATE instances SET status = 'disconnected'")
    clock.move_on(61 * SECOND)
    assert not claim_batch(world).rows
    world.do("UPDATE instances SET status = 'connected'")
    assert len(claim_batch(world).rows) == 1


def test_a_scope_that_no_due_message_needs_is_not_probed(world: World, run: UUID, clock: Clock) -> None:
    open_pause(world, "inbox", uuid4())
    open_pause(world, "inbox", inbox_of(world, run))
    clock.move_on(61 * SECOND)
    claim_batch(world)
    assert {row["probe_message_id"] for row in pauses(world)} == {None}
