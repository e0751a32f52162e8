import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from campaign_pipeline.adapters import embedded
from campaign_pipeline.adapters.database import dagster_storage_url, queue_url
from campaign_pipeline.adapters.embedded import EmbeddedServer, embedded_server
from campaign_pipeline.adapters.environment import Environment
from campaign_pipeline_tests.adapters.restarts import crash, is_running, start

pytestmark = pytest.mark.slow

DATA = "postgres/data"

USER = """
import sys
from pathlib import Path
from campaign_pipeline.adapters.embedded import embedded_server

server = embedded_server(Path(sys.argv[1]))
print(server.server_pid, server.url(), flush=True)
sys.stdin.readline()
"""

FORKING_USER = """
import os
from pathlib import Path
import sys
from campaign_pipeline.adapters.embedded import embedded_server

server = embedded_server(Path(sys.argv[1]))
child = os.fork()
if child == 0:
    server.leave()
    os._exit(0)
os.waitpid(child, 0)
print(server.server_pid, server.url(), flush=True)
sys.stdin.readline()
"""

RUN = """
import os
import sys
from dagster import DagsterInstance, InitExecutorContext
from dagster._core.definitions.job_base import InMemoryJob

os.environ["CAMPAIGN_HOME"] = sys.argv[1]
os.environ.pop("CAMPAIGN_DATABASE_URL", None)
from campaign_pipeline.adapters.embedded import running_pid
from campaign_pipeline.definitions import defs
from campaign_pipeline.defs.executor import shard_executor
from pathlib import Path

job = InMemoryJob(defs.get_job_def("process_campaign_queue"))
with DagsterInstance.ephemeral() as instance:
    context = InitExecutorContext(job, shard_executor, {"in_process": {}}, instance)
    shard_executor.executor_creation_fn(context)
    print(running_pid(Path(sys.argv[1], "postgres", "data")), "of_a_run", flush=True)
    sys.stdin.readline()
"""


class User:
    """A process that uses the embedded server until it is told to exit."""

    def __init__(self, home: Path, script: str = USER) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", script, str(home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        pid, self.url = self._process.stdout.readline().split()
        self.server_pid = int(pid)

    def leave(self) -> None:
        self._process.communicate("\n", timeout=60)
        assert self._process.returncode == 0

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.communicate(timeout=60)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data folder that is created once; each test finds and leaves it without a server."""
    home = tmp_path_factory.mktemp("embedded")
    yield home
    if is_running(home / DATA):
        embedded_server(home).leave()


@pytest.fixture(autouse=True)
def nobody_is_left(home: Path) -> Iterator[None]:
    yield
    assert not is_running(home / DATA)


def answers(url: str) -> bool:
    with psycopg.connect(url) as connection:
        return connection.execute("SELECT 1").fetchone() == (1,)


def test_two_processes_share_one_server_and_the_last_to_leave_stops_it(home: Path) -> None:
    first, second = User(home), User(home)
    assert first.server_pid == second.server_pid
    first.leave()
    assert is_running(home / DATA)
    assert answers(second.url)
    second.leave()
    assert not is_running(home / DATA)


def test_a_killed_process_does_not_stop_the_server_under_its_neighbours(home: Path) -> None:
    first, second = User(home), User(home)
    first.kill()
    assert answers(second.url)
    second.leave()
    assert not is_running(home / DATA)


def test_a_server_whose_only_user_was_killed_serves_the_next_and_is_stopped_by_it(home: Path) -> None:
    killed = User(home)
    killed.kill()
    assert answers(killed.url)
    following = User(home)
    assert following.server_pid == killed.server_pid
    following.leave()
    assert not is_running(home / DATA)


def test_the_server_stays_up_between_the_steps_of_a_run_until_its_process_ends(home: Path) -> None:
    step = User(home)
    run = User(home, RUN)
    step.leave()
    assert is_running(home / DATA)
    assert run.server_pid == step.server_pid
    run.leave()
    assert not is_running(home / DATA)


def test_a_child_that_was_forked_stops_nothing(home: Path) -> None:
    parent = User(home, FORKING_USER)
    assert answers(parent.url)
    parent.leave()


def test_data_survive_a_stop_and_a_crash(home: Path) -> None:
    server = embedded_server(home)
    with psycopg.connect(server.url()) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept (n integer)")
        connection.execute("INSERT INTO kept VALUES (42)")
    assert server.leave()
    server = embedded_server(home)
    with psycopg.connect(server.url()) as connection:
        connection.execute("INSERT INTO kept VALUES (43)")
    crash(server)
    start(server)
    with psycopg.connect(server.url()) as connection:
        assert connection.execute("SELECT n FROM kept ORDER BY n").fetchall() == [(42,), (43,)]
    assert server.leave()


def test_a_server_that_somebody_restarted_is_stopped_by_the_last_to_leave_all_the_same(home: Path) -> None:
    user = User(home)
    server = embedded_server(home)
    before = server.server_pid
    crash(server)
    start(server)
    assert server.server_pid != before
    assert not server.leave()
    assert answers(user.url)
    user.leave()
    assert not is_running(home / DATA)


def test_one_process_has_one_handle_a_folder_and_leaves_once(home: Path) -> None:
    server = embedded_server(home)
    assert embedded_server(home) is server
    assert server.leave()
    assert not server.leave()


def test_the_queue_and_dagsters_storage_are_databases_of_their_own(home: Path) -> None:
    environment = Environment.read({"CAMPAIGN_HOME": str(home)})
    url = queue_url(environment)
    assert queue_url(environment) == url
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT current_database(), to_regclass('campaign_runs')::text").fetchone() == (
            embedded.QUEUE_DATABASE,
            "campaign_runs",
        )
    storage = dagster_storage_url(environment)
    assert storage.startswith("postgresql+psycopg2://")
    with psycopg.connect(storage.replace("+psycopg2", "")) as connection:
        assert connection.execute("SELECT current_database()").fetchone() == (embedded.DAGSTER_DATABASE,)
    server: EmbeddedServer = embedded_server(home)
    assert server.leave()


def test_the_server_listens_to_nobody_outside_this_machine(home: Path) -> None:
    server = embedded_server(home)
    try:
        with psycopg.connect(server.url()) as connection:
            assert connection.execute("SHOW listen_addresses").fetchone() == ("",)
    finally:
        server.leave()
