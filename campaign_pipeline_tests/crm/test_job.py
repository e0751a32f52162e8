"""The whole job on the CRM's database, as the owner's role, while the CRM is in use."""

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from dagster import DagsterInstance

from campaign_pipeline.sandbox import SandboxProcess
from campaign_pipeline.sandbox.behaviour import Behaviour, Kind, Latency
from campaign_pipeline_tests.crm import TARGET_COLUMN, Crm
from campaign_pipeline_tests.defs.test_job import IN_PROCESS, run_job, troubles
from campaign_pipeline_tests.sql.holder import rows


@pytest.fixture
def sandbox(environment: pytest.MonkeyPatch) -> Iterator[SandboxProcess]:
    with SandboxProcess() as sandbox:
        environment.setenv("OPENROUTER_API_KEY", "sk-or-test-key-of-no-account")
        environment.setenv("OPENROUTER_BASE_URL", sandbox.openrouter_url)
        environment.setenv("EVOLUTION_API_URL", sandbox.evolution_url)
        yield sandbox


@pytest.fixture
def instance(tmp_path: Path, environment: pytest.MonkeyPatch) -> Iterator[DagsterInstance]:
    environment.setenv("CAMPAIGN_OUTPUTS", str(tmp_path / "outputs"))
    with DagsterInstance.local_temp(str(tmp_path), overrides={"telemetry": {"enabled": False}}) as instance:
        yield instance


@pytest.fixture
def run(crm: Crm) -> UUID:
    """Fifteen due messages of a campaign without a pace."""
    crm.do("UPDATE campaign_configs SET min_interval_seconds = 0, daily_limit = 1000")
    return crm.start_run(15)


def sends(sandbox: SandboxProcess) -> list[dict[str, Any]]:
    return [dict(entry) for entry in sandbox.record() if entry["kind"] == "send" and entry["accepted"]]


def everything_adds_up(crm: Crm, sandbox: SandboxProcess) -> None:
    """Check that each accepted part is sent in the ledger and in the chat, once, and that its lead has moved."""
    accepted = Counter((entry["number"], entry["text"]) for entry in sends(sandbox))
    ledger = Counter(
        (row["address"], row["text"]) for row in crm.all("SELECT * FROM campaign_message_parts WHERE status = 'sent'")
    )
    assert ledger == accepted
    assert not [pair for pair, times in accepted.items() if times > 1]
    shown = Counter(
        (row["contact_phone"], row["text_content"])
        for row in crm.all(
            "SELECT v.contact_phone, m.text_content FROM messages m JOIN conversations v ON v.id = m.conversation_id"
            " WHERE m.message_type = 'sent'"
        )
    )
    assert shown == accepted
    unfinished = crm.all(
        "SELECT 1 FROM campaign_message_parts WHERE status IN ('attempting', 'unknown')"
        " UNION ALL SELECT 1 FROM campaign_messages WHERE status IN ('queued', 'generating', 'sending')"
    )
    assert unfinished == []
    assert crm.wrong_open_counters() == []


def test_a_batch_is_sent_and_stored_as_in_the_crm(
    crm: Crm, run: UUID, sandbox: SandboxProcess, instance: DagsterInstance
) -> None:
    result = run_job(instance, IN_PROCESS)
    assert result.success, troubles(result)
    assert Counter(message["status"] for message in crm.messages(run)) == {"sent": 15}
    row = crm.one("SELECT * FROM campaign_runs WHERE id = %s", run)
    assert (row["status"], row["leads_total"], row["leads_processed"], row["leads_success"]) == (
        "completed",
        15,
        15,
        15,
    )
    assert {row["column_id"] for row in crm.all(
        "SELECT l.column_id FROM leads l JOIN campaign_messages m ON m.lead_id = l.id")} == {TARGET_COLUMN}  # fmt: skip
    assert crm.value("SELECT count(*) FROM lead_activities") == 15
    assert crm.value("SELECT count(*) FROM conversations WHERE status = 'waiting'") == 15
    assert crm.all("SELECT * FROM campaign_logs WHERE level = 'error'") == []
    everything_adds_up(crm, sandbox)


def wait_for(crm: Crm, query: str, give_up_after: float = 60) -> None:
    give_up = time.monotonic() + give_up_after
    while not crm.value(query):
        assert time.monotonic() < give_up, query
        time.sleep(0.05)


@pytest.mark.parametrize("call", ["cancel_campaign_run", "pause_campaign_run"])
def test_the_crm_stops_a_run_in_the_middle_of_a_batch(
    crm: Crm, run: UUID, sandbox: SandboxProcess, instance: DagsterInstance, call: str
) -> None:
    slow = Latency(mean=0.6, sigma=0.3)
    sandbox.set_behaviour(Behaviour(latencies={Kind.SEND: slow, Kind.GENERATION: slow}))

    def stop() -> None:
        with Crm(crm.url) as other:
            wait_for(other, "SELECT count(*) >= 3 FROM campaign_message_parts WHERE status = 'sent'")
            other.value(f"SELECT {call}(%s)", run)

    with ThreadPoolExecutor(1) as pool:
        stopped = pool.submit(stop)
        result = run_job(instance, IN_PROCESS)
        stopped.result(60)
    assert result.success, troubles(result)
    assert 0 < len(sends(sandbox)) < 30
    everything_adds_up(crm, sandbox)
    contacted = crm.all("SELECT DISTINCT lead_id FROM campaign_message_parts WHERE status = 'sent'")
    if call == "cancel_campaign_run":
        rows(crm, "recover_leases")  # the next batch: of messages that were deleted between two parts
        moved = crm.value("SELECT count(*) FROM leads WHERE column_id = %s", TARGET_COLUMN)
        assert moved == len(contacted)
        return
    sandbox.set_behaviour(Behaviour())
    crm.value("SELECT resume_campaign_run(%s)", run)
    assert run_job(instance, IN_PROCESS).success  # overdue messages are spread over ten minutes
    crm.move_clock(timedelta(minutes=15))
    assert run_job(instance, IN_PROCESS).success
    everything_adds_up(crm, sandbox)
    assert Counter(message["status"] for message in crm.messages(run)) == {"sent": 15}
    assert crm.value("SELECT status FROM campaign_runs WHERE id = %s", run) == "completed"
