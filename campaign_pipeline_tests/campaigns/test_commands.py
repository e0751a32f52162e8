"""From a list to a campaign, as an operator does it; and the daily planning job."""

import json
from datetime import datetime, time, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import dagster as dg
import pytest
from click.testing import CliRunner, Result
from dagster import DagsterInstance

from campaign_pipeline.cli import cli
from campaign_pipeline.defs.io import private_handles
from campaign_pipeline.defs.planning import plan_campaign_runs, plan_campaign_runs_daily
from campaign_pipeline.defs.resources import QueueDatabase
from campaign_pipeline_tests.campaigns.test_planning import campaign
from campaign_pipeline_tests.factories import World


def call(*arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == status, result.output
    return result


def test_a_list_and_a_file_become_messages_that_are_due(
    world: World, environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file, leads = tmp_path / "campaign.yaml", tmp_path / "leads.csv"
    text = call("apply", "--example").output.replace('from: "09:00"', 'from: "00:00"').replace('"18:00"', '"23:59"')
    text = text.replace("[mon, tue, wed, thu, fri]", "[mon, tue, wed, thu, fri, sat, sun]").replace("quiet_", "# ")
    file.write_text(text.replace("holidays: [2026-12-25, 2027-01-01]", ""), encoding="utf-8")
    leads.write_text("Nome;Telefone\nAna;(11) 98765-0001\nBruno;none\n", encoding="utf-8")
    assert "campaign Primeiro contato" in call("apply", str(file), "--check", status=1).output
    assert world.all("SELECT 1 FROM campaign_configs") == []
    call("apply", str(file))
    assert "The database matches the file." in call("apply", str(file), "--check").output
    imported = json.loads(call("import", str(leads), "--workspace", "Aurora", "--json").output)
    assert (imported["added"], imported["left_out"][0]["line"]) == (1, 3)
    assert "none" not in imported["left_out"][0]["why"]
    # Midday there, so that some of the day is left.
    now = datetime.now(ZoneInfo("America/Sao_Paulo"))
    world.move_clock(now.replace(hour=12) - now)
    said = call("start", "Primeiro contato").output
    assert "1 message is due" in said
    assert "campaign-pipeline review" in said
    assert [row["status"] for row in world.messages()] == ["pending"]


def test_an_unknown_name_is_a_sentence_with_exit_code_2(world: World, environment: pytest.MonkeyPatch) -> None:
    for arguments in (["start", "Nada"], ["preview", "Nada"], ["review", "Nada"], ["test-send", "Nada", "--to", "1"]):
        result = call(*arguments, status=2)
        assert "'Nada'" in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1


def test_the_daily_job_plans_each_campaign_and_says_what_keeps_one(
    world: World, environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment.setenv("CAMPAIGN_OUTPUTS", str(tmp_path / "outputs"))
    campaign(world, leads=2)
    # Partitions go by the machine's clock: yesterday is the last one that surely exists. At noon half of it is left.
    now = datetime.now(ZoneInfo("America/Sao_Paulo"))
    noon = datetime.combine(now.date() - timedelta(days=1), time(12), now.tzinfo)
    world.move_clock(noon - now)
    world.do("UPDATE campaign_configs SET timezone = 'America/Sao_Paulo'")
    broken = world.campaign(is_active=True, timezone="Mars/Olympus")
    world.insert("campaign_settings", config_id=broken, name="Marte")
    resources = {"database": QueueDatabase(), "handles": private_handles}
    with DagsterInstance.local_temp(str(tmp_path), overrides={"telemetry": {"enabled": False}}) as instance:
        result = plan_campaign_runs.execute_in_process(
            partition_key=noon.date().isoformat(), instance=instance, resources=resources
        )
        assert result.success
        (event,) = result.get_step_success_events()
        outputs = [each for each in result.all_events if each.event_type_value == "STEP_OUTPUT"]
        figures = {name: value.value for name, value in outputs[0].step_output_data.metadata.items() if name != "plan"}
    assert (figures["campaigns"], figures["messages"], event.step_key) == (2, 2, "plan_day_of_campaigns")
    assert len(world.messages()) == 2


def test_the_schedule_plans_automatically_only_without_a_crms_plan(
    world: World, environment: pytest.MonkeyPatch
) -> None:
    def tick() -> object:
        context = dg.build_schedule_context(
            scheduled_execution_time=datetime(2026, 12, 1, 0, 10, tzinfo=ZoneInfo("America/Sao_Paulo")),
            resources={"database": QueueDatabase()},
        )
        return plan_campaign_runs_daily(context)

    request = tick()
    assert isinstance(request, dg.RunRequest)
    assert request.partition_key == "2026-12-01"
    world.do("ALTER TABLE campaign_configs DROP COLUMN name")  # as the CRM's own table is
    assert isinstance(tick(), dg.SkipReason)
    environment.setenv("CAMPAIGN_PLANNING", "on")
    assert isinstance(tick(), dg.RunRequest)
