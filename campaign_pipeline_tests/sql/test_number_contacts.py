"""Within a workspace a number gets one campaign message per window of time, even if several leads have it."""

import json
import threading
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest
from psycopg.errors import CheckViolation

from campaign_pipeline.sql import statement
from campaign_pipeline_tests.factories import World
from campaign_pipeline_tests.sql.holder import Holder, claim_batch, claimed_ids, holding, message, wait_until_blocked

CASE_70 = json.loads((Path(__file__).parents[1] / "cases" / "70-same-number-twice.json").read_text())
NUMBER, TWIN, OTHER = "5511987650001", "551187650001", "5511987650002"


@pytest.fixture
def workspace(world: World) -> UUID:
    return world.workspace(number_rest_hours=24)


@pytest.fixture
def run(world: World, workspace: UUID) -> UUID:
    return world.run(world.campaign(workspace))


@pytest.fixture
def two(world: World, workspace: UUID, run: UUID) -> tuple[UUID, UUID]:
    """Messages of two leads with one number, of two campaigns."""
    other_run = world.run(world.campaign(workspace))
    first = world.due_message(run, world.lead(workspace, phone=NUMBER))
    return first, world.due_message(other_run, world.lead(workspace, phone=TWIN))


def test_a_day_of_rest_is_the_default(world: World) -> None:
    workspace = world.insert("workspaces", name="Acme")
    assert world.value("SELECT number_rest_hours FROM workspaces WHERE id = %s", workspace) == 24


@pytest.mark.parametrize("hours", [-1, 721])
def test_a_rest_beyond_a_month_is_refused(world: World, hours: int) -> None:
    with pytest.raises(CheckViolation):
        world.workspace(number_rest_hours=hours)


def test_four_leads_of_a_run_with_one_number_get_one_message(world: World, workspace: UUID, run: UUID) -> None:
    phones = CASE_70["input"]["phones"]
    messages = {world.due_message(run, world.lead(workspace, phone=phone)) for phone in phones}
    batch = claim_batch(world)
    (first,) = claimed_ids(batch)
    assert batch.contacted == 3
    holder = Holder(world)
    holder.take_over([first], batch_token=message(world, first)["lease_token"])
    assert holder.begin_new(first, address=NUMBER) == "go"
    holder.sent(first)
    holder.settle(first, status="sent")
    world.move_clock(timedelta(minutes=2))
    later = claim_batch(world)
    assert (claimed_ids(later), later.contacted) == (set(), 3)
    rest = [message(world, other) for other in messages - {first}]
    assert {(row["status"], row["error_code"]) for row in rest} == {("skipped", "number_contacted")}
    assert all(row["finished_at"] and "same number" in row["error_message"] for row in rest)
    assert world.wrong_counters() == []


def test_a_message_of_another_run_waits_until_the_number_has_rested(world: World, two: tuple[UUID, UUID]) -> None:
    holder = holding(world, two[0])
    holder.begin_new(two[0], address=NUMBER)
    holder.sent(two[0])
    assert claimed_ids(claim_batch(world)) == set()
    row = message(world, two[1])
    assert (row["status"], row["error_code"], row["lease_token"]) == ("pending", "number_contacted", None)
    waits = world.value("SELECT next_attempt_at - campaign_now() FROM campaign_messages WHERE id = %s", two[1])
    assert timedelta(hours=23, minutes=58) < waits <= timedelta(hours=24)
    world.move_clock(timedelta(hours=24, minutes=1))
    assert claimed_ids(claim_batch(world)) == {two[1]}
    again = Holder(world)
    again.take_over([two[1]], batch_token=message(world, two[1])["lease_token"])
    assert again.begin_new(two[1], address=TWIN) == "go"


def test_a_number_is_asked_for_again_just_before_the_request(world: World, two: tuple[UUID, UUID]) -> None:
    first, second = (holding(world, m) for m in two)
    assert first.begin_new(two[0], address=NUMBER) == "go"
    assert second.begin_new(two[1], address=TWIN) == "number_contacted"
    assert (
        world.value("SELECT count(*) FROM campaign_message_parts WHERE message_id = %s AND status <> 'planned'", two[1])
        == 0
    )
    first.sent(two[0])
    assert second.begin(two[1], address=TWIN) == "number_contacted"


def test_two_messages_to_one_number_in_one_group_do_not_both_go(world: World, two: tuple[UUID, UUID]) -> None:
    items = ({"id": m, "text": "Oi", "parts": ["Oi"], "address": a} for m, a in zip(two, (NUMBER, TWIN), strict=True))
    answers = holding(world, *two).begin_all(items)
    assert sorted(row["verdict"] for row in answers.values()) == ["go", "number_contacted"]


def test_a_number_is_taken_over_from_a_message_that_was_surely_not_sent(world: World, two: tuple[UUID, UUID]) -> None:
    first, second = (holding(world, m) for m in two)
    first.begin_new(two[0], address=NUMBER)
    first.settle(two[0], part_no=1, attempt_no=1, outcome="failed", status="failed", code="bad_text")
    assert second.begin_new(two[1], address=TWIN) == "go"


def test_a_number_is_not_taken_over_from_a_message_that_may_have_been_sent(
    world: World, two: tuple[UUID, UUID]
) -> None:
    first, second = (holding(world, m) for m in two)
    first.begin_new(two[0], address=NUMBER)
    first.settle(two[0], part_no=1, attempt_no=1, outcome="unknown")
    assert second.begin_new(two[1], address=TWIN) == "number_contacted"


def test_a_begun_text_is_finished_and_a_retry_has_its_own_number(world: World, two: tuple[UUID, UUID]) -> None:
    first = holding(world, two[0])
    first.begin_new(two[0], "Um", "Dois", address=NUMBER)
    first.settle(two[0], part_no=1, attempt_no=1, outcome="planned")
    assert first.begin(two[0], attempt_no=2, address=NUMBER) == "go"
    first.sent(two[0], attempt_no=2)
    assert first.begin(two[0], part_no=2, address=NUMBER) == "go"


@pytest.mark.parametrize("case", ["another number", "another workspace", "no rest", "e-mail"])
def test_nothing_else_is_held_back(world: World, workspace: UUID, two: tuple[UUID, UUID], case: str) -> None:
    first, second = (holding(world, m) for m in two)
    first.begin_new(two[0], address=NUMBER)
    first.sent(two[0])
    target, address, channel = two[1], TWIN, "whatsapp"
    if case == "another number":
        address = OTHER
    if case == "another workspace":
        other = world.workspace(number_rest_hours=24)
        target = world.due_message(world.run(world.campaign(other)), world.lead(other, phone=NUMBER))
        second = holding(world, target)
    if case == "no rest":
        world.do("UPDATE workspaces SET number_rest_hours = 0 WHERE id = %s", workspace)
    if case == "e-mail":
        address, channel = "ana@example.com", "email"
    assert second.begin_new(target, address=address, channel=channel) == "go"


def test_of_two_workers_with_one_number_the_second_waits_and_is_held_back(world: World, two: tuple[UUID, UUID]) -> None:
    first, second = Holder(world), holding(world, two[1])
    first.take_over([two[0]])
    verdicts: list[str] = []
    with World(world.url) as other, World(world.url) as third:
        first.world, second.world = other, third
        with other.connection.transaction():
            assert first.begin_new(two[0], address=NUMBER) == "go"
            beginning = threading.Thread(target=lambda: verdicts.append(second.begin_new(two[1], address=TWIN)))
            beginning.start()
            wait_until_blocked(world)
        beginning.join(20)
    assert verdicts == ["number_contacted"]


def test_numbers_that_have_rested_for_a_month_are_forgotten(world: World, two: tuple[UUID, UUID]) -> None:
    holding(world, two[0]).begin_new(two[0], address=NUMBER)
    world.move_clock(timedelta(days=32))
    world.connection.execute(statement("drop_past_lead_days"))
    assert world.value("SELECT count(*) FROM campaign_number_contacts") == 0
