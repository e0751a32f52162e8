"""Apply a campaign file: find the differences to the database and write them, in one transaction.

A check does the same and rolls back, so it always agrees with an apply. Everything that the file does not name stays as
it is: other inboxes and campaigns, and other fields of the CRM's rows.
"""

import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import time
from typing import Any
from uuid import UUID, uuid4

import psycopg
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from campaign_pipeline.adapters.connection import KEY_VARIABLES
from campaign_pipeline.adapters.queue_connection import connect_rows
from campaign_pipeline.campaigns.model import (
    WEEKDAYS,
    Campaign,
    CampaignFile,
    Inbox,
    Pace,
    Review,
    Sender,
    Weekday,
    Workspace,
)
from campaign_pipeline.campaigns.reading import CampaignFileError
from campaign_pipeline.sql import statement

ADDRESS_VARIABLES = {"evolution": "EVOLUTION_API_URL", "uazapi": "UAZAPI_API_URL"}
"""The variables with the addresses of self-hosted providers."""

WORKING_DAYS: Sequence[Weekday] = WEEKDAYS[:5]


@dataclass(frozen=True)
class Change:
    """One difference between the database and the file."""

    what: str  # inbox Vendas
    field: str  # empty if the whole object is new
    before: Any
    after: Any


@dataclass
class Applied:
    """The changes that were made, or would be."""

    workspace_id: UUID
    changes: list[Change] = field(default_factory=list)
    left_alone: list[str] = field(default_factory=list)  # objects of the workspace that the file does not name
    missing_variables: list[str] = field(default_factory=list)  # sentences about keys that this process does not have


def apply_campaign_file(url: str, file: CampaignFile, variables: Mapping[str, str], *, check: bool) -> Applied:
    """Apply the file in one transaction; with `check`, only return the changes.

    Raises CampaignFileError if the CRM's tables cannot hold it, and psycopg.Error.
    """
    with connect_rows(url) as connection, connection.transaction(force_rollback=check):
        applied = _Application(connection, file).run()
    applied.missing_variables += _missing_variables(file.inboxes, variables)
    return applied


def _missing_variables(inboxes: Iterable[Inbox], variables: Mapping[str, str]) -> list[str]:
    wanted: dict[str, list[str]] = {}
    for inbox in inboxes:
        key = inbox.key_variable or KEY_VARIABLES[inbox.provider].usual
        for name in filter(None, (key, ADDRESS_VARIABLES.get(inbox.provider))):
            if not variables.get(name, "").strip():
                wanted.setdefault(name, []).append(inbox.name)
    return [
        f"{name} is not set here; inbox {', '.join(names)} waits until the pipeline's processes have it."
        for name, names in wanted.items()
    ]


class _Application:
    """One pass over the file, inside the caller's transaction."""

    def __init__(self, connection: psycopg.Connection[DictRow], file: CampaignFile) -> None:
        self._connection = connection
        self._file = file
        self._changes: list[Change] = []

    def run(self) -> Applied:
        self._do("lock_campaign_files")
        tables = self._rows("look_at_campaign_tables")[0]
        if tables["one_a_workspace"] and len(self._file.campaigns) > 1:
            raise CampaignFileError(
                f"The file has {len(self._file.campaigns)} campaigns, but this CRM allows one per workspace. Keep one."
            )
        workspace = self._workspace(self._file.workspace, needs_owner=tables["needs_owner"])
        inboxes = self._inboxes(workspace)
        columns = self._columns(workspace)
        others = self._campaigns(workspace, inboxes, columns, tables)
        named = {inbox.name for inbox in self._file.inboxes}
        left = [f"inbox {name}" for name in inboxes if name not in named] + others
        return Applied(workspace, self._changes, left)

    # Each of these notes the differences and writes only those -------------------------------------------------------

    def _workspace(self, wanted: Workspace, *, needs_owner: bool) -> UUID:
        found = self._rows("find_workspaces", name=wanted.name)
        if len(found) > 1:
            raise CampaignFileError(f"{len(found)} workspaces are named {wanted.name!r}. Rename one of them.")
        if not found and needs_owner:
            raise CampaignFileError(
                f"There is no workspace {wanted.name!r}. In this CRM each needs an owner: create it in the CRM first."
            )
        row = found[0] if found else {}
        workspace = row.get("id") or uuid4()
        own = {name: getattr(wanted, name) for name in _WORKSPACE_FIELDS}
        if not row:
            slug = f"{_slug(wanted.name)}-{workspace.hex[:8]}"
            self._do("insert_workspace", id=workspace, name=wanted.name, slug=slug)
        if self._differs(f"workspace {wanted.name}", row, own):
            self._do("update_workspace", id=workspace, **own)
        agent = {
            "name": wanted.persona.name,
            "model": wanted.model,
            "fallback_models": list(wanted.fallback_models) or None,
            "system_prompt": wanted.persona.instructions,
        }
        before = {**row, "name": row.get("agent_name"), "fallback_models": row.get("fallback_models") or None}
        agent_id = row.get("agent_id") or uuid4()
        if not row.get("agent_id"):
            self._do("insert_agent", id=agent_id, workspace_id=workspace)
            before = {}
        if self._differs(f"agent of {wanted.name}", before, agent):
            self._do("update_agent", id=agent_id, **agent)
        return workspace

    def _inboxes(self, workspace: UUID) -> dict[str, UUID]:
        """Return the ids of the workspace's inboxes by name."""
        rows = self._rows("list_campaign_inboxes", workspace_id=workspace)
        known = _by_name(rows, "inbox", {inbox.name for inbox in self._file.inboxes})
        for inbox in self._file.inboxes:
            row = known.get(inbox.name, {})
            inbox_id = row.get("id") or uuid4()
            if not row:
                self._do("insert_inbox", id=inbox_id, workspace_id=workspace, name=inbox.name)
            self._instance(workspace, inbox_id, inbox, row)
            self._pace(inbox_id, inbox, row)
            known[inbox.name] = {**row, "id": inbox_id}
        return {name: row["id"] for name, row in known.items()}

    def _instance(self, workspace: UUID, inbox_id: UUID, inbox: Inbox, row: Mapping[str, Any]) -> None:
        config = _provider_config(inbox)
        stored = row.get("provider_config") or {}
        before = {
            "provider": row.get("provider_type"),
            "instance": row.get("instance"),
            **{name: stored.get(name) for name in config},
        }
        after = {"provider": inbox.provider, "instance": inbox.instance or inbox.name, **config}
        instance = row.get("instance_id") or uuid4()
        if not row.get("instance_id"):
            self._do("insert_instance", id=instance, workspace_id=workspace, instance=after["instance"])
            self._do("link_instance", inbox_id=inbox_id, instance_id=instance)
            before = {}
        if self._differs(f"inbox {inbox.name}", before, after):
            self._do(
                "update_instance",
                id=instance,
                instance=after["instance"],
                provider=inbox.provider,
                channel="email" if inbox.provider == "smtp" else "whatsapp",
                unset=[name for name, value in config.items() if value is None],
                provider_config=Jsonb({name: value for name, value in config.items() if value is not None}),
            )

    def _pace(self, inbox_id: UUID, inbox: Inbox, row: Mapping[str, Any]) -> None:
        what = f"pace of inbox {inbox.name}"
        if inbox.pace is None:
            if row.get("has_pace"):
                self._changes.append(Change(what, "pace", "set", None))
                self._do("drop_inbox_pace", inbox_id=inbox_id)
            return
        pace = {name: getattr(inbox.pace, name) for name in Pace.model_fields}
        if self._differs(what, row if row.get("has_pace") else {}, pace):
            self._do("save_inbox_pace", inbox_id=inbox_id, **pace)

    def _columns(self, workspace: UUID) -> dict[tuple[str, str], tuple[UUID, UUID]]:
        """Map (funnel, column) to their ids; create those of the file that are missing."""
        rows = self._rows("list_funnel_columns", workspace_id=workspace)
        funnels: dict[str, UUID] = {}
        columns: dict[tuple[str, str], tuple[UUID, UUID]] = {}
        for row in rows:
            funnels.setdefault(row["funnel"], row["funnel_id"])
            columns.setdefault((row["funnel"], row["column"]), (row["funnel_id"], row["column_id"]))
        for source in (campaign.leads for campaign in self._file.campaigns):
            if source.funnel not in funnels:
                funnels[source.funnel] = uuid4()
                self._new(f"funnel {source.funnel}")
                self._do("insert_funnel", id=funnels[source.funnel], workspace_id=workspace, name=source.funnel)
            for title in (source.column, source.moved_to):
                if (source.funnel, title) not in columns:
                    column = uuid4()
                    self._new(f"column {title} of funnel {source.funnel}")
                    self._do("insert_funnel_column", id=column, funnel_id=funnels[source.funnel], title=title)
                    columns[source.funnel, title] = (funnels[source.funnel], column)
        return columns

    def _campaigns(
        self,
        workspace: UUID,
        inboxes: Mapping[str, UUID],
        columns: Mapping[tuple[str, str], tuple[UUID, UUID]],
        tables: Mapping[str, Any],
    ) -> list[str]:
        """Write the campaigns; return those that the file does not name."""
        rows = self._rows("list_campaigns", workspace_id=workspace)
        if tables["one_a_workspace"]:
            known = {self._file.campaigns[0].name: rows[0]} if rows else {}
        else:
            known = _by_name(rows, "campaign", {campaign.name for campaign in self._file.campaigns})
        for campaign in self._file.campaigns:
            row = known.pop(campaign.name, {})
            fields = _campaign_fields(campaign)
            funnel, column = columns[campaign.leads.funnel, campaign.leads.column]
            ids = {
                "id": row.get("id") or uuid4(),
                "inbox_id": inboxes[campaign.inbox],
                "funnel_id": funnel,
                "column_id": column,
                "moved_to_id": columns[campaign.leads.funnel, campaign.leads.moved_to][1],
            }
            if not row:
                self._do("insert_campaign", workspace_id=workspace, **ids)
            if self._differs(f"campaign {campaign.name}", _stored_campaign(row) if row else {}, fields):
                self._write_campaign(campaign, ids, fields, inboxes)
        return [f"campaign {name}" for name in known]

    def _write_campaign(
        self,
        campaign: Campaign,
        ids: Mapping[str, UUID],
        fields: Mapping[str, Any],
        inboxes: Mapping[str, UUID],
    ) -> None:
        frequency, weekdays = _frequency(campaign.window.weekdays)
        self._do(
            "update_campaign",
            **ids,
            **{name: value for name, value in fields.items() if name not in {"weekdays", "fallback_inboxes"}},
            frequency=frequency,
            fallback_inbox_ids=[inboxes[name] for name in campaign.fallback_inboxes] or None,
            when_inbox_down="fallback" if campaign.fallback_inboxes else "pause",
        )
        self._do("name_campaign", id=ids["id"], name=campaign.name)
        self._do("save_campaign_settings", id=ids["id"], **{**fields, "weekdays": weekdays})

    # ------------------------------------------------------------------------------------------------------------------

    def _differs(self, what: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
        """Note the differences; if `before` is empty, the whole object is new."""
        if not before:
            self._new(what)
            return True
        found = [
            Change(what, name, _plain(before.get(name)), _plain(value))
            for name, value in after.items()
            if _plain(before.get(name)) != _plain(value)
        ]
        self._changes += found
        return bool(found)

    def _new(self, what: str) -> None:
        self._changes.append(Change(what, "", None, "new"))

    def _rows(self, name: str, /, **values: Any) -> list[DictRow]:
        return self._connection.execute(statement(name), values).fetchall()

    def _do(self, name: str, /, **values: Any) -> None:
        self._connection.execute(statement(name), values)


_WORKSPACE_FIELDS = ("timezone", "max_cost_usd_per_day", "one_message_per_lead_per_day", "number_rest_hours")


def _by_name(rows: Iterable[DictRow], what: str, wanted: Collection[str]) -> dict[str, DictRow]:
    """Index rows by name, or by id if they have none. Raises CampaignFileError if a wanted name is not unique."""
    found: dict[str, DictRow] = {}
    for row in rows:
        name = row["name"] or str(row["id"])
        if name in found and name in wanted:
            raise CampaignFileError(f"The workspace has two objects named {name!r} ({what}). Rename one of them.")
        found[name] = row
    return found


def _provider_config(inbox: Inbox) -> dict[str, str | None]:
    """Return the file's values for the instance's provider_config; None: none."""
    sender = inbox.sender or Sender()
    return {
        "key_variable": inbox.key_variable,
        "phone_number_id": inbox.phone_number_id,
        **{name: getattr(sender, name) for name in Sender.model_fields},
    }


def _campaign_fields(campaign: Campaign) -> dict[str, Any]:
    """Flatten a campaign of the file to the columns of the statement `list_campaigns`."""
    window, leads, template = campaign.window, campaign.leads, campaign.template
    review = campaign.review
    return {
        "name": campaign.name,
        "inbox": campaign.inbox,
        "funnel": leads.funnel,
        "column": leads.column,
        "moved_to": leads.moved_to,
        "tags": list(leads.tags),
        "instructions": campaign.instructions,
        "opens": window.opens,
        "closes": window.closes,
        "timezone": window.timezone,
        "weekdays": [day for day in WEEKDAYS if day in window.weekdays],
        "holidays": sorted(set(window.holidays)),
        "interval_seconds": campaign.interval_seconds,
        "daily_limit": campaign.daily_limit,
        "max_cost_usd_per_run": campaign.max_cost_usd_per_run,
        "split": campaign.split,
        "max_parts": campaign.max_parts,
        "review": "first_n" if isinstance(review, Review) else review,
        "review_first": review.first_n if isinstance(review, Review) else None,
        "fallback_inboxes": list(campaign.fallback_inboxes),
        "template_name": template.name if template else None,
        "template_language": template.language if template else None,
        "template_variables": (list(template.variables) or None) if template else None,
        "template_body": template.body if template else None,
        "active": campaign.active,
    }


def _stored_campaign(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same columns of a stored row."""
    days = [WEEKDAYS[number - 1] for number in sorted(row["weekdays"] or ())]
    usual = WORKING_DAYS if row["frequency"] == "weekdays" else WEEKDAYS
    inboxes = row["fallback_inboxes"] if row["when_inbox_down"] == "fallback" else []
    return {**row, "weekdays": days or list(usual), "holidays": sorted(row["holidays"]), "fallback_inboxes": inboxes}


def _frequency(days: Sequence[Weekday]) -> tuple[str, list[int] | None]:
    """Return the CRM's word for these weekdays, or their numbers if it has none."""
    if set(days) == set(WEEKDAYS):
        return "daily", None
    if set(days) == set(WORKING_DAYS):
        return "weekdays", None
    return "daily", sorted(WEEKDAYS.index(day) + 1 for day in set(days))


def _plain(value: Any) -> Any:
    """Convert a value of any database type for comparison and display."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, time) or (isinstance(value, str) and re.fullmatch(r"\d\d:\d\d(:\d\d)?", value)):
        return str(value)[:8].removesuffix(":00") if len(str(value)) > 5 else str(value)
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, str):
        return value
    try:
        return float(value)
    except (TypeError, ValueError):
        return str(value)


def _slug(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name.casefold())
    return (
        re.sub(r"[^a-z0-9]+", "-", "".join(c for c in plain if not unicodedata.combining(c))).strip("-") or "workspace"
    )
