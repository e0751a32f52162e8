"""`campaign-pipeline crm`: taking over a CRM's queue, and giving it back. See docs/crm.md."""

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
        raise SettingError("CAMPAIGN_DATABASE_URL is not set: name the CRM's database, as a postgresql:// URL.")
    return named_url(environment)


def _say(text: str) -> None:
    click.echo(text, err=True)


@click.group()
def crm() -> None:
    """Take over the queue of a CRM, or give it back."""


@crm.command()
@json_option
def check(as_json: bool) -> None:
    """Say what is found in the CRM's database and what an attach would do. Changes nothing.

    Exit code 1 where something stands in the way of an attach.
    """
    from campaign_pipeline.adapters import crm as adapter

    findings = adapter.check(_crm_url())
    columns = {"state": "", "what": "what", "found": "found", "todo": "to do"}
    output.show([finding.to_dict() for finding in findings], columns, as_json=as_json, empty="Nothing was found.")
    sys.exit(1 if any(finding.state is adapter.State.STOPS for finding in findings) else 0)


@crm.command()
def attach() -> None:
    """Upgrade the database, and make sure that the CRM's own processor takes nothing any more.

    What that one left half done is looked up in the chat and at the provider, never just sent again. Interrupted
    anywhere, it is taken up again by the next call.
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
    help="How long to wait for messages that are being written or sent.",
)
@click.option("--drop", is_flag=True, help="Also remove the pipeline's schema with all that it knows, and its columns.")
@yes_option
def detach(wait_seconds: int, drop: bool, yes: bool) -> None:
    """Give the queue back to the CRM's own processor; the CRM works as it did before.

    The pipeline's schema stays as an archive, and to attach again.
    """
    from campaign_pipeline.adapters.crm import detach as give_back

    url = _crm_url()
    if drop and not yes:
        click.confirm("Remove the ledger, suppressions and everything else that the pipeline knows?", abort=True)
    for sentence in give_back(url, _say, wait_seconds, drop=drop):
        click.echo(sentence)


COMMANDS = (crm,)
