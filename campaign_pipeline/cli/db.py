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
    """Bring the database up to date: the CRM's tables where they are missing, and what the pipeline adds to them.

    While others work on it: in short steps, none of which keeps a writer waiting. Interrupted anywhere, it is taken up
    again by the next call; harmless when there is nothing to do.
    """
    from campaign_pipeline.adapters import schema

    url = plain_url()
    revision = schema.upgrade(url, say=lambda text: click.echo(text, err=True))
    click.echo(f"{schema.describe(url)} has schema {revision}.")


@db.command()
@click.option("--hold", is_flag=True, help="Keep the embedded server up until interrupted, for psql and the like.")
def url(hold: bool) -> None:
    """Print the database's URL, password included.

    The embedded server runs only while somebody uses it: `dev`, a run, or this command with --hold.
    """
    from campaign_pipeline.launch import interrupted_by_signals

    click.echo(plain_url())
    if hold:
        click.echo("Ctrl-C lets go of it.", err=True)
        with interrupted_by_signals():
            signal.pause()


COMMANDS = (db,)
