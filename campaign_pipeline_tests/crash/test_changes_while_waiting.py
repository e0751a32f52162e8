"""What changes while messages wait for their planned time, their texts written, is honoured at the request."""

from datetime import timedelta
from typing import Any

import pytest

from campaign_pipeline.sandbox import SandboxProcess
from campaign_pipeline_tests.crash.harness import start_worker, violations
from campaign_pipeline_tests.factories import World

pytestmark = pytest.mark.crash

PLANNED = timedelta(seconds=85)

PAUSED_BY_PERSON = (
    "INSERT INTO campaign_manual_pauses (scope, scope_id, reason, paused_by, since)"
    " VALUES ('{0}', %({0})s::text, 'holiday', 'Ana', campaign_now())"
)

CHANGES = {
    "nothing": ("SELECT", ("sent", None)),
    "its run is paused": ("UPDATE campaign_runs SET status = 'paused' WHERE id = %(run)s", ("pending", "run_paused")),
    "its run is cancelled": (
        "UPDATE campaign_runs SET status = 'cancelled' WHERE id = %(run)s",
        ("skipped", "run_cancelled"),
    ),
    "its campaign is switched off": (
        "UPDATE campaign_configs SET is_active = false WHERE id = %(config)s",
        ("pending", "campaign_inactive"),
    ),
    "a person pauses its workspace": (PAUSED_BY_PERSON.format("workspace"), ("pending", "paused_by_person")),
    "a person pauses its inbox": (PAUSED_BY_PERSON.format("inbox"), ("pending", "paused_by_person")),
    "its inbox is disconnected": (
        "UPDATE instances SET status = 'disconnected' WHERE workspace_id = %(workspace)s",
        ("pending", "inbox_disconnected"),
    ),
    "its inbox has no instance any more": (
        "DELETE FROM inbox_instances WHERE inbox_id = %(inbox)s",
        ("pending", "inbox_without_instance"),
    ),
    "its lead opts out": (
        "SELECT campaign_suppress('workspace', %(workspace)s, NULL, NULL, %(lead)s, 'by_hand', NULL)",
        ("skipped", "suppressed"),
    ),
    "its number is suppressed everywhere": (
        "SELECT campaign_suppress('global', NULL, NULL, phone, NULL, 'by_hand', NULL) FROM leads WHERE id = %(lead)s",
        ("skipped", "suppressed"),
    ),
    "its lead is deleted": ("DELETE FROM leads WHERE id = %(lead)s", ("skipped", "lead_deleted")),
    "its lead answers": ("SELECT campaign_stop_after_reply(ARRAY[%(lead)s::uuid])", ("skipped", "lead_replied")),
    "it is planned for tomorrow": (
        "UPDATE campaign_messages SET scheduled_at = scheduled_at + interval '1 day' WHERE id = %(message)s",
        ("pending", "not_due"),
    ),
    "it is deleted": ("DELETE FROM campaign_messages WHERE id = %(message)s", ("deleted", None)),
    "its window opens later": (
        "UPDATE campaign_configs c SET (start_time, end_time) = (SELECT (here + interval '1 hour')::time(0),"
        " (here + interval '2 hours')::time(0) FROM (SELECT campaign_now() AT TIME ZONE c.timezone) AS n (here))"
        " WHERE id = %(config)s",
        ("pending", "window_closed"),
    ),
    "its window becomes invalid": (
        "UPDATE campaign_configs SET timezone = 'Mars/Base' WHERE id = %(config)s",
        ("pending", "invalid_window"),
    ),
    "its campaign gets another inbox": (
        "UPDATE campaign_configs SET inbox_id = %(other_inbox)s WHERE id = %(config)s",
        ("sent", None),
    ),
}
"""What happens: by which statement, and the status and code that the message has in the end."""


def planned_message(world: World, due: Any) -> dict[str, Any]:
    workspace = world.workspace()
    inbox, lead = world.inbox(workspace), world.lead(workspace)
    config = world.campaign(workspace, inbox)
    run = world.run(config)
    message = world.due_message(run, lead, scheduled_at=due)
    world.due_message(run, scheduled_at=due + timedelta(days=2))  # so that the run stays open
    return {
        "workspace": workspace,
        "inbox": inbox,
        "lead": lead,
        "config": config,
        "run": run,
        "message": message,
        "other_inbox": world.inbox(workspace),
    }


def test_what_changes_while_a_message_waits_is_honoured_at_the_request(world: World) -> None:
    """A planned time that is moved forward is honoured too: the test does not wait for the old one."""
    due = world.value("SELECT campaign_now()") + PLANNED
    rows = {change: planned_message(world, due) for change in CHANGES}
    with SandboxProcess() as sandbox:
        worker = start_worker(world.url, sandbox, CRASH_AHEAD="90")
        written = "SELECT count(*) FROM campaign_messages WHERE generated_message IS NOT NULL AND status = 'queued'"
        while world.value(written) < len(CHANGES):
            assert worker.exit_code is None
        for change, (statement, _) in CHANGES.items():
            world.connection.execute(statement, rows[change])
        soon = (
            "UPDATE campaign_messages SET scheduled_at = campaign_now() + interval '1 second' WHERE scheduled_at = %s"
        )
        world.do(soon, due)
        worker.finish(PLANNED.total_seconds() / 2)
        sends = [entry for entry in sandbox.record() if entry["kind"] == "send"]
    ended = {row["id"]: (row["status"], row["error_code"]) for row in world.messages()}
    assert {change: ended.get(row["message"], ("deleted", None)) for change, row in rows.items()} == {
        change: end for change, (_, end) in CHANGES.items()
    }
    assert len(sends) == sum(status == "sent" for _, (status, _) in CHANGES.values())
    assert world.value("SELECT count(*) FROM campaign_messages WHERE sent_at < scheduled_at") == 0
    through = "SELECT inbox_id FROM campaign_messages WHERE id = %s"
    moved = rows["its campaign gets another inbox"]
    assert world.value(through, moved["message"]) == moved["other_inbox"]
    assert violations(world, sends) == []
