"""The whole job, as Dagster runs it: real executor, real database, real HTTP."""

import os
import signal
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from uuid import UUID

import dagster as dg
import fsspec
import pandas as pd
import pytest
from dagster import DagsterInstance, reconstructable

from campaign_pipeline import sql
from campaign_pipeline.adapters import statements
from campaign_pipeline.definitions import defs
from campaign_pipeline.defs.jobs import process_campaign_queue
from campaign_pipeline.sandbox import Behaviour, Fault, Kind, Latency, SandboxProcess
from campaign_pipeline_tests.factories import World

IN_PROCESS: dict[str, Any] = {"execution": {"config": {"in_process": {}}}}


def resolved_job() -> dg.JobDefinition:
    return defs.resolve_job_def("process_campaign_queue")


@pytest.fixture
def sandbox(environment: pytest.MonkeyPatch) -> Iterator[SandboxProcess]:
    with SandboxProcess() as sandbox:
        environment.setenv("OPENROUTER_API_KEY", "sk-or-test-key-of-no-account")
        environment.setenv("OPENROUTER_BASE_URL", sandbox.openrouter_url)
        environment.setenv("EVOLUTION_API_URL", sandbox.evolution_url)
        yield sandbox


@pytest.fixture
def outputs(tmp_path: Path, environment: pytest.MonkeyPatch) -> Path:
    """The folder of step outputs."""
    environment.setenv("CAMPAIGN_OUTPUTS", str(tmp_path / "outputs"))
    return tmp_path / "outputs"


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[DagsterInstance]:
    with DagsterInstance.local_temp(str(tmp_path), overrides={"telemetry": {"enabled": False}}) as instance:
        yield instance


def run_job(instance: DagsterInstance, config: dict[str, Any] | None = None) -> dg.JobExecutionResult:
    # The fork server outlives a run and keeps the environment of the test that started it: another database.
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    job = reconstructable(resolved_job)
    return dg.execute_job(job, instance=instance, run_config=config or {}, raise_on_error=False)


def troubles(result: dg.JobExecutionResult) -> list[str]:
    """Describe what went wrong, for the message of a failed assertion."""
    return [str(event.event_specific_data)[-3000:] for event in result.all_events if event.is_failure]


def failure_texts(result: dg.JobExecutionResult) -> list[str]:
    return [
        event.step_failure_data.user_failure_data.description or ""
        for event in result.all_events
        if event.is_step_failure and event.step_failure_data.user_failure_data
    ]


@pytest.mark.parametrize("config", [{}, IN_PROCESS], ids=["processes", "in process"])
def test_a_batch_goes_out_and_its_runs_close(
    world: World, sandbox: SandboxProcess, outputs: Path, instance: DagsterInstance, config: dict[str, Any]
) -> None:
    workspace = world.workspace()
    runs = [world.run(world.campaign(workspace, world.inbox(workspace))) for _ in range(2)]
    for run in runs:
        world.due_messages(run, 15)
    result = run_job(instance, config)
    assert result.success, troubles(result)
    assert Counter(message["status"] for message in world.messages()) == {"sent": 30}
    assert {row["status"] for row in world.all("SELECT status FROM campaign_runs")} == {"completed"}
    assert world.wrong_counters() == []
    sends = [entry for entry in sandbox.record() if entry["kind"] == "send"]
    assert len(sends) == 30
    assert len({entry["number"] for entry in sends}) == 30
    steps = [event.step_key for event in result.all_events if event.is_step_success]
    assert sum(step.startswith("send_shard[") for step in steps if step) == 2


def test_an_empty_queue_is_a_success_that_sends_nothing(
    world: World, sandbox: SandboxProcess, outputs: Path, instance: DagsterInstance
) -> None:
    assert run_job(instance, IN_PROCESS).success
    assert sandbox.record() == []


def test_outputs_are_private_files_and_the_batch_is_reported_without_personal_data(
    world: World, sandbox: SandboxProcess, outputs: Path, instance: DagsterInstance
) -> None:
    run = world.run()
    world.due_message(run, world.lead(client_name="Berenice Quixadá", phone="+55 11 97654-3210"))
    result = run_job(instance, IN_PROCESS)
    assert result.success, troubles(result)
    files = [path for path in outputs.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".parquet", ".json"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in outputs.rglob("*") if path.is_dir()} == {0o700}
    (contexts,) = outputs.rglob("lead_contexts.parquet")
    assert "Berenice Quixadá" in pd.read_parquet(contexts)["context"].iloc[0]
    events = "\n".join(str(entry) for entry in instance.all_logs(result.run_id))
    assert "Berenice" not in events
    assert "976543210" not in events.replace("-", "").replace(" ", "")
    reported = {e.asset_key.to_user_string() for e in result.all_events if e.is_step_materialization and e.asset_key}
    assert reported == {"campaign_runs", "lead_contexts", "message_batch"}


def test_no_key_reaches_an_event_an_output_or_the_database_log(
    world: World, sandbox: SandboxProcess, outputs: Path, instance: DagsterInstance
) -> None:
    workspace = world.workspace()
    inbox = world.inbox(workspace, instance_token="tok-SECRET-inbox")
    world.due_messages(world.run(world.campaign(workspace, inbox)), 3)
    sandbox.set_behaviour(Behaviour(faults=(Fault(kind=Kind.SEND, name="unauthorized_401", times=1),)))
    result = run_job(instance, IN_PROCESS)
    told = "\n".join(str(entry) for entry in instance.all_logs(result.run_id))
    told += "\n".join(path.read_bytes().decode("latin-1") for path in outputs.rglob("*") if path.is_file())
    told += "\n".join(str(row) for row in world.all("SELECT * FROM campaign_logs"))
    told += "\n".join(str(row) for row in world.all("SELECT * FROM campaign_messages"))
    assert "tok-SECRET-inbox" not in told
    assert "sk-or-test-key" not in told


def test_outputs_may_lie_in_any_store_that_fsspec_knows(
    world: World, sandbox: SandboxProcess, environment: pytest.MonkeyPatch, instance: DagsterInstance
) -> None:
    environment.setenv("CAMPAIGN_OUTPUTS", "memory://bucket/outputs")
    world.due_messages(world.run(), 2)
    result = run_job(instance, IN_PROCESS)
    assert result.success, troubles(result)
    kept = fsspec.filesystem("memory").find("/bucket/outputs")
    assert {path.rpartition(".")[2] for path in kept} == {"parquet", "json"}
    assert all(result.run_id in path for path in kept)


@pytest.mark.parametrize(
    ("op", "field", "value", "sentence"),
    [
        ("fetch_message_batch", "batch_size", 0, "batch_size is 0, but must be between 1 and 10,000."),
        ("fetch_message_batch", "batch_size", 10_001, "batch_size is 10001, but must be between 1 and 10,000."),
        ("split_into_shards", "shard_size", 0, "shard_size is 0, but must be between 1 and 10,000."),
        ("send_shard", "concurrency", 0, "concurrency is 0, but must be between 1 and 500."),
    ],
)
def test_a_value_out_of_bounds_fails_the_step_with_one_sentence(
    world: World,
    sandbox: SandboxProcess,
    outputs: Path,
    instance: DagsterInstance,
    op: str,
    field: str,
    value: int,
    sentence: str,
) -> None:
    world.due_message(world.run())
    result = run_job(instance, IN_PROCESS | {"ops": {op: {"config": {field: value}}}})
    assert not result.success
    assert failure_texts(result) == [sentence]
    assert sandbox.record() == []


def test_an_unset_key_fails_the_run_before_anything_is_claimed(
    world: World, sandbox: SandboxProcess, environment: pytest.MonkeyPatch, outputs: Path, instance: DagsterInstance
) -> None:
    world.due_message(world.run())
    environment.delenv("OPENROUTER_API_KEY")
    result = run_job(instance, IN_PROCESS)
    assert not result.success
    (text,) = failure_texts(result)
    assert text.startswith("OPENROUTER_API_KEY is not set")
    assert [message["status"] for message in world.messages()] == ["pending"]


def test_without_the_shared_key_workspaces_with_one_of_their_own_are_served_and_the_others_wait(
    world: World, sandbox: SandboxProcess, environment: pytest.MonkeyPatch, outputs: Path, instance: DagsterInstance
) -> None:
    paying = world.due_message(world.run())
    world.do("UPDATE ai_agents SET openrouter_api_key = 'sk-or-own-1234567'")
    world.due_message(world.run())
    environment.delenv("OPENROUTER_API_KEY")
    assert run_job(instance, IN_PROCESS).success
    assert {row["status"]: row["id"] for row in world.messages()}["sent"] == paying
    assert world.value("SELECT code FROM campaign_pauses") == "no_key"
    assert world.value("SELECT count(*) FROM campaign_messages WHERE status = 'pending'") == 1


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mysql://x", "must be a postgresql:// URL"),
        ("postgresql://me:hunter2@127.0.0.1:1/none", "cannot be used"),
    ],
)
def test_a_wrong_database_fails_the_run_with_one_sentence_and_no_password(
    sandbox: SandboxProcess,
    environment: pytest.MonkeyPatch,
    outputs: Path,
    instance: DagsterInstance,
    url: str,
    words: str,
) -> None:
    environment.setenv("CAMPAIGN_DATABASE_URL", url)
    result = run_job(instance, IN_PROCESS)
    assert not result.success
    (text,) = failure_texts(result)
    assert words in text
    assert "hunter2" not in "\n".join(str(entry) for entry in instance.all_logs(result.run_id))


def test_a_thousand_messages_make_fewer_than_two_hundred_events(
    world: World, sandbox: SandboxProcess, outputs: Path, instance: DagsterInstance
) -> None:
    workspace = world.workspace()
    for _ in range(4):
        run = world.run(world.campaign(workspace, world.inbox(workspace)))
        world.do(
            "WITH l AS (INSERT INTO leads (workspace_id, client_name, phone)"
            " SELECT %s, 'Ana', '+55 11 9' || (20000000 + n) FROM generate_series(1, 250) n RETURNING id)"
            " INSERT INTO campaign_messages (run_id, lead_id, scheduled_at)"
            " SELECT %s, id, now() - interval '1 minute' FROM l",
            workspace,
            run,
        )
    result = run_job(instance)
    assert result.success, troubles(result)
    assert Counter(message["status"] for message in world.messages()) == {"sent": 1000}
    events = [entry for entry in instance.all_logs(result.run_id) if entry.is_dagster_event]
    assert len(events) < 200


def test_the_lead_contexts_of_a_batch_are_one_statement(
    world: World, sandbox: SandboxProcess, outputs: Path, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def counted(name: str) -> str:
        asked.append(name)
        return sql.statement(name)

    monkeypatch.setattr(statements, "statement", counted)
    world.due_messages(world.run(), 40)
    assert run_job(instance, IN_PROCESS | {"ops": {"split_into_shards": {"config": {"shard_size": 10}}}}).success
    assert asked.count("get_lead_contexts") == 1
    assert asked.count("get_batch_settings") == 1


def dagster_run(database_url: str, home: Path, *more: str) -> "subprocess.Popen[bytes]":
    """A Dagster run as an operator starts it from a shell, in its own process group."""
    home.mkdir(exist_ok=True)
    return subprocess.Popen(
        [
            *(str(Path(sys.executable).parent / "dagster"), "job", "execute", "-m", "campaign_pipeline.definitions"),
            *("-j", "process_campaign_queue", *more),
        ],
        env=os.environ | {"DAGSTER_HOME": str(home), "CAMPAIGN_DATABASE_URL": database_url},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def wait_for_sends(sandbox: SandboxProcess, count: int, run: "subprocess.Popen[bytes]") -> None:
    """Wait until the provider has accepted so many; the run must still be in progress."""
    while len(sandbox.record(accepted=True)) < count:
        assert run.poll() is None, run.stderr.read()[-2000:] if run.stderr else ""
        time.sleep(0.02)


@pytest.fixture
def slow_sandbox(sandbox: SandboxProcess) -> SandboxProcess:
    latencies = {Kind.GENERATION: Latency(0.2, 0.3), Kind.SEND: Latency(0.1, 0.3)}
    sandbox.set_behaviour(Behaviour(latencies=latencies))
    return sandbox


@pytest.mark.crash
def test_a_terminated_run_gives_back_what_it_did_not_send(
    world: World, slow_sandbox: SandboxProcess, outputs: Path, tmp_path: Path
) -> None:
    world.due_messages(world.run(), 600)  # 9 s for 20 at a time: some are left whenever the signal arrives
    config = tmp_path / "config.yaml"
    config.write_text("ops: {split_into_shards: {config: {shard_size: 600}}}\n")
    run = dagster_run(world.url, tmp_path / "dagster", "-c", str(config))
    wait_for_sends(slow_sandbox, 20, run)
    run.send_signal(signal.SIGTERM)  # its own process alone, as the kubelet tells a pod's: that one tells its steps
    run.communicate(timeout=60)
    status = Counter(message["status"] for message in world.messages())
    assert set(status) == {"sent", "pending"}
    with DagsterInstance.local_temp(str(tmp_path / "dagster")) as instance:
        told = "\n".join(entry.user_message for entry in instance.all_logs(instance.get_runs()[0].run_id))
    assert f"{status['sent']} were sent, 0 failed, 0 were skipped and {status['pending']} given back" in told
    assert len([e for e in slow_sandbox.record(accepted=True) if e["kind"] == "send"]) == status["sent"]
    # Untouched: the next run takes them at once, no lease has to expire.
    assert world.value("SELECT count(*) FROM campaign_messages WHERE status = 'pending' AND lease_token IS NULL"
                       " AND retry_count = 0 AND next_attempt_at IS NULL") == status["pending"]  # fmt: skip


@pytest.mark.crash
def test_a_killed_runs_messages_are_taken_over_and_nothing_is_sent_twice(
    world: World, slow_sandbox: SandboxProcess, outputs: Path, tmp_path: Path, instance: DagsterInstance
) -> None:
    world.due_messages(world.run(), 150)
    run = dagster_run(world.url, tmp_path / "dagster")
    wait_for_sends(slow_sandbox, 30, run)
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate(timeout=60)
    for minutes in (10, 20, 60):
        world.move_clock(timedelta(minutes=minutes))
        assert run_job(instance, IN_PROCESS).success
    sends = [entry for entry in slow_sandbox.record(accepted=True) if entry["kind"] == "send"]
    assert Counter(message["status"] for message in world.messages()) == {"sent": 150}
    assert max(Counter(entry["number"] for entry in sends).values()) == 1
    assert world.wrong_counters() == []
    assert world.value("SELECT status FROM campaign_runs") == "completed"


@pytest.mark.crash
def test_two_runs_on_one_queue_share_it_without_doubles(
    world: World, slow_sandbox: SandboxProcess, outputs: Path, tmp_path: Path
) -> None:
    world.due_messages(world.run(), 120)
    config = tmp_path / "config.yaml"
    config.write_text("ops: {fetch_message_batch: {config: {batch_size: 60}}}\n")
    runs = [dagster_run(world.url, tmp_path / f"dagster{n}", "-c", str(config)) for n in range(2)]
    for run in runs:
        run.communicate(timeout=120)
    assert [run.returncode for run in runs] == [0, 0]
    sends = Counter(entry["number"] for entry in slow_sandbox.record(accepted=True) if entry["kind"] == "send")
    assert len(sends) == 120
    assert set(sends.values()) == {1}
    assert world.wrong_counters() == []


def test_a_re_run_from_failure_takes_only_messages_without_a_lease(
    world: World, sandbox: SandboxProcess, outputs: Path, instance: DagsterInstance
) -> None:
    workspace = world.workspace()
    broken, well = world.inbox(workspace), world.inbox(workspace)
    runs = [world.run(world.campaign(workspace, inbox)) for inbox in (broken, well)]
    messages = {run: world.due_messages(run, 10) for run in runs}
    # The first execution fails between claim and send: no shard may run with this concurrency.
    failed = run_job(instance, IN_PROCESS | {"ops": {"send_shard": {"config": {"concurrency": 0}}}})
    assert not failed.success
    held = messages[runs[0]][0]
    another = "SET lease_token = gen_random_uuid(), lease_owner = 'run 9 inbox_1'"
    world.do(f"UPDATE campaign_messages {another} WHERE id = %s", held)
    parent = instance.get_run_by_id(failed.run_id)
    assert parent is not None
    options = dg.ReexecutionOptions.from_failure(failed.run_id, instance)
    again = dg.execute_job(reconstructable(resolved_job), instance, run_config=IN_PROCESS, reexecution_options=options)
    assert again.success, troubles(again)
    status: dict[UUID, str] = {message["id"]: message["status"] for message in world.messages()}
    assert status.pop(held) == "queued"
    assert set(status.values()) == {"sent"}
    log = "\n".join(entry.user_message for entry in instance.all_logs(again.run_id))
    assert "1 messages of this shard were left alone: held by another." in log


def test_the_job_reads_as_the_contract_names_it() -> None:
    assert process_campaign_queue.name == "process_campaign_queue"
    assert {node.name for node in process_campaign_queue.nodes} >= {
        "fetch_message_batch",
        "fetch_lead_contexts",
        "split_into_shards",
        "send_shard",
        "close_completed_runs",
    }
