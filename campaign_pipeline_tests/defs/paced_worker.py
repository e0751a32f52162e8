"""A worker process of a paced inbox: one batch per input line, with the pipeline's own code."""

import asyncio
import os
import sys

from campaign_pipeline.adapters.environment import DeliverySettings
from campaign_pipeline.adapters.queue import BatchOptions, Queue
from campaign_pipeline.core.model import BatchSettings, split_batch
from campaign_pipeline.defs.resources import ProvidersResource
from campaign_pipeline.defs.shard import deliver, run_async


async def work_a_batch(url: str) -> int:
    """Claim and deliver once; returns how many messages were claimed."""
    settings, queue, owner = DeliverySettings.from_environment(), Queue(url), f"worker {os.getpid()}"
    batch = await queue.claim_batch(
        BatchOptions(
            100, owner, settings.lease_seconds, settings.max_age, max_wait_seconds=settings.max_inline_wait_seconds
        )
    )
    rows = [row.to_row() for row in batch.rows]
    if rows:
        asked = {row["lead_id"]: row["workspace_id"] for row in rows}
        contexts = await queue.get_lead_contexts(list(asked), list(asked.values()))
        plain = [{**row, "lead_id": str(row["lead_id"])} for row in contexts]
        shared = [list({row[column] for row in rows}) for column in ("config_id", "workspace_id", "inbox_id")]
        batch_settings = BatchSettings.from_json(await queue.get_batch_settings(*shared))
        await asyncio.gather(
            *(
                deliver(url, shard, plain, batch_settings, ProvidersResource(), 5, owner)
                for shard in split_batch(batch.rows, 50)
            )
        )
    await queue.close_runs()
    return len(rows)


async def main() -> None:
    """Entry point: the database's URL."""
    loop = asyncio.get_running_loop()
    while await loop.run_in_executor(None, sys.stdin.readline):
        print(await work_a_batch(sys.argv[1]), flush=True)  # noqa: T201 (for whoever started us)


if __name__ == "__main__":
    run_async(main())
