"""`campaign-pipeline demo`: the real job on a sample CRM."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from campaign_pipeline.cli.options import map_option, mapping_of
from campaign_pipeline.cli.output import console


@click.command()
@click.option(
    "--leads",
    "leads_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Use the leads of this CSV, XLSX, XLS or ODS file. Columns are recognised by name (Nome, Telefone, "
    "Empresa, …), others become custom fields; rows that cannot be used are listed by line.",
)
@map_option
@click.option(
    "--count", type=click.IntRange(1, 10_000), default=300, show_default=True, help="Number of generated leads."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the leads, latencies and faults.")
def demo(leads_file: Path | None, mapping: tuple[str, ...], count: int, seed: int) -> None:
    """Run the real job on a sample CRM, and show the results.

    It always uses the embedded database and sandbox providers on this machine. No real message is sent, whatever the
    environment variables are.
    """
    from campaign_pipeline.demo.demo import run_demo
    from campaign_pipeline.launch import interrupted_by_signals

    with interrupted_by_signals():
        worked = run_demo(console(), leads_file, count, seed, mapping_of(mapping))
    sys.exit(0 if worked else 1)


COMMANDS = (demo,)
