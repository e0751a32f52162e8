"""A part of a message at work, and the ledger's record of its attempts."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

from campaign_pipeline.core.model import PartRecord, PartStatus
from campaign_pipeline.core.ports import MAY_HAVE_NO_RECORD, Outcome, Settlement, Unknown
from campaign_pipeline.core.ports import Sent as Accepted

OWN_INTERRUPTIONS = frozenset({"worker_died", "given_back"})
"""Codes of attempts that our own process cut short."""


@dataclass
class Part:
    """A part during its delivery."""

    no: int
    text: str
    status: PartStatus = PartStatus.PLANNED
    attempts: int = 0
    attempted_at: float = 0.0  # seconds since the epoch, by the database's clock
    may_have_left_until: float = 0.0  # the same: its request may have left until then
    address: str | None = None  # of the last attempt
    inbox_id: str | None = None  # through which the last attempt was made
    interrupted: bool = False  # our own process, not its provider, cut the last attempt short
    resend_approved: bool = False  # by a person, despite the unknown outcome of the last attempt
    unknown_code: str | None = None  # of the last attempt, if its answer decides what a look-up can prove

    @classmethod
    def from_record(cls, record: PartRecord) -> Self:
        """Build from the ledger. An attempt without an outcome may have been sent."""
        in_doubt = record.status in {PartStatus.ATTEMPTING, PartStatus.UNKNOWN}
        return cls(
            record.part_no,
            record.text,
            PartStatus.UNKNOWN if in_doubt else record.status,
            record.attempts,
            record.attempted_at or 0.0,
            max(record.attempted_at or 0.0, record.lease_ended_at or 0.0),
            record.address,
            record.inbox_id,
            record.error_code in OWN_INTERRUPTIONS,
            record.resend_approved,
            record.error_code if record.error_code in MAY_HAVE_NO_RECORD else None,
        )


class Departure:
    """Checks whether a request may leave, and remembers a refusal."""

    def __init__(self, may_leave: Callable[[], bool]) -> None:
        self._may_leave = may_leave
        self.refused = False

    def __call__(self) -> bool:
        """See Envelope.may_leave."""
        self.refused = not self._may_leave()
        return not self.refused


def recorded(attempt: Settlement, outcome: Outcome, milliseconds: int | None) -> Settlement:
    """Return the ledger's record of an answered attempt."""
    if isinstance(outcome, Accepted):
        # The ledger keeps the requested address: the part is searched by it, and it tells which ids belong to other
        # parts. The provider's own name for it is stored with its answer.
        address = {"address": outcome.address} if outcome.address else {}
        return replace(
            attempt,
            outcome=PartStatus.SENT.value,
            provider_message_id=outcome.provider_message_id,
            response={**outcome.response, **address},
            in_conversation=outcome.in_conversation,
            duration_ms=milliseconds,
        )
    status = PartStatus.UNKNOWN if isinstance(outcome, Unknown) else PartStatus.PLANNED
    return replace(attempt, outcome=status.value, response=outcome.answer or None, duration_ms=milliseconds)
