"""A manual pause stops messages at any stage, until a person resumes them."""

from typing import Any
from uuid import UUID, uuid4

import pytest

from campaign_pipeline_tests.factories import World
from campaign_pipeline_tests.sql.holder import claim_batch, claimed_ids, holding, look, rows
from campaign_pipeline_tests.sql.test_pauses import inbox_of, open_pause


def pause(world: World, scope: str, scope_id: Any) -> dict[str, Any]:
    (row,) = rows(
        world, "pause_by_hand", scope=scope, scope_id=str(scope_id), reason="Ana stopped it.", by="ana", log="Stopped."
    )
    return row


def resume(world: World, scope: str, scope_id: Any) -> list[dict[str, Any]]:
    return rows(world, "resume_by_hand", scope=scope, scope_id=str(scope_id), by="rui", log="Resumed.")


def scope_of(world: World, scope: str, run: UUID) -> Any:
    if scope == "all":
        return "all"
    inbox = inbox_of(world, run)
    return inbox if scope == "inbox" else world.value("SELECT workspace_id FROM inboxes WHERE id = %s", inbox)


@pytest.mark.parametrize("scope", ["inbox", "workspace", "all"])
def test_a_manual_pause_stops_claims_and_messages_at_work_until_it_is_resumed(world: World, scope: str) -> None:
    run = world.run()
    begun, other = world.due_messages(run, 2)
    holder = holding(world, begun)
    assert holder.begin_new(begun, "Um", "Dois") == "go"
    holder.sent(begun)
    scope_id = scope_of(world, scope, run)
    pause(world, scope, scope_id)
    assert holder.begin(begun, part_no=2) == "paused_by_person", "also a message of which a part is out"
    assert holder.renew([begun]) == {begun}
    batch = claim_batch(world)
    assert claimed_ids(batch) == set()
    assert [(wait.code, wait.reason) for wait in batch.waits] == [("paused_by_person", "Ana stopped it.")]
    assert [pause.code for pause in look(world).pauses] == ["paused_by_person"]
    assert len(resume(world, scope, scope_id)) == 1
    assert holder.begin(begun, part_no=2) == "go"
    assert claimed_ids(claim_batch(world)) == {other}


def test_a_manual_pause_reaches_nothing_else(world: World) -> None:
    due = world.due_message(world.run())
    pause(world, "inbox", uuid4())
    pause(world, "workspace", uuid4())
    assert claimed_ids(claim_batch(world)) == {due}


def test_a_probe_is_not_sent_through_an_inbox_that_a_person_paused(world: World) -> None:
    run = world.run()
    world.due_message(run)
    inbox = inbox_of(world, run)
    open_pause(world, "inbox", inbox, seconds=0)
    pause(world, "inbox", inbox)
    assert claimed_ids(claim_batch(world)) == set()
    resume(world, "inbox", inbox)
    assert len(claimed_ids(claim_batch(world))) == 1, "the probe"


def test_the_first_person_to_pause_stays_recorded_and_the_log_has_both_ends(world: World) -> None:
    assert pause(world, "all", "all")["changed"]
    again = rows(world, "pause_by_hand", scope="all", scope_id="all", reason="Me too.", by="rui", log="Stopped again.")
    assert [(row["changed"], row["paused_by"]) for row in again] == [(False, "ana")]
    resume(world, "all", "all")
    assert resume(world, "all", "all") == []
    lines = world.all("SELECT message, details ->> 'by' AS by FROM campaign_logs ORDER BY created_at")
    assert [tuple(line.values()) for line in lines] == [("Stopped.", "ana"), ("Resumed.", "rui")]
