"""Reasons to end shards early, found by asking.

Signals do not reach every step: Celery's revoke does not stop a running step, steps may outlive a run that was ended
because its host seemed dead, and a worker that shuts down waits for its steps.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import dagster as dg
from dagster import DagsterInstance, DagsterRunStatus

from campaign_pipeline.core.shard_worker import TERMINATED

HOST_STOPS = "This worker is being shut down; another takes over what it gave back."

RUN_ENDED = "The run has ended, so this shard ends too."

host_stops: list[Callable[[], bool]] = []
"""Functions that return whether this host is told to stop; engines whose shutdown signals no step add their own."""

LOOK_SECONDS = 1.0

RUN_LOOKS = 5
"""The run's status is read from Dagster at every n-th look."""


def why_to_stop(instance: DagsterInstance, run_id: str) -> str | None:
    """Return one sentence if the run is being terminated or has ended; None while the storage is unavailable."""
    try:
        run = instance.get_run_by_id(run_id)
    except Exception:  # noqa: BLE001 (whatever the storage raises while it is away: the shard goes on)
        return None
    if run is None:
        return None
    if run.status in {DagsterRunStatus.CANCELING, DagsterRunStatus.CANCELED}:
        return TERMINATED
    return RUN_ENDED if run.is_finished else None


@contextlib.asynccontextmanager
async def stopped_by_questions(stop: Callable[[str], None], ask: Callable[[], str | None]) -> AsyncIterator[None]:
    """Call `stop` with the reason as soon as `ask` returns one, or the host stops."""

    async def watch() -> None:
        looks = 0
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            looks += 1
            reason = HOST_STOPS if any(question() for question in host_stops) else None
            if reason is None and looks % RUN_LOOKS == 0:
                reason = await asyncio.to_thread(ask)
            if reason is not None:
                stop(reason)
                return

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def fail_if_run_ended(stopped_by: str | None) -> None:
    """Fail the step if its run ended meanwhile, like a signal would: a re-execution then resumes it."""
    if stopped_by in {TERMINATED, RUN_ENDED}:
        raise dg.Failure(
            description=f"{stopped_by} Requests in flight were answered and recorded; the rest went back to the queue.",
            allow_retries=False,
        )
