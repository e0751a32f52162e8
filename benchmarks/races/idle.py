"""An idle queue.

Dagster's daemon and code server run with the schedule on and nothing to send. This code is compared with the code
before batches looked ahead: the growth of Dagster's storage per hour, and the processor time per minute of the
code server. A code location whose sensors and schedule do nothing shows how much of that time is Dagster's own.
"""

import time
from dataclasses import dataclass

from benchmarks.contestants import BEFORE, Contestant, Stored, contestants, empty_location, stored, working_by_itself
from benchmarks.report import Result
from benchmarks.world import Bench, Options
from campaign_pipeline.sandbox import SandboxProcess

MINUTES = 5
SHARE_OF_STORAGE, SECONDS_A_MINUTE = 1 / 3, 0.1


@dataclass(frozen=True)
class Observed:
    """The cost of an idle queue."""

    grown: Stored
    seconds: float  # processor time of the code server, a minute


def race(bench: Bench, options: Options, result: Result) -> None:
    """Observe all, one after the other."""
    minutes = options.pick(MINUTES, 1)
    with SandboxProcess() as sandbox:
        with empty_location(bench, sandbox) as empty:
            own = _observe(empty, minutes).seconds
        with contestants(bench, sandbox) as both:
            found = {each.name: _observe(each, minutes) for each in both}
    for name, cost in found.items():
        result.tell(f"rows an hour, {name}", cost.grown.rows * 60 / minutes, digits=0)
        result.tell(f"bytes an hour, {name}", cost.grown.size * 60 / minutes, digits=0)
        result.tell(f"processor time a minute, {name}", cost.seconds, "s")
    result.tell("processor time a minute, a code location that does nothing", own, "s")
    beyond = found["this"].seconds - own
    result.judge("processor time a minute, this, beyond that", beyond, "s", most=SECONDS_A_MINUTE)
    share = found["this"].grown.size / found[BEFORE].grown.size
    result.judge("bytes an hour, this / before", share, "×", most=SHARE_OF_STORAGE)
    result.notes.append(f"Each was observed for {minutes} minutes. Sizes are those of rows, without indexes.")


def _observe(contestant: Contestant, minutes: int) -> Observed:
    with working_by_itself(contestant) as used:
        time.sleep(20)  # until every sensor has had its first tick
        before, seconds = stored(contestant), used.seconds()
        time.sleep(60 * minutes)
        return Observed(stored(contestant) - before, (used.seconds() - seconds) / minutes)
