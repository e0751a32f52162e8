"""Takes over a CRM's queue from its own processor, and gives it back: `campaign-pipeline crm`.

The CRM's processor claims messages through one function of the CRM, and skips old ones through another. An attach
replaces both with functions that do nothing; a detach restores them. Every step is idempotent, so the same command
resumes after an interruption.
"""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg.rows import DictRow
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random

from campaign_pipeline import sql
from campaign_pipeline.adapters import schema
from campaign_pipeline.adapters.crm_check import additions, check
from campaign_pipeline.adapters.crm_functions import list_replaceable
from campaign_pipeline.adapters.findings import State
from campaign_pipeline.adapters.online import OnlineSteps, StepFailed, one_at_a_time
from campaign_pipeline.adapters.queue_connection import connect_rows
from campaign_pipeline.adapters.schema import DatabaseUnusable
from campaign_pipeline.sql import statement

# Attaching ------------------------------------------------------------------------------------------------------------


def attach(url: str, say: Callable[[str], None]) -> list[str]:
    """Take over the queue; return a sentence for each change. Raises DatabaseUnusable.

    If interrupted, another call resumes it. Until its last step, the old processor or nothing takes messages, and no
    message is taken twice.
    """
    obstacles = [finding for finding in check(url) if finding.state is State.STOPS]
    if obstacles:
        told = " ".join(f"{finding.what}: {finding.todo or finding.found}" for finding in obstacles)
        raise DatabaseUnusable(f"The CRM cannot be attached. {told}")
    # A detach in between would leave the queue to both.
    with schema.one_sentence(url), one_at_a_time(url, say):
        with connect_rows(url, autocommit=True) as connection:
            if schema.found_version(connection) == sql.HEAD:
                connection.execute(statement("mark_attaching"))  # so that the upgrade restores the triggers
        done = [f"The schema is {schema.upgrade_alone(url, say)}."]
        with connect_rows(url, autocommit=True) as connection:
            done += _take_queue(connection)
    return done


def _take_queue(connection: "psycopg.Connection[DictRow]") -> list[str]:
    connection.execute(statement("mark_attaching"))
    done = []
    for function in list_replaceable(connection):
        if function.replaced:
            done.append(f"{function.signature} was replaced before.")
            continue
        with connection.transaction():
            kept = {"function": function.signature, "definition": function.definition}
            connection.execute(statement("keep_function"), kept)
            connection.execute(function.replacement.encode())
        done.append(f"{function.signature} does nothing from now on; its original is kept.")
    connection.execute(statement("mark_attached"))
    verdicts: Counter[str] = Counter()
    while settled := _giving_way(connection, "settle_old_processor").fetchall():
        verdicts.update({row["verdict"]: row["messages"] for row in settled})
    left = connection.execute(statement("count_in_flight")).fetchall()[0]["unleased"]
    done += [_VERDICTS[verdict].format(messages) for verdict, messages in sorted(verdicts.items())]
    if left:
        done.append(
            f"{left} messages were taken by the CRM's own processor less than 15 minutes ago: it may finish them; the "
            "pipeline's batches settle what it does not."
        )
    return done


def _giving_way(
    connection: "psycopg.Connection[DictRow]", name: str, values: dict[str, Any] | None = None
) -> "psycopg.Cursor[DictRow]":
    """Run a statement that locks the CRM's rows.

    In a deadlock with a statement of the CRM, ours gives up, because its lock timeout is below the server's
    deadlock_timeout of one second; it is then repeated.
    """
    query = statement(name)
    again = Retrying(
        retry=retry_if_exception_type((psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected)),
        wait=wait_random(0.05, 0.5),
        stop=stop_after_delay(60),
        reraise=True,
    )

    def call() -> "psycopg.Cursor[DictRow]":
        with connection.transaction():
            connection.execute("SET LOCAL lock_timeout = '800ms'")
            return connection.execute(query, values)

    return again(call)


_VERDICTS = {
    "sent": "{} messages that the old processor left are sent: their text stands in the chat.",
    "looked_up": "{} messages that the old processor left are asked for at their provider by the next batch.",
    "unknown": "{} messages that the old processor left are failed as unknown: a person decides whether to send them.",
    "given_back": "{} messages that the old processor left had no text yet, and wait again.",
}


# Detaching ------------------------------------------------------------------------------------------------------------


def detach(url: str, say: Callable[[str], None], wait_seconds: float = 300.0, *, drop: bool = False) -> list[str]:
    """Give the queue back; return a sentence for each change. Raises DatabaseUnusable.

    Its first step stops all claims. Leased messages that are not begun are given back; it waits for those being written
    or sent, at most `wait_seconds`. `drop` also removes the pipeline's schema, columns and indexes.
    """
    with schema.one_sentence(url), one_at_a_time(url, say):
        with connect_rows(url, autocommit=True) as connection:
            version = schema.found_version(connection)
            if version is None:
                raise StepFailed(f"There is nothing to detach: {schema.describe(url)} has no campaign schema.")
            if version != sql.HEAD:
                raise StepFailed(f"The campaign schema is {version}: run `campaign-pipeline db upgrade` first.")
            connection.execute(statement("mark_detached"))
            done = ["The pipeline takes no messages any more."]
            given_back = _wait_for_leases(connection, say, wait_seconds)
            if given_back:
                done.append(f"{given_back} messages that were leased and not begun are given back.")
            done += _leave_queue(connection)
            # The CRM's own processor closes a run only with its last message, which may have been the pipeline's.
            _giving_way(connection, "settle_cancelled_runs")
            closed = len(_giving_way(connection, "close_runs").fetchall())
            if closed:
                done.append(f"{closed} runs of which nothing was left are closed.")
        with OnlineSteps(url, say) as steps:
            done.append(_drop_triggers(steps))
            with connect_rows(url, autocommit=True) as connection:
                done += _restore_functions(connection)
            if drop:
                done.append(_drop_all(steps))
    return done


def _wait_for_leases(connection: "psycopg.Connection[DictRow]", say: Callable[[str], None], seconds: float) -> int:
    end = time.monotonic() + seconds
    given_back = 0
    told = False
    while True:
        late = time.monotonic() > end
        given_back += _giving_way(connection, "give_back_unbegun", {"begun": late}).rowcount
        _giving_way(connection, "recover_leases")
        counts = connection.execute(statement("count_in_flight")).fetchall()[0]
        left = counts["leased"] + counts["expired"]  # an expired lease is given back once its row is free
        if not left:
            return given_back
        if late:
            raise StepFailed(
                f"{left} messages are still being sent after {seconds:g} seconds; the pipeline takes no others. Run "
                "this again when they have ended: a lease that nobody renews ends by itself."
            )
        if not told:
            say(f"Waiting for {left} messages that are being written or sent …")
            told = True
        time.sleep(0.2)


def _leave_queue(connection: "psycopg.Connection[DictRow]") -> list[str]:
    totals = {"failed_half_sent": 0, "due_now": 0, "cleared": 0}
    while any((step := dict(_giving_way(connection, "leave_to_crm").fetchall()[0])).values()):
        for name, count in step.items():
            totals[name] += count
    done = []
    if totals["failed_half_sent"]:
        done.append(
            f"{totals['failed_half_sent']} messages of which a part went out, or may have, are failed: the CRM's own "
            "processor would send them whole."
        )
    if totals["due_now"]:
        done.append(f"{totals['due_now']} messages that wait are due from now on, in their order.")
    return done


def _drop_triggers(steps: OnlineSteps) -> str:
    """Drop counting and the guard of counters in one step: between two steps nothing would count."""
    triggers = [trigger for trigger in sql.functions_and_triggers()[1] if trigger.table.startswith("public.")]
    counting = [t for t in triggers if t.name.startswith(("campaign_count_", "campaign_guard_"))]
    steps.run(" ".join(f"DROP TRIGGER IF EXISTS {t.name} ON {t.table};" for t in counting))
    for trigger in triggers:
        if trigger not in counting:
            steps.run(f"DROP TRIGGER IF EXISTS {trigger.name} ON {trigger.table};")
    return f"{len(triggers)} triggers are off."


def _restore_functions(connection: "psycopg.Connection[DictRow]") -> list[str]:
    done = []
    ours = {function.signature for function in list_replaceable(connection) if function.replaced}
    for kept in connection.execute(statement("list_kept_functions")).fetchall():
        with connection.transaction():
            if kept["function"] in ours:
                connection.execute(kept["definition"].encode())
                done.append(f"{kept['function']} is restored.")
            else:
                done.append(f"{kept['function']} was changed or removed by somebody meanwhile, and is left as it is.")
            connection.execute(statement("forget_function"), {"function": kept["function"]})
    return done


def _drop_all(steps: OnlineSteps) -> str:
    added = additions()
    before = {
        (row[0], row[1])
        for row in steps.connection.execute(
            "SELECT table_name, column_name FROM campaign_pipeline.campaign_columns_before"
        ).fetchall()
    }
    for name in added.indexes:
        steps.run(f"DROP INDEX CONCURRENTLY IF EXISTS public.{name};")
    for table in {*added.columns, *added.constraints}:
        changes = [f"DROP CONSTRAINT IF EXISTS {name}" for name in added.constraints.get(table, [])]
        if before:  # otherwise some may be the CRM's, with data
            changes += [
                f"DROP COLUMN IF EXISTS {name}" for name in added.columns.get(table, []) if (table, name) not in before
            ]
        if changes:
            steps.run(f"ALTER TABLE IF EXISTS public.{table} {', '.join(dict.fromkeys(changes))};")
    steps.run(f"DROP SCHEMA IF EXISTS {sql.SCHEMA} CASCADE;")
    if not before:
        return (
            "The pipeline's schema, constraints and indexes are gone. Its columns are left: an early version made "
            "them, which did not note what the CRM had before."
        )
    return "The pipeline's schema, columns, constraints and indexes are gone."
