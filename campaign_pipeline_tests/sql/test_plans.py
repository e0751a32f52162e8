"""Query plans on a large table: which indexes are used, not how long it takes."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from psycopg.types.json import Jsonb

from campaign_pipeline_tests.factories import World
from campaign_pipeline_tests.sql.holder import Holder, rows, run_statement

pytestmark = pytest.mark.slow

RUNS = 10
WORKED = ("campaign_messages", "campaign_message_parts")


class Crowded(World):
    """A database with 50,000 messages, most of them finished, as after some months."""

    runs: list[UUID]
    held: list[UUID]
    sent: UUID
    holder: Holder

    def fill(self) -> None:
        config = self.campaign()
        self.runs = [self.run(config) for _ in range(RUNS)]
        cancelled = self.run(config, status="cancelled")
        self.do(
            """INSERT INTO campaign_messages (run_id, status, scheduled_at, lead_id)
               SELECT (%s::uuid[])[1 + n %% %s],
                      CASE WHEN n %% 50 = 0 THEN 'pending' WHEN n %% 7 = 0 THEN 'failed' ELSE 'sent' END,
                      campaign_now() - n * interval '1 minute', gen_random_uuid()
               FROM generate_series(1, 50000) n""",
            self.runs,
            RUNS,
        )
        self.do("INSERT INTO leads (id) SELECT lead_id FROM campaign_messages WHERE status = 'pending'")
        self.do("INSERT INTO campaign_messages (run_id) SELECT %s FROM generate_series(1, 20)", cancelled)
        self.do(
            """INSERT INTO campaign_message_parts
                   (message_id, part_no, text, status, idempotency_key, inbox_id, address, sent_at)
               SELECT id, 1, 'Oi', CASE status WHEN 'sent' THEN 'sent' ELSE 'failed' END, id || ':1', %s, '55', now()
               FROM campaign_messages WHERE status IN ('sent', 'failed')""",
            uuid4(),
        )
        for table in (*WORKED, "campaign_runs", "conversations", "leads", "messages"):
            self.do(f"VACUUM ANALYZE {table}")
        self.sent = self.value("SELECT id FROM campaign_messages WHERE status = 'sent' LIMIT 1")
        self.holder = Holder(self)
        self.held = [
            row["id"] for row in self.all("SELECT id FROM campaign_messages WHERE status = 'pending' LIMIT 50")
        ]

    def sequential_scans(self) -> dict[str, int]:
        """Return the count so far in this transaction, functions and triggers included."""
        found = self.all(
            "SELECT relname, seq_scan FROM pg_stat_xact_user_tables WHERE relname = ANY (%s)", list(WORKED)
        )
        return {row["relname"]: row["seq_scan"] for row in found}


@pytest.fixture
def crowded(database_url: str) -> Iterator[Crowded]:
    crowded = Crowded(database_url)
    with crowded:
        crowded.fill()
        yield crowded


def cutoffs(world: Crowded) -> dict[str, object]:
    past = world.value("SELECT campaign_now()") - timedelta(days=20)
    return {"run_ids": world.runs, "cutoffs": [past] * RUNS, "max_age_minutes": 60}


def claim(world: Crowded) -> None:
    claimed = rows(
        world,
        "claim_messages",
        run_ids=world.runs,
        quotas=[100] * RUNS,
        batch_size=100,
        token=uuid4(),
        owner="test",
        lease_seconds=120.0,
        tried_ids=None,
        ahead_seconds=0.0,
    )
    assert len(claimed) == 100


def begin_and_settle(world: Crowded) -> None:
    world.holder.take_over(world.held)
    for _ in range(7):  # plpgsql plans for the values at hand at first, then once for all values
        answers = world.holder.begin_all({"id": m, "text": "Oi", "parts": ["Oi"]} for m in world.held)
        assert {row["verdict"] for row in answers.values()} == {"go"}
    half = len(world.held) // 2
    for _ in range(7):
        world.holder.settle_all(
            {"id": m, "part_no": 1, "attempt_no": 1, "outcome": "sent", "provider_message_id": "x"}
            for m in world.held[:half]
        )
        world.holder.settle_all(
            {"id": m, "part_no": 1, "attempt_no": 1, "outcome": "planned", "status": "failed"}
            for m in world.held[half:]
        )


def renew_and_read(world: Crowded) -> None:
    world.holder.take_over(world.held)
    assert len(world.holder.renew(world.held)) == len(world.held)
    assert len(rows(world, "read_leased_messages", ids=world.held, token=world.holder.token)) == len(world.held)


def hold_contacted(world: Crowded) -> None:
    world.do("UPDATE workspaces SET number_rest_hours = 24")
    world.do(
        "UPDATE campaign_messages m SET phone_number = '55119' || (80000000 + u.n) "
        "FROM unnest(%s::uuid[]) WITH ORDINALITY AS u (id, n) WHERE m.id = u.id",
        world.held,
    )
    world.do(
        "INSERT INTO campaign_number_contacts SELECT w.id, m.phone_number, %s, campaign_now() "
        "FROM workspaces w, campaign_messages m WHERE m.id = ANY (%s)",
        world.sent,
        world.held[:10],
    )
    for number in range(7):
        world.do("UPDATE campaign_messages SET next_attempt_at = NULL WHERE id = ANY (%s)", world.held[:10])
        world.holder.take_over(world.held)
        held = rows(world, "hold_contacted_messages", message_ids=world.held)
        assert len(held) == 10, number


def generate(world: Crowded) -> None:
    world.holder.take_over(world.held)
    for due in world.held[:7]:
        assert world.holder.start_generating(due) == "go"


def recover(world: Crowded) -> None:
    world.holder.take_over(world.held, lease_seconds=-1.0)
    assert len(rows(world, "recover_leases")) == len(world.held)
    for _ in range(7):
        assert rows(world, "recover_leases") == []


def look_up(world: Crowded) -> None:
    asked = {"inbox_id": uuid4(), "address": "55", "started_at": 1.7e9, "message_id": world.held[0], "text": "Oi"}
    found = rows(world, "find_control_part", **asked)
    assert found == [{"control_provider_id": None, "taken_provider_ids": [], "conversation_ids": []}]


def last_inbound(world: Crowded) -> None:
    assert rows(world, "read_last_inbound", ids=world.held, inbox_id=uuid4(), hours=24) == []


def status_events(world: Crowded) -> None:
    for _ in range(7):
        assert rows(world, "take_status_events", limit=1000) == []
        for status in ("sent", "failed"):
            events = [
                {
                    "event_id": n,
                    "id": str(message),
                    "part_no": 1,
                    "status": status,
                    "at": 1.7e9,
                    "error_class": "permanent",
                }
                for n, message in enumerate(world.held)
            ]
            assert len(rows(world, "apply_status_events", events=Jsonb(events))) == len(world.held)


def spread(world: Crowded) -> None:
    some = world.runs[:2]
    spread = rows(
        world, "spread_overdue_messages", run_ids=some, intervals=[30.0] * 2, caps=[None] * 2, closings=[None] * 2
    )
    assert len(spread) > 100


STEPS: dict[str, Callable[[Crowded], object]] = {
    "recover": recover,
    "cancelled": lambda world: rows(world, "settle_cancelled_runs"),
    "runs": lambda world: rows(world, "list_running_runs", run_id=None),
    "look": lambda world: rows(world, "look_at_queue"),
    "expire": lambda world: rows(world, "expire_old_messages", **cutoffs(world)),
    "spread": spread,
    "claim": claim,
    "renew_and_read": renew_and_read,
    "hold_contacted": hold_contacted,
    "generate": generate,
    "begin_and_settle": begin_and_settle,
    "look_up": look_up,
    "last_inbound": last_inbound,
    "status_events": status_events,
    "reply": lambda world: world.do("SELECT campaign_stop_after_reply(%s)", [uuid4()]),
    "end_leases": lambda world: rows(world, "end_leases_of", owner="run 1a2b3c4d inbox_1 host:7"),
    "end_leases_of_run": lambda world: rows(world, "end_leases_of_run", owner="run 1a2b3c4d"),
    "list_leased_by_run": lambda world: rows(world, "list_leased_by_run", owner="run 1a2b3c4d"),
    "close": lambda world: rows(world, "close_runs"),
    "pauses": lambda world: run_statement(world, "drop_spent_throttles"),
}


def test_no_step_of_a_batch_reads_a_whole_table(crowded: Crowded) -> None:
    guilty = {}
    for name, step in STEPS.items():
        with crowded.connection.transaction(force_rollback=True):
            before = crowded.sequential_scans()
            step(crowded)
            after = crowded.sequential_scans()
        scans = {table: after[table] - before[table] for table in WORKED if after[table] != before[table]}
        if scans:
            guilty[name] = scans
    assert guilty == {}


def test_a_scan_of_a_whole_table_would_be_noticed(crowded: Crowded) -> None:
    with crowded.connection.transaction():
        before = crowded.sequential_scans()
        crowded.value("SELECT count(*) FROM campaign_messages WHERE lead_id IS NULL")
        assert crowded.sequential_scans()["campaign_messages"] > before["campaign_messages"]


def messages_read(world: World) -> int:
    return int(
        world.value(
            "SELECT idx_tup_fetch + seq_tup_read FROM pg_stat_xact_user_tables WHERE relname = 'campaign_messages'"
        )
    )


def test_a_group_reads_its_own_messages_and_not_all_that_are_leased(crowded: Crowded) -> None:
    # The planner assumes that hardly any message is leased, and tends to read all that are, once per group.
    with crowded.connection.transaction(force_rollback=True):
        crowded.holder.take_over([row["id"] for row in crowded.all("SELECT id FROM campaign_messages LIMIT 1000")])
        crowded.do(
            "UPDATE campaign_messages SET status = 'queued', lease_token = %s, lease_expires_at = 'infinity' "
            "WHERE status = 'pending'",
            crowded.holder.token,
        )
        group = crowded.held[:10]
        crowded.holder.begin_all({"id": m, "text": "Oi", "parts": ["Oi"]} for m in group)
        before = messages_read(crowded)
        assert crowded.holder.start_generating(crowded.held[20]) == "go"
        for no in range(7):
            crowded.holder.begin_all({"id": m, "attempt_no": no + 1} for m in group)
            crowded.holder.settle_all(
                {"id": m, "part_no": 1, "attempt_no": no + 1, "outcome": "planned"} for m in group
            )
        assert messages_read(crowded) - before < 7 * 2 * 12 * len(group)


def test_a_claim_reads_the_messages_that_it_takes_and_not_all_that_are_due(crowded: Crowded) -> None:
    # A connection that has claimed some times plans for any parameters. 1,000 messages are due.
    with crowded.connection.transaction(force_rollback=True):
        crowded.do("SET LOCAL plan_cache_mode = force_generic_plan")
        before = messages_read(crowded)
        claim(crowded)
        assert messages_read(crowded) - before <= 3 * 100


def test_housekeeping_reads_no_lease_that_lives(crowded: Crowded) -> None:
    # Analyzed while nothing was leased, so that all indexes of leased messages look equal to the planner.
    holder = crowded.holder
    ids = [row["id"] for row in crowded.all("SELECT id FROM campaign_messages WHERE status = 'pending'")]
    holder.take_over(ids)
    steps: dict[str, Callable[[], object]] = {
        "recover": lambda: rows(crowded, "recover_leases"),
        "look": lambda: rows(crowded, "look_at_queue"),
        "close": lambda: rows(crowded, "close_runs"),
        "read": lambda: rows(crowded, "read_leased_messages", ids=ids[:10], token=holder.token),
        "renew": lambda: rows(crowded, "renew_leases", ids=ids[:10], token=holder.token, lease_seconds=60.0),
    }
    read = {}
    for name, step in steps.items():
        with crowded.connection.transaction(force_rollback=True):
            before = messages_read(crowded)
            step()
            read[name] = messages_read(crowded) - before
    assert {name: count for name, count in read.items() if count > 5 * RUNS} == {}


def test_statistics_from_before_a_busy_hour_send_no_group_through_all_messages(world: World) -> None:
    # After a bulk import: analyzed while everything was pending. By then thousands are leased and finished, and the
    # planner still takes their partial indexes for empty.
    run = world.run()
    world.do("ALTER TABLE campaign_messages SET (autovacuum_enabled = false)")
    world.do(
        "WITH made AS (INSERT INTO leads (client_name) SELECT 'Ana' FROM generate_series(1, 6000) RETURNING id)"
        "INSERT INTO campaign_messages (run_id, lead_id, scheduled_at) SELECT %s, id, now() FROM made",
        run,
    )
    world.do("VACUUM ANALYZE campaign_messages")
    ids = [row["id"] for row in world.all("SELECT id FROM campaign_messages")]
    holder = Holder(world)
    holder.take_over(ids[:3000])
    world.do("UPDATE campaign_messages SET status = 'sent' WHERE id = ANY (%s)", ids[3000:])
    with world.connection.transaction(force_rollback=True):
        before = messages_read(world)
        groups = [ids[first : first + 10] for first in range(0, 80, 10)]
        for group in groups:
            for message in group[:2]:
                assert holder.start_generating(message) == "go"
            holder.begin_all({"id": message, "text": "Oi", "parts": ["Oi"]} for message in group)
            holder.settle_all(
                {"id": message, "part_no": 1, "attempt_no": 1, "outcome": "sent", "provider_message_id": "x"}
                for message in group
            )
        assert messages_read(world) - before < len(groups) * 10 * 40


def test_a_function_that_avoids_scans_has_no_plan_compiled(world: World) -> None:
    # Where no index fits, the cost that is estimated for such a scan would alone be reason enough to compile.
    wrong = world.all(
        "SELECT proname FROM pg_proc WHERE pronamespace = 'campaign_pipeline'::regnamespace"
        " AND 'enable_seqscan=off' = ANY (proconfig) AND NOT 'jit=off' = ANY (proconfig)"
    )
    assert wrong == []
