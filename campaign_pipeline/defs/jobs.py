"""The jobs, each a graph that reads as a sentence."""

import dagster as dg

from campaign_pipeline.defs.executor import shard_executor
from campaign_pipeline.defs.ops import (
    close_completed_runs,
    fetch_lead_contexts,
    fetch_message_batch,
    send_shard,
    split_into_shards,
)


@dg.job(executor_def=shard_executor)
def process_campaign_queue() -> None:
    """Claim the campaign messages that are due, write and send them, and close the runs that are complete."""
    message_batch = fetch_message_batch()
    lead_contexts, batch_settings = fetch_lead_contexts(message_batch)
    shards = split_into_shards(message_batch)
    shard_reports = shards.map(lambda shard: send_shard(shard, lead_contexts, batch_settings))
    close_completed_runs(shard_reports.collect())
