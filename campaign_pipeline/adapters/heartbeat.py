"""The heartbeat of a shard in its own thread, with its own connection.

One message may block the event loop that delivers messages (a text check, a library); the leases of the others must
not expire meanwhile.
"""

import asyncio
import threading
from contextlib import suppress

from campaign_pipeline.core.lease_keeper import Beat
from campaign_pipeline.core.ports import LeaseStore


class ThreadHeartbeat:
    """See `core.lease_keeper.Heartbeat`."""

    def __init__(self, store: LeaseStore) -> None:
        self._store = store
        self._started = threading.Event()

    def start(self, beat: Beat) -> None:
        """See Heartbeat."""
        self._thread = threading.Thread(target=self._run, args=(beat,), name="lease heartbeat", daemon=True)
        self._thread.start()

    def _run(self, beat: Beat) -> None:
        with suppress(asyncio.CancelledError):
            asyncio.run(self._beat(beat))

    async def _beat(self, beat: Beat) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.create_task(beat(self._store))
        self._started.set()
        await self._task

    async def stop(self) -> None:
        """See Heartbeat."""
        await asyncio.to_thread(self._end)

    def _end(self) -> None:
        self._started.wait()
        with suppress(RuntimeError):  # its loop has ended already
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join()
