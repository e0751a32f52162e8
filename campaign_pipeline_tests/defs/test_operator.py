"""The operator's views and actions as Dagster jobs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterInstance, ExecuteInProcessResult

from campaign_pipeline.definitions import defs
from campaign_pipeline_tests.factories import World


@pytest.fixture
def instance(tmp_path: Path, environment: pytest.MonkeyPatch) -> Iterator[DagsterInstance]:
    environment.setenv("CAMPAIGN_OUTPUTS", str(tmp_path / "outputs"))
    with DagsterInstance.local_temp(str(tmp_path), overrides={"telemetry": {"enabled": False}}) as instance:
        yield instance


def run(instance: DagsterInstance, job: str, op: str | None = None, **config: Any) -> ExecuteInProcessResult:
    return defs.resolve_job_def(job).execute_in_process(
        instance=instance, run_config={"ops": {op: {"config": config}}} if op else None, raise_on_error=False
    )


def failure(result: ExecuteInProcessResult) -> str | None:
    (event,) = [event for event in result.all_events if event.is_step_failure]
    told = event.step_failure_data.user_failure_data
    return told.description if told else None


def test_a_messages_story_is_an_output_without_the_person(world: World, instance: DagsterInstance) -> None:
    lead = world.lead(client_name="Maria Prado", phone="+55 11 98765-4321")
    due = world.due_message(
        world.run(),
        lead,
        status="failed",
        error_class="permanent",
        error_code="invalid_phone",
        error_message="The phone number is too short.",
        finished_at=world.value("SELECT campaign_now()"),
    )
    result = run(instance, "explain_message", "tell_story", message=str(due)[:13])
    assert result.success
    (output,) = [event.step_output_data for event in result.all_events if event.is_successful_output]
    told = {name: str(value.value) for name, value in output.metadata.items()}
    assert "The phone number is too short." in told["what happened"]
    assert "Correct the lead's phone number" in told["what to do"]
    assert "Maria" not in str(told) + str(result.output_for_node("tell_story", "story"))


def test_sending_is_paused_from_the_ui_and_a_wrong_target_is_one_sentence(
    world: World, instance: DagsterInstance
) -> None:
    assert run(instance, "pause_sending", "pause", scope="ALL", by="ana").success
    assert world.value("SELECT paused_by FROM campaign_manual_pauses") == "ana"
    refused = run(instance, "resume_sending", "resume", scope="INBOX", by="ana")
    assert failure(refused) == "target is empty, but must name the inbox."


def test_the_overview_shows_inboxes_and_the_forecast(world: World, instance: DagsterInstance) -> None:
    world.due_messages(world.run(), 2)
    result = run(instance, "refresh_overview")
    tables = {
        event.asset_key.to_user_string(): event.step_materialization_data.materialization.metadata
        for event in result.get_asset_materialization_events()
        if event.asset_key
    }
    assert tables["forecast"]["messages"].value == 2
    assert "| Vendas |" in str(tables["inbox_health"]["inboxes"].value)
