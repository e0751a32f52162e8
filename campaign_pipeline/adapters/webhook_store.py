"""Stores and applies the events of our own webhook."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from functools import partial

from psycopg.types.json import Jsonb

from campaign_pipeline.adapters.group_commit import GroupCommit
from campaign_pipeline.adapters.statements import Lender, Statements, borrowed, connection_pool, lender_of
from campaign_pipeline.adapters.webhook_events import WebhookEvent

EVENTS_A_ROUND = 200
"""Events per transaction: changed rows stay locked during it."""


class WebhookStore(Statements):
    """Stores events, and applies stored ones."""

    def __init__(self, url: str, patience_seconds: float = 10.0, connection: Lender | None = None) -> None:
        super().__init__(connection or url, patience_seconds)
        self._url = url
        self._storing = GroupCommit[WebhookEvent, None](self._store_group, size=500)

    @contextlib.asynccontextmanager
    async def kept_open(self) -> AsyncIterator[None]:
        """Keep connections between statements: in a burst, a new one costs more than what it stores."""
        # Opened without waiting: each call waits for an unavailable database.
        async with connection_pool(self._url, self._patience) as pool:
            self._connection = partial(borrowed, pool)
            try:
                yield
            finally:
                self._connection = lender_of(self._url)

    async def store(self, events: Sequence[WebhookEvent]) -> None:
        """Return when the events are committed. Raises StoreUnavailable."""
        await asyncio.gather(*(self._storing.submit(event) for event in events))

    async def _store_group(self, events: Sequence[WebhookEvent]) -> list[None]:
        await self._all("store_webhook_events", events=Jsonb([vars(event) for event in events]))
        return [None] * len(events)

    async def settle(self) -> Counter[str]:
        """Apply all due events; return how many ended how. Safe to call concurrently."""
        verdicts = Counter[str]()
        while True:
            rows = await self._all("settle_webhook_events", limit=EVENTS_A_ROUND)
            found = Counter({row["verdict"]: int(row["events"]) for row in rows})
            verdicts.update(found)
            if found.total() < EVENTS_A_ROUND:
                return verdicts

    async def drop_old(self) -> None:
        """Delete events that were handled a month ago."""
        await self._all("drop_settled_webhook_events")
