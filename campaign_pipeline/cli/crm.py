"""`campaign-pipeline crm`: take over a CRM's queue, or give it back. See docs/crm.md."""

from __future__ import annotations

import sys

import click

from campaign_pipeline.adapters.environment import Environment, SettingError
from campaign_pipeline.cli import output
from campaign_pipeline.cli.options import json_option, yes_option


def _crm_url() -> str:
    from campaign_pipeline.adapters.database import named_url

    environment = Environment.read()
    if environment.database_url is None:
        raise SettingError("CAMPAIGN_DATABASE_URL is not set. Set it to the postgresql:// URL of the CRM's database.")
    return named_url(environment)


def _say(text: str) -> None:
    click.echo(text, err=True)


@click.group()
def crm() -> None:
    """Take over the queue of a CRM, or give it back."""


@crm.command()
@json_option
def check(as_json: bool) -> None:
    """Examine the CRM's database and show what attach would do. Changes nothing.

    Exit code 1 if something blocks attach.
    """
    from campaign_pipeline.adapters.crm_check import check as examine
    from campaign_pipeline.adapters.findings import State

    findings = examine(_crm_url())
    columns = {"state": "", "what": "what", "found": "found", "todo": "to do"}
    output.show([finding.to_dict() for finding in findings], columns, as_json=as_json, empty="Nothing was found.")
    sys.exit(1 if any(finding.state is State.STOPS for finding in findings) else 0)


@crm.command()
def attach() -> None:
    """Upgrade the database, and stop the CRM's own processor from claiming messages.

    Messages that the processor left unfinished are looked up in the chat and at the provider, never resent blindly. If
    the command is interrupted, run it again.
    """
    from campaign_pipeline.adapters.crm import attach as take_over

    for sentence in take_over(_crm_url(), _say):
        click.echo(sentence)


@crm.command()
@click.option(
    "--wait",
    "wait_seconds",
    type=click.IntRange(0, 86_400),
    default=300,
    show_default=True,
    metavar="SECONDS",
    help="Wait this long for messages that are being written or sent.",
)
@click.option("--drop", is_flag=True, help="Also remove the pipeline's schema, with all its data, and its columns.")
@yes_option
def detach(wait_seconds: int, drop: bool, yes: bool) -> None:
    """Give the queue back to the CRM's own processor; the CRM then works as before.

    The pipeline's schema stays as an archive, and for a later attach.
    """
    from campaign_pipeline.adapters.crm import detach as give_back

    url = _crm_url()
    if drop and not yes:
        click.confirm("Remove the ledger, the suppressions and all other data of the pipeline?", abort=True)
    for sentence in give_back(url, _say, wait_seconds, drop=drop):
        click.echo(sentence)


COMMANDS = (crm,)
