"""On time: messages planned one by one, and a burst.

Dagster's daemon runs with the schedule on and the old system's latencies. This code is compared with the code before
batches looked ahead in three cases: 60 messages planned 5 s apart in 3 campaigns; 100 messages planned for the same
instant; and 100 messages inserted as already due.
"""

import statistics
import time
from collections.abc import Sequence

import psycopg

from benchmarks.contestants import Contestant, contestants, working_by_itself
from benchmarks.report import Plot, Result
from benchmarks.world import USUAL_LATENCIES, Bench, Options, fill
from campaign_pipeline.sandbox import Behaviour, SandboxProcess

CAMPAIGNS, APART = 3, 5.0
IN_FLIGHT = 20  # of each inbox, by default
SOON, SHARE_SOON, MOST_LATE = 1.0, 0.95, 5.0  # seconds, share, seconds
BURST_EXTRA = 10.0
LEAD = 100.0  # seconds from planning to the first planned time
PATIENCE = 180.0


def race(bench: Bench, options: Options, result: Result) -> None:
    """Run both contestants, one after the other."""
    planned, burst = options.pick(60, 6), options.pick(100, 10)
    behaviour = Behaviour(seed=options.seed, latencies=USUAL_LATENCIES)
    share: dict[str, float] = {}
    with SandboxProcess(behaviour) as sandbox, contestants(bench, sandbox) as both:
        for contestant in both:
            fill(contestant.url, planned + 2 * burst, inboxes=CAMPAIGNS)
            _put_off(contestant)
            with working_by_itself(contestant):
                late = _lateness(contestant, planned, LEAD, APART)
                at_once = _lateness(contestant, burst, LEAD, 0.0)
                unplanned = _lateness(contestant, burst, 0.0, 0.0)
            share[contestant.name] = sum(each <= SOON for each in late) / planned
            _tell(result, contestant.name, share[contestant.name], late, at_once, unplanned)
        result.judge("planned messages that went out early", sum(each < 0 for each in (*late, *at_once)), most=0)
    limit = sum(latency.mean for latency in USUAL_LATENCIES.values()) * burst / CAMPAIGNS / IN_FLIGHT
    result.tell("the limit of a burst", limit, "s")
    result.judge(f"planned messages sent within {SOON:g} s, this", share["this"], least=SHARE_SOON)
    result.judge("p99 of their lateness, this", _p99(late), "s", most=MOST_LATE)
    result.judge("burst that was planned, until its last message, this", max(at_once), "s", most=limit + BURST_EXTRA)
    result.judge("burst that nobody planned, until its last, this", max(unplanned), "s", most=limit + BURST_EXTRA)
    result.plots.append(Plot("planned messages sent within a second", "share", share))


def _tell(
    result: Result,
    name: str,
    share: float,
    late: Sequence[float],
    at_once: Sequence[float],
    unplanned: Sequence[float],
) -> None:
    result.tell(f"sent within {SOON:g} s, {name}", share)
    result.tell(f"lateness, median, {name}", statistics.median(late), "s")
    result.tell(f"lateness, p99, {name}", _p99(late), "s")
    result.tell(f"burst that was planned, {name}", max(at_once), "s")
    result.tell(f"burst that nobody planned, {name}", max(unplanned), "s")


def _p99(values: Sequence[float]) -> float:
    return sorted(values)[min(len(values) - 1, int(0.99 * len(values)))]


def _put_off(contestant: Contestant) -> None:
    with psycopg.connect(contestant.url) as connection:
        connection.execute("UPDATE public.campaign_messages SET scheduled_at = now() + interval '1 day'")


def _lateness(contestant: Contestant, count: int, first: float, apart: float) -> list[float]:
    """Plan some of the postponed messages and wait until they are sent; return how many seconds late each was."""
    with psycopg.connect(contestant.url, autocommit=True) as connection:
        chosen = [
            row[0]
            for row in connection.execute(
                "UPDATE public.campaign_messages m SET scheduled_at = now() + make_interval(secs => %s + %s * o.place) "
                "FROM (SELECT id, row_number() OVER (ORDER BY id) - 1 AS place FROM public.campaign_messages "
                "      WHERE status = 'pending' ORDER BY id LIMIT %s) o WHERE m.id = o.id RETURNING m.id",
                [first, apart, count],
            )
        ]
        give_up = time.monotonic() + first + apart * count + PATIENCE
        while time.monotonic() < give_up:
            late = connection.execute(
                "SELECT EXTRACT(epoch FROM sent_at - scheduled_at)::float8 FROM public.campaign_messages "
                "WHERE id = ANY (%s) AND status = 'sent'",
                [chosen],
            ).fetchall()
            if len(late) == count:
                return [row[0] for row in late]
            time.sleep(0.5)
    raise AssertionError(f"{contestant.name} sent {len(late)} of {count} messages.")
