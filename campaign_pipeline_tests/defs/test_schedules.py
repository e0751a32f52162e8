"""The schedule: its ticks decide by the database's clock, which these tests move."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import dagster as dg
import psycopg
import pytest
from dagster import DagsterInstance, DagsterRunStatus
from dagster._core.events import StepMaterializationData

from campaign_pipeline.adapters.operations import Operations
from campaign_pipeline.adapters.queue import BatchOptions, Queue
from campaign_pipeline.definitions import defs
from campaign_pipeline.defs.jobs import process_campaign_queue, retry_failed_messages
from campaign_pipeline.defs.lost_runs import lost_run_cleanup
from campaign_pipeline.defs.resources import LanguageModelResource, QueueDatabase
from campaign_pipeline.defs.schedules import (
    BACK_FILL,
    DRAINING_SINCE,
    WHY,
    next_batch_after_run,
    process_campaign_queue_every_minute,
)
from campaign_pipeline.defs.shard import run_async
from campaign_pipeline.defs.tags import MESSAGES
from campaign_pipeline_tests.factories import World

DAY = datetime(2027, 3, 1, tzinfo=UTC)  # a Monday
MINUTE = timedelta(minutes=1)


@pytest.fixture
def instance(environment: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[DagsterInstance]:
    environment.setenv("OPENROUTER_API_KEY", "sk-or-test-key-of-no-account")
    with DagsterInstance.local_temp(str(tmp_path), overrides={"telemetry": {"enabled": False}}) as instance:
        yield instance


def tick(instance: DagsterInstance, at: datetime = DAY) -> dg.RunRequest | str:
    """Return the result of one tick of the schedule: a request, or the reason for none."""
    with dg.build_schedule_context(
        instance=instance,
        scheduled_execution_time=at,
        resources={"database": QueueDatabase(), "language_model": LanguageModelResource()},
    ) as context:
        data = process_campaign_queue_every_minute.evaluate_tick(context)
    if data.run_requests:
        (request,) = data.run_requests
        return request
    assert data.skip_message
    return data.skip_message


def set_clock(world: World, to: datetime) -> None:
    real: datetime = world.value("SELECT now()")
    world.move_clock(to - real)


def claim(world: World, size: int = 1000) -> list[dict[str, Any]]:
    """Return what the launched run's first step does."""
    batch = run_async(Queue(world.url).claim_batch(BatchOptions(batch_size=size, owner="test")))
    return [asdict(row) for row in batch.rows]


def finish(world: World, rows: list[dict[str, Any]]) -> None:
    """Return a short summary of its shards."""
    ids = [row["message_id"] for row in rows]
    world.do("UPDATE campaign_messages SET status = 'sent', finished_at = campaign_now() WHERE id = ANY (%s)", ids)
    run_async(Queue(world.url).close_runs())


def test_a_day_of_ticks_launches_when_something_can_be_done_and_says_what_it_waits_for_when_not(
    world: World, instance: DagsterInstance
) -> None:
    set_clock(world, DAY)
    workspace = world.workspace()
    office = world.run(world.campaign(workspace, start_time="09:00", end_time="18:00", timezone="UTC"), name="Office")
    always = world.run(world.campaign(workspace), name="Always")
    expected_sends = {}
    for hour in (6, 8, 10, 12, 17):  # two of them before the window opens
        expected_sends[world.due_message(office, scheduled_at=DAY + timedelta(hours=hour))] = max(hour, 9)
    for hour in (3, 20):
        expected_sends[world.due_message(always, scheduled_at=DAY + timedelta(hours=hour))] = hour
    launched: list[datetime] = []
    said: dict[datetime, str] = {}
    sent_at: dict[Any, int] = {}
    for step in range(24 * 4):
        at = DAY + step * timedelta(minutes=15)
        set_clock(world, at + timedelta(seconds=1))
        outcome = tick(instance, at)
        if isinstance(outcome, str):
            said[at] = outcome
            continue
        launched.append(at)
        assert outcome.run_key == at.isoformat()
        rows = claim(world)
        sent_at |= {row["message_id"]: at.hour for row in rows}
        finish(world, rows)
    assert sent_at == expected_sends
    # One a time of sending: what was due at 06:00 and 08:00 goes out when the window opens. That it is closed is
    # written down by the run of 03:00.
    assert [at.hour for at in launched] == [3, 9, 10, 12, 17, 20]
    assert said[DAY].startswith("The next message is due at 2027-03-01 00:00:00 (America/Sao_Paulo), in 3 hours")
    assert said[DAY + timedelta(hours=8, minutes=30)] == (
        "The due messages must wait. Office waits: The sending window is closed; it opens at 2027-03-01 09:00 (UTC)."
    )
    assert said[DAY + timedelta(hours=23)] == "No message waits: no run is running."


def test_an_idle_tick_is_one_statement(world: World, instance: DagsterInstance) -> None:
    world.due_message(world.run(), scheduled_at=world.value("SELECT campaign_now() + interval '1 hour'"))
    asked: list[str] = []
    execute = psycopg.Connection.execute

    def counted(self: Any, query: Any, *values: Any, **named: Any) -> Any:
        asked.append(str(query))
        return execute(self, query, *values, **named)

    with patch.object(psycopg.Connection, "execute", counted), Operations(world.url) as operations:
        look = operations.look()
    assert not look.is_due
    assert len([query for query in asked if not query.startswith("SET ")]) == 1


def test_a_tick_looks_up_by_index_however_long_the_queue_is(world: World, instance: DagsterInstance) -> None:
    run = world.run()
    world.do(
        "INSERT INTO campaign_messages (run_id, scheduled_at, status, finished_at)"
        " SELECT %s, now() + interval '1 day', CASE WHEN n %% 2 = 0 THEN 'pending' ELSE 'sent' END, now()"
        " FROM generate_series(1, 20000) n",
        run,
    )
    world.do("ANALYZE campaign_messages")
    before = world.value("SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'campaign_messages'")
    assert "is due at" in str(tick(instance))
    world.do("SELECT pg_stat_force_next_flush()")
    after = world.value("SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'campaign_messages'")
    assert after - before < 10


def test_a_tick_that_is_evaluated_twice_asks_for_the_same_run(world: World, instance: DagsterInstance) -> None:
    world.due_message(world.run())
    first, again, next_one = tick(instance, DAY), tick(instance, DAY), tick(instance, DAY + MINUTE)
    assert isinstance(first, dg.RunRequest)
    assert isinstance(again, dg.RunRequest)
    assert isinstance(next_one, dg.RunRequest)
    assert first.run_key == again.run_key != next_one.run_key
    assert first.tags[WHY] == "messages of 1 runs are due"


def a_run(instance: DagsterInstance, status: DagsterRunStatus, **named: Any) -> dg.DagsterRun:
    """A run; a started one has claimed its batch, unless `tags` says otherwise."""
    job = defs.resolve_job_def(named.pop("job", process_campaign_queue.name))
    if status == DagsterRunStatus.STARTED:
        named.setdefault("tags", {MESSAGES: "3"})
    return instance.create_run_for_job(job, status=status, **named)


@pytest.mark.parametrize("status", [DagsterRunStatus.NOT_STARTED, DagsterRunStatus.STARTING, DagsterRunStatus.STARTED])
def test_no_run_is_launched_while_one_has_not_claimed_yet(
    world: World, instance: DagsterInstance, status: DagsterRunStatus
) -> None:
    world.due_message(world.run())
    waiting = a_run(instance, status, tags={})
    assert f"Run {waiting.run_id[:8]} is about to start" in str(tick(instance))


def test_runs_overlap_up_to_the_limit_and_no_further(
    world: World, instance: DagsterInstance, environment: pytest.MonkeyPatch
) -> None:
    world.due_message(world.run())
    environment.setenv("CAMPAIGN_RUNS_AT_ONCE", "2")
    a_run(instance, DagsterRunStatus.STARTED)
    assert isinstance(tick(instance), dg.RunRequest)
    a_run(instance, DagsterRunStatus.STARTED)
    assert "CAMPAIGN_RUNS_AT_ONCE allows 2." in str(tick(instance))


def of_a_dead_host(instance: DagsterInstance) -> list[dg.DagsterRun]:
    """The runs that a host without power leaves behind: one of each kind that Dagster treats as running."""
    kinds = (
        (DagsterRunStatus.STARTED, process_campaign_queue.name),
        (DagsterRunStatus.STARTED, process_campaign_queue.name),
        (DagsterRunStatus.STARTING, process_campaign_queue.name),
        (DagsterRunStatus.STARTED, retry_failed_messages.name),
    )
    return [a_run(instance, status, job=job) for status, job in kinds]


class CleanUp:
    """The sensor that ends lost runs, with its cursor."""

    def __init__(self, instance: DagsterInstance) -> None:
        self._instance = instance
        self._cursor: str | None = None

    def tick(self) -> str:
        """Return the answer of one tick."""
        with dg.build_sensor_context(self._instance, cursor=self._cursor) as context:
            told = lost_run_cleanup.evaluate_tick(context)
        self._cursor = told.cursor or self._cursor
        return told.skip_message or ""


def hold(world: World, message: Any, run: dg.DagsterRun) -> None:
    """Let a step of that run hold a message."""
    world.do(
        "UPDATE campaign_messages SET status = 'sending', lease_token = gen_random_uuid(), lease_owner = %s,"
        " lease_expires_at = campaign_now() + interval '2 minutes' WHERE id = %s",
        f"run {run.run_id[:8]} inbox_1234_000",
        message,
    )


def test_runs_of_a_host_without_power_are_ended_with_a_reason_and_stop_no_schedule(
    world: World, instance: DagsterInstance
) -> None:
    world.due_message(world.run())
    clean_up = CleanUp(instance)
    lost = of_a_dead_host(instance)
    assert "is about to start" in str(tick(instance))
    assert clean_up.tick() == "No run is lost."
    world.move_clock(4.5 * MINUTE)  # the sensor looks every minute: within 5.5 minutes
    assert clean_up.tick().startswith("Ended 4 lost runs: ")
    assert isinstance(tick(instance), dg.RunRequest)
    for run in lost:
        ended_run = instance.get_run_by_id(run.run_id)
        assert ended_run is not None
        assert ended_run.status == DagsterRunStatus.FAILURE
    (told,) = instance.all_logs(lost[0].run_id, of_type=dg.DagsterEventType.RUN_FAILURE)
    assert "the next batch takes it up where it stood" in str(told.dagster_event and told.dagster_event.message)
    assert clean_up.tick() == "No run is at work."


def test_a_run_that_holds_messages_or_has_just_said_something_is_at_work(
    world: World, instance: DagsterInstance, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("CAMPAIGN_RUNS_AT_ONCE", "2")
    clean_up = CleanUp(instance)
    held, _ = world.due_messages(world.run(), 2)
    holder, talker = (a_run(instance, DagsterRunStatus.STARTED) for _ in range(2))
    assert clean_up.tick() == "No run is lost."
    world.move_clock(6 * MINUTE)
    hold(world, held, holder)
    instance.report_engine_event("a step has started", talker)
    assert "2 runs are at work" in str(tick(instance))
    assert clean_up.tick() == "No run is lost."
    world.move_clock(12 * MINUTE)
    assert clean_up.tick() == f"Ended 1 lost runs: {talker.run_id[:8]}."
    world.move_clock(18 * MINUTE)
    assert clean_up.tick() == f"Ended 1 lost runs: {holder.run_id[:8]}."


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_run_on_a_host_with_a_wrong_clock_does_not_count_as_lost(
    world: World, instance: DagsterInstance, hours: int
) -> None:
    clean_up = CleanUp(instance)
    world.move_clock(hours * 60 * MINUTE)  # the database's time; Dagster's events bear the host's
    a_run(instance, DagsterRunStatus.STARTING)
    assert clean_up.tick() == "No run is lost."
    world.move_clock((hours * 60 + 3) * MINUTE)
    assert clean_up.tick() == "No run is lost."
    world.move_clock((hours * 60 + 6) * MINUTE)
    assert clean_up.tick().startswith("Ended 1 lost runs: ")


def test_a_run_with_a_present_process_counts_as_running_while_it_waits_for_workers(
    world: World, instance: DagsterInstance
) -> None:
    run = a_run(instance, DagsterRunStatus.STARTED)
    clean_up = CleanUp(instance)
    world.move_clock(30 * MINUTE)  # far longer than its leases, and no event in all that time
    with Operations(world.url) as operations:
        operations.note_presence(run.run_id, "host-a")
    assert clean_up.tick() == "No run is lost."
    world.move_clock(31 * MINUTE)
    assert clean_up.tick() == "No run is lost."
    world.move_clock(32 * MINUTE)
    world.due_message(world.run())
    assert isinstance(tick(instance), dg.RunRequest), "no schedule waits for the clean-up"
    assert clean_up.tick().startswith("Ended 1 lost runs: ")
    with Operations(world.url) as operations:
        assert operations.holders().silent(run.run_id) is None  # nor is it looked at again


def test_no_run_is_ended_while_its_leases_are_unknown(
    world: World, instance: DagsterInstance, environment: pytest.MonkeyPatch
) -> None:
    run = a_run(instance, DagsterRunStatus.STARTED)
    clean_up = CleanUp(instance)
    clean_up.tick()
    world.move_clock(6 * MINUTE)
    environment.setenv("CAMPAIGN_DATABASE_URL", "postgresql://127.0.0.1:1/none")
    assert clean_up.tick().startswith("It is unknown which runs still hold messages")
    assert [left.run_id for left in instance.get_runs(dg.RunsFilter(statuses=[DagsterRunStatus.STARTED]))] == [
        run.run_id
    ]


def test_without_the_models_key_no_run_is_launched_to_fail_every_minute(
    world: World, instance: DagsterInstance, environment: pytest.MonkeyPatch
) -> None:
    world.due_message(world.run())
    environment.delenv("OPENROUTER_API_KEY")
    assert "OPENROUTER_API_KEY is not set" in str(tick(instance))
    world.do("UPDATE ai_agents SET openrouter_api_key = 'sk-or-own-1234567'")
    assert isinstance(tick(instance), dg.RunRequest), "its workspace needs no shared key"


def test_a_wait_that_begins_or_ends_is_written_down_by_one_run_each(world: World, instance: DagsterInstance) -> None:
    workspace = world.workspace()
    world.due_messages(world.run(world.campaign(workspace, world.inbox(workspace, name="vendas", status="close"))), 3)
    assert isinstance(tick(instance), dg.RunRequest)
    assert claim(world) == []
    assert tick(instance) == (
        "The due messages must wait. Hoje waits: "
        "The instance vendas is close, not connected. Connect it; the run then continues."
    )
    world.do("UPDATE instances SET status = 'connected'")
    assert isinstance(tick(instance), dg.RunRequest)


def test_a_paused_scope_gets_its_probe_when_it_is_due_and_no_run_before(
    world: World, instance: DagsterInstance
) -> None:
    run = world.run()
    world.due_messages(run, 3)
    world.do(
        "INSERT INTO campaign_pauses (scope, scope_id, kind, code, reason, since, until)"
        " SELECT 'inbox', c.inbox_id::text, 'systemic', 'disconnected', 'The number is logged out.', now(),"
        " now() + interval '5 minutes' FROM campaign_configs c"
    )
    assert isinstance(tick(instance), dg.RunRequest)  # to write it down
    assert claim(world) == []
    assert "The number is logged out." in str(tick(instance))
    world.move_clock(timedelta(minutes=6))
    outcome = tick(instance)
    assert isinstance(outcome, dg.RunRequest)
    assert "one message may try" in outcome.tags[WHY]
    assert len(claim(world)) == 1
    assert isinstance(tick(instance), str)  # the others wait for its result


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            "UPDATE campaign_messages SET status = 'sending', lease_token = gen_random_uuid(),"
            " lease_expires_at = campaign_now() - interval '1 second'",
            "a process stopped renewing its leases",
        ),
        (
            "UPDATE campaign_messages SET status = 'queued', queued_at = campaign_now() - interval '16 minutes'",
            "a process stopped renewing its leases",
        ),
        ("UPDATE campaign_runs SET status = 'cancelled'", "a cancelled run is to be settled"),
        ("UPDATE campaign_messages SET status = 'skipped'", "a complete run is to be closed"),
    ],
)
def test_pending_clean_up_launches_a_run_although_nothing_is_due(
    world: World, instance: DagsterInstance, change: str, why: str
) -> None:
    world.due_message(world.run(), scheduled_at=world.value("SELECT campaign_now() + interval '1 day'"))
    assert isinstance(tick(instance), str)
    world.do(change)
    outcome = tick(instance)
    assert isinstance(outcome, dg.RunRequest)
    assert outcome.tags[WHY] == why
    claim(world)
    run_async(Queue(world.url).close_runs())
    assert isinstance(tick(instance), str)  # its request was fulfilled


def test_messages_in_delivery_launch_no_further_run(world: World, instance: DagsterInstance) -> None:
    world.due_messages(world.run(), 2)
    claim(world)
    assert tick(instance) == "Nothing else is due: the remaining messages are being sent now."
    world.do("UPDATE campaign_runs SET status = 'cancelled'")
    assert isinstance(tick(instance), str)


# ------------------------------------------------------------------------------------------------------------ draining


def ended(instance: DagsterInstance, messages: int, batch_size: int = 100, **of: Any) -> dg.DagsterRun:
    """A run that succeeded."""
    return claimed(instance, DagsterRunStatus.SUCCESS, messages, batch_size, **of)


def claimed(
    instance: DagsterInstance,
    status: DagsterRunStatus,
    messages: int,
    batch_size: int = 100,
    job: str = process_campaign_queue.name,
    tags: Mapping[str, str] | None = None,
) -> dg.DagsterRun:
    """A run that materialized its batch."""
    run = a_run(instance, status, tags=tags, job=job)
    figures = {"messages": messages, "batch_size": batch_size}
    table = StepMaterializationData(dg.AssetMaterialization("message_batch", metadata=figures))
    event = dg.DagsterEvent("ASSET_MATERIALIZATION", run.job_name, event_specific_data=table)
    instance.report_dagster_event(event, run.run_id)
    return run


def follow(instance: DagsterInstance, run: dg.DagsterRun) -> dg.RunRequest | str:
    """Return what the sensor does after that run has succeeded."""
    event = dg.DagsterEvent(event_type_value="PIPELINE_SUCCESS", job_name=run.job_name)
    with dg.build_run_status_sensor_context(
        sensor_name="next_batch_after_run",
        dagster_event=event,
        dagster_instance=instance,
        dagster_run=run,
        resources={"database": QueueDatabase()},
    ) as context:
        outcome = next_batch_after_run(context)
    if isinstance(outcome, dg.SkipReason):
        return outcome.skip_message or ""
    assert isinstance(outcome, dg.RunRequest)
    return outcome


@pytest.fixture
def schedule_on() -> Iterator[None]:
    with patch("campaign_pipeline.defs.schedules.schedule_is_on", return_value=True):
        yield


def since(world: World) -> str:
    now: datetime = world.value("SELECT campaign_now()")
    return now.isoformat()


def test_a_full_batch_is_followed_at_once_by_the_next_with_its_config(
    world: World, instance: DagsterInstance, schedule_on: None
) -> None:
    world.due_message(world.run())
    began = since(world)
    run = ended(instance, 100, tags={DRAINING_SINCE: began})
    outcome = follow(instance, run)
    assert isinstance(outcome, dg.RunRequest)
    assert outcome.run_key == f"after {run.run_id}"
    assert outcome.tags[DRAINING_SINCE] == began
    assert BACK_FILL not in outcome.tags


def test_nothing_follows_a_batch_that_was_not_full_or_asked_for_by_a_person_or_an_empty_queue(
    world: World, instance: DagsterInstance, schedule_on: None
) -> None:
    began = since(world)
    assert (
        follow(instance, ended(instance, 100, tags={DRAINING_SINCE: began})) == "No message waits: no run is running."
    )
    world.due_message(world.run())
    assert "less than a full batch" in str(follow(instance, ended(instance, 99, tags={DRAINING_SINCE: began})))
    assert "less than a full batch" in str(follow(instance, ended(instance, 0, 0, tags={DRAINING_SINCE: began})))
    assert "launched by a person" in str(follow(instance, ended(instance, 100)))


def test_draining_ends_with_its_budget_and_with_the_schedule(
    world: World, instance: DagsterInstance, environment: pytest.MonkeyPatch
) -> None:
    world.due_message(world.run())
    run = ended(instance, 100, tags={DRAINING_SINCE: since(world)})
    assert "is switched off" in str(follow(instance, run))
    with patch("campaign_pipeline.defs.schedules.schedule_is_on", return_value=True):
        environment.setenv("CAMPAIGN_DRAIN_MINUTES", "0")
        assert "CAMPAIGN_DRAIN_MINUTES (0) are over" in str(follow(instance, run))


def test_a_back_fill_continues_although_the_schedule_is_off(world: World, instance: DagsterInstance) -> None:
    world.due_message(world.run())
    first = follow(instance, ended(instance, 100, job=retry_failed_messages.name))
    assert isinstance(first, dg.RunRequest)
    second = follow(instance, ended(instance, 100, tags=first.tags))
    assert isinstance(second, dg.RunRequest)
    assert second.tags[BACK_FILL] == first.tags[BACK_FILL]
    assert second.tags[DRAINING_SINCE] == first.tags[DRAINING_SINCE]


def test_definitions_hold_schedules_and_sensors_that_say_how_they_start() -> None:
    repository = defs.get_repository_def()
    started = {schedule.name: schedule.default_status.value for schedule in repository.schedule_defs}
    started |= {sensor.name: sensor.default_status.value for sensor in repository.sensor_defs}
    # Nothing is sent before a person switches it on; watching and deleting expired personal data are always on.
    expected = Counter({
        "process_campaign_queue_every_minute": "STOPPED",
        "clean_up_every_night": "RUNNING",
        "next_batch_when_due": "RUNNING",
        "next_batch_after_run": "RUNNING",
        "run_failure_notifications": "RUNNING",
        "backlog_notifications": "RUNNING",
        "lost_run_cleanup": "RUNNING",
    })  # fmt: skip
    assert expected.items() <= started.items()
