"""Upgrading the CRM's database in use: no client waits or fails, and an interrupted upgrade resumes."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from campaign_pipeline import sql
from campaign_pipeline.adapters import schema
from campaign_pipeline.adapters.embedded import EmbeddedServer
from campaign_pipeline.adapters.online import OnlineSteps
from campaign_pipeline.adapters.schema import DatabaseUnusable
from campaign_pipeline_tests.commands import wait_until
from campaign_pipeline_tests.crm import OWNER, WORKSPACE, Crm, url_as
from campaign_pipeline_tests.pooler import Pooler

CHAT_ROWS = int(os.environ.get("TEST_CHAT_ROWS", "60000"))
LONGEST_WAIT = 1.0  # seconds, which no write of the CRM may wait


@dataclass
class Writer:
    """A continuous user of the CRM: records its writes, their durations, and failures."""

    write: Callable[["psycopg.Connection[Any]", int], object]
    seconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def run(self, url: str, stop: threading.Event) -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            for number in range(10_000_000):
                if stop.is_set():
                    return
                started = time.perf_counter()
                try:
                    self.write(connection, number)
                except psycopg.Error as error:
                    self.failures.append(str(error))
                self.seconds.append(time.perf_counter() - started)
                stop.wait(0.002)


def reply(connection: "psycopg.Connection[Any]", number: int) -> None:
    connection.execute(
        "INSERT INTO public.messages (conversation_id, message_type, text_content) "
        "SELECT id, 'received', 'oi ' || %s FROM public.conversations LIMIT 1",
        [number],
    )


def new_message(connection: "psycopg.Connection[Any]", number: int) -> None:
    connection.execute(
        "INSERT INTO public.campaign_messages (run_id, lead_id, status, scheduled_at) "
        "SELECT r.id, l.id, 'pending', now() + interval '1 day' FROM public.campaign_runs r, public.leads l LIMIT 1"
    )


def move_message(connection: "psycopg.Connection[Any]", number: int) -> None:
    # Two tables in one transaction, like the CRM's own functions.
    with connection.transaction():
        connection.execute("UPDATE public.campaign_runs SET leads_total = leads_total + 1")
        connection.execute(
            "UPDATE public.campaign_messages SET status = 'sent' "
            "WHERE id = (SELECT id FROM public.campaign_messages WHERE status = 'pending' LIMIT 1)"
        )


@contextmanager
def at_work(url: str) -> Iterator[list[Writer]]:
    """Use the CRM for as long as this context lasts."""
    stop = threading.Event()
    writers = [Writer(reply), Writer(new_message), Writer(move_message)]
    threads = [threading.Thread(target=writer.run, args=(url, stop)) for writer in writers]
    for thread in threads:
        thread.start()
    try:
        yield writers
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def talk_much(crm: Crm, rows: int) -> None:
    """A CRM with years of data."""
    run = crm.start_run(leads=5)
    crm.do("UPDATE campaign_messages SET scheduled_at = now() + interval '1 day'")
    talk = {"workspace_id": WORKSPACE, "contact_name": "Ana", "contact_phone": "5567980000001"}
    conversation = crm.insert("conversations", **talk)
    crm.do(
        "INSERT INTO messages (conversation_id, message_type, text_content) "
        "SELECT %s, 'sent', 'texto ' || n FROM generate_series(1, %s) AS n",
        conversation,
        rows,
    )
    crm.do(
        "INSERT INTO campaign_logs (run_id, step_name, message) SELECT %s, 'x', 'y' FROM generate_series(1, %s)",
        run,
        rows // 4,
    )


def invalid_indexes(crm: Crm) -> list[dict[str, Any]]:
    return crm.all("SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid")


def test_the_crm_keeps_writing_during_an_upgrade(bare_crm: Crm) -> None:
    talk_much(bare_crm, CHAT_ROWS)
    before = bare_crm.value("SELECT count(*) FROM messages")
    with at_work(bare_crm.url) as writers:
        assert schema.upgrade(bare_crm.url) == sql.HEAD
    assert [writer.failures for writer in writers] == [[], [], []]
    assert all(len(writer.seconds) > 20 for writer in writers)  # otherwise the writers were not busy
    assert max(max(writer.seconds) for writer in writers) < LONGEST_WAIT
    assert bare_crm.value("SELECT count(*) FROM messages") == before + len(writers[0].seconds)
    assert invalid_indexes(bare_crm) == []
    assert bare_crm.wrong_counters() == []  # though messages were sent before, during and after the triggers came


def test_a_long_transaction_of_the_crm_delays_the_upgrade_and_nobody_else(bare_crm: Crm) -> None:
    talk_much(bare_crm, 10)
    said: list[str] = []
    with psycopg.connect(bare_crm.url) as long, at_work(bare_crm.url) as writers:
        long.execute("UPDATE public.leads SET notes = 'x'")
        upgrading = threading.Thread(target=schema.upgrade, args=(bare_crm.url, said.append))
        upgrading.start()
        wait_until(lambda: any("Waiting for a moment without a long transaction" in text for text in said))
        seen = [len(writer.seconds) for writer in writers]
        wait_until(lambda: all(len(w.seconds) > n + 20 for w, n in zip(writers, seen, strict=True)))
        assert upgrading.is_alive()
        long.rollback()
        upgrading.join(60)
    assert [writer.failures for writer in writers] == [[], [], []]
    assert max(max(writer.seconds) for writer in writers) < LONGEST_WAIT
    schema.check(bare_crm.url)


def test_a_lock_that_is_never_released_is_reported_with_what_to_do(
    bare_crm: Crm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OnlineSteps.__init__, "__defaults__", (print, 0.3))
    with psycopg.connect(bare_crm.url) as long:
        long.execute("UPDATE public.leads SET notes = 'x'")
        with pytest.raises(DatabaseUnusable, match=r"Another transaction held a lock .* start again when it has"):
            schema.upgrade(bare_crm.url)
    monkeypatch.undo()
    assert schema.upgrade(bare_crm.url) == sql.HEAD


def test_an_upgrade_that_is_cut_short_again_and_again_comes_to_its_end(
    bare_crm: Crm, crm: Crm, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk_much(bare_crm, 1000)

    class Killed(BaseException):
        pass

    real = OnlineSteps.run
    left = 0

    def run(self: OnlineSteps, statement: str, search_path: str | None = None) -> None:
        nonlocal left
        left -= 1
        real(self, statement, search_path)
        if left == 0:  # after a step that was committed, before alembic could note that its file is done
            raise Killed

    monkeypatch.setattr(OnlineSteps, "run", run)
    for attempt in range(100):
        left = 11 * (attempt + 1)
        try:
            schema.upgrade(bare_crm.url)
        except Killed:
            continue
        break
    assert attempt > 5
    schema.check(bare_crm.url)
    assert invalid_indexes(bare_crm) == []
    assert shape(bare_crm) == shape(crm)


def test_a_half_built_index_is_rebuilt(bare_crm: Crm) -> None:
    talk_much(bare_crm, 1000)
    index = (
        "CREATE INDEX CONCURRENTLY IF NOT EXISTS messages_of_conversation "
        "ON public.messages (conversation_id, created_at)"
    )
    with psycopg.connect(bare_crm.url) as long:
        long.execute(
            "INSERT INTO public.messages (conversation_id, message_type) SELECT id, 'x' FROM public.conversations"
        )
        with psycopg.connect(bare_crm.url, autocommit=True) as other:
            other.execute("SET statement_timeout = '300ms'")
            with pytest.raises(psycopg.errors.QueryCanceled):
                other.execute(index)
    assert [row["indexrelid"] for row in invalid_indexes(bare_crm)] == ["messages_of_conversation"]
    with OnlineSteps(bare_crm.url) as steps:
        steps.run(index)
        steps.run(index)
    assert invalid_indexes(bare_crm) == []
    assert bare_crm.value("SELECT count(*) FROM pg_indexes WHERE indexname = 'messages_of_conversation'") == 1


def test_two_upgrades_through_a_pooler_do_not_run_into_each_other(bare_crm: Crm, pooler: Pooler) -> None:
    url = pooler.url(bare_crm.url)
    threads = [threading.Thread(target=schema.upgrade, args=(bare_crm.url if n else url,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    schema.check(bare_crm.url)
    assert invalid_indexes(bare_crm) == []


# Rights ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def stranger(server: EmbeddedServer, bare_crm_url: str) -> Iterator[str]:
    """A role that may only log in."""
    role = f"r{uuid4().hex[:12]}"
    with psycopg.connect(server.url("postgres"), autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {role} LOGIN")
        yield role
        with psycopg.connect(url_as(bare_crm_url, "postgres"), autocommit=True) as here:
            here.execute(f"DROP OWNED BY {role} CASCADE")
        admin.execute(f"DROP ROLE {role}")


def test_a_role_that_does_not_own_the_tables_learns_the_owner_and_the_grant(bare_crm: Crm, stranger: str) -> None:
    url = url_as(bare_crm.url, stranger)
    with pytest.raises(DatabaseUnusable) as caught:
        schema.upgrade(url)
    told = str(caught.value)
    assert "\n" not in told
    assert f"The role {stranger} may not alter" in told
    assert f"which the role {OWNER} owns" in told
    grant = f'GRANT "{OWNER}" TO "{stranger}"'
    assert grant in told
    with psycopg.connect(url_as(bare_crm.url, "postgres"), autocommit=True) as admin:
        admin.execute(grant)
    assert schema.upgrade(url) == sql.HEAD
    assert bare_crm.psql("as-service-role.sql")  # and others go on as before


def shape(crm: Crm) -> list[Any]:
    """Columns, indexes, constraints and triggers."""
    queries = (
        "SELECT table_schema, table_name, column_name, data_type, column_default FROM information_schema.columns "
        "WHERE table_schema IN ('public', 'campaign_pipeline')",
        "SELECT indexdef FROM pg_indexes WHERE schemaname IN ('public', 'campaign_pipeline')",
        "SELECT pg_get_constraintdef(oid) AS c, conrelid::regclass::text FROM pg_constraint",
        "SELECT pg_get_triggerdef(oid) AS t FROM pg_trigger WHERE NOT tgisinternal",
        "SELECT oid::regprocedure::text AS f FROM pg_proc "
        "WHERE pronamespace::regnamespace::text IN ('public', 'campaign_pipeline')",
    )
    return [sorted(str(row) for row in crm.all(query)) for query in queries]
