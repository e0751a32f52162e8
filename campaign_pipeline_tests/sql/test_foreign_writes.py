"""The CRM's writes while the pipeline works, and their effects."""

from datetime import timedelta

import pytest
from psycopg.types.json import Jsonb

from campaign_pipeline.adapters.crm_functions import list_replaceable
from campaign_pipeline_tests.factories import World
from campaign_pipeline_tests.sql.holder import claim_batch, claimed_ids, holding, message, part_states, rows, run_row

FINALIZE = """
    UPDATE campaign_runs r SET status = 'completed', completed_at = now()
    WHERE r.id = %s AND r.status = 'running' AND r.leads_processed >= r.leads_total
"""
"""As the CRM's finalize_campaign_run_if_complete."""


@pytest.mark.parametrize("leased", [False, True], ids=["pending", "leased"])
def test_a_run_with_remaining_messages_is_not_completed_by_its_total(world: World, leased: bool) -> None:
    run = world.run(leads_total=0)
    due = world.due_message(run)
    if leased:
        holding(world, due)
    assert world.do(FINALIZE, run) == 1
    assert (run_row(world, run)["status"], run_row(world, run)["completed_at"]) == ("running", None)
    world.do("UPDATE campaign_messages SET status = 'failed' WHERE id = %s", due)
    world.do(FINALIZE, run)
    assert run_row(world, run)["status"] == "completed"


def test_a_message_that_the_crm_resumes_is_due_at_its_new_time_and_has_no_trace_of_a_lease(world: World) -> None:
    run = world.run()
    due = world.due_message(run)
    holder = holding(world, due)
    holder.settle(due, status="pending", delay_seconds=3600.0, code="x", reason="r", error_class="transient")
    world.do("UPDATE campaign_messages SET status = 'skipped', error_message = 'pausado' WHERE id = %s", due)
    world.do("UPDATE campaign_messages SET status = 'pending', scheduled_at = now() WHERE id = %s", due)
    resumed = message(world, due)
    assert (resumed["next_attempt_at"], resumed["lease_token"], resumed["finished_at"]) == (None, None, None)
    world.move_clock(timedelta(seconds=1))
    assert claimed_ids(claim_batch(world)) == {due}


def test_a_late_refusal_of_a_part_whose_message_was_deleted_is_recorded(world: World) -> None:
    due = world.due_message(world.run())
    holder = holding(world, due)
    holder.begin_new(due)
    holder.settle(due, part_no=1, attempt_no=1, outcome="unknown", code="x", reason="r")
    world.do("DELETE FROM campaign_messages WHERE id = %s", due)
    event = {"event_id": 1, "id": str(due), "part_no": 1, "status": "failed", "at": 4e9, "error_class": "permanent"}
    answer = rows(world, "apply_status_events", events=Jsonb([{**event, "code": "refused", "reason": "No."}]))
    assert [row["verdict"] for row in answer] == ["settled"]
    assert part_states(world, due) == [("failed", 1)]


@pytest.mark.parametrize("written", ["failed", "skipped"])
@pytest.mark.parametrize("outcome", ["unknown", "failed", "planned"])
def test_the_outcome_of_a_part_is_kept_though_the_crm_ended_its_message_meanwhile(
    world: World, written: str, outcome: str
) -> None:
    due = world.due_message(world.run())
    holder = holding(world, due)
    holder.begin_new(due)
    world.do("UPDATE campaign_messages SET status = %s WHERE id = %s", written, due)
    assert holder.settle(due, part_no=1, attempt_no=1, outcome=outcome, code="x", reason="r")["applied"]
    assert part_states(world, due) == [(outcome, 1)]
    assert message(world, due)["status"] == written
    assert not holding_of_another(world, due, outcome)


def holding_of_another(world: World, due: object, outcome: str) -> bool:
    """Return whether a caller that did not make the attempt could change its outcome."""
    stranger = {"id": str(due), "token": "00000000-0000-0000-0000-000000000001", "part_no": 1, "attempt_no": 1}
    other = "planned" if outcome != "planned" else "failed"
    (answer,) = rows(world, "settle", ends=Jsonb([{**stranger, "outcome": other}]))
    return bool(answer["applied"])


@pytest.mark.parametrize(
    ("answers", "nothing"),
    [("OUT picked jsonb, OUT total integer", (None, None)), ("OUT picked jsonb", (None,))],
    ids=["several", "one"],
)
def test_a_claim_function_that_answers_in_out_parameters_can_be_replaced(
    world: World, answers: str, nothing: tuple[None, ...]
) -> None:
    world.do(
        f"CREATE FUNCTION public.get_and_lock_campaign_messages(p_batch integer, {answers}) LANGUAGE plpgsql AS "
        "'BEGIN picked := ''[1]''; END'"
    )
    (function,) = list_replaceable(world.connection)
    world.do(function.replacement)
    found = world.one("SELECT * FROM public.get_and_lock_campaign_messages(5)")
    assert tuple(found.values()) == nothing
