"""Consent for operators: manual suppressions, and the export or erasure of a lead's data."""

from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

import psycopg

from campaign_pipeline.adapters.statements import Statements
from campaign_pipeline.core.phone_reading import NotANumber, canonical_address, canonical_number, read_phone


class ConsentRefused(RuntimeError):
    """The request cannot be fulfilled, or not now; the message is one sentence that says why."""


@dataclass(frozen=True)
class Whom:
    """The subject: a lead, an address, or both; within a workspace and channel, if given."""

    lead_id: UUID | None = None
    address: str | None = None  # a phone number or an e-mail address, in any spelling
    workspace_id: UUID | None = None
    channel: str | None = None  # whatsapp, email


def _readable(address: str) -> str:
    """Normalise an address that an operator typed; raises ConsentRefused if it is invalid or ambiguous."""
    canonical = canonical_address(address)
    if canonical is None or not canonical.isdigit():
        if canonical is None:
            raise ConsentRefused("The address is neither a phone number nor an e-mail address.")
        return canonical
    try:
        return canonical_number(read_phone(address).digits)
    except NotANumber as error:
        raise ConsentRefused(f"The address {error}: write a number like (11) 98765-4321.") from None


class Consent(Statements):
    """Suppressions, exports and erasures."""

    async def _all(self, name: str, **parameters: Any) -> list[dict[str, Any]]:
        """Return the rows of a statement; raises ConsentRefused with the database's own sentence if it refuses."""
        try:
            return await super()._all(name, **parameters)
        except (psycopg.errors.InvalidParameterValue, psycopg.errors.RaiseException) as error:
            raise ConsentRefused(str(error.diag.message_primary)) from None

    async def suppress(self, whom: Whom, reason: str, *, everywhere: bool = False) -> int:
        """Suppress the subject; return the suppression's id. `everywhere`: in all workspaces.

        A lead alone is suppressed in its workspace, with its number. Raises ConsentRefused.
        """
        if whom.address is not None:
            whom = replace(whom, address=_readable(whom.address))
        scope = "global" if everywhere else "channel" if whom.channel else "workspace"
        rows = await self._all("suppress", scope=scope, reason=reason, **vars(whom))
        return int(rows[0]["id"])

    async def lift(self, whom: Whom, by: str) -> int:
        """Lift the subject's suppressions; return how many."""
        rows = await self._all("lift", by=by, **vars(whom))
        return int(rows[0]["lifted"])

    async def suppressions(self, whom: Whom, shown: int) -> list[dict[str, Any]]:
        """Return the active suppressions, the newest first."""
        return await self._all(
            "list_suppressions",
            lead_id=whom.lead_id,
            address=whom.address,
            workspace_id=whom.workspace_id,
            channel=whom.channel,
            shown=shown,
        )

    async def export(self, lead_id: UUID) -> tuple[str | None, list[str]]:
        """Return all that is stored of a lead, as JSON, and the ids of its messages; None if nothing is stored."""
        row = (await self._all("export_lead", lead_id=lead_id))[0]
        return row["document"], row["message_ids"]

    async def erase(self, lead_id: UUID, by: str) -> dict[str, int]:
        """Erase a person's data in the database; return rows by table. Raises ConsentRefused while a part is sent."""
        counts: dict[str, int] = (await self._all("erase_lead", lead_id=lead_id, by=by))[0]["counts"]
        return counts
