"""20,000 messages, providers that answer at once.

20,000 messages to providers that answer at once. The figure is messages per second, end to end, on two cores that
also run the sandbox and PostgreSQL. This project runs as whole Dagster runs with all guarantees, start-up included; a
batch holds at most 10,000 messages, so two runs work at once, as they do in production. They send their shards in two
processes, in four, or in process: each run in its own process, one shard after another. The fastest way is judged.
The procrastinate workers and the Celery workers (Redis; pool `threads` and pool `gevent`) make the same two requests
and one status write per message with the same number in flight. The bare aiohttp loop makes the two requests and
nothing else. Rivals are timed from their first request to their last write, without their start-up.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from benchmarks.ours import JobSpec, run_at_once
from benchmarks.report import Plot, Result
from benchmarks.rivals.bare_loop import run_in_processes
from benchmarks.rivals.letters import Letters, read_letters
from benchmarks.rivals.queues import (
    Field,
    missing_celery,
    missing_procrastinate,
    race_celery,
    race_procrastinate,
)
from benchmarks.world import Bench, Options, count_statuses, fill, medians
from campaign_pipeline.sandbox import Behaviour, SandboxProcess

SHARDS = 4
IN_FLIGHT = 200  # of every contestant, in all its processes together
LARGEST_BATCH = 10_000
LEAST_RATE, LEAST_RATIO, MOST_TIMES_BARE = 1000.0, 5.0, 3.5
CELERY = ("Celery with Redis", "Celery with Redis, gevent")

QUEUES: Mapping[str, tuple[Callable[[Field, int], float], Callable[[], str | None]]] = {
    "procrastinate": (race_procrastinate, missing_procrastinate),
    CELERY[0]: (partial(race_celery, pool="threads"), missing_celery),
    CELERY[1]: (partial(race_celery, pool="gevent"), missing_celery),
}
"""The rival queues: how to run each, and which of its requirements is missing."""


def race(bench: Bench, options: Options, result: Result) -> None:
    """Run this project in its configurations, then every rival."""
    count = options.pick(20_000, 80)
    few = options.pick(4_000, 40)  # for the queues, which are slow; rates are per message
    rates = medians([_ours(bench, count) | _others(bench, count, few) for _ in options.seeds])
    best = max(rate for name, rate in rates.items() if name.startswith("this project"))
    result.judge("this project, 4 shards", best, "messages/s", least=LEAST_RATE, digits=0)
    for rival, (_, missing) in QUEUES.items():
        if why := missing():
            result.notes.append(f"{rival} was left out: {why}.")
            continue
        ratio = best / rates[f"{rival}: 1 worker"]
        result.judge(f"this project / a {rival} worker", ratio, "×", least=LEAST_RATIO)
        result.tell(f"this project / two {rival} workers", best / rates[f"{rival}: 2 workers"], "×")
    times = rates["bare aiohttp loop: 1 process"] / best
    result.judge("time / that of a bare aiohttp loop", times, "×", most=MOST_TIMES_BARE)
    result.tell(
        "time / that of bare aiohttp loops in two processes", rates["bare aiohttp loop: 2 processes"] / best, "×"
    )
    for name, rate in rates.items():
        result.tell(name, rate, "messages/s", digits=0)
    result.plots.append(Plot("Messages a second on two cores, providers answer at once", "messages/s", rates))
    result.notes.append(
        f"{IN_FLIGHT} requests are in flight in total, {IN_FLIGHT // 2} per process where there are two. This project "
        f"and the bare loops sent {count:,} messages, the queues {few:,}."
    )
    result.notes.append("This project is timed from the start of its first run to the end of its last one.")
    result.notes.append(
        "The queues keep no ledger, lease, counters or conversation: they make one status write and guarantee nothing "
        "after a crash. They are tuned: prompts and texts are prepared before the start, connections are kept open."
    )
    celery = [rates[f"{name}: 1 worker"] for name in CELERY if f"{name}: 1 worker" in rates]
    if celery:
        bare, five = rates["bare aiohttp loop: 1 process"], LEAST_RATIO * max(celery)
        result.notes.append(
            f"Five times the faster Celery worker would be {five:,.0f} messages/s with all guarantees: "
            f"{bare / five:.1f} × the time of the bare loop, which has none."
        )


def _ours(bench: Bench, count: int) -> dict[str, float]:
    rates: dict[str, float] = {}
    runs = -(-count // LARGEST_BATCH)
    with SandboxProcess(Behaviour()) as sandbox:
        for name, spec in _configurations(runs).items():
            with bench.database("bench_throughput") as url:
                fill(url, count, inboxes=SHARDS)
                seconds = run_at_once(bench.environment(url, sandbox), spec, sandbox, count, runs)
                if count_statuses(url) != {"sent": count}:
                    raise AssertionError("Not every message is sent.")
            rates[name] = count / seconds
    return rates


def _configurations(runs: int) -> dict[str, JobSpec]:
    """Return the job's settings for each way to send with the same number in flight."""
    job = JobSpec(IN_FLIGHT, batch_size=LARGEST_BATCH, shard_size=LARGEST_BATCH // 2, started_by="daemon")
    forked = {
        f"this project: {processes} processes": replace(
            job, concurrency=IN_FLIGHT // processes, max_concurrent=processes // runs
        )
        for processes in (2, 4)
    }
    return {**forked, "this project: in process": replace(job, concurrency=IN_FLIGHT // runs, in_process=True)}


def _others(bench: Bench, count: int, few: int) -> dict[str, float]:
    rates: dict[str, float] = {}
    with SandboxProcess(Behaviour()) as sandbox:
        with bench.database("bench_letters") as url:
            fill(url, count, inboxes=SHARDS)
            letters = read_letters(url, sandbox)
        file = bench.home / "letters.json"
        letters.save(file)
        for processes in (1, 2):
            sandbox.reset()
            words = f"{processes} process{'es' if processes > 1 else ''}"
            rates[f"bare aiohttp loop: {words}"] = count / run_in_processes(file, processes, IN_FLIGHT)
        part = Letters(letters.generation_url, letters.letters[:few])
        part.save(file)
        rates |= _queues(bench, Field("", part, file, sandbox, IN_FLIGHT))
    return rates


def _queues(bench: Bench, field: Field) -> dict[str, float]:
    rates: dict[str, float] = {}
    for name, (run, missing) in QUEUES.items():
        if missing():
            continue
        for workers in (1, 2):
            with bench.database("bench_queue") as url:
                seconds = run(replace(field, url=url, in_flight=IN_FLIGHT // workers), workers)
            rates[f"{name}: {workers} worker{'s' if workers > 1 else ''}"] = len(field.letters.letters) / seconds
    return rates
