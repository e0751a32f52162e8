import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from unittest.mock import Mock, patch

import click
import orjson
import psycopg
import pytest
from click.testing import CliRunner, Result

from campaign_pipeline import sql
from campaign_pipeline.adapters.embedded import EmbeddedServer
from campaign_pipeline.adapters.operations import DEMO
from campaign_pipeline.cli import cli
from campaign_pipeline.cli.dev import Ui, Watch, one_dev_alone
from campaign_pipeline.cli.errors import Trouble
from campaign_pipeline.launch import JobConfig
from campaign_pipeline.sandbox import Behaviour, Kind, Latency, SandboxProcess
from campaign_pipeline_tests.commands import numbered_processes_of, processes_of, run, start, wait_until
from campaign_pipeline_tests.databases import Databases
from campaign_pipeline_tests.factories import World


def commands_below(group: click.Group, *path: str) -> Iterator[list[str]]:
    for name, command in group.commands.items():
        yield [*path, name]
        if isinstance(command, click.Group):
            yield from commands_below(command, *path, name)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def sentence(result: Result) -> str:
    """Return the one sentence of an error, without Click's prefix."""
    (line,) = result.stderr.strip().splitlines()
    return line.removeprefix("Error: ")


@pytest.fixture
def dagster_home(environment: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An operator's own Dagster instance; without it, a run would start an embedded server for Dagster's storage."""
    folder = tmp_path / "dagster"
    folder.mkdir()
    (folder / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    environment.setenv("DAGSTER_HOME", str(folder))
    return folder


def providers(sandbox: SandboxProcess) -> dict[str, str]:
    return {
        "OPENROUTER_API_KEY": "sk-or-test-key-of-no-account",
        "OPENROUTER_BASE_URL": sandbox.openrouter_url,
        "EVOLUTION_API_URL": sandbox.evolution_url,
    }


def point_to(environment: pytest.MonkeyPatch, sandbox: SandboxProcess) -> None:
    for name, value in providers(sandbox).items():
        environment.setenv(name, value)


@pytest.fixture
def empty_database(server: EmbeddedServer, databases: Databases) -> Iterator[str]:
    with databases.create() as name:
        yield server.url(name)


@pytest.mark.parametrize("command", [[], *commands_below(cli)], ids=" ".join)
def test_help_explains_every_command_and_each_of_its_options(command: list[str]) -> None:
    result = call(*command, "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.output
    described = [line.split(maxsplit=1)[-1] for line in result.output.splitlines() if line.strip().startswith("--")]
    assert all(described)


def test_help_explains_exit_codes() -> None:
    text = " ".join(call("--help").output.split())
    for code in ("0 success", "1 the pipeline could not work", "2 wrong usage", "130 interrupted"):
        assert code in text


def test_help_and_usage_errors_import_neither_dagster_nor_a_database_driver() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from campaign_pipeline.cli import cli; "
        "CliRunner().invoke(cli, ['process', '--help']); CliRunner().invoke(cli, ['process', '--batch-size', '0']); "
        "print(sorted({'dagster', 'psycopg', 'sqlalchemy', 'pandas', 'aiohttp'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["process", "--batch-size", "0"], "--batch-size"),
        (["process", "--batch-size", "10001"], "--batch-size"),
        (["process", "--concurrency", "501"], "--concurrency"),
        (["process", "--shard-size", "many"], "--shard-size"),
        (["demo", "--count", "0"], "--count"),
        (["dev", "--port", "0"], "--port"),
        (["nothing"], "nothing"),
    ],
    ids=str,
)
def test_wrong_usage_ends_with_2_and_names_what_is_wrong(arguments: list[str], named: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert named in result.stderr


# --------------------------------------------------------------------------------------------------------- the database


def test_db_url_prints_the_named_database(environment: pytest.MonkeyPatch, database_url: str) -> None:
    result = call("db", "url")
    assert (result.exit_code, result.output) == (0, f"{database_url}\n")


def test_a_url_of_another_database_system_is_refused(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("CAMPAIGN_DATABASE_URL", "mysql://root:secret@db/crm")
    for command in (["db", "url"], ["db", "upgrade"], ["process"]):
        result = call(*command)
        assert result.exit_code == 2
        assert sentence(result) == "CAMPAIGN_DATABASE_URL has 'mysql', but must be a postgresql:// URL."


@pytest.mark.parametrize("command", [["db", "upgrade"], ["process"]], ids=" ".join)
def test_a_database_that_does_not_answer_is_one_sentence_without_the_password(
    environment: pytest.MonkeyPatch, command: list[str]
) -> None:
    environment.setenv("CAMPAIGN_DATABASE_URL", "postgresql://crm:secret@127.0.0.1:1/crm")
    result = call(*command)
    assert result.exit_code == 1
    assert sentence(result).startswith("The database crm at 127.0.0.1:1 cannot be used:")
    assert "secret" not in result.output


def test_db_upgrade_makes_the_schema_and_is_harmless_when_it_is_there(
    environment: pytest.MonkeyPatch, empty_database: str
) -> None:
    environment.setenv("CAMPAIGN_DATABASE_URL", empty_database)
    for _ in range(2):
        result = call("db", "upgrade")
        assert result.exit_code == 0
        assert f"has schema {sql.HEAD}." in result.output
    with psycopg.connect(empty_database) as connection:
        assert connection.execute("SELECT count(*) FROM campaign_messages").fetchone() == (0,)


def test_process_says_what_to_run_if_the_schema_is_missing(
    environment: pytest.MonkeyPatch, empty_database: str
) -> None:
    environment.setenv("CAMPAIGN_DATABASE_URL", empty_database)
    result = call("process")
    assert result.exit_code == 1
    assert sentence(result).endswith("run `campaign-pipeline db upgrade`.")


def test_db_url_holds_the_embedded_server_until_interrupted() -> None:
    home = Path(tempfile.mkdtemp(prefix="campaign-hold-"))
    held = start(home, "db", "url", "--hold")
    assert held.stdout is not None
    url = held.stdout.readline().strip()
    held.stdout.readline()
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT current_database()").fetchone() == ("campaign",)
    held.send_signal(signal.SIGINT)
    held.communicate(timeout=60)
    assert held.returncode == 130
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url)
    shutil.rmtree(home)


# -------------------------------------------------------------------------------------------------------------- process


@pytest.mark.parametrize("options", [[], ["--in-process"]], ids=["processes", "in process"])
def test_process_sends_due_messages_and_counts_them(
    world: World, environment: pytest.MonkeyPatch, dagster_home: Path, options: list[str]
) -> None:
    run_id = world.run()
    world.due_messages(run_id, 5)
    world.due_message(run_id, world.lead(phone=None))
    with SandboxProcess() as sandbox:
        point_to(environment, sandbox)
        result = call("process", *options)
        assert len(sandbox.record(kind="send", accepted=True)) == 5
    assert result.exit_code == 0, result.output
    assert "6 claimed, 5 sent, 1 failed, 0 skipped, 0 returned to the queue; 1 campaign run closed" in result.stdout
    assert world.value("SELECT count(*) FROM campaign_messages WHERE status = 'sent'") == 5
    assert world.wrong_counters() == []


@pytest.mark.parametrize(("in_process", "started"), [(False, True), (True, False)], ids=["processes", "in process"])
def test_the_fork_server_of_steps_starts_before_dagster_is_imported(
    tmp_path: Path, in_process: bool, started: bool
) -> None:
    code = (
        "import sys\n"
        "from multiprocessing import forkserver\n"
        "from campaign_pipeline import launch\n"
        "class AtDagster:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'dagster': sys.exit(f'fork server: {forkserver._forkserver._forkserver_pid is not None}')\n"
        "sys.meta_path.insert(0, AtDagster())\n"
        "launch._run_child('launch', *sys.argv[1:])\n"
    )
    config = orjson.dumps(JobConfig(in_process=in_process).to_run_config()).decode()
    command = [sys.executable, "-c", code, config, str(tmp_path)]
    done = subprocess.run(command, input="", capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == f"fork server: {started}"


def test_process_claims_no_more_than_its_batch_size(
    world: World, environment: pytest.MonkeyPatch, dagster_home: Path
) -> None:
    world.due_messages(world.run(), 3)
    with SandboxProcess() as sandbox:
        point_to(environment, sandbox)
        result = call("process", "--batch-size", "2", "--in-process")
    assert result.exit_code == 0, result.output
    assert world.value("SELECT count(*) FROM campaign_messages WHERE status = 'sent'") == 2


def test_process_without_a_key_ends_with_1_and_its_name_and_claims_nothing(
    world: World, environment: pytest.MonkeyPatch, dagster_home: Path
) -> None:
    message = world.due_message(world.run())
    result = call("process", "--in-process")
    assert result.exit_code == 1
    assert sentence(result).startswith("OPENROUTER_API_KEY is not set; ")
    assert world.value("SELECT status FROM campaign_messages WHERE id = %s", message) == "pending"


def test_process_with_nothing_due_works_and_says_why_runs_wait(
    world: World, environment: pytest.MonkeyPatch, dagster_home: Path
) -> None:
    workspace = world.workspace()
    inbox = world.inbox(workspace, status="disconnected")
    world.due_message(world.run(world.campaign(workspace, inbox), name="Sem sinal"))
    with SandboxProcess() as sandbox:
        point_to(environment, sandbox)
        result = call("process", "--in-process")
    assert result.exit_code == 0, result.output
    assert "no message is due that can be sent now" in result.stdout
    assert "Sem sinal waits: " in result.stdout
    assert "not connected" in " ".join(result.stdout.split())


def test_an_interrupted_process_returns_what_it_held_and_ends_with_130(
    world: World, dagster_home: Path, tmp_path: Path
) -> None:
    world.due_messages(world.run(), 60)
    slow = Behaviour(latencies={Kind.GENERATION: Latency(1.0), Kind.SEND: Latency(0.5)})
    with SandboxProcess(slow) as sandbox:
        process = start(
            tmp_path / "home",
            *("process", "--concurrency", "5"),
            CAMPAIGN_DATABASE_URL=world.url,
            DAGSTER_HOME=str(dagster_home),
            **providers(sandbox),
        )
        wait_until(lambda: bool(world.value("SELECT EXISTS (SELECT FROM campaign_messages WHERE status = 'sending')")))
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=90)
        accepted = len(sandbox.record(kind="send", accepted=True))
    assert process.returncode == 130, said
    assert world.value("SELECT count(*) FROM campaign_messages WHERE status = 'sent'") == accepted > 0
    assert world.value("SELECT count(*) FROM campaign_messages WHERE status = 'pending'") == 60 - accepted
    assert (
        world.value("SELECT count(*) FROM campaign_messages WHERE status = 'pending' AND lease_token IS NOT NULL") == 0
    )
    assert world.wrong_counters() == []
    assert processes_of(tmp_path / "home") == []


def test_a_dagster_home_that_is_no_folder_is_refused(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("DAGSTER_HOME", "not/absolute")
    result = call("process")
    assert result.exit_code == 2
    assert sentence(result) == "DAGSTER_HOME is not/absolute, but must be the absolute path of a folder that exists."


def test_a_setting_that_is_no_number_is_refused_before_anything_starts(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("CAMPAIGN_LEASE_SECONDS", "two minutes")
    result = call("process")
    assert result.exit_code == 2
    assert sentence(result) == "CAMPAIGN_LEASE_SECONDS is 'two minutes', but must be a number of at least 1."


# -------------------------------------------------------------------------------------------------------------- sandbox


def test_sandbox_serves_until_interrupted_and_says_how_to_point_at_it(tmp_path: Path) -> None:
    serving = start(tmp_path, "sandbox", "--fault", "send:not_on_whatsapp:rate=0.5")
    assert serving.stdout is not None
    told = [serving.stdout.readline() for _ in range(5)]  # not with communicate(), which misses buffered lines
    url = told[0].split("at ")[1].split(";")[0]
    with urllib.request.urlopen(f"{url}/_sandbox/behaviour", timeout=10) as response:  # noqa: S310
        behaviour = orjson.loads(response.read())
    serving.send_signal(signal.SIGINT)
    serving.communicate(timeout=30)
    assert behaviour["faults"] == [{"kind": "send", "name": "not_on_whatsapp", "rate": 0.5}]
    assert f"OPENROUTER_BASE_URL={url}" in "".join(told)
    assert serving.returncode == 0


def test_an_unknown_fault_is_reported_in_one_sentence() -> None:
    result = call("sandbox", "--fault", "send:explode")
    assert result.exit_code == 2
    assert "'explode' is not a fault of send" in sentence(result)


def test_sandbox_lists_its_faults() -> None:
    result = call("sandbox", "--list-faults")
    assert result.exit_code == 0
    assert "not_on_whatsapp" in result.output


# ------------------------------------------------------------------------------------------------------------------ dev


JOBS = "{repositoriesOrError{...on RepositoryConnection{nodes{jobs{name}}}}}"


def ask(port: int, query: str) -> dict[str, object]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/graphql",
        orjson.dumps({"query": query}),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
        answer: dict[str, object] = orjson.loads(response.read())["data"]
    return answer


def test_dev_refuses_a_port_that_is_taken(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = call("dev", "--port", str(taken.getsockname()[1]))
    assert result.exit_code == 2
    assert sentence(result).endswith("Choose another with --port.")


def test_dev_does_not_send_the_users_own_messages_to_a_sandbox(
    world: World, environment: pytest.MonkeyPatch, free_port: int
) -> None:
    world.due_message(world.run())
    result = call("dev", "--sandbox", "--port", str(free_port))
    assert result.exit_code == 2
    assert sentence(result).startswith("The database holds 1 waiting messages of your own workspaces, and a sandbox")


def test_a_second_dev_on_one_home_is_refused_and_names_the_first(
    environment: pytest.MonkeyPatch, tmp_path: Path, free_port: int
) -> None:
    with one_dev_alone(tmp_path / "home", 3456):
        result = call("dev", "--port", str(free_port))
    assert result.exit_code == 2
    assert f"(process {os.getpid()}, http://127.0.0.1:3456). Stop it" in sentence(result)


def test_what_a_shell_starts_in_the_background_can_still_be_interrupted() -> None:
    child = "import signal as s; print(*(s.getsignal(n) is s.SIG_IGN for n in (s.SIGINT, s.SIGHUP)))"
    code = (
        "import subprocess, sys\nfrom campaign_pipeline.launch import interrupted_by_signals\n"
        f"with interrupted_by_signals(): subprocess.run([sys.executable, '-c', {child!r}])"
    )
    in_background = f"trap '' INT HUP; exec {sys.executable} -c \"$0\""  # as `nohup … &` in a script
    done = subprocess.run(["sh", "-c", in_background, code], capture_output=True, check=True, text=True)
    assert done.stdout == "False True\n"


def test_dev_serves_the_job_with_something_to_send_and_leaves_nothing_running(free_port: int) -> None:
    home = Path(tempfile.mkdtemp(prefix="campaign-dev-"))
    port = free_port
    dev = start(home, "dev", "--port", str(port))
    launch = """mutation { launchRun(executionParams: {mode: "default", runConfigData: "{}", selector: {
        jobName: "process_campaign_queue", repositoryName: "__repository__",
        repositoryLocationName: "campaign_pipeline"}}) { __typename ... on LaunchRunSuccess { run { runId } } } }"""

    def answers() -> bool:
        assert dev.poll() is None, dev.communicate()[0]
        try:
            return "process_campaign_queue" in str(
                ask(port, "{repositoriesOrError{...on RepositoryConnection{nodes{jobs{name}}}}}")
            )
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    def code_server() -> int | None:
        return next((pid for pid, command in numbered_processes_of(home) if " api grpc " in command), None)

    def ended() -> bool:
        runs = 'runsOrError(filter: {pipelineName: "%s"}){... on Runs{results{status}}}'
        sending = str(ask(port, "{" + runs % "process_campaign_queue" + "}"))
        trickle = str(ask(port, "{" + runs % "trickle_demo_campaign" + "}"))
        return "SUCCESS" in sending and "STARTED" not in sending and "SUCCESS" in trickle

    try:
        wait_until(answers, 90)
        killed = code_server()
        assert killed is not None
        os.kill(killed, signal.SIGKILL)  # as the kernel does for lack of memory
        wait_until(lambda: code_server() not in {None, killed} and "LaunchRunSuccess" in str(ask(port, launch)), 90)
        # The schedules launch the others automatically, at the next full minute.
        wait_until(ended, 180)
    finally:
        dev.send_signal(signal.SIGINT)
        said, _ = dev.communicate(timeout=120)
    assert dev.returncode == 0, said
    assert "60 sample messages are due now" in " ".join(said.split())
    assert "Dagster's code server ended; it is started again" in said
    assert said.count("Dagster's code server is up again.") == 1
    # Dagster itself reports a sensor's tick that Ctrl-C interrupts, after that.
    assert "Traceback" not in said.partition("Stopping Dagster")[0]
    wait_until(lambda: processes_of(home) == [])
    looked = run(home, "db", "url")
    assert looked.returncode == 0
    server = EmbeddedServer(home / "postgres")
    server.start()
    with World(server.url()) as world:
        assert world.value("SELECT count(*) FROM campaign_messages WHERE status = 'sent'") > 40
        # Beside what became due last, nothing waits and nothing is held.
        held = "SELECT count(*) FROM campaign_messages WHERE status IN ('queued', 'generating', 'sending')"
        assert world.value(held) == 0
        assert world.value("SELECT count(*) FROM campaign_messages") > 60
    server.leave()
    shutil.rmtree(home)


def test_dev_ends_when_the_daemon_has_no_heartbeat_though_its_process_lives() -> None:
    beats = [b"null", b"1000.5", b"1030.5", b"1030.5", b"1030.5"]  # of one part; another reported long ago

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = self.rfile.read(int(self.headers["Content-Length"]))
            beat = beats.pop(0) if b"lastHeartbeatTime" in asked else b"null"
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"data": [{"lastHeartbeatTime": 7.5}, {"lastHeartbeatTime": %s}]}' % beat)

    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        watch = Watch(Ui(server.server_port), Path("dagster-dev.log"))
        with patch("campaign_pipeline.cli.dev.time", Mock()) as clock:
            for seconds in (0.0, 100.0, 200.0, 310.0):  # a new heartbeat ends a silence, however long the looks took
                clock.monotonic.return_value = seconds
                watch.look()
            clock.monotonic.return_value = 325.0
            with pytest.raises(Trouble, match=r"daemon has not worked for 120 seconds\. Nothing is launched"):
                watch.look()
        server.shutdown()


def test_dev_keeps_messages_of_a_named_database_out_of_a_sandbox(world: World, free_port: int) -> None:
    world.due_message(world.run())
    home = Path(tempfile.mkdtemp(prefix="campaign-dev-"))
    dev = start(home, "dev", "--port", str(free_port), CAMPAIGN_DATABASE_URL=world.url)
    assert dev.stdout is not None
    first = dev.stdout.readline()
    os.kill(dev.pid, signal.SIGINT)
    dev.communicate(timeout=120)
    assert "OPENROUTER_API_KEY is not set, so only workspaces with their own key send" in first
    assert dev.returncode in {0, 130}
    assert world.value("SELECT count(*) FROM campaign_messages") == 1
    shutil.rmtree(home)


def test_dev_and_its_schedule_send_a_queue_behind_a_pooler_in_transaction_mode(
    world: World, pooled_url: str, tmp_path: Path, free_port: int
) -> None:
    home = tmp_path / "home"
    world.due_messages(world.run(), 3)
    world.do("UPDATE workspaces SET settings = jsonb_build_object('made_by', %s::text)", DEMO)
    dev = start(
        home,
        *("dev", "--sandbox", "--port", str(free_port)),
        CAMPAIGN_DATABASE_URL=pooled_url,
        CAMPAIGN_SCHEDULES="on",
    )

    def is_sent() -> bool:
        assert dev.poll() is None, dev.communicate()[0]
        return bool(world.value("SELECT count(*) = 3 FROM campaign_messages WHERE status = 'sent'"))

    try:
        wait_until(is_sent, 200)
        wait_until(lambda: world.value("SELECT status FROM campaign_runs") == "completed", 60)
    except TimeoutError:
        pytest.fail((home / "logs" / "dagster-dev.log").read_text(errors="replace")[-8000:])
    finally:
        dev.send_signal(signal.SIGINT)
        dev.communicate(timeout=90)
    assert world.wrong_counters() == []
