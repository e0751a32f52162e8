from typing import Any

import psycopg
import pytest

from campaign_pipeline import sql
from campaign_pipeline.adapters import schema
from campaign_pipeline_tests.factories import World


def test_the_head_in_the_code_is_the_newest_migration() -> None:
    assert schema.head_revision() == sql.HEAD


@pytest.mark.parametrize(
    "columns",
    [
        {"status": "processing"},
        {"status": "SENT"},
        {"error_class": "oops"},
        {"status": "queued", "lease_token": "00000000-0000-0000-0000-000000000001"},  # a lease without an end
    ],
)
def test_a_message_refuses_nonsense(world: World, columns: dict[str, Any]) -> None:
    run = world.run()
    with pytest.raises(psycopg.errors.CheckViolation):
        world.due_message(run, **columns)


@pytest.mark.parametrize(
    "status", ["pending", "queued", "generating", "sending", "sent", "replied", "failed", "skipped"]
)
def test_a_message_takes_each_status_of_the_crm(world: World, status: str) -> None:
    message = world.due_message(world.run(), status=status)
    assert world.value("SELECT status FROM campaign_messages WHERE id = %s", message) == status


def test_a_run_refuses_an_unknown_status(world: World) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        world.run(status="stopped")


@pytest.mark.parametrize(
    "columns", [{"status": "delivered"}, {"part_no": 0}, {"text": None}, {"idempotency_key": None}]
)
def test_the_ledger_refuses_nonsense(world: World, columns: dict[str, Any]) -> None:
    message = world.due_message(world.run())
    row = {"message_id": message, "part_no": 1, "text": "Olá", "idempotency_key": f"{message}:1", **columns}
    with pytest.raises((psycopg.errors.CheckViolation, psycopg.errors.NotNullViolation)):
        world.insert("campaign_message_parts", **row)


def test_a_part_number_is_given_once_a_message(world: World) -> None:
    message = world.due_message(world.run())
    row = {"message_id": message, "part_no": 1, "text": "Olá", "idempotency_key": f"{message}:1"}
    world.insert("campaign_message_parts", **row)
    with pytest.raises(psycopg.errors.UniqueViolation):
        world.insert("campaign_message_parts", **row)


def test_a_campaign_refuses_a_missing_retry_delay(world: World) -> None:
    with pytest.raises(psycopg.errors.CheckViolation, match="campaign_configs_retry_delays_known"):
        world.campaign(retry_delays_minutes=[None, 10])


@pytest.mark.parametrize("columns", [{"scope": "everything"}, {"kind": "forever"}, {"reason": None}])
def test_a_pause_refuses_nonsense(world: World, columns: dict[str, Any]) -> None:
    now = world.value("SELECT campaign_now()")
    row = {
        "scope": "inbox",
        "scope_id": "1",
        "kind": "systemic",
        "code": "no_credit",
        "reason": "No credit.",
        "since": now,
        "until": now,
        **columns,
    }
    with pytest.raises((psycopg.errors.CheckViolation, psycopg.errors.NotNullViolation)):
        world.insert("campaign_pauses", **row)


def test_the_splitter_refuses_an_unknown_strategy(world: World) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        world.insert("ai_message_splitter_config", strategy="magic")


def test_the_clock_is_the_servers_plus_the_offset_that_was_set(world: World) -> None:
    assert world.value("SELECT campaign_now() = now()")
    world.do("SET campaign.clock_offset = '3 hours'")
    assert world.value("SELECT campaign_now() = now() + interval '3 hours'")
    world.do("SET campaign.clock_offset = ''")
    assert world.value("SELECT campaign_now() = now()")
