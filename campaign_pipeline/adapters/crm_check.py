"""Examines a CRM's database before an attach, and while attached: `campaign-pipeline crm check`. Changes nothing."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import psycopg
from psycopg.rows import DictRow

from campaign_pipeline import sql
from campaign_pipeline.adapters import schema
from campaign_pipeline.adapters.crm_functions import CLAIM_FUNCTION, list_replaceable
from campaign_pipeline.adapters.findings import Finding, State
from campaign_pipeline.adapters.queue_connection import connect_rows, is_pooled
from campaign_pipeline.sql import statement

RECENT_DAYS = 7
_OLD_CALLS = r"get_and_lock_campaign_messages|campaign[-_]*(queue|process)|(queue|process\w*)[-_]*campaign"
"""Matches a scheduled call of the old processor: by the function, or by the names of edge functions."""


def check(url: str) -> list[Finding]:
    """Read what affects an attach, without changes. Raises DatabaseUnusable if the database does not answer."""
    with schema.one_sentence(url), connect_rows(url, autocommit=True) as connection:
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
    functions = list_replaceable(connection)
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
