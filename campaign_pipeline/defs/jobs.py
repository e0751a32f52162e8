"""The jobs; the graph of each reads like a sentence."""

import dagster as dg

from campaign_pipeline.defs.backfill import requeue_failed_messages
from campaign_pipeline.defs.days import days
from campaign_pipeline.defs.executor import ENGINE_METADATA, shard_executor
from campaign_pipeline.defs.maintenance import delete_old_logs, delete_old_outputs, delete_old_runs
from campaign_pipeline.defs.ops import (
    close_completed_runs,
    fetch_lead_contexts,
    fetch_message_batch,
    send_batch,
    send_shard,
    split_into_shards,
)
from campaign_pipeline.defs.tags import OWNERS, WORK


@dg.job(executor_def=shard_executor, tags={WORK: "queue"}, owners=OWNERS, metadata=ENGINE_METADATA)
def process_campaign_queue() -> None:
    """Claim the campaign messages that are due, write and send them, and close completed runs.

    The batch is split into shards or, if it looks ahead (the schedule's small batches), sent by one step.
    """
    message_batch, whole_batch = fetch_message_batch()
    lead_contexts, batch_settings = fetch_lead_contexts(message_batch)
    shards = split_into_shards(message_batch)
    shard_reports = shards.map(lambda shard: send_shard(shard, lead_contexts, batch_settings))
    close_completed_runs(shard_reports.collect(), message_batch)
    send_batch(whole_batch)


@dg.job(
    executor_def=shard_executor, partitions_def=days, tags={WORK: "back_fill"}, owners=OWNERS, metadata=ENGINE_METADATA
)
def retry_failed_messages() -> None:
    """Return a day's failed messages to the queue, then process the queue like `process_campaign_queue`.

    One batch of due messages is sent, retried and other ones alike, within windows and pace. If the batch was full,
    `next_batch_after_run` or the schedule continues.
    """
    _, requeued = requeue_failed_messages()
    message_batch, whole_batch = fetch_message_batch(requeued)
    lead_contexts, batch_settings = fetch_lead_contexts(message_batch)
    shards = split_into_shards(message_batch)
    shard_reports = shards.map(lambda shard: send_shard(shard, lead_contexts, batch_settings))
    close_completed_runs(shard_reports.collect(), message_batch)
    send_batch(whole_batch)


@dg.job(executor_def=dg.in_process_executor, tags={WORK: "maintenance"}, owners=OWNERS)
def clean_up_old_data() -> None:
    """Delete expired data: step outputs, old campaign logs, old Dagster runs."""
    delete_old_outputs()
    delete_old_logs()
    delete_old_runs()
