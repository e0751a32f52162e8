"""Demo mode: sample messages become due automatically, and only in a database without the user's own."""

import os
import subprocess
import sys

import pytest

from campaign_pipeline.adapters.operations import DEMO, Operations
from campaign_pipeline.defs.demo import LEADS_A_MINUTE
from campaign_pipeline.demo import world as demo
from campaign_pipeline.demo.leads import make_leads
from campaign_pipeline_tests.factories import World


def trickle(world: World) -> int:
    with Operations(world.url) as operations:
        return operations.trickle(DEMO, LEADS_A_MINUTE)


def test_new_leads_with_all_that_is_known_of_their_models_become_due_within_a_minute(world: World) -> None:
    demo.make_world(world.url, make_leads(30, seed=1), "Dev")
    world.do("UPDATE campaign_messages SET status = 'sent'")
    assert trickle(world) == LEADS_A_MINUTE
    added = world.all(
        "SELECT m.scheduled_at > campaign_now() AND m.scheduled_at <= campaign_now() + interval '1 minute' AS soon,"
        " l.phone, (SELECT count(*) FROM lead_custom_values v WHERE v.lead_id = l.id) AS values"
        " FROM campaign_messages m JOIN leads l ON l.id = m.lead_id WHERE m.status = 'pending'"
    )
    assert len(added) == LEADS_A_MINUTE
    assert all(row["soon"] and row["phone"].startswith("+55 11 9") for row in added)
    assert sum(row["values"] for row in added) > 0
    assert len({row["phone"] for row in added}) == LEADS_A_MINUTE
    assert world.value("SELECT count(*) FROM leads") == 30 + LEADS_A_MINUTE
    assert world.value("SELECT leads_total FROM campaign_runs ORDER BY started_at DESC, leads_total LIMIT 1") > 0
    assert world.wrong_counters() == []


def test_a_workspace_that_is_no_demo_gets_none(world: World) -> None:
    world.due_message(world.run())
    assert trickle(world) == 0
    assert len(world.messages()) == 1


@pytest.mark.parametrize("switch", ["on", "off"])
def test_the_schedule_exists_only_in_demo_mode(switch: str) -> None:
    code = (
        "from campaign_pipeline.definitions import defs; r = defs.get_repository_def();"
        "print(sorted(s.name + '=' + s.default_status.value for s in r.schedule_defs))"
    )
    variables = {**os.environ, "CAMPAIGN_DEMO_TRICKLE": switch, "CAMPAIGN_SCHEDULES": switch}
    said = subprocess.run(
        [sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True
    ).stdout
    assert ("trickle_demo_campaign=RUNNING" in said) == (switch == "on")
    assert ("process_campaign_queue_every_minute=RUNNING" in said) == (switch == "on")
    assert "process_campaign_queue_every_minute=" in said
