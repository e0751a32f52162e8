"""How many messages each rate limit allows the next claim to take, and what an operator is told while it allows none.

Whether *this* message may go *now* is decided in the database, in the transaction that commits the intent to send it
(sql/functions/pacing.sql): warm-up, limits, quiet hours and gaps are applied there, once, for every process. This
module answers how many messages are worth claiming from where an inbox or campaign stands, and how runs share them.
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
    """Where one inbox or campaign stands; a row of `list_paces`."""

    scope: Scope
    now: datetime
    free_at: datetime  # when the next message may begin; `now` if at once
    code: str  # why not before
    gap_seconds: float  # between two messages, at least; slow-down included; 0: none
    jitter: float  # a gap is stretched by up to this share
    slow_factor: float  # above 1: it was throttled
    hourly_limit: int | None
    hour_count: int  # of it, begun
    daily_limit: int | None  # of today, warm-up included
    day_count: int
    leased: int  # claimed and not begun: they will take the next slots
    zone: str

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Pace":
        """Build from the statement `list_paces`."""
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
        """Until the next message may begin."""
        return max(0.0, (self.free_at - self.now).total_seconds())

    def slots_within(self, horizon_seconds: float, patience_seconds: float, most: int) -> int:
        """How many messages may begin within some time, at most `most`, none waited for longer than the patience.

        0: the first of them would have to be waited for too long.
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
        """Why nothing begins before `free_at`, as a sentence for the operator."""
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
        except (KeyError, ValueError, OSError):  # the database knows more names than Python
            zone = UTC
        return f"{instant.astimezone(zone):%Y-%m-%d %H:%M:%S} ({zone})"


def share_out(slots: int, runs: Sequence[UUID], chance: Callable[[], float]) -> dict[UUID, int]:
    """Share slots among runs as evenly as can be; who gets the odd ones is left to chance, so that none is starved."""
    if not runs:
        return {}
    each, odd = divmod(max(0, slots), len(runs))
    lucky = sorted(runs, key=lambda _: chance())[:odd]
    return {run: each + (run in lucky) for run in runs}


@dataclass
class Budget:
    """What may be claimed of some runs, by the paces that they go by."""

    runs: Mapping[UUID, Sequence[Scope]]  # which paces each goes by; none: it has no pace
    slots: dict[Scope, int]  # left
    spent: set[UUID] = field(default_factory=set)  # runs that have nothing more that is due

    @classmethod
    def of(
        cls,
        paces: Iterable[Pace],
        runs: Mapping[UUID, Sequence[Scope]],
        horizon_seconds: float,
        patience_seconds: float,
        most: int,
    ) -> "Budget":
        """What the paces let go within the horizon, without what is claimed for it already."""
        slots = {
            pace.scope: max(0, pace.slots_within(horizon_seconds, patience_seconds, most) - pace.leased)
            for pace in paces
        }
        return cls({run: [scope for scope in scopes if scope in slots] for run, scopes in runs.items()}, slots)

    @property
    def paced(self) -> list[UUID]:
        """The runs that go by a pace."""
        return [run for run, scopes in self.runs.items() if scopes]

    def quotas(self, most: int, chance: Callable[[], float]) -> dict[UUID, int]:
        """How many messages each run may claim now; runs that may claim none are left out."""
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
        """Note what was claimed of it.

        A run that used less than its quota has nothing else due; an unpaced run is claimed once.
        """
        for run, quota in quotas.items():
            count = claimed.get(run, 0)
            for scope in self.runs[run]:
                self.slots[scope] = max(0, self.slots[scope] - count)
            if count < quota or not self.runs[run]:
                self.spent.add(run)


__all__ = ["CODES", "REASONS", "Budget", "Pace", "Scope", "share_out"]
