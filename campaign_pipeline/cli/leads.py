"""`campaign-pipeline leads`: show how a lead file is read."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from campaign_pipeline.cli.options import map_option, mapping_of
from campaign_pipeline.cli.output import console


@click.command()
@click.argument("leads_file", type=click.Path(path_type=Path), metavar="FILE")
@map_option
def leads(leads_file: Path, mapping: tuple[str, ...]) -> None:
    """Read a lead file and show how it is understood. Nothing is written.

    Shows the columns, and every row that is left out with the reason. Exit code 1 if rows were left out.
    """
    from campaign_pipeline.leads.reading import read_leads
    from campaign_pipeline.leads.report import show_reading

    read = read_leads(leads_file, mapping_of(mapping), emails=True)
    show_reading(console(), leads_file.name, read, most_problems=None)
    click.echo(f"{leads_file}: {len(read.leads):,} leads.")
    sys.exit(1 if read.problems else 0)


COMMANDS = (leads,)
