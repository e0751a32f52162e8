"""Views and actions on the command line, as an operator uses them."""

from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from click.testing import CliRunner, Result

from campaign_pipeline.cli import cli
from campaign_pipeline.cli.output import zone
from campaign_pipeline_tests.factories import World

pytestmark = pytest.mark.usefixtures("environment")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [*map(str, arguments)], env={"COLUMNS": "250"})


def answer(*arguments: object) -> Any:
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return orjson.loads(result.stdout)


def test_why_did_maria_get_nothing(world: World) -> None:
    workspace = world.workspace()
    inbox = world.inbox(workspace, status="disconnected", name="vendas_1")
    run = world.run(world.campaign(workspace, inbox))
    maria = world.lead(workspace, client_name="Maria Prado", phone="+55 11 98765-4321")
    due = world.due_message(run, maria)
    found = call("messages", "--lead", "Maria")
    assert str(due)[:8] in found.stdout
    told = call("message", str(due)[:8]).stdout
    assert "Waits with its whole run: The instance vendas_1 is disconnected" in told
    assert "What to do: Connect the inbox's instance" in told
    world.lead(workspace, client_name="Joana Reis")
    assert "no campaign message, because it is in no run" in call("messages", "--lead", "Joana").stdout
    assert call("messages", "--lead", "Nobody").stdout == "No lead found.\n"


def test_times_are_shown_in_the_business_zone_which_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAMPAIGN_TIMEZONE", "Asia/Kathmandu")
    zone.cache_clear()
    try:
        due = world.due_message(world.run(), scheduled_at=datetime(2025, 3, 4, 12, 0, tzinfo=UTC))
        for arguments in (["messages"], ["message", due]):
            shown = call(*arguments).stdout
            assert "2025-03-04 17:45" in shown
            assert "Times are in Asia/Kathmandu." in shown
        assert "Times are in" not in call("inboxes").stdout
    finally:
        zone.cache_clear()


def test_personal_data_is_masked_unless_it_is_asked_for(world: World) -> None:
    run = world.run()
    workspace = world.value("SELECT workspace_id FROM inboxes")
    due = world.due_message(run, world.lead(workspace, client_name="Maria Prado"), generated_message="Olá, Maria!")
    for arguments in (["messages"], ["message", due]):
        assert "Maria" not in str(answer(*arguments))
        assert "Maria" in str(answer(*arguments, "--show-personal-data"))


def test_every_view_is_available_as_json(world: World) -> None:
    world.due_messages(world.run(name="Hoje"), 2)
    assert [(row["name"], row["waiting"]) for row in answer("runs")] == [("Hoje", 2)]
    assert [row["connection"] for row in answer("inboxes")] == ["connected"]
    assert [row["messages"] for row in answer("forecast")] == [2]
    assert answer("pause", "--all", "--by", "ana")["changed"]
    assert [row["paused_by"] for row in answer("pauses")] == ["ana"]


def test_a_dry_run_says_what_a_batch_would_do_and_changes_nothing(world: World) -> None:
    run = world.run(name="Hoje")
    world.due_messages(run, 3)
    before = world.messages()
    told = answer("process", "--dry-run", "--batch-size", 2)
    assert [(row["run"], row["inbox"], row["messages"], row["to_write"]) for row in told["claimed"]] == [
        ("Hoje", "Vendas", 2, 2)
    ]
    assert [(row["messages"], row["todo"]) for row in told["kept"]] == [(1, "nothing: the next batches claim them")]
    assert world.messages() == before
    assert world.value("SELECT count(*) FROM campaign_logs") == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pause"], "Give exactly one of RUN, --inbox, --workspace and --all."),
        (["pause", "Hoje", "--all"], "Give exactly one of RUN, --inbox, --workspace and --all."),
        (["retry"], "Give either message ids, or --day"),
        (["process", "--json"], "--json needs --dry-run."),
    ],
    ids=str,
)
def test_wrong_usage_names_what_would_be_right(arguments: list[str], said: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr


def test_an_unknown_object_ends_with_1_and_one_sentence(world: World) -> None:
    result = call("message", "00000000")
    assert result.exit_code == 1
    assert result.stderr == "Error: There is no message '00000000': give an id or the beginning of one.\n"


def test_a_day_is_that_of_the_back_fill(world: World) -> None:
    late_evening = datetime(2026, 3, 11, 1, 30, tzinfo=UTC)  # still the 10th in São Paulo
    due = world.due_message(world.run(), status="failed", error_class="exhausted", finished_at=late_evening)
    assert answer("messages", "--day", "2026-03-11") == []
    assert [row["message_id"] for row in answer("messages", "--day", "2026-03-10")] == [str(due)]
    assert not answer("retry", "--day", "2026-03-11")["changed"]
    assert answer("retry", "--day", "2026-03-10")["changed"]
