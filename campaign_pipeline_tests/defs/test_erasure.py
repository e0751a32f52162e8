"""After an erasure nothing of the person is left: one test searches everywhere."""

from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pandas as pd
import pytest
from click.testing import CliRunner
from dagster import DagsterInstance

from campaign_pipeline.cli import cli
from campaign_pipeline.sandbox import Behaviour, Fault, SandboxProcess
from campaign_pipeline_tests.defs.test_job import IN_PROCESS, instance, outputs, run_job, sandbox, troubles
from campaign_pipeline_tests.factories import World

__all__ = ["instance", "outputs", "sandbox"]  # the fixtures

OF_THE_PERSON = ("Quaresma", "977776655", "97777-6655", "77776655", "zenobia.q@", "123.456.789-09")
OF_ANOTHER = "Bittencourt"


def of_every_table(world: World) -> Iterator[tuple[str, str]]:
    """Yield each table of the CRM and of ours, with its whole content."""
    for row in world.all(
        "SELECT schemaname || '.' || tablename AS name FROM pg_tables"
        " WHERE schemaname IN ('public', 'campaign_pipeline')"
    ):
        name = row["name"]
        yield name, world.value(f"SELECT COALESCE(string_agg(t::text, ' '), '') FROM {name} t")


def of_every_file(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield each file below a folder, with its whole content: step outputs, and Dagster's events and compute logs."""
    for path in folder.rglob("*"):
        if path.suffix == ".parquet":
            yield path.name, pd.read_parquet(path).to_csv()
        elif path.is_file():
            yield path.name, path.read_bytes().decode("utf-8", "replace")


def places(world: World, folder: Path, words: tuple[str, ...]) -> set[str]:
    """Return the places that contain any of these words."""
    everything = [*of_every_table(world), *of_every_file(folder)]
    return {name for name, content in everything if any(word in content for word in words)}


@pytest.fixture
def lead(world: World) -> UUID:
    """A person with data in every field of the CRM, whose messages ran into trouble."""
    workspace = world.workspace()
    run = world.run(world.campaign(workspace))
    lead = world.lead(
        workspace,
        client_name="Zenóbia Quaresma",
        company="Confecções Quaresma",
        phone="+55 11 97777-6655",
        email="zenobia.q@example.com",
        notes="Prefere falar com a Quaresma mãe",
        tags=["Quaresma"],
    )
    field = world.insert("custom_fields", workspace_id=workspace, name="CPF")
    world.insert("lead_custom_values", lead_id=lead, custom_field_id=field, value="123.456.789-09")
    world.insert("lead_activities", lead_id=lead, activity_type="note", description="Ligou para Zenóbia Quaresma")
    world.due_message(run, lead, phone_number="11 97777-6655")
    world.due_message(run, world.lead(workspace, client_name="Rui Bittencourt"))
    return lead


@pytest.mark.parametrize("fault", ["send:server_error_500:times=1", "send:not_on_whatsapp:phone=5511977776655", None])
def test_nothing_of_an_erased_person_is_left_anywhere(
    world: World,
    lead: UUID,
    sandbox: SandboxProcess,
    outputs: Path,
    instance: DagsterInstance,
    tmp_path: Path,
    fault: str | None,
) -> None:
    if fault:
        sandbox.set_behaviour(Behaviour(faults=(Fault.parse(fault),)))
    result = run_job(instance, IN_PROCESS)
    assert result.success, troubles(result)
    conversation = world.all("SELECT id FROM conversations WHERE lead_id = %s", lead)
    if conversation:
        world.insert(
            "messages",
            conversation_id=conversation[0]["id"],
            message_type="received",
            text_content="Aqui é a Quaresma, pode ligar",
        )
    draft = next(outputs.rglob("*lead_contexts*")).with_suffix(".parquet.4711.part")
    draft.write_text("Zenóbia Quaresma")
    before = places(world, tmp_path, OF_THE_PERSON)
    assert {"public.leads", "public.lead_activities", draft.name} <= before, "the search works"
    erased = CliRunner().invoke(cli, ["consent", "erase", str(lead), "--yes", "--by", "Rui"])
    assert erased.exit_code == 0, erased.output
    assert places(world, tmp_path, OF_THE_PERSON) == set()
    assert "public.leads" in places(world, tmp_path, (OF_ANOTHER,)), "others keep what is theirs"
