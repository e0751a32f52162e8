"""Runs a shard in one process: its event loop, orderly stop, and the wiring of a delivery."""

import asyncio
import contextlib
import gc
import signal
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import dagster as dg
import orjson

from campaign_pipeline.adapters.environment import DeliverySettings
from campaign_pipeline.adapters.heartbeat import ThreadHeartbeat
from campaign_pipeline.adapters.queue import Queue
from campaign_pipeline.adapters.shard_store import ShardStore
from campaign_pipeline.adapters.statements import ConnectionPool, borrowed, connection_pool
from campaign_pipeline.core.address import email_among
from campaign_pipeline.core.context import LeadContext, in_order
from campaign_pipeline.core.model import BatchSettings, Lead, Shard, ShardReport
from campaign_pipeline.core.numbers import phones_among
from campaign_pipeline.core.results import count_result
from campaign_pipeline.core.shard_worker import TERMINATED, ShardWorker
from campaign_pipeline.defs.io import column
from campaign_pipeline.defs.resources import ProvidersResource, delivery_policy
from campaign_pipeline.defs.stopping import stopped_by_questions

T = TypeVar("T")

PROGRESS_SECONDS = 30.0
"""Between two progress lines of a shard."""


class ProcessClock:
    """Elapsed time in this process; see `core.ports.Clock`."""

    def monotonic(self) -> float:
        """See Clock."""
        # A lease also expires while the machine is suspended; Python's monotonic clock does not count that time on
        # Linux.
        return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """See Clock."""
        await asyncio.sleep(seconds)


@contextlib.contextmanager
def _collecting_rarely() -> Iterator[None]:
    """Collect cyclic garbage rarely, and not among objects that were loaded before.

    Python collects after 700 new objects, which one or two messages create. Scanning all that Dagster loaded took a
    seventh of a worker's processor time.
    """
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def run_async(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on its own fast event loop."""
    with _collecting_rarely():
        try:
            import uvloop
        except ImportError:  # not available on Windows
            return asyncio.run(main)
        return uvloop.run(main)


async def deliver(
    url: str,
    shard: Shard,
    contexts: Sequence[Mapping[str, Any]],
    settings: BatchSettings,
    providers: ProvidersResource,
    concurrency: int,
    owner: str,
    on_started: Callable[[ShardWorker], None] = lambda _: None,
    tell: Callable[[str], None] = lambda _: None,
    why_to_stop: Callable[[], str | None] = lambda: None,
) -> ShardReport:
    """Take over a shard and deliver it. The first signal or reason to stop ends it in an orderly way.

    Meanwhile `tell` gets a line every 30 seconds, in its own thread, because it may write to a database.
    """
    async with _running(on_started, why_to_stop) as start, connection_pool(url) as pool:
        return await _deliver(url, shard, contexts, settings, providers, concurrency, owner, start, tell, pool)


async def deliver_side_by_side(
    url: str,
    shards: Sequence[Shard],
    contexts: Sequence[Mapping[str, Any]],
    settings: BatchSettings,
    providers: ProvidersResource,
    concurrency: int,
    owner: str,
    on_started: Callable[[ShardWorker], None] = lambda _: None,
    tell: Callable[[str], None] = lambda _: None,
    why_to_stop: Callable[[], str | None] = lambda: None,
) -> list[ShardReport]:
    """Deliver several shards at once, each with its own `concurrency`, over one small connection pool.

    Meanwhile `tell` gets a line of each every 30 seconds.

    The first signal or reason to stop ends all of them in an orderly way. If one fails, the others first finish.
    """
    async with _running(on_started, why_to_stop) as start, connection_pool(url) as pool:
        deliveries = (
            _deliver(
                *(url, shard, contexts, settings, providers, concurrency, f"{owner} {shard.key}", start, tell),
                pool,
            )
            for shard in shards
        )
        results = await asyncio.gather(*deliveries, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if isinstance(result, ShardReport)]


async def _deliver(
    url: str,
    shard: Shard,
    contexts: Sequence[Mapping[str, Any]],
    settings: BatchSettings,
    providers: ProvidersResource,
    concurrency: int,
    owner: str,
    on_started: Callable[[ShardWorker], None],
    tell: Callable[[str], None],
    pool: ConnectionPool,
) -> ShardReport:
    options, clock = DeliverySettings.from_environment(), ProcessClock()
    connection = await Queue(partial(borrowed, pool)).get_inbox_connection(shard.inbox_id)
    async with (
        ShardStore.open(pool, url, shard, owner, options.lease_seconds) as store,
        providers.open(connection, concurrency) as outside,
    ):
        leased_at = clock.monotonic()
        messages, left, now = await store.take_over()
        if (hours := outside.channel.traits.free_text_hours) is not None:
            messages = await store.with_last_inbound(messages, hours)
        if now is None:
            return await _with_the_rest(ShardReport(shard.key, shard.inbox_id), shard, left, store)
        delivery = ShardWorker(
            shard=shard,
            messages=messages,
            started_at=now,
            settings=settings,
            leads=_Leads(contexts),
            store=store,
            model=outside.model,
            channel=outside.channel,
            channel_kind=outside.channel_kind,
            heartbeat=ThreadHeartbeat(store.renewals()),
            clock=clock,
            policy=delivery_policy(options),
            leased_at=leased_at,
        )
        on_started(delivery)
        async with _told_of(delivery, tell):
            report = await delivery.run(concurrency)
        return await _with_the_rest(report, shard, left, store)


@contextlib.asynccontextmanager
async def _told_of(delivery: ShardWorker, tell: Callable[[str], None]) -> AsyncIterator[None]:
    async def keep_telling() -> None:
        while True:
            await asyncio.sleep(PROGRESS_SECONDS)
            await asyncio.to_thread(tell, delivery.progress())

    telling = asyncio.create_task(keep_telling())
    try:
        yield
    finally:
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)


async def _with_the_rest(report: ShardReport, shard: Shard, left: Mapping[str, str], store: ShardStore) -> ShardReport:
    """Return a shard's report with the messages that this worker did not take over.

    Messages that an earlier worker of the same shard finished count with their results: a step that lost its database
    and is repeated must not report that nothing was sent.
    """
    finished = await store.finished([each for each, verdict in left.items() if verdict == "finished"])
    for message_id, result in finished:
        count_result(report, result, message_id)
    ours = {message_id for message_id, _ in finished}
    report.left = dict(Counter(verdict for message_id, verdict in left.items() if message_id not in ours))
    report.claimed = len(shard.message_ids)
    return report


class _Leads(Mapping[str, Lead]):
    """The leads of a batch, each read when its message's turn comes and not kept."""

    def __init__(self, contexts: Sequence[Mapping[str, Any]]) -> None:
        self._contexts = contexts
        self._places = {lead_id: place for place, lead_id in enumerate(column(contexts, "lead_id"))}

    def __getitem__(self, lead_id: str) -> Lead:
        return lead_of(self._contexts[self._places[lead_id]])

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def lead_of(row: Mapping[str, Any]) -> Lead:
    """Build a lead from its row of `get_lead_contexts`, whose context is JSON text or already parsed."""
    context = row["context"] if isinstance(row["context"], Mapping) else orjson.loads(row["context"])
    fields = in_order(context.get("custom_fields"))
    email = context.get("email") or email_among(fields)
    known = LeadContext.from_row({**context, "custom_fields": fields})
    return Lead(row["lead_id"], row["phone"], known, email=email, other_phones=phones_among(fields))


class _RunningShards:
    """The running shards of this process, which a signal or another reason ends in an orderly way."""

    def __init__(self) -> None:
        self.signals: list[int] = []
        self._workers: list[ShardWorker] = []
        self._reason: str | None = None

    def add(self, worker: ShardWorker) -> None:
        """Register a shard to be stopped, even if the reason is already there."""
        self._workers.append(worker)
        if self._reason is not None:
            worker.stop(self._reason)

    def stop(self, reason: str) -> None:
        """End all shards in an orderly way."""
        self._reason = reason
        for worker in self._workers:
            worker.stop(reason)

    def receive(self, number: int) -> None:
        """End all shards because a signal arrived."""
        self.signals.append(number)
        self.stop(TERMINATED)


@contextlib.asynccontextmanager
async def _running(
    on_started: Callable[[ShardWorker], None], why_to_stop: Callable[[], str | None]
) -> AsyncIterator[Callable[[ShardWorker], None]]:
    """Yield what each shard is registered with when it starts; the first signal or reason to stop ends all of them."""
    shards = _RunningShards()

    def start(worker: ShardWorker) -> None:
        shards.add(worker)
        on_started(worker)

    with _stopped_by_signals(shards):
        async with stopped_by_questions(shards.stop, why_to_stop):
            yield start


@contextlib.contextmanager
def _stopped_by_signals(shards: _RunningShards) -> Iterator[None]:
    """End shards in an orderly way on Ctrl-C or a terminated run, then pass the interrupt to Dagster.

    Dagster's own handler raises at any point of the process, which in an event loop may be the middle of any task: an
    answer could be lost between the provider and the ledger.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        loop.add_signal_handler(number, shards.receive, number)
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
    if shards.signals:
        raise dg.DagsterExecutionInterruptedError
