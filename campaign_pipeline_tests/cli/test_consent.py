"""`campaign-pipeline consent`, as an operator uses it."""

import stat
from pathlib import Path
from uuid import UUID, uuid4

import orjson
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from campaign_pipeline.cli import cli
from campaign_pipeline_tests.factories import World
from campaign_pipeline_tests.sql.holder import PHONE, holding

pytestmark = pytest.mark.usefixtures("environment")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["consent", *map(str, arguments)], env={"COLUMNS": "200"})


def sentence(result: Result) -> str:
    """Return the last line of an error, without Click's prefix."""
    return result.stderr.strip().splitlines()[-1].removeprefix("Error: ")


def suppressions(world: World) -> list[tuple[str, str | None, str | None, bool]]:
    found = world.all(
        "SELECT scope, channel, address, lifted_at IS NULL AS holds FROM campaign_suppressions ORDER BY id"
    )
    return [(row["scope"], row["channel"], row["address"], row["holds"]) for row in found]


@pytest.fixture
def lead(world: World) -> UUID:
    return world.lead(world.workspace(), phone="+55 11 98765-4321", client_name="Zenóbia Quaresma")


def test_a_lead_is_suppressed_in_its_workspace_at_its_number_too(world: World, lead: UUID) -> None:
    result = call("suppress", "--lead", lead, "--reason", "asked by phone")
    assert (result.exit_code, suppressions(world)) == (0, [("workspace", None, PHONE, True)])
    assert "is active" in result.output


def test_an_address_is_suppressed_in_one_channel_of_one_workspace(world: World) -> None:
    workspace = world.workspace()
    call("suppress", "--address", "Ana@Example.com", "--workspace", workspace, "--channel", "email", "--reason", "x")
    assert suppressions(world) == [("channel", "email", "ana@example.com", True)]


def test_an_address_is_suppressed_everywhere(world: World) -> None:
    call("suppress", "--address", "11 98765-4321", "--everywhere", "--reason", "x")
    assert suppressions(world) == [("global", None, PHONE, True)]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["suppress", "--reason", "x"], "--lead or --address"),
        (["suppress", "--address", "1", "--reason", "x"], "--workspace"),
        (["suppress", "--address", "1", "--everywhere", "--channel", "email", "--reason", "x"], "--everywhere"),
        (["suppress", "--lead", "nobody", "--reason", "x"], "nobody"),
        (["suppress", "--lead", str(uuid4())], "--reason"),
        (["lift"], "--lead or --address"),
    ],
)
def test_wrong_usage_is_reported_in_one_sentence(world: World, arguments: list[str], told: str) -> None:
    result = call(*arguments)
    assert (result.exit_code, suppressions(world)) == (2, [])
    assert told in sentence(result)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["suppress", "--lead", str(uuid4()), "--reason", "x"], "needs a workspace"),
        (["suppress", "--address", "nobody", "--everywhere", "--reason", "x"], "is neither a phone number nor"),
        (["export", str(uuid4())], "Nothing is stored about lead"),
        (["erase", str(uuid4()), "--yes"], "Nothing is stored about lead"),
    ],
)
def test_an_impossible_request_is_refused_in_one_sentence(world: World, arguments: list[str], told: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 1
    assert told in sentence(result)


def test_lifting_says_how_many_and_by_whom(world: World, lead: UUID) -> None:
    call("suppress", "--lead", lead, "--reason", "x")
    result = call("lift", "--address", "551187654321", "--by", "Rui")
    assert (result.exit_code, result.output.strip()) == (0, "1 suppression was lifted.")
    assert world.value("SELECT lifted_by FROM campaign_suppressions") == "Rui"


def test_the_list_masks_addresses(world: World, lead: UUID) -> None:
    assert "Nobody is suppressed." in call("list").output
    call("suppress", "--lead", lead, "--reason", "asked by phone")
    for arguments in ([], ["--lead", lead], ["--address", "11 98765-4321"], ["--channel", "whatsapp"]):
        text = call("list", *arguments).output
        assert "asked by phone" in text
        assert PHONE not in text
        assert "5511*****4321" in text
    assert "Nobody" in call("list", "--lead", uuid4()).output


def test_the_list_of_a_channel_is_not_crowded_out_by_newer_rows_of_another(world: World) -> None:
    workspace = world.workspace()
    for channel, count in (("email", 1), ("whatsapp", 3)):
        for number in range(count):
            address = f"ana{number}@example.com" if channel == "email" else f"+55 11 98765-432{number}"
            call("suppress", "--address", address, "--workspace", workspace, "--channel", channel, "--reason", channel)
    shown = call("list", "--channel", "email", "--limit", 2).output
    assert (shown.count(" email "), "whatsapp" in shown) == (2, False)  # its channel and its reason


def test_an_export_is_a_private_file_with_all_there_is(world: World, lead: UUID, tmp_path: Path) -> None:
    file = tmp_path / "lead.json"
    assert call("export", lead, "--output", file).exit_code == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    document = orjson.loads(file.read_bytes())
    assert document["lead"]["client_name"] == "Zenóbia Quaresma"
    assert orjson.loads(call("export", lead).output) | {"exported_at": ""} == document | {"exported_at": ""}


def test_an_export_overwrites_no_file(lead: UUID, tmp_path: Path) -> None:
    file = tmp_path / "lead.json"
    file.write_text("mine")
    assert call("export", lead, "--output", file).exit_code == 1
    assert file.read_text() == "mine"


def test_erasing_reaches_the_step_outputs_and_says_what_it_did(
    world: World, lead: UUID, tmp_path: Path, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("CAMPAIGN_OUTPUTS", str(tmp_path / "outputs"))
    table = tmp_path / "outputs" / "run" / "fetch_lead_contexts" / "lead_contexts.parquet"
    table.parent.mkdir(parents=True)
    rows = [{"lead_id": str(lead), "context": "Zenóbia"}, {"lead_id": str(uuid4()), "context": "Bruno"}]
    pd.DataFrame(rows).to_parquet(table, index=False)
    result = call("erase", lead, "--by", "Rui", "--yes")
    assert result.exit_code == 0
    assert "1 in leads" in result.output
    assert "1 output files" in result.output
    assert list(pd.read_parquet(table)["context"]) == ["Bruno"]
    assert world.one("SELECT client_name, phone FROM leads WHERE id = %s", lead) == {"client_name": None, "phone": None}
    assert world.value("SELECT erased_by FROM campaign_erasures") == "Rui"


def test_nothing_is_erased_without_confirmation(world: World, lead: UUID) -> None:
    result = CliRunner().invoke(cli, ["consent", "erase", str(lead)], input="n\n")
    assert result.exit_code == 1
    assert world.value("SELECT client_name FROM leads WHERE id = %s", lead) == "Zenóbia Quaresma"


def test_an_erasure_that_must_wait_says_so(world: World) -> None:
    message = world.due_message(world.run())
    lead = world.value("SELECT lead_id FROM campaign_messages WHERE id = %s", message)
    holding(world, message).begin_new(message)
    result = call("erase", lead, "--yes")
    assert result.exit_code == 1
    assert sentence(result) == "A message to this lead is being sent at this moment; erase it again in a minute."
