"""A worker process for kills: claims batches and delivers shards with the pipeline's own code, without Dagster.

`CRASH_AT=<side>:<point>:<n>` lets it kill itself with SIGKILL at the n-th passing of a point, before or after a call of
the store, the language model or the channel; `STOP_AT` suspends it there (SIGSTOP). `CRASH_FOR=<message>` lets it kill
itself whenever it has a text for this message: a poisoned row. `CRASH_AHEAD` lets it claim what is planned for so many
seconds from now, and wait for it. Production code has no such points: they are put around
it here.
"""

import asyncio
import functools
import os
import signal
import traceback
from collections.abc import Awaitable, Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

from campaign_pipeline.adapters.environment import DeliverySettings
from campaign_pipeline.adapters.evolution import Evolution
from campaign_pipeline.adapters.openrouter import OpenRouter
from campaign_pipeline.adapters.queue import BatchOptions, Queue
from campaign_pipeline.adapters.shard_store import ShardStore
from campaign_pipeline.core.model import BatchSettings, split_batch
from campaign_pipeline.core.ports import Completion, Failure, Prompt
from campaign_pipeline.defs.resources import ProvidersResource
from campaign_pipeline.defs.shard import deliver, deliver_side_by_side, run_async

POINTS: dict[str, tuple[type, str]] = {
    "claim": (Queue, "claim_batch"),
    "contexts": (Queue, "get_lead_contexts"),
    "take_over": (ShardStore, "take_over"),
    "start_generating": (ShardStore, "start_generating"),
    "generate": (OpenRouter, "complete"),
    "begin_part": (ShardStore, "begin_part"),
    "send": (Evolution, "send"),
    "settle": (ShardStore, "settle"),
    "look_up": (Evolution, "find_accepted"),
    "close": (Queue, "close_runs"),
}
"""Every persisted boundary, and every request."""


def crash_at(where: str, blow: signal.Signals = signal.SIGKILL) -> None:
    """Arm one point: `before:send:3` kills (or stops) this process when the third send is about to be made."""
    side, name, number = where.split(":")
    owner, method = POINTS[name]
    original: Callable[..., Awaitable[Any]] = getattr(owner, method)
    left = int(number)

    @functools.wraps(original)
    async def armed(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        last = left == 0
        if last and side == "before":
            os.kill(os.getpid(), blow)
        result = await original(*args, **kwargs)
        if last and side == "after":
            os.kill(os.getpid(), blow)
        return result

    setattr(owner, method, armed)


def crash_for(message_id: str) -> None:
    """Make a text for this message kill this process."""
    complete = OpenRouter.complete

    async def poisoned(model: OpenRouter, prompt: Prompt) -> Completion | Failure:
        answer = await complete(model, prompt)
        if prompt.reference == message_id:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    setattr(OpenRouter, complete.__name__, poisoned)


async def work(url: str, batch_size: int, shard_size: int, concurrency: int) -> int:
    """Deliver until nothing can be claimed; return how many messages were claimed."""
    settings, queue, claimed = DeliverySettings.from_environment(), Queue(url), 0
    ahead = timedelta(seconds=float(os.environ.get("CRASH_AHEAD", "0")))
    options = BatchOptions(batch_size, f"worker {os.getpid()}", settings.lease_seconds, settings.max_age, ahead=ahead)
    while True:
        batch = await queue.claim_batch(options)
        claimed += len(batch.rows)
        rows = [row.to_row() for row in batch.rows]
        if rows:
            asked = {row["lead_id"]: row["workspace_id"] for row in rows}
            contexts = await queue.get_lead_contexts(list(asked), list(asked.values()))
            plain = [{**row, "lead_id": str(row["lead_id"])} for row in contexts]
            shared = [list({row[column] for row in rows}) for column in ("config_id", "workspace_id", "inbox_id")]
            batch_settings = BatchSettings.from_json(await queue.get_batch_settings(*shared))
            shards = split_batch(batch.rows, shard_size)
            owner = f"worker {os.getpid()}"
            if ahead:  # as a step does that looks ahead
                providers = ProvidersResource()
                await deliver_side_by_side(url, shards, plain, batch_settings, providers, concurrency, owner)
                continue
            await asyncio.gather(
                *(deliver(url, s, plain, batch_settings, ProvidersResource(), concurrency, owner) for s in shards)
            )
        await queue.close_runs()
        if not rows:
            return claimed


def run(end: Connection, environment: dict[str, str], url: str, *sizes: int) -> None:
    """Entry point of the process: sends how many messages were claimed, or the traceback of an error.

    `sizes` are the batch's, the shard's and the concurrency.
    """
    os.environ.clear()
    os.environ.update(environment)
    if os.environ.get("CRASH_AT"):
        crash_at(os.environ["CRASH_AT"])
    if os.environ.get("STOP_AT"):
        crash_at(os.environ["STOP_AT"], signal.SIGSTOP)
    if os.environ.get("CRASH_FOR"):
        crash_for(os.environ["CRASH_FOR"])
    try:
        end.send(run_async(work(url, *sizes)))
    except BaseException:
        end.send(traceback.format_exc())
        raise
