"""`campaign-pipeline apply`, `import` and `start`: from a list of leads to a running campaign."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from campaign_pipeline.cli.errors import Trouble, WrongSetting
from campaign_pipeline.cli.options import json_option, map_option, mapping_of, personal_data_option
from campaign_pipeline.cli.output import console, show, show_json
from campaign_pipeline.cli.queue import queue_url

LONGEST_CELL = 80
"""Longest setting, in characters, that the table of changes shows whole."""


@click.command()
@click.argument("campaign_file", type=click.Path(path_type=Path), metavar="FILE", required=False)
@click.option("--check", is_flag=True, help="Only show the changes; exit code 1 if there are any.")
@click.option("--example", is_flag=True, help="Print a commented example file and exit.")
@click.option("--schema", is_flag=True, help="Print the file's JSON Schema, for editors, and exit.")
@json_option
def apply(campaign_file: Path | None, check: bool, example: bool, schema: bool, as_json: bool) -> None:
    """Create or update workspace, inboxes and campaigns from a YAML file.

    Shows every change and writes them in one transaction. Applying the same file again changes nothing. Settings that
    the file does not name stay as they are. Nothing is sent.
    """
    from importlib import resources

    from campaign_pipeline.campaigns.applying import apply_campaign_file
    from campaign_pipeline.campaigns.reading import CampaignFileError, read_campaign_file

    if example or schema:
        name = "example.yaml" if example else "campaign.schema.json"
        click.echo(resources.files("campaign_pipeline.campaigns").joinpath(name).read_text(encoding="utf-8"), nl=False)
        return
    if campaign_file is None:
        raise click.UsageError("FILE is missing, such as campaign.yaml; --example prints one.")
    try:
        applied = apply_campaign_file(queue_url(), read_campaign_file(campaign_file), os.environ, check=check)
    except CampaignFileError as error:
        raise WrongSetting(str(error)) from None
    rows = [vars(change) for change in applied.changes]
    if as_json:
        show_json({"applied": not check, "changes": rows, **_rest(applied)})
    else:
        short = [{**row, "before": _short(row["before"]), "after": _short(row["after"])} for row in rows]
        columns = {"what": "what", "field": "field", "before": "now" if check else "before", "after": "new"}
        show(short, columns, as_json=False, empty="The database matches the file.")
        for name in applied.left_alone:
            click.echo(f"Unchanged, because the file does not name it: {name}.")
        for sentence in applied.missing_variables:
            click.echo(sentence, err=True)
    if check and rows:
        sys.exit(1)


def _rest(applied: Any) -> dict[str, Any]:
    names = ("workspace_id", "left_alone", "missing_variables")
    return {name: getattr(applied, name) for name in names}


def _short(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    line = " ".join(value.split())
    return line if len(line) <= LONGEST_CELL else f"{line[: LONGEST_CELL - 1]}…"


@click.command("import")
@click.argument("leads_file", type=click.Path(path_type=Path), metavar="FILE")
@click.option("--workspace", required=True, metavar="NAME", help="The leads' workspace, by name or id.")
@click.option(
    "--campaign", metavar="NAME", help="The leads' campaign; needed if the workspace's campaigns use several columns."
)
@map_option
@json_option
@personal_data_option
def import_(
    leads_file: Path,
    workspace: str,
    campaign: str | None,
    mapping: tuple[str, ...],
    as_json: bool,
    personal: bool,
) -> None:
    """Import the leads of a CSV, XLSX, XLS or ODS file into a workspace.

    Lists every row that is left out, with its line and the reason, and writes the others in one transaction. A number
    that the workspace already has is not added again, so a file may be imported twice. A file without phone numbers is
    read by its e-mail addresses.
    """
    from campaign_pipeline.campaigns.finding import NotFound
    from campaign_pipeline.campaigns.importing import import_leads
    from campaign_pipeline.core.notices import counted
    from campaign_pipeline.leads.reading import read_leads
    from campaign_pipeline.leads.report import show_reading

    read = read_leads(leads_file, mapping_of(mapping), emails=True)
    if not as_json:
        show_reading(console(), leads_file.name, read, most_problems=None)
    try:
        imported = import_leads(queue_url(), read.leads, read.lines, workspace, campaign)
    except NotFound as error:
        raise WrongSetting(str(error)) from None
    if as_json:
        problems = [
            {"line": each.line, "column": each.column, "why": each.message if personal else _without_value(each)}
            for each in read.problems
        ]
        show_json({**vars(imported), "left_out": problems, "notes": read.notes})
        return
    if imported.known:
        lines = ", ".join(map(str, imported.known[:20])) + (", …" if len(imported.known) > 20 else "")
        known = counted(len(imported.known), "number or address is", "numbers or addresses are")
        click.echo(f"{known} already in the workspace; nothing was added for line {lines}.")
    added = counted(imported.added, "lead was", "leads were")
    click.echo(f"{added} added to column {imported.column} of funnel {imported.funnel}.")


@click.command()
@click.argument("campaign", metavar="CAMPAIGN")
@click.option("--dry-run", is_flag=True, help="Only show what would be planned.")
@json_option
def start(campaign: str, dry_run: bool, as_json: bool) -> None:
    """Plan today's messages of a campaign, given by name or id.

    Selects the leads of the campaign's column and tags that it has not contacted yet. Each gets a time within the
    window, according to interval, rate limits and daily limits; leads that do not fit are listed with the reason.
    Running it again adds new leads. `process`, or its schedule, sends due messages.
    """
    from campaign_pipeline.campaigns.finding import NotFound
    from campaign_pipeline.campaigns.planning import CannotPlan, plan_campaign
    from campaign_pipeline.core.window import InvalidWindow

    try:
        planned = plan_campaign(queue_url(), campaign, dry_run=dry_run)
    except NotFound as error:
        raise WrongSetting(str(error)) from None
    except (CannotPlan, InvalidWindow) as error:
        raise Trouble(str(error)) from None
    if as_json:
        show_json(vars(planned))
        return
    for sentence in planned.sentences():
        click.echo(sentence)
    if dry_run:
        click.echo("This was a dry run: nothing was planned.")


def _without_value(problem: Any) -> str:
    """Return the problem's text without the cell's value."""
    from campaign_pipeline.leads.values import shown

    text: str = problem.message
    return text.replace(shown(problem.value), "…") if problem.value else text


COMMANDS = (apply, import_, start)
