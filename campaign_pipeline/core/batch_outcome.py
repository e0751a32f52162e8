"""The outcome of a batch: was every message worked on, and could the batch send? Asset checks of its run show it."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from campaign_pipeline.core.next_steps import REMEDIES, next_step
from campaign_pipeline.core.notices import messages

SEND_THEM = (
    "They are back in the queue, and the next batch sends them: the schedule process_campaign_queue_every_minute "
    "launches it within a minute. If the schedule is off, launch process_campaign_queue."
)

SHOWN_CAUSES = 3

WANTED = frozenset({"awaiting_review", "paused_by_person", "run_paused", "run_cancelled"})
"""Codes of waits that a person asked for; they are not faults."""


@dataclass(frozen=True)
class BatchCounts:
    """The messages of a batch by state, counted in the database."""

    sent: int = 0
    failed: int = 0
    skipped: int = 0
    waiting: int = 0  # pending: retried later, or returned to the queue
    held: int = 0  # leased by another run
    deleted: int = 0

    @property
    def open(self) -> int:
        """Messages that are still to be sent."""
        return self.waiting + self.held


@dataclass(frozen=True)
class Cause:
    """A reason for returned messages that a person must fix."""

    code: str
    reason: str
    messages: int

    @property
    def step(self) -> str:
        """What to do, as an imperative without a full stop."""
        return REMEDIES.get(self.code, "") or "do what the reason says"


@dataclass(frozen=True)
class BatchOutcome:
    """The outcome of the messages that one batch claimed."""

    claimed: int
    counts: BatchCounts
    unworked: int  # messages whose steps never ran
    given_back: int  # messages that ended steps still held: returned when the batch was closed
    causes: tuple[Cause, ...] = ()  # the most frequent first

    @property
    def is_worked(self) -> bool:
        """Return whether every message was worked on by a step, or sent otherwise."""
        return not self.given_back and not (self.unworked and self.counts.open)

    @property
    def could_send(self) -> bool:
        """Return whether no message waits for something that a person must fix."""
        return not self.causes

    def work_sentence(self) -> str:
        """Say whether the whole batch was worked on, and what to do if not."""
        if self.is_worked:
            return f"The batch of {messages(self.claimed)} was completed."
        why = (
            f"the steps of {self.unworked} of them never ran, because a re-execution in Dagster leaves out steps that "
            "had not started before"
            if self.unworked
            else f"{self.given_back} of them were held by steps that have ended"
        )
        return f"{self.counts.open} of {self.claimed} messages of this batch are not sent: {why}. {SEND_THEM}"

    def cause_sentence(self) -> str:
        """Say why messages wait, and what to do."""
        went = f"{self.counts.sent} of {self.claimed} sent"
        if not self.causes:
            return f"{went}; the rest needs no action."
        told = " ".join(
            f"Waiting ({cause.code}): {messages(cause.messages)}. {cause.reason} Next: {cause.step}."
            for cause in self.causes[:SHOWN_CAUSES]
        )
        return f"{went}. {told} The waiting messages then continue automatically."


def batch_outcome(
    claimed: int, counts: BatchCounts, given_back: int, reports: Iterable[Mapping[str, Any]]
) -> BatchOutcome:
    """Compute the outcome of a batch from its rows and its shards' reports (`ShardReport.to_json`)."""
    reports = list(reports)
    waiting: Counter[str] = Counter()
    reasons: dict[str, str] = {}
    for report in reports:
        for key, count in report["reasons"].items():
            what, _, code = key.partition(": ")
            if what == "returned" and needs_person(report["classes"].get(key, ""), code):
                waiting[code] += count
                reasons.setdefault(code, report["sentences"][key])
    return BatchOutcome(
        claimed=claimed,
        counts=counts,
        unworked=max(0, claimed - sum(report["claimed"] for report in reports)),
        given_back=given_back,
        causes=tuple(Cause(code, reasons[code], count) for code, count in waiting.most_common()),
    )


def needs_person(error_class: str, code: str) -> bool:
    """Return whether a returned message waits for something that a person must fix."""
    return code not in WANTED and not next_step("returned", error_class, code).startswith("nothing")
