"""One batch's messages, found by their ids: what became of them, and what steps hold that have ended."""

from collections.abc import Iterable, Sequence
from uuid import UUID

from campaign_pipeline.adapters.postgres import Statements
from campaign_pipeline.core.batch_outcome import BatchCounts


class Batches(Statements):
    """A batch as the steps see it that begin again or close what others began."""

    async def end_leases(self, message_ids: Sequence[str], owners: Sequence[str]) -> dict[str, int]:
        """Give back what these owners hold of the messages; their steps have ended. Returns how many each held.

        An owner is named as `lease_owner` has it; `run 1a2b3c4d` stands for all steps of that run. What has expired is
        given back as well, whoever held it.
        """
        rows = await self._all("end_leases", ids=[UUID(each) for each in message_ids], owners=list(owners))
        held: dict[str, int] = {}
        for row in rows:
            held[row["owner"] or "unknown"] = held.get(row["owner"] or "unknown", 0) + 1
        return held

    async def count(self, message_ids: Sequence[str]) -> BatchCounts:
        """What the messages are now."""
        (row,) = await self._all("count_batch", ids=[UUID(each) for each in message_ids])
        return BatchCounts(**row)

    async def campaigns(self, run_ids: Iterable[UUID]) -> list[str]:
        """The names of these campaign runs, each once."""
        return [row["name"] for row in await self._all("name_runs", run_ids=list(run_ids))]
