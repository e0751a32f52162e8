"""`campaign-pipeline sandbox`: mock providers. Its flags are declared in `sandbox/command.py`."""

from __future__ import annotations

import click


@click.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def sandbox(context: click.Context, arguments: tuple[str, ...]) -> None:
    """Serve mock providers over HTTP until interrupted."""
    from campaign_pipeline.sandbox.command import sandbox as command

    with command.make_context(context.info_name, list(arguments), parent=context.parent) as inner:
        command.invoke(inner)


COMMANDS = (sandbox,)
