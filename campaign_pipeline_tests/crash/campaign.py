"""A random campaign of kills and stops: many workers on one queue, mixed faults, and any process may die or sleep.

    python -m campaign_pipeline_tests.crash.campaign --messages 2000 --kills 40 --seed 7      (or: make crash-test)

The seed fixes faults, latencies, victims and moments (as far as a machine repeats itself). A third of the victims are
told to stop (SIGTERM), the others killed. Others again are suspended (SIGSTOP) for up to three leases and go on where
they were (SIGCONT); who sleeps at the end is woken when everything has come to rest, and must change nothing. At the
end, with the faults switched off, workers that are left alone bring the queue to rest, and every invariant is
recounted. Exit code 1 if one does not hold.
"""

import argparse
import math
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from campaign_pipeline.adapters.embedded import EmbeddedServer
from campaign_pipeline.sandbox import Behaviour, Fault, Kind, Latency, SandboxProcess
from campaign_pipeline_tests.adapters.restarts import crash, own_database, own_server, start
from campaign_pipeline_tests.crash.harness import (
    Worker,
    many_messages,
    recover,
    start_worker,
    violations,
)
from campaign_pipeline_tests.factories import World

FAULTS = (
    # 30 % of the sends go wrong, in every way that the provider knows; answers are late, cut, broken or lies
    ("send", "cut_after", 0.04),
    ("send", "late", 0.02),
    ("send", "hang_after", 0.02),
    ("send", "malformed_json", 0.03),
    ("send", "no_id", 0.02),
    ("send", "server_error_500", 0.03),
    ("send", "proxy_html_502", 0.03),
    ("send", "gateway_timeout_504", 0.02),
    ("send", "timeout_408", 0.02),
    ("send", "timed_out", 0.02),
    ("send", "cut_before", 0.02),
    ("send", "rate_overlimit", 0.001),
    ("send", "no_keys", 0.03),
    ("send", "not_on_whatsapp", 0.02),
    ("generation", "server_error_500", 0.03),
    ("generation", "error_in_200", 0.03),
    ("generation", "malformed_json", 0.02),
    ("generation", "choice_error_in_200", 0.02),
    ("generation", "rate_limit_429", 0.001),
    ("generation", "cut_after", 0.02),
    ("look_up", "server_error_500", 0.03),
    ("look_up", "malformed_json", 0.02),
)


@dataclass(frozen=True)
class Plan:
    """The actions of a random campaign."""

    messages: int
    kills: int
    workers: int
    seed: int
    looks_up: bool = True  # whether the provider supports look-ups
    stops: int = 20
    database_restarts: int = 2
    provider_kills: int = 2


def behaviour(plan: Plan) -> Behaviour:
    """A provider with 30 % mixed faults and uneven latencies."""
    faults = tuple(
        Fault(
            kind=Kind(kind),
            name=name,
            rate=rate,
            seconds={"late": 0.5, "hang_after": 5.0, "rate_limit_429": 0.2}.get(name),
        )
        for kind, name, rate in FAULTS
    )
    latencies = {Kind.GENERATION: Latency(0.05, 0.5), Kind.SEND: Latency(0.03, 0.5)}
    return Behaviour(seed=plan.seed, latencies=latencies, faults=faults, saves_messages=plan.looks_up)


def run(plan: Plan, server: EmbeddedServer, world: World, progress: Progress | None = None) -> list[str]:
    """Run the campaign; return the violations at its end, in words."""
    chance = random.Random(plan.seed)
    many_messages(world, plan.messages, runs=10, inboxes=5)
    events = [
        *["worker"] * plan.kills,
        *["stop"] * plan.stops,
        *["database"] * plan.database_restarts,
        *["provider"] * plan.provider_kills,
    ]
    chance.shuffle(events)
    asleep: list[Sleeper] = []
    bar = progress.add_task("kills", total=len(events)) if progress else None
    with SandboxProcess(behaviour(plan)) as sandbox:
        workers: list[Worker] = []
        try:
            for event in events:
                workers = _living(workers)
                while len(workers) < plan.workers:
                    batch, shard, concurrency = (
                        chance.choice(sizes) for sizes in ([50, 100, 200], [20, 50], [5, 10, 20])
                    )
                    workers.append(start_worker(world.url, sandbox, batch=batch, shard=shard, concurrency=concurrency))
                time.sleep(chance.uniform(0.3, 1.5))  # not a test's wait: the moment of death is what is drawn
                asleep = _wake(asleep, time.monotonic())
                if event == "stop":
                    asleep.append(_stop(chance, workers))
                else:
                    _strike(event, chance, workers, server, world, sandbox)
                if progress and bar is not None:
                    progress.advance(bar)
            sleepers = [sleeper.process for sleeper in asleep]
            for worker in workers:
                if worker not in sleepers:
                    worker.send_signal(signal.SIGKILL)
                    worker.wait()
            # The cause is gone, what it did is not: texts half sent, answers lost, leases of the dead.
            sandbox.set_behaviour(replace(behaviour(plan), faults=()))
            moved = recover(world, sandbox, workers=2)
            _wake(asleep, math.inf)
            for sleeper in sleepers:
                sleeper.wait(90)
            recover(world, sandbox, moved)
        finally:
            for worker in workers:
                worker.send_signal(signal.SIGKILL)
                worker.wait()
        record = sandbox.record()
    return violations(world, record)


@dataclass(frozen=True)
class Sleeper:
    """A worker that is suspended."""

    process: Worker
    until: float  # by this machine's clock


def _stop(chance: random.Random, workers: list[Worker]) -> Sleeper:
    """Suspend a worker, for between a moment and three leases."""
    victim = chance.choice(workers)
    victim.send_signal(signal.SIGSTOP)
    return Sleeper(victim, time.monotonic() + chance.choice([0.2, 2.0, 6.0, 10.0, 15.0]))


def _wake(asleep: list[Sleeper], now: float) -> list[Sleeper]:
    """Resume those whose time is over; return the others."""
    for sleeper in asleep:
        if sleeper.until <= now:
            sleeper.process.send_signal(signal.SIGCONT)
    return [sleeper for sleeper in asleep if sleeper.until > now and sleeper.process.exit_code is None]


def _living(workers: list[Worker]) -> list[Worker]:
    """Return those that still run."""
    return [worker for worker in workers if worker.exit_code is None]


def _strike(
    event: str,
    chance: random.Random,
    workers: list[Worker],
    server: EmbeddedServer,
    world: World,
    sandbox: SandboxProcess,
) -> None:
    match event:
        case "worker":
            victim = chance.choice(workers)
            victim.send_signal(chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
        case "database":
            crash(server)
            start(server)
            world.reconnect()
        case "provider":
            sandbox.kill()
            sandbox.restart()


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Kill everything at random, recover, and recount.")
    parser.add_argument("--messages", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--stops", type=int, help="how often a worker is suspended; default: half the kills")
    parser.add_argument("--workers", type=int, default=8, help="at once on the one queue")
    parser.add_argument("--seed", type=int, default=random.randrange(10_000))
    parser.add_argument("--no-look-up", action="store_true", help="the provider cannot be asked for what it sent")
    options = parser.parse_args()
    stops = options.kills // 2 if options.stops is None else options.stops
    plan = Plan(options.messages, options.kills, options.workers, options.seed, not options.no_look_up, stops)
    console = Console()
    console.print(f"{plan}  (the seed repeats it)")
    with (
        # A folder of its own: two campaigns at once would restart each other's server and mix their functions.
        tempfile.TemporaryDirectory(prefix="campaign-crash-") as folder,
        own_server(Path(folder)) as server,
        own_database(server) as url,
        World(url) as world,
        Progress(console=console) as progress,
    ):
        wrong = run(plan, server, world, progress)
        came_to = (
            "SELECT status, error_class, error_code, count(*) FROM campaign_messages GROUP BY 1, 2, 3 ORDER BY 4 DESC"
        )
        for row in world.all(came_to):
            console.print("  ".join(str(value) for value in row.values() if value is not None))
    for line in wrong[:50]:
        console.print(f"[red]{line}")
    console.print(f"{len(wrong)} violations")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
