"""The two requests of each message and nothing else: no database, no ledger. The lower bound for one process.

`python -m benchmarks.rivals.bare_loop LETTERS PART OF IN_FLIGHT` works one part and prints its start and end.
"""

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.rivals.letters import Letters, client_session, generate, send
from benchmarks.world import plain_environment


async def run_bare_loop(letters: Letters, in_flight: int) -> float:
    """Work all letters behind a semaphore; return the seconds."""
    slots = asyncio.Semaphore(in_flight)
    async with client_session(in_flight) as session:

        async def work(no: int) -> None:
            async with slots:
                letter = letters.letters[no]
                await send(session, letter, await generate(session, letters.generation_url, letter))

        started = time.perf_counter()
        await asyncio.gather(*(work(no) for no in range(len(letters.letters))))
        return time.perf_counter() - started


def run_in_processes(file: Path, processes: int, in_flight: int) -> float:
    """Work the letters of a file in several processes, `in_flight` in total; return the seconds without start-up."""
    command = [sys.executable, "-m", "benchmarks.rivals.bare_loop", str(file)]
    children = [
        subprocess.Popen(
            [*command, str(no), str(processes), str(in_flight // processes)],
            env=plain_environment(),
            stdout=subprocess.PIPE,
        )
        for no in range(processes)
    ]
    spans = [json.loads(child.communicate()[0]) for child in children]
    return float(max(end for _, end in spans) - min(start for start, _ in spans))


def _main(file: str, part: str, of: str, in_flight: str) -> None:
    letters = Letters.load(Path(file)).part(int(part), int(of))

    async def timed() -> tuple[float, float]:
        started = time.time()
        await run_bare_loop(letters, int(in_flight))
        return started, time.time()

    try:
        import uvloop

        span = uvloop.run(timed())
    except ImportError:  # not on Windows
        span = asyncio.run(timed())
    print(json.dumps(span))


if __name__ == "__main__":
    _main(*sys.argv[1:])
