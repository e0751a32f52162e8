"""The run of a campaign's day in the database."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from campaign_pipeline.adapters.operator import Operator
from campaign_pipeline.campaigns.planning import CannotPlan, Planned, plan_campaign
from campaign_pipeline_tests.factories import World


def campaign(world: World, leads: int = 3, **columns: Any) -> UUID:
    """An active campaign that is open all day, with some leads in its column; known as Hoje."""
    workspace = world.workspace(number_rest_hours=24)
    column = world.insert("funnel_columns", title="Novos")
    config = world.campaign(
        workspace,
        None,
        **{"source_column_id": column, "is_active": True, "name": "Hoje", "timezone": "UTC", **columns},
    )
    world.insert("campaign_settings", config_id=config, name="Hoje")
    for _ in range(leads):
        world.lead(workspace, column_id=column)
    # Midday, so that a whole afternoon is left in any time zone.
    world.move_clock(
        world.value(
            "SELECT date_trunc('day', now() AT TIME ZONE 'UTC') + interval '36 hours' - now() AT TIME ZONE 'UTC'"
        )
    )
    return config


def due_in(world: World, planned: Planned) -> list[timedelta]:
    now = world.value("SELECT campaign_now()")
    return [
        timedelta(seconds=round((row["scheduled_at"] - now).total_seconds(), -1))
        for row in world.messages(planned.run_id)
    ]


def test_a_day_is_planned_by_interval_from_now_on(world: World) -> None:
    campaign(world, min_interval_seconds=50)
    planned = plan_campaign(world.url, "Hoje")
    assert planned.planned == 3
    assert due_in(world, planned) == [timedelta(seconds=60 * n) for n in range(3)]
    run = world.one("SELECT * FROM campaign_runs")
    assert (run["leads_total"], run["status"], run["run_date"]) == (3, "running", planned.day)
    assert "3 messages are due" in world.value("SELECT message FROM campaign_logs WHERE step_name = 'plan'")


def test_planning_again_adds_only_leads_that_are_new(world: World) -> None:
    config = campaign(world, daily_limit=4)
    first = plan_campaign(world.url, "Hoje")
    assert plan_campaign(world.url, "Hoje").planned == 0
    workspace = world.value("SELECT workspace_id FROM campaign_configs WHERE id = %s", config)
    for _ in range(2):
        world.lead(workspace, column_id=world.value("SELECT id FROM funnel_columns"))
    again = plan_campaign(world.url, "Hoje")
    assert (again.run_id, again.planned, again.left_out) == (first.run_id, 1, {"daily_limit": 1})
    assert world.value("SELECT leads_total FROM campaign_runs") == len(world.messages()) == 4


def test_days_in_a_row_contact_each_lead_once_until_none_is_left(world: World) -> None:
    campaign(world, leads=5, daily_limit=2)
    midday = world.value("SELECT campaign_now()")
    planned = []
    for day in range(4):
        world.do("UPDATE campaign_messages SET status = 'sent', sent_at = scheduled_at")
        passed: timedelta = midday + timedelta(days=day) - world.value("SELECT now()")
        world.move_clock(passed)
        planned.append(plan_campaign(world.url, "Hoje"))
    assert [plan.planned for plan in planned] == [2, 2, 1, 0]
    assert len({plan.day for plan in planned}) == 4
    contacted = [row["lead_id"] for row in world.messages()]
    assert len(contacted) == len(set(contacted)) == 5


def test_a_dry_run_leaves_no_trace(world: World) -> None:
    campaign(world)
    assert plan_campaign(world.url, "Hoje", dry_run=True).planned == 3
    assert world.messages() == world.all("SELECT 1 FROM campaign_planned_days") == []


def test_two_planners_at_once_make_one_run(world: World) -> None:
    campaign(world, leads=20)
    with ThreadPoolExecutor(4) as pool:
        plans = list(pool.map(lambda _: plan_campaign(world.url, "Hoje"), range(4)))
    assert sorted(plan.planned for plan in plans) == [0, 0, 0, 20]
    assert world.value("SELECT count(*) FROM campaign_runs") == 1
    assert world.value("SELECT count(DISTINCT lead_id) FROM campaign_messages") == 20


def test_a_run_of_another_planner_is_left_to_it(world: World) -> None:
    config = campaign(world)
    world.run(config, name="Do CRM", run_date=world.value("SELECT (campaign_now() AT TIME ZONE 'UTC')::date"))
    with pytest.raises(CannotPlan, match=r"Another planner made the run .*: Do CRM"):
        plan_campaign(world.url, "Hoje")


def test_leads_that_must_not_be_contacted_are_counted_by_reason(world: World) -> None:
    config = campaign(world, leads=1)
    workspace = world.value("SELECT workspace_id FROM campaign_configs WHERE id = %s", config)
    column = world.value("SELECT id FROM funnel_columns")
    suppressed = world.lead(workspace, column_id=column)
    world.do("SELECT campaign_suppress('workspace', %s, NULL, NULL, %s, 'by_hand', 'asked')", workspace, suppressed)
    world.lead(workspace, column_id=column, phone=None)
    world.lead(workspace, column_id=column, phone="11 8765-4321")
    world.lead(workspace, column_id=column, phone="+55 11 98765-4321")
    waiting = world.lead(workspace, column_id=column)
    world.due_message(world.run(world.campaign(workspace)), waiting)
    skipped = world.lead(workspace, column_id=column)
    old = world.run(config, run_date=None, status="completed")
    world.due_message(old, skipped, status="skipped", error_code="too_old")
    world.due_message(old, world.lead(workspace, column_id=column), status="sent")
    world.lead(workspace)  # in no column
    planned = plan_campaign(world.url, "Hoje")
    assert planned.refused == {"suppressed": 1, "no_address": 1, "same_number": 1, "contacted_by_another": 1}
    assert planned.planned == 3
    assert skipped in {row["lead_id"] for row in world.messages(planned.run_id)}


def test_tags_choose_among_the_leads_of_the_column(world: World) -> None:
    config = campaign(world, leads=2)
    world.do("UPDATE campaign_settings SET lead_tags = '{VIP}' WHERE config_id = %s", config)
    world.do("UPDATE leads SET tags = '{VIP,site}' WHERE id = (SELECT id FROM leads LIMIT 1)")
    assert plan_campaign(world.url, "Hoje").planned == 1


def test_campaigns_of_one_inbox_share_its_pace_and_its_daily_limit(world: World) -> None:
    config = campaign(world, leads=2)
    row = world.one("SELECT * FROM campaign_configs WHERE id = %s", config)
    world.insert(
        "campaign_inbox_pace", inbox_id=row["inbox_id"], min_gap_seconds=50, jitter=0, daily_limit=3, timezone="UTC"
    )
    plan_campaign(world.url, "Hoje")
    column = world.insert("funnel_columns", title="Outros")
    other = world.campaign(row["workspace_id"], row["inbox_id"], source_column_id=column, name="Outra", timezone="UTC")
    for _ in range(2):
        world.lead(row["workspace_id"], column_id=column)
    planned = plan_campaign(world.url, str(other))
    assert (planned.planned, planned.left_out) == (1, {"inbox_daily_limit": 1})
    assert due_in(world, planned) == [timedelta(seconds=120)]


def test_quiet_hours_may_end_at_24_00_which_python_does_not_know(world: World) -> None:
    config = campaign(world, leads=2, min_interval_seconds=50)
    inbox = world.value("SELECT inbox_id FROM campaign_configs WHERE id = %s", config)
    world.insert("campaign_inbox_pace", inbox_id=inbox, quiet_from="22:00", quiet_until="08:00", timezone="UTC")
    world.do("UPDATE campaign_inbox_pace SET quiet_until = '24:00'")
    assert plan_campaign(world.url, "Hoje").planned == 2
    with Operator(world.url) as desk:
        assert [(each.quiet_from, each.quiet_until) for each in desk.inboxes()] == [("22:00:00", "00:00:00")]
        assert sum(slot.messages for slot in desk.forecast(timedelta(hours=8)).slots) == 2


def test_a_campaign_that_is_not_active_is_not_planned(world: World) -> None:
    campaign(world, is_active=False)
    with pytest.raises(CannotPlan, match="is not active"):
        plan_campaign(world.url, "Hoje")
