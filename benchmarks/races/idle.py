"""An idle queue.

Dagster's daemon and code server run with the schedule on and nothing to send. This code is compared with the code
before batches looked ahead: the growth of Dagster's storage per hour, and the processor time per minute of the
code server.
"""

import time

from benchmarks.contestants import BEFORE, contestants, stored, working_by_itself
from benchmarks.report import Result
from benchmarks.world import Bench, Options
from campaign_pipeline.sandbox import SandboxProcess

MINUTES = 5
SHARE_OF_STORAGE, SECONDS_A_MINUTE = 1 / 3, 0.1


def race(bench: Bench, options: Options, result: Result) -> None:
    """Observe both, one after the other."""
    minutes = options.pick(MINUTES, 1)
    rows: dict[str, float] = {}
    with SandboxProcess() as sandbox, contestants(bench, sandbox) as both:
        for contestant in both:
            with working_by_itself(contestant) as used:
                time.sleep(20)  # until every sensor has had its first tick
                before, seconds = stored(contestant), used.seconds()
                time.sleep(60 * minutes)
                grown = stored(contestant) - before
                seconds = (used.seconds() - seconds) / minutes
            rows[contestant.name] = grown.size
            result.tell(f"rows an hour, {contestant.name}", grown.rows * 60 / minutes, digits=0)
            result.tell(f"bytes an hour, {contestant.name}", grown.size * 60 / minutes, digits=0)
            if contestant.name == BEFORE:
                result.tell(f"processor time a minute, {contestant.name}", seconds, "s")
            else:
                result.judge("processor time a minute, this", seconds, "s", most=SECONDS_A_MINUTE)
    result.judge("bytes an hour, this / before", rows["this"] / rows[BEFORE], "×", most=SHARE_OF_STORAGE)
    result.notes.append(f"Each was observed for {minutes} minutes. Sizes are those of rows, without indexes.")
