"""Resending a day's failed messages, by partition: a second launch does not change sent messages."""

import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import dagster as dg
import pytest
from dagster import DagsterInstance
from dagster._core.definitions.partitions.context import partition_loading_context

from campaign_pipeline.adapters.operations import FailedMessages, Operations
from campaign_pipeline.adapters.queue import BatchOptions, Queue
from campaign_pipeline.definitions import defs
from campaign_pipeline.defs.days import days
from campaign_pipeline.defs.shard import run_async
from campaign_pipeline.sandbox import SandboxProcess
from campaign_pipeline.sql import statement
from campaign_pipeline_tests.factories import World

SAO_PAULO = ZoneInfo("America/Sao_Paulo")
NOON = datetime(2026, 3, 10, 12, tzinfo=SAO_PAULO)


@pytest.fixture
def instance(tmp_path: Path, environment: pytest.MonkeyPatch) -> Iterator[DagsterInstance]:
    environment.setenv("OPENROUTER_API_KEY", "sk-or-test-key-of-no-account")
    with DagsterInstance.local_temp(str(tmp_path), overrides={"telemetry": {"enabled": False}}) as instance:
        yield instance


def day(offset: int) -> str:
    return (NOON + timedelta(days=offset)).strftime("%Y-%m-%d")


def retry(instance: DagsterInstance, partition: str | None, **config: Any) -> dg.ExecuteInProcessResult:
    """Run the back-fill once, as the UI, the CLI and GraphQL launch it for a day."""
    job = defs.resolve_job_def("retry_failed_messages")
    run_config = {"ops": {"requeue_failed_messages": {"config": config}}}
    return job.execute_in_process(
        instance=instance, partition_key=partition, run_config=run_config, raise_on_error=False
    )


def requeued(result: dg.ExecuteInProcessResult) -> int:
    assert result.success, [str(e.event_specific_data)[:3000] for e in result.all_events if e.is_failure]
    (event,) = [
        e for e in result.all_events if e.is_successful_output and e.step_output_data.output_name == "requeue_report"
    ]
    value = event.step_output_data.metadata["requeued"].value
    assert isinstance(value, int)
    return value


def refusal(result: dg.ExecuteInProcessResult) -> str:
    assert not result.success
    (event,) = [e for e in result.all_events if e.is_step_failure]
    assert event.step_failure_data.user_failure_data
    return event.step_failure_data.user_failure_data.description or ""


def failed_message(world: World, run: UUID, at: datetime, error_class: str | None = "exhausted") -> UUID:
    return world.due_message(run, status="failed", finished_at=at, error_class=error_class, retry_count=3)


def test_three_days_are_sent_again_and_a_second_time_changes_nothing(
    world: World, instance: DagsterInstance, environment: pytest.MonkeyPatch
) -> None:
    run = world.run()
    for offset in range(3):
        for hour in range(4):
            failed_message(world, run, NOON + timedelta(days=offset, hours=hour))
    sent = [world.due_message(run, status="sent", finished_at=NOON) for _ in range(2)]
    run_async(Queue(world.url).close_runs())
    with SandboxProcess() as sandbox:
        environment.setenv("OPENROUTER_BASE_URL", sandbox.openrouter_url)
        environment.setenv("EVOLUTION_API_URL", sandbox.evolution_url)
        for time in ("first", "second"):
            counts = [requeued(retry(instance, day(offset))) for offset in range(3)]
            assert counts == ([4, 4, 4] if time == "first" else [0, 0, 0])
            assert Counter(message["status"] for message in world.messages()) == {"sent": 14}
            assert len([entry for entry in sandbox.record(accepted=True) if entry["kind"] == "send"]) == 12
    assert world.wrong_counters() == []
    assert world.value("SELECT status FROM campaign_runs") == "completed"
    assert world.value("SELECT count(*) FROM campaign_messages WHERE requeued_at IS NULL") == len(sent)


def test_a_day_begins_and_ends_at_midnight_of_the_business_zone(world: World, instance: DagsterInstance) -> None:
    run = world.run()
    midnight = datetime(2026, 3, 10, tzinfo=SAO_PAULO)
    inside = [failed_message(world, run, at) for at in (midnight, midnight + timedelta(hours=23, minutes=59))]
    for at in (midnight - timedelta(microseconds=1), midnight + timedelta(days=1)):
        failed_message(world, run, at)
    assert requeued(retry(instance, "2026-03-10", requeue_only=True)) == 2
    assert {m["id"] for m in world.messages() if m["status"] == "pending"} == set(inside)


def test_today_is_a_day_that_can_be_chosen(environment: pytest.MonkeyPatch) -> None:
    partitions = defs.resolve_job_def("retry_failed_messages").partitions_def
    assert partitions is not None
    with partition_loading_context(datetime(2026, 3, 10, 2, tzinfo=UTC)):  # still the ninth in São Paulo
        assert partitions.get_last_partition_key() == "2026-03-09"


def test_only_the_classes_that_are_named_are_sent_again(world: World, instance: DagsterInstance) -> None:
    run = world.run()
    of = {name: failed_message(world, run, NOON, name) for name in ("transient", "exhausted", "permanent", "unknown")}
    of["legacy"] = failed_message(world, run, NOON, None)

    def pending() -> set[str]:
        ids = {message["id"] for message in world.messages() if message["status"] == "pending"}
        return {name for name, message in of.items() if message in ids}

    assert requeued(retry(instance, day(0), requeue_only=True)) == 3
    assert pending() == {"transient", "exhausted", "legacy"}
    assert requeued(retry(instance, day(0), requeue_only=True, error_classes=["permanent"])) == 1
    assert "unknown" not in pending()
    assert requeued(retry(instance, day(0), requeue_only=True, error_classes=["unknown"])) == 1
    assert pending() == set(of)


def test_a_run_a_campaign_or_a_workspace_narrows_it(world: World, instance: DagsterInstance) -> None:
    workspaces = [world.workspace() for _ in range(2)]
    configs = [world.campaign(workspaces[0]), world.campaign(workspaces[0]), world.campaign(workspaces[1])]
    runs = [world.run(config) for config in configs]
    for run in runs:
        failed_message(world, run, NOON)

    def again(**config: Any) -> int:
        count = requeued(retry(instance, day(0), requeue_only=True, **config))
        world.do("UPDATE campaign_messages SET status = 'failed', error_class = 'exhausted', finished_at = %s", NOON)
        return count

    assert again(run_ids=[str(runs[0]), str(runs[1])]) == 2
    assert again(campaign=str(configs[2])) == 1
    assert again(workspace=str(workspaces[0])) == 2
    assert again(workspace=str(workspaces[0]), campaign=str(configs[2])) == 0
    assert again() == 3


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            {"error_classes": ["tranzient"]},
            "error_classes has 'tranzient', but must name some of transient, exhausted, throttled, systemic, "
            "permanent, unknown.",
        ),
        ({"error_classes": []}, "error_classes is empty, but must name some of "),
        ({"run_ids": ["17"]}, "run_ids has '17', but must be a UUID as in the CRM's id columns."),
        ({"campaign": "Natal"}, "campaign has 'Natal', but must be a UUID as in the CRM's id columns."),
        ({"workspace": "acme"}, "workspace has 'acme', but must be a UUID as in the CRM's id columns."),
    ],
)
def test_an_impossible_selection_is_refused_in_one_sentence(
    world: World, instance: DagsterInstance, config: dict[str, Any], sentence: str
) -> None:
    failed_message(world, world.run(), NOON)
    assert re.match(re.escape(sentence), refusal(retry(instance, day(0), **config)))
    assert [message["status"] for message in world.messages()] == ["failed"]


def test_a_run_for_no_day_is_refused_in_one_sentence(world: World, instance: DagsterInstance) -> None:
    assert (
        refusal(retry(instance, None)) == "retry_failed_messages needs a day: choose a partition, such as 2026-03-31."
    )


def test_messages_that_are_only_requeued_wait_for_the_schedule(world: World, instance: DagsterInstance) -> None:
    failed_message(world, world.run(), NOON)
    result = retry(instance, day(0), requeue_only=True)
    assert requeued(result) == 1
    assert {e.step_key for e in result.all_events if e.is_step_start} == {"requeue_failed_messages"}
    assert [message["status"] for message in world.messages()] == ["pending"]


def test_a_manual_resend_is_never_skipped_as_too_old(world: World, instance: DagsterInstance) -> None:
    run = world.run()
    again, other = failed_message(world, run, NOON), world.due_message(run)
    assert requeued(retry(instance, day(0), requeue_only=True)) == 1
    world.move_clock(timedelta(days=3))  # as long as a long back-fill may take
    batch = run_async(Queue(world.url).claim_batch(BatchOptions(batch_size=10, owner="test")))
    assert [row.message_id for row in batch.rows] == [again]
    assert {m["id"]: m["status"] for m in world.messages()}[other] == "skipped"


DAYS, FAILED_A_DAY = 30, 200
"""CI's size. 5,000 a day, as measured once, are the same statements."""


def test_thirty_days_twice_put_everything_back_once(world: World) -> None:
    run = world.run()
    world.do(
        "INSERT INTO campaign_messages (run_id, status, error_class, finished_at, scheduled_at)"
        " SELECT %s, 'failed', 'exhausted', %s + make_interval(days => d), now() - interval '1 day'"
        " FROM generate_series(0, %s) d, generate_series(1, %s)",
        *(run, NOON, DAYS - 1, FAILED_A_DAY),
    )
    windows = [days.time_window_for_partition_key(day(offset)) for offset in range(DAYS)]
    wanted = [FailedMessages(window.start, window.end, ["exhausted"]) for window in windows]
    with Operations(world.url) as operations:
        assert [operations.requeue_failed(each).requeued for each in wanted] == [FAILED_A_DAY] * DAYS
        assert sum(operations.requeue_failed(each).found for each in wanted) == 0
    assert world.value("SELECT count(*) FROM campaign_messages WHERE status = 'pending'") == DAYS * FAILED_A_DAY
    assert world.wrong_counters() == []


def test_a_days_failures_are_found_by_index(world: World) -> None:
    run = world.run()
    world.do(
        "INSERT INTO campaign_messages (run_id, status, error_class, finished_at) SELECT %s,"
        " CASE WHEN n %% 50 = 0 THEN 'failed' ELSE 'sent' END, 'exhausted', %s + make_interval(hours => n %% 700)"
        " FROM generate_series(1, 20000) n",
        *(run, NOON),
    )
    world.do("ANALYZE campaign_messages")
    values = {"since": NOON, "until": NOON + timedelta(days=1), "error_classes": ["exhausted"]}
    values |= {"run_ids": None, "config_id": None, "workspace_id": None}
    plan = world.connection.execute("EXPLAIN " + statement("list_failed_messages"), values).fetchall()
    assert "campaign_messages_failed" in str(plan)


def test_no_campaign_of_that_id_is_no_trouble(world: World, instance: DagsterInstance) -> None:
    assert requeued(retry(instance, day(0), campaign=str(uuid4()))) == 0
