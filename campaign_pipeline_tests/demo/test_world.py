import asyncio
from datetime import UTC, datetime

import psycopg
import pytest

from campaign_pipeline.adapters.queue import BatchOptions, Queue
from campaign_pipeline.core.window import SendingWindow
from campaign_pipeline.demo.leads import make_leads
from campaign_pipeline.demo.world import CAMPAIGNS, count_waiting, holds_only_demos, make_world
from campaign_pipeline.leads import Lead
from campaign_pipeline_tests.factories import World

LEADS = make_leads(31, seed=5)


def test_every_lead_has_one_message_in_one_campaign_and_the_campaigns_share_evenly(world: World) -> None:
    made = make_world(world.url, LEADS, "Demo")
    rows = world.all(
        "SELECT run_id, count(*) AS n, count(DISTINCT lead_id) AS leads FROM campaign_messages GROUP BY run_id"
    )
    assert made.messages == sum(row["n"] for row in rows) == len(LEADS)
    assert {row["run_id"] for row in rows} == set(made.runs.values())
    assert sorted(row["leads"] for row in rows) == [10, 10, 11]
    assert world.value("SELECT count(DISTINCT lead_id) FROM campaign_messages") == len(LEADS)


def test_its_inboxes_send_to_a_sandbox_alone(world: World) -> None:
    make_world(world.url, LEADS[:3], "Demo")
    assert world.value("SELECT bool_and((provider_config ->> 'sandbox_only')::boolean) FROM instances") is True


def test_a_batch_claims_every_message_at_once(world: World) -> None:
    make_world(world.url, LEADS, "Demo")
    batch = asyncio.run(Queue(world.url).claim_batch(BatchOptions(batch_size=1000, owner="test")))
    assert len(batch.rows) == len(LEADS)
    assert batch.waits == []
    assert len({row.inbox_id for row in batch.rows}) == 2


def test_the_windows_are_open_at_any_hour(world: World) -> None:
    make_world(world.url, LEADS[:3], "Demo")
    for row in world.all("SELECT start_time, end_time, timezone, frequency FROM campaign_configs"):
        window = SendingWindow.parse(row["start_time"], row["end_time"], row["timezone"], row["frequency"])
        for day in range(1, 8):
            for hour in range(24):
                assert window.is_open(datetime(2026, 11, day, hour, 30, tzinfo=UTC))


def test_the_campaigns_differ_and_one_splits_its_messages(world: World) -> None:
    make_world(world.url, LEADS[:3], "Demo")
    rows = world.all("SELECT name, ai_instructions, split_messages FROM campaign_configs")
    assert {row["name"] for row in rows} == {campaign.name for campaign in CAMPAIGNS}
    assert len({row["ai_instructions"] for row in rows}) == len(CAMPAIGNS) == 3
    assert sum(row["split_messages"] for row in rows) == 1


def test_leads_begin_in_the_column_that_the_campaigns_take_them_from(world: World) -> None:
    make_world(world.url, LEADS, "Demo")
    (config,) = world.all("SELECT DISTINCT source_column_id, target_column_id FROM campaign_configs")
    assert world.value("SELECT count(*) FROM leads WHERE column_id = %s", config["source_column_id"]) == len(LEADS)
    assert config["target_column_id"] not in {None, config["source_column_id"]}


def test_leads_keep_what_is_known_of_them(world: World) -> None:
    lead = Lead(
        "Zoë 🚀",
        company="Padaria; do \\ Zé",
        phone="(11) 9 8765-4321",
        tags=("a,b", 'c"d'),
        notes="linha 1\nlinha 2\t",
        custom_fields={"Categoria": "Padaria", "Sócio favorito": "Ana"},
    )
    make_world(world.url, [lead], "Demo")
    row = world.one("SELECT * FROM leads")
    assert (row["client_name"], row["company"], row["phone"]) == (lead.client_name, lead.company, lead.phone)
    assert (row["tags"], row["notes"], row["deal_value"]) == (list(lead.tags), lead.notes, None)
    values = world.all(
        "SELECT d.name, v.value FROM lead_custom_values v JOIN custom_fields d ON d.id = v.custom_field_id "
        "ORDER BY d.position"
    )
    assert [(value["name"], value["value"]) for value in values] == list(lead.custom_fields.items())
    assert world.value("SELECT phone_number FROM campaign_messages") == lead.phone


def test_a_lead_that_the_database_refuses_leaves_nothing_behind(world: World) -> None:
    with pytest.raises(psycopg.Error):
        make_world(world.url, [*LEADS[:2], Lead("nul \0 byte")], "Demo")
    assert world.value("SELECT (SELECT count(*) FROM workspaces) + (SELECT count(*) FROM leads)") == 0


def test_two_demos_stand_beside_each_other(world: World) -> None:
    first, second = (make_world(world.url, LEADS, "Demo") for _ in range(2))
    assert not set(first.runs.values()) & set(second.runs.values())
    assert world.value("SELECT count(*) FROM campaign_messages") == 2 * len(LEADS)


def test_waiting_messages_are_counted_by_who_made_them(world: World) -> None:
    make_world(world.url, LEADS, "Demo")
    assert count_waiting(world.url) == (len(LEADS), 0)
    world.due_messages(world.run(), 2)
    world.due_message(world.run(status="paused"))
    world.due_message(world.run(), status="failed")
    assert count_waiting(world.url) == (len(LEADS), 2)


def test_messages_of_a_run_without_a_campaign_are_not_the_demos(world: World) -> None:
    run = world.insert("campaign_runs", name="Sem campanha")
    world.insert("campaign_messages", run_id=run)
    assert count_waiting(world.url) == (0, 1)


def test_a_workspace_of_somebody_else_is_noticed(world: World) -> None:
    make_world(world.url, LEADS[:1], "Demo")
    assert holds_only_demos(world.url)
    world.workspace()
    assert not holds_only_demos(world.url)
