"""A random campaign of deaths on several hosts: workers, cables, runs, the broker, the database's port and the store.

    python -m campaign_pipeline_tests.distributed.campaign --messages 2000 --deaths 20 --seed 7  (make distributed-test)

The seed fixes victims and moments (as far as a machine repeats itself). At the end all that died is started again,
and runs that are left alone bring the queue to rest; then every invariant is recounted from the provider's record.
Exit code 1 if one does not hold.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from campaign_pipeline.sandbox import Behaviour, Kind, Latency
from campaign_pipeline_tests.adapters.restarts import own_database, own_server
from campaign_pipeline_tests.crash.harness import STEP, many_messages, open_messages, violations
from campaign_pipeline_tests.distributed.hosts import kill
from campaign_pipeline_tests.distributed.site import Site, ended, site, wait_until
from campaign_pipeline_tests.factories import World

WORKERS = ("one", "two", "three")
LATENCIES = {Kind.GENERATION: Latency(0.05, 0.5), Kind.SEND: Latency(0.15, 0.5)}
DEATHS = ("worker", "worker", "shutdown", "cable", "cable", "run", "broker", "database", "store")
ROUNDS = 12


class Campaign:
    """Keeps workers and a run at work, and strikes."""

    def __init__(self, site: Site, seed: int) -> None:
        self._site, self._chance = site, random.Random(seed)
        self._workers = {name: site.start_worker(name) for name in WORKERS}
        self._run = self._start_run()

    def _start_run(self) -> "subprocess.Popen[bytes]":
        return self._site.start_run(shard_size=self._chance.choice([10, 25, 60]), concurrency=4, batch_size=400)

    def pause(self) -> float:
        """Seconds until the next death."""
        return self._chance.uniform(2, 8)

    def restore(self) -> None:
        """Start again what is dead."""
        for name, worker in self._workers.items():
            if worker.poll() is not None:
                self._workers[name] = self._site.start_worker(name)
        if self._run.poll() is not None:
            self._run = self._start_run()

    def strike(self) -> str:
        """Let one thing die; returns which."""
        what, host = self._chance.choice(DEATHS), self._chance.choice(WORKERS)
        match what:
            case "worker":
                kill(self._workers[host])
            case "shutdown":
                self._workers[host].send_signal(signal.SIGTERM)
            case "cable":
                self._site.hosts.cut_off(host)
                time.sleep(self._chance.uniform(1, 20))  # not a test's wait: how long it is cut off is what is drawn
                self._site.hosts.heal(host)
            case "run":
                kill(self._run)
            case "broker":
                kill(self._site.broker)
                self._site.start_broker()
            case "database":
                kill(self._site.relay)
                time.sleep(self._chance.uniform(0, 5))
                self._site.start_relay()
            case "store":
                self._site.restart_store()
        return f"{what} ({host})" if what in {"worker", "shutdown", "cable"} else what

    def come_to_rest(self, world: World) -> None:
        """Let clean runs work until nothing can change, moving the clock past leases and retries between them."""
        moved = STEP
        for _ in range(ROUNDS):
            self.restore()
            ended(self._run, 600)
            if not open_messages(world):
                return
            moved += STEP
            world.move_clock(moved)


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Let hosts and services die at random, recover, and recount.")
    parser.add_argument("--messages", type=int, default=2000)
    parser.add_argument("--deaths", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.randrange(10_000))
    options = parser.parse_args()
    console = Console()
    console.print(f"{options.messages} messages, {options.deaths} deaths, seed {options.seed} (it repeats them)")
    with (
        own_server(Path(tempfile.mkdtemp(prefix="campaign_distributed_"))) as server,
        own_database(server) as url,
        World(url) as world,
        site(server, world, Behaviour(seed=options.seed, latencies=LATENCIES), WORKERS) as made,
    ):
        many_messages(world, options.messages, runs=8, inboxes=4)
        campaign = Campaign(made, options.seed)
        wait_until(lambda: made.sent() > 0, "something is sent")
        for _ in range(options.deaths):
            time.sleep(campaign.pause())
            campaign.restore()
            console.print(f"{made.sent():>6} sent; dies: {campaign.strike()}")
        campaign.come_to_rest(world)
        wrong = violations(world, made.record())
        if open_messages(world):
            wrong.append(f"{open_messages(world)} messages did not come to rest")
        for line in wrong[:50]:
            console.print(f"[red]{line}")
        console.print(f"{made.sent()} sent, {len(wrong)} violations")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
