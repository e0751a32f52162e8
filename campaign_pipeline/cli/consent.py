"""`campaign-pipeline consent`: who may not be written to, and what is stored of a person."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import click

from campaign_pipeline.adapters.environment import Environment
from campaign_pipeline.cli import output
from campaign_pipeline.cli.errors import Trouble
from campaign_pipeline.cli.options import all_of, by_option, json_option, limit_option, personal_data_option, yes_option
from campaign_pipeline.cli.queue import queue_url

if TYPE_CHECKING:
    from campaign_pipeline.adapters.consent import Consent

T = TypeVar("T")


@click.group()
def consent() -> None:
    """Who may not be written to, and what is stored of a person (LGPD).

    Opt-outs in replies (SAIR, PARAR, STOP, …) and refusals of providers suppress by themselves; this is by hand.
    """


_whom_options = all_of(
    click.option("--lead", "lead_id", type=click.UUID, metavar="ID", help="The lead, at whatever address."),
    click.option("--address", metavar="TEXT", help="A phone number or an e-mail address, however it is written."),
    click.option("--workspace", "workspace_id", type=click.UUID, metavar="ID", help="Only in this workspace."),
    click.option("--channel", type=click.Choice(["whatsapp", "email"]), help="Only in this channel."),
)


def _ask_consent(question: Callable[[Consent], Coroutine[Any, Any, T]]) -> T:
    """Ask the queue's database; its refusal is one sentence."""
    import asyncio

    from campaign_pipeline.adapters.consent import Consent, ConsentRefused

    try:
        return asyncio.run(question(Consent(queue_url(), patience_seconds=10.0)))
    except ConsentRefused as error:
        raise Trouble(str(error)) from None


@consent.command()
@_whom_options
@click.option("--everywhere", is_flag=True, help="In all workspaces and channels.")
@click.option("--reason", required=True, metavar="TEXT", help="Why, for whoever asks later.")
def suppress(everywhere: bool, reason: str, **whom: Any) -> None:
    """Write to a lead or an address no more, from the next message on.

    A lead is suppressed in its workspace unless more or less is said; an address needs --workspace or --everywhere.
    """
    from campaign_pipeline.adapters.consent import Whom

    if whom["lead_id"] is None and whom["address"] is None:
        raise click.UsageError("Say who is meant, with --lead or --address.")
    if everywhere and (whom["workspace_id"] or whom["channel"]):
        raise click.UsageError("--everywhere goes without --workspace and --channel.")
    if whom["lead_id"] is None and whom["workspace_id"] is None and not everywhere:
        raise click.UsageError("An address needs --workspace, or --everywhere.")
    number = _ask_consent(lambda consent: consent.suppress(Whom(**whom), reason, everywhere=everywhere))
    click.echo(f"Suppression {number} holds. Messages that wait are skipped when their turn comes.")


@consent.command()
@_whom_options
@by_option
def lift(by: str, **whom: Any) -> None:
    """Lift every suppression of a lead or an address, or those of one workspace or channel.

    What was skipped meanwhile stays skipped.
    """
    from campaign_pipeline.adapters.consent import Whom

    if whom["lead_id"] is None and whom["address"] is None:
        raise click.UsageError("Say who is meant, with --lead or --address.")
    lifted = _ask_consent(lambda consent: consent.lift(Whom(**whom), by))
    click.echo(f"{lifted} {'suppression was' if lifted == 1 else 'suppressions were'} lifted.")


@consent.command("list")
@_whom_options
@limit_option
@personal_data_option
@json_option
def list_(limit: int, personal: bool, as_json: bool, **whom: Any) -> None:
    """Show the suppressions that hold, the newest first; addresses masked."""
    from campaign_pipeline.adapters.consent import Whom
    from campaign_pipeline.core.address import masked

    rows = _ask_consent(lambda consent: consent.suppressions(Whom(**whom), limit))
    for row in rows:
        row["where"] = " ".join(str(row[name]) for name in ("scope", "channel", "workspace_id") if row[name])
        if row["address"] and not personal:
            row["address"] = masked(row["address"])
        row["lead_id"] = str(row["lead_id"] or "")
        if row["source"] == "erasure":
            row["address"] = row["address"] or "erased"
    columns = {name: name for name in ("id", "since")} | {"where": "scope", "address": "address", "lead_id": "lead"}
    columns |= {name: name for name in ("source", "reason")}
    output.show(rows, columns, as_json=as_json, empty="Nobody is suppressed.")


@consent.command()
@click.argument("lead_id", type=click.UUID)
@click.option(
    "--output", type=click.Path(path_type=Path, dir_okay=False), help="A new file only you can read; else the terminal."
)
def export(lead_id: UUID, output: Path | None) -> None:
    """Write all that is stored of a lead as one JSON document: fields, messages, conversations, suppressions, logs."""
    document, _ = _ask_consent(lambda consent: consent.export(lead_id))
    if document is None:
        raise Trouble(f"Nothing is stored of a lead {lead_id}.")
    if output is None:
        click.echo(document)
        return
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(document + "\n")
    click.echo(f"Written to {output}.")


@consent.command()
@click.argument("lead_id", type=click.UUID)
@by_option
@yes_option
def erase(lead_id: UUID, by: str, yes: bool) -> None:
    """Erase a person: names, numbers, texts, answers, log lines, and rows of step outputs. It cannot be undone.

    Ids, statuses, times and counts stay, so that totals stay true. Waiting messages end as skipped. Hashes of the
    addresses stay, so that the person is not written to if imported again. Copies elsewhere (backups, the providers,
    exports) are not reached.
    """
    from campaign_pipeline.defs.io import PrivateFiles

    document, _ = _ask_consent(lambda consent: consent.export(lead_id))
    if not yes:
        click.confirm(f"Erase all personal data of lead {lead_id}?", abort=True)
    if document is not None:
        counts = _ask_consent(lambda consent: consent.erase(lead_id, by))
        told = ", ".join(f"{count:,} in {table}" for table, count in sorted(counts.items()) if count)
        click.echo(f"Lead {lead_id} is erased in the database: {told or 'no rows'}.")
    # Of a lead that the CRM has deleted, step outputs may still know.
    files = PrivateFiles(Environment.read().outputs_path).forget_lead(str(lead_id))
    if document is None and not files:
        raise Trouble(f"Nothing is stored of a lead {lead_id}.")
    click.echo(f"{files:,} output files were written anew or deleted.")


COMMANDS = (consent,)
