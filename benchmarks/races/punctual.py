"""On time: messages planned one by one, and a burst.

Dagster's daemon runs with the schedule on and the old system's latencies. This code is compared with the code before
batches looked ahead, at the same time on separate databases, in three cases, one after the other: 100 messages inserted
as already due; 60 messages planned 5 s apart in 3 campaigns; and 100 messages planned for the same instant.
"""

import contextlib
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.contestants import BEFORE, Contestant, contestants, working_by_itself
from benchmarks.report import Plot, Result
from benchmarks.world import USUAL_LATENCIES, Bench, Options, fill, progress
from campaign_pipeline.sandbox import Behaviour

CAMPAIGNS, APART = 3, 5.0
IN_FLIGHT = 20  # of each inbox, by default
SOON, SHARE_SOON, MOST_LATE = 1.0, 0.95, 5.0  # seconds, share, seconds
BURST_EXTRA = 10.0
LEAD = 100.0  # seconds: a batch looks 90 s ahead, so each case's first batch begins after the case before has ended
SAY_EVERY = 30.0
PATIENCE = 150.0  # seconds after the last planned time; the old code sends at the next minute
UNPLANNED, PLANNED, AT_ONCE = "burst that nobody planned", "planned messages", "burst that was planned"


@dataclass(frozen=True)
class Case:
    """Some messages and their planned times."""

    name: str
    count: int
    first: float  # seconds from the start to the first planned time
    apart: float  # seconds between planned times

    @property
    def last(self) -> float:
        """Seconds from the start to the last planned time."""
        return self.first + self.apart * (self.count - 1)


def race(bench: Bench, options: Options, result: Result) -> None:
    """Plan all messages of both contestants, then wait until both have sent all."""
    burst = options.pick(100, 10)
    planned = Case(PLANNED, options.pick(60, 6), LEAD, APART)
    cases = (Case(UNPLANNED, burst, 0.0, 0.0), planned, Case(AT_ONCE, burst, planned.last + LEAD, 0.0))
    behaviour = Behaviour(seed=options.seed, latencies=USUAL_LATENCIES)
    with contestants(bench, behaviour) as both, contextlib.ExitStack() as stack:
        for contestant in both:
            fill(contestant.url, sum(case.count for case in cases), inboxes=CAMPAIGNS)
            _put_off(contestant)
        for contestant in both:
            stack.enter_context(working_by_itself(contestant))
        progress("both daemons tick")
        late = _lateness(both, cases)
    early = sum(each < 0 for name in late for case in (PLANNED, AT_ONCE) for each in late[name][case])
    share = {name: sum(each <= SOON for each in late[name][PLANNED]) / planned.count for name in late}
    for name in late:
        _tell(result, name, share[name], late[name])
    result.judge("planned messages that went out early", early, most=0)
    limit = sum(latency.mean for latency in USUAL_LATENCIES.values()) * burst / CAMPAIGNS / IN_FLIGHT
    result.tell("the limit of a burst", limit, "s")
    this = late["this"]
    result.judge(f"planned messages sent within {SOON:g} s, this", share["this"], least=SHARE_SOON)
    result.judge("p99 of their lateness, this", _p99(this[PLANNED]), "s", most=MOST_LATE)
    for case in (AT_ONCE, UNPLANNED):
        result.judge(f"{case}, until its last message, this", max(this[case]), "s", most=limit + BURST_EXTRA)
    words = {BEFORE: f"{BEFORE} (before)", "this": "this project"}
    result.plots.append(
        Plot("planned messages sent within a second", "share", {words[name]: share[name] for name in share})
    )


def _tell(result: Result, name: str, share: float, late: Mapping[str, Sequence[float]]) -> None:
    result.tell(f"sent within {SOON:g} s, {name}", share)
    result.tell(f"lateness, median, {name}", statistics.median(late[PLANNED]), "s")
    result.tell(f"lateness, p99, {name}", _p99(late[PLANNED]), "s")
    result.tell(f"{AT_ONCE}, {name}", max(late[AT_ONCE]), "s")
    result.tell(f"{UNPLANNED}, {name}", max(late[UNPLANNED]), "s")


def _p99(values: Sequence[float]) -> float:
    return sorted(values)[math.ceil(0.99 * len(values)) - 1]


def _put_off(contestant: Contestant) -> None:
    with psycopg.connect(contestant.url) as connection:
        connection.execute("UPDATE public.campaign_messages SET scheduled_at = now() + interval '1 day'")


def _lateness(both: Sequence[Contestant], cases: Sequence[Case]) -> dict[str, dict[str, list[float]]]:
    """Plan all cases, wait until both contestants have sent all, and return how many seconds late each message was."""
    with contextlib.ExitStack() as stack:
        databases = {
            each.name: stack.enter_context(psycopg.connect(each.url, autocommit=True, prepare_threshold=None))
            for each in both
        }
        chosen = {name: _plan(database, cases) for name, database in databases.items()}
        started = time.monotonic()
        end = max(case.last for case in cases) + PATIENCE
        late: dict[str, dict[str, list[float]]] = {}
        said = 0.0
        while (passed := time.monotonic() - started) < end:
            late = {
                name: {case.name: _sent(databases[name], ids) for case, ids in zip(cases, chosen[name], strict=True)}
                for name in databases
            }
            if all(len(late[name][case.name]) == case.count for name in late for case in cases):
                return late
            if passed - said >= SAY_EVERY:
                progress(f"{passed:.0f} of at most {end:.0f} s: {_so_far(late, cases)}")
                said = passed
            time.sleep(1)
    logs = [Path(each.variables["DAGSTER_HOME"], "daemon.log").read_text(errors="replace")[-1500:] for each in both]
    raise AssertionError(
        f"After {end:.0f} s not every message is sent: {_so_far(late, cases)}. "
        f"The daemons' last lines:\n{chr(10).join(logs)}"
    )


def _plan(database: "psycopg.Connection[Any]", cases: Sequence[Case]) -> list[list[Any]]:
    """Plan each case's share of the postponed messages; return their ids by case."""
    return [
        [
            row[0]
            for row in database.execute(
                "UPDATE public.campaign_messages m SET scheduled_at = now() + make_interval(secs => %s + %s * o.place) "
                "FROM (SELECT id, row_number() OVER (ORDER BY id) - 1 AS place FROM public.campaign_messages "
                "      WHERE status = 'pending' AND scheduled_at > now() + interval '12 hours' ORDER BY id LIMIT %s) o "
                "WHERE m.id = o.id RETURNING m.id",
                [case.first, case.apart, case.count],
            )
        ]
        for case in cases
    ]


def _sent(database: "psycopg.Connection[Any]", ids: Sequence[Any]) -> list[float]:
    rows = database.execute(
        "SELECT EXTRACT(epoch FROM sent_at - scheduled_at)::float8 FROM public.campaign_messages "
        "WHERE id = ANY (%s) AND status = 'sent'",
        [ids],
    )
    return [row[0] for row in rows]


def _so_far(late: Mapping[str, Mapping[str, Sequence[float]]], cases: Sequence[Case]) -> str:
    """Say how many messages of each case each contestant has sent, in the order of the cases."""
    return "; ".join(
        f"{name} has sent " + " + ".join(f"{len(late[name][case.name])}/{case.count}" for case in cases)
        for name in late
    )
