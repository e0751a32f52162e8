import asyncio
from typing import Any
from uuid import UUID, uuid4

import orjson
import psycopg
import pytest

from campaign_pipeline.adapters.queue import Queue
from campaign_pipeline.core.context import LeadContext, in_order
from campaign_pipeline.core.model import BatchSettings
from campaign_pipeline_tests.factories import World


def read_contexts(world: World, *leads: Any, of: UUID | None = None) -> list[dict[str, Any]]:
    """Return the statement's rows; each lead is requested by its own workspace unless another is given."""
    own = {row["id"]: row["workspace_id"] for row in world.all("SELECT id, workspace_id FROM leads")}
    asking = [str(of or own.get(lead) or uuid4()) for lead in leads]
    return asyncio.run(Queue(world.url).get_lead_contexts([str(lead) for lead in leads], asking))


def contexts(world: World, *leads: Any) -> dict[str, dict[str, Any]]:
    """Return contexts by lead, as the model's prompt uses them."""
    found = read_contexts(world, *leads)
    for row in found:
        row["context"] = orjson.loads(row["context"])
        row["context"]["custom_fields"] = in_order(row["context"]["custom_fields"])
    return {row["lead_id"]: row for row in found}


def test_everything_the_crm_knows_of_a_lead_is_read(world: World) -> None:
    workspace = world.workspace()
    funnel = world.insert("funnels", workspace_id=workspace, name="Vendas")
    column = world.insert("funnel_columns", funnel_id=funnel, title="Novo")
    lead = world.lead(
        workspace,
        funnel_id=funnel,
        column_id=column,
        client_name="Ana Souza",
        company="Padaria Pão Quente",
        deal_value=1234.5,
        priority="alta",
        tags=["quente", "sp"],
        whatsapp_name="Aninha",
        email="ana@example.com",
        phone="+55 11 91234-5678",
    )
    for position, name, value in ((10, "Rating", "4,7"), (9, "Categoria", "Padaria"), (None, "Cor", "azul")):
        field = world.insert("custom_fields", workspace_id=workspace, name=name, position=position)
        world.insert("lead_custom_values", lead_id=lead, custom_field_id=field, value=value)
    row = contexts(world, lead)[str(lead)]
    assert row["phone"] == "+55 11 91234-5678"
    assert row["context"] == {
        "email": "ana@example.com",
        "client_name": "Ana Souza",
        "company": "Padaria Pão Quente",
        "deal_value": 1234.5,
        "priority": "alta",
        "tags": ["quente", "sp"],
        "whatsapp_name": "Aninha",
        "funnel": "Vendas",
        "column": "Novo",
        "custom_fields": [
            {"name": "Categoria", "value": "Padaria"},
            {"name": "Rating", "value": "4,7"},
            {"name": "Cor", "value": "azul"},
        ],
    }


def test_all_leads_of_a_batch_are_read_in_one_statement(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    leads = [world.lead() for _ in range(300)]
    executed: list[object] = []
    execute = psycopg.AsyncConnection.execute

    async def counting(self: Any, query: Any, *args: Any, **options: Any) -> Any:
        executed.append(query)
        return await execute(self, query, *args, **options)

    monkeypatch.setattr(psycopg.AsyncConnection, "execute", counting)
    assert len(contexts(world, *leads, leads[0])) == 300
    assert len(executed) == 1


def test_a_deleted_lead_is_absent_and_no_lead_at_all_is_no_error(world: World) -> None:
    lead, deleted = world.lead(), world.lead()
    world.do("DELETE FROM leads WHERE id = %s", deleted)
    assert set(contexts(world, lead, deleted, uuid4())) == {str(lead)}
    assert contexts(world) == {}


def test_fields_of_a_hundred_kilobytes_are_cut(world: World) -> None:
    long = "ã" * 100_000
    funnel = world.insert("funnels", name=long)
    column = world.insert("funnel_columns", funnel_id=funnel, title=long)
    lead = world.lead(
        client_name=long,
        company=long,
        priority=long,
        whatsapp_name=long,
        phone=long,
        tags=[long] * 25,
        funnel_id=funnel,
        column_id=column,
    )
    field = world.insert("custom_fields", name=long)
    world.insert("lead_custom_values", lead_id=lead, custom_field_id=field, value=long)
    (row,) = read_contexts(world, lead)
    assert len(row["context"]) < 10_000
    assert len(row["phone"]) <= 100
    context = orjson.loads(row["context"])
    assert len(context["client_name"]) == 400
    assert [len(tag) for tag in context["tags"]] == [200] * 20


def test_a_lead_without_data_has_an_empty_context(world: World) -> None:
    lead = world.insert("leads", client_name=None)
    row = contexts(world, lead)[str(lead)]
    assert row["phone"] is None
    assert {key: value for key, value in row["context"].items() if value} == {}
    assert LeadContext.from_row(row["context"]).render() == ""


@pytest.mark.parametrize("value", ["NaN", "Infinity", "0", "-1", "1e30"])
def test_a_strange_deal_value_does_not_break_the_batch(world: World, value: str) -> None:
    lead = world.lead()
    world.do("UPDATE leads SET deal_value = %s::numeric", value)
    assert "Ana Souza" in LeadContext.from_row(contexts(world, lead)[str(lead)]["context"]).render()


def test_nulls_among_tags_and_values_are_bearable(world: World) -> None:
    lead = world.lead(tags=["a", None, "b"])
    field = world.insert("custom_fields", name="Rating")
    world.insert("lead_custom_values", lead_id=lead, custom_field_id=field, value=None)
    world.insert("lead_custom_values", lead_id=lead, custom_field_id=field, value="")
    world.insert("lead_custom_values", lead_id=lead, custom_field_id=uuid4(), value="of a deleted field")
    context = contexts(world, lead)[str(lead)]["context"]
    assert context["tags"] == ["a", None, "b"]
    assert context["custom_fields"] == []
    assert "a, b" in LeadContext.from_row(context).render()


# Batch settings -------------------------------------------------------------------------------------------------------


def settings(world: World, configs: list[Any], workspaces: list[Any], inboxes: list[Any]) -> BatchSettings:
    ids = ([str(x) for x in group] for group in (configs, workspaces, inboxes))
    return BatchSettings.from_json(asyncio.run(Queue(world.url).get_batch_settings(*ids)))


def test_the_settings_of_a_batch_are_those_of_its_campaigns_workspaces_and_inboxes(world: World) -> None:
    workspace, other = world.workspace(model="a/model"), world.workspace(model=None)
    inbox = world.inbox(workspace)
    config = world.campaign(
        workspace,
        inbox,
        split_messages=True,
        max_split_parts=4,
        start_time="08:00",
        end_time="18:30",
        frequency="weekdays",
    )
    world.campaign(workspace)
    found = settings(world, [config], [workspace, other], [inbox])
    assert found.models == {str(workspace): "a/model"}
    assert found.inbox_names == {str(inbox): "Vendas"}
    (campaign,) = found.campaigns.values()
    assert (campaign.split_messages, campaign.max_split_parts) == (True, 4)
    window = campaign.window()
    assert (str(window.start), str(window.end), window.weekdays_only) == ("08:00:00", "18:30:00", True)


def test_a_campaign_until_twenty_four_has_a_window_for_the_shard_too(world: World) -> None:
    workspace = world.workspace()
    config = world.campaign(workspace)
    world.do("UPDATE campaign_configs SET start_time = '08:00', end_time = '24:00'")
    (campaign,) = settings(world, [config], [workspace], []).campaigns.values()
    assert str(campaign.window().end) == "00:00:00"


def test_the_newest_active_agent_with_a_model_is_the_workspaces(world: World) -> None:
    workspace = world.workspace(model=None)
    for age, model, active in (
        (3, "old/model", True),
        (2, "new/model", True),
        (1, "off/model", False),
        (0, None, True),
    ):
        at = world.value("SELECT now() - %s * interval '1 day'", age)
        world.insert("ai_agents", workspace_id=workspace, model=model, is_active=active, created_at=at)
    assert settings(world, [], [workspace], []).models == {str(workspace): "new/model"}


def test_an_empty_batch_has_settings_too(world: World) -> None:
    found = settings(world, [], [], [])
    assert (found.campaigns, found.models, found.splitter.strategy) == ({}, {}, "local")


def test_the_splitters_settings_are_those_of_the_active_row(world: World) -> None:
    world.insert("ai_message_splitter_config", is_active=False, min_chars_to_split=1)
    world.insert("ai_message_splitter_config", min_chars_to_split=99, strategy="model", temperature=None)
    splitter = settings(world, [], [], []).splitter
    assert (splitter.min_chars, splitter.strategy, splitter.temperature) == (99, "model", 0.3)


def test_an_inbox_is_reached_through_its_connected_instance_or_not_at_all(world: World) -> None:
    workspace = world.workspace()
    inbox = world.inbox(workspace, status="disconnected", name="velho")
    connected = world.insert("instances", workspace_id=workspace, name="novo", status="connected", instance_token="t")
    world.insert("inbox_instances", inbox_id=inbox, instance_id=connected)
    found = asyncio.run(Queue(world.url).get_inbox_connection(str(inbox)))
    assert found is not None
    assert (found.name, found.instance_token, found.settings) == ("novo", "t", {})
    bare = world.inbox(workspace, status=None)
    assert asyncio.run(Queue(world.url).get_inbox_connection(str(bare))) is None
