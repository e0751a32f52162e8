"""How many messages each rate limit allows the next claim to take, and what an operator reads while it allows none.

Whether *this* message may go *now* is decided in the database, in the transaction that commits its intent
(sql/functions/pacing.sql): it applies warm-up, limits, quiet hours and gaps once, for all processes. This module
computes how many messages are worth claiming, given the state of an inbox or campaign, and shares them among runs.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

CODES = frozenset({"paced", "resting", "hourly_limit", "daily_limit", "warming_up", "quiet_hours"})
"""Codes of a rate-limit wait."""

REASONS = {
    "paced": "The rate limit of its inbox or campaign allows the next message later.",
    "resting": "Its inbox rests after a number of messages.",
    "hourly_limit": "Its inbox has reached its limit for 60 minutes.",
    "daily_limit": "Its inbox or campaign has reached its daily limit.",
    "warming_up": "Its inbox is new and has reached today's warm-up limit.",
    "quiet_hours": "Its inbox is in its quiet hours.",
}
"""The sentence for a message that waits, by code."""

Scope = tuple[str, UUID]
"""`inbox` or `campaign`, and which."""


@dataclass(frozen=True)
class Pace:
    """The pacing state of one inbox or campaign; a row of `list_paces`."""

    scope: Scope
    now: datetime
    free_at: datetime  # when the next message may begin; `now` if at once
    code: str  # why not before
    gap_seconds: float  # minimum between two messages, slow-down included; 0: no gap
    jitter: float  # a gap is extended at random by up to this share
    slow_factor: float  # above 1: the inbox was throttled
    hourly_limit: int | None
    hour_count: int  # messages begun within its hour
    daily_limit: int | None  # today's, warm-up included
    day_count: int
    leased: int  # claimed and not begun: they take the next slots
    zone: str

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Pace":
        """Build from a row of `list_paces`."""
        return cls(
            scope=(row["scope"], row["scope_id"]),
            now=row["now"],
            free_at=row["free_at"],
            code=row["code"],
            gap_seconds=row["gap_seconds"],
            jitter=row["jitter"],
            slow_factor=row["slow_factor"],
            hourly_limit=row["hourly_limit"],
            hour_count=row["hour_count"] or 0,
            daily_limit=row["daily_limit"],
            day_count=row["day_count"],
            leased=row["leased"],
            zone=row["zone"],
        )

    @property
    def wait_seconds(self) -> float:
        """Return the seconds until the next message may begin."""
        return max(0.0, (self.free_at - self.now).total_seconds())

    def slots_within(self, horizon_seconds: float, patience_seconds: float, most: int) -> int:
        """Return how many messages may begin within a horizon, at most `most`, each with a wait within the patience.

        Returns 0 if even the first would wait too long.
        """
        wait, gap = self.wait_seconds, self.gap_seconds * (1 + self.jitter / 2)
        if wait > min(horizon_seconds, patience_seconds):
            return 0
        by_gap = most
        if gap > patience_seconds:
            by_gap = 1
        elif gap > 0:
            by_gap = 1 + math.floor((horizon_seconds - wait) / gap)
        limits = [
            limit - count
            for limit, count in ((self.hourly_limit, self.hour_count), (self.daily_limit, self.day_count))
            if limit is not None
        ]
        return max(0, min(most, by_gap, *limits))

    def explain(self) -> str:
        """Say why nothing begins before `free_at`, in a sentence for the operator."""
        who = f"The {self.scope[0]}"
        until = self._local(self.free_at)
        slowed = (
            f" It was throttled and goes {self.slow_factor:g} times slower for now." if self.slow_factor > 1 else ""
        )
        sentences = {
            "resting": f"{who} rests after a number of messages, until {until}.",
            "hourly_limit": f"{who} has begun the {self.hourly_limit} messages that it may in 60 minutes; the next may "
            f"begin at {until}.",
            "daily_limit": f"{who} has begun the {self.daily_limit} messages that it may today; it goes on at {until}.",
            "warming_up": f"{who} is being warmed up and has begun the {self.daily_limit} messages that it may today; "
            f"it goes on at {until}.",
            "quiet_hours": f"{who} is quiet until {until}.",
        }
        paced = f"{who} sends a message every {self.gap_seconds:g} seconds; the next may begin at {until}.{slowed}"
        return sentences.get(self.code, paced)

    def _local(self, instant: datetime) -> str:
        try:
            zone: Any = ZoneInfo(self.zone)
        except (KeyError, ValueError, OSError):  # PostgreSQL knows more time zone names than Python
            zone = UTC
        return f"{instant.astimezone(zone):%Y-%m-%d %H:%M:%S} ({zone})"


def share_out(slots: int, runs: Sequence[UUID], chance: Callable[[], float]) -> dict[UUID, int]:
    """Share slots among runs evenly; the odd ones go to random runs, so that no run starves."""
    if not runs:
        return {}
    each, odd = divmod(max(0, slots), len(runs))
    lucky = sorted(runs, key=lambda _: chance())[:odd]
    return {run: each + (run in lucky) for run in runs}


@dataclass
class Budget:
    """The messages that may be claimed of some runs, by their paces."""

    runs: Mapping[UUID, Sequence[Scope]]  # the paces of each run; none: it is unpaced
    slots: dict[Scope, int]  # remaining slots
    spent: set[UUID] = field(default_factory=set)  # runs with nothing else due

    @classmethod
    def of(
        cls,
        paces: Iterable[Pace],
        runs: Mapping[UUID, Sequence[Scope]],
        horizon_seconds: float,
        patience_seconds: float,
        most: int,
    ) -> "Budget":
        """Return what the paces allow within the horizon, minus what is already claimed."""
        slots = {
            pace.scope: max(0, pace.slots_within(horizon_seconds, patience_seconds, most) - pace.leased)
            for pace in paces
        }
        return cls({run: [scope for scope in scopes if scope in slots] for run, scopes in runs.items()}, slots)

    @property
    def paced(self) -> list[UUID]:
        """Return the runs that have a pace."""
        return [run for run, scopes in self.runs.items() if scopes]

    def quotas(self, most: int, chance: Callable[[], float]) -> dict[UUID, int]:
        """Return how many messages each run may claim now; leaves out runs that may claim none."""
        waiting = [run for run in self.runs if run not in self.spent]
        members = defaultdict(list)
        for run in waiting:
            for scope in self.runs[run]:
                members[scope].append(run)
        quotas = dict.fromkeys(waiting, most)
        for scope, sharing in members.items():
            able = [run for run in sharing if all(self.slots[other] > 0 for other in self.runs[run])]
            shares = share_out(self.slots[scope], able, chance)
            for run in sharing:
                quotas[run] = min(quotas[run], shares.get(run, 0))
        return {run: quota for run, quota in quotas.items() if quota > 0}

    def take(self, quotas: Mapping[UUID, int], claimed: Mapping[UUID, int]) -> None:
        """Subtract what was claimed.

        A run that used less than its quota has nothing else due; an unpaced run is claimed once.
        """
        for run, quota in quotas.items():
            count = claimed.get(run, 0)
            for scope in self.runs[run]:
                self.slots[scope] = max(0, self.slots[scope] - count)
            if count < quota or not self.runs[run]:
                self.spent.add(run)


__all__ = ["CODES", "REASONS", "Budget", "Pace", "Scope", "share_out"]
