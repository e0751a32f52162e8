"""Find workspaces and campaigns by name or id."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import DictRow

from campaign_pipeline.sql import statement


class NotFound(LookupError):
    """No object has that name, or several have it; the message lists the candidates."""


def find_workspace(connection: psycopg.Connection[DictRow], name: str) -> UUID:
    """Return the workspace with this name or id. Raises NotFound."""
    rows = connection.execute("SELECT id, name FROM public.workspaces ORDER BY created_at, id").fetchall()
    row = _the_one(rows, name, "workspace")
    found: UUID = row["id"]
    return found


def find_campaign(
    connection: psycopg.Connection[DictRow], name: str, workspace_id: UUID | None = None
) -> Mapping[str, Any]:
    """Return the row of `list_campaigns` with this name or id. Raises NotFound."""
    rows = connection.execute(statement("list_campaigns"), {"workspace_id": workspace_id}).fetchall()
    return _the_one(rows, name, "campaign")


def _the_one(rows: Sequence[DictRow], name: str, what: str) -> DictRow:
    found = [row for row in rows if name in {row["name"], str(row["id"])}]
    found = found or [row for row in rows if str(row["name"]).casefold() == name.casefold()]
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(str(row["id"]) for row in found)
        raise NotFound(f"{len(found)} {what}s are named {name!r}. Use an id: {ids}.")
    names = [row["name"] or str(row["id"]) for row in rows]
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    there = (
        f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names[:20])}." if names else "there is none."
    )
    raise NotFound(f"There is no {what} {name!r}; {there}")
