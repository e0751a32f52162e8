"""A crew ends with its last task, fails with its first error, and outlives who waits for it."""

import asyncio

import pytest

from campaign_pipeline.core.crew import Crew
from campaign_pipeline_tests.core.stand_ins import in_no_time, now


def test_a_crew_ends_when_the_last_of_those_who_were_called_in_ends() -> None:
    crew, ended = Crew(), []

    async def work(generation: int) -> None:
        await asyncio.sleep(1.0)
        if generation < 5:
            crew.start(work(generation + 1))
        await asyncio.sleep(0.5)
        ended.append(generation)

    async def main() -> float:
        crew.start(work(1))
        await crew.ended()
        return now()

    assert in_no_time(main()) == 5.5
    assert ended == [1, 2, 3, 4, 5]


def test_a_crew_without_anybody_has_ended() -> None:
    in_no_time(Crew().ended())


async def _fail(seconds: float) -> None:
    await asyncio.sleep(seconds)
    raise ZeroDivisionError


def test_the_first_error_is_raised_at_once_and_leaves_the_others_at_work() -> None:
    crew = Crew()

    async def main() -> float:
        crew.start(asyncio.sleep(100.0))
        crew.start(_fail(1.0))
        with pytest.raises(ZeroDivisionError):
            await crew.ended()
        failed = now()
        await crew.finish(1000.0)
        assert now() == 100.0
        return failed

    assert in_no_time(main()) == 1.0


def test_who_is_cancelled_while_waiting_leaves_the_crew_at_work_for_as_long_as_it_is_given() -> None:
    async def main(grace: float) -> list[str]:
        crew, done = Crew(), []

        async def work() -> None:
            await asyncio.sleep(5.0)
            done.append("done")

        crew.start(work())
        waiting = asyncio.ensure_future(crew.ended())
        await asyncio.sleep(1.0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await crew.finish(grace)
        await crew.cancel()
        return done

    assert in_no_time(main(10.0)) == ["done"]
    assert in_no_time(main(1.0)) == []


def test_nobody_who_is_called_in_while_a_crew_is_cancelled_stays_behind() -> None:
    crew = Crew()
    left: list[str] = []

    async def stubborn() -> None:
        try:
            await asyncio.sleep(10.0)
        finally:
            crew.start(_note_end(left))

    async def main() -> None:
        crew.start(stubborn())
        await asyncio.sleep(1.0)
        await crew.cancel()
        assert now() == 1.0

    in_no_time(main())
    assert left == []


async def _note_end(left: list[str]) -> None:
    await asyncio.sleep(10.0)
    left.append("stayed behind")
