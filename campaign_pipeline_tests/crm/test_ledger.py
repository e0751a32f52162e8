"""Accepted parts are recorded, shown and move the lead, whatever the CRM does to its rows meanwhile."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.types.json import Jsonb

from campaign_pipeline.adapters.operator import Operator
from campaign_pipeline.adapters.schema import upgrade
from campaign_pipeline.sql import statement
from campaign_pipeline_tests.crm import SOURCE_COLUMN, TARGET_COLUMN, Crm
from campaign_pipeline_tests.sql.holder import Holder, holding, look, message, parts, rows, run_row, wait_until_blocked

PARTS = ("Olá, tudo bem?", "Podemos conversar?")


@pytest.fixture
def run(crm: Crm) -> UUID:
    """Three due messages of a campaign without a pace."""
    crm.do("UPDATE campaign_configs SET min_interval_seconds = 0, daily_limit = 1000")
    return crm.start_run(3)


def begin(crm: Crm, due: UUID, *texts: str) -> Holder:
    """A message with its first part in flight."""
    holder = holding(crm, due)
    assert holder.start_generating(due) == "go"
    assert holder.begin_new(due, *(texts or PARTS)) == "go"
    return holder


def first(crm: Crm, run: UUID) -> UUID:
    return UUID(str(crm.messages(run)[0]["id"]))


def chat(crm: Crm) -> list[dict[str, Any]]:
    return crm.all("SELECT * FROM messages ORDER BY created_at, text_content")


def lead_column(crm: Crm, lead: UUID) -> UUID:
    return UUID(str(crm.value("SELECT column_id FROM leads WHERE id = %s", lead)))


def log(crm: Crm, run: UUID) -> list[dict[str, Any]]:
    return crm.all("SELECT * FROM campaign_logs WHERE run_id = %s ORDER BY created_at", run)


# The CRM's own format -------------------------------------------------------------------------------------------------


def test_texts_of_the_ai_are_in_the_chat_as_the_crm_writes_them(crm: Crm, run: UUID) -> None:
    due = first(crm, run)
    holder = begin(crm, due)
    talk = crm.one("SELECT * FROM conversations")
    assert (talk["status"], talk["attendant_type"], talk["unread_count"], talk["total_messages"]) == (
        "waiting", "human", 0, 0,
    )  # fmt: skip
    holder.sent(due)
    assert holder.begin(due, part_no=2) == "go"
    holder.sent(due, part_no=2)
    assert [(row["message_type"], row["sent_by"], row["text_content"], row["is_read"]) for row in chat(crm)] == [
        ("sent", None, PARTS[0], True),
        ("sent", None, PARTS[1], True),
    ]
    talk = crm.one("SELECT * FROM conversations")
    assert (talk["total_messages"], talk["unread_count"], talk["last_message"]) == (2, 0, PARTS[1])
    assert talk["updated_at"] == talk["last_message_at"] == chat(crm)[1]["created_at"]
    assert talk["campaign_run_id"] == run


def test_a_lead_that_moves_has_it_in_its_history_once(crm: Crm, run: UUID) -> None:
    due = first(crm, run)
    holder = begin(crm, due, "Olá")
    holder.sent(due)
    holder.sent(due)  # the same answer once more
    (activity,) = crm.all("SELECT * FROM lead_activities")
    assert activity["lead_id"] == message(crm, due)["lead_id"]
    assert activity["activity_type"] == "column_change"
    assert activity["description"] == 'Campanha enviada: movido de "Novo" para "Contatado".'
    assert lead_column(crm, activity["lead_id"]) == TARGET_COLUMN


def test_a_lead_that_somebody_moved_meanwhile_stays_there_silently(crm: Crm, run: UUID) -> None:
    due = first(crm, run)
    holder = begin(crm, due, "Olá")
    won = crm.insert("funnel_columns", funnel_id="00000000-0000-0000-0000-0000000000e1", title="Ganho", position=2)
    crm.do("UPDATE leads SET column_id = %s", won)
    holder.sent(due)
    assert lead_column(crm, message(crm, due)["lead_id"]) == won
    assert crm.all("SELECT * FROM lead_activities") == []


@pytest.mark.parametrize("message_type", ["received", "incoming"])
def test_an_opt_out_counts_as_the_crm_stores_it(crm: Crm, run: UUID, message_type: str) -> None:
    """Through a function of the CRM's that saves replies, as little as it can see."""
    due = first(crm, run)
    begin(crm, due, "Olá").sent(due)
    # The CRM's own trigger on incoming messages needs a search_path; ours needs none.
    crm.do(f"""
        CREATE FUNCTION save_incoming_message(p_conversation uuid, p_type text, p_text text) RETURNS void LANGUAGE sql
        SECURITY DEFINER SET search_path = {"public" if message_type == "received" else "''"} AS $$
            INSERT INTO public.messages (conversation_id, message_type, text_content)
            VALUES (p_conversation, p_type, p_text) $$
    """)
    crm.do("SET ROLE service_role")
    crm.value("SELECT save_incoming_message(%s, %s, 'SAIR')::text", message(crm, due)["conversation_id"], message_type)
    crm.do("RESET ROLE")
    (found,) = crm.all("SELECT * FROM campaign_suppressions")
    assert (found["lead_id"], found["source"]) == (message(crm, due)["lead_id"], "keyword")
    # The CRM's own trigger has marked it replied, which counts as before.
    assert message(crm, due)["status"] == ("replied" if message_type == "received" else "sent")
    assert crm.wrong_counters() == []


# Writes that the CRM refuses ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("refusal", "what"),
    [
        ("ALTER TABLE messages ADD CHECK (text_content !~ '^Olá') NOT VALID", "chat row"),
        ("ALTER TABLE conversations ADD CHECK (total_messages = 0) NOT VALID", "chat row"),
        ("ALTER TABLE leads ADD CHECK (last_activity_at IS NULL) NOT VALID", "move of the lead"),
        ("ALTER TABLE lead_activities ADD CHECK (activity_type = 'call') NOT VALID", "move of the lead"),
    ],
)
def test_an_outcome_is_committed_even_if_the_crms_chat_refuses_it(crm: Crm, run: UUID, refusal: str, what: str) -> None:
    due = first(crm, run)
    holder = begin(crm, due, "Olá, tudo bem?")
    crm.do(refusal)
    assert holder.sent(due) == {"applied": True, "moved": False, "final": "sent"}
    assert [part["status"] for part in parts(crm, due)] == ["sent"]
    assert crm.wrong_counters() == []
    (line,) = [line for line in log(crm, run) if line["step_name"] == "crm"]
    assert what in line["message"]
    assert "violates check constraint" in line["message"]
    assert (line["level"], line["message_id"]) == ("error", due)


def test_only_the_items_that_the_crm_refuses_are_missing_from_a_group(crm: Crm, run: UUID) -> None:
    due = [row["id"] for row in crm.messages(run)]
    holder = holding(crm, *due)
    holder.begin_all(
        {"id": one, "text": f"Texto {n}", "parts": [f"Texto {n}"], "address": f"556798765432{n}"}
        for n, one in enumerate(due)
    )
    crm.do("ALTER TABLE messages ADD CHECK (text_content <> 'Texto 1') NOT VALID")
    holder.settle_all({"id": one, "part_no": 1, "attempt_no": 1, "outcome": "sent"} for one in due)
    assert {row["text_content"] for row in chat(crm)} == {"Texto 0", "Texto 2"}
    assert {row["status"] for row in crm.messages(run)} == {"sent"}
    assert crm.value("SELECT count(*) FROM lead_activities") == 3


def test_a_conversation_that_the_crm_refuses_is_done_without(crm: Crm, run: UUID) -> None:
    due = first(crm, run)
    crm.do("ALTER TABLE conversations ADD CHECK (status <> 'waiting') NOT VALID")
    holder = begin(crm, due, "Olá")
    assert holder.sent(due)["final"] == "sent"
    assert message(crm, due)["conversation_id"] is None
    assert any("conversation" in line["message"] for line in log(crm, run) if line["step_name"] == "crm")


def test_a_log_line_about_a_deleted_row_is_written_without_it(crm: Crm, run: UUID) -> None:
    due = message(crm, first(crm, run))
    lines = [
        {
            "run_id": str(run), "step_name": "send", "level": "info", "message": "x",
            "lead_id": str(due["lead_id"]), "message_id": str(due["id"]),
        },
        {"run_id": str(due["id"]), "step_name": "send", "level": "info", "message": "of a run that is no more"},
    ]  # fmt: skip
    crm.do("DELETE FROM leads WHERE id = %s", due["lead_id"])
    crm.connection.execute(statement("write_logs"), {"lines": Jsonb(lines)})
    (line,) = [line for line in log(crm, run) if line["message"] == "x"]
    assert (line["message_id"], line["lead_id"]) == (None, None)


# Rows that the CRM deletes --------------------------------------------------------------------------------------------


def test_a_finalize_by_a_total_that_is_too_small_ends_no_run_and_deletes_no_message(crm: Crm, run: UUID) -> None:
    due = first(crm, run)
    begin(crm, due)
    crm.do("UPDATE campaign_runs SET leads_total = 0 WHERE id = %s", run)
    crm.all("SELECT * FROM finalize_campaign_run_if_complete(%s)", run)
    assert crm.value("SELECT status FROM campaign_runs WHERE id = %s", run) == "running"
    assert message(crm, due)["status"] == "sending"


def test_a_message_that_waits_with_its_text_ends_with_its_lead(crm: Crm, run: UUID) -> None:
    due = first(crm, run)
    holder = holding(crm, due)
    crm.do("UPDATE campaign_messages SET scheduled_at = scheduled_at + interval '1 hour' WHERE id = %s", due)
    assert holder.start_generating(due) == "go"
    assert holder.begin_new(due, *PARTS) == "not_due"
    crm.do("DELETE FROM leads WHERE id = %s", message(crm, due)["lead_id"])
    assert crm.all("SELECT * FROM campaign_messages WHERE id = %s", due) == [], "by the CRM's foreign key"
    assert holder.renew([due]) == set()
    assert holder.begin(due) == "lost"
    assert [part["status"] for part in parts(crm, due)] == ["planned", "planned"]


@pytest.mark.parametrize("how", ["cancel", "delete the message", "delete the run"])
def test_a_part_in_flight_is_recorded_although_its_message_is_deleted(crm: Crm, run: UUID, how: str) -> None:
    due = first(crm, run)
    lead = message(crm, due)["lead_id"]
    holder = begin(crm, due)
    if how == "cancel":
        crm.value("SELECT cancel_campaign_run(%s)", run)
    elif how == "delete the run":
        crm.do("DELETE FROM campaign_runs WHERE id = %s", run)
    else:
        crm.do("DELETE FROM campaign_messages WHERE id = %s", due)
    assert crm.all("SELECT * FROM campaign_messages WHERE id = %s", due) == []
    assert holder.sent(due) == {"applied": True, "moved": False, "final": None}
    assert [part["status"] for part in parts(crm, due)] == ["sent", "planned"]
    assert [row["text_content"] for row in chat(crm)] == [PARTS[0]]
    assert lead_column(crm, lead) == TARGET_COLUMN
    assert holder.begin(due, part_no=2) == "lost"
    if how != "delete the run":
        (line,) = [line for line in log(crm, run) if line["step_name"] == "send"]
        assert "1 of its 2 parts went out: recorded, shown in the chat, and the lead was moved." in line["message"]


def test_a_part_that_was_surely_not_sent_moves_no_lead(crm: Crm, run: UUID) -> None:
    due = first(crm, run)
    lead = message(crm, due)["lead_id"]
    holder = begin(crm, due)
    crm.value("SELECT cancel_campaign_run(%s)", run)
    settled = holder.settle(due, part_no=1, attempt_no=1, outcome="failed", status="failed", code="x", reason="No.")
    assert settled == {"applied": True, "moved": False, "final": None}
    assert [part["status"] for part in parts(crm, due)] == ["failed", "planned"]
    assert (lead_column(crm, lead), chat(crm)) == (SOURCE_COLUMN, [])


def test_a_deleted_message_whose_worker_died_is_unknown_and_its_lead_not_contacted_again(crm: Crm, run: UUID) -> None:
    due = first(crm, run)
    lead = message(crm, due)["lead_id"]
    holder = begin(crm, due)
    crm.value("SELECT cancel_campaign_run(%s)", run)
    rows(crm, "recover_leases")
    assert [part["status"] for part in parts(crm, due)] == ["attempting", "planned"]
    crm.move_clock(timedelta(minutes=6))
    rows(crm, "recover_leases")
    assert [part["status"] for part in parts(crm, due)] == ["unknown", "planned"]
    assert lead_column(crm, lead) == TARGET_COLUMN
    assert crm.all("SELECT * FROM campaign_deleted_in_flight") == []
    (line,) = [line for line in log(crm, run) if line["step_name"] == "send"]
    assert "Nobody knows whether a part went out; the lead was moved as if it had." in line["message"]
    assert holder.sent(due)["applied"]  # it was only slow
    assert [row["text_content"] for row in chat(crm)] == [PARTS[0]]


def test_a_lead_that_got_a_part_moves_although_its_message_is_deleted(crm: Crm, run: UUID) -> None:
    due = first(crm, run)
    lead = message(crm, due)["lead_id"]
    holder = begin(crm, due)
    holder.sent(due)
    holder.settle(due, status="pending", code="timeout", reason="Later.", error_class="transient", delay_seconds=300)
    assert not look(crm).has_dead_leases
    crm.value("SELECT cancel_campaign_run(%s)", run)
    assert look(crm).has_dead_leases
    rows(crm, "recover_leases")
    assert lead_column(crm, lead) == TARGET_COLUMN
    assert crm.all("SELECT * FROM campaign_deleted_in_flight") == []
    rows(crm, "recover_leases")
    assert len([line for line in log(crm, run) if line["step_name"] == "send"]) == 1
    assert not look(crm).has_dead_leases


def test_a_persons_data_is_found_although_the_crm_deleted_the_message(crm: Crm, run: UUID) -> None:
    due = first(crm, run)
    lead = message(crm, due)["lead_id"]
    holder = begin(crm, due)
    crm.value("SELECT cancel_campaign_run(%s)", run)
    holder.settle(due, part_no=1, attempt_no=1, outcome="failed", status="failed", code="opted_out", reason="No more.")
    (suppressed,) = crm.all("SELECT * FROM campaign_suppressions")
    assert (suppressed["lead_id"], suppressed["source"]) == (lead, "provider")
    export = crm.value("SELECT campaign_export_lead(%s)", lead)
    assert [part["text"] for part in export["parts_of_deleted_messages"]] == list(PARTS)
    crm.value("SELECT campaign_erase_lead(%s, 'Rui')", lead)
    assert {(part["text"], part["address"]) for part in parts(crm, due)} == {("", None)}


def test_another_worker_cannot_settle_a_part_of_a_deleted_message_but_as_sent(crm: Crm, run: UUID) -> None:
    due = first(crm, run)
    begin(crm, due)
    crm.value("SELECT cancel_campaign_run(%s)", run)
    other = Holder(crm)
    assert not other.settle(due, part_no=1, attempt_no=1, outcome="planned", status="pending")["applied"]
    assert [part["status"] for part in parts(crm, due)] == ["attempting", "planned"]
    assert other.sent(due)["applied"]


def test_a_lead_that_was_contacted_is_not_picked_again_by_the_next_run(crm: Crm, run: UUID) -> None:
    due = first(crm, run)
    lead = message(crm, due)["lead_id"]
    holder = begin(crm, due)
    crm.value("SELECT cancel_campaign_run(%s)", run)
    holder.sent(due)
    again = crm.start_run(40)
    assert lead not in {row["lead_id"] for row in crm.messages(again)}


# Pause and cancel -----------------------------------------------------------------------------------------------------


def test_a_pause_by_the_crm_stops_a_message_after_the_part_in_flight_and_it_goes_on_when_resumed(
    crm: Crm, run: UUID
) -> None:
    due = first(crm, run)
    holder = begin(crm, due)
    crm.value("SELECT pause_campaign_run(%s, 'Pausado manualmente')", run)
    holder.sent(due)
    assert holder.begin(due, part_no=2) == "run_paused"
    holder.settle(due, status="pending", code="run_paused", reason="The run is paused.")
    assert crm.wrong_counters() == []
    assert run_row(crm, run)["leads_skipped"] == 2
    crm.value("SELECT resume_campaign_run(%s)", run)
    assert run_row(crm, run)["leads_skipped"] == 0
    again = holding(crm, due)
    assert again.begin(due, part_no=2) == "go"
    assert again.sent(due, part_no=2)["final"] == "sent"
    assert [row["text_content"] for row in chat(crm)] == list(PARTS)
    assert crm.wrong_counters() == []


def test_the_pipelines_resume_restores_what_the_crms_pause_skipped(crm: Crm, run: UUID) -> None:
    """If only its status were set to running, the run would end with all messages skipped, later deleted."""
    due = first(crm, run)
    holder = begin(crm, due)
    crm.do("UPDATE campaign_messages SET status = 'skipped', error_message = 'antiga' WHERE id = %s",
           crm.messages(run)[2]["id"])  # fmt: skip
    crm.value("SELECT pause_campaign_run(%s, 'Pausado manualmente')", run)
    holder.sent(due)
    holder.settle(due, status="pending", code="run_paused", reason="The run is paused.")
    with Operator(crm.url) as desk:
        assert desk.resume_run(desk.find("run", str(run)), "Ana").changed
    assert sorted(row["status"] for row in crm.messages(run)) == ["pending", "pending", "skipped"]
    assert crm.wrong_counters() == []
    rows(crm, "close_runs")
    assert run_row(crm, run)["status"] == "running"
    assert holding(crm, due).begin(due, part_no=2) == "go"


def test_leased_messages_that_have_not_begun_are_not_sent_after_a_cancel(crm: Crm, run: UUID) -> None:
    due = [row["id"] for row in crm.messages(run)]
    holder = holding(crm, *due)
    crm.value("SELECT cancel_campaign_run(%s)", run)
    assert {holder.start_generating(one) for one in due} == {"lost"}
    assert crm.all("SELECT * FROM campaign_message_parts") == []


def test_the_crm_never_fails_because_a_worker_is_in_its_way(crm: Crm, run: UUID) -> None:
    """A cancel has locked the run and wants the message; settling the message waits only for the run."""
    due = first(crm, run)
    holder = begin(crm, due, "Olá")
    with ThreadPoolExecutor(1) as pool, Crm(crm.url) as other:
        with other.connection.transaction():
            other.do("UPDATE campaign_runs SET error_message = 'x' WHERE id = %s", run)
            settled = pool.submit(holder.sent, due)
            with Crm(crm.url) as onlooker:
                wait_until_blocked(onlooker)
            other.do("UPDATE campaign_runs SET status = 'cancelled', completed_at = now() WHERE id = %s", run)
        assert settled.result(30)["applied"]
    assert crm.messages(run) == []
    assert [part["status"] for part in parts(crm, due)] == ["sent"]


def test_of_a_worker_and_a_member_in_each_others_way_the_worker_gives_up(crm: Crm, run: UUID) -> None:
    """A member's statement has locked a message and wants the run, for its counters; the worker has locked the run."""
    due = [row["id"] for row in crm.messages(run)]
    holder = begin(crm, due[0], "Olá")
    with ThreadPoolExecutor(1) as pool, Crm(crm.url) as member:
        with member.connection.transaction():
            member.do("UPDATE campaign_messages SET phone_source = 'x' WHERE id = %s", due[0])
            settled = pool.submit(holder.sent, due[0])
            with Crm(crm.url) as onlooker:
                wait_until_blocked(onlooker)
            member.do("UPDATE campaign_messages SET status = 'skipped' WHERE id = %s", due[1])
        with pytest.raises(psycopg.errors.LockNotAvailable):
            settled.result(30)
    assert holder.sent(due[0])["final"] == "sent"
    assert crm.wrong_counters() == []


# Counters and ends ----------------------------------------------------------------------------------------------------


def counters(crm: Crm, run: UUID) -> tuple[int, int, int, int]:
    row = run_row(crm, run)
    return row["leads_processed"], row["leads_success"], row["leads_failed"], row["leads_skipped"]


def test_counters_of_a_run_that_ended_are_frozen_though_the_crm_deletes_its_messages(crm: Crm, run: UUID) -> None:
    due = [row["id"] for row in crm.messages(run)]
    begin(crm, due[0], "Olá").sent(due[0])
    crm.do("UPDATE campaign_messages SET status = 'skipped' WHERE id = ANY (%s)", due[1:])
    (closed,) = rows(crm, "close_runs")
    assert (closed["id"], closed["status"]) == (run, "completed")
    assert crm.value("SELECT count(*) FROM campaign_messages") == 1  # the CRM's clean-up
    assert counters(crm, run) == (3, 1, 0, 2)
    crm.do("DELETE FROM campaign_messages")
    crm.do("TRUNCATE campaign_messages CASCADE")
    assert counters(crm, run) == (3, 1, 0, 2)
    assert rows(crm, "find_wrong_counters") == []


def test_an_upgrade_recounts_open_runs_only(bare_crm: Crm) -> None:
    ended, still = bare_crm.start_run(2), bare_crm.start_run(2, skip=2)
    bare_crm.do("UPDATE campaign_runs SET leads_success = 7, leads_processed = 7 WHERE id = ANY (%s)", [ended, still])
    bare_crm.do("UPDATE campaign_messages SET status = 'sent' WHERE run_id = ANY (%s)", [ended, still])
    bare_crm.do("UPDATE campaign_runs SET status = 'completed' WHERE id = %s", ended)
    for _ in range(2):
        upgrade(bare_crm.url)
        assert counters(bare_crm, ended) == (7, 7, 0, 0)
        assert counters(bare_crm, still) == (2, 2, 0, 0)


def test_a_run_without_messages_is_left_to_the_scheduler_for_five_minutes(crm: Crm) -> None:
    run = crm.run(name="Manhã")
    assert rows(crm, "close_runs") == []
    assert not look(crm).has_complete
    crm.move_clock(timedelta(minutes=6))
    assert look(crm).has_complete
    assert [row["id"] for row in rows(crm, "close_runs")] == [run]


def test_an_empty_run_with_a_total_stays_open_for_an_hour(crm: Crm) -> None:
    run = crm.run(name="Manhã", leads_total=5)
    crm.move_clock(timedelta(minutes=59))
    assert rows(crm, "close_runs") == []
    crm.move_clock(timedelta(minutes=61))
    assert [row["id"] for row in rows(crm, "close_runs")] == [run]


def test_a_late_message_opens_the_run_again_that_was_closed_without_any(crm: Crm) -> None:
    run = crm.run(name="Manhã")
    crm.move_clock(timedelta(minutes=6))
    rows(crm, "close_runs")
    crm.due_message(run, crm.value("SELECT id FROM leads LIMIT 1"))
    row = run_row(crm, run)
    assert (row["status"], row["completed_at"]) == ("running", None)
    (message_id,) = (row["id"] for row in crm.messages(run))
    begin(crm, message_id, "Olá").sent(message_id)
    assert counters(crm, run) == (1, 1, 0, 0)
    assert [row["id"] for row in rows(crm, "close_runs")] == [run]
    assert rows(crm, "close_runs") == []


def test_a_run_that_people_ended_is_not_opened_by_a_late_message(crm: Crm) -> None:
    run = crm.run(status="completed")
    crm.due_message(run, crm.value("SELECT id FROM leads LIMIT 1"))
    assert run_row(crm, run)["status"] == "completed"


def test_a_message_that_is_being_inserted_keeps_its_run_open(crm: Crm) -> None:
    run = crm.run(name="Manhã")
    crm.move_clock(timedelta(minutes=6))
    with Crm(crm.url) as scheduler, scheduler.connection.transaction():
        scheduler.due_message(run, scheduler.value("SELECT id FROM leads LIMIT 1"))
        assert rows(crm, "close_runs") == []
    assert rows(crm, "close_runs") == []
    assert run_row(crm, run)["status"] == "running"


def test_a_campaign_without_a_name_is_called_by_its_run_its_inbox_or_its_workspace(crm: Crm) -> None:
    run = crm.start_run(1)

    def names() -> set[str]:
        return {row["campaign"] for row in rows(crm, "list_runs_at_work", closed=[])}

    assert names() == {"Primeiros contatos"}
    crm.do("UPDATE campaign_runs SET name = NULL WHERE id = %s", run)
    assert names() == {"Vendas"}
    crm.do("UPDATE inboxes SET name = ''")
    assert names() == {"Loja"}
