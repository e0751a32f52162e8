"""`campaign-pipeline`: the operator's command line, one file per group of commands.

Exit codes: 0 success (failed messages are data, not a failure), 1 the pipeline could not work, 2 wrong usage or
configuration, 130 interrupted. Heavy imports are inside the commands that need them, so `--help` is fast.
CONTRIBUTING.md describes how to add a command.
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
    "Review before sending": (review,),
    "From a list to a campaign": (leads, campaigns),
    "People's data": (consent,),
    "Database": (db, crm),
}
"""The headings of `--help` and the modules under each; a module lists its commands in `COMMANDS`."""


class _Cli(click.Group):
    """Commands under headings. A known error ends in one sentence, an interrupt with exit code 130."""

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
    epilog="Exit codes: 0 success (failed messages are data, see the tables), 1 the pipeline could not work, "
    "2 wrong usage or configuration, 130 interrupted.",
)
@click.version_option(package_name="campaign_pipeline")
def cli() -> None:
    """Send the outbound campaigns of a CRM. A message is never sent twice.

    The queue is the database in CAMPAIGN_DATABASE_URL. If it is not set, an embedded PostgreSQL under CAMPAIGN_HOME
    (by default .campaign in the current folder) is used.
    """


for _modules in SECTIONS.values():
    for _module in _modules:
        for _command in _module.COMMANDS:
            cli.add_command(_command)


def main() -> None:
    """Run the command line."""
    try:
        cli(prog_name="campaign-pipeline")
    finally:
        # A second Ctrl-C must not interrupt the stop of the embedded server.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
