"""A message under way: its parts, the attempt that is open, and what the campaign's log says of it."""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from campaign_pipeline.core.model import Lead, LeasedMessage, PartRecord, PartStatus
from campaign_pipeline.core.ports import LogLine, Settlement, Template

STEPS = ("prepare", "split", "send", "look_up", "lease", "pause")
"""The steps that a campaign's log names, in their order."""

OWN_INTERRUPTIONS = frozenset({"worker_died", "given_back"})
"""Codes of attempts that our own end cut short."""


@dataclass
class OpenAttempt:
    """An attempt that the ledger has as under way."""

    part_no: int
    attempt_no: int
    left: bool = False  # whether its request may have reached the provider
    requested: bool = False  # whether one was made, whatever came of it

    def closed(self, settlement: Settlement) -> Settlement:
        """The settlement, with what is known of this attempt where no answer came."""
        outcome = PartStatus.UNKNOWN if self.left else PartStatus.PLANNED
        return replace(
            settlement,
            part_no=self.part_no,
            attempt_no=self.attempt_no,
            outcome=outcome.value,
            unrequested=not self.requested,
        )


@dataclass
class Part:
    """A part as it goes through its life."""

    no: int
    text: str
    status: PartStatus = PartStatus.PLANNED
    attempts: int = 0
    attempted_at: float = 0.0  # seconds since the epoch, by the database's clock
    address: str | None = None  # where the last attempt went
    inbox_id: str | None = None  # through which it was made
    interrupted: bool = False  # the last attempt was cut short by our own process, not by its provider
    resend_approved: bool = False  # by a person, though nobody knows whether it went out

    @classmethod
    def of(cls, record: PartRecord) -> "Part":
        """A part as the ledger has it."""
        return cls(
            record.part_no,
            record.text,
            record.status,
            record.attempts,
            record.attempted_at or 0.0,
            record.address,
            record.inbox_id,
            record.error_code in OWN_INTERRUPTIONS,
            record.resend_approved,
        )


@dataclass
class Work:
    """A message under way."""

    message: LeasedMessage
    lead: Lead | None
    parts: list[Part]
    address: str = ""
    other_numbers: deque[str] = field(default_factory=deque)  # to be tried where the address has no account
    subject: str | None = None
    template: Template | None = None  # that it goes out as
    text: dict[str, Any] = field(default_factory=dict)  # of BeginPart: to be committed with the first attempt
    leave_by: float = math.inf  # on the shard's clock: a later request must not be made, its turn is over

    @property
    def id(self) -> str:
        """The message's own."""
        return self.message.id

    @property
    def begun(self) -> bool:
        """Whether a part went out already: then the message is finished, whatever is paused meanwhile."""
        return any(part.status is PartStatus.SENT for part in self.parts)

    @property
    def needs_model(self) -> bool:
        """Whether its text is still to be written."""
        return self.message.text is None and not self.parts and not self.text


@dataclass(frozen=True)
class MessageLog:
    """The campaign's log, line by line of one message."""

    write: Callable[[LogLine], None]

    def __call__(self, message: LeasedMessage, step: str, level: str, text: str, **details: object) -> None:
        """Log what happened to a message in a step, which is one of STEPS."""
        self.write(
            {
                "run_id": message.run_id,
                "lead_id": message.lead_id,
                "message_id": message.id,
                "step_name": step,
                "step_number": STEPS.index(step) + 1,
                "level": level,
                "message": text,
                "details": details,
            }
        )
