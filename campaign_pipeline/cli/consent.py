"""`campaign-pipeline consent`: suppressions, and the data that is stored about a person."""

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
    """Manage suppressions, and export or erase a person's data (LGPD).

    Opt-outs in replies (SAIR, PARAR, STOP, …) and permanent rejections by providers suppress automatically. These
    commands do it by hand.
    """


_whom_options = all_of(
    click.option("--lead", "lead_id", type=click.UUID, metavar="ID", help="The lead, at any address."),
    click.option("--address", metavar="TEXT", help="A phone number or an e-mail address, in any spelling."),
    click.option("--workspace", "workspace_id", type=click.UUID, metavar="ID", help="Only in this workspace."),
    click.option("--channel", type=click.Choice(["whatsapp", "email"]), help="Only in this channel."),
)


def _ask_consent(question: Callable[[Consent], Coroutine[Any, Any, T]]) -> T:
    """Run a query on the queue's database; a refusal becomes one sentence."""
    import asyncio

    from campaign_pipeline.adapters.consent import Consent, ConsentRefused

    try:
        return asyncio.run(question(Consent(queue_url(), patience_seconds=10.0)))
    except ConsentRefused as error:
        raise Trouble(str(error)) from None


@consent.command()
@_whom_options
@click.option("--everywhere", is_flag=True, help="In all workspaces and channels.")
@click.option("--reason", required=True, metavar="TEXT", help="The reason, kept with the suppression.")
def suppress(everywhere: bool, reason: str, **whom: Any) -> None:
    """Stop all further messages to a lead or an address.

    By default a lead is suppressed in its own workspace, in all channels. An address needs --workspace or --everywhere.
    """
    from campaign_pipeline.adapters.consent import Whom

    if whom["lead_id"] is None and whom["address"] is None:
        raise click.UsageError("Give --lead or --address.")
    if everywhere and (whom["workspace_id"] or whom["channel"]):
        raise click.UsageError("--everywhere cannot be combined with --workspace or --channel.")
    if whom["lead_id"] is None and whom["workspace_id"] is None and not everywhere:
        raise click.UsageError("An address needs --workspace, or --everywhere.")
    number = _ask_consent(lambda consent: consent.suppress(Whom(**whom), reason, everywhere=everywhere))
    click.echo(f"Suppression {number} is active. Waiting messages will be skipped when they become due.")


@consent.command()
@_whom_options
@by_option
def lift(by: str, **whom: Any) -> None:
    """Lift every suppression of a lead or an address, or those of one workspace or channel.

    Messages that were skipped in the meantime stay skipped.
    """
    from campaign_pipeline.adapters.consent import Whom

    if whom["lead_id"] is None and whom["address"] is None:
        raise click.UsageError("Give --lead or --address.")
    lifted = _ask_consent(lambda consent: consent.lift(Whom(**whom), by))
    click.echo(f"{lifted} {'suppression was' if lifted == 1 else 'suppressions were'} lifted.")


@consent.command("list")
@_whom_options
@limit_option
@personal_data_option
@json_option
def list_(limit: int, personal: bool, as_json: bool, **whom: Any) -> None:
    """Show active suppressions, the newest first, with masked addresses."""
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
    "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write to this new file, readable by you only."
)
def export(lead_id: UUID, output: Path | None) -> None:
    """Export all data stored about a lead as one JSON document: fields, messages, conversations, suppressions, logs."""
    document, _ = _ask_consent(lambda consent: consent.export(lead_id))
    if document is None:
        raise Trouble(f"Nothing is stored about lead {lead_id}.")
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
    """Erase a person: names, numbers, texts, answers, log lines, and rows in step outputs. It cannot be undone.

    Ids, statuses, times and counts stay, so totals stay correct. Waiting messages end as skipped. Hashes of the
    addresses stay, so the person is not contacted after another import. Copies elsewhere (backups, providers, exports)
    are not erased.
    """
    from campaign_pipeline.defs.io import PrivateFiles

    document, _ = _ask_consent(lambda consent: consent.export(lead_id))
    if not yes:
        click.confirm(f"Erase all personal data of lead {lead_id}?", abort=True)
    if document is not None:
        counts = _ask_consent(lambda consent: consent.erase(lead_id, by))
        told = ", ".join(f"{count:,} in {table}" for table, count in sorted(counts.items()) if count)
        click.echo(f"Lead {lead_id} is erased in the database: {told or 'no rows'}.")
    # Step outputs may still hold data of a lead that the CRM has deleted.
    files = PrivateFiles(Environment.read().outputs_path).forget_lead(str(lead_id))
    if document is None and not files:
        raise Trouble(f"Nothing is stored about lead {lead_id}.")
    click.echo(f"{files:,} output files were rewritten or deleted.")


COMMANDS = (consent,)
