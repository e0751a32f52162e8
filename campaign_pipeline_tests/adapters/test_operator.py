"""An operator's reads and actions: found by prefix and name, told as a story, changed within the invariants."""

from dataclasses import asdict
from datetime import UTC, timedelta
from uuid import UUID, uuid4

import pytest

from campaign_pipeline.adapters.operator import Operator, OperatorError
from campaign_pipeline.core.overview import mask
from campaign_pipeline_tests.factories import World
from campaign_pipeline_tests.sql.holder import holding, rows

HOUR = timedelta(hours=1)


def in_doubt(world: World, run: UUID) -> UUID:
    """A message with one sent part and one of unknown outcome."""
    due = world.due_message(run)
    holder = holding(world, due)
    holder.begin_new(due, "Um", "Dois")
    holder.sent(due)
    holder.begin(due, part_no=2)
    holder.settle(
        due,
        part_no=2,
        attempt_no=1,
        outcome="unknown",
        code="no_answer",
        reason="The connection broke.",
        status="failed",
        error_class="unknown",
    )
    return due


def test_a_unique_prefix_or_name_finds_its_object(world: World) -> None:
    run = world.run(name="Primeiro contato")
    message = world.due_message(run)
    with Operator(world.url) as desk:
        assert desk.find("message", str(message)[:9]).id == message
        assert desk.find("run", "primeiro CONTATO").id == run
        with pytest.raises(OperatorError, match="There is no inbox 'nowhere'"):
            desk.find("inbox", "nowhere")
        world.run(name="Primeiro contato")
        with pytest.raises(OperatorError, match="more than one run"):
            desk.find("run", "Primeiro contato")


def test_messages_are_found_by_all_that_is_given(world: World) -> None:
    run = world.run()
    workspace = world.value("SELECT workspace_id FROM inboxes")
    maria = world.lead(workspace, client_name="Maria Prado", phone="+55 (11) 98765-4321")
    wanted, _ = world.due_message(run, maria), world.due_message(run)
    with Operator(world.url) as desk:
        leads = [row.lead_id for row in desk.find_leads("maria")]
        for filters in ({"lead_ids": leads}, {"phone": "8765 4321"}, {"lead_ids": leads, "statuses": ["pending"]}):
            assert [row.message_id for row in desk.messages(**filters)] == [wanted]
        assert desk.messages(lead_ids=leads, statuses=["sent"]) == []
        assert desk.messages(run_id=uuid4()) == []
        (row,) = desk.messages(lead_ids=leads)
    masked = mask(asdict(row))
    assert (masked["lead"], "Maria" in str(masked), "98765" in str(masked)) == ("M. P.", False, False)


def test_a_story_tells_each_attempt_and_who_may_act(world: World) -> None:
    due = in_doubt(world, world.run())
    with Operator(world.url) as desk:
        story = desk.story(due, HOUR, UTC)
    assert [(each["part_no"], each["outcome"], each["code"]) for each in story.attempts()] == [
        (1, "accepted", None),
        (2, "unknown", "no_answer"),
    ]
    assert "it may have been sent. The connection broke." in story.summary
    assert "--resend-unknown" in story.next_step
    assert "Um" in str(story.to_dict(personal=True))
    assert "'Um'" not in str(story.to_dict(personal=False))


def test_a_waiting_message_tells_why_its_run_waits(world: World) -> None:
    workspace = world.workspace()
    inbox = world.inbox(workspace, status="disconnected", name="vendas_1")
    due = world.due_message(world.run(world.campaign(workspace, inbox)))
    with Operator(world.url) as desk:
        story = desk.story(due, HOUR, UTC)
    assert story.summary.startswith("Waits with its whole run: The instance vendas_1 is disconnected")
    assert story.next_step == "Connect the inbox's instance; it then continues automatically."


@pytest.mark.parametrize("moment", ["infinity", "-infinity", "12000-01-01 00:00:00+00", "0044-03-15 00:00:00+00 BC"])
def test_a_message_with_a_planned_time_that_python_cannot_hold_is_shown_without_it(world: World, moment: str) -> None:
    run = world.run()
    due = world.due_message(run)
    world.do("UPDATE campaign_messages SET scheduled_at = %s::timestamptz WHERE id = %s", moment, due)
    with Operator(world.url) as desk:
        assert [row.due_at for row in desk.messages(run_id=run)] == [None]
        assert desk.story(due, HOUR, UTC).summary == "Waits without a due time."
        assert len(desk.runs(HOUR)) == 1


def test_a_run_is_paused_resumed_and_cancelled_and_the_log_says_by_whom(world: World) -> None:
    run = world.run(name="Hoje")
    world.due_messages(run, 2)
    with Operator(world.url) as desk:
        hoje = desk.find("run", "Hoje")
        assert f"resume {str(run)[:8]}" in desk.pause_run(hoje, "ana", "wrong text").undo
        assert not desk.pause_run(hoje, "ana").changed
        assert desk.resume_run(hoje, "rui").changed
        assert "were skipped: 2" in desk.cancel_run(hoje, "ana").text
        assert not desk.resume_run(hoje, "ana").changed
    assert world.value("SELECT status FROM campaign_runs") == "cancelled"
    assert world.value("SELECT count(*) FROM campaign_messages WHERE status = 'skipped'") == 2
    assert world.wrong_counters() == []
    lines = world.all("SELECT message FROM campaign_logs WHERE step_name = 'operator' ORDER BY created_at")
    assert [line["message"] for line in lines] == [
        "ana paused the run: wrong text",
        "rui resumed the run.",
        "ana cancelled the run.",
    ]


def test_a_message_that_may_have_been_sent_is_resent_only_on_explicit_request(world: World) -> None:
    due = in_doubt(world, world.run())
    with Operator(world.url) as desk:
        with pytest.raises(OperatorError, match="it may have been sent"):
            desk.retry([due], "ana")
        assert desk.retry([due], "ana", resend_unknown=True).changed
        with pytest.raises(OperatorError, match="the status is pending, not failed"):
            desk.retry([due], "ana", resend_unknown=True)
    parts = world.all(
        "SELECT status, resend_approved_at IS NOT NULL AS approved FROM campaign_message_parts ORDER BY 1"
    )
    assert [(part["status"], part["approved"]) for part in parts] == [("sent", False), ("unknown", True)]


def test_nothing_of_a_cancelled_run_is_sent_again(world: World) -> None:
    run = world.run()
    due = world.due_message(run, status="failed", error_class="exhausted", finished_at=world.value("SELECT now()"))
    world.do("UPDATE campaign_runs SET status = 'cancelled' WHERE id = %s", run)
    with Operator(world.url) as desk, pytest.raises(OperatorError, match="its run is cancelled"):
        desk.retry([due], "ana")
    assert rows(world, "requeue_failed", ids=[due], resend_unknown=False) == []


def test_a_pause_with_a_cause_is_lifted_and_one_by_hand_is_not(world: World) -> None:
    inbox = world.inbox(world.workspace())
    world.do(
        "INSERT INTO campaign_pauses (scope, scope_id, kind, code, reason, since, until)"
        " VALUES ('inbox', %s, 'systemic', 'disconnected', 'It is closed.', now(), now() + interval '1 hour')",
        str(inbox),
    )
    with Operator(world.url) as desk:
        assert desk.lift(f"inbox:{str(inbox)[:8]}", "ana").changed
        desk.pause("inbox", desk.find("inbox", "Vendas"), "ana")
        with pytest.raises(OperatorError, match="ana paused this by hand"):
            desk.lift("Vendas", "rui")
        with pytest.raises(OperatorError, match="There is no pause"):
            desk.lift("model:x", "rui")


def test_the_forecast_is_that_of_the_running_runs(world: World) -> None:
    world.due_messages(world.run(name="Hoje"), 3)
    with Operator(world.url) as desk:
        (slot,) = desk.forecast(HOUR).slots
        (row,) = desk.runs(HOUR)
    assert (slot.messages, slot.waiting) == (3, 0)
    assert row.finished_at is not None
