"""A deployment on several hosts with all its parts: database, broker, store, providers, workers and runs."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import dagster as dg
import orjson
import psycopg

from campaign_pipeline.adapters.embedded import EmbeddedServer
from campaign_pipeline.sandbox import Behaviour
from campaign_pipeline.sandbox.server import Addresses
from campaign_pipeline_tests.crash.harness import variables
from campaign_pipeline_tests.distributed.forked_run import ForkedRun
from campaign_pipeline_tests.distributed.hosts import HUB, Hosts, Program, kill
from campaign_pipeline_tests.factories import World

CHECKOUT = Path(__file__).parents[2]
RABBITMQ = "/usr/sbin/rabbitmq-server"
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
REDIS = os.environ.get("REDIS", "/usr/bin/redis-server")
BUCKET = "outputs"
QUIET = {"telemetry": {"enabled": False}}
LEASE_SECONDS, VISIBILITY_SECONDS = 6, 8

_DAGSTER_YAML = """\
storage:
  custom:
    module: campaign_pipeline.defs.dagster_storage
    class: KeptConnections
    config:
      postgres_url: {{env: DAGSTER_STORAGE_URL}}
compute_logs:
  module: dagster._core.storage.noop_compute_log_manager
  class: NoOpComputeLogManager
telemetry: {{enabled: false}}
"""

_BUCKET = """
import sys, urllib.request
urllib.request.urlopen(urllib.request.Request(sys.argv[1], method="PUT"), timeout=30)
"""


class Provider(Addresses):
    """The sandbox on the hub."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port


class Site:
    """See the module. Created by `site`."""

    def __init__(self, hosts: Hosts, folder: Path, world: World, storage: str, socket: str, broker: str) -> None:
        self.hosts, self.folder, self.world = hosts, folder, world
        hub = hosts.addresses[HUB]
        self.provider = Provider(hub, 8090)
        self._kind = broker
        self._socket, self._storage = socket, f"postgresql+psycopg2://postgres@/{storage}?host={socket}"
        self._record = folder / "record.jsonl"
        self._runs: list[ForkedRun] = []
        self._base = variables(
            f"postgresql://postgres@{hub}:5432/{urlsplit(world.url).path.lstrip('/')}",
            self.provider,
            CAMPAIGN_EXECUTOR="celery",
            CAMPAIGN_CELERY_BROKER=f"redis://{hub}:6379/0" if broker == "redis" else f"amqp://guest:guest@{hub}:6379//",
            CAMPAIGN_CELERY_QUEUE="campaigns",
            CAMPAIGN_CELERY_VISIBILITY_SECONDS=str(VISIBILITY_SECONDS),
            CAMPAIGN_LEASE_SECONDS=str(LEASE_SECONDS),
            CAMPAIGN_OUTPUTS=f"s3://{BUCKET}/campaigns",
            CAMPAIGN_ONLY_HOSTS="10.77.0.0/24",
            DAGSTER_STORAGE_URL=f"postgresql+psycopg2://postgres@{hub}:5432/{storage}",
            AWS_ENDPOINT_URL=f"http://{hub}:5000",
            AWS_ACCESS_KEY_ID="no-account",
            AWS_SECRET_ACCESS_KEY="no-secret",
            AWS_DEFAULT_REGION="us-east-1",
            PYTHONPATH=str(CHECKOUT),
        )

    def environment(self, host: str) -> dict[str, str]:
        """Return the variables of a process on a host: the same everywhere, except the host's own folders."""
        home = self.folder / host
        dagster = home / "dagster"
        if not dagster.exists():
            dagster.mkdir(parents=True)
            (dagster / "dagster.yaml").write_text(_DAGSTER_YAML.format())
        return {**self._base, "CAMPAIGN_HOME": str(home), "DAGSTER_HOME": str(dagster)}

    # The hub's services ------------------------------------------------------------------------------------------

    def start_services(self, behaviour: Behaviour) -> None:
        """Start the services and wait until each is usable."""
        hub, python = self.hosts.addresses[HUB], sys.executable
        (self.folder / "behaviour.json").write_bytes(orjson.dumps(behaviour.to_dict()))
        self.start_relay()
        self.start_broker()
        self.start_store()
        self._on_hub(
            [
                *(python, "-m", "campaign_pipeline.sandbox", "--host", hub, "--port", str(self.provider.port)),
                *("--behaviour-file", str(self.folder / "behaviour.json"), "--record-file", str(self._record)),
                *("--ready-file", str(self.folder / "ready.json")),
            ],
            "provider",
        )
        wait_until((self.folder / "ready.json").exists, "the provider serves")
        self._on_each_port(5432, 6379, 5000)
        self._make_bucket()

    def _on_hub(self, command: list[str], name: str) -> "subprocess.Popen[bytes]":
        return self.hosts.start(HUB, command, self.environment(HUB), self.folder / f"{name}.log")

    def _on_each_port(self, *ports: int) -> None:
        """Wait until something listens on each port."""
        code = f"""
import socket, time
for port in {ports!r}:
    for _ in range(600):
        try:
            socket.create_connection(({self.hosts.addresses[HUB]!r}, port), 1).close()
            break
        except OSError:
            time.sleep(0.1)
    else:
        raise SystemExit(f"nothing listens on port {{port}}")
"""
        self.hosts.run(HUB, [sys.executable, "-S", "-c", code], self.environment(HUB), timeout=200)

    def start_relay(self) -> None:
        """Let other hosts reach the database."""
        relay = Path(__file__).with_name("relay.py")
        hub = self.hosts.addresses[HUB]
        self.relay = self._on_hub([sys.executable, str(relay), hub, "5432", f"{self._socket}/.s.PGSQL.5432"], "relay")

    def start_store(self) -> None:
        """Start the S3-compatible store, which stores its data in memory."""
        self.store = self._on_hub(
            [sys.executable, "-m", "moto.server", "-H", self.hosts.addresses[HUB], "-p", "5000"], "store"
        )

    def restart_store(self, away: float = 0) -> None:
        """Let the store lose its data, and be unavailable for some seconds."""
        kill(self.store)
        time.sleep(away)  # not a test's wait: how long it is away is what is drawn
        self.start_store()
        self._on_each_port(5000)
        self._make_bucket()

    def _make_bucket(self) -> None:
        url = f"{self._base['AWS_ENDPOINT_URL']}/{BUCKET}"
        self.hosts.run(HUB, [sys.executable, "-S", "-c", _BUCKET, url], self.environment(HUB))

    def start_broker(self) -> None:
        """Start Redis without persistence, or RabbitMQ with it."""
        if self._kind == "rabbitmq":
            self._start_rabbitmq()
            return
        if not Path(REDIS).exists():
            raise FileNotFoundError(f"{REDIS} is missing; install Debian's package redis-server, or set REDIS to it.")
        self.broker = self._on_hub(
            [REDIS, "--bind", self.hosts.addresses[HUB], "--port", "6379", "--save", "", "--protected-mode", "no"],
            "broker",
        )

    def _start_rabbitmq(self) -> None:
        """Its files, names and ports belong to this site; only the port is also Redis'."""
        if not Path(RABBITMQ).exists():
            raise FileNotFoundError(f"{RABBITMQ} is missing; install Debian's package rabbitmq-server.")
        home = self.folder / "rabbitmq"
        home.mkdir(exist_ok=True)
        (home / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = {self.hosts.addresses[HUB]}:6379\nloopback_users = none\n"
        )
        shutil.chown(home, "rabbitmq")
        self.folder.chmod(0o755)
        variables = {
            "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq"),
            "RABBITMQ_MNESIA_BASE": str(home),
            "RABBITMQ_LOG_BASE": str(home),
            "RABBITMQ_NODENAME": f"site{os.getpid()}@localhost",
            "RABBITMQ_PID_FILE": str(home / "pid"),
        }
        pairs = [f"{name}={value}" for name, value in variables.items()]
        self.broker = self._on_hub(["env", *pairs, RABBITMQ], "broker")

    # Workers and runs --------------------------------------------------------------------------------------------

    def start_worker(self, host: str, concurrency: int = 2, *, clock_off: int = 0) -> "subprocess.Popen[bytes]":
        """A Celery worker on a host, whose clock may be some seconds wrong."""
        variables = self.environment(host)
        if clock_off:
            if FAKETIME is None:
                raise FileNotFoundError("libfaketime.so.1 is missing; install Debian's package faketime.")
            variables |= {
                "LD_PRELOAD": str(FAKETIME),
                "FAKETIME": f"{clock_off:+d}s",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            }
        command = [sys.executable, "-m", "celery", "-A", "campaign_pipeline.defs.celery_worker", "worker"]
        command += ["--concurrency", str(concurrency), "-n", f"{host}@{host}", "--loglevel", "INFO"]
        return self.hosts.start(host, command, variables, self.folder / f"worker-{host}.log")

    def wait_for_workers(self, *hosts: str) -> None:
        """Wait until the workers of these hosts take steps."""
        for host in hosts:
            wait_until(partial(self._is_ready, host), f"the worker on {host} is ready")

    def _is_ready(self, host: str) -> bool:
        return "ready." in (self.folder / f"worker-{host}.log").read_text(errors="replace")

    def start_run(self, *, shard_size: int, concurrency: int, batch_size: int = 1000) -> ForkedRun:
        """One run of the queue, its process on the hub."""
        config: dict[str, Any] = {
            "fetch_message_batch": {"config": {"batch_size": batch_size}},
            "split_into_shards": {"config": {"shard_size": shard_size}},
            "send_shard": {"config": {"concurrency": concurrency}},
        }
        path = self.folder / f"run-{uuid4().hex[:8]}.json"
        path.write_bytes(orjson.dumps({"ops": config}))
        run = ForkedRun(self.hosts.space(HUB), path, self.environment(HUB), self.folder / "runs.log")
        self._runs.append(run)
        return run

    def tick(self) -> str:
        """Return what the schedule would do now."""
        # Not at the top: a forked run imports this module before it has its own settings.
        from campaign_pipeline.defs.resources import LanguageModelResource, QueueDatabase
        from campaign_pipeline.defs.schedules import process_campaign_queue_every_minute

        with (
            patch.dict(os.environ, variables(self.world.url, self.provider)),
            self._instance() as instance,
            dg.build_schedule_context(
                instance=instance,
                scheduled_execution_time=datetime.now(UTC),
                resources={"database": QueueDatabase(), "language_model": LanguageModelResource()},
            ) as context,
        ):
            data = process_campaign_queue_every_minute.evaluate_tick(context)
        return "launches a run" if data.run_requests else str(data.skip_message)

    def end_runs(self) -> None:
        """Kill what is left of the runs."""
        for run in self._runs:
            if run.poll() is None:
                kill(run)

    def runs(self) -> dict[str, str]:
        """Return run -> status, the newest first."""
        with self._instance() as instance:
            return {run.run_id: run.status.value for run in instance.get_runs()}

    def cancel_run(self) -> str:
        """Terminate the one running run, as far as Dagster goes; its launcher tells its process."""
        with self._instance() as instance:
            (run,) = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
            instance.report_run_canceling(run)
            return run.run_id

    def _instance(self) -> dg.DagsterInstance:
        """Dagster as its webserver sees it, in this process: its imports are done."""
        storage = {"postgres": {"postgres_url": self._storage}}
        return dg.DagsterInstance.local_temp(str(self.folder), overrides={"storage": storage, **QUIET})

    # What came of it ---------------------------------------------------------------------------------------------

    def record(self) -> list[dict[str, Any]]:
        """Return what the provider accepted, by its own record."""
        if not self._record.exists():
            return []
        return [orjson.loads(line) for line in self._record.read_bytes().splitlines() if line.endswith(b"}")]

    def sent(self) -> int:
        """How many parts the provider accepted so far."""
        return sum(entry["kind"] == "send" and entry["accepted"] for entry in self.record())

    def logs(self) -> str:
        """Return the ends of all logs, for a failed test."""
        return "\n".join(
            f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in sorted(self.folder.glob("*.log"))
        )


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 120) -> None:
    """Poll until a condition holds. Raises AssertionError with its name."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"after {seconds:g} s it does not hold that {what}"
        time.sleep(0.05)


def ended(process: Program, seconds: float = 150) -> int:
    """Return the exit code of a program that is expected to end."""
    return process.wait(timeout=seconds)


@contextmanager
def site(
    server: EmbeddedServer, world: World, behaviour: Behaviour, workers: tuple[str, ...], broker: str = "redis"
) -> Iterator[Site]:
    """A site with its services running and no worker yet. Raises CannotMakeHosts."""
    storage = f"dagster_{uuid4().hex[:12]}"
    folder = Path(tempfile.mkdtemp(prefix="campaign_hosts_"))
    socket = parse_qs(urlsplit(server.url("postgres")).query)["host"][0]
    _administer(server, f"CREATE DATABASE {storage}")
    try:
        with Hosts(workers) as hosts:
            made = Site(hosts, folder, world, storage, socket, broker)
            try:
                made.start_services(behaviour)
                yield made
            except (AssertionError, subprocess.TimeoutExpired) as error:
                raise AssertionError(f"{error}\n{made.logs()}") from None
            finally:
                made.end_runs()
    finally:
        _administer(server, f"DROP DATABASE IF EXISTS {storage} WITH (FORCE)")
        shutil.rmtree(folder, ignore_errors=True)


def _administer(server: EmbeddedServer, command: str) -> None:
    """Open a connection for one command: the server may have been restarted since the last."""
    with psycopg.connect(server.url("postgres"), autocommit=True) as admin:
        admin.execute(command)
