import ast
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

import campaign_pipeline
from campaign_pipeline_tests.factories import World
from campaign_pipeline_tests.sql.holder import (
    Holder,
    claim_batch,
    claimed_ids,
    holding,
    message,
    part_states,
    parts,
    rows,
)

LEASE = timedelta(seconds=120)
PAST_LEASE = timedelta(seconds=121)


def snapshot(world: World) -> list[dict[str, Any]]:
    """Everything that a holder can change about messages."""
    query = "SELECT to_jsonb(t)::text AS row FROM {} t ORDER BY 1"
    tables = ("campaign_messages", "campaign_message_parts", "messages", "conversations", "leads", "campaign_runs")
    return [row for table in tables for row in world.all(query.format(table))]


# Steps that have ended ------------------------------------------------------------------------------------------------


def test_messages_of_an_ended_step_are_due_at_once_and_its_request_may_leave_until_its_lease_ends(
    world: World,
) -> None:
    begun, waiting = world.due_messages(world.run(), 2)
    living = holding(world, begun, waiting)  # it lives, although Dagster believes that it has ended
    living.begin_new(begun, "Um", "Dois")
    until = message(world, begun)["lease_expires_at"]
    ended = rows(world, "end_leases", ids=[begun, waiting], owners=["run 1234 inbox_1"])
    assert {(row["message_id"], row["was"]) for row in ended} == {(begun, "sending"), (waiting, "queued")}
    assert part_states(world, begun) == [("unknown", 1), ("planned", 0)]
    assert parts(world, begun)[0]["lease_ended_at"] == until
    holding(world, begun, waiting)
    assert living.begin(begun, part_no=2) == "lost"
    assert living.begin_new(waiting) == "lost"
    assert living.renew([begun, waiting]) == set()
    assert living.sent(begun)["applied"]  # its late answer counts
    assert part_states(world, begun) == [("sent", 1), ("planned", 0)]


@pytest.mark.parametrize(("owner", "taken"), [("run 1234", True), ("run 123", False), ("run 1234 inbox_2", False)])
def test_the_leases_of_a_run_are_those_of_all_its_steps_and_of_no_other(world: World, owner: str, taken: bool) -> None:
    due = world.due_message(world.run())
    holding(world, due)
    assert bool(rows(world, "end_leases", ids=[due], owners=[owner])) is taken
    assert message(world, due)["status"] == ("pending" if taken else "queued")


def test_the_leases_of_a_process_that_died_are_its_own_and_not_those_of_a_twin(world: World) -> None:
    dead, living = world.due_messages(world.run(), 2)
    holding(world, dead, living)
    world.do("UPDATE campaign_messages SET lease_owner = 'run 1234 inbox_1 one:7' WHERE id = %s", dead)
    world.do("UPDATE campaign_messages SET lease_owner = 'run 1234 inbox_1 one:77' WHERE id = %s", living)
    assert [row["message_id"] for row in rows(world, "end_leases_of", owner="run 1234 inbox_1 one:7")] == [dead]
    assert (message(world, dead)["status"], message(world, living)["status"]) == ("pending", "queued")


def test_a_run_that_ended_gives_back_what_all_its_steps_hold_and_nothing_of_another(world: World) -> None:
    first, second, other = world.due_messages(world.run(), 3)
    holding(world, first, second, other)
    for owner, message_id in (("run 1234", first), ("run 1234 inbox_1", second), ("run 12345 inbox_1", other)):
        world.do("UPDATE campaign_messages SET lease_owner = %s WHERE id = %s", owner, message_id)
    assert {row["id"] for row in rows(world, "list_leased_by_run", owner="run 1234")} == {first, second}
    rows(world, "end_leases_of_run", owner="run 1234")
    assert [message(world, each)["status"] for each in (first, second, other)] == ["pending", "pending", "queued"]
    assert rows(world, "list_leased_by_run", owner="run 1234") == []


# Expiry ---------------------------------------------------------------------------------------------------------------


def test_an_expired_lease_returns_the_message_and_makes_an_open_attempt_unknown(world: World) -> None:
    run = world.run()
    due = world.due_message(run)
    holder = holding(world, due)
    holder.begin_new(due, "Olá, Ana!", "Tudo bem?")
    world.move_clock(PAST_LEASE)
    (recovered,) = rows(world, "recover_leases")
    assert recovered == {"message_id": due, "run_id": run, "was": "sending", "owner": "run 1234 inbox_1"}
    row = message(world, due)
    assert (row["status"], row["lease_token"], row["lease_expires_at"]) == ("pending", None, None)
    assert row["generated_message"] == "Olá, Ana! Tudo bem?"
    assert "run 1234 inbox_1, which stopped renewing its lease" in row["last_error"]
    assert part_states(world, due) == [("unknown", 1), ("planned", 0)]
    first = parts(world, due)[0]
    assert (first["error_class"], first["error_code"]) == ("unknown", "worker_died")
    assert first["error_message"].endswith(".")


def test_an_attempt_of_a_dead_worker_may_have_left_until_its_lease_ended(world: World) -> None:
    due = world.due_message(world.run())
    holding(world, due).begin_new(due)
    ended = message(world, due)["lease_expires_at"]
    world.move_clock(timedelta(hours=1))
    rows(world, "recover_leases")
    assert parts(world, due)[0]["lease_ended_at"] == ended
    again = holding(world, due)
    (read,) = rows(world, "read_leased_messages", ids=[due], token=again.token)
    assert read["parts"][0]["lease_ended_at"] == pytest.approx(ended.timestamp())


def die(world: World, *messages: UUID, at_work: bool = True) -> None:
    """A worker takes messages over, begins some of them, and dies."""
    holder = holding(world, *messages)
    for one in messages if at_work else ():
        assert holder.start_generating(one) == "go"
    world.move_clock(world.value("SELECT campaign_now() - now()") + PAST_LEASE)
    rows(world, "recover_leases")


def test_a_message_whose_worker_died_twice_while_it_was_at_work_is_set_aside_and_found_by_a_back_fill(
    world: World,
) -> None:
    run = world.run()
    poisoned, neighbour = world.due_messages(run, 2)
    die(world, poisoned, neighbour)
    again = holding(world, poisoned)
    (read,) = rows(world, "read_leased_messages", ids=[poisoned], token=again.token)
    assert (read["worker_deaths"], message(world, poisoned)["status"]) == (1, "queued")
    again.settle(poisoned, status="pending", code="given_back", reason="Stopped.")
    die(world, poisoned)
    row = message(world, poisoned)
    assert (row["status"], row["error_class"], row["error_code"]) == ("failed", "permanent", "worker_died_twice")
    assert row["finished_at"] is not None
    assert row["error_message"].endswith(".")
    assert message(world, neighbour)["status"] == "pending"
    assert world.wrong_counters() == []
    assert rows(world, "requeue_failed", ids=[poisoned], resend_unknown=False) == [{"id": poisoned}]
    die(world, poisoned)
    assert message(world, poisoned)["status"] == "pending", "a back-fill gives it both of its tries again"


def test_messages_that_only_waited_when_their_worker_died_are_never_set_aside(world: World) -> None:
    waiting = world.due_message(world.run())
    for _ in range(3):
        die(world, waiting, at_work=False)
    assert message(world, waiting)["status"] == "pending"


def test_a_part_in_doubt_is_looked_up_again_before_its_message_is_set_aside_as_unknown(world: World) -> None:
    due = world.due_message(world.run())
    holding(world, due).begin_new(due)
    for death in range(1, 6):
        world.move_clock(PAST_LEASE * death)
        rows(world, "recover_leases")
        row = message(world, due)
        if death < 5:
            assert row["status"] == "pending"
            holding(world, due).start_generating(due)
    assert (row["status"], row["error_class"], row["error_code"]) == ("failed", "unknown", "worker_died_twice")
    assert part_states(world, due) == [("unknown", 1)]


def test_expiry_leaves_the_outcomes_that_are_known(world: World) -> None:
    due = world.due_message(world.run())
    holder = holding(world, due)
    holder.begin_new(due, "Um", "Dois", "Três")
    holder.sent(due)
    holder.begin(due, part_no=2)
    holder.settle(due, part_no=2, attempt_no=1, outcome="planned", code="rate_limited", reason="Too fast.")
    world.move_clock(PAST_LEASE)
    rows(world, "recover_leases")
    assert part_states(world, due) == [("sent", 1), ("planned", 1), ("planned", 0)]


@pytest.mark.parametrize("status", ["queued", "generating", "sending"])
def test_each_leased_status_is_recovered(world: World, status: str) -> None:
    expired = world.value("SELECT campaign_now() - interval '1 second'")
    due = world.due_message(world.run(), status=status, lease_token=uuid4(), lease_expires_at=expired)
    assert [row["was"] for row in rows(world, "recover_leases")] == [status]
    assert message(world, due)["status"] == "pending"


def test_a_lease_that_runs_is_left_alone(world: World) -> None:
    due = world.due_message(world.run())
    holding(world, due)
    world.move_clock(LEASE - timedelta(seconds=2))
    assert rows(world, "recover_leases") == []
    assert message(world, due)["status"] == "queued"


@pytest.mark.parametrize("status", ["sent", "replied", "failed", "skipped"])
def test_the_lease_that_a_finished_message_keeps_as_a_trace_recovers_nothing(world: World, status: str) -> None:
    world.due_message(
        world.run(),
        status=status,
        lease_token=uuid4(),
        lease_expires_at=world.value("SELECT campaign_now() - interval '1 day'"),
    )
    assert rows(world, "recover_leases") == []


def test_messages_of_the_previous_processor_are_settled_after_a_quarter_of_an_hour(world: World) -> None:
    run, now = world.run(), world.value("SELECT campaign_now()")
    queued = world.due_message(run, status="queued", queued_at=now - timedelta(minutes=16))
    sending = world.due_message(run, status="sending", created_at=now - timedelta(minutes=16))
    at_work = world.due_message(run, status="queued", queued_at=now - timedelta(minutes=14))
    rows(world, "recover_leases")
    found = {row["id"]: (row["status"], row["error_class"]) for row in world.messages(run)}
    # The first sent nothing; the outcome of the second is unknown; the third may still be in progress.
    assert found == {queued: ("pending", None), sending: ("failed", "unknown"), at_work: ("queued", None)}


def test_an_expired_lease_on_a_locked_row_is_skipped(world: World) -> None:
    now = world.value("SELECT campaign_now()")
    run = world.run()
    dead = [
        world.due_message(run, status="sending", lease_token=uuid4(), lease_expires_at=now - LEASE) for _ in range(2)
    ]
    with psycopg.connect(world.url) as other:
        other.execute("SELECT 1 FROM campaign_messages WHERE id = %s FOR UPDATE", [dead[0]])
        world.do("SET lock_timeout = '500ms'")
        assert [row["message_id"] for row in rows(world, "recover_leases")] == [dead[1]]


def test_a_recovered_message_is_claimed_again_under_another_token(world: World) -> None:
    due = world.due_message(world.run())
    holder = holding(world, due)
    world.move_clock(PAST_LEASE)
    batch = claim_batch(world)
    assert (batch.recovered, claimed_ids(batch)) == (1, {due})
    assert str(message(world, due)["lease_token"]) == batch.token != str(holder.token)


def test_the_database_clock_alone_ends_a_lease(world: World) -> None:
    """A worker whose clock is an hour, or years, off changes nothing: its clock is not used."""
    package = Path(campaign_pipeline.__file__).parent
    forbidden = {"now", "utcnow", "today", "time", "time_ns"}
    adapters = [package / f"adapters/{name}.py" for name in ("queue", "shard_store", "statements", "group_commit")]
    for path in [*package.glob("core/*.py"), *adapters]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = node.func.value
                called = (owner.id if isinstance(owner, ast.Name) else "", node.func.attr)
                worker_clock = called[0] in {"datetime", "date", "time"} and called[1] in forbidden
                # asyncio's loop.time() only grows and tells no time of day.
                assert not worker_clock, f"{path.name}:{node.lineno}"


# Taking over ----------------------------------------------------------------------------------------------------------


def test_taking_over_says_for_each_message_why_it_is_ours_or_not(world: World) -> None:
    run, now = world.run(), world.value("SELECT campaign_now()")
    claimed = world.due_message(run)
    batch = claim_batch(world)
    assert batch.token is not None
    other_shards = world.due_message(run)
    holding(world, other_shards)
    expired = world.due_message(run, status="sending", lease_token=uuid4(), lease_expires_at=now - LEASE)
    given_back = world.due_message(run)
    waiting = world.due_message(run, next_attempt_at=now + LEASE)
    finished = [world.due_message(run, status=status) for status in ("sent", "replied", "failed", "skipped")]
    deleted = uuid4()
    shard = Holder(world)
    everything = [claimed, other_shards, expired, given_back, waiting, *finished, deleted]
    assert shard.take_over(everything, UUID(batch.token)) == {
        claimed: "taken",
        other_shards: "held_by_another",
        expired: "taken",
        given_back: "taken",
        waiting: "waits_for_its_time",
        **dict.fromkeys(finished, "finished"),
        deleted: "deleted",
    }
    held = world.all("SELECT id FROM campaign_messages WHERE lease_token = %s AND status = 'queued'", shard.token)
    assert {row["id"] for row in held} == {claimed, expired, given_back}


def test_taking_over_again_after_a_lost_answer_gives_the_same(world: World) -> None:
    due = world.due_message(world.run())
    batch = claim_batch(world)
    assert batch.token is not None
    shard = Holder(world)
    for _ in range(2):
        assert shard.take_over([due], UUID(batch.token)) == {due: "taken"}


def test_of_two_shards_that_take_over_the_same_batch_one_gets_each_message(world: World) -> None:
    """A step that is re-executed while its first process is still alive."""
    due = world.due_message(world.run())
    batch = claim_batch(world)
    assert batch.token is not None
    assert Holder(world).take_over([due], UUID(batch.token)) == {due: "taken"}
    assert Holder(world).take_over([due], UUID(batch.token)) == {due: "held_by_another"}


def test_an_attempt_that_was_open_when_its_lease_expired_is_unknown_to_whoever_takes_over(world: World) -> None:
    due = world.due_message(world.run())
    holding(world, due).begin_new(due)
    world.move_clock(PAST_LEASE)
    second = holding(world, due)
    (read,) = rows(world, "read_leased_messages", ids=[due], token=second.token)
    assert (read["text"], read["parts"][0]["status"], read["parts"][0]["attempts"]) == ("Olá, Ana!", "unknown", 1)


def test_the_old_token_changes_nothing_after_a_take_over(world: World) -> None:
    first_due, second_due = world.due_messages(world.run(), 2)
    old = holding(world, first_due, second_due)
    old.begin_new(first_due, "Um", "Dois")
    world.move_clock(PAST_LEASE)
    holding(world, first_due, second_due)
    before = snapshot(world)
    assert old.renew([first_due, second_due]) == set()
    assert old.start_generating(second_due) == "lost"
    assert old.begin(first_due, part_no=2) == "lost"
    assert old.begin(first_due, part_no=1, attempt_no=2) == "lost"
    assert old.begin_new(second_due) == "lost"
    assert old.begin(second_due, part_no=0, text="Oi", parts=["Oi"]) == "lost"
    for outcome in ("planned", "unknown", "failed"):
        answer = old.settle(first_due, part_no=1, attempt_no=1, outcome=outcome, status="failed", count_attempt=True)
        assert not answer["moved"]
    for status in ("pending", "failed", "skipped"):
        assert old.settle(second_due, status=status, delay_seconds=9.0, count_attempt=True) == {
            "applied": False,
            "moved": False,
            "final": "queued",
        }
    assert snapshot(world) == before


def test_an_expired_lease_may_begin_nothing_even_if_nobody_took_it(world: World) -> None:
    generating, sending = world.due_messages(world.run(), 2)
    holder = holding(world, generating, sending)
    world.move_clock(PAST_LEASE)
    assert holder.start_generating(generating) == "lost"
    assert holder.begin_new(sending) == "lost"
    assert parts(world, sending) == []


# Renewing -------------------------------------------------------------------------------------------------------------


def test_a_renewal_returns_exactly_the_held_messages(world: World) -> None:
    mine, finished, others, waiting = world.due_messages(world.run(), 4)
    holder = holding(world, mine, finished)
    holder.settle(finished, status="skipped", code="lead_deleted", reason="Deleted.")
    holding(world, others)
    assert holder.renew([mine, finished, others, waiting, uuid4()]) == {mine}


def test_renewing_moves_the_end_of_the_lease(world: World) -> None:
    due = world.due_message(world.run())
    holder = holding(world, due)
    world.move_clock(LEASE - timedelta(seconds=1))
    assert holder.renew([due], lease_seconds=300.0) == {due}
    world.move_clock(LEASE + timedelta(seconds=290))
    assert rows(world, "recover_leases") == []
    world.move_clock(LEASE + timedelta(seconds=301))
    assert [row["message_id"] for row in rows(world, "recover_leases")] == [due]


def test_a_renewed_lease_after_its_end_is_good_while_nobody_took_it(world: World) -> None:
    due = world.due_message(world.run())
    holder = holding(world, due)
    world.move_clock(PAST_LEASE)
    assert holder.renew([due]) == {due}
    assert holder.begin_new(due) == "go"


def test_a_renewal_counts_nothing_and_locks_no_run(world: World) -> None:
    run = world.run()
    due = world.due_message(run)
    holder = holding(world, due)
    with psycopg.connect(world.url) as other:
        other.execute("SELECT 1 FROM campaign_runs WHERE id = %s FOR UPDATE", [run])
        world.do("SET lock_timeout = '500ms'")
        assert holder.renew([due]) == {due}


# Reading --------------------------------------------------------------------------------------------------------------


def test_only_what_is_held_is_read_with_its_ledger_in_order(world: World) -> None:
    mine, others = world.due_messages(world.run(), 2)
    holder = holding(world, mine)
    holding(world, others)
    holder.begin(mine, part_no=0, text="Um Dois", parts=["Um", "Dois"])
    (read,) = rows(world, "read_leased_messages", ids=[mine, others], token=holder.token)
    assert (read["id"], read["text"]) == (str(mine), "Um Dois")
    assert [(part["part_no"], part["text"], part["status"]) for part in read["parts"]] == [
        (1, "Um", "planned"),
        (2, "Dois", "planned"),
    ]
