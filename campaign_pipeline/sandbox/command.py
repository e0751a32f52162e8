"""The sandbox's command and its flags, for `python -m campaign_pipeline.sandbox` and `campaign-pipeline sandbox`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from campaign_pipeline.sandbox.behaviour import FAULTS
from campaign_pipeline.sandbox.flags import USUAL_GENERATION, USUAL_SEND, behaviour_from_flags
from campaign_pipeline.sandbox.server import Sandbox, SandboxOptions, serve


class _Refused(click.ClickException):
    """Invalid flags, or an address that cannot be used."""

    exit_code = 2


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port to listen on. Default: any free one.")
@click.option("--seed", type=int, help="Seed of latencies and faults.")
@click.option("--generation-latency", type=float, metavar="SECONDS", help=f"Mean. Default: {USUAL_GENERATION.mean}.")
@click.option("--generation-sigma", type=float, metavar="SIGMA", help="Spread; above 0 it is log-normal.")
@click.option("--send-latency", type=float, metavar="SECONDS", help=f"Mean. Default: {USUAL_SEND.mean}.")
@click.option("--send-sigma", type=float, metavar="SIGMA", help="Spread; above 0 it is log-normal.")
@click.option(
    "--fault",
    "faults",
    multiple=True,
    metavar="RULE",
    help="[provider/]kind:name[:key=value]..., with the keys rate, phone, text, instance, times, times_each, seconds, "
    "accepts; may be repeated, the first that applies wins. Example: send:not_on_whatsapp:rate=0.02",
)
@click.option("--behaviour-file", type=click.Path(path_type=Path), help="A behaviour as JSON; flags override it.")
@click.option("--record-file", type=click.Path(path_type=Path), help="Write accepted requests to this file.")
@click.option("--ready-file", type=click.Path(path_type=Path), help="Write the addresses to this file when ready.")
@click.option("--list-faults", is_flag=True, help="List all faults with their effects and exit.")
def sandbox(
    host: str, port: int, record_file: Path | None, ready_file: Path | None, list_faults: bool, **flags: Any
) -> None:
    """Serve mock providers over HTTP until interrupted.

    /_sandbox/record lists the requests, /_sandbox/summary counts them.
    """
    if list_faults:
        for kind, faults in FAULTS.items():
            click.echo(f"{kind.value}")
            for name, meaning in faults.items():
                click.echo(f"  {name:22} {meaning}")
        return
    try:
        serve(SandboxOptions(host, port, behaviour_from_flags(**flags), record_file, ready_file), _announce)
    except (ValueError, OSError) as error:
        raise _Refused(str(error)) from None


def _announce(sandbox: Sandbox) -> None:
    click.echo(f"The sandbox serves at {sandbox.url}; Ctrl-C stops it. Point the pipeline at it with:")
    click.echo("  export OPENROUTER_API_KEY=any EVOLUTION_API_KEY=any")
    click.echo(f"  export OPENROUTER_BASE_URL={sandbox.openrouter_url}")
    click.echo(f"  export EVOLUTION_API_URL={sandbox.evolution_url}")
    click.echo(f"  export UAZAPI_API_URL={sandbox.uazapi_url}")
    click.echo(f"  export CLOUD_API_URL={sandbox.cloud_api_url}")
    click.echo(f"  export SUPABASE_URL={sandbox.supabase_url}")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until stopped. Invalid flags end it with exit code 2 and one sentence."""
    sandbox(arguments, prog_name="python -m campaign_pipeline.sandbox")
