"""A small batch: 4 messages in 3 inboxes.

One run of the job with 4 due messages in 3 inboxes, as the schedule launches it. This code is compared with the code
before batches looked ahead: processor time of all processes, Dagster's events, and the growth of its storage. Each runs
twice and the second run is measured, since Dagster stores the job in the first. A day of small batches is 1,440 runs.
"""

import json
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.contestants import BEFORE, Contestant, ProcessTime, contestants, stored
from benchmarks.report import Plot, Result
from benchmarks.world import Bench, Options, count_statuses, fill, medians
from campaign_pipeline.defs.schedules import SMALL_BATCH
from campaign_pipeline.sandbox import Behaviour

MESSAGES, INBOXES = 4, 3
RUNS_A_DAY = 1440
SHARE_OF_TIME, MOST_EVENTS, SHARE_OF_STORAGE = 0.4, 25, 1 / 3


def race(bench: Bench, options: Options, result: Result) -> None:
    """Run both once per seed."""
    figures = medians([_once(bench) for _ in options.seeds])
    for name in (BEFORE, "this"):
        result.tell(f"processor time, {name}", figures[f"time {name}"], "s")
        result.tell(f"a day of small batches, {name}", figures[f"size {name}"] * RUNS_A_DAY / 2**20, "MB")
    time, size, rows = (figures[f"{what} this"] / figures[f"{what} {BEFORE}"] for what in ("time", "size", "rows"))
    result.judge("processor time, this / before", time, "×", most=SHARE_OF_TIME)
    result.tell(f"Dagster events, {BEFORE}", figures[f"events {BEFORE}"], digits=0)
    result.judge("Dagster events, this", figures["events this"], digits=0, most=MOST_EVENTS)
    result.judge("bytes of a day, this / before", size, "×", most=SHARE_OF_STORAGE)
    result.judge("rows of a day, this / before", rows, "×", most=SHARE_OF_STORAGE)
    seconds = {f"{name} ({words})": figures[f"time {name}"] for name, words in ((BEFORE, "before"), ("this", "now"))}
    result.plots.append(Plot("one run with 4 messages: processor time", "seconds", seconds))


def _once(bench: Bench) -> dict[str, float]:
    figures: dict[str, float] = {}
    with contestants(bench, Behaviour()) as both:
        for contestant in both:
            config = {} if contestant.name == BEFORE else SMALL_BATCH
            fill(contestant.url, 2 * MESSAGES, inboxes=INBOXES)
            with psycopg.connect(contestant.url) as connection:
                connection.execute(
                    "UPDATE public.campaign_messages SET scheduled_at = now() + interval '1 hour' "
                    "WHERE id IN (SELECT id FROM public.campaign_messages ORDER BY scheduled_at LIMIT %s)",
                    [MESSAGES],
                )
            _run(contestant, config)
            with psycopg.connect(contestant.url) as connection:
                connection.execute("UPDATE public.campaign_messages SET scheduled_at = now() WHERE status = 'pending'")
            before = stored(contestant)
            figures[f"time {contestant.name}"] = _run(contestant, config)
            grown = stored(contestant) - before
            figures |= {f"events {contestant.name}": grown.events, f"size {contestant.name}": grown.size}
            figures[f"rows {contestant.name}"] = grown.rows
            if count_statuses(contestant.url) != {"sent": 2 * MESSAGES}:
                raise AssertionError(f"{contestant.name} did not send all: {count_statuses(contestant.url)}")
    return figures


def _run(contestant: Contestant, config: dict[str, Any]) -> float:
    """Run the job once; return the processor time of all its processes."""
    home = Path(contestant.variables["DAGSTER_HOME"])
    log, config_file = home / "run.log", home / "run_config.yaml"
    config_file.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    arguments = ["job", "execute", "-m", "campaign_pipeline.definitions", "-j", "process_campaign_queue"]
    child = contestant.start("dagster", *arguments, "-c", str(config_file), log=log)
    with ProcessTime(child.pid) as used:
        if child.wait(180):
            raise AssertionError(f"{contestant.name} failed: {log.read_text(errors='replace')[-2000:]}")
    return used.seconds()
