"""An inbox whose configuration does not work: it reports that, and its messages wait."""

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
"""In `instances.provider_config`, true: a sample inbox that may only be used with a sandbox."""


class Unconfigured:
    """Replaces an adapter that cannot be built; see `core.ports.MessageChannel`."""

    traits = ChannelTraits(name="unconfigured", max_part_chars=4096, look_up=LookUp.SEARCH)

    def __init__(self, code: str, reason: str) -> None:
        self._refusal = Systemic(code, reason, Scope.INBOX)

    async def check_connection(self) -> Failure | None:
        """Return why, so that no text is generated for an inbox that cannot send."""
        return self._refusal

    async def send(self, envelope: Envelope) -> Outcome:
        """Return why the inbox cannot send."""
        return self._refusal

    async def find_accepted(self, attempt: Attempt) -> LookUpAnswer:
        """Fail for now: the part waits until the inbox can be asked."""
        return LookUpFailed(self._refusal.reason)

    async def check_number(self, number: str) -> NumberCheck:
        """Fail: the number stays unknown."""
        return NumberNotChecked(self._refusal.reason)
