"""The messages of one batch, by id: their outcomes, and the leases that ended steps left."""

from collections.abc import Iterable, Sequence
from uuid import UUID

from campaign_pipeline.adapters.statements import Statements, id_array
from campaign_pipeline.core.batch_outcome import BatchCounts


class Batches(Statements):
    """A batch, for steps that resume it or close it."""

    async def end_leases(self, message_ids: Sequence[str], owners: Sequence[str]) -> dict[str, int]:
        """Give back what these owners hold of the messages; their steps have ended. Returns how many each held.

        Owners are named as in `lease_owner`; `run 1a2b3c4d` means all steps of that run. Expired leases are given back
        too, whoever held them.
        """
        rows = await self._all("end_leases", ids=id_array(message_ids), owners=list(owners))
        held: dict[str, int] = {}
        for row in rows:
            held[row["owner"] or "unknown"] = held.get(row["owner"] or "unknown", 0) + 1
        return held

    async def count(self, message_ids: Sequence[str]) -> BatchCounts:
        """Count the messages by state."""
        (row,) = await self._all("count_batch", ids=id_array(message_ids))
        return BatchCounts(**row)

    async def campaigns(self, run_ids: Iterable[UUID]) -> list[str]:
        """Return the names of these campaign runs, each once."""
        return [row["name"] for row in await self._all("name_runs", run_ids=list(run_ids))]
