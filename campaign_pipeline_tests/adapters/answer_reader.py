"""Queries a misbehaving server, four times at once, in its own process, to measure that process's peak of memory.

It tells what came of it, how much memory that took, and for how much processor time the event loop stood still.
"""

import asyncio
import json
import resource
import sys
import time
from itertools import pairwise
from typing import Any

import httpx

from campaign_pipeline.adapters.http import NoAnswer, http_client, post

KEY = "a-key-of-no-account"


async def main(base: str, *kinds: str) -> None:
    """Warm up on an address that refuses, then measure each kind of misbehaviour."""
    told = {}
    async with http_client(connections=4) as client:
        await post(client, "http://127.0.0.1:1/", {}, {"apikey": KEY}, 5.0)
        for kind in kinds:
            told[kind] = await measure(client, f"{base}/{kind}")
    print(json.dumps(told))  # noqa: T201 (what the test reads)


async def measure(client: httpx.AsyncBaseTransport, url: str) -> dict[str, Any]:
    """Ask four times at once."""
    beats: list[float] = []

    async def beat() -> None:
        while True:
            beats.append(time.thread_time())  # a machine that is busy with others does not block this loop
            await asyncio.sleep(0.005)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    heart = asyncio.create_task(beat())
    answers = await asyncio.gather(*(post(client, url, {"text": "Olá"}, {"apikey": KEY}, 5.0) for _ in range(4)))
    heart.cancel()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "left": [isinstance(answer, NoAnswer) and answer.may_have_left for answer in answers],
        "told": [answer.reason if isinstance(answer, NoAnswer) else repr(answer) for answer in answers],
        "grown_mib": (after - before) / 1024,
        "longest_stop": max((later - earlier for earlier, later in pairwise(beats)), default=0.0),
    }


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
