import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from campaign_pipeline.adapters.embedded import EmbeddedServer
from campaign_pipeline.adapters.queue import BatchOptions, Queue
from campaign_pipeline.adapters.shard_store import ShardStore
from campaign_pipeline.adapters.statements import connection_pool
from campaign_pipeline.core.model import PartStatus, Shard, split_batch
from campaign_pipeline.core.ports import (
    Attempt,
    BeginPart,
    Envelope,
    Scope,
    Settled,
    Settlement,
    StoreUnavailable,
    Systemic,
    Throttled,
)
from campaign_pipeline_tests.adapters.restarts import crash, start
from campaign_pipeline_tests.factories import World
from campaign_pipeline_tests.sql.holder import PHONE, insert_due, message, part_states, parts

Work = Callable[[ShardStore, list[str]], Awaitable[None]]


def claimed_shard(url: str) -> Shard:
    """Return all due messages, as one shard."""
    batch = asyncio.run(Queue(url).claim_batch(BatchOptions(batch_size=1000, owner="test")))
    (shard,) = split_batch(batch.rows, 1000)
    return shard


def with_store(url: str, work: Work, shard: Shard | None = None, **options: Any) -> None:
    """Take over due messages, and deliver them."""
    shard = shard or claimed_shard(url)

    async def main() -> None:
        async with (
            connection_pool(url, **options) as pool,
            ShardStore.open(pool, url, shard, "run 1234 inbox_1", 120.0, **options) as store,
        ):
            messages, _, _ = await store.take_over()
            await work(store, [message.id for message in messages])

    asyncio.run(asyncio.wait_for(main(), 60))


def begin(message_id: str, **changes: Any) -> BeginPart:
    plain = BeginPart(
        message_id, 1, 1, PHONE, "whatsapp", "Ana", ("Olá, Ana!",), "Olá, Ana!", "a/model", 42, 0.0001, 350
    )
    return replace(plain, **changes)


def sent(message_id: str, part_no: int = 1, **changes: Any) -> Settlement:
    provider_id = f"WA-{message_id[:8]}-{part_no}"
    plain = Settlement(message_id, part_no, 1, outcome="sent", provider_message_id=provider_id, duration_ms=9)
    return replace(plain, **changes)


@pytest.fixture
def due(world: World) -> list[UUID]:
    return world.due_messages(world.run(), 5)


# The port's contract --------------------------------------------------------------------------------------------------


def test_a_message_goes_its_whole_way(world: World, due: list[UUID]) -> None:
    async def work(store: ShardStore, ids: list[str]) -> None:
        first = ids[0]
        assert await store.renewals().renew(ids) == set(ids)
        assert await store.start_generating(first) == "go"
        two = begin(first, parts=("Um", "Dois"), text="Um Dois")
        begun = await store.begin_part(two)
        assert begun.verdict == "go"
        assert begun.conversation_id == str(message(world, UUID(first))["conversation_id"])
        assert part_states(world, UUID(first)) == [("attempting", 1), ("planned", 0)]  # committed before the request
        assert await store.settle(sent(first)) == Settled(applied=True, moved=False, final="sending")
        assert (await store.begin_part(begin(first, part_no=2, parts=None, text=None))).verdict == "go"
        assert await store.settle(sent(first, 2)) == Settled(applied=True, moved=False, final="sent")
        assert await store.renewals().renew(ids) == set(ids[1:])

    with_store(world.url, work)
    assert world.value("SELECT leads_success FROM campaign_runs") == 1


def test_a_take_over_reads_stored_rows_and_counts_the_others(world: World, due: list[UUID]) -> None:
    shard = claimed_shard(world.url)
    world.do("UPDATE campaign_messages SET status = 'skipped' WHERE id = %s", due[0])
    world.do("DELETE FROM campaign_messages WHERE id = %s", due[1])
    world.do("UPDATE campaign_messages SET generated_message = 'Oi', retry_count = 2 WHERE id = %s", due[2])
    key = f"{due[2]}:1"
    world.insert(
        "campaign_message_parts",
        message_id=due[2],
        part_no=1,
        text="Oi",
        status="unknown",
        attempts=3,
        idempotency_key=key,
    )

    async def main() -> None:
        async with (
            connection_pool(world.url) as pool,
            ShardStore.open(pool, world.url, shard, "owner", 120.0) as store,
        ):
            messages, left, now = await store.take_over()
            assert left == {str(due[0]): "finished", str(due[1]): "deleted"}
            assert now is not None
            assert abs(now - world.value("SELECT campaign_now()")) < timedelta(minutes=1)
            by_id = {UUID(m.id): m for m in messages}
            assert set(by_id) == set(due[2:])
            assert (by_id[due[2]].text, by_id[due[2]].retry_count, by_id[due[2]].begun) == ("Oi", 2, True)
            (part,) = by_id[due[2]].parts
            assert (part.status, part.attempts) == (PartStatus.UNKNOWN, 3)
            assert (by_id[due[3]].text, by_id[due[3]].parts, by_id[due[3]].begun) == (None, (), False)
        async with (
            connection_pool(world.url) as pool,
            ShardStore.open(pool, world.url, shard, "another", 120.0) as second,
        ):
            taken, left, nothing = await second.take_over()
            assert (taken, nothing) == ([], None)
            assert Counter(left.values()) == {"finished": 1, "deleted": 1, "held_by_another": 3}

    asyncio.run(main())


def test_a_text_is_kept_that_may_not_be_sent_now(world: World, due: list[UUID]) -> None:
    async def work(store: ShardStore, ids: list[str]) -> None:
        await store.keep_text(begin(ids[0]))

    with_store(world.url, work)
    kept = world.one("SELECT * FROM campaign_messages WHERE generated_message IS NOT NULL")
    assert (kept["generated_message"], kept["ai_tokens_used"], kept["status"]) == ("Olá, Ana!", 42, "queued")
    assert part_states(world, kept["id"]) == [("planned", 0)]


def test_a_store_without_its_lease_may_only_record_facts(world: World, due: list[UUID]) -> None:
    async def work(store: ShardStore, ids: list[str]) -> None:
        begun, waiting = ids[0], ids[1]
        await store.begin_part(begin(begun))
        world.do("UPDATE campaign_messages SET lease_token = %s", uuid4())
        assert await store.renewals().renew(ids) == set()
        assert await store.start_generating(waiting) == "lost"
        assert (await store.begin_part(begin(waiting))).verdict == "lost"
        refused = await store.settle(Settlement(waiting, status="failed"))
        assert refused == Settled(applied=False, moved=False, final="queued")
        assert (await store.settle(sent(begun))).final == "sent"

    with_store(world.url, work)


# Groups ---------------------------------------------------------------------------------------------------------------


def test_the_end_of_one_message_and_the_start_of_another_are_one_transaction(world: World, due: list[UUID]) -> None:
    async def work(store: ShardStore, ids: list[str]) -> None:
        await store.begin_part(begin(ids[0]))
        ended, started = await asyncio.gather(store.settle(sent(ids[0])), store.start_generating(ids[1]))
        assert (ended.final, started) == ("sent", "go")

    with_store(world.url, work)
    query = "SELECT xmin::text FROM campaign_messages WHERE id = ANY (%s)"
    assert len({row["xmin"] for row in world.all(query, due[:2])}) == 1
    assert [message(world, each)["status"] for each in due[:2]] == ["sent", "generating"]


def test_a_start_sees_the_changes_of_another_messages_end(world: World, due: list[UUID]) -> None:
    async def work(store: ShardStore, ids: list[str]) -> None:
        await store.begin_part(begin(ids[0]))
        await store.open_pause(Scope.MODEL, "a/model", Systemic("no_credit", "It is empty.", Scope.MODEL))
        world.do("UPDATE ai_agents SET model = 'a/model'")
        world.do("UPDATE campaign_pauses SET probe_message_id = %s", UUID(ids[0]))
        assert await store.start_generating(ids[1]) == "scope_paused"
        _, started = await asyncio.gather(store.settle(sent(ids[0])), store.start_generating(ids[1]))
        assert started == "go", "the probe went out, which closes the circuit"

    with_store(world.url, work)


def test_an_end_that_cannot_be_stored_stops_no_start(world: World, due: list[UUID]) -> None:
    async def work(store: ShardStore, ids: list[str]) -> None:
        await store.begin_part(begin(ids[0]))
        bad = store.settle(sent(ids[0], duration_ms=2**40))
        ended, started = await asyncio.gather(bad, store.start_generating(ids[1]), return_exceptions=True)
        assert isinstance(ended, psycopg.DataError)
        assert started == "go"

    with_store(world.url, work)


def test_one_item_that_cannot_be_stored_fails_alone(world: World, due: list[UUID]) -> None:
    async def work(store: ShardStore, ids: list[str]) -> None:
        await asyncio.gather(*(store.begin_part(begin(i)) for i in ids))
        bad = sent(ids[2], duration_ms=2**40)
        answers = await asyncio.gather(
            *(store.settle(bad if i == ids[2] else sent(i)) for i in ids), return_exceptions=True
        )
        assert isinstance(answers[2], psycopg.DataError)
        others = [answer for answer in answers if not isinstance(answer, BaseException)]
        assert others == [Settled(applied=True, moved=False, final="sent")] * 4

    with_store(world.url, work)
    assert world.value("SELECT leads_success FROM campaign_runs") == 4
    assert world.wrong_counters() == []


@pytest.mark.parametrize("text", ["nul \0 in it", "half a pair \ud83d here", "a \\u0000 that is only written"])
def test_text_that_postgresql_cannot_store_harms_neither_its_message_nor_its_neighbours(
    world: World, due: list[UUID], text: str
) -> None:
    async def work(store: ShardStore, ids: list[str]) -> None:
        await asyncio.gather(*(store.begin_part(begin(i)) for i in ids))
        strange = Settlement(
            ids[0], 1, 1, outcome="failed", status="failed", reason=text, response={"raw": [text], text: {"deep": text}}
        )
        answers = await asyncio.gather(store.settle(strange), *(store.settle(sent(i)) for i in ids[1:]))
        assert [answer.final for answer in answers] == ["failed", "sent", "sent", "sent", "sent"]

    with_store(world.url, work)
    (failed,) = world.all("SELECT * FROM campaign_messages WHERE status = 'failed'")
    assert failed["error_message"] == text.replace("\0", "").replace("\ud83d", "?")
    assert parts(world, failed["id"])[0]["provider_response"]["raw"] == [failed["error_message"]]


def test_changes_of_a_message_are_stored_in_order(world: World, due: list[UUID]) -> None:
    """A stopped shard gives back a message whose last result is still on its way to the database."""

    async def work(store: ShardStore, ids: list[str]) -> None:
        await asyncio.gather(*(store.begin_part(begin(i)) for i in ids))
        given_back = [Settlement(i, 1, 1, outcome="unknown", status="pending", error_class="unknown") for i in ids]
        answers = await asyncio.gather(*(store.settle(sent(i)) for i in ids), *(store.settle(s) for s in given_back))
        assert {answer.final for answer in answers} == {"sent"}
        assert [answer.moved for answer in answers[len(ids) :]] == [False] * len(ids)

    with_store(world.url, work)
    assert world.value("SELECT count(*) FROM campaign_message_parts WHERE status = 'sent'") == 5


def test_a_thousand_at_once_are_settled_each_once(world: World) -> None:
    run = world.run()
    insert_due(world, run, 1000)

    async def work(store: ShardStore, ids: list[str]) -> None:
        begun = await asyncio.gather(*(store.begin_part(begin(i)) for i in ids))
        assert {answer.verdict for answer in begun} == {"go"}
        settled = await asyncio.gather(*(store.settle(sent(i)) for i in ids))
        assert {answer.final for answer in settled} == {"sent"}

    with_store(world.url, work)
    assert world.value("SELECT leads_success FROM campaign_runs") == 1000
    assert world.value("SELECT count(DISTINCT provider_message_id) FROM campaign_message_parts") == 1000


def test_a_verdict_of_a_newer_schema_stops_its_message_and_not_its_neighbours(world: World, due: list[UUID]) -> None:
    function = world.value("SELECT pg_get_functiondef('campaign_verdicts'::regproc)")
    world.do(function.replace("'lead_deleted'", "'verdict_of_tomorrow'").replace("%", "%%"))

    async def work(store: ShardStore, ids: list[str]) -> None:
        world.do("DELETE FROM leads USING campaign_messages m WHERE m.lead_id = leads.id AND m.id = %s", UUID(ids[1]))
        begun = await asyncio.gather(*(store.begin_part(begin(i)) for i in ids))
        assert [answer.verdict for answer in begun] == ["go", "lost", "go", "go", "go"]

    with_store(world.url, work)


# Pauses, look-ups, logs -----------------------------------------------------------------------------------------------


def test_a_pause_is_opened_for_all_and_seen_at_once_by_its_opener(world: World, due: list[UUID]) -> None:
    async def work(store: ShardStore, ids: list[str]) -> None:
        assert await store.pauses() == []
        seconds = await store.open_pause(Scope.INBOX, "1", Systemic("disconnected", "It is closed.", Scope.INBOX))
        assert 59 < seconds <= 60
        (pause,) = await store.pauses()
        assert (pause.scope, pause.scope_id, pause.kind, pause.code, pause.reason) == (
            Scope.INBOX,
            "1",
            "systemic",
            "disconnected",
            "It is closed.",
        )
        throttle = Throttled("rate_limited", "Slow.", Scope.INBOX, 7.0)
        assert await store.open_pause(Scope.INBOX, "1", throttle) == 0.0
        assert 6 < await store.open_pause(Scope.INBOX, "2", throttle) <= 7
        assert {p.kind for p in await store.pauses()} == {"systemic", "throttled"}

    with_store(world.url, work)
    assert world.value("SELECT count(*) FROM campaign_pauses") == 2


def test_pauses_of_others_are_asked_for_once_a_second(world: World, due: list[UUID]) -> None:
    async def work(store: ShardStore, ids: list[str]) -> None:
        assert await store.pauses() == []
        now = world.value("SELECT campaign_now()")
        row = {"scope": "provider", "scope_id": "x", "kind": "systemic", "code": "c", "reason": "R."}
        world.insert("campaign_pauses", **row, since=now, until=now)
        assert await store.pauses() == []
        loop = asyncio.get_running_loop()
        asked = loop.time()
        while not await store.pauses():
            assert loop.time() - asked < 5
            await asyncio.sleep(0)
        (pause,) = await store.pauses()
        assert pause.seconds == 0.0

    with_store(world.url, work)


def test_a_look_up_is_given_a_control_and_the_ids_that_are_taken(world: World, due: list[UUID]) -> None:
    inbox = world.value("SELECT inbox_id FROM campaign_configs")

    async def work(store: ShardStore, ids: list[str]) -> None:
        await store.begin_part(begin(ids[0]))
        await store.settle(sent(ids[0], provider_message_id="WA-taken"))
        started = float(world.value("SELECT EXTRACT(epoch FROM campaign_now())"))
        attempt = Attempt(Envelope(ids[1], 1, "Oi", PHONE), started)
        world.do("UPDATE campaign_message_parts SET sent_at = sent_at - interval '1 minute' WHERE status = 'sent'")
        known = await store.known_sends(str(inbox), attempt)
        assert (known.control_provider_id, known.taken_provider_ids) == ("WA-taken", frozenset({"WA-taken"}))
        nothing = await store.known_sends(str(uuid4()), attempt)
        assert (nothing.control_provider_id, nothing.taken_provider_ids) == (None, frozenset())

    with_store(world.url, work)


def line(message_id: object, text: str = "Sent.") -> dict[str, Any]:
    return {
        "run_id": None,
        "message_id": message_id,
        "step_name": "send",
        "step_number": 3,
        "level": "success",
        "message": text,
        "details": {"parts": 1},
    }


def logged(world: World) -> list[str]:
    return [row["message"] for row in world.all("SELECT message FROM campaign_logs ORDER BY message")]


def test_log_lines_are_written_with_each_flush_and_at_the_end(world: World, due: list[UUID]) -> None:
    async def work(store: ShardStore, ids: list[str]) -> None:
        store.log(line(ids[0], "a"))
        assert logged(world) == []
        await store.flush()
        assert logged(world) == ["a"]
        store.log(line(ids[1], "b"))

    with_store(world.url, work)
    assert logged(world) == ["a", "b"]
    row = world.one("SELECT * FROM campaign_logs WHERE message = 'a'")
    assert (row["level"], row["step_name"], row["step_number"], row["details"]) == ("success", "send", 3, {"parts": 1})


def test_a_log_line_that_cannot_be_stored_does_not_cost_the_others(world: World, due: list[UUID]) -> None:
    async def work(store: ShardStore, ids: list[str]) -> None:
        for text, message_id in (("a", ids[0]), ("b", "no id at all"), ("c \0", ids[1])):
            store.log(line(message_id, text))
        await store.flush()

    with_store(world.url, work)
    assert logged(world) == ["a", "c "]


# An unavailable database ----------------------------------------------------------------------------------------------


def test_an_immediate_restart_in_the_middle_of_a_shard_loses_nothing_and_doubles_nothing(
    fragile: EmbeddedServer, fragile_url: str
) -> None:
    with World(fragile_url) as world:
        world.due_messages(world.run(), 60)
    requests: list[tuple[str, int]] = []

    async def deliver(store: ShardStore, message_id: str) -> None:
        assert await store.start_generating(message_id) == "go"
        first = begin(message_id, parts=("Um", "Dois"), text="Um Dois")
        for part_no in (1, 2):
            begun = await store.begin_part(replace(first, part_no=part_no))
            assert begun.verdict == "go"
            requests.append((message_id, part_no))
            assert (await store.settle(sent(message_id, part_no))).applied

    async def work(store: ShardStore, ids: list[str]) -> None:
        limit = asyncio.Semaphore(6)
        under_way = asyncio.Event()

        async def limited(message_id: str) -> None:
            async with limit:
                await deliver(store, message_id)
                under_way.set()

        async def restart() -> None:
            await under_way.wait()
            await asyncio.to_thread(crash, fragile)
            await asyncio.to_thread(start, fragile)

        await asyncio.gather(restart(), *(limited(message_id) for message_id in ids))

    with_store(fragile_url, work)
    assert len(requests) == len(set(requests)) == 120
    with World(fragile_url) as world:
        assert world.value("SELECT count(*) FROM campaign_messages WHERE status = 'sent'") == 60
        assert world.value("SELECT count(*) FROM campaign_message_parts WHERE status = 'sent' AND attempts = 1") == 120
        assert world.value("SELECT leads_success FROM campaign_runs") == 60
        assert world.value("SELECT count(*) FROM messages") == 120
        assert world.wrong_counters() == []


def test_a_database_that_stays_away_is_one_sentence_and_the_log_waits_for_it(
    fragile: EmbeddedServer, fragile_url: str
) -> None:
    with World(fragile_url) as world:
        world.due_messages(world.run(), 2)

    async def work(store: ShardStore, ids: list[str]) -> None:
        store.log(line(ids[0], "kept"))
        await asyncio.to_thread(crash, fragile)
        try:
            calls: list[Awaitable[object]] = [
                store.renewals().renew(ids),
                store.begin_part(begin(ids[0])),
                store.settle(sent(ids[1])),
                store.pauses(),
            ]
            answers = await asyncio.gather(*calls, return_exceptions=True)
        finally:
            await asyncio.to_thread(start, fragile)
        for answer in answers:
            assert isinstance(answer, StoreUnavailable)
            assert str(answer).startswith("The database did not answer for 0.3 seconds: ")
            assert "\n" not in str(answer)
        while True:  # until the pool finds the server again; renewals have a connection of their own
            with contextlib.suppress(StoreUnavailable):
                await store.pauses()
                break
        assert await store.renewals().renew(ids) == set(ids)

    with_store(fragile_url, work, patience_seconds=0.3)
    with World(fragile_url) as world:
        assert logged(world) == ["kept"]
        assert world.value("SELECT count(*) FROM campaign_message_parts") == 0
