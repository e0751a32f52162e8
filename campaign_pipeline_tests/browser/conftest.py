"""Dagster as `campaign-pipeline dev` starts it, and a real browser: one of each for all these tests."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from campaign_pipeline.adapters.embedded import EmbeddedServer
from campaign_pipeline.sandbox import Behaviour, SandboxProcess
from campaign_pipeline_tests.commands import SCRIPT, processes_of, variables, wait_until
from campaign_pipeline_tests.conftest import TEMPLATE
from campaign_pipeline_tests.databases import Databases
from campaign_pipeline_tests.factories import World

CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))

KEPT = Path(__file__).parents[2] / "artifacts" / "browser"
"""What a test run leaves behind to be looked at: screenshots, and what Dagster said."""

PATIENCE = 150_000
"""Milliseconds that the browser waits for what it was told to expect: a run starts slowly on a busy machine."""

SHOWN_DAYS = 14
"""For how many days there are partitions, so that each is wide enough to be seen."""

_FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]


@dataclass(frozen=True)
class Stack:
    """A queue, providers, and Dagster at work on them."""

    world: World
    sandbox: SandboxProcess
    port: int

    @property
    def url(self) -> str:
        """Of the UI."""
        return f"http://127.0.0.1:{self.port}"

    def ask(self, query: str) -> dict[str, Any]:
        """Ask Dagster what the page does not show, such as the process of a step. Raises URLError while it starts."""
        request = urllib.request.Request(  # noqa: S310
            f"{self.url}/graphql", orjson.dumps({"query": query}), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
            answer: dict[str, Any] = orjson.loads(response.read())["data"]
        return answer

    def serves(self) -> bool:
        """Whether the UI can show the jobs."""
        try:
            return "process_campaign_queue" in str(
                self.ask("{repositoriesOrError{...on RepositoryConnection{nodes{jobs{name}}}}}")
            )
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    def status_of_latest_run(self) -> str:
        """In Dagster's words."""
        runs = self.ask("{runsOrError(limit: 1) {... on Runs {results {status}}}}")["runsOrError"]["results"]
        return str(runs[0]["status"])

    def repeats(self, run_id: str) -> list[str]:
        """The statuses of the runs that repeat a run."""
        query = "{runsOrError(limit: 5) {... on Runs {results {status rootRunId runId}}}}"
        runs = self.ask(query)["runsOrError"]["results"]
        return [run["status"] for run in runs if run["rootRunId"] == run_id and run["runId"] != run_id]

    def accepted(self, instance: str | None = None) -> list[str]:
        """Return the numbers for which providers accepted a message, one per accepted request."""
        wanted = {} if instance is None else {"instance": instance}
        return [entry["number"] for entry in self.sandbox.record(kind="send", accepted=True, **wanted)]


@pytest.fixture(scope="module")
def stack(server: EmbeddedServer, databases: Databases) -> Iterator[Stack]:
    """Dagster's UI and daemon, started by our own command with their own database."""
    with databases.create(TEMPLATE) as name, World(server.url(name)) as world, SandboxProcess() as sandbox:
        yield from _dev(world, sandbox)


def _dev(world: World, sandbox: SandboxProcess) -> Iterator[Stack]:
    shutil.rmtree(KEPT, ignore_errors=True)
    KEPT.mkdir(parents=True)
    home = Path(tempfile.mkdtemp(prefix="campaign-browser-"))
    stack = Stack(world, sandbox, _free_port())
    settings = variables(
        home,
        CAMPAIGN_DATABASE_URL=world.url,
        CAMPAIGN_FIRST_DAY=str(date.today() - timedelta(days=SHOWN_DAYS)),  # noqa: DTZ011
        CAMPAIGN_LEASE_SECONDS="30",
        OPENROUTER_API_KEY="sk-or-test-key-of-no-account",
        OPENROUTER_BASE_URL=sandbox.openrouter_url,
        EVOLUTION_API_URL=sandbox.evolution_url,
    )
    with (KEPT / "dagster.log").open("wb") as log:
        dev = subprocess.Popen(
            [SCRIPT, "dev", "--port", str(stack.port)],
            env=settings,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def serves() -> bool:
        assert dev.poll() is None, (KEPT / "dagster.log").read_text()[-3000:]
        return stack.serves()

    try:
        wait_until(serves, 120)
        yield stack
    finally:
        dev.send_signal(signal.SIGINT)
        dev.wait(timeout=120)
    assert dev.returncode == 0
    wait_until(lambda: processes_of(home) == [])
    shutil.rmtree(home)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium, headless; nothing is downloaded."""
    if not CHROMIUM.exists():
        pytest.fail(
            f"There is no {CHROMIUM}: install Debian's package chromium (`apt-get install chromium`), or name a "
            "Chromium in the variable CHROMIUM.",
            pytrace=False,
        )
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=_FLAGS)
        yield chromium
        chromium.close()


def keep(page: Page, name: str) -> None:
    """Take a screenshot, after every tooltip and dialog has finished fading."""
    page.screenshot(path=KEPT / f"{name}.png", animations="disabled")


@pytest.fixture
def queue(stack: Stack) -> Stack:
    """The stack with an empty queue, well-behaved providers, and the clock on time."""
    stack.world.do("TRUNCATE campaign_configs, campaign_runs, campaign_messages CASCADE")
    stack.world.move_clock(timedelta(0))
    stack.sandbox.set_behaviour(Behaviour())
    stack.sandbox.reset()
    return stack


@pytest.fixture
def page(browser: Browser, queue: Stack, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page of a fresh browser that may only visit the UI; its last view is saved."""
    context = browser.new_context(
        base_url=queue.url, viewport={"width": 1440, "height": 900}, locale="en-US", timezone_id="America/Sao_Paulo"
    )
    context.set_default_timeout(PATIENCE)

    def only_here(route: Route) -> None:
        if route.request.url.startswith(queue.url):
            route.continue_()
        else:
            route.abort()

    context.route("**/*", only_here)
    page = context.new_page()
    yield page
    keep(page, request.node.originalname)
    context.close()
