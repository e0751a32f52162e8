import random
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from campaign_pipeline_tests.factories import World
from campaign_pipeline_tests.sql.holder import Holder, holding, insert_due, run_row, wait_until_blocked

STATUSES = ("pending", "queued", "generating", "sending", "sent", "replied", "failed", "skipped")
statuses = st.sampled_from(STATUSES)
few = st.integers(1, 6)


class AnybodysChanges(RuleBasedStateMachine):
    """Arbitrary manual statements, one or several per transaction."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        world.do("DELETE FROM campaign_runs")
        self.runs = [world.insert("campaign_runs", name=str(number)) for number in range(3)]

    @rule(run=st.integers(0, 2), status=statuses, count=few)
    def insert(self, run: int, status: str, count: int) -> None:
        if self.world.value("SELECT count(*) FROM campaign_runs WHERE id = %s", self.runs[run]):
            insert_due(self.world, self.runs[run], count, status=status)

    @rule(status=statuses, modulus=few)
    def update_status_of_some(self, status: str, modulus: int) -> None:
        self.world.do(
            "UPDATE campaign_messages SET status = %s WHERE abs(hashtext(id::text)) %% %s = 0", status, modulus
        )

    @rule(modulus=few)
    def shuffle_statuses(self, modulus: int) -> None:
        self.world.do(
            "UPDATE campaign_messages SET status = (%s::text[])[1 + abs(hashtext(id::text || %s)) %% 8]",
            list(STATUSES),
            str(modulus),
        )

    @rule(run=st.integers(0, 2), modulus=few)
    def move_to_another_run(self, run: int, modulus: int) -> None:
        self.world.do(
            "UPDATE campaign_messages SET run_id = r.id FROM campaign_runs r "
            "WHERE r.id = %s AND abs(hashtext(campaign_messages.id::text)) %% %s = 0",
            self.runs[run],
            modulus,
        )

    @rule(modulus=few)
    def delete_some(self, modulus: int) -> None:
        self.world.do("DELETE FROM campaign_messages WHERE abs(hashtext(id::text)) %% %s = 0", modulus)

    @rule(status=statuses, modulus=few)
    def insert_or_update(self, status: str, modulus: int) -> None:
        self.world.do(
            "INSERT INTO campaign_messages (id, run_id, status) "
            "SELECT CASE WHEN abs(hashtext(id::text)) %% %s = 0 THEN gen_random_uuid() ELSE id END, run_id, %s "
            "FROM campaign_messages ON CONFLICT (id) DO UPDATE SET status = EXCLUDED.status",
            modulus,
            status,
        )

    @rule(first=statuses, second=statuses)
    def several_statements_of_one_transaction(self, first: str, second: str) -> None:
        with self.world.connection.transaction():
            self.update_status_of_some(first, 2)
            self.delete_some(3)
            self.update_status_of_some(second, 3)

    @rule(status=statuses)
    def roll_back(self, status: str) -> None:
        with self.world.connection.transaction(force_rollback=True):
            self.update_status_of_some(status, 1)
            self.delete_some(2)

    @rule()
    def touch_without_a_change(self) -> None:
        self.world.do("UPDATE campaign_messages SET status = status, retry_count = retry_count + 1")

    @rule(run=st.integers(0, 2))
    def delete_a_run(self, run: int) -> None:
        self.world.do("DELETE FROM campaign_runs WHERE id = %s", self.runs[run])

    @rule()
    def truncate(self) -> None:
        self.world.do("TRUNCATE campaign_messages CASCADE")

    @invariant()
    def counters_equal_a_recount(self) -> None:
        assert self.world.wrong_counters() == []


def test_counters_equal_a_recount_whatever_anybody_does(world: World) -> None:
    class Here(AnybodysChanges):
        def __init__(self) -> None:
            super().__init__(world)

    run_state_machine_as_test(
        Here, settings=settings(max_examples=settings().max_examples // 3, stateful_step_count=15, derandomize=True)
    )


@settings(
    max_examples=settings().max_examples // 4,
    derandomize=True,
    suppress_health_check=[*settings().suppress_health_check, HealthCheck.function_scoped_fixture],
)
@given(
    ends=st.lists(
        st.tuples(st.integers(0, 1), st.sampled_from(["sent", "late", "failed", "skipped", "pending", "left"])),
        max_size=12,
    )
)
def test_counters_equal_a_recount_after_any_group_of_settlements(world: World, ends: list[tuple[int, str]]) -> None:
    world.do("DELETE FROM campaign_runs")
    config = world.campaign()
    runs = [world.run(config) for _ in range(2)]
    dues = [world.due_message(runs[run]) for run, _ in ends]
    holder = holding(world, *dues) if dues else Holder(world)
    holder.begin_all({"id": due, "text": "Oi", "parts": ["Oi"]} for due in dues)
    items: list[dict[str, Any]] = []
    for due, (_, end) in zip(dues, ends, strict=True):
        first = {"id": due, "part_no": 1, "attempt_no": 1}
        if end == "late":
            holder.settle(due, part_no=1, attempt_no=1, outcome="unknown", status="failed", error_class="unknown")
        if end in {"sent", "late"}:
            items.append({**first, "outcome": "sent"})
        elif end != "left":
            items.append({**first, "outcome": "planned", "status": end})
    answers = holder.settle_all(items)
    assert world.wrong_counters() == []
    wanted = {"late": "sent", "left": "sending"}
    for due, (_, end) in zip(dues, ends, strict=True):
        assert end == "left" or answers[due]["final"] == wanted.get(end, end)


def at_once(world: World, writers: int, work: Callable[[World, int], None]) -> int:
    """Run `work` in several threads, each with its own connection, while counters are recounted."""

    def writer(number: int) -> None:
        with World(world.url) as own:
            work(own, number)

    with ThreadPoolExecutor(writers) as pool:
        running: list[Future[None]] = [pool.submit(writer, number) for number in range(writers)]
        recounts = 0
        while not all(future.done() for future in running):
            assert world.wrong_counters() == []  # one statement, hence one snapshot
            recounts += 1
        for future in running:
            future.result()  # a deadlock would be raised here
    assert world.wrong_counters() == []
    return recounts


def test_four_writers_at_once_keep_the_counters_of_shared_runs_right_without_deadlock(world: World) -> None:
    config = world.campaign()
    runs = [world.run(config) for _ in range(5)]
    for writer in range(4):
        for run in runs:
            insert_due(world, run, 8, phone_number=str(writer))

    def work(own: World, number: int) -> None:
        chance = random.Random(number)
        mine = str(number)
        for _ in range(40):
            match chance.randrange(4):
                case 0:
                    order = chance.choice(["ASC", "DESC"])
                    own.do(
                        "UPDATE campaign_messages m SET status = (%s::text[])[1 + floor(random() * 8)::int] "
                        f"FROM (SELECT id FROM campaign_messages WHERE phone_number = %s ORDER BY run_id {order}) o "
                        "WHERE o.id = m.id",
                        list(STATUSES),
                        mine,
                    )
                case 1:
                    own.do(
                        "DELETE FROM campaign_messages WHERE phone_number = %s AND abs(hashtext(id::text)) %% 5 = 0",
                        mine,
                    )
                case 2:
                    chance.shuffle(runs_of_mine := list(runs))
                    own.do(
                        "INSERT INTO campaign_messages (run_id, status, phone_number) SELECT u, 'sent', %s "
                        "FROM unnest(%s::uuid[]) u",
                        mine,
                        runs_of_mine,
                    )
                case _:
                    own.do(
                        "UPDATE campaign_messages SET run_id = %s WHERE phone_number = %s AND random() < 0.3",
                        chance.choice(runs),
                        mine,
                    )

    assert at_once(world, 4, work) > 0


@pytest.mark.parametrize("runs_of_a_shard", [{0, 1}, {0}], ids=["runs are shared", "only leads are shared"])
def test_four_shards_that_settle_mixed_groups_at_once_do_not_deadlock(world: World, runs_of_a_shard: set[int]) -> None:
    workspace = world.workspace()
    config = world.campaign(workspace, source_column_id=world.insert("funnel_columns", title="Novo"))
    runs = [world.run(config) for _ in range(4)]
    leads = [world.lead(workspace) for _ in range(8)]
    chance = random.Random(1)
    groups: list[list[list[UUID]]] = [[] for _ in range(4)]
    for number, shard in enumerate(groups):
        mine = [runs[n] for n in runs_of_a_shard] if len(runs_of_a_shard) > 1 else [runs[number]]
        for _ in range(15):
            wanted = [(chance.choice(mine), lead) for lead in leads]
            chance.shuffle(wanted)
            shard.append([world.due_message(run, lead) for run, lead in wanted])

    def work(own: World, number: int) -> None:
        order = random.Random(number)
        for group in groups[number]:
            holder = holding(own, *group)
            holder.begin_all({"id": due, "text": "Oi", "parts": ["Oi"]} for due in group)
            items: list[dict[str, Any]] = [
                {"id": due, "part_no": 1, "attempt_no": 1, "outcome": "sent", "provider_message_id": str(due)}
                if order.random() < 0.5
                else {"id": due, "part_no": 1, "attempt_no": 1, "outcome": "failed", "status": "failed"}
                for due in group
            ]
            order.shuffle(items)
            holder.settle_all(items)

    at_once(world, 4, work)
    assert sum(run_row(world, run)["leads_processed"] for run in runs) == 4 * 15 * 8


def test_a_settlement_that_waits_for_one_run_does_not_hold_another_that_comes_after_it(world: World) -> None:
    """Runs are locked in one order, whatever ends in them, so that two groups cannot deadlock."""
    config = world.campaign()
    first, last = sorted(world.run(config) for _ in range(2))
    failed, sent = world.due_message(first), world.due_message(last)
    holder = holding(world, failed, sent)
    holder.begin_all({"id": due, "text": "Oi", "parts": ["Oi"]} for due in (failed, sent))
    items: list[dict[str, Any]] = [
        {"id": sent, "part_no": 1, "attempt_no": 1, "outcome": "sent"},
        {"id": failed, "part_no": 1, "attempt_no": 1, "outcome": "failed", "status": "failed"},
    ]
    with ThreadPoolExecutor(1) as pool, psycopg.connect(world.url) as other, World(world.url) as third:
        other.execute("UPDATE campaign_runs SET leads_total = 1 WHERE id = %s", [first])
        settling = pool.submit(holder.settle_all, items)
        wait_until_blocked(third)
        third.do("SET lock_timeout = '500ms'")
        third.do("UPDATE campaign_runs SET leads_total = 1 WHERE id = %s", last)
        other.commit()
        assert {row["final"] for row in settling.result().values()} == {"sent", "failed"}
    assert world.wrong_counters() == []


def test_messages_that_are_copied_in_are_counted(world: World) -> None:
    run = world.run()
    with world.connection.cursor().copy("COPY campaign_messages (run_id, status) FROM STDIN") as copy:
        for status in STATUSES:
            copy.write_row((run, status))
    row = run_row(world, run)
    assert (row["leads_processed"], row["leads_success"], row["leads_failed"], row["leads_skipped"]) == (4, 2, 1, 1)
    assert world.wrong_counters() == []


def test_a_transaction_shows_its_counters_only_with_its_messages(world: World) -> None:
    run = world.run()
    with psycopg.connect(world.url) as other:
        other.execute("INSERT INTO campaign_messages (run_id, status) VALUES (%s, 'sent')", [run])
        assert run_row(world, run)["leads_success"] == 0
        other.commit()
    assert run_row(world, run)["leads_success"] == 1


def test_uncounted_changes_lock_no_run(world: World) -> None:
    """Claims, heartbeats and attempts of one shard never wait for the counters of another."""
    run = world.run()
    due = world.due_message(run)
    with psycopg.connect(world.url) as other:
        other.execute("UPDATE campaign_runs SET leads_total = 9")
        world.do("SET lock_timeout = '500ms'")
        holder = holding(world, due)
        assert holder.begin_new(due, "Um", "Dois") == "go"
        assert holder.settle(due, part_no=1, attempt_no=1, outcome="unknown", code="read_timeout")["applied"]
        assert holder.settle(due, status="pending")["moved"]


def test_a_run_that_new_messages_reopen_counts_each_of_them_once(world: World) -> None:
    run = world.run(status="completed")
    world.do("UPDATE campaign_runs SET closed_by_pipeline_at = campaign_now() WHERE id = %s", run)
    world.do("INSERT INTO campaign_messages (run_id, status) SELECT %s, unnest(ARRAY['pending', 'sent', 'sent'])", run)
    assert run_row(world, run)["status"] == "running"
    assert run_row(world, run)["leads_success"] == 2


def test_a_trigger_of_the_crm_on_runs_may_leave_out_schemas(world: World) -> None:
    """Nothing we do makes a CRM's write fail (I12), whatever names its own triggers use."""
    world.do("CREATE TABLE public.run_audit (run_id uuid, leads_processed integer)")
    world.do(
        "CREATE FUNCTION public.audit_run() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN INSERT INTO run_audit VALUES (NEW.id, NEW.leads_processed); RETURN NULL; END'"
    )
    world.do(
        "CREATE TRIGGER audit_run AFTER UPDATE ON public.campaign_runs FOR EACH ROW EXECUTE FUNCTION public.audit_run()"
    )
    config = world.campaign()
    run = world.run(config)
    closed = world.run(config, status="completed")
    world.do("UPDATE campaign_runs SET closed_by_pipeline_at = campaign_now() WHERE id = %s", closed)
    world.do("UPDATE campaign_runs SET wait_code = 'paced', wait_until = now() + interval '1 hour' WHERE id = %s", run)
    world.do("DELETE FROM run_audit")

    insert_due(world, run, 2, status="sent")  # counted
    world.do("UPDATE campaign_configs SET daily_limit = 5 WHERE id = %s", config)  # a pace that was changed
    insert_due(world, closed, 1)  # opens its run again
    world.do("TRUNCATE campaign_messages CASCADE")

    seen = world.all("SELECT run_id, leads_processed AS n FROM run_audit")
    assert [(row["run_id"], row["n"]) for row in seen] == [(run, 2), (run, 2), (closed, 0), (run, 0)]
    assert world.value("SHOW search_path") == "public,campaign_pipeline"
