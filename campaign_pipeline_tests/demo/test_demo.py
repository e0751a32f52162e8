import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from campaign_pipeline.adapters import schema
from campaign_pipeline.adapters.embedded import EmbeddedServer
from campaign_pipeline.demo.demo import sandbox_variables
from campaign_pipeline.sandbox import SandboxProcess
from campaign_pipeline_tests.commands import processes_of, run, start, wait_until
from campaign_pipeline_tests.factories import World


@contextmanager
def server_of(home: Path) -> Iterator[EmbeddedServer]:
    """The embedded server of a home, as another user of it."""
    server = EmbeddedServer(home / "postgres")
    server.start()
    try:
        yield server
    finally:
        server.leave()


def run_status(server: EmbeddedServer, run_id: str) -> str:
    with psycopg.connect(server.url("dagster")) as connection:
        row = connection.execute("SELECT status FROM runs WHERE run_id = %s", [run_id]).fetchone()
    assert row is not None
    return str(row[0])


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="campaign-demo-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def first_demo(home: Path) -> "subprocess.CompletedProcess[str]":
    return run(
        home,
        "demo",
        "--count",
        "40",
        CAMPAIGN_DATABASE_URL="postgresql://nobody@127.0.0.1:1/own",
        OPENROUTER_API_KEY="own",
    )


@pytest.fixture
def leads_file(tmp_path: Path) -> Path:
    file = tmp_path / "leads.csv"
    file.write_text(
        "Nome;Telefone;Empresa;Cor\nAna;(11) 98765-4321;Padaria;azul\nBia;;Ótica;verde\nCaio;11 97654-3210;;\n"
    )
    return file


def test_it_sends_on_the_embedded_database_though_another_is_named(
    first_demo: "subprocess.CompletedProcess[str]", home: Path
) -> None:
    assert first_demo.returncode == 0, first_demo.stdout + first_demo.stderr
    assert "CAMPAIGN_DATABASE_URL is ignored" in first_demo.stdout
    with server_of(home) as server, World(server.url()) as world:
        assert world.value("SELECT count(*) FROM campaign_messages WHERE status IN ('sent', 'failed', 'skipped')") == 40
        assert world.value("SELECT count(*) FROM campaign_messages WHERE status = 'sent'") >= 30
        assert world.value("SELECT count(*) FROM campaign_runs WHERE status = 'completed'") == 3
        assert world.wrong_counters() == []


def test_it_shows_a_table_three_messages_and_how_to_see_the_run(first_demo: "subprocess.CompletedProcess[str]") -> None:
    for wanted in (
        "Failed, by reason",
        "no phone",
        "Tokens",
        "US$",
        "Sent per second",
        "Slowest stage",
        "dev, then open",
    ):
        assert wanted in first_demo.stdout
    for campaign in ("Primeiro contato", "Reativação de orçamentos", "Diagnóstico gratuito"):
        assert f"{campaign} → " in first_demo.stdout


def test_the_run_that_it_names_is_in_dagsters_storage(
    first_demo: "subprocess.CompletedProcess[str]", home: Path
) -> None:
    found = re.search(r"http://127\.0\.0\.1:3000/runs/([0-9a-f-]{36})", first_demo.stdout)
    assert found is not None
    with server_of(home) as server:
        assert run_status(server, found[1]) == "SUCCESS"


def test_it_works_again_with_leads_from_a_file_and_names_the_rows_left_out(
    first_demo: "subprocess.CompletedProcess[str]", home: Path, leads_file: Path
) -> None:
    assert first_demo.returncode == 0
    second = run(home, "demo", "--leads", str(leads_file))
    assert second.returncode == 0, second.stdout + second.stderr
    assert "leads.csv, line 3 (Telefone)" in second.stdout
    with server_of(home) as server, World(server.url()) as world:
        newest = "(SELECT id FROM workspaces ORDER BY created_at DESC LIMIT 1)"
        assert world.value(f"SELECT count(*) FROM leads WHERE workspace_id = {newest}") == 2
        assert world.value("SELECT count(*) FROM custom_fields WHERE name = 'Cor'") == 1


def test_nothing_of_it_is_left_running(first_demo: "subprocess.CompletedProcess[str]", home: Path) -> None:
    assert first_demo.returncode == 0
    assert processes_of(home) == []


def test_an_interrupt_while_it_sends_ends_all_processes_and_leaves_every_message_sent_or_pending(home: Path) -> None:
    demo = start(home, "demo", "--count", "300")
    with server_of(home) as server, World(server.url()) as world:

        def sends() -> bool:
            if not world.value("SELECT to_regclass('campaign_messages') IS NOT NULL"):
                return False
            return bool(world.value("SELECT EXISTS (SELECT FROM campaign_messages WHERE status = 'sending')"))

        wait_until(sends)
        demo.send_signal(signal.SIGINT)
        said, _ = demo.communicate(timeout=90)
        assert demo.returncode == 130, said
        assert "Traceback" not in said
        states = {row["status"] for row in world.all("SELECT DISTINCT status FROM campaign_messages")}
        assert states <= {"pending", "sent", "failed", "skipped"}
        assert "pending" in states
        assert world.value("SELECT count(*) FROM campaign_message_parts WHERE status IN ('attempting', 'unknown')") == 0
        assert world.wrong_counters() == []
        with psycopg.connect(server.url("dagster")) as dagster:
            assert dagster.execute("SELECT count(*) FROM runs WHERE status = 'CANCELED'").fetchone() == (1,)
    wait_until(lambda: processes_of(home) == [])


def test_it_refuses_to_mark_messages_of_somebody_else_as_sent(tmp_path: Path) -> None:
    home = Path(tempfile.mkdtemp(prefix="campaign-own-"))
    with server_of(home) as server:
        schema.upgrade(server.url())
        with World(server.url()) as world:
            message = world.due_message(world.run())
            refused = run(home, "demo", "--count", "3")
            assert refused.returncode == 2
            assert "1 waiting messages of your own workspaces" in refused.stderr
            assert world.value("SELECT status FROM campaign_messages WHERE id = %s", message) == "pending"
            assert world.value("SELECT count(*) FROM campaign_messages") == 1
    shutil.rmtree(home)


def test_a_file_that_does_not_exist_is_one_sentence_and_starts_nothing(tmp_path: Path) -> None:
    refused = run(tmp_path / "home", "demo", "--leads", str(tmp_path / "none.csv"))
    assert refused.returncode == 2
    assert refused.stderr.strip().splitlines() == [
        f"Error: {tmp_path}/none.csv does not exist: give the path of a CSV or XLSX file."
    ]
    assert not (tmp_path / "home").exists()


def test_a_file_without_a_usable_row_names_each_and_ends(tmp_path: Path) -> None:
    file = tmp_path / "leads.csv"
    file.write_text("Nome,Telefone\nAna,\n")
    refused = run(tmp_path / "home", "demo", "--leads", str(file))
    assert refused.returncode == 2
    assert "line 2 (Telefone)" in refused.stdout
    assert "has no row that can be used" in refused.stderr


def test_no_variable_of_a_real_provider_reaches_the_job() -> None:
    settings = (Path(__file__).parents[2] / "docs" / "settings.md").read_text(encoding="utf-8")
    providers = "OPENROUTER|EVOLUTION|UAZAPI|CLOUD_API|SUPABASE|SMTP|CAMPAIGN_NOTIFY"
    names = set(re.findall(rf"`((?:{providers})_[A-Z_]+)`", settings))
    assert len(names) > 15, "docs/settings.md lists them"
    own = {
        **dict.fromkeys([*names, "CAMPAIGN_SMTP_URL", "CAMPAIGN_ALLOWED_HOSTS", "CAMPAIGN_ONLY_HOSTS"], "own"),
        "EVOLUTION_API_URL": "https://real",
        "CAMPAIGN_SANDBOX": "off",
        "PATH": "/bin",
    }
    with SandboxProcess() as sandbox:
        given = sandbox_variables(sandbox, own)
    assert given["PATH"] == "/bin"
    assert (given["CAMPAIGN_SANDBOX"], given["CAMPAIGN_ONLY_HOSTS"]) == ("on", f"127.0.0.1:{sandbox.port}")
    assert "own" not in given.values()
    assert {value.split("/")[2] for value in given.values() if "//" in value} == {f"127.0.0.1:{sandbox.port}"}
