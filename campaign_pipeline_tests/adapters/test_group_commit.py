import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import psycopg
import pytest

from campaign_pipeline.adapters.group_commit import ENOUGH, LONGEST_REST_SECONDS, NEAR_SECONDS, GroupCommit, Turns
from campaign_pipeline_tests.core.stand_ins import in_no_time, now


class Server:
    """A statement that records its groups, and can be held, fail, or fail for one item."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.at_once = 0
        self.most_at_once = 0
        self.open = asyncio.Event()
        self.open.set()
        self.started = asyncio.Event()

    async def execute(self, items: Sequence[int]) -> list[str]:
        self.groups.append(list(items))
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        self.started.set()
        await self.open.wait()
        self.at_once -= 1
        if any(item < 0 for item in items):
            raise psycopg.DataError("out of range")
        return [f"stored {item}" for item in items]


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), 20))


def submit(group_commit: GroupCommit[int, str], *items: int) -> "list[asyncio.Task[str]]":
    return [asyncio.create_task(group_commit.submit(item)) for item in items]


def test_items_that_are_ready_together_go_together_and_get_their_own_results() -> None:
    async def main() -> None:
        server = Server()
        answers = await asyncio.gather(*submit(GroupCommit(server.execute), 3, 1, 2))
        assert answers == ["stored 3", "stored 1", "stored 2"]
        assert server.groups == [[3, 1, 2]]

    run(main)


def test_items_that_come_while_a_group_is_in_flight_make_the_next_one_in_order() -> None:
    async def main() -> None:
        server = Server()
        group_commit = GroupCommit(server.execute)
        server.open.clear()
        first = submit(group_commit, 1)
        await server.started.wait()
        later = submit(group_commit, *range(2, 50))
        await asyncio.sleep(0)
        assert server.groups == [[1]]
        server.open.set()
        assert await asyncio.gather(*first, *later) == [f"stored {n}" for n in range(1, 50)]
        assert server.groups == [[1], list(range(2, 50))]
        assert server.most_at_once == 1

    run(main)


def test_a_group_has_a_greatest_size() -> None:
    async def main() -> None:
        server = Server()
        await asyncio.gather(*submit(GroupCommit(server.execute, size=4), *range(10)))
        assert server.groups == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]

    run(main)


def test_items_of_one_key_never_share_a_group_and_keep_their_order() -> None:
    async def main() -> None:
        server = Server()
        await asyncio.gather(*submit(GroupCommit(server.execute, key=lambda n: n % 10), 11, 21, 12, 31, 22))
        assert server.groups == [[11, 12], [21, 22], [31]]

    run(main)


def test_one_bad_item_fails_alone() -> None:
    async def main() -> None:
        server = Server()
        answers = await asyncio.gather(*submit(GroupCommit(server.execute), 1, -2, 3), return_exceptions=True)
        assert answers[0] == "stored 1"
        assert isinstance(answers[1], psycopg.DataError)
        assert answers[2] == "stored 3"

    run(main)


def test_a_bad_item_alone_is_not_tried_again() -> None:
    async def main() -> None:
        server = Server()
        with pytest.raises(psycopg.DataError):
            await GroupCommit(server.execute).submit(-1)
        assert server.groups == [[-1]]

    run(main)


@pytest.mark.parametrize("error", [psycopg.OperationalError("gone"), RuntimeError("a bug"), KeyError("id")])
def test_an_error_of_no_item_reaches_all_of_the_group_and_none_of_the_next(error: Exception) -> None:
    async def main() -> None:
        failing = True

        async def execute(items: Sequence[int]) -> list[int]:
            if failing:
                raise error
            return list(items)

        group_commit = GroupCommit(execute)
        answers = await asyncio.gather(*(group_commit.submit(n) for n in range(3)), return_exceptions=True)
        assert answers == [error] * 3
        failing = False
        assert await group_commit.submit(7) == 7

    run(main)


def test_a_statement_with_a_missing_result_leaves_no_caller_waiting() -> None:
    async def main() -> None:
        async def execute(items: Sequence[int]) -> list[int]:
            return list(items)[1:]

        answers = await asyncio.gather(*(GroupCommit(execute).submit(n) for n in range(1)), return_exceptions=True)
        assert isinstance(answers[0], RuntimeError)

    run(main)


def test_whoever_stops_waiting_takes_nothing_from_the_others() -> None:
    async def main() -> None:
        server = Server()
        server.open.clear()
        waiting = submit(GroupCommit(server.execute), 1, 2, 3)
        await server.started.wait()
        waiting[1].cancel()
        server.open.set()
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        assert (answers[0], answers[2]) == ("stored 1", "stored 3")
        assert isinstance(answers[1], asyncio.CancelledError)
        assert server.groups == [[1, 2, 3]]

    run(main)


def test_it_works_again_after_it_was_idle() -> None:
    async def main() -> None:
        server = Server()
        group_commit: GroupCommit[int, str] = GroupCommit(server.execute)
        work: list[Awaitable[str]] = []
        for n in range(3):
            work.append(group_commit.submit(n))
            assert await work[-1] == f"stored {n}"
        assert server.groups == [[0], [1], [2]]

    run(main)


@pytest.mark.parametrize(("seconds", "at_once"), [(0.0, 1), (2 * NEAR_SECONDS, 2)])
def test_two_kinds_of_groups_take_turns_unless_the_database_is_far_away(seconds: float, at_once: int) -> None:
    async def main() -> None:
        server, turns = Server(), Turns()

        async def execute(items: Sequence[int]) -> list[str]:
            await asyncio.sleep(seconds)
            return await server.execute(items)

        kinds = [GroupCommit(execute, turns=turns) for _ in range(2)]
        await kinds[0].submit(0)  # by which it knows how far away the database is
        server.open.clear()
        server.started.clear()
        first = submit(kinds[0], 1)
        await server.started.wait()
        second = submit(kinds[1], 2)
        await asyncio.sleep(seconds + NEAR_SECONDS)
        assert server.at_once == at_once
        more = submit(kinds[1], 3)
        await asyncio.sleep(0)
        server.open.set()
        assert await asyncio.gather(*first, *second, *more) == ["stored 1", "stored 2", "stored 3"]
        assert server.groups[2:] == ([[2, 3]] if at_once == 1 else [[2], [3]])

    in_no_time(main())  # how far away a database is does not depend on how busy this machine is


def test_a_statement_that_is_stuck_does_not_keep_the_other_kind_waiting() -> None:
    async def main() -> None:
        server, quick, turns = Server(), Server(), Turns()
        stuck, other = GroupCommit(server.execute, turns=turns), GroupCommit(quick.execute, turns=turns)
        await stuck.submit(0)
        server.open.clear()
        first = submit(stuck, 1)
        await asyncio.sleep(0.01)
        assert await asyncio.wait_for(other.submit(2), 5) == "stored 2"
        assert not first[0].done()
        server.open.set()
        assert await first[0] == "stored 1"
        assert await asyncio.gather(*submit(stuck, 3), *submit(other, 4)) == ["stored 3", "stored 4"]

    run(main)


async def starts_of_statements(seconds: float, came_at: Sequence[float]) -> list[tuple[float, int]]:
    """Return the start and size of each statement that takes some time, after a first quick one."""
    groups: list[tuple[float, int]] = []
    durations = [0.001]

    async def execute(items: Sequence[int]) -> list[int]:
        groups.append((round(now() - started, 6), len(items)))
        await asyncio.sleep(durations.pop() if durations else seconds)
        return list(items)

    group_commit = GroupCommit(execute)
    started = now()
    await group_commit.submit(0)
    await asyncio.sleep(1)
    groups.clear()
    started = now()

    async def submit_at(at: float) -> None:
        await asyncio.sleep(at)
        await group_commit.submit(1)

    await asyncio.gather(*map(submit_at, came_at))
    return groups


def test_statements_of_a_near_database_rest_twice_as_long_as_they_took_while_the_next_group_gathers() -> None:
    assert in_no_time(starts_of_statements(0.002, [0, 0.001, 0.003, 0.005, 0.1])) == [(0, 1), (0.006, 3), (0.1, 1)]


def test_a_group_of_enough_items_does_not_rest() -> None:
    arrivals = [0.0, *(0.0021 for _ in range(ENOUGH - 1)), 0.003, 0.004]
    assert in_no_time(starts_of_statements(0.002, arrivals)) == [(0, 1), (0.003, ENOUGH), (0.009, 1)]


def test_a_rest_that_other_statements_prolong_ends() -> None:
    async def main() -> float:
        turns, done = Turns(), asyncio.Event()

        async def execute(items: Sequence[int]) -> list[int]:
            await asyncio.sleep(0.001)
            return list(items)

        busy, rare = (GroupCommit(execute, turns=turns) for _ in range(2))
        await busy.submit(0)

        async def keep_busy() -> None:
            while not done.is_set():
                await asyncio.gather(*(busy.submit(n) for n in range(ENOUGH)))

        work = asyncio.create_task(keep_busy())
        started = now()
        await rare.submit(0)
        seconds = now() - started
        done.set()
        await work
        return seconds

    assert in_no_time(main()) < LONGEST_REST_SECONDS + 0.01


def test_no_message_waits_long_for_company_after_a_slow_statement() -> None:
    second = 1 + LONGEST_REST_SECONDS
    assert in_no_time(starts_of_statements(1, [0, 0.5, 1.01])) == [(0, 1), (second, 2)]
