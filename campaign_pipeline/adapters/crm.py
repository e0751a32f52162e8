"""Takes over a CRM's queue from its own processor, and gives it back: `campaign-pipeline crm`.

The CRM's processor claims messages through one function of the CRM, and skips old ones through another. An attach
replaces both with functions that do nothing; a detach restores them. Every step is idempotent, so the same command
resumes after an interruption.
"""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cache
from typing import Any

import psycopg
from psycopg.rows import DictRow
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random

from campaign_pipeline import sql
from campaign_pipeline.adapters import schema
from campaign_pipeline.adapters.online import OnlineSteps, StepFailed, one_at_a_time
from campaign_pipeline.adapters.queue_connection import connect_rows, is_pooled
from campaign_pipeline.adapters.schema import DatabaseUnusable
from campaign_pipeline.sql import statement

CLAIM_FUNCTION = "get_and_lock_campaign_messages"
"""Through which the CRM's own processor claims messages."""

EXPIRY_FUNCTION = "mark_old_campaign_messages_as_skipped"
"""By which the CRM's own processor skips messages that were due an hour ago, at each call. It does not know of
messages that wait for another attempt, for their pace or for their inbox."""

RECENT_DAYS = 7
_MARK = "campaign_pipeline is attached"
_OLD_CALLS = r"get_and_lock_campaign_messages|campaign[-_]*(queue|process)|(queue|process\w*)[-_]*campaign"
"""Matches a scheduled call of the old processor: by the function, or by the names of edge functions."""


class State(StrEnum):
    """What a finding means for an attach."""

    FINE = "ok"
    LOOK = "look"  # a person should look at it; it stops nothing
    STOPS = "stops"  # an attach is refused


@dataclass(frozen=True)
class Finding:
    """One line of `crm check`."""

    what: str
    state: State
    found: str
    todo: str = ""

    def to_dict(self) -> dict[str, str]:
        """For `--json`."""
        return {name: str(value) for name, value in asdict(self).items()}


# Looking --------------------------------------------------------------------------------------------------------------


def check(url: str) -> list[Finding]:
    """Read what affects an attach, without changes. Raises DatabaseUnusable if the database does not answer."""
    with _sentences(url), connect_rows(url, autocommit=True) as connection:
        return list(_findings(url, connection))


def _findings(url: str, connection: "psycopg.Connection[DictRow]") -> Iterator[Finding]:
    yield connection_finding(url, connection)
    yield server_finding(connection)
    yield from _tables(connection)
    yield rights_finding(connection)
    yield _row_security(connection)
    version = schema.found_version(connection)
    yield _schema(connection, version)
    yield from _claim_functions(connection, attached=_attachment(connection, version)["attached_at"] is not None)
    yield _in_flight(connection, version)
    yield from _cron_jobs(connection)
    yield _additions(connection)
    if version == sql.HEAD:
        yield _foreign_changes(connection)


def _all(connection: "psycopg.Connection[DictRow]", query: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
    return connection.execute(query.encode(), values or None).fetchall()


def _columns(connection: "psycopg.Connection[DictRow]", tables: list[str]) -> list[dict[str, Any]]:
    """Return all columns of these tables; the information schema would omit those that this role cannot read."""
    return _all(
        connection,
        "SELECT c.relname AS table_name, a.attname AS column_name FROM pg_class c "
        "JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped "
        "WHERE c.relnamespace = 'public'::regnamespace AND c.relname = ANY (%s)",
        [tables],
    )


def connection_finding(url: str, connection: "psycopg.Connection[DictRow]") -> Finding:
    """Report how the database is reached."""
    host = psycopg.conninfo.conninfo_to_dict(url).get("host") or ""
    near = str(host).startswith("/") or host in {"", "localhost", "127.0.0.1", "::1"}
    encrypted = bool(connection.pgconn.ssl_in_use)
    found = f"{schema.describe(url)}, {'encrypted' if encrypted else 'not encrypted'}"
    if is_pooled(connection):
        found += ", through a pooler"
    if encrypted or near:
        return Finding("connection", State.FINE, found)
    return Finding("connection", State.LOOK, found, "Add ?sslmode=verify-full&sslrootcert=… (or ?sslmode=require).")


def server_finding(connection: "psycopg.Connection[DictRow]") -> Finding:
    """Report the server and the role."""
    row = _all(connection, "SELECT current_user AS role, current_setting('server_version_num')::integer AS version")[0]
    found = f"PostgreSQL {row['version'] // 10000}, as the role {row['role']}"
    if row["version"] < schema.OLDEST_SERVER:
        return Finding("server", State.STOPS, found, "PostgreSQL 14 or newer is needed.")
    return Finding("server", State.FINE, found)


_COLUMN = re.compile(r"^\s{4}(\w+)\s+(?!KEY)\w", re.MULTILINE)
_NOT_NEEDED = {("campaign_configs", "name")}  # a column that no statement reads


@cache
def needed_columns() -> dict[str, set[str]]:
    """Return the CRM's tables and columns that the pipeline uses, as its own first migration creates them."""
    found: dict[str, set[str]] = {}
    for text in sql.split_statements(sql.migration_text("0001_crm_tables")):
        table = re.search(r"CREATE TABLE IF NOT EXISTS public\.(\w+)", text)
        assert table is not None
        columns = set(_COLUMN.findall(text)) - {"PRIMARY", "CONSTRAINT", "UNIQUE", "CHECK"}
        found[table[1]] = {column for column in columns if (table[1], column) not in _NOT_NEEDED}
    return found


def _tables(connection: "psycopg.Connection[DictRow]") -> Iterator[Finding]:
    rows = _columns(connection, list(needed_columns()))
    there: dict[str, set[str]] = {}
    for row in rows:
        there.setdefault(row["table_name"], set()).add(row["column_name"])
    missing = sorted(set(needed_columns()) - set(there))
    found = f"{len(there)} of {len(needed_columns())} are there"
    if "campaign_messages" in missing:
        todo = "This is no database of the CRM: name the CRM's in CAMPAIGN_DATABASE_URL."
        yield Finding("CRM tables", State.STOPS, found, todo)
        return
    if missing:
        yield Finding("CRM tables", State.LOOK, f"{found}; missing: {', '.join(missing)}", "An upgrade makes them.")
    else:
        yield Finding("CRM tables", State.FINE, found)
    lacking = sorted(
        f"{table}.{column}"
        for table, names in needed_columns().items()
        if table in there
        for column in names - there[table]
    )
    if lacking:
        todo = "The pipeline cannot work without them: add them to the CRM's tables."
        yield Finding("CRM columns", State.STOPS, f"missing: {', '.join(lacking)}", todo)
    else:
        yield Finding("CRM columns", State.FINE, "all that are read or written are there")


def rights_finding(connection: "psycopg.Connection[DictRow]") -> Finding:
    """Report whether the role has all rights that the pipeline needs."""
    owners = _all(
        connection,
        "SELECT DISTINCT pg_get_userbyid(c.relowner) AS owner FROM pg_class c "
        "WHERE c.relnamespace = 'public'::regnamespace AND c.relname = ANY (%s) AND c.relkind IN ('r', 'p')",
        [list(needed_columns())],
    )
    found = f"the tables belong to {', '.join(sorted(row['owner'] for row in owners))}" if owners else "no tables"
    lack = schema.lacking_right(connection)
    return Finding("rights", State.STOPS, found, lack) if lack else Finding("rights", State.FINE, found)


def _row_security(connection: "psycopg.Connection[DictRow]") -> Finding:
    rows = _all(
        connection,
        "SELECT c.relname AS name, c.relforcerowsecurity OR NOT pg_has_role(c.relowner, 'USAGE') AS holds, "
        "       (SELECT rolbypassrls OR rolsuper FROM pg_roles WHERE rolname = current_user) AS passes "
        "FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relrowsecurity AND c.relname = ANY (%s)",
        [list(needed_columns())],
    )
    hidden = sorted(row["name"] for row in rows if row["holds"] and not row["passes"])
    found = f"on for {len(rows)} of the CRM's tables"
    if hidden:
        todo = f"It would hide rows of {', '.join(hidden)}: connect as their owner, or as a role with BYPASSRLS."
        return Finding("row level security", State.STOPS, found, todo)
    return Finding("row level security", State.FINE, found + (", and does not hold for this role" if rows else ""))


def _schema(connection: "psycopg.Connection[DictRow]", version: str | None) -> Finding:
    if version is None:
        return Finding("pipeline's schema", State.FINE, "not there yet: an attach makes it")
    attachment = _attachment(connection, version)
    since = attachment["attached_at"] or attachment["detached_at"]
    found = f"schema {version}"
    if since is not None:
        found += f", {'attached' if attachment['attached_at'] else 'detached'} since {since:%Y-%m-%d %H:%M %Z}"
    if version != sql.HEAD:
        return Finding("pipeline's schema", State.FINE, f"{found}: an attach brings it to {sql.HEAD}")
    return Finding("pipeline's schema", State.FINE, found)


def _attachment(connection: "psycopg.Connection[DictRow]", version: str | None) -> dict[str, Any]:
    there = _all(connection, "SELECT to_regclass('campaign_pipeline.campaign_crm_attachment') IS NOT NULL AS yes")
    if version is None or not there[0]["yes"]:
        return {"attached_at": None, "detached_at": None}
    return connection.execute(statement("read_attachment")).fetchall()[0]


def _claim_functions(connection: "psycopg.Connection[DictRow]", *, attached: bool) -> Iterator[Finding]:
    functions = _list_replaceable(connection)
    if not any(function.what == "claim function" for function in functions):
        todo = "If the CRM's own processor is still there and claims in another way, stop it before an attach."
        yield Finding("claim function", State.LOOK, f"there is no public.{CLAIM_FUNCTION}", todo)
    for function in functions:
        if function.replaced:
            yield Finding(function.what, State.FINE, f"{function.signature} does nothing: we replaced it")
        elif attached:
            todo = "Somebody made it anew, so the CRM's own processor changes messages again: run `crm attach` again."
            yield Finding(function.what, State.LOOK, f"{function.signature} is not what the attach left", todo)
        elif not function.ours_to_replace:
            todo = f'It belongs to {function.owner}: connect as {function.owner}, or run GRANT "{function.owner}" TO '
            todo += f'"{function.role}".'
            yield Finding(function.what, State.STOPS, function.signature, todo)
        else:
            found = f"{function.signature}: an attach replaces it by one that does nothing"
            yield Finding(function.what, State.FINE, found)


def _in_flight(connection: "psycopg.Connection[DictRow]", version: str | None) -> Finding:
    try:
        if version == sql.HEAD:
            row = connection.execute(statement("count_in_flight")).fetchall()[0]
        else:
            row = _all(
                connection,
                "SELECT 0 AS leased, 0 AS expired, count(*) AS unleased FROM public.campaign_messages "
                "WHERE status IN ('queued', 'generating', 'sending')",
            )[0]
    except (psycopg.errors.UndefinedTable, psycopg.errors.InsufficientPrivilege):
        return Finding("messages in flight", State.LOOK, "cannot be counted")
    found = (
        f"{row['leased']} leased by the pipeline, {row['expired']} of a lease that ran out, "
        f"{row['unleased']} held by the CRM's own processor"
    )
    if not row["unleased"]:
        return Finding("messages in flight", State.FINE, found)
    todo = "What it does not finish within 15 minutes of taking it is looked up in the chat and at the provider."
    return Finding("messages in flight", State.LOOK, found, todo)


def _cron_jobs(connection: "psycopg.Connection[DictRow]") -> Iterator[Finding]:
    there = _all(connection, "SELECT to_regclass('cron.job') IS NOT NULL AS yes")[0]["yes"]
    if not there:
        yield Finding("cron jobs", State.FINE, "pg_cron is not installed here")
        return
    try:
        rows = _all(
            connection, "SELECT jobid, schedule, command FROM cron.job WHERE active AND command ~* %s", [_OLD_CALLS]
        )
    except psycopg.errors.InsufficientPrivilege:
        todo = "Look yourself: SELECT * FROM cron.job WHERE command ~ 'campaign'."
        yield Finding("cron jobs", State.LOOK, "cron.job may not be read by this role", todo)
        return
    if not rows:
        yield Finding("cron jobs", State.FINE, "none calls the CRM's own processor")
    for row in rows:
        # Not the command: it often contains a key.
        todo = f"It finds nothing once attached. To save the call: SELECT cron.unschedule({row['jobid']})."
        yield Finding("cron jobs", State.LOOK, f"job {row['jobid']} ({row['schedule']}) calls the old processor", todo)


def _foreign_changes(connection: "psycopg.Connection[DictRow]") -> Finding:
    rows = connection.execute(statement("count_foreign_changes"), {"days": RECENT_DAYS}).fetchall()
    if not rows:
        return Finding("others at the queue", State.FINE, f"nobody took or finished a message in {RECENT_DAYS} days")
    found = "; ".join(
        f"{row['messages']} became {row['became']} by {row['by_role']}"
        + (f" ({row['application']})" if row["application"] else "")
        + f", last {row['last_at']:%Y-%m-%d %H:%M %Z}"
        for row in rows
    )
    todo = "Find out who sends besides the pipeline, and stop it: a message could go out twice."
    return Finding("others at the queue", State.LOOK, found, todo)


# What the pipeline adds -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Additions:
    """What the migrations and function files add to the CRM's own tables."""

    columns: dict[str, list[str]]
    constraints: dict[str, list[str]]
    indexes: dict[str, str]  # name -> table
    triggers: dict[str, str]  # name -> table


@cache
def additions() -> Additions:
    """Read them from the migrations and functions, so that the list is always complete."""
    added = Additions({}, {}, {}, {})
    for text in (text for name in sql.migration_names() for text in sql.split_statements(sql.migration_text(name))):
        plain = re.sub(r"--[^\n]*", "", text)
        for part in re.split(r"(?=ALTER TABLE )", plain):
            if altered := re.match(r"ALTER TABLE (?:IF EXISTS )?public\.(\w+)", part):
                table = altered[1]
                added.columns.setdefault(table, []).extend(re.findall(r"ADD COLUMN IF NOT EXISTS (\w+)", part))
                added.constraints.setdefault(table, []).extend(re.findall(r"ADD CONSTRAINT (\w+)", part))
        index = re.search(r"CREATE (?:UNIQUE )?INDEX CONCURRENTLY IF NOT EXISTS (\w+)\s+ON public\.(\w+)", plain)
        if index:
            added.indexes[index[1]] = index[2]
    for trigger in sql.functions_and_triggers()[1]:
        if trigger.table.startswith("public."):
            added.triggers[trigger.name] = trigger.table.removeprefix("public.")
    return added


def _additions(connection: "psycopg.Connection[DictRow]") -> Finding:
    added = additions()
    columns = {(table, column) for table, names in added.columns.items() for column in names}
    rows = _columns(connection, list(added.columns))
    new = columns - {(row["table_name"], row["column_name"]) for row in rows}
    triggers = _all(
        connection,
        "SELECT tgname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid "
        "WHERE c.relnamespace = 'public'::regnamespace AND tgname = ANY (%s)",
        [list(added.triggers)],
    )
    indexes = _all(
        connection,
        "SELECT indexname FROM pg_indexes WHERE schemaname = 'public' AND indexname = ANY (%s)",
        [list(added.indexes)],
    )
    counts = {
        "columns": len(new),
        "indexes": len(added.indexes) - len(indexes),
        "triggers": len(added.triggers) - len({row["tgname"] for row in triggers}),
    }
    if not any(counts.values()):
        return Finding("to be added", State.FINE, "nothing: all is there")
    by_table: dict[str, list[str]] = {}
    for table, column in sorted(new):
        by_table.setdefault(table, []).append(column)
    found = f"{counts['columns']} columns, {counts['indexes']} indexes and {counts['triggers']} triggers"
    if by_table:
        found += ": " + "; ".join(f"{table} ({', '.join(names)})" for table, names in by_table.items())
    return Finding("to be added", State.FINE, found)


# The CRM's functions that an attach replaces --------------------------------------------------------------------------


@dataclass(frozen=True)
class ReplaceableFunction:
    """A function by which the CRM's own processor claims or skips messages."""

    what: str  # for people
    signature: str  # schema, name and argument types
    definition: str
    replacement: str
    replaced: bool
    owner: str
    role: str
    ours_to_replace: bool


def _list_replaceable(connection: "psycopg.Connection[DictRow]") -> list[ReplaceableFunction]:
    rows = _all(
        connection,
        "SELECT p.proname AS name, "
        "       format('%%I.%%I(%%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid)) AS signature, "
        "       format('%%I.%%I(%%s)', n.nspname, p.proname, pg_get_function_arguments(p.oid)) AS head, "
        "       pg_get_function_result(p.oid) AS result, p.proretset AS is_set, p.prorettype::regtype::text AS type, "
        "       p.proargmodes && ARRAY['o', 'b']::\"char\"[] AS has_out, "
        "       pg_get_functiondef(p.oid) AS definition, p.prosrc LIKE %s AS replaced, "
        "       pg_get_userbyid(p.proowner) AS owner, current_user AS role, "
        "       pg_has_role(p.proowner, 'USAGE') AS ours_to_replace "
        "FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace "
        "WHERE n.nspname = 'public' AND p.proname = ANY (%s) AND p.prokind = 'f' "
        "ORDER BY p.proname, signature",
        [f"%{_MARK}%", [CLAIM_FUNCTION, EXPIRY_FUNCTION]],
    )
    return [
        ReplaceableFunction(
            "claim function" if row["name"] == CLAIM_FUNCTION else "expiry function",
            row["signature"],
            row["definition"],
            _returning_nothing(row["head"], row["result"], row["type"], no_value=row["is_set"] or row["has_out"]),
            row["replaced"],
            row["owner"],
            row["role"],
            row["ours_to_replace"],
        )
        for row in rows
    ]


def _returning_nothing(head: str, result: str, kind: str, *, no_value: bool | None) -> str:
    """Return the same function with a body that returns nothing: no rows, an empty JSON array, zero, or null.

    `no_value`: its RETURN has no value, because it returns rows or OUT parameters.
    """
    if no_value or kind == "void":
        body = "RETURN;"
    elif kind in {"json", "jsonb"}:
        body = f"RETURN '[]'::{kind};"
    elif kind in {"smallint", "integer", "bigint", "numeric"}:
        body = "RETURN 0;"
    else:
        body = "RETURN NULL;"
    comment = f"{_MARK}: it takes the messages now. `campaign-pipeline crm detach` restores this function."
    return (
        f"CREATE OR REPLACE FUNCTION {head} RETURNS {result} LANGUAGE plpgsql AS $body$\n"
        f"BEGIN\n    -- {comment}\n    {body}\nEND $body$"
    )


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
    with _sentences(url), one_at_a_time(url, say):
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
    for function in _list_replaceable(connection):
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
    with _sentences(url), one_at_a_time(url, say):
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
    ours = {function.signature for function in _list_replaceable(connection) if function.replaced}
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


# Sentences ------------------------------------------------------------------------------------------------------------


class _sentences:  # noqa: N801 (reads like a statement)
    """Turn any database error into DatabaseUnusable with one sentence."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        schema.refuse_unreadable(self._url)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, StepFailed):
            raise DatabaseUnusable(str(error)) from None
        if isinstance(error, psycopg.Error):
            raise DatabaseUnusable(schema.unusable(self._url, error)) from None
