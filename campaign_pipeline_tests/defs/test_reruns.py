"""Re-executions in the UI: a whole run, one step, or the failed steps."""

import logging
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster import DagsterInstance, reconstructable

from campaign_pipeline.defs.reruns import step_owner
from campaign_pipeline.sandbox import Behaviour, Fault, SandboxProcess
from campaign_pipeline_tests.defs.test_job import IN_PROCESS, resolved_job, run_job, troubles
from campaign_pipeline_tests.factories import World


@pytest.fixture
def sandbox(environment: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[SandboxProcess]:
    environment.setenv("CAMPAIGN_OUTPUTS", str(tmp_path / "outputs"))
    with SandboxProcess() as sandbox:
        environment.setenv("OPENROUTER_API_KEY", "sk-or-test-key-of-no-account")
        environment.setenv("OPENROUTER_BASE_URL", sandbox.openrouter_url)
        environment.setenv("EVOLUTION_API_URL", sandbox.evolution_url)
        yield sandbox


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[DagsterInstance]:
    with DagsterInstance.local_temp(str(tmp_path), overrides={"telemetry": {"enabled": False}}) as instance:
        yield instance


def again(instance: DagsterInstance, run_id: str, steps: list[str] | None = None) -> dg.JobExecutionResult:
    """Re-execute a run: all of it, or the named steps."""
    options = dg.ReexecutionOptions(parent_run_id=run_id, step_selection=steps or [])
    job = reconstructable(resolved_job)
    return dg.execute_job(job, instance, IN_PROCESS, reexecution_options=options, raise_on_error=False)


def sends(sandbox: SandboxProcess) -> int:
    return len([entry for entry in sandbox.record(accepted=True) if entry["kind"] == "send"])


def log_of(instance: DagsterInstance, run_id: str) -> str:
    return "\n".join(entry.user_message for entry in instance.all_logs(run_id))


def shard_steps(result: dg.JobExecutionResult) -> list[str]:
    return sorted({e.step_key for e in result.all_events if e.step_key and e.step_key.startswith("send_shard[")})


def test_the_whole_of_a_run_again_takes_what_is_due_now_and_nothing_that_it_sent(
    world: World, sandbox: SandboxProcess, instance: DagsterInstance
) -> None:
    run = world.run()
    world.due_messages(run, 5)
    first = run_job(instance, IN_PROCESS)
    assert first.success, troubles(first)
    world.do("UPDATE campaign_runs SET status = 'running', completed_at = NULL")
    world.due_messages(run, 2)
    second = again(instance, first.run_id)
    assert second.success, troubles(second)
    assert Counter(message["status"] for message in world.messages()) == {"sent": 7}
    assert sends(sandbox) == 7


def test_a_single_step_that_succeeded_sends_nothing_again_and_says_why(
    world: World, sandbox: SandboxProcess, instance: DagsterInstance
) -> None:
    world.due_messages(world.run(), 5)
    first = run_job(instance, IN_PROCESS)
    (step,) = shard_steps(first)
    second = again(instance, first.run_id, [step])
    assert second.success, troubles(second)
    assert shard_steps(second) == [step]
    assert sends(sandbox) == 5
    assert "5 messages; 5 sent, 0 failed, 0 skipped, 0 returned" in log_of(instance, second.run_id)


def test_a_single_step_after_trouble_sends_what_is_due_again_and_leaves_the_rest_to_its_time(
    world: World, sandbox: SandboxProcess, instance: DagsterInstance
) -> None:
    world.due_messages(world.run(), 6)
    # Two texts cannot be written: their messages wait for their second attempt.
    sandbox.set_behaviour(Behaviour(faults=(Fault.parse("generation:unavailable_503:times=2"),)))
    first = run_job(instance, IN_PROCESS)
    (step,) = shard_steps(first)
    status: dict[Any, str] = {message["id"]: message["status"] for message in world.messages()}
    waiting = [message for message, state in status.items() if state == "pending"]
    assert len(waiting) == 2
    # One of them is made due manually.
    world.do("UPDATE campaign_messages SET next_attempt_at = campaign_now() WHERE id = %s", waiting[0])
    second = again(instance, first.run_id, [step])
    assert second.success, troubles(second)
    assert Counter(message["status"] for message in world.messages()) == {"sent": 5, "pending": 1}
    told = log_of(instance, second.run_id)
    assert "1 messages of this shard were left alone: waits for its time." in told
    assert "6 messages; 5 sent, 0 failed, 0 skipped, 0 returned" in told


def test_messages_that_another_run_has_taken_are_left_to_it(
    world: World, sandbox: SandboxProcess, instance: DagsterInstance
) -> None:
    messages = world.due_messages(world.run(), 4)
    failed = run_job(instance, IN_PROCESS | {"ops": {"send_shard": {"config": {"concurrency": 0}}}})
    assert not failed.success
    held = messages[:3]
    another = "SET lease_token = gen_random_uuid(), lease_owner = 'run 9 inbox_1'"
    world.do(f"UPDATE campaign_messages {another} WHERE id = ANY (%s)", held)
    options = dg.ReexecutionOptions.from_failure(failed.run_id, instance)
    second = dg.execute_job(reconstructable(resolved_job), instance, run_config=IN_PROCESS, reexecution_options=options)
    assert sends(sandbox) == 1
    assert "3 messages of this shard were left alone: held by another." in log_of(instance, second.run_id)


def test_a_process_with_the_same_host_name_and_id_in_another_container_is_another_owner() -> None:
    code = "from campaign_pipeline.defs.reruns import step_owner; print(step_owner('1a2b3c4d', 'inbox_1', 7))"
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout.strip()
    here = step_owner("1a2b3c4d", "inbox_1", 7)
    assert here != elsewhere
    assert here.partition("/")[0] == elsewhere.partition("/")[0]


def killed(instance: DagsterInstance, where: str) -> dg.DagsterRun:
    """A run that died, as Dagster detects it later."""
    command = [sys.executable, "-m", "campaign_pipeline_tests.defs.killed_run", instance.root_directory]
    died = subprocess.run(command, env={**os.environ, "CRASH_AT": where}, capture_output=True, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr[-3000:]
    (run,) = instance.get_runs()
    instance.report_run_failed(run, "Its process is gone.")
    return run


def from_failure(instance: DagsterInstance, run: dg.DagsterRun) -> dg.JobExecutionResult:
    options = dg.ReexecutionOptions.from_failure(run.run_id, instance)
    job = reconstructable(resolved_job)
    return dg.execute_job(job, instance, run_config=IN_PROCESS, reexecution_options=options, raise_on_error=False)


def checks_of(result: dg.JobExecutionResult) -> dict[str, dg.AssetCheckEvaluation]:
    wanted = dg.DagsterEventType.ASSET_CHECK_EVALUATION
    found = [event.asset_check_evaluation_data for event in result.all_events if event.event_type == wanted]
    return {each.check_name: each for each in found}


def two_inboxes(world: World, messages: int) -> None:
    """Due messages of two inboxes: a batch of two shards."""
    workspace = world.workspace()
    for _ in range(2):
        world.due_messages(world.run(world.campaign(workspace, world.inbox(workspace))), messages)


def test_a_rerun_of_a_run_that_died_goes_on_at_once_and_is_not_green_while_steps_of_its_batch_never_ran(
    world: World, sandbox: SandboxProcess, instance: DagsterInstance
) -> None:
    two_inboxes(world, 3)
    # The first shard has sent one message, and begun the second's only part; the second shard has not started.
    died = killed(instance, "before:send:2")
    before = Counter(message["status"] for message in world.messages())
    assert (before["sent"], before["sending"], before["queued"] + before["generating"]) == (1, 1, 4)
    again = from_failure(instance, died)
    assert not again.success
    told = log_of(instance, again.run_id)
    assert f"2 messages were held by run {died.run_id[:8]}" in told
    # The part that the dead process was sending may have been sent: it is looked up when its lease has expired.
    assert Counter(message["status"] for message in world.messages()) == {"sent": 2, "pending": 4}
    assert sends(sandbox) == 2
    check = checks_of(again)["batch_was_worked"]
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert check.description is not None
    assert check.description.startswith("4 of 6 messages of this batch are not sent: the steps of 3 of them never ran")
    assert "launch process_campaign_queue" in check.description
    assert check.description in told
    # Nothing is leased any more: the next batch sends it, long before the leases of the dead run would have expired.
    assert run_job(instance, IN_PROCESS).success
    assert sends(sandbox) == 5


def test_a_run_that_could_send_nothing_for_a_cause_that_a_person_must_mend_fails_its_check_with_it(
    world: World, sandbox: SandboxProcess, instance: DagsterInstance
) -> None:
    world.due_messages(world.run(), 3)
    sandbox.set_behaviour(Behaviour(faults=(Fault.parse("generation:unauthorized_401"),)))
    result = run_job(instance, IN_PROCESS)
    assert result.success, troubles(result)  # trouble with a provider is data in the queue
    run = instance.get_run_by_id(result.run_id)
    assert run is not None
    assert (run.tags["campaign/campaigns"], run.tags["campaign/messages"]) == ("Hoje", "3")
    check = checks_of(result)["batch_could_send"]
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert check.description is not None
    assert check.description.startswith("0 of 3 sent. Waiting (authentication): 3 messages. OpenRouter refuses the key")
    assert "Next: set a key" in check.description
    told = [entry for entry in instance.all_logs(result.run_id) if "3 returned (authentication)" in entry.user_message]
    assert [entry.level for entry in told] == [logging.ERROR]
    assert "retried automatically" not in log_of(instance, result.run_id)
