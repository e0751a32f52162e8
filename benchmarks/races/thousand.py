"""1,000 messages, 100 in flight.

1,000 messages, 100 in flight, with the old system's latencies. This project's whole Dagster run (multiprocess, from
start to success) is compared with the limit, once with one shard and once with four shards on four inboxes. The bare
asyncio loop makes the same requests and stores nothing.
"""

import asyncio

from benchmarks.ours import JobSpec, run_against
from benchmarks.report import Plot, Result
from benchmarks.rivals.bare_loop import run_bare_loop
from benchmarks.rivals.letters import read_letters
from benchmarks.world import USUAL_LATENCIES, Bench, Options, fill, medians, read_drawn
from campaign_pipeline.sandbox import Behaviour, SandboxProcess

IN_FLIGHT = 100
SHARE, EXTRA = 1.25, 5.0  # times the limit, and seconds more


def race(bench: Bench, options: Options, result: Result) -> None:
    """Run every contestant once per seed."""
    count = options.pick(1000, 40)
    in_flight = options.pick(IN_FLIGHT, 20)
    figures = medians([_once(bench, count, in_flight, seed) for seed in options.seeds])
    limit = figures["limit"]
    most = SHARE * limit + EXTRA
    result.tell("the limit", limit, "s")
    for shards, words in ((1, "one shard"), (4, "four shards")):
        result.judge(f"whole run, {words}", figures[f"run {shards}"], "s", most=most)
        result.tell(f"send phase, {words} / limit", figures[f"phase {shards}"] / limit, "×", digits=3)
    result.tell("bare asyncio loop / limit", figures["bare loop"] / limit, "×", digits=3)
    result.plots.append(
        Plot(
            f"{count:,} messages, {in_flight} in flight",
            "seconds",
            {
                "this project: whole run, one shard": figures["run 1"],
                "this project: whole run, four shards": figures["run 4"],
                "this project: send phase, one shard": figures["phase 1"],
                "bare asyncio loop": figures["bare loop"],
            },
            ("the limit", limit),
        )
    )
    result.notes.append("The target is 1.25 × the limit plus 5 s.")


def _once(bench: Bench, count: int, in_flight: int, seed: int) -> dict[str, float]:
    behaviour = Behaviour(seed=seed, latencies=USUAL_LATENCIES)
    figures: dict[str, float] = {}
    with SandboxProcess(behaviour) as sandbox:
        for shards in (4, 1):
            with bench.database("bench_thousand") as url:
                fill(url, count, inboxes=shards)
                letters = read_letters(url, sandbox)
                spec = JobSpec(in_flight // shards, batch_size=count, shard_size=count, max_concurrent=shards)
                run = run_against(bench.environment(url, sandbox), spec, sandbox, count)
            figures[f"run {shards}"] = run.seconds
            figures[f"phase {shards}"] = max(run.shard_seconds)
        figures["limit"] = read_drawn(sandbox, behaviour).limit(in_flight)
        sandbox.reset()
        figures["bare loop"] = asyncio.run(run_bare_loop(letters, in_flight))
    return figures
