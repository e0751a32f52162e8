"""`campaign-pipeline dev`: Dagster's UI and daemon on this machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from campaign_pipeline.adapters.environment import BusinessDays, DeliverySettings, Environment
from campaign_pipeline.cli import output
from campaign_pipeline.cli.errors import Trouble, WrongSetting

if TYPE_CHECKING:
    from rich.console import Console

DEV_LEADS = 60
"""Messages that `dev` puts in an empty queue, so that a first launch from the UI has something to send."""

_STOP_PATIENCE = 60.0  # seconds for Dagster's processes, and the runs that they started, to end


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), default=3000, show_default=True, help="Of the UI, on 127.0.0.1.")
@click.option(
    "--sandbox/--no-sandbox",
    "sandboxed",
    default=None,
    help="Whether providers are a sandbox. By default they are if OPENROUTER_API_KEY is not set and the embedded "
    "database holds no waiting messages of your own.",
)
def dev(port: int, sandboxed: bool | None) -> None:
    """Start Dagster's UI and daemon on this machine.

    They listen on 127.0.0.1 and work on the same database as the other commands. Runs are kept in the database
    `dagster` of the embedded server. Where that server holds nothing but demos and the providers are the sandbox,
    made-up messages become due every minute and are sent by the schedule. Elsewhere nothing is sent until the
    schedule process_campaign_queue_every_minute is switched on in the UI, or by CAMPAIGN_SCHEDULES=on.
    """
    import contextlib

    from campaign_pipeline.adapters.dagster_home import write_dagster_home
    from campaign_pipeline.adapters.database import dagster_storage_url, queue_url
    from campaign_pipeline.adapters.first_day import keep_first_day
    from campaign_pipeline.adapters.notices import Notices
    from campaign_pipeline.demo.demo import sandbox_behaviour, sandbox_variables
    from campaign_pipeline.launch import interrupted_by_signals, uninterrupted
    from campaign_pipeline.sandbox import SandboxProcess

    console = output.console()
    DeliverySettings.from_environment()
    environment = Environment.read()
    _refuse_taken_port(port)
    with interrupted_by_signals(), contextlib.ExitStack() as stack:
        with console.status("Starting PostgreSQL"), uninterrupted():
            url = queue_url(environment)
            home = write_dagster_home(environment.home, dagster_storage_url(environment))
            with Notices(url) as notices:  # before Dagster loads the code location: its partitions begin on this day
                keep_first_day(environment.home, notices.first_day(BusinessDays.from_environment().timezone))
        variables = {**os.environ, "CAMPAIGN_HOME": str(environment.home)}
        if _wants_sandbox(console, environment, url, sandboxed):
            sandbox = stack.enter_context(SandboxProcess(sandbox_behaviour(seed=0)))
            # Made-up messages wait until somebody launches the job, be it tomorrow.
            variables = {"CAMPAIGN_MAX_AGE_MINUTES": "100000"} | sandbox_variables(sandbox, variables)
            console.print(
                f"Every provider is a sandbox at {sandbox.url}, and nothing else can be reached: "
                "no real message is sent.",
                soft_wrap=True,
            )
            if _is_demo(environment, url):
                _fill_empty_queue(console, url)
                variables = {"CAMPAIGN_SCHEDULES": "on"} | variables | {"CAMPAIGN_DEMO_TRICKLE": "on"}
        if variables.get("CAMPAIGN_SCHEDULES", "").strip().lower() != "on":
            console.print(
                "Nothing is sent by itself: for that, switch on the schedule process_campaign_queue_every_minute."
            )
        console.print(
            f"The UI will be at http://127.0.0.1:{port} in a few seconds; Ctrl-C stops it. To launch the job: "
            f"http://127.0.0.1:{port}/locations/campaign_pipeline/jobs/process_campaign_queue/playground",
            highlight=False,
            soft_wrap=True,
        )
        _run_dagster_dev(home, port, variables)


def _refuse_taken_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            sentence = f"Port {port} on 127.0.0.1 cannot be used ({error.strerror}); choose another with --port."
            raise WrongSetting(sentence) from None


def _wants_sandbox(console: Console, environment: Environment, url: str, sandboxed: bool | None) -> bool:
    """Never by itself where somebody's own messages would be marked as sent without having been."""
    from campaign_pipeline.demo.world import count_waiting

    if sandboxed is not None or environment.openrouter_api_key is not None:
        return bool(sandboxed)
    own = environment.database_url is not None or count_waiting(url)[1] > 0
    if own:
        console.print(
            "OPENROUTER_API_KEY is not set, so only workspaces with a key of their own send; set it, or try with "
            "--sandbox."
        )
    return not own


def _is_demo(environment: Environment, url: str) -> bool:
    """Whether nobody but the demo ever made a workspace: a sandbox may send there by itself."""
    from campaign_pipeline.demo.world import holds_only_demos

    return environment.database_url is None and holds_only_demos(url)


def _fill_empty_queue(console: Console, url: str) -> None:
    from campaign_pipeline.demo.leads import make_leads
    from campaign_pipeline.demo.world import count_waiting, make_world

    if count_waiting(url) == (0, 0):
        make_world(url, make_leads(DEV_LEADS, seed=1), "Dev")
        console.print(f"The queue was empty: {DEV_LEADS} made-up messages are due now.", highlight=False)
    console.print(
        "More become due every minute, and the schedule process_campaign_queue_every_minute sends them.",
        highlight=False,
    )


def _run_dagster_dev(home: Path, port: int, variables: dict[str, str]) -> None:
    """Run `dagster dev` until interrupted; leave none of its processes behind."""
    command = [sys.executable, "-W", "ignore", "-m", "dagster", "dev", "-w", str(home / "workspace.yaml")]
    command += ["-h", "127.0.0.1", "-p", str(port)]
    child = subprocess.Popen(  # noqa: S603 (our own arguments, without a shell)
        command,
        env={**variables, "DAGSTER_HOME": str(home), "DAGSTER_DISABLE_TELEMETRY": "1"},
        # A session of its own: Ctrl-C reaches us alone, and all that it started can be found again.
        start_new_session=True,
    )
    try:
        status = child.wait()
    except KeyboardInterrupt:
        click.echo("Stopping Dagster …", err=True)
    else:
        raise Trouble(f"Dagster ended by itself with status {status}; what it said is above.")
    finally:
        _end_group(child)


def _end_group(leader: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started: runs finish what is in flight; what does not end in time is killed."""
    try:
        _signal_group(leader, signal.SIGINT)
        leader.wait(_STOP_PATIENCE)
        deadline = time.monotonic() + _STOP_PATIENCE
        while _signal_group(leader, 0) and time.monotonic() < deadline:
            time.sleep(0.1)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        pass  # no more patience: ours, or theirs who interrupt a second time
    _signal_group(leader, signal.SIGKILL)
    leader.wait()


def _signal_group(leader: subprocess.Popen[bytes], number: int) -> bool:
    """Signal all that is left of a process's group; returns whether anything was."""
    try:
        os.killpg(leader.pid, number)
    except ProcessLookupError:
        return False
    return True


COMMANDS = (dev,)
