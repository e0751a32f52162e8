"""Import the leads of a file into a workspace; each number or e-mail address is added only once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID, uuid4

import psycopg
from psycopg.rows import DictRow

from campaign_pipeline.adapters.queue_connection import connect_rows
from campaign_pipeline.campaigns.finding import NotFound, find_campaign, find_workspace
from campaign_pipeline.core.phone_reading import canonical_address
from campaign_pipeline.leads import Lead
from campaign_pipeline.leads.values import fold
from campaign_pipeline.sql import statement


@dataclass
class Imported:
    """The result of an import."""

    added: int
    known: list[int] = field(default_factory=list)  # lines whose number or address the workspace already has
    funnel: str = ""
    column: str = ""


@dataclass(frozen=True)
class _Place:
    funnel_id: UUID
    column_id: UUID
    funnel: str
    column: str


def import_leads(
    url: str, leads: Sequence[Lead], lines: Sequence[int], workspace: str, campaign: str | None
) -> Imported:
    """Add the leads that the workspace does not have, in one transaction; `lines` as in LeadsFile.

    A lead is identified by its number, or by its e-mail address if it has none.

    They are put into the campaign's source column. A lock allows one import at a time, so that two imports of one file
    add each number once. Raises NotFound and psycopg.Error.
    """
    with connect_rows(url) as connection, connection.transaction():
        connection.execute(statement("lock_campaign_files"))
        workspace_id = find_workspace(connection, workspace)
        place = _place(connection, workspace_id, campaign)
        rows = connection.execute(statement("list_known_numbers"), {"workspace_id": workspace_id}).fetchall()
        known = {row["number"] for row in rows}
        if any(lead.phone is None for lead in leads):
            rows = connection.execute(statement("list_known_emails"), {"workspace_id": workspace_id}).fetchall()
            known |= {row["email"] for row in rows}
        imported = Imported(0, funnel=place.funnel, column=place.column)
        new: list[Lead] = []
        for lead, line in zip(leads, lines, strict=True):
            address = canonical_address(lead.phone) if lead.phone else lead.custom_fields["Email"].strip().lower()
            if address in known:
                imported.known.append(line)
            else:
                known.add(address)
                new.append(lead)
        ids = connection.execute(statement("make_ids"), {"count": len(new)}).fetchall()
        added = [(row["id"], lead) for row, lead in zip(ids, new, strict=True)]
        _write_leads(connection, workspace_id, place, added)
        _write_custom_values(connection, _custom_fields(connection, workspace_id, added), added)
        imported.added = len(added)
    return imported


def _place(connection: psycopg.Connection[DictRow], workspace_id: UUID, campaign: str | None) -> _Place:
    """Return the place of new leads: the column of the campaign, else that of all campaigns, else the first one."""
    if campaign is not None:
        rows = [find_campaign(connection, campaign, workspace_id)]
    else:
        rows = [*connection.execute(statement("list_campaigns"), {"workspace_id": workspace_id}).fetchall()]
    places = {
        _Place(row["source_funnel_id"], row["source_column_id"], row["funnel"] or "", row["column"] or "")
        for row in rows
        if row["source_funnel_id"] and row["source_column_id"]
    }
    if len(places) > 1:
        names = ", ".join(str(row["name"]) for row in rows)
        raise NotFound(f"The workspace's campaigns use different columns. Choose a campaign with --campaign: {names}.")
    if places:
        return places.pop()
    columns = connection.execute(statement("list_funnel_columns"), {"workspace_id": workspace_id}).fetchall()
    for row in columns:
        if row["column_id"] is not None:
            return _Place(row["funnel_id"], row["column_id"], row["funnel"], row["column"])
    raise NotFound("The workspace has no funnel column for leads. `apply` creates one.")


def _write_leads(
    connection: psycopg.Connection[DictRow], workspace_id: UUID, place: _Place, leads: Sequence[tuple[UUID, Lead]]
) -> None:
    with (
        connection.cursor() as cursor,
        cursor.copy(
            "COPY public.leads (id, workspace_id, funnel_id, column_id, client_name, company, phone, deal_value, "
            "priority, tags, notes, cnpj) FROM STDIN"
        ) as copy,
    ):
        for lead_id, lead in leads:
            # A foreign number keeps its plus; without it, it may be read as a Brazilian number.
            phone = f"+{lead.phone}" if lead.phone and not lead.phone.startswith("55") else lead.phone
            copy.write_row(
                (
                    *(lead_id, workspace_id, place.funnel_id, place.column_id, lead.client_name, lead.company, phone),
                    *(lead.deal_value, lead.priority, list(lead.tags), lead.notes, lead.cnpj),
                )
            )


def _custom_fields(
    connection: psycopg.Connection[DictRow], workspace_id: UUID, leads: Sequence[tuple[UUID, Lead]]
) -> dict[str, UUID]:
    """Map the name of each of the leads' custom fields to its id; create missing fields."""
    rows = connection.execute(statement("list_custom_fields"), {"workspace_id": workspace_id}).fetchall()
    known: dict[str, UUID] = {}
    for row in rows:
        known.setdefault(fold(row["name"]), row["id"])
    found: dict[str, UUID] = {}
    for name in dict.fromkeys(name for _, lead in leads for name in lead.custom_fields):
        key = fold(name)
        if key not in known:
            known[key] = uuid4()
            values = {"id": known[key], "workspace_id": workspace_id, "name": name}
            connection.execute(statement("insert_custom_field"), values)
        found[name] = known[key]
    return found


def _write_custom_values(
    connection: psycopg.Connection[DictRow], fields: Mapping[str, UUID], leads: Sequence[tuple[UUID, Lead]]
) -> None:
    with (
        connection.cursor() as cursor,
        cursor.copy("COPY public.lead_custom_values (lead_id, custom_field_id, value) FROM STDIN") as copy,
    ):
        for lead_id, lead in leads:
            for name, value in lead.custom_fields.items():
                copy.write_row((lead_id, fields[name], value))
