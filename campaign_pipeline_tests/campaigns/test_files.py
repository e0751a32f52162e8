"""`campaign.yaml`: error messages, and the result of an apply."""

import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

import pytest

from campaign_pipeline.campaigns.applying import Applied, apply_campaign_file
from campaign_pipeline.campaigns.model import json_schema
from campaign_pipeline.campaigns.reading import CampaignFileError, parse_campaign_file
from campaign_pipeline.core.window import SendingWindow
from campaign_pipeline_tests.factories import World

PLAIN = """
workspace: {name: Aurora, model: openai/gpt-4o-mini}
inboxes:
  - {name: Vendas, provider: evolution, pace: {min_gap_seconds: 45}}
  - {name: Reserva, provider: uazapi, key_variable: UAZAPI_TOKEN_RESERVA}
campaigns:
  - name: Primeiro contato
    inbox: Vendas
    fallback_inboxes: [Reserva]
    instructions: Apresente-se.
    window: {from: 10:00, until: 18:00, weekdays: [mon, sat], holidays: [2026-12-26]}
    review: {first_n: 3}
"""


def packaged(name: str) -> str:
    return resources.files("campaign_pipeline.campaigns").joinpath(name).read_text(encoding="utf-8")


def applied(world: World, text: str, *, check: bool = False, variables: Mapping[str, str] | None = None) -> Applied:
    return apply_campaign_file(world.url, parse_campaign_file(text), variables or {}, check=check)


def test_the_schema_in_the_repository_is_that_of_the_model() -> None:
    assert json.loads(packaged("campaign.schema.json")) == json_schema()


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (
            "  - name: Primeiro contato\n",
            "  - nome: Primeiro contato\n",
            "campaign.yaml, line 7: campaigns[1].nome is not a setting; did you mean name?",
        ),
        (
            "model: openai/gpt-4o-mini",
            "timezone: America/Sao_Paolo, model: x",
            "campaign.yaml, line 2: workspace.timezone is 'America/Sao_Paolo', which is not a known time zone; "
            "did you mean 'America/Sao_Paulo'?",
        ),
        ("", "a: [", "campaign.yaml, line 13: this is not YAML: "),
        (
            "    inbox: Vendas\n",
            "    inbox: Venda\n",
            "campaign.yaml, line 8: campaigns[1].inbox is 'Venda', which is not an inbox of this file: "
            "Vendas, Reserva.",
        ),
        (
            "    inbox: Vendas\n",
            "    inbox: Vendas\n    inbox: Reserva\n",
            "campaign.yaml, line 9: campaigns[1].inbox is given twice (first in line 8); keep one.",
        ),
        (
            "    instructions: Apresente-se.\n",
            "",
            "campaign.yaml, line 7: campaigns[1].instructions is missing; write it.",
        ),
        (
            "from: 10:00",
            "from: 25:00",
            "campaign.yaml, line 11: campaigns[1].window.from is '25:00', but must be a time of day such as \"09:00\".",
        ),
        (
            "first_n: 3",
            "first_n: none",
            "campaign.yaml, line 12: campaigns[1].review.first_n is 'none', but must be a whole number.",
        ),
        (
            "review: {first_n: 3}",
            "review: some",
            "campaign.yaml, line 12: campaigns[1].review is 'some', but must be none, all, or a number of texts as "
            "first_n: 10.",
        ),
    ],
)
def test_an_error_is_a_sentence_with_line_field_value_and_correction(old: str, new: str, sentence: str) -> None:
    text = PLAIN.replace(old, new, 1) if old else PLAIN + new
    with pytest.raises(CampaignFileError) as error:
        parse_campaign_file(text)
    assert sentence in str(error.value)


@pytest.mark.parametrize("name", ["sk-or-v1-secret", "OPENROUTER_API_KEY"])
def test_a_key_in_the_file_is_refused_without_being_quoted(name: str) -> None:
    with pytest.raises(CampaignFileError) as error:
        parse_campaign_file(PLAIN.replace("UAZAPI_TOKEN_RESERVA", name))
    assert "inboxes[2] has a key_variable that " in str(error.value)
    assert name not in str(error.value)


@pytest.mark.parametrize("text", [PLAIN, packaged("example.yaml")])
def test_a_file_is_applied_once(world: World, text: str) -> None:
    would = applied(world, text, check=True)
    assert world.value("SELECT count(*) FROM workspaces") == 0
    first = applied(world, text)
    assert first.changes == would.changes != []
    assert applied(world, text).changes == []


def test_the_pipeline_reads_what_the_file_says(world: World) -> None:
    applied(world, PLAIN)
    campaign = world.one("SELECT * FROM campaign_configs")
    settings = world.one("SELECT * FROM campaign_settings")
    window = SendingWindow.parse(
        *(campaign["start_time"], campaign["end_time"], campaign["timezone"], campaign["frequency"]),
        *(settings["weekdays"], settings["holidays"]),
    )
    assert (str(window.start), sorted(window.weekdays or ())) == ("10:00:00", [1, 6])
    assert list(map(str, window.holidays)) == ["2026-12-26"]
    assert (settings["review"], settings["review_first"]) == ("first_n", 3)
    assert campaign["when_inbox_down"] == "fallback"
    assert (
        world.value("SELECT min_gap_seconds FROM campaign_inbox_pace WHERE inbox_id = %s", campaign["inbox_id"]) == 45
    )
    reserve = world.one("SELECT * FROM instances WHERE provider_type = 'uazapi'")
    assert (reserve["provider_config"], reserve["status"]) == ({"key_variable": "UAZAPI_TOKEN_RESERVA"}, "connected")


def test_only_differences_are_written(world: World) -> None:
    workspace = applied(world, PLAIN).workspace_id
    world.do("UPDATE instances SET provider_config = provider_config || '{\"own\": null}'")
    other = world.campaign(workspace, name="Outra")
    world.do(
        "UPDATE inboxes SET name = 'Outro' WHERE id = (SELECT inbox_id FROM campaign_configs WHERE id = %s)", other
    )
    text = PLAIN.replace("key_variable: UAZAPI_TOKEN_RESERVA", "instance: r2").replace("10:00", "11:00")
    changed = applied(world, text)
    assert {(change.what, change.field, change.before, change.after) for change in changed.changes} == {
        ("inbox Reserva", "instance", "Reserva", "r2"),
        ("inbox Reserva", "key_variable", "UAZAPI_TOKEN_RESERVA", None),
        ("campaign Primeiro contato", "opens", "10:00", "11:00"),
    }
    assert changed.left_alone == ["inbox Outro", "campaign Outra"]
    assert world.value("SELECT ai_instructions FROM campaign_configs WHERE id = %s", other).startswith("Você vende")
    assert world.value("SELECT provider_config FROM instances WHERE name = 'r2'") == {"own": None}


def test_a_missing_key_is_named(world: World) -> None:
    variables = {"EVOLUTION_API_URL": "http://127.0.0.1:1", "EVOLUTION_API_KEY": "k", "UAZAPI_API_URL": "http://x"}
    assert applied(world, PLAIN, variables=variables).missing_variables == [
        "UAZAPI_TOKEN_RESERVA is not set here; inbox Reserva waits until the pipeline's processes have it."
    ]


def test_every_setting_of_a_campaign_can_be_changed_and_is_then_the_same(world: World) -> None:
    applied(world, PLAIN)
    changes: dict[str, Any] = {
        "instructions: Apresente-se.": "instructions: Outra coisa.\n    daily_limit: 7\n    interval_seconds: 9\n"
        "    max_cost_usd_per_run: 1.5\n    split: true\n    max_parts: 2\n    active: false\n"
        "    leads: {funnel: F, column: A, moved_to: B, tags: [x]}",
        "weekdays: [mon, sat]": "weekdays: [mon, tue, wed, thu, fri]",
        "{first_n: 3}": "all",
        "    fallback_inboxes: [Reserva]\n": "",
        "name: Aurora,": "name: Aurora, max_cost_usd_per_day: 3, persona: {name: Clara, instructions: Oi},",
        ", pace: {min_gap_seconds: 45}": "",
    }
    text = PLAIN
    for old, new in changes.items():
        text = text.replace(old, new)
    assert len(applied(world, text).changes) >= 14
    assert applied(world, text).changes == []
