"""The CRM's functions that an attach replaces by ones that do nothing."""

from dataclasses import dataclass

import psycopg
from psycopg.rows import DictRow

CLAIM_FUNCTION = "get_and_lock_campaign_messages"
"""Through which the CRM's own processor claims messages."""

EXPIRY_FUNCTION = "mark_old_campaign_messages_as_skipped"
"""By which the CRM's own processor skips messages that were due an hour ago, at each call. It does not know of
messages that wait for another attempt, for their pace or for their inbox."""

_MARK = "campaign_pipeline is attached"


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


def list_replaceable(connection: "psycopg.Connection[DictRow]") -> list[ReplaceableFunction]:
    """Return those that the CRM has, replaced or not, each with its replacement."""
    rows = connection.execute(
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
    ).fetchall()
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
