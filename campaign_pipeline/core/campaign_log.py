"""The campaign's log: one line for what happened to a message in one of its steps."""

from collections.abc import Callable
from dataclasses import dataclass

from campaign_pipeline.core.model import LeasedMessage
from campaign_pipeline.core.ports import LogLine

STEPS = ("prepare", "split", "send", "look_up", "lease", "pause")
"""The steps that a campaign's log names, in their order."""


@dataclass(frozen=True)
class CampaignLog:
    """Writes lines about messages; the store keeps them."""

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
