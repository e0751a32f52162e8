"""The campaign log: one line per event of a message."""

from collections.abc import Callable
from dataclasses import dataclass

from campaign_pipeline.core.model import LeasedMessage
from campaign_pipeline.core.ports import LogLine

STEPS = ("prepare", "split", "send", "look_up", "lease", "pause")
"""The steps in a campaign's log, in order."""


@dataclass(frozen=True)
class CampaignLog:
    """Writes log lines about messages; the store saves them."""

    write: Callable[[LogLine], None]

    def __call__(self, message: LeasedMessage, step: str, level: str, text: str, **details: object) -> None:
        """Log an event of a message in a step, one of STEPS."""
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
