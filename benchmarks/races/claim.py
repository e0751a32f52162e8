"""Claiming 500 of 10,000 and of 10 million.

Does claiming slow down as the table grows? A queue of 10,000 messages is compared with one of 10 million, of which 1 %
are due. They lie in three ways, each in 200 runs of its own, and are claimed one after the other: as a CRM writes them,
with random ids; the same with ids in order, as the pipeline plans them; and scattered among old messages, with random
ids. Each claim takes 500 due messages and commits; nothing is put back in between. Then eight claimers work at once,
each with its own connection, and the housekeeping before a claim is measured.
"""

import asyncio
import contextlib
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
from psycopg.rows import DictRow, TupleRow, dict_row

from benchmarks.report import Plot, Result
from benchmarks.world import TOKEN, Bench, Options, Times, progress
from campaign_pipeline.adapters.queue import BatchOptions, Queue
from campaign_pipeline.sql import functions_text, statement

BATCH, RUNS, CLAIMERS = 500, 200, 8
SMALL = 10_000
MOST_MS, MOST_GROWTH, LEAST_ROWS, MOST_HOUSEKEEPING_MS = 15.0, 1.3, 5000.0, 10.0
LOADED_AT_ONCE, LOADERS = 1_000_000, 2

# Every run of the queue, and many that are over, to which most messages belong.
_CONFIGS = """
INSERT INTO public.workspaces (id, name) VALUES (md5('workspace')::uuid, 'Aurora');
INSERT INTO public.ai_agents (workspace_id, model) VALUES (md5('workspace')::uuid, 'openai/gpt-4o-mini');
INSERT INTO public.inboxes (id, workspace_id)
SELECT md5('inbox' || i)::uuid, md5('workspace')::uuid FROM generate_series(0, 19) i;
INSERT INTO public.instances (id, workspace_id, name, instance_token, status)
SELECT md5('instance' || i)::uuid, md5('workspace')::uuid, 'numero_' || i, %(token)s, 'connected'
FROM generate_series(0, 19) i;
INSERT INTO public.inbox_instances
SELECT md5('inbox' || i)::uuid, md5('instance' || i)::uuid FROM generate_series(0, 19) i;
INSERT INTO public.campaign_configs (id, workspace_id, inbox_id, ai_instructions)
SELECT md5('config' || c)::uuid, md5('workspace')::uuid, md5('inbox' || c %% 20)::uuid, 'Apresente-se.'
FROM generate_series(0, %(runs)s - 1) c;
INSERT INTO public.campaign_runs (id, config_id, name, status, started_at, completed_at, leads_total)
SELECT md5('run' || r)::uuid, md5('config' || r %% %(runs)s)::uuid, 'Campanha ' || r,
       CASE WHEN r < 3 * %(runs)s THEN 'running' ELSE 'completed' END, now() - interval '1 day',
       CASE WHEN r >= 3 * %(runs)s THEN now() END, 100
FROM generate_series(0, 11 * %(runs)s - 1) r
"""

# Of a hundred messages %(due)s are due, ten are planned for later and the rest is finished. As a CRM writes them:
# finished messages come first, then today's runs one after the other, planned in the order of writing. Scattered, the
# worst case: each due message is on its own page among old ones, due in random order. Without `scattered`, all are in
# the first %(runs)s runs, as a CRM writes them. Otherwise half of them are scattered, in the second %(runs)s runs; a
# quarter is in the first, and a quarter in the third %(runs)s runs, whose messages have ids in order. Due messages are
# too young for a claim to expire them.
_MESSAGES = """
INSERT INTO public.campaign_messages (id, run_id, lead_id, status, scheduled_at, sent_at, finished_at, phone_number,
                               generated_message, provider_message_id, created_at)
SELECT CASE WHEN run >= 2 * %(runs)s THEN campaign_pipeline.campaign_new_id() ELSE gen_random_uuid() END,
       md5('run' || CASE WHEN kind = 'sent' THEN 3 * %(runs)s + n %% (8 * %(runs)s) ELSE run END)::uuid,
       md5('lead' || n)::uuid, CASE WHEN kind = 'sent' THEN 'sent' ELSE 'pending' END,
       CASE kind WHEN 'due' THEN now() - interval '20 minutes' + interval '19 minutes'
                      * CASE WHEN old THEN random() ELSE nth %% per_run / per_run::double precision END
                 WHEN 'later' THEN now() + interval '1 day' + random() * interval '3 days'
                 ELSE now() - interval '1 day' - random() * interval '90 days' END,
       CASE WHEN kind = 'sent' THEN now() - interval '1 day' END,
       CASE WHEN kind = 'sent' THEN now() - interval '1 day' END,
       '+55 11 9' || (10000000 + n), CASE WHEN kind = 'sent' THEN repeat('Olá, tudo bem? ', 8) END,
       CASE WHEN kind = 'sent' THEN '3EB0' || md5(n::text) END, now() - interval '100 days'
FROM (SELECT n, old, nth, per_run,
             CASE WHEN old THEN %(runs)s + n / 200 %% %(runs)s
                  WHEN nth / per_run < %(runs)s THEN nth / per_run
                  WHEN %(scattered)s THEN %(runs)s + least(nth / per_run, 2 * %(runs)s - 1)
                  ELSE %(runs)s - 1 END AS run,
             CASE WHEN place < %(due)s THEN 'due' WHEN place < %(due)s + 10 THEN 'later' ELSE 'sent' END AS kind
      FROM (SELECT n, nth, per_run, nth < 0 AS old,
                   CASE WHEN nth >= 0 THEN nth %% per_run * (%(due)s + 10) / per_run
                        WHEN %(scattered)s THEN n %% 200 ELSE 200 END AS place
            FROM (SELECT n, n - (%(rows)s::bigint - lately) AS nth, greatest(1, lately / lately_runs) AS per_run
                  FROM generate_series(%(first)s::bigint, %(last)s) n,
                       (SELECT %(rows)s::bigint * (10 + %(due)s) / CASE WHEN %(scattered)s THEN 200 ELSE 100 END,
                               %(runs)s * CASE WHEN %(scattered)s THEN 2 ELSE 1 END) AS l (lately, lately_runs)
                 ) numbered) placed) kinds
"""

# The statement inside campaign_claim_messages; copied for EXPLAIN, which does not look into functions.
_PICK = """
SELECT m.ctid AS place, m.run_id
FROM public.campaign_messages m
WHERE m.run_id = r.run_id
  AND m.status = 'pending'
  AND campaign_pipeline.campaign_due_at(m) <= horizon
  AND (m.next_attempt_at IS NULL OR m.next_attempt_at <= campaign_pipeline.campaign_now())
  AND CASE WHEN p_probes IS NULL THEN true ELSE m.id = ANY (p_probes) END
  AND (m.inbox_id IS NULL OR NOT campaign_pipeline.campaign_waits_for_its_inbox(m.id, m.run_id, m.inbox_id))
ORDER BY campaign_pipeline.campaign_due_at(m)
LIMIT least(share, r.quota)
FOR UPDATE SKIP LOCKED
"""


@dataclass
class Measured:
    """One size of queue."""

    rows: int
    claim: Times  # the statement and its commit
    batch: Times  # the whole transaction of a claiming step, with its connection
    idle: Times  # is anything due?
    rows_per_second: float  # eight claimers at once
    doubles: int


@dataclass(frozen=True)
class Filled:
    """A loaded queue: its running runs, by the layout of their messages."""

    url: str
    rows: int
    runs: list[UUID]
    scattered_runs: list[UUID]
    ordered_runs: list[UUID]  # whose messages have ids in order


def race(bench: Bench, options: Options, result: Result) -> None:
    """Measure each queue in the same way; keep the plans of the large one."""
    if re.sub(r"\s+", " ", _PICK).strip() not in re.sub(r"\s+", " ", functions_text()):
        raise AssertionError("_PICK differs from the statement inside campaign_claim_messages.")
    rows = options.pick(options.rows, 8_000)
    plans = options.out / "plans" if not options.short else None
    # In the small queue 90 % are due: 1 % of 10,000 would not be enough for one claim.
    with _filled(bench, options.pick(SMALL, 2_000), 90, scattered=False) as loaded:
        small = _measure(options, loaded, loaded.runs)
    with _filled(bench, rows, options.pick(1, 80), scattered=True) as loaded:
        large = _measure(options, loaded, loaded.runs)
        housekeeping, leases = _keep_house(options, loaded, plans)
        ordered = _measure(options, loaded, loaded.ordered_runs)
        scattered = _measure(options, loaded, loaded.scattered_runs)
    queues = {
        f"{small.rows:,} rows": small,
        f"{large.rows:,} rows": large,
        f"{large.rows:,} rows, ids in order": ordered,
        f"{large.rows:,} rows, scattered": scattered,
    }
    for words, queue in queues.items():
        result.judge(f"claim of {BATCH}, {words}", queue.claim.ms, "ms", most=MOST_MS, digits=1)
    for words, queue in list(queues.items())[1:]:
        result.judge(f"{words} / small", queue.claim.median / small.claim.median, "×", most=MOST_GROWTH)
    for words, queue in queues.items():
        result.tell(f"the whole step's transaction, connecting and judging {RUNS} runs, {words}", queue.batch.ms, "ms")
    result.judge(f"{CLAIMERS} claimers at once", large.rows_per_second, "rows/s", least=LEAST_ROWS, digits=0)
    result.judge("messages claimed twice", sum(queue.doubles for queue in queues.values()), most=0, digits=0)
    for name, times in housekeeping.items():
        result.judge(f"{name}, {large.rows:,} rows", times.ms, "ms", most=MOST_HOUSEKEEPING_MS, digits=1)
    result.tell(f"idle tick: one statement, {large.rows:,} rows", large.idle.ms, "ms")
    result.plots.append(
        Plot(
            f"Milliseconds at {small.rows:,} and at {large.rows:,} rows",
            "ms",
            {f"this project: claim of {BATCH}, {words}": queue.claim.ms for words, queue in queues.items()}
            | {f"{name}, {large.rows:,} rows": times.ms for name, times in housekeeping.items()},
            ("target of a claim", MOST_MS),
        )
    )
    result.notes.append(
        f"{leases:,} leases were live while the housekeeping was measured. Each queue is measured right after a "
        "checkpoint, so the first change of each page writes the whole page to the WAL."
    )
    result.notes.append(
        "A claim moves its rows out of the index of due messages, so each row gets a new version, and a new entry in "
        "every index that it is in. Random ids put each entry on a page of its own: 500 pages that are not in memory, "
        "and that the WAL holds in full after a checkpoint. The claim is fair, so these 500 rows come from 200 runs. "
        "docs/scale.md says what each part costs."
    )
    if plans is not None:
        result.notes.append("The plan of every statement at the large size is in `plans/`.")


def _measure(options: Options, queue: Filled, runs: list[UUID]) -> Measured:
    repeat = options.pick(11, 1)
    _let_only_run(queue, runs)
    claim, batch, idle = Times(), Times(), Times()
    with _connect(queue.url) as connection:
        for _ in range(repeat):
            claim.time(lambda: _claim(connection, runs))
            idle.time(lambda: connection.execute(statement("look_at_queue")).fetchall())
            connection.commit()
    claimer = BatchOptions(BATCH, "benchmark")
    for _ in range(options.pick(3, 1)):
        batch.time(lambda: asyncio.run(Queue(queue.url).claim_batch(claimer)))
    rate, doubles = _claim_at_once(queue.url, runs, options.pick(2 if queue.rows > SMALL else 1, 1))
    return Measured(queue.rows, claim, batch, idle, rate, doubles)


def _keep_house(options: Options, queue: Filled, plans: Path | None) -> tuple[dict[str, Times], int]:
    """Measure the housekeeping and keep the plans; also return how many leases are live meanwhile."""
    with _connect(queue.url) as connection:
        row = connection.execute(
            "SELECT count(*) AS n FROM public.campaign_messages WHERE status IN ('queued', 'generating', 'sending')"
        ).fetchone()
        assert row is not None
        connection.rollback()
        times = _housekeeping(connection, queue.runs, options.pick(11, 1))
        if plans is not None:
            _keep_plans(connection, queue.runs, plans, queue.rows)
    return times, row["n"]


def _let_only_run(queue: Filled, runs: list[UUID]) -> None:
    """Pause all other runs, so that a whole batch judges only these, and begin right after a checkpoint."""
    with psycopg.connect(queue.url, autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(
            "UPDATE public.campaign_runs SET status = CASE WHEN id = ANY (%s) THEN 'running' ELSE 'paused' END"
            " WHERE status <> 'completed'",
            [runs],
        )
        connection.execute("VACUUM ANALYZE public.campaign_runs")
        connection.execute("CHECKPOINT")


def _connect(url: str) -> psycopg.Connection[DictRow]:
    return psycopg.connect(url, row_factory=dict_row, prepare_threshold=None)


@contextlib.contextmanager
def _filled(bench: Bench, rows: int, due: int, *, scattered: bool) -> Iterator[Filled]:
    """Load a queue from both cores, without triggers, foreign keys and indexes, and then build these."""
    values = {"runs": RUNS, "due": due, "rows": rows, "scattered": scattered}
    with bench.database("bench_claim") as url:

        def load(first: int) -> None:
            with _loader(url) as connection:
                connection.execute(_MESSAGES, values | {"first": first, "last": min(rows, first + LOADED_AT_ONCE) - 1})

        with _loader(url) as connection:
            connection.execute(_CONFIGS, {"runs": RUNS, "token": TOKEN})
            with _without_indexes(connection), ThreadPoolExecutor(LOADERS) as loaders:
                list(loaders.map(load, range(0, rows, LOADED_AT_ONCE)))
            connection.execute("VACUUM ANALYZE campaign_configs, campaign_messages")
            # The counters, which the triggers keep otherwise.
            connection.execute(
                "UPDATE public.campaign_runs r SET leads_success = n.sent, leads_processed = n.sent"
                " FROM (SELECT run_id, count(*) AS sent FROM public.campaign_messages"
                "       WHERE status = 'sent' GROUP BY run_id) n"
                " WHERE n.run_id = r.id"
            )
            runs = [
                row[0]
                for row in connection.execute(
                    "SELECT md5('run' || r)::uuid FROM generate_series(0, %s) r ORDER BY r", [3 * RUNS - 1]
                )
            ]
        progress(f"{rows:,} rows are loaded")
        yield Filled(url, rows, runs[:RUNS], runs[RUNS : 2 * RUNS], runs[2 * RUNS :])


@contextlib.contextmanager
def _without_indexes(connection: "psycopg.Connection[TupleRow]") -> Iterator[None]:
    """Drop the indexes of the messages, and the constraints that need one; make them again afterwards."""
    indexes = connection.execute(
        "SELECT indexrelid::regclass, pg_get_indexdef(indexrelid) FROM pg_index"
        " WHERE indrelid = 'public.campaign_messages'::regclass AND NOT indisprimary"
    ).fetchall()
    references = connection.execute(
        "SELECT conrelid::regclass, conname, pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE confrelid = 'public.campaign_messages'::regclass AND contype = 'f'"
    ).fetchall()
    for name, _ in indexes:
        connection.execute(f"DROP INDEX {name}")
    connection.execute("ALTER TABLE public.campaign_messages DROP CONSTRAINT campaign_messages_pkey CASCADE")
    yield
    # Random ids fill an index to about 70 %; built at once, it would be 90 % full.
    connection.execute("ALTER TABLE public.campaign_messages ADD PRIMARY KEY (id) WITH (fillfactor = 70)")
    for _, definition in indexes:
        connection.execute(definition)
    for table, name, definition in references:
        connection.execute(f"ALTER TABLE {table} ADD CONSTRAINT {name} {definition}")


@contextlib.contextmanager
def _loader(url: str) -> Iterator["psycopg.Connection[TupleRow]"]:
    with psycopg.connect(url, autocommit=True, cursor_factory=psycopg.ClientCursor) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute("SET synchronous_commit = off")
        connection.execute("SET maintenance_work_mem = '512MB'")
        yield connection


def _claim(connection: psycopg.Connection[DictRow], runs: list[UUID]) -> list[UUID]:
    rows = connection.execute(
        statement("claim_messages"),
        {
            "run_ids": runs,
            "tried_ids": None,
            "ahead_seconds": 0.0,
            "quotas": [BATCH] * len(runs),
            "batch_size": BATCH,
            "token": uuid4(),
            "owner": "benchmark",
            "lease_seconds": 3600.0,
        },
    ).fetchall()
    connection.commit()
    return [row["message_id"] for row in rows]


def _claim_at_once(url: str, runs: list[UUID], claims: int) -> tuple[float, int]:
    """Return the rows per second of all claimers together, and the number of messages claimed twice."""
    claimed: list[list[UUID]] = []
    ready = threading.Barrier(CLAIMERS + 1)

    def work() -> None:
        with _connect(url) as connection:
            connection.execute("SELECT 1")
            connection.commit()
            ready.wait()
            claimed.extend(_claim(connection, runs) for _ in range(claims))

    threads = [threading.Thread(target=work) for _ in range(CLAIMERS)]
    for thread in threads:
        thread.start()
    ready.wait()
    started = time.perf_counter()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    counts = Counter(message for batch in claimed for message in batch)
    return sum(counts.values()) / seconds, sum(count - 1 for count in counts.values())


def _statements(connection: psycopg.Connection[DictRow], runs: list[UUID]) -> dict[str, tuple[str, dict[str, Any]]]:
    row = connection.execute("SELECT campaign_pipeline.campaign_now() - interval '1 hour' AS cutoff").fetchone()
    assert row is not None
    cutoffs = [row["cutoff"]] * len(runs)
    return {
        "closing runs": (statement("close_runs"), {}),
        "expiring": (statement("expire_old_messages"), {"run_ids": runs, "cutoffs": cutoffs, "max_age_minutes": 60}),
        "recovering leases": (statement("recover_leases"), {}),
        "settling cancelled runs": (statement("settle_cancelled_runs"), {}),
    }


@contextlib.contextmanager
def _something_to_do(connection: psycopg.Connection[DictRow], runs: list[UUID]) -> Iterator[None]:
    """Make a run that can close, 20 messages that are too old and 20 expired leases; roll back afterwards."""
    held = "SELECT id FROM public.campaign_messages WHERE run_id = %s AND status = 'queued' LIMIT 20"
    connection.execute(
        f"UPDATE public.campaign_messages SET lease_expires_at = now() - interval '1 minute' WHERE id IN ({held})",  # noqa: S608
        [runs[0]],
    )
    old = "SELECT id FROM public.campaign_messages WHERE run_id = %s AND status = 'pending' LIMIT 20"
    connection.execute(
        f"UPDATE public.campaign_messages SET scheduled_at = now() - interval '9 hours' WHERE id IN ({old})",  # noqa: S608
        [runs[1]],
    )
    connection.execute(
        "WITH run AS (INSERT INTO public.campaign_runs (config_id, name, status, started_at, leads_total)"
        "             SELECT config_id, 'Ended', 'running', now() - interval '1 hour', 1 FROM public.campaign_runs"
        "             WHERE id = %s RETURNING id)"
        " INSERT INTO public.campaign_messages (run_id, lead_id, status, scheduled_at, sent_at, finished_at)"
        " SELECT id, gen_random_uuid(), 'sent', now(), now(), now() FROM run",
        [runs[2]],
    )
    try:
        yield
    finally:
        connection.rollback()


def _housekeeping(connection: psycopg.Connection[DictRow], runs: list[UUID], repeat: int) -> dict[str, Times]:
    """Time each statement with something to do, and with nothing to do, which is the usual case."""
    found: dict[str, Times] = {}
    for name, (text, values) in _statements(connection, runs).items():
        nothing, something = found.setdefault(f"{name}, nothing to do", Times()), found.setdefault(name, Times())
        for _ in range(repeat):
            nothing.time(lambda: connection.execute(text, values).fetchall())  # noqa: B023 (called at once)
            connection.rollback()
            with _something_to_do(connection, runs):
                something.time(lambda: connection.execute(text, values).fetchall())  # noqa: B023
    return found


def _keep_plans(connection: psycopg.Connection[DictRow], runs: list[UUID], folder: Path, rows: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    share = max(1, BATCH // len(runs))
    pick_share = _PICK.replace("least(share, r.quota)", str(share)).replace("p_probes", "NULL::uuid[]")
    pick_share = pick_share.replace("horizon", "campaign_pipeline.campaign_now()")
    every_run = "unnest(%(runs)s::uuid[]) AS r (run_id)"
    claim = f"SELECT d.place FROM {every_run} CROSS JOIN LATERAL ({pick_share}) d LIMIT {BATCH}"  # noqa: S608
    statements: dict[str, tuple[str, dict[str, Any]]] = {
        "claim_messages": (claim, {"runs": runs}),
        "list_running_runs": (statement("list_running_runs"), {"run_id": None}),
        "look_at_queue": (statement("look_at_queue"), {}),
        **{name.replace(" ", "_"): each for name, each in _statements(connection, runs).items()},
    }
    for name, (text, values) in statements.items():
        plan = connection.execute(f"EXPLAIN (ANALYZE, BUFFERS, COSTS) {text}", values).fetchall()
        connection.rollback()
        lines = "\n".join(str(line["QUERY PLAN"]) for line in plan)
        (folder / f"{name}.txt").write_text(
            f"{rows:,} messages, {len(runs)} running runs\n\n{lines}\n", encoding="utf-8"
        )
