"""The UI's content for an operator: assets with lineage, the daily report, checks, figures and texts."""

import base64
import io
import re
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import dagster as dg
import pandas as pd
import pytest
from dagster import AssetCheckKey, AssetKey, DagsterInstance
from PIL import Image

from campaign_pipeline.adapters.reports import CampaignDay
from campaign_pipeline.definitions import defs
from campaign_pipeline.defs.assets import TIMES, refresh_campaign_report_hourly
from campaign_pipeline.defs.checks import CHECKS
from campaign_pipeline.defs.days import days
from campaign_pipeline.defs.io import markdown_table
from campaign_pipeline.defs.plots import day_picture, in_words
from campaign_pipeline.sandbox import Behaviour, Fault, Kind, SandboxProcess
from campaign_pipeline_tests.defs.test_job import IN_PROCESS, run_job, troubles
from campaign_pipeline_tests.factories import World

ZONE = ZoneInfo("America/Sao_Paulo")
DAY = "2026-03-10"
NOON = datetime(2026, 3, 10, 12, tzinfo=ZONE)


@pytest.fixture
def outputs(tmp_path: Path, environment: pytest.MonkeyPatch) -> Path:
    """The folder of step outputs."""
    environment.setenv("CAMPAIGN_OUTPUTS", str(tmp_path / "outputs"))
    return tmp_path / "outputs"


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[DagsterInstance]:
    with DagsterInstance.local_temp(str(tmp_path), overrides={"telemetry": {"enabled": False}}) as instance:
        yield instance


@pytest.fixture
def sandbox(environment: pytest.MonkeyPatch) -> Iterator[SandboxProcess]:
    with SandboxProcess() as sandbox:
        environment.setenv("OPENROUTER_API_KEY", "sk-or-test-key-of-no-account")
        environment.setenv("OPENROUTER_BASE_URL", sandbox.openrouter_url)
        environment.setenv("EVOLUTION_API_URL", sandbox.evolution_url)
        yield sandbox


def ended(world: World, run: UUID, status: str, at: datetime = NOON, **columns: Any) -> UUID:
    """A message that ended at a given time."""
    sent_at = at if status in {"sent", "replied"} else None
    return world.due_message(
        run,
        **{
            "status": status,
            "finished_at": at,
            "sent_at": sent_at,
            "scheduled_at": at - timedelta(minutes=2),
            **columns,
        },
    )


def make_report(instance: DagsterInstance, day: str = DAY) -> dg.ExecuteInProcessResult:
    job = defs.resolve_job_def("refresh_campaign_report")
    return job.execute_in_process(instance=instance, partition_key=day)


def plain(metadata: Mapping[str, dg.MetadataValue[Any]]) -> dict[str, Any]:
    """Metadata as plain values, tables as rows."""
    return {
        name: [record.data for record in value.records] if isinstance(value, dg.TableMetadataValue) else value.value
        for name, value in metadata.items()
    }


def shown(instance: DagsterInstance, asset: str) -> Mapping[str, Any]:
    """Metadata of an asset's newest materialization."""
    event = instance.get_latest_materialization_event(AssetKey(asset))
    assert event is not None
    assert event.asset_materialization is not None
    return plain(event.asset_materialization.metadata)


def check_results(result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetCheckEvaluation]:
    return {evaluation.check_name: evaluation for evaluation in result.get_asset_check_evaluations()}


# Definitions ----------------------------------------------------------------------------------------------------------


def test_everything_that_the_ui_names_is_described_in_a_sentence() -> None:
    repository = defs.get_repository_def()
    named: dict[str, str | None] = {}
    for job in repository.get_all_jobs():
        if not job.name.startswith("__"):
            named[f"job {job.name}"] = job.description
            named |= {f"op {node.name}": node.definition.description for node in job.nodes}
    for spec in defs.resolve_all_asset_specs():
        named[f"asset {spec.key.to_user_string()}"] = spec.description
    for check in CHECKS:
        named |= {f"check {spec.name}": spec.description for spec in check.check_specs}
    named |= {f"schedule {schedule.name}": schedule.description for schedule in repository.schedule_defs}
    named |= {f"sensor {sensor.name}": sensor.description for sensor in repository.sensor_defs}
    for name, resource in repository.get_top_level_resources().items():
        named[f"resource {name}"] = resource.description
    assert len(named) > 20
    lacking = [name for name, text in named.items() if not text or not re.match(r"[A-Z\"`].+\.(\s|$)", text)]
    assert lacking == []


def test_every_check_says_what_to_do_when_it_fails() -> None:
    descriptions = {spec.name: spec.description or "" for check in CHECKS for spec in check.check_specs}
    assert len(descriptions) == 11
    assert [name for name, text in descriptions.items() if "On failure" not in text] == []


def test_the_assets_are_one_line_from_the_batch_to_the_report_of_the_day() -> None:
    lineage = {
        spec.key.to_user_string(): {dep.asset_key.to_user_string() for dep in spec.deps}
        for spec in defs.resolve_all_asset_specs()
    }
    assert lineage == {
        "message_batch": set(),
        "lead_contexts": {"message_batch"},
        "campaign_runs": {"message_batch", "lead_contexts"},
        "campaign_report": {"campaign_runs"},
        # Made of the database alone.
        "inbox_health": set(),
        "forecast": set(),
    }


# The report of a day --------------------------------------------------------------------------------------------------


def test_a_report_has_figures_to_draw_a_table_and_a_picture(
    world: World, outputs: Path, instance: DagsterInstance
) -> None:
    run = world.run(name="Café da manhã")
    for _ in range(4):
        ended(world, run, "sent", ai_tokens_used=300, ai_cost_usd=0.01, ai_generation_time_ms=1500, send_time_ms=800)
    ended(world, run, "replied")
    ended(world, run, "failed", error_class="exhausted")
    ended(world, run, "failed", error_class="unknown")
    ended(world, run, "skipped")
    assert make_report(instance).success
    figures = shown(instance, "campaign_report")
    counts = {"due": 8, "sent": 5, "replied": 1, "failed": 2, "failed_exhausted": 1, "failed_unknown": 1, "skipped": 1}
    assert {name: figures[name] for name in counts} == counts
    assert (figures["tokens"], figures["cost_usd"], figures["p95_generation_s"]) == (1200, 0.04, 1.5)
    assert (figures["median_wait_s"], figures["messages_per_minute"]) == (120.0, 5.0)
    outcomes, costs_and_times = (figures[name].replace("\\", "") for name in ("campaigns", "costs_and_times"))
    assert "| Café da manhã | 8 | 5 | not known | 1 | 2 | 1 | 1 | 1 | 0 |" in outcomes
    assert "| Café da manhã | 1,200 | 0.0400 | 1.5 s (1.5 s) | 800 ms (800 ms) |" in costs_and_times
    assert f"launch retry_failed_messages for {DAY}" in figures["next_step"]
    picture = re.fullmatch(rf"!\[{DAY}\]\(data:image/png;base64,(.+)\)", figures["picture"])
    assert picture is not None
    assert Image.open(io.BytesIO(base64.b64decode(picture[1]))).size == (900, 310)
    assert len(figures["picture"]) < 30_000  # it stays in Dagster's event log


def test_a_report_shows_reasons_inboxes_costs_and_waits(world: World, outputs: Path, instance: DagsterInstance) -> None:
    workspace = world.workspace()
    inbox = world.inbox(workspace, name="numero 2")
    config = world.campaign(workspace, inbox, max_cost_usd_per_run=2)
    run = world.run(config, name="Natal", wait_code="inbox_disconnected", wait_reason="The instance is close.")
    ended(world, run, "sent")
    ended(
        world, run, "failed", error_class="exhausted", error_code="inbox_disconnected", error_message="It was closed."
    )
    world.due_message(run, scheduled_at=NOON)
    world.insert("campaign_spending", scope="run", scope_id=run, day=date(1, 1, 1), slot=0, spent_usd=0.5)
    assert make_report(instance).success
    figures = {
        name: text.replace("\\", "")
        for name, text in shown(instance, "campaign_report").items()
        if name in {"not_sent", "waits", "inboxes", "spending"}
    }
    step = "connect the inbox's instance, then launch retry_failed_messages for its day"
    assert f"| 1 | failed (exhausted) | inbox_disconnected | {step} |" in figures["not_sent"]
    assert "| Natal | 1 | inbox_disconnected: The instance is close. | connect the inbox's" in figures["waits"]
    assert "| Vendas (numero 2) | 1 | 1 | 0 |" in figures["inboxes"]
    assert "| run Natal | 0.5000 | 2.00 | 25% |" in figures["spending"]


def test_the_table_of_a_day_is_a_private_file_that_is_written_anew(
    world: World, outputs: Path, instance: DagsterInstance
) -> None:
    run = world.run(name="Café")
    for sent in (1, 2):
        ended(world, run, "sent")
        make_report(instance)
        (file,) = outputs.rglob("*.parquet")
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert pd.read_parquet(file)[["day", "campaign", "sent"]].to_numpy().tolist() == [[DAY, "Café", sent]]


def test_a_day_without_messages_is_a_report_of_nothing(world: World, outputs: Path, instance: DagsterInstance) -> None:
    result = make_report(instance)
    assert result.success
    figures = shown(instance, "campaign_report")
    assert (figures["due"], figures["sent"], figures["next_step"]) == (0, 0, "Nothing to do.")
    assert "p95_generation_s" not in figures  # no zero in the chart for unmeasured values
    assert all(evaluation.passed for evaluation in check_results(result).values())


def test_a_report_contains_campaigns_and_no_personal_data(
    world: World, outputs: Path, instance: DagsterInstance
) -> None:
    run = world.run(name="Café")
    lead = world.lead(client_name="Berenice Quixadá", phone="+55 11 97654-3210")
    ended(
        world,
        run,
        "failed",
        lead=lead,
        phone_number="+55 11 97654-3210",
        error_class="permanent",
        error_message="5511976543210 refused",
    )
    result = make_report(instance)
    told = "\n".join(str(entry) for entry in instance.all_logs(result.run_id))
    assert "Café" in told
    assert "Berenice" not in told
    assert "976543210" not in told.replace("-", "").replace(" ", "")


def test_a_day_with_messages_to_send_again_shows_as_such_until_they_are_put_back(
    world: World, outputs: Path, instance: DagsterInstance
) -> None:
    run = world.run()
    day = world.value("SELECT campaign_now()").astimezone(ZONE)
    key = day.strftime("%Y-%m-%d")
    failed = [ended(world, run, "failed", day, error_class="exhausted") for _ in range(3)]
    ended(world, run, "failed", day, error_class="permanent")

    def evaluate() -> tuple[bool, bool]:
        checks = check_results(make_report(instance, key))
        assert checks["nothing_to_send_again"].partition == key
        return checks["nothing_to_send_again"].passed, checks["no_day_to_back_fill"].passed

    assert evaluate() == (False, False)
    checks = check_results(make_report(instance, key))
    assert f"3 failed for a temporary reason: launch retry_failed_messages for {key}" in str(
        checks["nothing_to_send_again"].description
    )
    (row,) = plain(checks["no_day_to_back_fill"].metadata)["found"]
    assert row == {
        "day": key,
        "to send again": 3,
        "by class": "3 exhausted, 1 permanent",
        "next step": f"retry_failed_messages, partition {key}",
    }
    world.all("SELECT campaign_requeue_failed(%s)", failed)
    assert evaluate() == (True, True)


def test_an_unavailable_database_fails_the_report_with_one_sentence(
    environment: pytest.MonkeyPatch, outputs: Path, instance: DagsterInstance
) -> None:
    environment.setenv("CAMPAIGN_DATABASE_URL", "postgresql://me:hunter2@127.0.0.1:1/none")
    job = defs.resolve_job_def("refresh_campaign_report")
    result = job.execute_in_process(instance=instance, partition_key=DAY, raise_on_error=False)
    assert not result.success
    (failure,) = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    assert failure.user_failure_data is not None
    assert "cannot be used" in str(failure.user_failure_data.description)
    assert "hunter2" not in "\n".join(str(entry) for entry in instance.all_logs(result.run_id))


def test_each_hour_refreshes_today_yesterday_and_back_filled_days(instance: DagsterInstance) -> None:
    tick = datetime(2026, 3, 12, 0, 5, tzinfo=ZONE)
    repository = defs.get_repository_def()

    def asked_for() -> list[str | None]:
        context = dg.build_schedule_context(instance, scheduled_execution_time=tick, repository_def=repository)
        requests = refresh_campaign_report_hourly.evaluate_tick(context).run_requests or []
        return [request.partition_key for request in requests]

    assert asked_for() == ["2026-03-11", "2026-03-12"]
    job = defs.resolve_job_def("retry_failed_messages")
    instance.create_run_for_job(job, tags={"dagster/partition": "2026-03-02"})
    assert asked_for() == ["2026-03-02", "2026-03-11", "2026-03-12"]


def test_days_begin_at_midnight_of_the_business_and_end_with_today() -> None:
    window = days.time_window_for_partition_key(DAY)
    assert (window.start, window.end) == (NOON - timedelta(hours=12), NOON + timedelta(hours=12))
    with dg.partition_loading_context(effective_dt=NOON):
        assert days.get_last_partition_key() == DAY


# Checks ---------------------------------------------------------------------------------------------------------------


def run_checks(instance: DagsterInstance) -> dict[str, dg.AssetCheckEvaluation]:
    result = defs.resolve_job_def("check_campaign_queue").execute_in_process(instance=instance)
    assert result.success  # a failed check does not fail the run
    return check_results(result)


def test_a_sound_queue_passes_every_check(world: World, outputs: Path, instance: DagsterInstance) -> None:
    run = world.run()
    for status in ("sent", "failed", "skipped"):
        ended(world, run, status)
    checks = run_checks(instance)
    assert {name: evaluation.passed for name, evaluation in checks.items()} == {
        "counters_equal_recount": True,
        "leases_are_taken_back": True,
        "provider_ids_are_unique": True,
        "outcomes_are_known": True,
        "nobody_else_sends": True,
        "accepted_messages_arrive": True,
        "rows_stay_in_their_workspace": True,
    }


def test_each_check_finds_what_it_is_for(world: World, outputs: Path, instance: DagsterInstance) -> None:
    workspace = world.workspace()
    inbox = world.inbox(workspace)
    run = world.run(world.campaign(workspace, inbox))
    now = world.value("SELECT campaign_now()")
    held = world.due_message(run, status="sending", lease_token=uuid4(), lease_expires_at=now - timedelta(hours=1))
    unknown = ended(world, run, "failed", error_class="unknown", error_code="unknown_outcome")
    for message in world.due_messages(run, 2):
        world.insert(
            "campaign_message_parts",
            message_id=message,
            part_no=1,
            text="Oi",
            status="sent",
            idempotency_key=f"{message}:1",
            inbox_id=inbox,
            provider_message_id="wamid.5511976543210",
            sent_at=now,
        )
    late = world.due_message(run)
    world.insert(
        "campaign_message_parts",
        message_id=late,
        part_no=1,
        text="Oi",
        status="sent",
        idempotency_key=f"{late}:1",
        inbox_id=inbox,
        provider_message_id="wamid.late",
        sent_at=now - timedelta(days=2),
        delivery_status="sent",
    )
    stranger = world.inbox(world.workspace())
    world.campaign(workspace, stranger)
    world.do("UPDATE campaign_runs SET leads_success = 5 WHERE id = %s", run)
    checks = run_checks(instance)
    assert {name for name, evaluation in checks.items() if evaluation.passed} == {"nobody_else_sends"}, (
        "no CRM is attached"
    )
    del checks["nobody_else_sends"]
    found = {name: str(plain(evaluation.metadata)["found"]) for name, evaluation in checks.items()}
    assert str(run) in found["counters_equal_recount"]
    assert str(held) in found["leases_are_taken_back"]
    assert str(unknown) in found["outcomes_are_known"]
    assert str(inbox) in found["provider_ids_are_unique"]
    assert str(inbox) in found["accepted_messages_arrive"]
    assert "5511976543210" not in "".join(found.values())
    severities = {name: evaluation.severity.value for name, evaluation in checks.items()}
    assert severities["outcomes_are_known"] == "WARN"
    assert severities["counters_equal_recount"] == "ERROR"
    assert checks["outcomes_are_known"].description == "1 messages have an unknown delivery status."


# A batch --------------------------------------------------------------------------------------------------------------


def output_metadata(result: dg.JobExecutionResult, step: str) -> dict[str, Any]:
    """Metadata of a step's outputs."""
    found: dict[str, Any] = {}
    for event in result.all_events:
        if event.is_successful_output and event.step_key and event.step_key.startswith(step):
            found |= plain(event.step_output_data.metadata)
    return found


def log_of(instance: DagsterInstance, result: dg.JobExecutionResult) -> str:
    return "\n".join(entry.user_message for entry in instance.all_logs(result.run_id))


def test_a_shard_shows_unsent_messages_and_reasons_without_personal_data(
    world: World, sandbox: SandboxProcess, outputs: Path, instance: DagsterInstance
) -> None:
    run = world.run()
    messages = world.due_messages(run, 12)
    sandbox.set_behaviour(Behaviour(faults=(Fault(kind=Kind.SEND, name="not_on_whatsapp", times=7),)))
    result = run_job(instance, IN_PROCESS)
    assert result.success, troubles(result)
    figures = output_metadata(result, "send_shard")
    assert (figures["sent"], figures["failed"]) == (5, 7)
    assert 0 < figures["send_ms_median"] <= figures["send_ms_p95"]
    assert 0 < figures["generation_ms_median"] <= figures["generation_ms_p95"]
    (row,) = figures["not_sent"]
    assert (row["what"], row["class"], row["messages"]) == ("failed", "permanent", 7)
    assert row["what next"] == "nothing: it was rejected for good"
    ids = re.findall(r"[0-9a-f-]{36}", row["message ids"])
    assert len(ids) == 5
    assert set(ids) < {str(message) for message in messages}
    assert row["message ids"].endswith(", …")
    told = "\n".join(str(entry) for entry in instance.all_logs(result.run_id))
    phones = [re.sub(r"\D", "", lead["phone"])[-8:] for lead in world.all("SELECT phone FROM leads")]
    assert [phone for phone in phones if phone in re.sub(r"[\s-]", "", told)] == []
    assert "Ana Souza" not in told
    assert f"7 failed ({row['code']}): {row['why']}" in log_of(instance, result)


SEND_FAULTS = (
    *("not_on_whatsapp", "timed_out", "rate_overlimit", "schema", "other_400", "timeout_408", "server_error_500"),
    *("proxy_html_502", "malformed_json", "no_id", "cut_before", "cut_after"),
)


def test_whatever_a_provider_answers_no_persons_number_or_name_reaches_the_events(
    world: World, sandbox: SandboxProcess, outputs: Path, instance: DagsterInstance
) -> None:
    workspace = world.workspace()
    for _ in SEND_FAULTS:  # an inbox each: some of them slow a whole inbox down
        world.due_messages(world.run(world.campaign(workspace, world.inbox(workspace))), 2)
    faults = tuple(Fault(kind=Kind.SEND, name=name, times=1) for name in SEND_FAULTS)
    sandbox.set_behaviour(Behaviour(faults=faults))
    result = run_job(instance, IN_PROCESS)
    assert result.success, troubles(result)
    assert len({message["error_code"] for message in world.messages()}) > 3
    told = re.sub(r"[\s().-]", "", "\n".join(str(entry) for entry in instance.all_logs(result.run_id)))
    phones = [re.sub(r"\D", "", lead["phone"])[-9:] for lead in world.all("SELECT phone FROM leads")]
    assert len(phones) == 2 * len(SEND_FAULTS)
    assert [phone for phone in phones if phone in told] == []
    assert "AnaSouza" not in told


def test_the_runs_are_shown_as_the_batch_left_them(
    world: World, sandbox: SandboxProcess, outputs: Path, instance: DagsterInstance
) -> None:
    closing = world.run(name="Café")
    world.due_messages(closing, 3)
    workspace = world.workspace()
    waiting = world.run(world.campaign(workspace, world.inbox(workspace, status="disconnected")), name="Chá")
    world.due_message(waiting)
    result = run_job(instance, IN_PROCESS)
    assert result.success, troubles(result)
    figures = shown(instance, "campaign_runs")
    assert (figures["running"], figures["waiting"], figures["closed"], figures["sent"]) == (1, 1, 1, 3)
    first, second = figures["runs"]
    assert (first["run"], first["campaign"], first["status"]) == (str(closing), "Café", "completed, just now")
    assert (second["run"], second["campaign"], second["status"]) == (str(waiting), "Chá", "running")
    assert second["waits for"].startswith("inbox_disconnected: ")
    waits = output_metadata(result, "fetch_message_batch")["waits"]
    assert [row["run"] for row in waits] == [str(waiting)]
    log = log_of(instance, result)
    assert "Claimed 3 due messages of 1 runs for 1 inboxes. They are now written and sent" in log
    assert f"Run {waiting} has due messages but waits (inbox_disconnected): " in log
    assert "3 messages; 3 sent, 0 failed, 0 skipped, 0 returned" in log
    assert f"Run {closing} (Café) is completed: 3 sent, 0 failed, 0 skipped." in log


def test_a_window_that_is_closed_says_until_when(
    world: World, sandbox: SandboxProcess, outputs: Path, instance: DagsterInstance
) -> None:
    now = world.value("SELECT campaign_now()").astimezone(ZONE)
    opens, closes = (now + timedelta(hours=2)).strftime("%H:00"), (now + timedelta(hours=4)).strftime("%H:00")
    world.due_message(world.run(world.campaign(start_time=opens, end_time=closes, timezone=str(ZONE))))
    result = run_job(instance, IN_PROCESS)
    log = log_of(instance, result)
    assert "Claimed nothing: no message is due, except in waiting runs." in log
    assert re.search(r"waits \(window_closed\): .* It is checked again from [0-9: -]+ \(America/Sao_Paulo\)\.", log)


def test_an_empty_batch_leaves_the_runs_as_they_are_shown(
    world: World, sandbox: SandboxProcess, outputs: Path, instance: DagsterInstance
) -> None:
    result = run_job(instance, IN_PROCESS)
    assert result.success
    assert instance.get_latest_materialization_event(AssetKey("campaign_runs")) is None
    assert "Claimed nothing: no message is due." in log_of(instance, result)


def test_a_step_that_draws_nothing_imports_no_plotting_library() -> None:
    code = "import sys, campaign_pipeline.definitions; sys.exit('matplotlib' in sys.modules or 'PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Drawing and writing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 ms"), (0.0004, "0 ms"), (0.85, "850 ms"), (1, "1 s"), (1.649, "1.6 s"), (180, "3 min"), (9000, "2.5 h")],
)
def test_a_time_has_a_fitting_unit(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


@pytest.mark.parametrize(
    ("seconds", "by_hour"),
    [
        (None, {}),
        (None, {"9": [0, 0, 1]}),
        (0.0, {"0": [1, 0, 0]}),
        (1e6, {str(hour): [10**6, 1, 0] for hour in range(24)}),
    ],
    ids=["nothing", "only skipped", "no time at all", "very much"],
)
def test_any_day_can_be_drawn(seconds: float | None, by_hour: dict[str, list[int]]) -> None:
    counts: dict[str, Any] = dict.fromkeys((field.name for field in fields(CampaignDay)), 0)
    total = CampaignDay(**counts | dict.fromkeys(TIMES, seconds) | {"by_hour": by_hour})
    picture = Image.open(io.BytesIO(base64.b64decode(day_picture(DAY, total).partition("base64,")[2][:-1])))
    assert picture.size == (900, 310)
    assert len(picture.convert("RGB").getcolors() or []) > 3  # not blank


def test_a_campaigns_name_cannot_draw_a_picture_or_leave_its_cell() -> None:
    table = markdown_table(pd.DataFrame([{"campaign": "a|b\n![x](http://evil/p.png) <b>", "sent": 1}]))
    assert table.splitlines() == [
        "| campaign | sent |",
        "| --- | --- |",
        r"| a\|b \!\[x\]\(http://evil/p.png\) \<b\> | 1 |",
    ]


def test_a_check_by_day_is_known_by_its_day() -> None:
    (check,) = [
        check
        for check in CHECKS
        if AssetCheckKey(AssetKey("campaign_report"), "nothing_to_send_again") in check.check_keys
    ]
    assert next(iter(check.check_specs)).partitions_def == days
