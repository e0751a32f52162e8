"""20,000 messages, providers that answer at once.

20,000 messages to providers that answer at once: how many messages a second two cores carry end to end, the sandbox
and PostgreSQL on the same cores. This project with all its guarantees and as whole Dagster runs, start included;
against a procrastinate worker and a Celery worker with Redis that do the same two requests and one status write a
message with the same number in flight, and against a bare aiohttp loop that does the two requests and nothing else.
The rivals are timed from their first request to their last write, their start is not counted.
"""

from collections.abc import Callable
from dataclasses import replace

from benchmarks.ours import JobSpec, run_against
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
IN_FLIGHT = 100  # of every contestant, in all its processes together
LARGEST_BATCH = 10_000
LEAST_RATE, LEAST_RATIO, MOST_TIMES_BARE = 400.0, 5.0, 5.0


def race(bench: Bench, options: Options, result: Result) -> None:
    """Run ours with two and with four processes, then everybody else."""
    count = options.pick(20_000, 80)
    few = options.pick(4_000, 40)  # of the slow ones; rates are per message
    rates = medians([_ours(bench, count) | _others(bench, count, few) for _ in options.seeds])
    best = max(rates["this project: 2 processes"], rates["this project: 4 processes"])
    result.judge("this project, 4 shards", best, "messages/s", least=LEAST_RATE, digits=0)
    for rival, missing in (("procrastinate", missing_procrastinate()), ("Celery with Redis", missing_celery())):
        if missing:
            result.notes.append(f"{rival} was left out: {missing}.")
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
        f"{IN_FLIGHT} in flight in all, {IN_FLIGHT // 2} a process where there are two. This project and the bare "
        f"loops sent {count:,} messages, the queues {few:,}."
    )
    if count > LARGEST_BATCH:
        result.notes.append(
            f"A batch takes at most {LARGEST_BATCH:,}, so these are runs one after the other in one process: from the "
            "start of the first to the end of the last."
        )
    result.notes.append(
        "The queues keep no ledger, no lease, no counters and no conversation: one status write, and no promise "
        "about a crash. They are made as fast as they can be made: texts and prompts lie ready, connections are kept."
    )
    if (celery := rates.get("Celery with Redis: 1 worker")) is not None:
        bare = rates["bare aiohttp loop: 1 process"]
        result.notes.append(
            f"Five times Celery would be {5 * celery:,.0f} messages/s: with everything that is promised, in "
            f"{bare / (5 * celery):.1f} × the time of the bare loop, which promises nothing."
        )


def _ours(bench: Bench, count: int) -> dict[str, float]:
    rates: dict[str, float] = {}
    runs = -(-count // LARGEST_BATCH)
    with SandboxProcess(Behaviour()) as sandbox:
        for processes in (2, 4):
            with bench.database("bench_throughput") as url:
                fill(url, count, inboxes=SHARDS)
                spec = JobSpec(
                    IN_FLIGHT // processes,
                    batch_size=LARGEST_BATCH,
                    shard_size=5000,
                    max_concurrent=processes,
                    runs=runs,
                )
                run = run_against(bench.environment(url, sandbox), spec, sandbox, count)
                if count_statuses(url) != {"sent": count}:
                    raise AssertionError("Not every message is sent.")
            rates[f"this project: {processes} processes"] = count / run.seconds
    return rates


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
    races: dict[str, Callable[[Field, int], float]] = {}
    if not missing_procrastinate():
        races["procrastinate"] = race_procrastinate
    if not missing_celery():
        races["Celery with Redis"] = race_celery
    rates: dict[str, float] = {}
    for name, run in races.items():
        for workers in (1, 2):
            with bench.database("bench_queue") as url:
                seconds = run(replace(field, url=url, in_flight=IN_FLIGHT // workers), workers)
            rates[f"{name}: {workers} worker{'s' if workers > 1 else ''}"] = len(field.letters.letters) / seconds
    return rates
