"""An inbox that cannot be reached as it is configured: it says so, and its messages wait."""

from campaign_pipeline.core.ports import (
    Attempt,
    ChannelTraits,
    Envelope,
    Failure,
    LookUp,
    LookUpAnswer,
    LookUpFailed,
    NumberCheck,
    NumberNotChecked,
    Outcome,
    Scope,
    Systemic,
)

SANDBOX_ONLY = "sandbox_only"
"""In `instances.provider_config`, true: made up, and never to be sent through but in a sandbox."""


class Unconfigured:
    """Stands where an adapter cannot be built; see `core.ports.MessageChannel`."""

    traits = ChannelTraits(name="unconfigured", max_part_chars=4096, look_up=LookUp.SEARCH)

    def __init__(self, code: str, reason: str) -> None:
        self._refusal = Systemic(code, reason, Scope.INBOX)

    async def check_connection(self) -> Failure | None:
        """Refuse, so that nothing is generated for an inbox that cannot send."""
        return self._refusal

    async def send(self, envelope: Envelope) -> Outcome:
        """Refuse."""
        return self._refusal

    async def find_accepted(self, attempt: Attempt) -> LookUpAnswer:
        """Not now: the part waits until the inbox can be asked."""
        return LookUpFailed(self._refusal.reason)

    async def check_number(self, number: str) -> NumberCheck:
        """Not through an inbox that cannot be used: the number stays unknown."""
        return NumberNotChecked(self._refusal.reason)
