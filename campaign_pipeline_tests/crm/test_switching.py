"""Taking over the CRM's queue from its own processor and giving it back: twice, and during operation."""

import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import orjson
import psycopg
import pytest
from psycopg.rows import dict_row

from benchmarks.ours import JobSpec, run_job
from campaign_pipeline import sql
from campaign_pipeline.adapters import crm as switch
from campaign_pipeline.adapters import schema
from campaign_pipeline.adapters.crm import attach, detach
from campaign_pipeline.adapters.crm_check import additions, check, needed_columns
from campaign_pipeline.adapters.crm_functions import CLAIM_FUNCTION
from campaign_pipeline.adapters.findings import Finding, State
from campaign_pipeline.adapters.queue import BatchOptions, Queue
from campaign_pipeline.adapters.schema import DatabaseUnusable, Detached
from campaign_pipeline.core.model import ClaimedMessage
from campaign_pipeline.defs.shard import run_async
from campaign_pipeline.sandbox import Behaviour, Kind, Latency, SandboxProcess
from campaign_pipeline.sql import statement
from campaign_pipeline_tests.commands import run as run_command
from campaign_pipeline_tests.commands import wait_until
from campaign_pipeline_tests.conftest import point_at
from campaign_pipeline_tests.crm import OWNER, TARGET_COLUMN, WORKSPACE, Crm, url_as
from campaign_pipeline_tests.databases import Databases
from campaign_pipeline_tests.pooler import Pooler
from campaign_pipeline_tests.sql.holder import wait_until_blocked

ROOT = Path(__file__).parents[2]
TEXT = "Olá, tudo bem? Aqui é a Ana, da Pontual. Posso lhe mostrar como vendemos tintas?"
LONG_AGO = timedelta(minutes=20)


def quiet(_: str) -> None:
    pass


def by_what(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.what: finding for finding in findings}


def definitions(crm: Crm) -> list[Any]:
    """Return all of the CRM's objects in public, with the definitions of its functions."""
    queries = (
        "SELECT table_name, column_name, data_type, column_default, is_nullable FROM information_schema.columns "
        "WHERE table_schema = 'public'",
        "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'",
        "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) AS c FROM pg_constraint "
        "WHERE connamespace = 'public'::regnamespace",
        "SELECT pg_get_triggerdef(oid) AS t FROM pg_trigger WHERE NOT tgisinternal "
        "AND tgrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace)",
        "SELECT pg_get_functiondef(oid) AS f, proacl::text, pg_get_userbyid(proowner) AS owner FROM pg_proc "
        "WHERE pronamespace = 'public'::regnamespace",
    )
    return [sorted(str(row) for row in crm.all(query)) for query in queries]


UNPACED = "UPDATE campaign_configs SET min_interval_seconds = 0, daily_limit = 1000, split_messages = false"


def claim(url: str, size: int = 100) -> list[ClaimedMessage]:
    return run_async(Queue(url).claim_batch(BatchOptions(batch_size=size, owner="run test"))).rows


# The old processor ----------------------------------------------------------------------------------------------------


class OldProcessor:
    """The CRM's own processor, as the database and the gateway see it."""

    def __init__(self, url: str, evolution_url: str) -> None:
        self.url = url
        self.evolution_url = evolution_url
        self.sent: list[str] = []
        self.worked = 0

    def tick(self, batch: int = 5, die_after: Callable[[str], bool] = lambda step: False) -> int:
        """Run one call of it; `die_after` is the step after which its process ends."""
        with psycopg.connect(self.url, autocommit=True, row_factory=dict_row, prepare_threshold=None) as connection:
            claimed = connection.execute(
                "SELECT public.get_and_lock_campaign_messages(%s) AS batch", [batch]
            ).fetchone()
            assert claimed is not None
            for message in claimed["batch"]:
                self._work(connection, message, die_after)
            for (run,) in {(message["run_id"],) for message in claimed["batch"]}:
                connection.execute("SELECT public.finalize_campaign_run_if_complete(%s)", [run])
            return len(claimed["batch"])

    def _work(
        self,
        connection: "psycopg.Connection[dict[str, Any]]",
        message: dict[str, Any],
        die_after: Callable[[str], bool],
    ) -> None:
        self.worked += 1
        text = f"Oi, cliente {message['phone_normalized']}"
        connection.execute(
            "UPDATE public.campaign_messages SET status = 'sending', generated_message = %s WHERE id = %s",
            [text, message["id"]],
        )
        answer = httpx.post(
            f"{self.evolution_url}/message/sendText/vendas-1",
            headers={"apikey": "evo-key"},
            json={"number": message["phone_normalized"], "text": text},
        )
        answer.raise_for_status()
        self.sent.append(message["phone_normalized"])
        talk = connection.execute(
            "INSERT INTO public.conversations (workspace_id, lead_id, contact_name, contact_phone) "
            "VALUES (%s, %s, 'x', %s) RETURNING id",
            [WORKSPACE, message["lead_id"], message["phone_normalized"]],
        ).fetchone()
        assert talk is not None
        connection.execute(
            "INSERT INTO public.messages (conversation_id, message_type, text_content) VALUES (%s, 'sent', %s)",
            [talk["id"], text],
        )
        if die_after("chat"):
            return
        connection.execute(
            "SELECT public.complete_campaign_message_atomic(%s, %s, %s, %s, %s, %s, true)",
            [
                message["id"],
                message["run_id"],
                message["lead_id"],
                TARGET_COLUMN,
                talk["id"],
                answer.json()["key"]["id"],
            ],
        )


# Check ----------------------------------------------------------------------------------------------------------------


def test_a_check_of_the_crm_finds_nothing_in_the_way_and_changes_nothing(bare_crm: Crm, tmp_path: Path) -> None:
    before = definitions(bare_crm)
    done = run_command(tmp_path, "crm", "check", "--json", CAMPAIGN_DATABASE_URL=bare_crm.url)
    assert done.returncode == 0, done.stderr
    findings = {finding["what"]: finding for finding in orjson.loads(done.stdout)}
    assert {finding["state"] for finding in findings.values()} == {"ok"}
    assert "the tables belong to crm_owner" in findings["rights"]["found"]
    assert "get_and_lock_campaign_messages" in findings["claim function"]["found"]
    assert "campaign_messages (" in findings["to be added"]["found"]
    assert definitions(bare_crm) == before
    assert bare_crm.value("SELECT to_regnamespace('campaign_pipeline')") is None


def test_a_check_of_another_database_stops_an_attach(empty_database: str, tmp_path: Path) -> None:
    done = run_command(tmp_path, "crm", "check", CAMPAIGN_DATABASE_URL=empty_database)
    assert done.returncode == 1
    assert "This is no database of the CRM" in " ".join(done.stdout.split())
    with pytest.raises(DatabaseUnusable, match=r"cannot be attached\. CRM tables: This is no database of the CRM"):
        attach(empty_database, quiet)


@pytest.fixture
def empty_database(server: Any, databases: Databases) -> Iterator[str]:
    with databases.create() as name:
        yield server.url(name)


def test_a_missing_right_stops_an_attach_and_names_the_grant(bare_crm: Crm) -> None:
    findings = by_what(check(url_as(bare_crm.url, "authenticator")))
    assert findings["rights"].state is State.STOPS
    assert f"which the role {OWNER} owns" in findings["rights"].todo
    assert findings["row level security"].state is State.STOPS
    with pytest.raises(DatabaseUnusable, match=r"cannot be attached\. rights: The role authenticator may not alter"):
        attach(url_as(bare_crm.url, "authenticator"), quiet)


def test_cron_jobs_that_call_the_old_processor_are_found_and_their_keys_not_shown(bare_crm: Crm) -> None:
    bare_crm.do("CREATE SCHEMA cron")
    bare_crm.do("CREATE TABLE cron.job (jobid bigint, schedule text, command text, active boolean DEFAULT true)")
    post = "SELECT net.http_post('https://x.supabase.co/functions/v1/{}', headers := '{{\"key\": \"SECRET\"}}')"
    for number, name in enumerate(["campaign-process-queue", "campaign-scheduler", "process-campaign-messages"]):
        bare_crm.do("INSERT INTO cron.job VALUES (%s, '* * * * *', %s)", number, post.format(name))
    found = [finding for finding in check(bare_crm.url) if finding.what == "cron jobs"]
    assert [finding.found.partition(" (")[0] for finding in found] == ["job 0", "job 2"]
    assert {finding.state for finding in found} == {State.LOOK}
    assert not any("SECRET" in str(finding) for finding in found)


def test_every_column_that_a_check_asks_for_is_in_the_crm(bare_crm: Crm) -> None:
    there = {
        (row["table_name"], row["column_name"])
        for row in bare_crm.all("SELECT table_name, column_name FROM information_schema.columns")
    }
    needed = {(table, column) for table, columns in needed_columns().items() for column in columns}
    assert ("campaign_messages", "scheduled_at") in needed
    assert needed - there == set()


def test_a_column_that_is_missing_stops_an_attach(bare_crm: Crm) -> None:
    bare_crm.do("ALTER TABLE campaign_messages DROP COLUMN scheduled_at")
    finding = by_what(check(bare_crm.url))["CRM columns"]
    assert (finding.state, finding.found) == (State.STOPS, "missing: campaign_messages.scheduled_at")


# Attach and detach ----------------------------------------------------------------------------------------------------


def test_an_attach_and_a_detach_with_drop_leave_the_crm_as_it_was(bare_crm: Crm) -> None:
    before = definitions(bare_crm)
    attach(bare_crm.url, quiet)
    assert bare_crm.value("SELECT public.get_and_lock_campaign_messages(5)") == []
    schema.check(bare_crm.url)
    told = detach(bare_crm.url, quiet)
    assert any("get_and_lock_campaign_messages" in text and "is restored" in text for text in told)
    after = definitions(bare_crm)
    assert after[3:] == before[3:]  # triggers and functions, with owners and grants
    detach(bare_crm.url, quiet, drop=True)
    assert definitions(bare_crm) == before
    assert bare_crm.value("SELECT to_regnamespace('campaign_pipeline')") is None


def test_every_object_that_an_upgrade_adds_to_the_crm_is_known_to_detach(bare_crm: Crm, crm: Crm) -> None:
    before, after = definitions(bare_crm), definitions(crm)
    new = [set(now) - set(then) for then, now in zip(before, after, strict=True)]
    added = additions()
    there = {
        (row["table_name"], row["column_name"]) for row in bare_crm.all("SELECT * FROM information_schema.columns")
    }
    columns = {(table, column) for table, names in added.columns.items() for column in names}
    assert ("ai_agents", "behavior_config") in columns & there  # one of those that the CRM has itself
    assert len(new[0]) == len(columns - there)
    assert len(new[1]) == len(added.indexes)
    assert len(new[3]) == len(added.triggers)
    assert new[4] == set()


def test_a_detached_pipeline_claims_nothing_and_says_what_to_do(crm: Crm, tmp_path: Path) -> None:
    crm.start_run(leads=3)
    attach(crm.url, quiet)
    detach(crm.url, quiet)
    assert claim(crm.url) == []
    with pytest.raises(Detached, match="run `campaign-pipeline crm attach`"):
        schema.check(crm.url)
    assert schema.upgrade(crm.url) == sql.HEAD  # which puts no trigger back
    assert crm.value("SELECT count(*) FROM pg_trigger WHERE starts_with(tgname, 'campaign_count')") == 0
    assert crm.value("SELECT jsonb_array_length(public.get_and_lock_campaign_messages(5))") == 3


def test_a_claim_under_way_is_waited_for_and_given_back(crm: Crm) -> None:
    run = crm.start_run(leads=4)
    attach(crm.url, quiet)
    with psycopg.connect(crm.url) as claimer:
        claimer.execute(
            statement("claim_messages"),
            {
                "run_ids": [run],
                "quotas": [4],
                "batch_size": 4,
                "token": uuid4(),
                "owner": "run test",
                "lease_seconds": 120.0,
                "tried_ids": None,
                "ahead_seconds": 0.0,
            },
        )
        detaching = threading.Thread(target=detach, args=(crm.url, quiet))
        detaching.start()
        wait_until(
            lambda: crm.value("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND locktype = 'transactionid')")
        )
        claimer.commit()
    detaching.join(60)
    assert Counter(message["status"] for message in crm.messages()) == {"pending": 4}
    assert crm.value("SELECT jsonb_array_length(public.get_and_lock_campaign_messages(5))") == 4


def test_messages_that_waited_long_are_not_too_old_for_the_old_processor(crm: Crm) -> None:
    crm.start_run(leads=3, gap=1)
    crm.do("UPDATE campaign_messages SET scheduled_at = scheduled_at - interval '5 hours'")
    order = [message["id"] for message in crm.messages()]
    attach(crm.url, quiet)
    detach(crm.url, quiet)
    taken = crm.value("SELECT public.get_and_lock_campaign_messages(5)")
    assert [UUID(message["id"]) for message in taken] == order


@pytest.mark.parametrize(
    ("parts", "status", "error_class"),
    [
        (["sent", "planned"], "failed", "exhausted"),
        (["sent", "unknown"], "failed", "unknown"),
        (["planned"], "pending", None),
    ],
)
def test_partly_sent_messages_are_never_left_to_the_old_processor(
    crm: Crm, parts: list[str], status: str, error_class: str | None
) -> None:
    crm.start_run(leads=1)
    attach(crm.url, quiet)
    (message,) = crm.messages()
    for number, part in enumerate(parts, 1):
        row = {"message_id": message["id"], "part_no": number, "text": TEXT, "status": part, "attempts": 1}
        crm.insert(
            "campaign_message_parts",
            **row,
            idempotency_key=f"{message['id']}:{number}",
            sent_at=crm.value("SELECT now()"),
        )
    detach(crm.url, quiet)
    (message,) = crm.messages()
    assert (message["status"], message["error_class"]) == (status, error_class)


def test_partly_sent_messages_skipped_by_a_pause_are_not_sent_whole_after_a_resume(crm: Crm) -> None:
    run = crm.start_run(leads=2)
    attach(crm.url, quiet)
    begun, untouched = crm.messages(run)
    row = {"message_id": begun["id"], "part_no": 1, "text": TEXT, "status": "sent", "attempts": 1}
    key = f"{begun['id']}:1"
    crm.insert("campaign_message_parts", **row, idempotency_key=key, sent_at=crm.value("SELECT now()"))
    crm.do("SELECT public.pause_campaign_run(%s)", run)
    detach(crm.url, quiet)
    crm.do("SELECT public.resume_campaign_run(%s)", run)
    statuses = {row["id"]: row["status"] for row in crm.messages(run)}
    assert statuses == {begun["id"]: "failed", untouched["id"]: "pending"}


def test_the_old_processor_skips_nothing_that_waits_longer_than_it_would(bare_crm: Crm) -> None:
    run = bare_crm.start_run(leads=2)
    bare_crm.do("UPDATE campaign_messages SET scheduled_at = now() - interval '2 hours'")
    attach(bare_crm.url, quiet)
    bare_crm.do("UPDATE campaign_messages SET next_attempt_at = now() + interval '5 minutes'")
    skip_old = "SELECT public.mark_old_campaign_messages_as_skipped(now() - interval '1 hour')"
    assert bare_crm.value(skip_old) == 0
    assert {message["status"] for message in bare_crm.messages(run)} == {"pending"}
    detach(bare_crm.url, quiet)
    assert bare_crm.value(skip_old.replace("1 hour", "-1 hour")) == 2


def test_a_drop_leaves_the_columns_if_the_crms_own_were_not_recorded(bare_crm: Crm) -> None:
    bare_crm.do("UPDATE ai_agents SET behavior_config = '{}'")
    attach(bare_crm.url, quiet)
    bare_crm.do("DELETE FROM campaign_pipeline.campaign_columns_before")  # as in an installation from before 0008
    told = detach(bare_crm.url, quiet, drop=True)
    assert "Its columns are left" in told[-1]
    assert bare_crm.value("SELECT bool_and(behavior_config = '{}') FROM ai_agents")
    assert bare_crm.value("SELECT to_regnamespace('campaign_pipeline')") is None


def test_an_attach_waits_for_a_detach_under_way(crm: Crm) -> None:
    crm.start_run(leads=1)
    attach(crm.url, quiet)
    claim(crm.url)
    crm.do("UPDATE campaign_messages SET status = 'sending'")
    waiting, told = threading.Event(), threading.Event()
    detaching = threading.Thread(target=detach, args=(crm.url, lambda _: waiting.set()))
    detaching.start()
    assert waiting.wait(30)
    attaching = threading.Thread(target=attach, args=(crm.url, lambda _: told.set()))
    attaching.start()
    assert told.wait(30)
    assert crm.value("SELECT detached_at IS NOT NULL FROM campaign_crm_attachment")
    crm.do("UPDATE campaign_messages SET lease_expires_at = now() - interval '1 second'")
    detaching.join(60)
    attaching.join(60)
    assert crm.value("SELECT attached_at IS NOT NULL AND detached_at IS NULL FROM campaign_crm_attachment")
    assert crm.value("SELECT count(*) FROM pg_trigger WHERE starts_with(tgname, 'campaign_count')") == 4
    assert crm.value("SELECT public.get_and_lock_campaign_messages(5)") == []


def test_an_attach_gives_way_to_the_crm_and_settles_afterwards(bare_crm: Crm) -> None:
    message = left_by_old(bare_crm, "sending", None, [])
    schema.upgrade(bare_crm.url)
    failed: list[DatabaseUnusable] = []

    def attaching() -> None:
        try:
            attach(bare_crm.url, quiet)
        except DatabaseUnusable as error:
            failed.append(error)

    thread = threading.Thread(target=attaching)
    with psycopg.connect(bare_crm.url) as other:
        other.execute("UPDATE campaign_runs SET error_message = 'x'")  # for which the settled message's counters wait
        thread.start()
        with Crm(bare_crm.url) as onlooker:
            wait_until_blocked(onlooker)
        other.execute("UPDATE campaign_messages SET phone_source = 'x' WHERE id = %s", [message])
        other.commit()
    thread.join(60)
    assert failed == []
    assert bare_crm.value("SELECT status FROM campaign_messages WHERE id = %s", message) == "failed"
    assert bare_crm.wrong_counters() == []


def test_a_detach_waits_for_messages_in_flight_and_reports_their_number(crm: Crm) -> None:
    crm.start_run(leads=2)
    attach(crm.url, quiet)
    assert len(claim(crm.url)) == 2
    crm.do("UPDATE campaign_messages SET status = 'sending'")
    said: list[str] = []
    with pytest.raises(DatabaseUnusable, match=r"2 messages are still being sent after 0.1 seconds; .* Run this again"):
        detach(crm.url, said.append, 0.1)
    assert said == ["Waiting for 2 messages that are being written or sent …"]
    assert crm.value("SELECT public.get_and_lock_campaign_messages(5)") == []  # nothing takes them meanwhile
    crm.do("UPDATE campaign_messages SET lease_expires_at = now() - interval '1 second'")  # their holder died
    detach(crm.url, quiet, 0.1)


def test_a_redeployed_claim_function_is_left_alone(bare_crm: Crm) -> None:
    attach(bare_crm.url, quiet)
    bare_crm.do(
        "CREATE OR REPLACE FUNCTION get_and_lock_campaign_messages(p_batch_size integer DEFAULT 5, "
        "p_one_hour_ago timestamptz DEFAULT now() - interval '1 hour') RETURNS jsonb LANGUAGE sql "
        "AS $$ SELECT '[9]'::jsonb $$"
    )
    finding = by_what(check(bare_crm.url))["claim function"]
    assert finding.state is State.LOOK
    assert "run `crm attach` again" in finding.todo
    assert any("is left as it is" in text for text in detach(bare_crm.url, quiet))
    assert bare_crm.value("SELECT public.get_and_lock_campaign_messages(5)") == [9]


@pytest.mark.parametrize(
    ("signature", "kind", "body", "nothing"),
    [
        ("f(n integer)", "SETOF public.campaign_messages", "SELECT * FROM public.campaign_messages", 0),
        ("f(n integer DEFAULT 5)", "TABLE (id uuid, phone text)", "SELECT gen_random_uuid(), 'x'::text", 0),
        ("f(n integer)", "json", "SELECT '[1]'::json", 1),
        ("f(n integer)", "uuid[]", "SELECT ARRAY[gen_random_uuid()]", 1),
    ],
)
def test_a_claim_function_of_any_shape_is_replaced_by_one_that_returns_nothing(
    bare_crm: Crm, signature: str, kind: str, body: str, nothing: int
) -> None:
    name = f"public.{CLAIM_FUNCTION}"
    bare_crm.do(f"DROP FUNCTION {name}")
    bare_crm.do(f"CREATE FUNCTION {signature.replace('f', name, 1)} RETURNS {kind} LANGUAGE sql AS $$ {body} $$")
    before = definitions(bare_crm)[4]
    attach(bare_crm.url, quiet)
    rows = bare_crm.all(f"SELECT x FROM {name}(5) AS x")
    assert len(rows) == nothing
    assert all(row["x"] in (None, []) for row in rows)
    detach(bare_crm.url, quiet)
    assert definitions(bare_crm)[4] == before


def test_an_attach_that_is_cut_short_anywhere_is_taken_up_again(bare_crm: Crm, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    run = bare_crm.start_run(leads=3)
    schema.upgrade(bare_crm.url)  # whose interruptions have a test of their own
    left = 0

    def dying(name: str) -> str:
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed
        return statement(name)

    monkeypatch.setattr(switch, "statement", dying)
    for command in (attach, detach, attach, detach):
        for steps in range(1, 50):
            left = steps
            try:
                command(bare_crm.url, quiet)
            except Killed:
                # One of them has the queue now, never both.
                old = bare_crm.value("SELECT public.get_and_lock_campaign_messages(0) = '[]'")
                assert old is True
                continue
            break
        assert steps > 3
    left = 0
    assert Counter(message["status"] for message in bare_crm.messages(run)) == {"pending": 3}
    assert bare_crm.value("SELECT jsonb_array_length(public.get_and_lock_campaign_messages(5))") == 3


def test_the_switch_works_through_a_pooler(bare_crm: Crm, pooler: Pooler, tmp_path: Path) -> None:
    bare_crm.start_run(leads=3)
    before = definitions(bare_crm)
    url = pooler.url(bare_crm.url)
    for command in (["attach"], ["check"], ["detach"], ["attach"], ["detach", "--drop", "--yes"]):
        done = run_command(tmp_path, "crm", *command, CAMPAIGN_DATABASE_URL=url)
        assert done.returncode == 0, done.stdout + done.stderr
    assert definitions(bare_crm) == before
    assert Counter(message["status"] for message in bare_crm.messages()) == {"pending": 3}


# Messages left by the old processor -----------------------------------------------------------------------------------


def left_by_old(crm: Crm, status: str, text: str | None, chat: list[str], ago: timedelta = LONG_AGO) -> UUID:
    """A message that the old processor took and never finished, with its lead's chat."""
    crm.start_run(leads=1)
    (message,) = crm.messages()
    since = crm.value("SELECT now()") - ago
    crm.do("UPDATE campaign_messages SET status = %s, generated_message = %s, queued_at = %s", status, text, since)
    talk = crm.insert(
        "conversations", workspace_id=WORKSPACE, lead_id=message["lead_id"], contact_name="x", contact_phone="1"
    )
    old = {"conversation_id": talk, "message_type": "sent", "text_content": TEXT}
    crm.insert("messages", **old, created_at=since - timedelta(days=9))  # of an earlier campaign
    for number, piece in enumerate(chat):
        at = since + timedelta(seconds=20 + number)
        crm.insert("messages", conversation_id=talk, message_type="sent", text_content=piece, created_at=at)
    return message["id"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("status", ["queued", "generating", "sending"])
@pytest.mark.parametrize("chat", [[TEXT], [TEXT[:14], f"\n{TEXT[14:]} "]], ids=["whole", "in pieces"])
def test_messages_found_in_the_chat_were_sent(bare_crm: Crm, status: str, chat: list[str]) -> None:
    message = left_by_old(bare_crm, status, TEXT, chat)
    told = attach(bare_crm.url, quiet)
    assert any(text.startswith("1 messages that the old processor left are sent") for text in told)
    row = bare_crm.one("SELECT * FROM campaign_messages WHERE id = %s", message)
    assert (row["status"], row["error_class"]) == ("sent", None)
    assert row["sent_at"] is not None
    assert bare_crm.wrong_counters() == []
    assert bare_crm.value("SELECT column_id FROM leads WHERE id = %s", row["lead_id"]) == TARGET_COLUMN
    assert claim(bare_crm.url) == []


@pytest.mark.parametrize(
    ("status", "text", "chat"),
    [("sending", TEXT, [TEXT[:14]]), ("sending", None, []), ("sending", None, ["Oi!"]), ("sending", "  ", [])],
    ids=["a piece of it", "no text", "something in the chat", "an empty text"],
)
def test_undecidable_messages_fail_as_unknown(bare_crm: Crm, status: str, text: str | None, chat: list[str]) -> None:
    message = left_by_old(bare_crm, status, text, chat)
    attach(bare_crm.url, quiet)
    row = bare_crm.one("SELECT * FROM campaign_messages WHERE id = %s", message)
    assert (row["status"], row["error_class"], row["error_code"]) == ("failed", "unknown", "old_processor")
    assert claim(bare_crm.url) == []


def test_messages_without_a_text_wait_again(bare_crm: Crm) -> None:
    message = left_by_old(bare_crm, "generating", None, [])
    attach(bare_crm.url, quiet)
    assert [row.message_id for row in claim(bare_crm.url)] == [message]


def test_messages_recently_taken_by_the_old_processor_are_left_to_it(bare_crm: Crm) -> None:
    message = left_by_old(bare_crm, "queued", None, [], ago=timedelta(minutes=5))
    told = attach(bare_crm.url, quiet)
    assert told[-1].startswith("1 messages were taken by the CRM's own processor less than 15 minutes ago")
    assert claim(bare_crm.url) == []
    assert bare_crm.value("SELECT status FROM campaign_messages WHERE id = %s", message) == "queued"


@pytest.fixture
def sandbox(bare_crm: Crm, environment: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[SandboxProcess]:
    (tmp_path / "dagster").mkdir()
    environment.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    environment.setenv("CAMPAIGN_MAX_AGE_MINUTES", "100000")
    with SandboxProcess() as sandbox:
        point_at(environment, sandbox)
        yield sandbox


@pytest.fixture
def database_url(bare_crm_url: str) -> str:
    return bare_crm_url


def work(in_process: bool = True) -> int:
    """One run of the real job."""
    return run_job({**os.environ, "PYTHONPATH": str(ROOT)}, JobSpec(20, in_process=in_process)).sent


def sends(sandbox: SandboxProcess) -> list[str]:
    return [entry["number"] for entry in sandbox.record() if entry["kind"] == Kind.SEND.value]


@pytest.mark.parametrize("accepted", [True, False])
def test_messages_missing_from_the_chat_are_looked_up_and_never_blindly_resent(
    bare_crm: Crm, sandbox: SandboxProcess, accepted: bool
) -> None:
    message = left_by_old(bare_crm, "sending", TEXT, [])
    if accepted:
        number = bare_crm.value("SELECT phone_normalized FROM campaign_messages")
        url = f"{sandbox.evolution_url}/message/sendText/vendas-1"
        httpx.post(url, headers={"apikey": "evo-key"}, json={"number": number, "text": TEXT}).raise_for_status()
        bare_crm.do("UPDATE campaign_messages SET queued_at = now() - interval '16 minutes'")
    told = attach(bare_crm.url, quiet)
    assert any("are asked for at their provider by the next batch" in text for text in told)
    work()
    row = bare_crm.one("SELECT * FROM campaign_messages WHERE id = %s", message)
    assert len(sends(sandbox)) == accepted
    assert (row["status"], row["error_class"]) == (("sent", None) if accepted else ("failed", "unknown"))
    assert bare_crm.wrong_counters() == []


# Foreign changes ------------------------------------------------------------------------------------------------------


def test_the_crms_own_counting_beside_the_pipelines_counts_nothing_twice(bare_crm: Crm) -> None:
    run = bare_crm.start_run(leads=4)
    attach(bare_crm.url, quiet)
    first, second, *_ = bare_crm.messages(run)
    for message, worked in ((first, True), (second, False)):
        bare_crm.do(
            "SELECT public.complete_campaign_message_atomic(%s, %s, %s, %s, NULL, 'x', %s)",
            message["id"],
            run,
            message["lead_id"],
            TARGET_COLUMN,
            worked,
        )
    bare_crm.do("SELECT public.increment_campaign_run_metrics(%s, 3, 2, 1)", run)
    assert bare_crm.wrong_counters() == []
    row = bare_crm.one("SELECT * FROM campaign_runs WHERE id = %s", run)
    assert (row["leads_success"], row["leads_failed"], row["leads_processed"]) == (1, 1, 2)
    bare_crm.do("SELECT public.finalize_campaign_run_if_complete(%s)", run)
    assert bare_crm.value("SELECT status FROM campaign_runs WHERE id = %s", run) == "running"
    bare_crm.do("SELECT public.pause_campaign_run(%s)", run)
    assert bare_crm.wrong_counters() == []
    bare_crm.do("SELECT public.resume_campaign_run(%s)", run)
    assert bare_crm.wrong_counters() == []
    assert bare_crm.value("SELECT leads_total FROM campaign_runs WHERE id = %s", run) == 4
    bare_crm.do("UPDATE campaign_runs SET leads_total = 9, leads_success = 7 WHERE id = %s", run)
    row = bare_crm.one("SELECT * FROM campaign_runs WHERE id = %s", run)
    assert (row["leads_total"], row["leads_success"]) == (9, 1)


def test_the_crms_counting_is_known_though_several_functions_have_its_name(bare_crm: Crm) -> None:
    run = bare_crm.start_run(leads=1)
    attach(bare_crm.url, quiet)
    bare_crm.do(
        "CREATE FUNCTION increment_campaign_run_metrics(p_run_id uuid) RETURNS void LANGUAGE sql AS $$ SELECT $$"
    )
    bare_crm.do("SELECT public.increment_campaign_run_metrics(%s, 3, 2, 1)", run)
    assert bare_crm.wrong_counters() == []


def test_other_programs_that_claim_or_finish_messages_are_reported(bare_crm: Crm) -> None:
    bare_crm.do(UNPACED)
    run = bare_crm.start_run(leads=4)
    attach(bare_crm.url, quiet)
    taken, sent, *_ = bare_crm.messages(run)
    bare_crm.do("UPDATE campaign_messages SET status = 'queued', queued_at = now() WHERE id = %s", taken["id"])
    bare_crm.do("UPDATE campaign_messages SET status = 'sent', sent_at = now() WHERE id = %s", sent["id"])
    rows = claim(bare_crm.url)
    bare_crm.do("UPDATE campaign_messages SET status = 'generating' WHERE id = %s", rows[0].message_id)
    bare_crm.do("UPDATE campaign_messages SET status = 'sent', finished_at = now() WHERE id = %s", rows[0].message_id)
    noticed = bare_crm.all("SELECT message_id, was, became, by_role FROM campaign_foreign_changes ORDER BY id")
    assert [tuple(row.values()) for row in noticed] == [
        (taken["id"], "pending", "queued", OWNER),
        (sent["id"], "pending", "sent", OWNER),
    ]
    finding = by_what(check(bare_crm.url))["others at the queue"]
    assert finding.state is State.LOOK
    assert f"1 became queued by {OWNER}" in finding.found
    detach(bare_crm.url, quiet)
    bare_crm.do("SELECT public.get_and_lock_campaign_messages(5)")
    assert bare_crm.value("SELECT count(*) FROM campaign_foreign_changes") == 2  # now it is theirs


def test_the_pipelines_own_changes_are_not_reported_as_foreign(bare_crm: Crm, sandbox: SandboxProcess) -> None:
    bare_crm.do(UNPACED)
    bare_crm.start_run(leads=5)
    attach(bare_crm.url, quiet)
    assert work() == 5
    assert bare_crm.all("SELECT * FROM campaign_foreign_changes") == []


# Twice, during operation ----------------------------------------------------------------------------------------------


@contextmanager
def ticking(processor: OldProcessor) -> Iterator[None]:
    """The old processor, called continuously by the CRM's cron."""
    stop = threading.Event()
    troubles: list[BaseException] = []

    def run() -> None:
        while not stop.is_set():
            try:
                processor.tick(2)
            except Exception as error:  # noqa: BLE001 (told at the end)
                troubles.append(error)
                return
            stop.wait(0.05)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        assert troubles == []


@pytest.mark.parametrize("pooled", [False, True], ids=["direct", "through a pooler"])
def test_attached_and_detached_twice_with_messages_in_flight_nothing_is_sent_twice_or_lost(
    bare_crm: Crm,
    sandbox: SandboxProcess,
    pooler: Pooler,
    environment: pytest.MonkeyPatch,
    tmp_path: Path,
    pooled: bool,
) -> None:
    url = pooler.url(bare_crm.url) if pooled else bare_crm.url
    environment.setenv("CAMPAIGN_DATABASE_URL", url)
    sandbox.set_behaviour(Behaviour(latencies={Kind.GENERATION: Latency(0.4), Kind.SEND: Latency(0.15)}))
    bare_crm.do(UNPACED)
    run = bare_crm.start_run(leads=40)
    old = OldProcessor(url, sandbox.evolution_url)
    with ticking(old):
        for _ in range(2):
            worked = old.worked
            wait_until(lambda worked=worked: old.worked > worked + 3)  # type: ignore[misc]
            attach(url, quiet)  # in the middle of a tick
            variables = {**os.environ, "PYTHONPATH": str(ROOT)}
            job = threading.Thread(target=_run_to_its_end, args=(variables,))
            job.start()
            wait_until(
                lambda: bool(
                    bare_crm.all("SELECT FROM campaign_messages WHERE status = 'sending' AND lease_expires_at > now()")
                )
            )
            detach(url, quiet)  # in the middle of a batch
            job.join(60)
        wait_until(
            lambda: not bare_crm.all("SELECT FROM campaign_messages WHERE status IN ('pending', 'queued', 'sending')")
        )
        wait_until(lambda: bare_crm.value("SELECT status FROM campaign_runs WHERE id = %s", run) == "completed")
    numbers = sends(sandbox)
    assert Counter(Counter(numbers).values()) == {1: 40}
    row = bare_crm.one("SELECT * FROM campaign_runs WHERE id = %s", run)
    assert (row["leads_total"], row["leads_success"], row["leads_processed"]) == (40, 40, 40)
    assert Counter(message["status"] for message in bare_crm.messages(run)) == {"sent": 40}
    assert bare_crm.value("SELECT count(*) FROM messages WHERE message_type NOT IN ('received', 'incoming')") == 40
    assert bare_crm.value("SELECT count(*) FROM leads WHERE column_id = %s", TARGET_COLUMN) == 40
    assert len(old.sent) > 6
    assert len(numbers) > len(old.sent)  # both had their share


def _run_to_its_end(variables: dict[str, str]) -> None:
    spec = orjson.dumps(JobSpec(4, in_process=True).to_run_config()).decode()
    # Its later steps find the pipeline detached, which fails the run with that reason.
    subprocess.run(
        [sys.executable, "-m", "benchmarks.job", spec, "/dev/null"], env=variables, capture_output=True, check=False
    )
