"""Delivers one shard: concurrency, leases, orderly stop."""

import asyncio
import random
import statistics
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from campaign_pipeline.core.admission import Admission, StopSignal
from campaign_pipeline.core.campaign_log import CampaignLog
from campaign_pipeline.core.circuits import Circuits
from campaign_pipeline.core.lease_keeper import Heartbeat, LeaseKeeper
from campaign_pipeline.core.message_delivery import MessageDelivery
from campaign_pipeline.core.model import BatchSettings, Lead, LeasedMessage, Shard, ShardReport
from campaign_pipeline.core.phone_numbers import NumberDirectory
from campaign_pipeline.core.ports import (
    Clock,
    DeliveryStore,
    Failure,
    LanguageModel,
    MessageChannel,
    NotReady,
    StoreUnavailable,
    Systemic,
    Throttled,
)
from campaign_pipeline.core.shard_context import DeliveryPolicy, SendingHours, ShardContext, ShardTime
from campaign_pipeline.core.slots import Slots
from campaign_pipeline.core.text_writer import TextWriter

TERMINATED = "The run was terminated."

PLANS_SECONDS = 5.0
"""How often the planned times of sleeping messages are read: one that is moved forward waits no longer than this."""

MANY_SUSPECTS = 50
"""Messages with a dead worker, of which one is delivered at a time."""


@dataclass
class ShardWorker:
    """Delivers the messages of one shard.

    A message takes one of `concurrency` slots and frees it when its last response arrives, before its result is
    committed; the next message takes the slot at once. A message that was claimed ahead of its planned time gets its
    text, frees its slot, and takes one again at that time.
    """

    shard: Shard
    messages: Sequence[LeasedMessage]
    started_at: datetime  # by the database's clock, when the messages were read
    settings: BatchSettings
    leads: Mapping[str, Lead]
    store: DeliveryStore
    model: LanguageModel
    channel: MessageChannel
    channel_kind: str  # whatsapp, email
    heartbeat: Heartbeat
    clock: Clock
    policy: DeliveryPolicy = field(default_factory=DeliveryPolicy)
    chance: Callable[[], float] = random.random
    leased_at: float | None = None  # by `clock`, before the messages were taken over; None: now
    report: ShardReport = field(init=False)

    def __post_init__(self) -> None:
        name = self.settings.inbox_names.get(self.shard.inbox_id, "")
        self.report = ShardReport(self.shard.key, self.shard.inbox_id, name, claimed=len(self.messages))
        self.time = ShardTime(self.clock, self.started_at)
        self._stop = StopSignal(self.clock)
        self._shared = self._context()
        # One of the messages may have killed a worker: suspects go last, one at a time. If there are many, the worker
        # was killed from outside, and one at a time would take hours.
        self._waiting = deque(sorted(self.messages, key=lambda message: message.worker_deaths > 0))
        self._suspects_at_once = 1 + sum(message.worker_deaths > 0 for message in self.messages) // MANY_SUSPECTS
        self._at_work: dict[str, MessageDelivery] = {}
        self._slots = Slots(0, self._start_waiting)
        self._most_at_work = 0
        self._aborted = False

    def _context(self) -> ShardContext:
        log = CampaignLog(self.store.log)
        unrecognised = self.policy.most_unrecognised_answers
        circuits = Circuits(self.settings, self.store, self.clock, log, unrecognised)
        admission = Admission(self.settings, self.policy, self.store, circuits, self.clock, self.chance, self._stop)
        leased_at = self.clock.monotonic() if self.leased_at is None else self.leased_at
        return ShardContext(
            inbox_id=self.shard.inbox_id,
            settings=self.settings,
            policy=self.policy,
            leads=self.leads,
            store=self.store,
            channel=self.channel,
            channel_kind=self.channel_kind,
            clock=self.clock,
            time=self.time,
            hours=SendingHours(self.settings),
            chance=self.chance,
            stop=self._stop,
            leases=LeaseKeeper(self.messages, self.clock, self.policy.lease_seconds, leased_at, log),
            admission=admission,
            circuits=circuits,
            numbers=NumberDirectory(self.store, self.channel, log),
            writer=TextWriter(
                self.model,
                self.settings,
                self.channel.traits,
                self.policy,
                self.clock,
                self.report,
                circuits,
                log,
            ),
            log=log,
            report=self.report,
        )

    async def run(self, concurrency: int) -> ShardReport:
        """Deliver every message, at most `concurrency` at once; give back the rest however this ends.

        Raises StoreUnavailable if the database stays unavailable: the leases then expire.
        """
        self.heartbeat.start(self._shared.leases.beat)
        upkeep = asyncio.create_task(self._repeat(self._shared.leases.beat_seconds, self._keep_up))
        plans = asyncio.create_task(self._repeat(PLANS_SECONDS, self._follow_plans))
        deliveries: asyncio.Task[None] | None = None
        try:
            await self._check_connection()
            await self._load_numbers()
            deliveries = asyncio.create_task(self._deliver_all(concurrency))
            await asyncio.shield(deliveries)
        except asyncio.CancelledError:
            self.stop(TERMINATED)
            if deliveries is not None:
                await asyncio.wait([deliveries], timeout=self.policy.grace_seconds)
            raise
        except StoreUnavailable:
            self._waiting.clear()
            self._at_work.clear()  # nothing can be given back: the leases expire
            raise
        finally:
            background = [task for task in (upkeep, plans, deliveries) if task is not None]
            for task in background:
                task.cancel()
            await asyncio.gather(*background, self._shared.admission.cancel_prefetch(), return_exceptions=True)
            try:
                await self._release_rest()
            finally:
                await self.heartbeat.stop()
            self.report.seconds = round(self.time.seconds(), 3)
        return self.report

    def stop(self, reason: str) -> None:
        """Start nothing new: requests in flight finish and are recorded; the other messages return to the queue."""
        self._stop.set(reason)
        self.report.stopped_by = self._stop.reason

    def progress(self) -> str:
        """Summarise the running shard in one line: done, waiting, pace, and what slows it down."""
        report, minutes = self.report, self.time.seconds() / 60
        ended = {"sent": report.sent, "failed": report.failed, "skipped": report.skipped, "returned": report.returned}
        counts = ", ".join(f"{count} {what}" for what, count in ended.items() if count or what == "sent")
        pace = f"{report.sent / minutes:.1f} a minute" if minutes else "no pace yet"
        left = f"{len(self._at_work)} at work, {len(self._waiting)} waiting"
        why = self._shared.admission.slowed_by or self._durations()
        return f"{report.inbox}: {counts} of {report.claimed}; {left}; {pace}. {why}"

    def _durations(self) -> str:
        """Say how long each message takes, if nothing of ours slows it down."""
        stages = {"text": self.report.generation_ms, "part": self.report.send_ms}
        known = [f"{statistics.median(ms) / 1000:.1f} s a {stage}" for stage, ms in stages.items() if ms]
        return f"Nothing slows it down: {', '.join(known)}." if known else "No answer has arrived yet."

    async def _repeat(self, seconds: float, task: Callable[[], Awaitable[None]]) -> None:
        """Do something at intervals beside the deliveries. One failure does not end it: nobody would notice."""
        while True:
            await self.clock.sleep(seconds)
            try:
                await task()
            except StoreUnavailable:
                pass  # the next time does it
            except Exception as error:  # noqa: BLE001
                text = f"{type(error).__name__} in {task.__name__}; this is a bug of the pipeline."
                self._shared.log(self.messages[0], "prepare", "warning", text)

    async def _keep_up(self) -> None:
        """Record that this event loop is alive, and write the log."""
        self._shared.leases.note_alive()
        await self.store.flush()

    async def _follow_plans(self) -> None:
        """Wake sleeping messages that were planned for another time, deleted, or taken over.

        Without it they would notice at their old time, when everything is asked again.
        """
        asleep = [delivery for delivery in self._at_work.values() if delivery.is_asleep]
        if not asleep:
            return
        times = await self.store.planned_times([delivery.id for delivery in asleep])
        for delivery in asleep:
            if delivery.is_asleep:
                delivery.note_plan(times.get(delivery.id))

    async def _check_connection(self) -> None:
        """Check the inbox once for the whole shard, before texts are generated for an inbox that cannot send."""
        if not self.messages:
            return
        try:
            refusal = await self._connection_state()
        except Exception as error:  # noqa: BLE001 (the check failed: sending will tell)
            text = f"{type(error).__name__} while the inbox was asked for its state; this is a bug of the pipeline."
            self._shared.log(self.messages[0], "prepare", "warning", text)
            return
        if isinstance(refusal, NotReady):
            # It reconnects: no circuit is opened, and no pace changes.
            self._shared.admission.not_ready = refusal
        elif isinstance(refusal, Systemic | Throttled):
            await self._shared.circuits.open(self.messages[0], refusal)

    async def _connection_state(self) -> Failure | NotReady | None:
        """Return what keeps the inbox from sending, after it had a short time to connect."""
        until = self.clock.monotonic() + self.policy.max_inline_wait_seconds
        while isinstance(state := await self.channel.check_connection(), NotReady):
            if self._stop.reason or self.clock.monotonic() + state.retry_after > until:
                break
            await self._stop.sleep(state.retry_after)
        return state

    async def _load_numbers(self) -> None:
        if self._shared.checks_numbers:
            messages = [(message, self._shared.lead_of(message)) for message in self.messages]
            days = (self.policy.number_check_days, self.policy.number_recheck_days)
            await self._shared.numbers.load(messages, *days)

    async def _deliver_all(self, concurrency: int) -> None:
        """Deliver until no message waits. The first StoreUnavailable cancels the other deliveries."""
        self._slots = Slots(concurrency, self._start_waiting)
        # If this process died, every accepted but unrecorded message would have to be looked up. So there are no more
        # uncommitted results than slots.
        self._most_at_work = 2 * concurrency
        try:
            async with asyncio.TaskGroup() as self._group:
                self._start_waiting()
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    def _start_waiting(self) -> None:
        """Start messages while slots are free."""
        while self._waiting and self._slots.free and len(self._at_work) - self._slots.sleepers < self._most_at_work:
            if self._stop.reason or self._aborted:
                return
            if self._waiting[0].worker_deaths and len(self._at_work) >= self._suspects_at_once:
                break
            message = self._waiting.popleft()
            self._at_work[message.id] = delivery = self._delivery_of(message)
            self._slots.take()
            self._group.create_task(self._deliver(delivery))
        self._shared.admission.announce(self._next_for_model())

    def _delivery_of(self, message: LeasedMessage) -> MessageDelivery:
        return MessageDelivery(message, self._shared, self._slots)

    def _next_for_model(self) -> LeasedMessage | None:
        """Return the next message, if it surely needs the model; a template may not."""
        message = self._waiting[0] if self._waiting else None
        if message is None or message.text is not None or message.parts or message.worker_deaths:
            return None
        if self.channel.traits.free_text_hours is not None:
            return None
        return message

    async def _deliver(self, delivery: MessageDelivery) -> None:
        try:
            # If the lease was lost while the message waited, there is nothing to deliver.
            if self._shared.leases.was_held(delivery.id):
                await delivery.deliver()
            else:
                await delivery.release("")
        except BaseException:
            self._aborted = True
            raise
        del self._at_work[delivery.id]
        delivery.release_slot()
        self._start_waiting()

    async def _release_rest(self) -> None:
        """Give back all unfinished messages."""
        rest = [*self._at_work.values(), *map(self._delivery_of, self._waiting)]
        self._waiting.clear()
        reason = self._stop.reason or "The shard ended before this message was finished."
        # If even this fails, the database is unavailable, and the leases will expire.
        await asyncio.gather(*(delivery.release(reason) for delivery in rest), return_exceptions=True)
