"""A database 20 ms and 80 ms away.

200 messages, 20 in flight, with the old system's latencies and leases of 10 seconds. The send phase is measured with
the database on this machine, and with each of its answers delayed by 20 ms and by 80 ms.
"""

from contextlib import ExitStack

from benchmarks.ours import JobSpec, run_against
from benchmarks.report import Result
from benchmarks.wire import DistantProxy
from benchmarks.world import USUAL_LATENCIES, Bench, Options, fill, medians, read_drawn
from campaign_pipeline.sandbox import Behaviour, SandboxProcess

IN_FLIGHT = 20
DISTANCES = (0, 20, 80)  # milliseconds per round trip
ROUND_TRIPS = 4  # per message, one after another, while it holds a slot
LEASE_SECONDS = "10"

LEAST_SHARES = {20: 0.9}
"""By distance: the least rate, as a share of the rate with the database on this machine."""


def race(bench: Bench, options: Options, result: Result) -> None:
    """Run every distance once per seed."""
    count = options.pick(200, 20)
    figures = medians([_once(bench, count, seed) for seed in options.seeds])
    near = figures["phase 0"]
    result.tell("the limit", figures["limit"], "s")
    result.tell("send phase, database on this machine", near, "s")
    for away in DISTANCES[1:]:
        # Each message waits for ROUND_TRIPS answers, and count / IN_FLIGHT messages use each slot one after another.
        most = near + ROUND_TRIPS * away / 1000 * count / IN_FLIGHT + 2.0
        result.judge(f"send phase, database {away} ms away", figures[f"phase {away}"], "s", most=most)
        share = near / figures[f"phase {away}"]
        what = f"messages/s, database {away} ms away / on this machine"
        if away in LEAST_SHARES:
            result.judge(what, share, "×", least=LEAST_SHARES[away])
        else:
            result.tell(what, share, "×")
    result.notes.append(
        f"Every message was sent once, so no lease of {LEASE_SECONDS} s was lost. The target of a send phase is its "
        f"time with the database on this machine, plus {ROUND_TRIPS} round trips per message, plus 2 s."
    )


def _once(bench: Bench, count: int, seed: int) -> dict[str, float]:
    behaviour = Behaviour(seed=seed, latencies=USUAL_LATENCIES)
    figures: dict[str, float] = {}
    with SandboxProcess(behaviour) as sandbox:
        for away in DISTANCES:
            with bench.database("bench_distance") as url, ExitStack() as stack:
                fill(url, count)
                reached = url
                if away:
                    folder = bench.home / f"far_{away}"
                    reached = stack.enter_context(DistantProxy(url, folder, away / 1000)).url
                environment = bench.environment(reached, sandbox) | {"CAMPAIGN_LEASE_SECONDS": LEASE_SECONDS}
                spec = JobSpec(IN_FLIGHT, batch_size=count, shard_size=count, in_process=True)
                run = run_against(environment, spec, sandbox, count)
                figures[f"phase {away}"] = max(run.shard_seconds)
        figures["limit"] = read_drawn(sandbox, behaviour).limit(IN_FLIGHT)
    return figures
