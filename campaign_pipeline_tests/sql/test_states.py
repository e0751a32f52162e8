"""Every change of a status is in the tables of core.states, which the documents show."""

import re
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest

from campaign_pipeline.core.states import LEASED, MESSAGE, PART, Transition, diagram, writers
from campaign_pipeline.sql import functions_text, statements
from campaign_pipeline_tests.factories import World
from campaign_pipeline_tests.sql.holder import Holder, claim_batch, holding, rows

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"

RECORDER = """
    CREATE TABLE seen_states (what text, before text, after text);
    CREATE FUNCTION note_state() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO seen_states VALUES (TG_TABLE_NAME, OLD.status, NEW.status);
        RETURN NULL;
    END $$;
    CREATE TRIGGER note_state AFTER UPDATE OF status ON public.campaign_messages
        FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status) EXECUTE FUNCTION note_state();
    CREATE TRIGGER note_state AFTER UPDATE OF status ON campaign_pipeline.campaign_message_parts
        FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status) EXECUTE FUNCTION note_state();
"""


@pytest.fixture
def recorded(world: World) -> World:
    """A world that records each change of a status."""
    for statement in RECORDER.split(";\n    C"):
        world.do(statement if statement.lstrip().startswith("C") else f"C{statement}")
    return world


def seen(world: World, table: str) -> set[tuple[str, str]]:
    pairs = world.all("SELECT DISTINCT before, after FROM seen_states WHERE what = %s", table)
    return {(row["before"], row["after"]) for row in pairs}


def pairs(transitions: tuple[Transition, ...]) -> set[tuple[str, str]]:
    return {(str(transition.before), str(transition.after)) for transition in transitions}


def expire(world: World) -> None:
    world.move_clock(world.value("SELECT campaign_now() - now()") + timedelta(seconds=121))
    rows(world, "recover_leases")


def held(world: World, message: UUID, step: str) -> Holder:
    """Return the holder of a message in a given state: queued, generating or sending."""
    holder = holding(world, message)
    if step == "generating":
        holder.start_generating(message)
    if step == "sending":
        holder.begin_new(message)
    return holder


def settle_in_every_way(world: World, run: UUID) -> list[UUID]:
    """End messages from each leased status in each way, and then learn that their part was sent."""
    ended = []
    for step in LEASED:
        for status in ("pending", "failed", "skipped"):
            due = world.due_message(run)
            holder = held(world, due, step)
            outcome = "failed" if status == "failed" else "planned"
            attempt = {"part_no": 1, "attempt_no": 1, "outcome": outcome} if step == "sending" else {}
            holder.settle(due, status=status, code="x", reason="r", error_class="transient", **attempt)
            ended.append(due)
            if step == "sending" and status != "failed":
                holder.sent(due)
    return ended


def work_in_every_way(world: World) -> None:
    """Claim, give back, send, fail, skip, die, resend, learn late and cancel."""
    run = world.run()
    rows(world, "requeue_failed", ids=settle_in_every_way(world, run), resend_unknown=False)
    claim_batch(world)
    expire(world)
    for step in LEASED:
        due = world.due_message(run)
        held(world, due, step)
        expire(world)
    again = holding(world, due)
    again.settle(due, part_no=1, attempt_no=1, outcome="planned", looked_up=True)
    again.begin(due, attempt_no=2)
    again.sent(due, attempt_no=2)
    incomplete = world.due_message(run)
    holder = holding(world, incomplete)
    holder.begin_new(incomplete, "Um", "Dois")
    holder.settle(incomplete, part_no=1, attempt_no=1, outcome="unknown", status="skipped", code="x", reason="r")
    holder.sent(incomplete)
    world.do("UPDATE campaign_runs SET status = 'cancelled' WHERE id = %s", run)
    rows(world, "settle_cancelled_runs")


def test_every_change_of_a_status_is_in_the_table(recorded: World) -> None:
    work_in_every_way(recorded)
    messages, parts = seen(recorded, "campaign_messages"), seen(recorded, "campaign_message_parts")
    assert messages - pairs(MESSAGE) == set()
    assert parts - pairs(PART) == set()
    assert len(messages) > 12, "most of the table was tried"
    # Not as a CHECK: the CRM writes a status without our columns, and its write must not fail.
    without = "status IN ('sent', 'failed', 'skipped') AND finished_at IS NULL"
    assert recorded.value(f"SELECT count(*) FROM campaign_messages WHERE {without}") == 0
    traced = "status = 'pending' AND (lease_token IS NOT NULL OR lease_expires_at IS NOT NULL)"
    assert recorded.value(f"SELECT count(*) FROM campaign_messages WHERE {traced}") == 0
    assert len(parts) > 7


def test_the_page_on_the_architecture_shows_the_table() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for shown in (diagram(MESSAGE), diagram(PART), writers(MESSAGE)):
        assert shown in page, f"put this into docs/architecture.md:\n{shown}"


WRITE = re.compile(
    r"UPDATE (?:public|campaign_pipeline)\.(campaign_messages|campaign_message_parts)\b[ \w]*\s+"
    r"SET\b(.*?)\b(?:FROM|WHERE)\b",
    re.DOTALL,
)
STEPS = {
    # functions that are steps of those that the table names
    **dict.fromkeys(("campaign_write_intents", "campaign_note_intents"), "campaign_begin_parts"),
    "campaign_fail_reported": "campaign_apply_status_events",
    "campaign_end_erased": "campaign_erase_lead",
    **dict.fromkeys(
        ("campaign_settle_parts", "campaign_complete_messages", "campaign_end_held", "campaign_note_incomplete"),
        "campaign_settle",
    ),
}


def bodies() -> dict[str, str]:
    """Return each of our statements and functions by name."""
    found = re.split(r"CREATE OR REPLACE FUNCTION campaign_pipeline\.(\w+)", functions_text())
    return {**statements(), **dict(zip(found[1::2], found[2::2], strict=True))}


@pytest.mark.parametrize(("table", "known"), [("campaign_messages", MESSAGE), ("campaign_message_parts", PART)])
def test_whatever_writes_a_status_is_in_the_table(table: str, known: tuple[Transition, ...]) -> None:
    writing = {
        STEPS.get(name, name)
        for name, body in bodies().items()
        for what, change in WRITE.findall(body)
        if what == table and re.search(r"\bstatus = ", change)
    }
    assert len(writing) > 5
    assert writing - {transition.writer for transition in known} == set()


def test_every_writer_that_the_table_names_exists(world: World) -> None:
    named = {transition.writer for transition in (*MESSAGE, *PART)} - {"the CRM"}
    functions = {row["proname"] for row in world.all("SELECT proname FROM pg_proc WHERE proname LIKE 'campaign%%'")}
    assert named - functions - set(statements()) == set()
