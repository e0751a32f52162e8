"""A random campaign of failures on several hosts: workers, cables, clocks, runs, broker, database and store.

    python -m campaign_pipeline_tests.distributed.campaign --messages 2000 --deaths 20 --seed 7  (make distributed-test)

The seed fixes victims and moments (as far as a machine repeats itself). Messages come in as many portions as there are
deaths, and a death waits until messages are in somebody's hand: it says how many. At the end all that died is started
again, and runs that are left alone bring the queue to rest; then every invariant is recounted from the provider's
record. Exit code 1 if one does not hold.
"""

import argparse
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from campaign_pipeline.adapters.embedded import EmbeddedServer
from campaign_pipeline.sandbox import Behaviour, Kind, Latency
from campaign_pipeline_tests.adapters.restarts import crash, own_database, own_server, start
from campaign_pipeline_tests.crash.harness import STEP, many_messages, open_messages, violations
from campaign_pipeline_tests.distributed.forked_run import ForkedRun
from campaign_pipeline_tests.distributed.hosts import kill
from campaign_pipeline_tests.distributed.site import LEASE_SECONDS, Site, ended, site
from campaign_pipeline_tests.factories import World

WORKERS = ("one", "two", "three")
LATENCIES = {Kind.GENERATION: Latency(0.05, 0.5), Kind.SEND: Latency(0.15, 0.5)}
DEATHS = (
    *("worker", "process", "shutdown", "cable", "long cable", "clock"),
    *("dagster run", "broker", "port", "database", "store"),
)
ON_A_HOST = DEATHS[:6]
HOUR = 3600
ROUNDS = 12


class Campaign:
    """Keeps workers and a run going, and causes failures."""

    def __init__(self, site: Site, server: EmbeddedServer, world: World, seed: int) -> None:
        self._site, self._server, self._world, self._chance = site, server, world, random.Random(seed)
        self._workers = {name: site.start_worker(name) for name in WORKERS}
        self._run = self._start_run()
        self._left = list(DEATHS)

    def _start_run(self) -> ForkedRun:
        return self._site.start_run(shard_size=self._chance.choice([10, 25, 60]), concurrency=4, batch_size=400)

    def wait_for_work(self) -> int:
        """Restore what failed, wait until messages are in flight and some time has passed; return how many."""
        deadline = time.monotonic() + 180
        time.sleep(self._chance.uniform(0, 4))  # not a test's wait: the moment is what is drawn
        while not (held := self._held()):
            assert time.monotonic() < deadline, f"for 180 s nobody has taken a message\n{self._site.logs()}"
            self.restore()
            time.sleep(0.2)
        return held

    def _held(self) -> int:
        query = "SELECT count(*) FROM campaign_messages WHERE status IN ('generating', 'sending')"
        return int(self._world.value(query))

    def restore(self) -> None:
        """Restart what failed."""
        for name, worker in self._workers.items():
            if worker.poll() is not None:
                self._workers[name] = self._site.start_worker(name)
        if self._run.poll() is not None:
            self._run = self._start_run()

    def strike(self) -> str:
        """Let one component fail; return which. Each kind has its turn before one repeats."""
        what, host = self._left.pop(self._chance.randrange(len(self._left))), self._chance.choice(WORKERS)
        self._left = self._left or list(DEATHS)
        getattr(self, f"_{what.replace(' ', '_')}")(host)
        return f"{what} ({host})" if what in ON_A_HOST else what

    def _worker(self, host: str) -> None:
        kill(self._workers[host])

    def _process(self, host: str) -> None:
        """Return a process with a shard, whose worker survives."""
        query = "SELECT max(lease_owner) FROM campaign_messages WHERE status IN ('generating', 'sending')"
        pid = (self._world.value(query) or "").partition(":")[2]
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def _shutdown(self, host: str) -> None:
        self._workers[host].send_signal(signal.SIGTERM)

    def _cable(self, host: str) -> None:
        self._cut_off(host, self._chance.uniform(1, 20))

    def _long_cable(self, host: str) -> None:
        """Cut the network for five leases, like ten minutes with a lease of two."""
        self._cut_off(host, 5 * LEASE_SECONDS)

    def _cut_off(self, host: str, seconds: float) -> None:
        self._site.hosts.cut_off(host)
        time.sleep(seconds)  # not a test's wait: how long it is cut off is what is drawn
        self._site.hosts.heal(host)

    def _clock(self, host: str) -> None:
        """Let the host return with a clock that is an hour wrong."""
        kill(self._workers[host])
        self._workers[host] = self._site.start_worker(host, clock_off=self._chance.choice([-HOUR, HOUR]))

    def _dagster_run(self, _: str) -> None:
        kill(self._run)

    def _broker(self, _: str) -> None:
        kill(self._site.broker)
        self._site.start_broker()

    def _port(self, _: str) -> None:
        """Cut the connection to the database."""
        kill(self._site.relay)
        time.sleep(self._chance.uniform(0, 5))
        self._site.start_relay()

    def _database(self, _: str) -> None:
        """Let the database's host die and return."""
        crash(self._server)
        time.sleep(self._chance.uniform(0, 10))
        start(self._server)
        self._world.reconnect()

    def _store(self, _: str) -> None:
        self._site.restart_store(self._chance.uniform(0, 10))

    def come_to_rest(self) -> None:
        """Run clean runs until nothing can change, moving the clock past leases and retries between them."""
        moved = STEP
        for _ in range(ROUNDS):
            self.restore()
            # A run that failed may have finished the last messages, and left their campaign runs to be closed.
            if ended(self._run, 600) == 0 and not open_messages(self._world):
                return
            moved += STEP
            self._world.move_clock(moved)


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Let hosts and services die at random, recover, and recount.")
    parser.add_argument("--messages", type=int, default=2000)
    parser.add_argument("--deaths", type=int, default=20)
    parser.add_argument("--broker", choices=("redis", "rabbitmq"), default="redis")
    parser.add_argument("--seed", type=int, default=random.randrange(10_000))
    options = parser.parse_args()
    console = Console()
    console.print(
        f"{options.messages} messages, {options.deaths} deaths, {options.broker}, seed {options.seed} (it repeats them)"
    )
    with (
        tempfile.TemporaryDirectory(prefix="campaign_distributed_") as home,
        own_server(Path(home)) as server,
        own_database(server) as url,
        World(url) as world,
        site(server, world, Behaviour(seed=options.seed, latencies=LATENCIES), WORKERS, options.broker) as made,
    ):
        portion = -(-options.messages // options.deaths)
        many_messages(world, portion, runs=4, inboxes=4)
        campaign = Campaign(made, server, world, options.seed)
        for _ in range(options.deaths):
            held, sent = campaign.wait_for_work(), made.sent()
            console.print(f"{sent:>6} sent, {held:>3} in hand; dies: {campaign.strike()}")
            campaign.restore()
            many_messages(world, portion, runs=4, inboxes=4)
        campaign.come_to_rest()
        wrong = violations(world, made.record())
        if open_messages(world):
            wrong.append(f"{open_messages(world)} messages did not come to rest")
        for line in wrong[:50]:
            console.print(f"[red]{line}")
        console.print(f"{made.sent()} sent, {len(wrong)} violations")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
