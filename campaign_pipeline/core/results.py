"""The results of a message, and the retry policy that chooses one after a failure.

A result is a value; `MessageDelivery._finish` alone commits, counts and logs it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self
from uuid import UUID

from campaign_pipeline.core.model import ErrorClass, MessageStatus, ShardReport
from campaign_pipeline.core.ports import (
    MAY_HAVE_NO_RECORD,
    Absent,
    Failure,
    Found,
    LookUp,
    LookUpAnswer,
    LookUpFailed,
    Permanent,
    Scope,
    Systemic,
    Throttled,
    Transient,
    Unknown,
    Verdict,
)

THROTTLE_SECONDS = 5.0
"""How long to slow down if the provider does not say: longer than the bursts that cause throttling, short enough to be
waited out inline."""


@dataclass(frozen=True)
class Result:
    """What a message becomes, and why."""

    code: str  # stable, machine-readable
    reason: str  # one sentence for the operator
    error_class: ErrorClass | None = None
    delay_seconds: float | None = None  # until it is due again; None: unchanged
    status: ClassVar[MessageStatus | None] = None
    level: ClassVar[str | None] = "info"  # of the line in the campaign's log; None: no line

    @property
    def count_attempt(self) -> bool:
        """Return whether it uses one of the message's attempts."""
        return False


class Sent(Result):
    """Every part was accepted."""

    status = MessageStatus.SENT
    level = "success"


class Retry(Result):
    """Back to the queue after a failure of the message itself; uses one of its attempts."""

    status = MessageStatus.PENDING

    @property
    def count_attempt(self) -> bool:
        """Return True."""
        return True


class GiveBack(Result):
    """Back to the queue unchanged: the obstacle is not the message's fault."""

    status = MessageStatus.PENDING


class Released(GiveBack):
    """Back to the queue because the shard ended before the message did."""

    level = None  # the run says that it was stopped; ten thousand lines would add nothing


class Fail(Result):
    """Not sent; only a back-fill or a person retries it."""

    status = MessageStatus.FAILED
    level = "error"

    @property
    def count_attempt(self) -> bool:
        """Return whether the last attempt was used."""
        return self.error_class is ErrorClass.EXHAUSTED


class Skip(Result):
    """Not sent, and not to be sent."""

    status = MessageStatus.SKIPPED
    level = "warning"


class Lost(Result):
    """Another worker holds the lease, or may take it at any moment: nothing more is changed."""

    level = "warning"


class Ended(Exception):
    """Raised by a stage that ends the message."""

    def __init__(self, result: Result) -> None:
        super().__init__(result.reason)
        self.result = result


ALL_PARTS_SENT = Sent("sent", "Sent.")
ALREADY_SENT = Skip("already_sent", "All parts of this message were sent before; it was put back in the queue by hand.")
LEAD_DELETED = Skip("lead_deleted", "The lead was deleted before this message was sent.")
LEASE_LOST = Lost("lease_lost", "The lease was lost before this message was finished; its new holder goes on with it.")
MESSAGE_GONE = Lost("message_gone", "The message was deleted while it was worked; what was sent of it is recorded.")


_NEVER = {
    Verdict.SUPPRESSED: "The lead or its address is suppressed (campaign_suppressions)",
    Verdict.FOREIGN_WORKSPACE: "The message touches a row of another workspace than its campaign's (the check "
    "rows_stay_in_their_workspace names it)",
}
"""Why a message may never be sent."""

NUMBER_CONTACTED_DELAY = 60.0
"""Seconds until a message whose number another one reserved is claimed again; by then that one is mostly settled."""

REVIEW_DELAY = 7 * 24 * 3600.0
"""Seconds until a message that waits for review is checked again, if nobody decides."""


def refused(verdict: Verdict, *, partly_sent: bool, seconds_of_day_left: Callable[[], float]) -> Result:
    """Map a refusal of the store to a result. `partly_sent`: a part of the message was sent before."""
    match verdict:
        case Verdict.LOST:
            return LEASE_LOST
        case Verdict.LEAD_DELETED:
            return LEAD_DELETED
        case Verdict.CONTACTED_TODAY:
            reason = "The lead gets one message a day and has today's; this one waits for the next day."
            return GiveBack(verdict, reason, delay_seconds=seconds_of_day_left())
        case Verdict.NUMBER_CONTACTED:
            # The next claim skips it, or postpones it until the number has rested.
            reason = "Another message goes to the lead's number, or went to it not long ago; this one waits."
            return GiveBack(verdict, reason, delay_seconds=NUMBER_CONTACTED_DELAY)
        case Verdict.SUPPRESSED | Verdict.FOREIGN_WORKSPACE if partly_sent:
            # A part was sent, so `skipped` would be wrong; the rest is never sent.
            reason = f"{_NEVER[verdict]}, as was found after a part had gone out; the rest is not sent."
            return Fail(verdict, reason, ErrorClass.PERMANENT)
        case Verdict.SUPPRESSED | Verdict.FOREIGN_WORKSPACE:
            return Skip(verdict, f"{_NEVER[verdict]}, so nothing was sent.")
        case Verdict.AWAITING_REVIEW:
            # A decision makes it due at once.
            reason = "A person has to approve the text first: campaign-pipeline review."
            return GiveBack(verdict, reason, delay_seconds=REVIEW_DELAY)
        case Verdict.PAUSED_BY_PERSON:
            return GiveBack(verdict, "A person paused its inbox, its workspace or all sending.")
        case _:
            return GiveBack(verdict, f"The run is {verdict.removeprefix('run_')}.")


@dataclass(frozen=True)
class FinishedMessage:
    """A message that an earlier worker of the shard finished: a row of `read_finished_messages`."""

    id: UUID
    status: str
    error_class: str | None
    code: str
    reason: str

    @property
    def result(self) -> Result:
        """Return what it became, and why."""
        kinds: dict[str, type[Result]] = {"failed": Fail, "skipped": Skip}
        error_class = ErrorClass(self.error_class) if self.error_class else None
        return kinds.get(self.status, Sent)(self.code, self.reason, error_class)


def count_result(report: ShardReport, result: Result, message_id: str) -> None:
    """Count one message in its shard's report."""
    match result:
        case Sent():
            report.sent += 1
            return
        case Fail():
            report.failed += 1
            what = "failed"
        case Skip():
            report.skipped += 1
            what = "skipped"
        case Lost():
            what = "left"
        case _:
            report.returned += 1
            what = "returned"
    report.count(what, result.code, message_id, result.reason, result.error_class)


@dataclass(frozen=True)
class RetryPolicy:
    """How often and when a message is retried."""

    delays_seconds: tuple[float, ...] = (300.0, 900.0, 1800.0)  # before the 2nd, 3rd, … attempt; the last repeats
    max_attempts: int = 3
    jitter: float = 0.2  # a delay is extended at random by up to this share, to spread simultaneous failures
    look_up_patience_seconds: float = 90.0  # how long a provider may take to show a message that it accepted
    give_up_look_up_seconds: float = 24 * 3600.0
    wait_for_proof_seconds: float = 2 * 3600.0  # how long look-ups may lack the means to prove an absence

    def with_delays(self, minutes: Sequence[float] | None) -> Self:
        """Return the policy with a campaign's own delays, if it has any."""
        return replace(self, delays_seconds=tuple(60 * each for each in minutes)) if minutes else self

    def decide(self, failure: Failure, attempts_before: int, chance: Callable[[], float]) -> Result:
        """Decide for a failure of known outcome. `chance` returns numbers in [0, 1)."""
        match failure:
            case Permanent(code, reason):
                return Fail(code, reason, ErrorClass.PERMANENT)
            case Transient(code, reason, retry_after, most):
                attempts = attempts_before + 1
                if attempts >= min(self.max_attempts, most or self.max_attempts):
                    return Fail(code, f"{reason} Given up after {attempts} attempts.", ErrorClass.EXHAUSTED)
                delay = self.delays_seconds[min(attempts_before, len(self.delays_seconds) - 1)]
                delay = max(delay, retry_after or 0.0) * (1 + self.jitter * chance())
                return Retry(code, reason, ErrorClass.TRANSIENT, delay)
            case Throttled(code, reason, Scope.MESSAGE, retry_after):
                delay = (THROTTLE_SECONDS if retry_after is None else retry_after) * (1 + self.jitter * chance())
                return GiveBack(code, reason, ErrorClass.THROTTLED, delay)
            case Throttled(code, reason):
                # Its scope waits, not the message: its due time stays, so it keeps its place among the others.
                return GiveBack(code, reason, ErrorClass.THROTTLED)
            case Systemic(code, reason):
                return GiveBack(code, reason, ErrorClass.SYSTEMIC)
            case Unknown(code, reason):
                return Fail(code, reason, ErrorClass.UNKNOWN)

    def decide_unknown(
        self,
        look_up: LookUp,
        answer: LookUpAnswer | None,
        age_seconds: float,
        *,
        code: str = "",
        approved: bool = False,
    ) -> Found | Transient | GiveBack | Fail:
        """Decide for a part that may have been sent, given the provider's answer about it (I5).

        Found: it was sent. Transient: it certainly was not, and may be retried. GiveBack: it is looked up again later.
        Fail: the outcome stays unknown. `age_seconds`: for how long the attempt's request can no longer have left,
        counted from when it was made, or from the end of a dead worker's lease: that worker may have slept until then.
        `code`: the code of its unknown outcome.
        `approved`: a person approved sending it again despite its unknown outcome.
        """
        if isinstance(answer, Absent) and code in MAY_HAVE_NO_RECORD:
            reason = f"{answer.reason} But after such an answer the provider may have no record of what it sent."
            answer = Absent(proven=False, reason=reason)
        match answer:
            case Found():
                return answer
            case Absent() | None if approved:
                return Transient("resend_approved", "A person said that it is to be sent again.")
            case LookUpFailed(reason) if age_seconds < self.give_up_look_up_seconds:
                return GiveBack("look_up_failed", reason, ErrorClass.UNKNOWN, max(30.0, min(900.0, age_seconds)))
            case Absent() if age_seconds < self.look_up_patience_seconds:
                return _look_up_pending(answer, max(1.0, self.look_up_patience_seconds - age_seconds))
            case Absent(may_improve=True) if age_seconds < self.wait_for_proof_seconds:
                return _look_up_pending(answer, 120.0)
            case Absent(proven=True):
                return Transient("not_accepted", f"The provider does not have it. {answer.reason}")
            case _:
                why = answer.reason if answer else f"This provider cannot be asked ({look_up.value})."
                text = f"It is not known whether it went out. {why} It is sent again only when a person says so."
                return Fail("unknown_outcome", text, ErrorClass.UNKNOWN)


def _look_up_pending(answer: Absent, delay_seconds: float) -> GiveBack:
    text = f"It is not known whether it went out; the provider is asked again. {answer.reason}"
    return GiveBack("look_up_pending", text, ErrorClass.UNKNOWN, delay_seconds)
