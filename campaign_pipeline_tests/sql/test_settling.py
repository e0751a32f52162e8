from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from campaign_pipeline.sql import statement
from campaign_pipeline_tests.factories import World
from campaign_pipeline_tests.sql.holder import (
    PHONE,
    Holder,
    holding,
    message,
    part_states,
    parts,
    rows,
    run_row,
)

PAST_LEASE = timedelta(seconds=121)


@pytest.fixture
def run(world: World) -> UUID:
    return world.run()


@pytest.fixture
def due(world: World, run: UUID) -> UUID:
    return world.due_message(run)


def counters(world: World, run: UUID) -> tuple[int, int, int, int]:
    row = run_row(world, run)
    return row["leads_processed"], row["leads_success"], row["leads_failed"], row["leads_skipped"]


def begun(world: World, due: UUID, *texts: str) -> Holder:
    """A holder with a request for the first part in flight."""
    holder = holding(world, due)
    assert holder.begin_new(due, *texts) == "go"
    return holder


# Each outcome ---------------------------------------------------------------------------------------------------------


def test_a_sent_message_keeps_no_error_of_its_earlier_attempts(world: World) -> None:
    due = world.due_message(world.run())
    holder = holding(world, due)
    holder.begin_new(due)
    trouble = {"outcome": "planned", "status": "pending", "code": "x", "reason": "It was down.", "delay_seconds": 0}
    holder.settle(due, part_no=1, attempt_no=1, **trouble)
    assert message(world, due)["last_error"] == "It was down."
    again = holding(world, due)
    again.begin(due, attempt_no=2)
    again.sent(due, attempt_no=2)
    row = message(world, due)
    assert (row["status"], row["last_error"], row["error_code"]) == ("sent", None, None)


def test_the_last_part_that_is_sent_finishes_the_message(world: World, run: UUID, due: UUID) -> None:
    holder = begun(world, due, "Um", "Dois")
    first = holder.sent(due, duration_ms=40, response={"key": {"id": "A"}}, address="5511900000000@s.whatsapp.net")
    assert first == {"applied": True, "moved": False, "final": "sending"}
    assert counters(world, run) == (0, 0, 0, 0)
    holder.begin(due, part_no=2)
    second = holder.sent(due, part_no=2, duration_ms=60, provider_message_id="WA-2", response={"key": {"id": "B"}})
    assert second == {"applied": True, "moved": False, "final": "sent"}
    row = message(world, due)
    assert (row["provider_message_id"], row["provider_response"], row["send_time_ms"]) == (
        "WA-2",
        {"key": {"id": "B"}},
        100,
    )
    assert row["sent_at"] == row["finished_at"] is not None
    assert (row["error_class"], row["error_code"], row["error_message"]) == (None, None, None)
    assert counters(world, run) == (1, 1, 0, 0)
    ledger = parts(world, due)
    assert [part["provider_response"] for part in ledger] == [{"key": {"id": "A"}}, {"key": {"id": "B"}}]
    assert ledger[0]["address"] == "5511900000000@s.whatsapp.net"
    assert [part["history"] for part in ledger] == [[], []]


def test_a_transient_failure_waits_for_its_next_attempt_and_counts(world: World, run: UUID, due: UUID) -> None:
    holder = begun(world, due)
    answer = holder.settle(
        due,
        part_no=1,
        attempt_no=1,
        outcome="planned",
        status="pending",
        error_class="transient",
        code="provider_500",
        reason="It answered 500.",
        delay_seconds=300.0,
        count_attempt=True,
    )
    assert answer == {"applied": True, "moved": True, "final": "pending"}
    row = message(world, due)
    assert row["next_attempt_at"] - world.value("SELECT campaign_now()") > timedelta(seconds=295)
    assert (row["retry_count"], row["error_class"], row["error_code"]) == (1, "transient", "provider_500")
    assert (row["last_error"], row["error_message"], row["finished_at"]) == ("It answered 500.", None, None)
    assert (row["lease_token"], row["lease_expires_at"]) == (None, None)
    assert counters(world, run) == (0, 0, 0, 0)
    (part,) = parts(world, due)
    assert (part["status"], part["error_class"], part["error_code"]) == ("planned", "transient", "provider_500")
    (entry,) = part["history"]
    assert (entry["attempt"], entry["outcome"], entry["code"], entry["reason"]) == (
        1,
        "planned",
        "provider_500",
        "It answered 500.",
    )


def test_a_claim_that_is_given_back_untouched_keeps_its_place_and_its_attempts(world: World, due: UUID) -> None:
    before = message(world, due)
    assert holding(world, due).settle(due, status="pending", code="given_back", reason="Stopped.")["moved"]
    after = message(world, due)
    kept = ("next_attempt_at", "scheduled_at", "retry_count", "status", "lease_token")
    assert {key: after[key] for key in kept} == {key: before[key] for key in kept}


def test_a_throttle_counts_no_attempt(world: World, due: UUID) -> None:
    holder = begun(world, due)
    assert holder.settle(due, part_no=1, attempt_no=1, outcome="planned", code="rate_limited", reason="Slow.") == {
        "applied": True,
        "moved": False,
        "final": "sending",
    }
    assert message(world, due)["retry_count"] == 0
    assert parts(world, due)[0]["error_class"] is None
    assert holder.begin(due, attempt_no=2) == "go"


@pytest.mark.parametrize(
    ("status", "error_class", "expected"),
    [("failed", "permanent", (1, 0, 1, 0)), ("failed", "exhausted", (1, 0, 1, 0)), ("skipped", None, (1, 0, 0, 1))],
)
def test_an_end_is_counted_and_keeps_its_reason(
    world: World, run: UUID, due: UUID, status: str, error_class: str | None, expected: tuple[int, ...]
) -> None:
    holder = holding(world, due)
    answer = holder.settle(
        due,
        status=status,
        error_class=error_class,
        code="not_on_whatsapp",
        reason="No such number.",
        count_attempt=True,
    )
    assert answer == {"applied": False, "moved": True, "final": status}
    row = message(world, due)
    assert (row["error_class"], row["error_code"], row["error_message"]) == (
        error_class,
        "not_on_whatsapp",
        "No such number.",
    )
    assert row["finished_at"] is not None
    assert row["retry_count"] == 1
    assert counters(world, run) == expected


def test_an_unknown_outcome_is_recorded_before_the_look_up(world: World, run: UUID, due: UUID) -> None:
    holder = begun(world, due)
    unknown: dict[str, Any] = {"part_no": 1, "attempt_no": 1, "outcome": "unknown"}
    holder.settle(due, **unknown, code="read_timeout", reason="No answer.")
    assert part_states(world, due) == [("unknown", 1)]
    assert parts(world, due)[0]["looked_up_at"] is None
    holder.settle(
        due, **unknown, status="failed", error_class="unknown", code="unknown_outcome", reason="?", looked_up=True
    )
    row = message(world, due)
    assert (row["status"], row["error_class"]) == ("failed", "unknown")
    assert parts(world, due)[0]["looked_up_at"] is not None
    assert [entry["outcome"] for entry in parts(world, due)[0]["history"]] == ["unknown", "unknown"]
    assert counters(world, run) == (1, 0, 1, 0)


def test_a_look_up_that_finds_a_part_is_remembered_with_the_attempt_it_explains(world: World, due: UUID) -> None:
    holder = begun(world, due)
    holder.settle(due, part_no=1, attempt_no=1, outcome="unknown", code="read_timeout", reason="No answer.")
    assert holder.sent(due, looked_up=True)["final"] == "sent"
    assert [(e["outcome"], e["looked_up"]) for e in parts(world, due)[0]["history"]] == [
        ("unknown", None),
        ("sent", True),
    ]


def test_an_absurd_delay_is_cut_to_a_week(world: World, due: UUID) -> None:
    holder = holding(world, due)
    assert holder.settle(due, status="pending", delay_seconds=1e300)["moved"]
    assert message(world, due)["next_attempt_at"] - world.value("SELECT campaign_now()") <= timedelta(days=7)


# A sent part ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", ["planned", "unknown", "failed", "sent"])
def test_a_part_that_was_sent_never_changes_again(world: World, due: UUID, outcome: str) -> None:
    holder = begun(world, due, "Um", "Dois")
    holder.sent(due)
    before = parts(world, due)
    for attempt_no in (1, 2):
        holder.settle(
            due, part_no=1, attempt_no=attempt_no, outcome=outcome, provider_message_id="other", code="x", duration_ms=1
        )
    assert parts(world, due) == before


def test_a_message_that_was_sent_is_not_moved_any_more(world: World, run: UUID, due: UUID) -> None:
    holder = begun(world, due)
    holder.sent(due)
    for status in ("pending", "failed", "skipped"):
        assert holder.settle(due, status=status, reason="Late.") == {"applied": False, "moved": False, "final": "sent"}
    assert counters(world, run) == (1, 1, 0, 0)


def test_without_the_lease_a_caller_can_neither_move_a_message_nor_call_its_part_unsent(
    world: World, due: UUID
) -> None:
    begun(world, due)
    stranger, before = Holder(world), message(world, due)
    for item in ({"outcome": "planned", "status": "pending"}, {"outcome": "failed", "status": "failed"}):
        answer = stranger.settle(due, part_no=1, attempt_no=1, **item)
        assert answer == {"applied": False, "moved": False, "final": "sending"}
    assert (message(world, due), part_states(world, due)) == (before, [("attempting", 1)])


def test_who_reports_an_end_that_another_holder_recorded_did_not_move_the_message(world: World, due: UUID) -> None:
    holder = begun(world, due)
    assert holder.settle(due, status="failed", part_no=1, attempt_no=1, outcome="failed")["moved"]
    assert Holder(world).settle(due, status="failed") == {"applied": False, "moved": False, "final": "failed"}


def test_a_late_word_on_an_earlier_attempt_says_nothing_of_the_one_under_way(world: World, due: UUID) -> None:
    holder = begun(world, due)
    holder.settle(due, part_no=1, attempt_no=1, outcome="planned", code="refused")
    assert holder.begin(due, attempt_no=2) == "go"
    for outcome in ("planned", "unknown", "failed"):
        assert not holder.settle(due, part_no=1, attempt_no=1, outcome=outcome)["applied"]
    assert part_states(world, due) == [("attempting", 2)]


def test_a_lead_that_replied_before_its_providers_answer_stays_replied(world: World, due: UUID) -> None:
    holder = begun(world, due)
    world.do("UPDATE campaign_messages SET status = 'replied', replied_at = campaign_now() WHERE id = %s", due)
    assert holder.sent(due)["final"] == "replied"
    assert part_states(world, due) == [("sent", 1)]


@pytest.mark.parametrize(
    "item",
    [
        {"part_no": 1, "attempt_no": 1, "outcome": "sent", "provider_message_id": "WA"},
        {
            "part_no": 1,
            "attempt_no": 1,
            "outcome": "planned",
            "status": "pending",
            "delay_seconds": 60.0,
            "count_attempt": True,
        },
        {"part_no": 1, "attempt_no": 1, "outcome": "failed", "status": "failed", "count_attempt": True},
        {"part_no": 1, "attempt_no": 1, "outcome": "unknown", "status": "failed", "error_class": "unknown"},
    ],
)
def test_a_settlement_that_is_repeated_after_a_lost_answer_says_the_same_and_changes_nothing(
    world: World, run: UUID, due: UUID, item: dict[str, Any]
) -> None:
    holder = begun(world, due)
    first = holder.settle(due, **item)
    everything = (message(world, due), parts(world, due), run_row(world, run), world.all("SELECT * FROM messages"))
    assert holder.settle(due, **item) == first
    assert (
        message(world, due),
        parts(world, due),
        run_row(world, run),
        world.all("SELECT * FROM messages"),
    ) == everything


def test_a_repeated_first_part_of_several_is_still_applied(world: World, due: UUID) -> None:
    """Otherwise its holder would consider the message lost and leave it half sent until the lease ends."""
    holder = begun(world, due, "Um", "Dois")
    for _ in range(2):
        assert holder.sent(due) == {"applied": True, "moved": False, "final": "sending"}


def test_each_item_of_a_group_is_settled_by_itself(world: World, run: UUID) -> None:
    sent, failed, lost, waiting = world.due_messages(run, 4)
    holder = holding(world, sent, failed, waiting)
    for due in (sent, failed, waiting):
        holder.begin_new(due)
    first = {"part_no": 1, "attempt_no": 1}
    answers = holder.settle_all(
        [
            {"id": sent, **first, "outcome": "sent", "provider_message_id": "WA"},
            {"id": failed, **first, "outcome": "failed", "status": "failed", "error_class": "permanent"},
            {"id": lost, "status": "failed"},
            {"id": waiting, **first, "outcome": "planned", "status": "pending", "delay_seconds": 9.0},
        ]
    )
    assert {m: row["final"] for m, row in answers.items()} == {
        sent: "sent",
        failed: "failed",
        lost: "pending",
        waiting: "pending",
    }
    assert counters(world, run) == (2, 1, 1, 0)


# Late facts -----------------------------------------------------------------------------------------------------------


def lose_lease(world: World, due: UUID, holder: Holder) -> None:
    world.move_clock(PAST_LEASE)
    rows(world, "recover_leases")


def end_as_unknown(world: World, due: UUID, holder: Holder) -> None:
    holder.settle(due, part_no=1, attempt_no=1, outcome="unknown", status="failed", error_class="unknown")


def be_believed_absent(world: World, due: UUID, holder: Holder) -> None:
    """A new holder looked it up too early, found nothing, and returned it to be sent again."""
    lose_lease(world, due, holder)
    holding(world, due).settle(due, part_no=1, attempt_no=1, outcome="planned", status="pending", looked_up=True)


def be_skipped(world: World, due: UUID, holder: Holder) -> None:
    be_believed_absent(world, due, holder)
    holding(world, due).settle(due, status="skipped", code="too_old", reason="Too old.")


def be_taken_over(world: World, due: UUID, holder: Holder) -> None:
    lose_lease(world, due, holder)
    holding(world, due)


def be_cancelled(world: World, due: UUID, holder: Holder) -> None:
    lose_lease(world, due, holder)
    world.do("UPDATE campaign_runs SET status = 'cancelled'")
    rows(world, "settle_cancelled_runs")


LATE = [lose_lease, end_as_unknown, be_believed_absent, be_skipped, be_taken_over, be_cancelled]


@pytest.mark.parametrize("happen", LATE)
def test_a_late_fact_corrects_an_earlier_outcome(world: World, run: UUID, due: UUID, happen: Any) -> None:
    old = begun(world, due)
    happen(world, due, old)
    assert old.sent(due)["final"] == "sent"
    row = message(world, due)
    assert (row["status"], row["error_class"], row["error_message"]) == ("sent", None, None)
    assert part_states(world, due) == [("sent", 1)]
    assert counters(world, run) == (1, 1, 0, 0)
    assert world.wrong_counters() == []
    assert world.value("SELECT count(*) FROM messages") == 1


def test_after_a_late_fact_nobody_attempts_that_part(world: World, due: UUID) -> None:
    old = begun(world, due)
    be_believed_absent(world, due, old)
    new = holding(world, due)
    old.sent(due)
    assert new.begin(due, attempt_no=2) == "lost"
    assert part_states(world, due) == [("sent", 1)]


def test_a_late_fact_of_a_first_part_leaves_the_rest_to_the_new_holder(world: World, due: UUID) -> None:
    old = begun(world, due, "Um", "Dois")
    be_taken_over(world, due, old)
    assert old.sent(due)["applied"]
    new = Holder(world)
    new.token = message(world, due)["lease_token"]
    assert message(world, due)["status"] == "queued"
    assert new.begin(due, part_no=2) == "go"
    assert part_states(world, due) == [("sent", 1), ("attempting", 1)]


@pytest.mark.parametrize("happen", [end_as_unknown, be_skipped, be_cancelled])
def test_a_late_fact_of_a_first_part_of_several_makes_the_message_incomplete_not_unknown(
    world: World, run: UUID, due: UUID, happen: Any
) -> None:
    old = begun(world, due, "Um", "Dois")
    happen(world, due, old)
    old.sent(due)
    row = message(world, due)
    assert (row["status"], row["error_class"], row["error_code"]) == ("failed", "exhausted", "incomplete")
    assert counters(world, run) == (1, 0, 1, 0)
    assert world.wrong_counters() == []


def test_only_an_attempt_that_was_begun_can_turn_out_to_be_sent(world: World, due: UUID) -> None:
    holder = holding(world, due)
    holder.begin(due, part_no=0, text="Um", parts=["Um"])
    assert not holder.sent(due, attempt_no=1)["applied"]
    assert part_states(world, due) == [("planned", 0)]


def test_a_late_fact_leaves_the_counters_of_a_run_that_is_closed_as_they_were(
    world: World, run: UUID, due: UUID
) -> None:
    old = begun(world, due)
    end_as_unknown(world, due, old)
    assert [row["id"] for row in rows(world, "close_runs")] == [run]
    old.sent(due)
    assert message(world, due)["status"] == "sent"
    assert counters(world, run) == (1, 0, 1, 0)
    assert run_row(world, run)["status"] == "completed"


# Effects in the CRM ---------------------------------------------------------------------------------------------------


def test_each_sent_part_appears_once_in_the_chat(world: World, run: UUID, due: UUID) -> None:
    holder = begun(world, due, "Um", "Dois")
    holder.sent(due, provider_message_id="A")
    holder.begin(due, part_no=2)
    holder.sent(due, part_no=2, provider_message_id="B")
    shown = world.all("SELECT * FROM messages ORDER BY created_at")
    assert [(row["text_content"], row["provider_message_id"]) for row in shown] == [("Um", "A"), ("Dois", "B")]
    conversation = world.one("SELECT * FROM conversations")
    assert {row["conversation_id"] for row in shown} == {conversation["id"]}
    assert {(row["message_type"], row["content_type"], row["sent_by"], row["is_read"]) for row in shown} == {
        ("sent", "text", None, True)
    }
    assert (conversation["last_message"], conversation["campaign_run_id"]) == ("Dois", run)
    assert conversation["last_message_at"] == parts(world, due)[1]["sent_at"]


def test_a_part_that_did_not_go_out_is_not_shown(world: World, due: UUID) -> None:
    begun(world, due).settle(due, part_no=1, attempt_no=1, outcome="failed", status="failed")
    assert world.value("SELECT count(*) FROM messages") == 0


def test_a_conversation_found_by_phone_gets_its_lead(world: World, due: UUID) -> None:
    workspace = world.value("SELECT workspace_id FROM campaign_configs")
    found = world.insert("conversations", workspace_id=workspace, contact_phone=PHONE, channel="whatsapp")
    begun(world, due).sent(due)
    row = world.one("SELECT id, lead_id FROM conversations")
    assert row == {"id": found, "lead_id": message(world, due)["lead_id"]}


def test_a_contacted_lead_moves_only_from_the_source_column(world: World) -> None:
    source, target, elsewhere = uuid4(), uuid4(), uuid4()
    run = world.run(world.campaign(source_column_id=source, target_column_id=target))
    leads = [world.lead(column_id=column) for column in (source, elsewhere, None)]
    dues = [world.due_message(run, lead) for lead in leads]
    holder = holding(world, *dues)
    for due in dues:
        holder.begin_new(due)
    holder.settle_all({"id": due, "part_no": 1, "attempt_no": 1, "outcome": "sent"} for due in dues)
    columns = [world.value("SELECT column_id FROM leads WHERE id = %s", lead) for lead in leads]
    assert columns == [target, elsewhere, None]
    assert world.value("SELECT bool_and(last_activity_at IS NOT NULL) FROM leads")


def test_without_a_target_column_a_lead_stays(world: World) -> None:
    source = uuid4()
    run = world.run(world.campaign(source_column_id=source))
    due = world.due_message(run, world.lead(column_id=source))
    begun(world, due).sent(due)
    assert world.value("SELECT column_id FROM leads") == source


@pytest.mark.parametrize("outcome", ["failed", "unknown"])
def test_a_lead_that_was_not_reached_stays(world: World, outcome: str) -> None:
    source = uuid4()
    run = world.run(world.campaign(source_column_id=source, target_column_id=uuid4()))
    due = world.due_message(run, world.lead(column_id=source))
    begun(world, due).settle(due, part_no=1, attempt_no=1, outcome=outcome, status="failed")
    assert world.one("SELECT column_id, last_activity_at FROM leads") == {"column_id": source, "last_activity_at": None}


def test_a_deleted_lead_or_conversation_stops_no_settlement(world: World, due: UUID) -> None:
    holder = begun(world, due)
    world.do("DELETE FROM leads")
    world.do("DELETE FROM conversations")
    assert holder.sent(due)["final"] == "sent"


def test_settling_waits_for_the_row_and_then_sees_the_new_holder(world: World, due: UUID) -> None:
    old = begun(world, due)
    with psycopg.connect(world.url) as other:
        other.execute("UPDATE campaign_messages SET lease_token = %s WHERE id = %s", [uuid4(), due])
        world.do("SET lock_timeout = '300ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            old.settle(due, status="failed")
        other.commit()
    assert not old.settle(due, status="failed")["moved"]


# Look-up --------------------------------------------------------------------------------------------------------------


def control(world: World, inbox: UUID, address: str = PHONE) -> dict[str, Any]:
    started = world.value("SELECT EXTRACT(epoch FROM campaign_now())")
    found = world.connection.execute(
        statement("find_control_part"),
        {"inbox_id": inbox, "address": address, "started_at": started, "message_id": uuid4(), "text": "Oi"},
    )
    row = found.fetchone()
    assert row is not None
    return row


def test_a_control_is_a_part_that_this_inbox_sent_a_while_ago(world: World, run: UUID) -> None:
    inbox, other_inbox = uuid4(), uuid4()
    dues = world.due_messages(run, 3)
    holder = holding(world, *dues)
    for due, sender in zip(dues, (inbox, inbox, other_inbox), strict=True):
        holder.begin_new(due, inbox_id=sender)
    holder.sent(dues[0], provider_message_id="old")
    holder.sent(dues[2], provider_message_id="of another inbox")
    assert control(world, inbox) == {"control_provider_id": None, "taken_provider_ids": ["old"], "conversation_ids": []}
    world.move_clock(timedelta(seconds=11))
    holder.sent(dues[1], provider_message_id="just now")
    found = control(world, inbox)
    assert found["control_provider_id"] == "old"
    assert sorted(found["taken_provider_ids"]) == ["just now", "old"]
    assert control(world, inbox, address="5511900000000")["taken_provider_ids"] == []
