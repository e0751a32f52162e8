"""What an outcome means for a message: its next status, class and attempt. The only place that decides it."""

from collections.abc import Callable
from dataclasses import dataclass

from campaign_pipeline.core.model import ErrorClass, MessageStatus
from campaign_pipeline.core.ports import (
    Absent,
    Failure,
    Found,
    LookUp,
    LookUpAnswer,
    LookUpFailed,
    Permanent,
    Systemic,
    Throttled,
    Transient,
    Unknown,
)

THROTTLE_SECONDS = 5.0
"""How long to slow down when the provider does not say."""


@dataclass(frozen=True)
class Decision:
    """Where a message goes."""

    status: MessageStatus
    error_class: ErrorClass
    code: str
    reason: str
    delay_seconds: float | None = None  # None: due as before
    count_attempt: bool = False


@dataclass(frozen=True)
class RetryPolicy:
    """How often and when a message is tried again."""

    delays_seconds: tuple[float, ...] = (300.0, 900.0, 1800.0)  # before the 2nd, 3rd, … attempt; the last repeats
    max_attempts: int = 3
    jitter: float = 0.2  # a delay is stretched by up to this share, so that failures of one moment do not return as one
    look_up_patience_seconds: float = 90.0  # how long a provider may take to show a message that it accepted
    give_up_look_up_seconds: float = 24 * 3600.0
    wait_for_proof_seconds: float = 2 * 3600.0  # how long a look-up may stay without the means to prove an absence

    def decide(self, failure: Failure, attempts_before: int, chance: Callable[[], float]) -> Decision:
        """Decide for a failure that is not about an unknown outcome. `chance` gives numbers in [0, 1)."""
        match failure:
            case Permanent(code, reason):
                return Decision(MessageStatus.FAILED, ErrorClass.PERMANENT, code, reason)
            case Transient(code, reason, retry_after, most):
                attempts = attempts_before + 1
                if attempts >= min(self.max_attempts, most or self.max_attempts):
                    text = f"{reason} Given up after {attempts} attempts."
                    return Decision(MessageStatus.FAILED, ErrorClass.EXHAUSTED, code, text, count_attempt=True)
                delay = self.delays_seconds[min(attempts_before, len(self.delays_seconds) - 1)]
                delay = max(delay, retry_after or 0.0) * (1 + self.jitter * chance())
                return Decision(MessageStatus.PENDING, ErrorClass.TRANSIENT, code, reason, delay, count_attempt=True)
            case Throttled(code, reason, _, retry_after):
                delay = (THROTTLE_SECONDS if retry_after is None else retry_after) * (1 + self.jitter * chance())
                return Decision(MessageStatus.PENDING, ErrorClass.THROTTLED, code, reason, delay)
            case Systemic(code, reason):
                return Decision(MessageStatus.PENDING, ErrorClass.SYSTEMIC, code, reason)
            case Unknown(code, reason):
                return Decision(MessageStatus.FAILED, ErrorClass.UNKNOWN, code, reason)

    def decide_unknown(
        self, look_up: LookUp, answer: LookUpAnswer | None, age_seconds: float, *, approved: bool = False
    ) -> Found | Transient | Decision:
        """Decide for a part that may have gone out, given what the provider says of it (I5).

        Found: it was sent. Transient: it surely was not, and may be tried again. A decision: the message waits for
        another look, or fails as unknown. `age_seconds` is the age of the attempt; `approved`: a person said that it
        may be sent again, though nobody knows.
        """
        match answer:
            case Found():
                return answer
            case Absent() | None if approved:
                return Transient("resend_approved", "A person said that it is to be sent again.")
            case LookUpFailed(reason) if age_seconds < self.give_up_look_up_seconds:
                delay = max(30.0, min(900.0, age_seconds))
                return Decision(MessageStatus.PENDING, ErrorClass.UNKNOWN, "look_up_failed", reason, delay)
            case Absent() if age_seconds < self.look_up_patience_seconds:
                text = f"It is not known whether it went out; the provider is asked again. {answer.reason}"
                delay = max(1.0, self.look_up_patience_seconds - age_seconds)
                return Decision(MessageStatus.PENDING, ErrorClass.UNKNOWN, "look_up_pending", text, delay)
            case Absent(may_improve=True) if age_seconds < self.wait_for_proof_seconds:
                text = f"It is not known whether it went out; the provider is asked again. {answer.reason}"
                return Decision(MessageStatus.PENDING, ErrorClass.UNKNOWN, "look_up_pending", text, 120.0)
            case Absent(proven=True):
                return Transient("not_accepted", f"The provider does not have it. {answer.reason}")
            case _:
                why = answer.reason if answer else f"This provider cannot be asked ({look_up.value})."
                text = f"It is not known whether it went out. {why} It is sent again only when a person says so."
                return Decision(MessageStatus.FAILED, ErrorClass.UNKNOWN, "unknown_outcome", text)
