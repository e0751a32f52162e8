"""`campaign-pipeline dev`: Dagster's UI and daemon on this machine."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from campaign_pipeline.adapters.environment import BusinessDays, DeliverySettings, Environment
from campaign_pipeline.cli import output
from campaign_pipeline.cli.errors import Trouble, WrongSetting

if TYPE_CHECKING:
    from rich.console import Console

DEV_LEADS = 60
"""Sample messages that `dev` puts in an empty queue."""

_LOOK_EVERY = 0.2  # seconds between checks until the UI is up
_WATCH_EVERY = 5.0  # seconds between checks afterwards
_CODE_SERVER_PATIENCE = 90.0
"""Seconds for the code server to come back. `dagster dev` starts it again only when it is asked to."""

_RELOAD_PATIENCE = 60.0  # seconds for one start of the code server

_DAEMON_PATIENCE = 120.0  # seconds without a heartbeat; each part of the daemon has one every 30

_HEARTBEAT = re.compile(r'"lastHeartbeatTime": *([0-9.]+)')

_QUICK_TO_STOP = {"DAGSTER_GRPC_SHUTDOWN_GRACE_PERIOD": "2"}
"""Seconds that a stopping code server waits for the sensor `next_batch_when_due`, which may take 25."""

_STOP_PATIENCE = 60.0  # seconds for Dagster's processes and their runs to end


@click.command()
@click.option(
    "--port", type=click.IntRange(1, 65535), default=3000, show_default=True, help="Port of the UI on 127.0.0.1."
)
@click.option(
    "--sandbox/--no-sandbox",
    "sandboxed",
    default=None,
    help="Use sandbox providers or real ones. Default: sandbox if OPENROUTER_API_KEY is not set and the embedded "
    "database has no waiting messages of your own.",
)
def dev(port: int, sandboxed: bool | None) -> None:
    """Start Dagster's UI and daemon on this machine.

    They listen on 127.0.0.1 and use the same database as the other commands. Runs are stored in the database `dagster`
    of the embedded server. If that server holds only sample data and the providers are the sandbox, sample messages
    become due every minute and the schedule sends them. Otherwise nothing is sent until the schedule
    process_campaign_queue_every_minute is switched on in the UI, or by CAMPAIGN_SCHEDULES=on.
    """
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
    made_up = False  # whether all messages are samples, which may be sent without asking
    with interrupted_by_signals(), contextlib.ExitStack() as stack:
        stack.enter_context(one_dev_alone(environment.home, port))
        with console.status("Starting PostgreSQL"), uninterrupted():
            url = queue_url(environment)
        sandboxed = _wants_sandbox(console, environment, url, sandboxed)
        with console.status("Starting PostgreSQL"), uninterrupted():
            home = write_dagster_home(environment.home, dagster_storage_url(environment))
            with Notices(url) as notices:  # before Dagster loads the code location: its partitions begin on this day
                keep_first_day(environment.home, notices.first_day(BusinessDays.from_environment().timezone))
        variables = {**os.environ, "CAMPAIGN_HOME": str(environment.home)}
        if sandboxed:
            sandbox = stack.enter_context(SandboxProcess(sandbox_behaviour(seed=0)))
            # Sample messages never become too old.
            variables = {"CAMPAIGN_MAX_AGE_MINUTES": "100000"} | sandbox_variables(sandbox, variables)
            console.print(
                f"All providers are the sandbox at {sandbox.url}. No other host can be reached: "
                "no real message is sent.",
                soft_wrap=True,
            )
            made_up = _is_demo(environment, url)
            if made_up:
                _fill_empty_queue(console, url)
                variables = {"CAMPAIGN_SCHEDULES": "on"} | variables | {"CAMPAIGN_DEMO_TRICKLE": "on"}
        if variables.get("CAMPAIGN_SCHEDULES", "").strip().lower() != "on":
            console.print("Nothing is sent until you switch on the schedule process_campaign_queue_every_minute.")
        log_file = environment.home / "logs" / "dagster-dev.log"
        dagster = _Dagster(home, port, variables, log_file)
        try:
            with console.status("Starting Dagster"):
                dagster.wait_until_up()
            console.print(
                f"The UI is at http://127.0.0.1:{port}; Ctrl-C stops it. To launch the job: "
                f"http://127.0.0.1:{port}/locations/campaign_pipeline/jobs/process_campaign_queue/playground",
                soft_wrap=True,
            )
            console.print(f"Dagster's own log: {log_file}", soft_wrap=True)
            dagster.watch()
        except KeyboardInterrupt:
            click.echo("Stopping Dagster …", err=True)
        finally:
            dagster.stop()


@contextlib.contextmanager
def one_dev_alone(home: Path, port: int) -> Iterator[None]:
    """Lock the folder: two `dev` would run each schedule twice. Raises WrongSetting for the second."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (home / "dev.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            first = lock.read().strip() or "another process"
            sentence = f"Another `dev` is using {home} ({first}). Stop it, or set CAMPAIGN_HOME to another folder."
            raise WrongSetting(sentence) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()}, http://127.0.0.1:{port}")
        lock.flush()
        yield


def _refuse_taken_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            sentence = f"Port {port} on 127.0.0.1 cannot be used ({error.strerror}). Choose another with --port."
            raise WrongSetting(sentence) from None


def _wants_sandbox(console: Console, environment: Environment, url: str, sandboxed: bool | None) -> bool:
    """Decide whether to use the sandbox. It must never mark a person's own messages as sent. Raises SettingError."""
    from campaign_pipeline.demo.demo import refuse_foreign_messages
    from campaign_pipeline.demo.world import count_waiting

    if sandboxed:
        refuse_foreign_messages(url, "a sandbox")
    if sandboxed is not None or environment.openrouter_api_key is not None:
        return bool(sandboxed)
    own = environment.database_url is not None or count_waiting(url)[1] > 0
    if own:
        console.print(
            "OPENROUTER_API_KEY is not set, so only workspaces with their own key send. Set it, or use --sandbox."
        )
    return not own


def _is_demo(environment: Environment, url: str) -> bool:
    """Return whether the database holds only sample workspaces, so that the sandbox may send without asking."""
    from campaign_pipeline.demo.world import holds_only_demos

    return environment.database_url is None and holds_only_demos(url)


def _fill_empty_queue(console: Console, url: str) -> None:
    from campaign_pipeline.demo.leads import make_leads
    from campaign_pipeline.demo.world import count_waiting, make_world

    if count_waiting(url) == (0, 0):
        make_world(url, make_leads(DEV_LEADS, seed=1), "Dev")
        console.print(f"The queue was empty: {DEV_LEADS} sample messages are due now.", highlight=False)
    console.print(
        "More become due every minute, and the schedule process_campaign_queue_every_minute sends them.",
        highlight=False,
    )


class Ui:
    """Dagster's web server."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def answers(self) -> bool:
        """Return whether it answers."""
        return self._ask("/server_info") is not None

    def code_server_is_away(self) -> bool | None:
        """Return whether it reports that the code server is unreachable; None if it does not answer.

        Code that cannot be loaded does not count.
        """
        query = "{workspaceOrError{...on Workspace{locationEntries{locationOrLoadError{...on PythonError{message}}}}}}"
        told = self._ask("/graphql", {"query": query})
        return None if told is None else "UserCodeUnreachable" in told

    def restart_code_server(self) -> None:
        """Ask it to start the code server again, as its button Reload does; return when that is done or has failed."""
        reload = 'mutation{reloadRepositoryLocation(repositoryLocationName:"campaign_pipeline"){__typename}}'
        self._ask("/graphql", {"query": reload}, _RELOAD_PATIENCE)

    def last_heartbeat(self) -> float | None:
        """Return when a part of the daemon last reported, in epoch seconds; None if none has, or if it is not told."""
        told = self._ask("/graphql", {"query": "{instance{daemonHealth{allDaemonStatuses{lastHeartbeatTime}}}}"})
        times = [float(at) for at in _HEARTBEAT.findall(told or "")]
        return max(times, default=None)

    def _ask(self, path: str, body: dict[str, str] | None = None, patience: float = 5.0) -> str | None:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=patience) as answer:  # noqa: S310 (our own web server)
                return str(answer.read().decode(errors="replace"))
        except OSError:
            return None


class Watch:
    """Notices that Dagster's code server ended, or that its daemon stopped working, while `dagster dev` runs on."""

    def __init__(self, ui: Ui, log_file: Path) -> None:
        self._ui = ui
        self._log_file = log_file
        self._away_since: float | None = None
        self._heartbeat: float | None = None
        self._heard_at = 0.0  # when the last heartbeat was new

    def look(self) -> None:
        """Start the code server again if it ended, for example for lack of memory.

        Raises Trouble if it does not come back, or if the daemon does not work any more.
        """
        self._look_at_code_server()
        self._look_at_daemon()

    def _look_at_code_server(self) -> None:
        is_away = self._ui.code_server_is_away()
        if is_away is False and self._away_since is not None:
            self._away_since = None
            click.echo("Dagster's code server is up again.", err=True)
        if not is_away:
            return
        if self._away_since is None:
            self._away_since = time.monotonic()
            click.echo("Dagster's code server ended; it is started again. Runs go on meanwhile.", err=True)
        self._ui.restart_code_server()
        if time.monotonic() - self._away_since > _CODE_SERVER_PATIENCE:
            raise Trouble(
                f"Dagster's code server ended and did not come back within {_CODE_SERVER_PATIENCE:g} seconds. "
                f"Nothing can be launched: start `dev` again. Dagster's log: {self._log_file}"
            )

    def _look_at_daemon(self) -> None:
        """Under `dagster dev`, a daemon that got SIGTERM stops working, and then waits for `dagster dev` to end."""
        heartbeat, now = self._ui.last_heartbeat(), time.monotonic()
        if heartbeat is None or heartbeat != self._heartbeat:
            self._heartbeat, self._heard_at = heartbeat, now
        elif now - self._heard_at > _DAEMON_PATIENCE:
            raise Trouble(
                f"Dagster's daemon has not worked for {_DAEMON_PATIENCE:g} seconds. "
                f"Nothing is launched: start `dev` again. Dagster's log: {self._log_file}"
            )


class _Dagster:
    """`dagster dev` in its own session: Ctrl-C reaches only this process, and all child processes can be found."""

    def __init__(self, home: Path, port: int, variables: dict[str, str], log_file: Path) -> None:
        command = [sys.executable, "-W", "ignore", "-m", "dagster", "dev", "-w", str(home / "workspace.yaml")]
        command += ["-h", "127.0.0.1", "-p", str(port)]
        log_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with log_file.open("wb") as log:
            self._child = subprocess.Popen(  # noqa: S603 (our own arguments, without a shell)
                command,
                env={**_QUICK_TO_STOP, **variables, "DAGSTER_HOME": str(home), "DAGSTER_DISABLE_TELEMETRY": "1"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._log_file = log_file
        self._ui = Ui(port)

    def wait_until_up(self) -> None:
        """Return when the UI answers. Raises Trouble if Dagster ends first."""
        while not self._ui.answers():
            self._wait(_LOOK_EVERY)

    def watch(self) -> None:
        """Wait until interrupted. Raises Trouble if Dagster ends, or stops working."""
        watch = Watch(self._ui, self._log_file)
        while True:
            self._wait(_WATCH_EVERY)
            watch.look()

    def _wait(self, seconds: float) -> None:
        try:
            status = self._child.wait(seconds)
        except subprocess.TimeoutExpired:
            return
        raise Trouble(f"Dagster ended with status {status}. Its log: {self._log_file}")

    def stop(self) -> None:
        """End all its processes."""
        _end_group(self._child)


def _end_group(leader: subprocess.Popen[bytes]) -> None:
    """End a process and its children. Runs finish their requests in flight; a process that takes too long is killed."""
    try:
        _signal_group(leader, signal.SIGINT)
        leader.wait(_STOP_PATIENCE)
        deadline = time.monotonic() + _STOP_PATIENCE
        while _signal_group(leader, 0) and time.monotonic() < deadline:
            time.sleep(0.1)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        pass  # too slow, or interrupted a second time
    _signal_group(leader, signal.SIGKILL)
    leader.wait()


def _signal_group(leader: subprocess.Popen[bytes], number: int) -> bool:
    """Signal a process group; return whether it still had a process."""
    try:
        os.killpg(leader.pid, number)
    except ProcessLookupError:
        return False
    return True


COMMANDS = (dev,)
