"""Importing a file's leads into a workspace."""

from pathlib import Path
from uuid import UUID

import pytest

from campaign_pipeline.campaigns.finding import NotFound
from campaign_pipeline.campaigns.importing import Imported, import_leads
from campaign_pipeline.campaigns.planning import plan_campaign
from campaign_pipeline.leads import read_leads
from campaign_pipeline_tests.factories import World

LEADS = """Nome;Telefone;Bairro
Ana Souza;(11) 98765-0001;Centro
Bruno Lima;+351 912 345 678;
Caio Reis;(11) 98765-0001;Lapa
Davi Melo;none;
Eva Dias;11 8765-0004;Centro
"""


def campaign_of(world: World, workspace: UUID, title: str = "Novos") -> UUID:
    funnel = world.insert("funnels", workspace_id=workspace, name="Prospecção")
    column = world.insert("funnel_columns", funnel_id=funnel, title=title)
    return world.campaign(workspace, name=title, source_funnel_id=funnel, source_column_id=column)


def imported(world: World, folder: Path, text: str = LEADS, campaign: str | None = None) -> Imported:
    file = folder / "leads.csv"
    file.write_text(text, encoding="utf-8")
    read = read_leads(file, emails=True)
    return import_leads(world.url, read.leads, read.lines, "Acme", campaign)


def test_a_list_is_added_once_whatever_its_spellings(world: World, tmp_path: Path) -> None:
    workspace = world.workspace()
    campaign_of(world, workspace)
    world.lead(workspace, phone="+55 (11) 98765-0004")  # Eva's, with the ninth digit
    first = imported(world, tmp_path)
    assert (first.added, first.known, first.column) == (2, [6], "Novos")
    assert imported(world, tmp_path).added == 0
    rows = world.all("SELECT client_name, phone FROM leads WHERE column_id IS NOT NULL ORDER BY client_name")
    assert [(row["client_name"], row["phone"]) for row in rows] == [
        ("Ana Souza", "5511987650001"),
        ("Bruno Lima", "+351912345678"),
    ]
    assert world.value("SELECT value FROM lead_custom_values") == "Centro"


def test_a_list_of_email_addresses_alone_is_planned_for_a_mailbox(world: World, tmp_path: Path) -> None:
    workspace = world.workspace()
    campaign = campaign_of(world, workspace)
    text = "Nome;Email\nAna;ana@example.com\nBia;bia@example\nCaio;ANA@example.com\nDavi;davi@example.com\n"
    assert imported(world, tmp_path, text).added == 2
    again = imported(world, tmp_path, text)
    assert (again.added, again.known) == (0, [2, 5])
    assert {row["phone"] for row in world.all("SELECT phone FROM leads")} == {None}
    assert plan_campaign(world.url, str(campaign), dry_run=True).refused == {"no_address": 2}
    world.do("UPDATE instances SET provider = 'email', provider_type = 'smtp'")
    assert plan_campaign(world.url, str(campaign), dry_run=True).refused == {}


def test_of_several_columns_one_has_to_be_named(world: World, tmp_path: Path) -> None:
    workspace = world.workspace()
    for title in ("Novos", "Antigos"):
        campaign_of(world, workspace, title)
    with pytest.raises(NotFound, match="Choose a campaign with --campaign: Novos, Antigos"):
        imported(world, tmp_path)
    assert imported(world, tmp_path, campaign="antigos").column == "Antigos"


def test_a_workspace_that_is_not_there_is_named_with_those_that_are(world: World) -> None:
    world.workspace()
    with pytest.raises(NotFound, match=r"There is no workspace 'Acne'; did you mean 'Acme'\?"):
        import_leads(world.url, [], [], "Acne", None)
