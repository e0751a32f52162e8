from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from campaign_pipeline_tests.factories import PLAIN_NAMES, World
from campaign_pipeline_tests.sql.holder import (
    PHONE,
    Holder,
    claim_batch,
    holding,
    message,
    part_states,
    parts,
    rows,
    run_statement,
    wait_until_blocked,
)


@pytest.fixture
def run(world: World) -> UUID:
    return world.run()


@pytest.fixture
def due(world: World, run: UUID) -> UUID:
    return world.due_message(run)


def pause(world: World, scope: str, scope_id: Any, kind: str = "systemic", **columns: Any) -> None:
    now = world.value("SELECT campaign_now()")
    world.insert(
        "campaign_pauses",
        **{
            "scope": scope,
            "scope_id": str(scope_id),
            "kind": kind,
            "code": "trouble",
            "reason": "Trouble.",
            "since": now,
            "until": now + timedelta(minutes=1),
            **columns,
        },
    )


def scope_ids(world: World, run: UUID) -> dict[str, Any]:
    row = world.one(
        "SELECT c.workspace_id AS workspace, c.inbox_id AS inbox FROM campaign_runs r "
        "JOIN campaign_configs c ON c.id = r.config_id WHERE r.id = %s",
        run,
    )
    return {**row, "run": run, "model": "openai/gpt-4o-mini", "provider": "openrouter"}


# Intent ---------------------------------------------------------------------------------------------------------------


def test_the_intent_fixes_text_and_parts_and_is_an_attempt_of_the_first(world: World, due: UUID) -> None:
    holder = holding(world, due)
    inbox = uuid4()
    assert holder.begin_new(due, "Olá, Ana!", "Tudo bem?", inbox_id=inbox, ai_cost_usd=0.00012345) == "go"
    row = message(world, due)
    assert (row["status"], row["generated_message"]) == ("sending", "Olá, Ana! Tudo bem?")
    assert (row["ai_model"], row["ai_tokens_used"], float(row["ai_cost_usd"])) == ("m", 9, 0.00012345)
    assert (row["address"], row["phone_normalized"]) == (PHONE, PHONE)
    first, second = parts(world, due)
    assert (first["text"], first["status"], first["attempts"], first["attempt_token"]) == (
        "Olá, Ana!",
        "attempting",
        1,
        holder.token,
    )
    assert (first["idempotency_key"], second["idempotency_key"]) == (f"{due}:1", f"{due}:2")
    assert (first["address"], first["inbox_id"]) == (PHONE, inbox)
    assert first["attempted_at"] is not None
    assert (second["text"], second["status"], second["attempts"], second["attempted_at"]) == (
        "Tudo bem?",
        "planned",
        0,
        None,
    )


def test_the_intent_is_committed_when_it_may_go(world: World, due: UUID) -> None:
    assert holding(world, due).begin_new(due) == "go"
    with psycopg.connect(world.url, options=PLAIN_NAMES) as other:
        assert other.execute("SELECT status FROM campaign_message_parts").fetchall() == [("attempting",)]


def test_the_same_intent_again_after_a_lost_answer_goes_and_changes_nothing(world: World, due: UUID) -> None:
    holder = holding(world, due)
    assert holder.begin_new(due, "Um", "Dois") == "go"
    before, conversation = parts(world, due), message(world, due)["conversation_id"]
    assert holder.begin_new(due, "Um", "Dois") == "go"
    assert parts(world, due) == before
    assert message(world, due)["conversation_id"] == conversation
    assert world.value("SELECT count(*) FROM conversations") == 1


def test_the_same_later_intent_again_goes_and_counts_once(world: World, due: UUID) -> None:
    holder = holding(world, due)
    holder.begin_new(due, "Um", "Dois")
    holder.sent(due)
    for _ in range(2):
        assert holder.begin(due, part_no=2) == "go"
        assert part_states(world, due) == [("sent", 1), ("attempting", 1)]


def test_an_intent_is_refused_that_repeats_a_settled_attempt(world: World, due: UUID) -> None:
    holder = holding(world, due)
    holder.begin_new(due)
    holder.settle(due, part_no=1, attempt_no=1, outcome="planned", code="rate_limited", reason="Too fast.")
    assert holder.begin(due, attempt_no=1) == "lost"
    assert holder.begin(due, attempt_no=3) == "lost"
    assert part_states(world, due) == [("planned", 1)]
    assert holder.begin(due, attempt_no=2) == "go"
    assert part_states(world, due) == [("attempting", 2)]


@pytest.mark.parametrize("outcome", ["unknown", "failed"])
def test_no_attempt_follows_an_outcome_that_forbids_it(world: World, due: UUID, outcome: str) -> None:
    holder = holding(world, due)
    holder.begin_new(due)
    holder.settle(due, part_no=1, attempt_no=1, outcome=outcome)
    assert holder.begin(due, attempt_no=2) == "lost"
    assert part_states(world, due) == [(outcome, 1)]


def test_the_attempt_of_another_holder_is_not_taken_for_ones_own(world: World, due: UUID) -> None:
    holder = holding(world, due)
    holder.begin_new(due)
    world.do("UPDATE campaign_message_parts SET attempt_token = gen_random_uuid()")
    assert holder.begin_new(due) == "lost"


def test_an_approval_to_send_again_holds_for_one_attempt(world: World, due: UUID) -> None:
    holder = holding(world, due)
    holder.begin_new(due)
    unknown = {"part_no": 1, "outcome": "unknown", "code": "no_answer", "reason": "No answer."}
    holder.settle(due, attempt_no=1, status="failed", error_class="unknown", **unknown)
    assert rows(world, "requeue_failed", ids=[due], resend_unknown=True) == [{"id": due}]
    again = holding(world, due)
    assert world.value("SELECT resend_approved_at IS NOT NULL FROM campaign_message_parts")
    again.settle(due, part_no=1, attempt_no=1, outcome="planned")
    assert again.begin(due, attempt_no=2) == "go"
    again.settle(due, attempt_no=2, **unknown)
    assert world.value("SELECT resend_approved_at FROM campaign_message_parts") is None


def test_a_sent_part_is_never_attempted_again(world: World, due: UUID) -> None:
    holder = holding(world, due)
    holder.begin_new(due, "Um", "Dois")
    holder.sent(due)
    for attempt_no in (1, 2):
        assert holder.begin(due, part_no=1, attempt_no=attempt_no) == "lost"
    assert part_states(world, due) == [("sent", 1), ("planned", 0)]


def test_a_stored_text_is_never_replaced(world: World, due: UUID) -> None:
    holder = holding(world, due)
    assert holder.begin(due, part_no=0, text="Um Dois", parts=["Um", "Dois"]) == "go"
    assert holder.begin_new(due, "Outro", "texto", "bem", "diferente") == "go"
    assert message(world, due)["generated_message"] == "Um Dois"
    assert [part["text"] for part in parts(world, due)] == ["Um", "Dois"]


def test_a_text_is_kept_without_an_attempt(world: World, due: UUID) -> None:
    holder = holding(world, due)
    assert holder.begin(due, part_no=0, address="", text="Um Dois", parts=["Um", "Dois"], ai_model="m") == "go"
    row = message(world, due)
    assert (row["status"], row["generated_message"], row["ai_model"], row["address"]) == (
        "queued",
        "Um Dois",
        "m",
        None,
    )
    assert part_states(world, due) == [("planned", 0), ("planned", 0)]


# Verdicts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["paused", "cancelled", "failed"])
def test_a_run_that_was_stopped_stops_what_is_not_begun_and_keeps_its_text(
    world: World, run: UUID, due: UUID, status: str
) -> None:
    holder = holding(world, due)
    world.do("UPDATE campaign_runs SET status = %s WHERE id = %s", status, run)
    assert holder.start_generating(due) == f"run_{status}"
    assert holder.begin_new(due, "Um", "Dois") == f"run_{status}"
    assert part_states(world, due) == [("planned", 0), ("planned", 0)]
    assert message(world, due)["generated_message"] == "Um Dois"
    assert message(world, due)["status"] == "queued"


@pytest.mark.parametrize("status", ["paused", "cancelled"])
def test_a_run_that_is_stopped_stops_its_messages_after_the_part_in_flight(
    world: World, run: UUID, due: UUID, status: str
) -> None:
    holder = holding(world, due)
    holder.begin_new(due, "Um", "Dois")
    holder.sent(due)
    world.do("UPDATE campaign_runs SET status = %s WHERE id = %s", status, run)
    assert holder.begin(due, part_no=2) == f"run_{status}"
    assert part_states(world, due) == [("sent", 1), ("planned", 0)]


def test_a_message_whose_lead_was_deleted_is_not_begun_and_not_written(world: World, run: UUID) -> None:
    new, written, begun = world.due_messages(run, 3)
    holder = holding(world, new, written, begun)
    holder.begin_new(begun, "Um", "Dois")
    holder.sent(begun)
    world.do("DELETE FROM leads")
    assert holder.start_generating(new) == "lead_deleted"
    assert holder.begin_new(written) == "lead_deleted"
    assert part_states(world, written) == [("planned", 0)], "paid for, so kept"
    assert holder.begin(begun, part_no=2) == "go", "half a message is worse than a late stop"


@pytest.mark.parametrize("kind", ["systemic", "throttled"])
@pytest.mark.parametrize("scope", ["inbox", "run", "workspace", "model", "provider"])
def test_a_paused_scope_stops_the_requests_that_need_it(
    world: World, run: UUID, due: UUID, scope: str, kind: str
) -> None:
    holder = holding(world, due)
    pause(world, scope, scope_ids(world, run)[scope], kind)
    assert holder.start_generating(due) == "scope_paused"
    # Sending needs no language model.
    assert holder.begin_new(due) == ("scope_paused" if scope in {"inbox", "run"} else "go")
    assert message(world, due)["generated_message"] == "Olá, Ana!"


def test_a_paused_account_of_all_stops_no_workspace_with_a_key_of_its_own(world: World, run: UUID, due: UUID) -> None:
    world.do("UPDATE ai_agents SET openrouter_api_key = 'sk-or-own-1234567'")
    holder = holding(world, due)
    pause(world, "provider", scope_ids(world, run)["provider"])
    assert holder.start_generating(due) == "go"


@pytest.mark.parametrize(("scope", "verdict"), [("inbox", "scope_paused"), ("run", "go"), ("provider", "go")])
def test_with_a_part_out_only_a_closed_inbox_stops_a_message(
    world: World, run: UUID, due: UUID, scope: str, verdict: str
) -> None:
    holder = holding(world, due)
    holder.begin_new(due, "Um", "Dois")
    holder.sent(due)
    pause(world, scope, scope_ids(world, run)[scope])
    assert holder.begin(due, part_no=2) == verdict


def test_other_scopes_pauses_and_throttles_that_are_over_stop_nothing(world: World, run: UUID, due: UUID) -> None:
    holder = holding(world, due)
    for scope in ("inbox", "run", "workspace", "model"):
        pause(world, scope, uuid4())
    past = world.value("SELECT campaign_now() - interval '1 second'")
    pause(world, "inbox", scope_ids(world, run)["inbox"], "throttled", until=past)
    assert holder.start_generating(due) == "go"
    assert holder.begin_new(due) == "go"


def test_a_systemic_pause_holds_past_its_time_for_all_but_the_probe(world: World, run: UUID) -> None:
    probe, other = world.due_messages(run, 2)
    holder = holding(world, probe, other)
    past = world.value("SELECT campaign_now() - interval '1 hour'")
    pause(world, "inbox", scope_ids(world, run)["inbox"], until=past, probe_message_id=probe)
    assert holder.begin_new(probe) == "go"
    assert holder.begin_new(other) == "scope_paused"


def test_a_text_stored_during_a_pause_is_sent_as_a_first_attempt(world: World, run: UUID, due: UUID) -> None:
    holder = holding(world, due)
    pause(world, "inbox", scope_ids(world, run)["inbox"])
    assert holder.begin_new(due, "Um", "Dois") == "scope_paused"
    assert part_states(world, due) == [("planned", 0), ("planned", 0)]
    world.do("DELETE FROM campaign_pauses")
    assert holder.begin_new(due, "Um", "Dois") == "go"
    assert part_states(world, due) == [("attempting", 1), ("planned", 0)]


def test_starting_to_generate_shows_and_may_be_repeated(world: World, due: UUID) -> None:
    holder = holding(world, due)
    for _ in range(2):
        assert holder.start_generating(due) == "go"
        assert message(world, due)["status"] == "generating"


def test_a_deleted_message_is_lost(world: World, due: UUID) -> None:
    holder = holding(world, due)
    world.do("DELETE FROM campaign_messages")
    assert holder.start_generating(due) == "lost"
    assert holder.begin_new(due) == "lost"
    assert holder.settle(due, status="pending") == {"applied": False, "moved": False, "final": None}


def test_a_message_that_a_webhook_calls_replied_is_not_sent_on(world: World, due: UUID) -> None:
    holder = holding(world, due)
    holder.begin_new(due, "Um", "Dois")
    holder.sent(due)
    world.do("UPDATE campaign_messages SET status = 'replied'")
    assert holder.begin(due, part_no=2) == "lost"


def test_each_item_of_a_group_has_its_own_verdict(world: World, run: UUID) -> None:
    going, lost = world.due_messages(run, 2)
    paused = world.due_message(world.run(status="paused"))
    holder = holding(world, going, paused)
    text: dict[str, Any] = {"text": "Oi", "parts": ["Oi"]}
    answers = holder.begin_all([{"id": m, **text} for m in (going, lost, paused)])
    assert {m: row["verdict"] for m, row in answers.items()} == {going: "go", lost: "lost", paused: "run_paused"}
    assert part_states(world, going) == [("attempting", 1)]
    assert part_states(world, lost) == []
    assert part_states(world, paused) == [("planned", 0)]


def test_of_two_holders_that_begin_at_once_only_one_is_admitted(world: World, due: UUID) -> None:
    """The second waits for the first's commit, and then sees who holds the message."""
    old = holding(world, due)
    with psycopg.connect(world.url, options=PLAIN_NAMES) as other:
        new = uuid4()
        other.execute("UPDATE campaign_messages SET lease_token = %s WHERE id = %s", [new, due])
        world.do("SET lock_timeout = '300ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            old.begin_new(due)
        other.commit()
    assert old.begin_new(due) == "lost"


# Conversations --------------------------------------------------------------------------------------------------------


@pytest.fixture
def workspace(world: World, run: UUID) -> UUID:
    found: UUID = scope_ids(world, run)["workspace"]
    return found


def conversation(world: World, workspace: UUID, days_ago: float | None = 1, **columns: Any) -> UUID:
    at = None if days_ago is None else world.value("SELECT campaign_now()") - timedelta(days=days_ago)
    row = {"workspace_id": workspace, "channel": "whatsapp", "last_message_at": at, **columns}
    return world.insert("conversations", **row)


def conversation_of(world: World, due: UUID) -> UUID | None:
    found: UUID | None = message(world, due)["conversation_id"]
    return found


def lead_of(world: World, due: UUID) -> UUID:
    found: UUID = message(world, due)["lead_id"]
    return found


def test_the_leads_newest_conversation_is_taken(world: World, workspace: UUID, due: UUID) -> None:
    lead = lead_of(world, due)
    conversation(world, workspace, 9, lead_id=lead)
    newest = conversation(world, workspace, 1, lead_id=lead)
    conversation(world, workspace, None, lead_id=lead)
    conversation(world, workspace, 0, contact_phone=PHONE)
    holding(world, due).begin_new(due)
    assert conversation_of(world, due) == newest


@pytest.mark.parametrize("written", [PHONE, f"+{PHONE}", "+55 11 91234-0000"])
def test_else_the_phones_newest_however_it_is_written(world: World, workspace: UUID, run: UUID, written: str) -> None:
    due = world.due_message(run, phone_number="+55 11 91234-0000")
    conversation(world, workspace, 9, contact_phone=written)
    newest = conversation(world, workspace, 2, contact_phone=written)
    holding(world, due).begin_new(due)
    assert conversation_of(world, due) == newest


def test_other_channels_and_workspaces_have_their_own(world: World, workspace: UUID, due: UUID) -> None:
    lead = lead_of(world, due)
    others = {
        conversation(world, workspace, 0, lead_id=lead, channel="email"),
        conversation(world, world.workspace(), 0, lead_id=lead),
        conversation(world, world.workspace(), 0, contact_phone=PHONE),
    }
    holding(world, due).begin_new(due)
    assert conversation_of(world, due) not in others
    assert world.value("SELECT count(*) FROM conversations") == 4


def test_a_conversation_without_a_channel_fits_any(world: World, workspace: UUID, due: UUID) -> None:
    old = conversation(world, workspace, 1, lead_id=lead_of(world, due), channel=None)
    holding(world, due).begin_new(due)
    assert conversation_of(world, due) == old


def test_else_one_is_made_and_linked(world: World, workspace: UUID, run: UUID, due: UUID) -> None:
    answers = holding(world, due).begin_all([{"id": due, "text": "Oi", "parts": ["Oi"], "contact_name": "Ana Souza"}])
    made = world.one("SELECT * FROM conversations")
    assert made["id"] == conversation_of(world, due) == answers[due]["conversation_id"]
    assert (made["workspace_id"], made["lead_id"], made["campaign_run_id"]) == (workspace, lead_of(world, due), run)
    assert (made["contact_name"], made["contact_phone"], made["channel"], made["status"]) == (
        "Ana Souza",
        PHONE,
        "whatsapp",
        "waiting",
    )
    assert made["inbox_id"] == scope_ids(world, run)["inbox"]


def test_two_messages_of_one_lead_in_one_group_make_one_conversation(world: World, run: UUID) -> None:
    lead = world.lead()
    same = [world.due_message(run, lead) for _ in range(2)]
    other = world.due_message(run)
    holder = holding(world, *same, other)
    holder.begin_all(
        {"id": m, "text": "Oi", "parts": ["Oi"], "address": f"55119{m.int % 10**8}"} for m in [*same, other]
    )
    assert conversation_of(world, same[0]) == conversation_of(world, same[1])
    assert conversation_of(world, other) not in {None, conversation_of(world, same[0])}
    assert world.value("SELECT count(*) FROM conversations") == 2


def test_two_leads_with_one_phone_in_one_group_have_one_conversation_each(world: World, run: UUID) -> None:
    first, second = world.due_messages(run, 2)
    holder = holding(world, first, second)
    holder.begin_all({"id": m, "text": "Oi", "parts": ["Oi"]} for m in (first, second))
    assert conversation_of(world, first) != conversation_of(world, second)


def test_a_later_part_stays_in_the_conversation_of_the_first(world: World, workspace: UUID, due: UUID) -> None:
    holder = holding(world, due)
    holder.begin_new(due, "Um", "Dois")
    first = conversation_of(world, due)
    holder.sent(due)
    conversation(world, workspace, -1, lead_id=lead_of(world, due))
    holder.begin(due, part_no=2)
    assert conversation_of(world, due) == first


def test_no_conversation_is_created_for_a_message_that_may_not_be_sent(world: World, run: UUID, due: UUID) -> None:
    holder = holding(world, due)
    world.do("UPDATE campaign_runs SET status = 'paused' WHERE id = %s", run)
    holder.begin_new(due)
    assert Holder(world).begin_new(due) == "lost"
    assert world.value("SELECT count(*) FROM conversations") == 0


# Probes of the language model -----------------------------------------------------------------------------------------


def test_a_probe_that_got_its_text_closes_the_circuits_of_the_model_but_not_its_inbox(
    world: World, run: UUID, due: UUID
) -> None:
    past = world.value("SELECT campaign_now() - interval '1 second'")
    ids = scope_ids(world, run)
    for scope in ("inbox", "workspace", "model", "provider"):
        pause(world, scope, ids[scope], until=past)
    batch = claim_batch(world)
    assert [row.message_id for row in batch.rows] == [due]
    holder = Holder(world)
    assert holder.take_over([due], UUID(batch.token)) == {due: "taken"}
    assert holder.begin_new(due) == "go"
    assert [row["scope"] for row in world.all("SELECT scope FROM campaign_pauses")] == ["inbox"]
    holder.sent(due)
    assert world.value("SELECT count(*) FROM campaign_pauses") == 0


def test_a_message_that_is_no_probe_closes_no_circuit(world: World, run: UUID, due: UUID) -> None:
    pause(world, "provider", "openrouter")
    holding(world, due).begin_new(due)
    assert world.value("SELECT count(*) FROM campaign_pauses") == 1
    assert run_statement(world, "drop_spent_throttles") == 0


def test_two_shards_that_begin_with_one_new_lead_at_once_make_one_conversation(world: World) -> None:
    workspace = world.workspace()
    lead = world.lead(workspace)
    one, other = (world.due_message(world.run(world.campaign(workspace)), lead) for _ in range(2))
    first = holding(world, one)
    with World(world.url) as elsewhere, ThreadPoolExecutor(1) as pool:
        second = holding(elsewhere, other)
        with world.connection.transaction():
            assert first.begin_new(one) == "go"
            waiting = pool.submit(second.begin_new, other)
            wait_until_blocked(world)
        assert waiting.result(10) == "go"
    assert world.value("SELECT count(*) FROM conversations WHERE lead_id = %s", lead) == 1
    assert world.value("SELECT count(DISTINCT conversation_id) FROM campaign_messages WHERE lead_id = %s", lead) == 1


# Before its planned time ----------------------------------------------------------------------------------------------


def test_nothing_may_be_sent_before_the_planned_time_and_the_text_is_kept_meanwhile(world: World, run: UUID) -> None:
    now = world.value("SELECT campaign_now()")
    planned = world.due_message(run, scheduled_at=now + timedelta(seconds=60))
    batch = claim_batch(world, 10, ahead=timedelta(seconds=90))
    holder = Holder(world)
    assert holder.take_over([planned], UUID(batch.token)) == {planned: "taken"}
    assert holder.start_generating(planned) == "go"
    assert holder.begin_new(planned, part_no=0) == "go"
    assert message(world, planned)["status"] == "queued", "its worker's death is not its fault"
    answer = holder.begin_all([{"id": planned}])[planned]
    assert (answer["verdict"], answer["wait_code"]) == ("not_due", "not_due")
    assert 0 < answer["wait_seconds"] <= 60
    assert part_states(world, planned) == [("planned", 0)]
    world.move_clock(timedelta(seconds=61))
    assert holder.begin(planned) == "go"


@pytest.mark.parametrize("moment", ["infinity", "9999-12-31 23:59:59+00", "12000-01-01 00:00:00+00"])
def test_a_held_message_that_is_moved_to_never_can_be_read_and_is_not_due(world: World, run: UUID, moment: str) -> None:
    moved, other = world.due_message(run), world.due_message(run)
    holder = holding(world, moved, other)
    world.do("UPDATE campaign_messages SET scheduled_at = %s::timestamptz WHERE id = %s", moment, moved)
    for statement in ("read_leased_messages", "read_planned_times"):
        read = rows(world, statement, ids=[moved, other], token=holder.token)
        times = {str(row["id"]): row["due_at"] for row in read}
        assert times[str(moved)].year == 9999, statement
    answers = holder.begin_all({"id": each, "text": "Oi", "parts": ["Oi"]} for each in (moved, other))
    assert (answers[moved]["verdict"], answers[other]["verdict"]) == ("not_due", "go")
    assert answers[moved]["wait_seconds"] == timedelta(days=7).total_seconds()
