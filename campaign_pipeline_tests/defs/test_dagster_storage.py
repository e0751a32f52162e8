"""The connections that processes keep to Dagster's storage."""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from dagster import DagsterInstance

from campaign_pipeline.adapters.dagster_home import write_dagster_home
from campaign_pipeline.adapters.embedded import EmbeddedServer
from campaign_pipeline.definitions import defs
from campaign_pipeline_tests.databases import Databases


@pytest.fixture
def storage(server: EmbeddedServer, databases: Databases) -> Iterator[str]:
    """A database with Dagster's tables."""
    with databases.create() as name:
        yield server.url(name)


@pytest.fixture
def home(storage: str, tmp_path: Path) -> Path:
    url = storage.replace("postgresql://", "postgresql+psycopg2://", 1)
    DagsterInstance.from_config(str(write_dagster_home(tmp_path, url))).dispose()
    return write_dagster_home(tmp_path, url)


@contextmanager
def connections_of(storage: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(storage, autocommit=True) as connection:
        yield connection


def kept(storage: str) -> list[int]:
    """Return the server processes of the storage's connections."""
    with connections_of(storage) as connection:
        rows = connection.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND backend_type = 'client backend'"
        ).fetchall()
    return [pid for (pid,) in rows]


def store_event(home: Path) -> None:
    """Store a run and an event, and read them, as a process of Dagster's does."""
    with DagsterInstance.from_config(str(home)) as instance:
        run = instance.create_run_for_job(defs.resolve_job_def("clean_up_old_data"))
        instance.report_engine_event("a line", job_name=run.job_name, run_id=run.run_id)
        assert len(instance.all_logs(run.run_id)) == 1


def connect_too(home: Path, storage: str) -> None:
    store_event(home)
    assert len(kept(storage)) == 2


def test_a_process_keeps_one_connection_however_many_instances_and_threads_it_has(home: Path, storage: str) -> None:
    store_event(home)
    (connection,) = kept(storage)
    store_event(home)
    assert kept(storage) == [connection]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: store_event(home), range(8)))
    assert len(kept(storage)) == 1


def test_an_event_is_stored_over_a_new_connection_when_the_server_closed_the_kept_one(home: Path, storage: str) -> None:
    store_event(home)
    (before,) = kept(storage)
    with connections_of(storage) as connection:
        connection.execute("SELECT pg_terminate_backend(%s, 10000)", [before])
    store_event(home)
    (after,) = kept(storage)
    assert after != before


def test_a_forked_process_leaves_its_parents_connection_alone(home: Path, storage: str) -> None:
    store_event(home)
    (before,) = kept(storage)
    child = multiprocessing.get_context("fork").Process(target=connect_too, args=(home, storage))
    child.start()
    child.join()
    assert child.exitcode == 0
    store_event(home)
    assert kept(storage) == [before]
