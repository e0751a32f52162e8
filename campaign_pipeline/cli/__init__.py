"""`campaign-pipeline`: the operator's command line, one file a group of commands.

Exit codes: 0 it worked (messages that failed are data, not a failure), 1 the pipeline could not work, 2 wrong usage or
configuration, 130 interrupted. What only some commands need is imported by them: help and errors answer at once.
CONTRIBUTING.md says how to add a command.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import Any

import click

from campaign_pipeline.cli import (
    act,
    campaigns,
    consent,
    crm,
    db,
    demo,
    dev,
    doctor,
    leads,
    look,
    process,
    review,
    sandbox,
    webhook,
)
from campaign_pipeline.cli.errors import INTERRUPTED, known_trouble

SECTIONS: dict[str, Sequence[Any]] = {
    "Try it": (demo, dev, sandbox),
    "Send": (process, webhook),
    "Look": (look, doctor),
    "Act": (act,),
    "Decide before it goes out": (review,),
    "From a list to a campaign": (leads, campaigns),
    "People's data": (consent,),
    "Database": (db, crm),
}
"""The modules of commands under the headings of `--help`; each has its commands in `COMMANDS`."""


class _Cli(click.Group):
    """Commands under headings; known trouble ends in one sentence, an interrupt with status 130."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            raise click.exceptions.Exit(INTERRUPTED) from None
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            trouble = known_trouble(error)
            if trouble is None:
                raise
            raise trouble from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        widest = max(map(len, self.commands))
        for heading, modules in SECTIONS.items():
            commands = [command for module in modules for command in module.COMMANDS]
            limit = formatter.width - 6 - widest
            with formatter.section(heading):
                rows = [(str(each.name).ljust(widest), each.get_short_help_str(limit)) for each in commands]
                formatter.write_dl(rows)


@click.group(
    cls=_Cli,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 it worked (messages that failed are data, see the tables), 1 the pipeline could not work, "
    "2 wrong usage or configuration, 130 interrupted.",
)
@click.version_option(package_name="campaign_pipeline")
def cli() -> None:
    """Send the outbound campaigns of a CRM: nothing sent twice, nothing lost.

    The queue is the database that CAMPAIGN_DATABASE_URL names, else an embedded PostgreSQL under CAMPAIGN_HOME
    (.campaign in the current folder).
    """


for _modules in SECTIONS.values():
    for _module in _modules:
        for _command in _module.COMMANDS:
            cli.add_command(_command)


def main() -> None:
    """The console script."""
    try:
        cli(prog_name="campaign-pipeline")
    finally:
        # What is left to do is to stop the embedded server, which an impatient second Ctrl-C must not cut short.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
