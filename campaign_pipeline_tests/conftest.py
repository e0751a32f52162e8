"""Shared fixtures: one PostgreSQL per session, one template database, a cheap copy of it per test; and a sandbox."""

import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings

from campaign_pipeline.adapters import embedded, schema
from campaign_pipeline.adapters.embedded import EmbeddedServer, embedded_server
from campaign_pipeline.adapters.environment import PROVIDER_PREFIXES
from campaign_pipeline.sandbox.server import Addresses
from campaign_pipeline_tests.databases import Databases
from campaign_pipeline_tests.factories import World
from campaign_pipeline_tests.guard import ONLY_THIS_MACHINE, stay_on_this_machine
from campaign_pipeline_tests.pooler import Pooler, folder_for_all, run_pooler
from campaign_pipeline_tests.ports import reserved_port

stay_on_this_machine()

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell ignores it for what a script starts in the background. Dagster treats SIGTERM like it, and then nothing
    # ends the processes that copy a run's output.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Not the day that a developer's own folder keeps: the code location's days are fixed when it is imported.
os.environ.setdefault("CAMPAIGN_FIRST_DAY", "2025-01-01")

MEMORY, ENOUGH_MEMORY = Path("/dev/shm"), 6 * 2**30  # noqa: S108 (a place, not a file of a known name)
"""Where temporary files go if there is so much room: databases that are copied for each test, and the event logs of
runs. On a disk, a third of the tests' time is waiting for it."""


def keep_temporary_files_in_memory() -> None:
    """Set it for this process and its children, unless TMPDIR is set."""
    if "TMPDIR" in os.environ or not os.access(MEMORY, os.W_OK | os.X_OK):
        return
    if shutil.disk_usage(MEMORY).free >= ENOUGH_MEMORY:
        os.environ["TMPDIR"] = str(MEMORY)
        tempfile.tempdir = None  # it was perhaps asked for before


keep_temporary_files_in_memory()

# How long an example takes is the machine's business. The examples are the same each time, so that a test fails because
# of a change; `search` is for looking for new ones. `make test-fast` takes the profile `few`.
SLOW_IS_NO_FAULT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("all", SLOW_IS_NO_FAULT, derandomize=True, max_examples=120)
settings.register_profile("few", SLOW_IS_NO_FAULT, derandomize=True, max_examples=20)
settings.register_profile("search", SLOW_IS_NO_FAULT, max_examples=2000, print_blob=True)
settings.load_profile("all")

TEMPLATE = "campaign_template"


def pytest_collection_finish() -> None:
    """Keep the garbage collector from looking at modules and tests again and again."""
    gc.collect()
    gc.freeze()


if OTHER_POSTGRES := os.environ.get("CAMPAIGN_TEST_POSTGRES"):
    # The folder of another PostgreSQL's programs, which replace the embedded ones: see .ci/test-debian-postgres.
    embedded.NEWEST = int(Path(OTHER_POSTGRES).parent.name)
    embedded.MAJORS[embedded.NEWEST] = OTHER_POSTGRES
    embedded._programs = lambda major, owner: Path(embedded.MAJORS[major])
    # Before version 16, no line of pg_ident.conf can name all users. The socket's folder is private.
    embedded._HBA = ("local all all trust", "local replication all trust")


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedServer]:
    """The embedded PostgreSQL, shared by all workers of a test run, in its own folder."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", uuid4().hex)
    home = Path(tempfile.gettempdir()) / f"campaign_tests_{run[:12]}"
    home.mkdir(exist_ok=True)
    server = embedded_server(home)
    with psycopg.connect(server.url("postgres"), autocommit=True) as admin, FileLock(home / "template.lock"):
        # Nothing here outlives the test run, so nothing needs to reach the disk.
        for setting in ("fsync", "full_page_writes", "synchronous_commit"):
            admin.execute(f"ALTER SYSTEM SET {setting} = off")
        admin.execute("SELECT pg_reload_conf()")
        if not admin.execute("SELECT 1 FROM pg_database WHERE datname = %s", [TEMPLATE]).fetchone():
            admin.execute(f"CREATE DATABASE {TEMPLATE}")
            schema.upgrade(server.url(TEMPLATE))
    yield server
    if server.leave():
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def databases(server: EmbeddedServer) -> Iterator[Databases]:
    """Creates databases on that server."""
    with closing(Databases(server.url("postgres"))) as databases:
        yield databases


@pytest.fixture
def database_url(server: EmbeddedServer, databases: Databases) -> Iterator[str]:
    """The test's own database, with the schema and no rows."""
    with databases.create(TEMPLATE) as name:
        yield server.url(name)


@pytest.fixture
def free_port() -> Iterator[int]:
    """A port that no other test gets."""
    with reserved_port() as port:
        yield port


@pytest.fixture(scope="session")
def pooler(server: EmbeddedServer) -> Iterator[Pooler]:
    """PgBouncer in transaction mode in front of that server."""
    with folder_for_all() as folder, run_pooler(server.url("postgres"), folder) as pooler:
        yield pooler


@pytest.fixture
def pooled_url(pooler: Pooler, database_url: str) -> str:
    """The test's database through the pooler."""
    return pooler.url(database_url)


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    """Factories on that database."""
    with World(database_url) as world:
        yield world


@pytest.fixture
def environment(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The variables of a process that uses that database; tests that need providers set theirs."""
    for name in list(os.environ):
        ours = name.startswith(("CAMPAIGN_", "OPENROUTER_", "DAGSTER_", *PROVIDER_PREFIXES))
        if ours and name not in ONLY_THIS_MACHINE:
            monkeypatch.delenv(name)
    monkeypatch.setenv("CAMPAIGN_DATABASE_URL", database_url)
    monkeypatch.setenv("CAMPAIGN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DAGSTER_DISABLE_TELEMETRY", "1")
    return monkeypatch


def point_at(monkeypatch: pytest.MonkeyPatch, sandbox: Addresses) -> None:
    """Let the process that `environment` prepared use a sandbox."""
    monkeypatch.setenv("OPENROUTER_API_KEY", "sk-or-test-key-of-no-account")
    monkeypatch.setenv("OPENROUTER_BASE_URL", sandbox.openrouter_url)
    monkeypatch.setenv("EVOLUTION_API_URL", sandbox.evolution_url)
    monkeypatch.setenv("UAZAPI_API_URL", sandbox.uazapi_url)
    monkeypatch.setenv("CLOUD_API_URL", sandbox.cloud_api_url)
    monkeypatch.setenv("SUPABASE_URL", sandbox.supabase_url)
    monkeypatch.setenv("SUPABASE_SERVICE_ROLE_KEY", "service-role-key-of-no-project")
