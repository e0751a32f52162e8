"""Footprint: round trips, memory, events, imports.

The cost of a message and of a run: database round trips per message (counted on the wire), the memory of a shard's
process at 1,000 and at 10,000 messages, Dagster's events, and the modules that a step's process imports beyond those
that the fork server has preloaded.
"""

from collections.abc import Sequence

from benchmarks.imports import imported_by, watch_imports
from benchmarks.ours import JobRun, JobSpec, run_against
from benchmarks.report import Plot, Result
from benchmarks.wire import CountingProxy
from benchmarks.world import Bench, Options, fill
from campaign_pipeline.sandbox import Behaviour, Kind, Latency, SandboxProcess

MOST_TRIPS, MOST_MB, MOST_MORE_MB, MOST_EVENTS = 3.0, 350.0, 30.0, 200
OLD_WAYS_TRIPS = 10  # nine calls and one context call
# Fast, but spread, so that group commits are as large as in production.
LATENCIES = {Kind.GENERATION: Latency(0.07, 0.5), Kind.SEND: Latency(0.02, 0.5)}


def race(bench: Bench, options: Options, result: Result) -> None:
    """Measure each figure with its own runs."""
    with SandboxProcess(Behaviour(seed=options.seed, latencies=LATENCIES)) as sandbox:
        _round_trips(bench, options, result, sandbox)
        _events_and_imports(bench, options, result, sandbox)
    with SandboxProcess(Behaviour()) as sandbox:
        _memory(bench, options, result, sandbox)


def _round_trips(bench: Bench, options: Options, result: Result, sandbox: SandboxProcess) -> None:
    """Count round trips. With one message in flight each commit stands alone; with more, commits are grouped."""
    trips: dict[int, float] = {}
    idle = _trips_of(bench, sandbox, 0, 1)
    for in_flight in options.pick((1, 5, 20, 50), (5,)):
        count = options.pick(100 if in_flight == 1 else 1000, 5)
        trips[in_flight] = (_trips_of(bench, sandbox, count, in_flight) - idle) / count
    for in_flight, each in trips.items():
        result.judge(f"round trips a one-part message, {in_flight} in flight", each, most=MOST_TRIPS)
    result.tell("round trips of a batch that finds nothing due", idle, digits=0)
    result.plots.append(
        Plot(
            "Database round trips per message",
            "round trips",
            {f"this project, {n} in flight": each for n, each in trips.items()} | {"the old way": OLD_WAYS_TRIPS},
            ("target", MOST_TRIPS),
        )
    )
    result.notes.append(
        "Round trips are those of the whole job minus those of an empty batch. They include claim, contexts, leases, "
        "heartbeats, log, and the pool's check of a connection before use."
    )


def _trips_of(bench: Bench, sandbox: SandboxProcess, count: int, in_flight: int) -> float:
    with bench.database("bench_trips") as url, CountingProxy(url, bench.home / "proxy") as proxy:
        fill(url, count)
        spec = JobSpec(in_flight, in_process=True)
        run_against(bench.environment(proxy.url, sandbox), spec, sandbox, count)
        return proxy.round_trips


def _events_and_imports(bench: Bench, options: Options, result: Result, sandbox: SandboxProcess) -> None:
    count = options.pick(1000, 8)
    folder = watch_imports(bench.home / "imports")
    with bench.database("bench_events") as url:
        fill(url, count, inboxes=4)
        spec = JobSpec(20, shard_size=250)
        run = run_against(bench.environment(url, sandbox), spec, sandbox, count, preload_folder=folder)
    result.judge("Dagster events of a run of 1,000 messages, four shards", run.events, most=MOST_EVENTS, digits=0)
    modules = {step: imported_by(folder, pid) for step, pid in run.step_pids.items()}
    for step, found in _one_of_each(modules).items():
        result.tell(f"modules that {step} imports beyond the preload", len(found), digits=0)
        if found:
            result.notes.append(f"{step} imports {_some(found)}.")


def _one_of_each(modules: dict[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """Return one step per op; of mapped steps, the one that imports most."""
    found: dict[str, Sequence[str]] = {}
    for step, names in modules.items():
        op = step.partition("[")[0]
        if op not in found or len(names) > len(found[op]):
            found[op] = names
    return found


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:12])
    return shown + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _memory(bench: Bench, options: Options, result: Result, sandbox: SandboxProcess) -> None:
    small, large = options.pick((1000, 10_000), (10, 40))
    peaks = {count: _peak(bench, sandbox, count).shard_peak_mb() for count in (small, large)}
    result.judge("peak memory of a shard's process at 10,000 messages", peaks[large], "MB", most=MOST_MB, digits=0)
    result.judge("difference to 1,000 messages", peaks[large] - peaks[small], "MB", most=MOST_MORE_MB, digits=0)
    result.notes.append(
        "Memory is the peak resident set size, including pages that a step's process shares with its fork server."
    )


def _peak(bench: Bench, sandbox: SandboxProcess, count: int) -> JobRun:
    with bench.database("bench_memory") as url:
        fill(url, count)
        spec = JobSpec(50, batch_size=count, shard_size=count)
        return run_against(bench.environment(url, sandbox), spec, sandbox, count, watch_memory=True)
