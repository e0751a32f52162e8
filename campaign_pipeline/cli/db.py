"""`campaign-pipeline db`: the queue's database."""

from __future__ import annotations

import signal

import click

from campaign_pipeline.cli.queue import plain_url


@click.group()
def db() -> None:
    """The queue's database."""


@db.command()
def upgrade() -> None:
    """Upgrade the schema: create missing CRM tables, and apply the pipeline's migrations.

    Safe while the database is in use: it works in short steps that do not block writers. If it is interrupted, run it
    again.
    """
    from campaign_pipeline.adapters import schema

    url = plain_url()
    revision = schema.upgrade(url, say=lambda text: click.echo(text, err=True))
    click.echo(f"{schema.describe(url)} has schema {revision}.")


@db.command()
@click.option("--hold", is_flag=True, help="Keep the embedded server running until Ctrl-C, for example for psql.")
def url(hold: bool) -> None:
    """Print the database's URL, including the password.

    The embedded server runs only while something uses it: `dev`, a run, or this command with --hold.
    """
    from campaign_pipeline.launch import interrupted_by_signals

    click.echo(plain_url())
    if hold:
        click.echo("Ctrl-C stops the server.", err=True)
        with interrupted_by_signals():
            signal.pause()


COMMANDS = (db,)
