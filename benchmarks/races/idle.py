"""An idle queue.

Dagster's daemon and code server run with the schedule on and nothing to send. This code is compared with the code
before batches looked ahead: the growth of Dagster's storage per hour, and the code server's own processor time per
minute. A code location with as many jobs and sensors, which do nothing, shows how much of that time is Dagster's own.
All three run at the same time, each on its own databases.
"""

import contextlib
import time

from benchmarks.contestants import BEFORE, contestants, empty_location, stored, working_by_itself
from benchmarks.report import Result
from benchmarks.world import Bench, Options, progress
from campaign_pipeline.sandbox import Behaviour

MINUTES = 4  # in which each sensor ticks equally often: the longest interval of one is two minutes
SETTLE = 60.0
"""Seconds after the first tick of all. By then each sensor and the schedule has ended its first tick, at which Dagster
stores it, and the first question of `next_batch_when_due`, which takes 25 s, is answered."""
SHARE_OF_STORAGE, SECONDS_A_MINUTE = 1 / 3, 0.1


def race(bench: Bench, options: Options, result: Result) -> None:
    """Observe all at the same time: none does anything that could disturb another."""
    minutes = options.pick(MINUTES, 1)
    with contestants(bench, Behaviour()) as both, empty_location(bench) as empty, contextlib.ExitStack() as stack:
        used = {each.name: stack.enter_context(working_by_itself(each)) for each in (empty, *both)}
        progress("all daemons tick")
        time.sleep(SETTLE)
        before = {each.name: stored(each) for each in both}
        seconds = {name: -each.seconds() for name, each in used.items()}
        progress(f"observing for {minutes} minutes")
        time.sleep(60 * minutes)
        grown = {each.name: stored(each) - before[each.name] for each in both}
        seconds = {name: (seconds[name] + each.seconds()) / minutes for name, each in used.items()}
    for name, growth in grown.items():
        result.tell(f"rows an hour, {name}", growth.rows * 60 / minutes, digits=0)
        result.tell(f"bytes an hour, {name}", growth.size * 60 / minutes, digits=0)
        result.tell(f"processor time a minute, {name}", seconds[name], "s")
    own = seconds[empty.name]
    result.tell("processor time a minute, a code location that does nothing", own, "s")
    result.judge("processor time a minute, this, beyond that", seconds["this"] - own, "s", most=SECONDS_A_MINUTE)
    result.judge("rows an hour, this / before", grown["this"].rows / grown[BEFORE].rows, "×", most=SHARE_OF_STORAGE)
    result.judge("bytes an hour, this / before", grown["this"].size / grown[BEFORE].size, "×", most=SHARE_OF_STORAGE)
    result.notes.append(
        f"All were observed for the same {minutes} minutes, from {SETTLE:.0f} s after their first ticks on: what the "
        "start stores once is no part of an hour. Sizes are those of rows, without indexes."
    )
