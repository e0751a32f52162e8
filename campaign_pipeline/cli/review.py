"""`campaign-pipeline preview`, `review` and `test-send`: check texts before they are sent."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click

from campaign_pipeline.cli.errors import Trouble, WrongSetting
from campaign_pipeline.cli.options import by_option, json_option, personal_data_option
from campaign_pipeline.cli.output import console, show_json
from campaign_pipeline.cli.queue import queue_url

if TYPE_CHECKING:
    from campaign_pipeline.adapters.reviews import Decision

CHOICES = {"a": "approve", "e": "edit", "r": "reject", "s": "skip for now", "q": "quit"}


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--count", type=click.IntRange(1, 100), default=5, show_default=True, help="How many texts.")
@click.option("--keep", is_flag=True, help="Store the texts; they are sent as they are, at no further cost.")
@json_option
@personal_data_option
def preview(run: str, count: int, keep: bool, as_json: bool, personal: bool) -> None:
    """Write the texts of a run's next messages, without sending them.

    Uses the real prompt, model and checks; shows text, parts, cost and warnings. RUN is the name or id of a run or of
    its campaign.
    """
    from campaign_pipeline.core.notices import counted
    from campaign_pipeline.defs.trial import TrialFailed
    from campaign_pipeline.defs.trial import preview as write

    try:
        previews = write(queue_url(), run, count, keep=keep)
    except TrialFailed as error:
        raise WrongSetting(str(error)) from None
    # The texts are shown; only the lead's data is masked in them.
    rows = [each.row(personal=personal) for each in previews]
    if as_json:
        show_json(rows)
    elif not rows:
        click.echo("No message of this run waits.")
    else:
        for row in rows:
            _show(row)
        cost = sum(row["cost_usd"] for row in rows)
        kept = (
            "The texts are stored and will be sent as they are." if keep else "Not stored (use --keep to store them)."
        )
        click.echo(f"{counted(len(rows), 'text', 'texts')}, US$ {cost:.4f}. {kept}")


def _show(row: dict[str, Any]) -> None:
    from rich.panel import Panel
    from rich.text import Text

    heading = f"{row['lead'] or 'no lead'} · {row['message_id']}"
    body = Text("\n\n― next bubble ―\n\n".join(row["parts"]) or "(no text)")
    if row.get("subject"):
        body = Text(f"{row['subject']}\n\n") + body
    for warning in row["warnings"]:
        body.append(f"\n\n{warning}", style="yellow")
    about = " · ".join(filter(None, [row["model"], f"US$ {row['cost_usd']:.4f}", "kept" if row["kept"] else ""]))
    console().print(Panel(body, title=Text(heading), subtitle=Text(about), title_align="left", subtitle_align="left"))


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--write", "write", type=click.IntRange(0, 100), help="Write up to this many missing texts first.")
@click.option("--approve", "approved", multiple=True, metavar="ID", help="Approve this message; may be repeated.")
@click.option("--approve-all", is_flag=True, help="Approve every waiting text.")
@click.option("--reject", "rejected", multiple=True, metavar="ID", help="Reject this message; may be repeated.")
@click.option("--edit", "edited", type=(str, str), multiple=True, metavar="ID TEXT", help="Approve it with this text.")
@by_option
@json_option
@personal_data_option
def review(
    run: str,
    write: int | None,
    approved: Sequence[str],
    approve_all: bool,
    rejected: Sequence[str],
    edited: Sequence[tuple[str, str]],
    by: str,
    as_json: bool,
    personal: bool,
) -> None:
    """Approve, edit or reject the texts that wait for review.

    On a terminal it asks for each text; with flags or --json it does not ask. Missing texts are written first: by
    default as many as the campaign's review requires, at most 20. Edited texts pass the same checks.
    """
    from campaign_pipeline.adapters.reviews import Decision
    from campaign_pipeline.defs.trial import TrialFailed, decide, texts_to_review

    url = queue_url()
    try:
        found = texts_to_review(url, run, write)
    except TrialFailed as error:
        raise WrongSetting(str(error)) from None
    flags = approved or approve_all or rejected or edited
    decisions = [
        *(Decision(each, "approved") for each in ([row["id"] for row in found.rows] if approve_all else approved)),
        *(Decision(each, "rejected") for each in rejected),
        *(Decision(each, "approved", text) for each, text in edited),
    ]
    if not flags and not as_json and found.rows and sys.stdin.isatty():
        decisions = list(_ask(found.rows))
    if not decisions:
        _list(found.rows, as_json=as_json, personal=personal)
        return
    try:
        done = decide(url, run, decisions, by)
    except TrialFailed as error:
        raise Trouble(str(error)) from None
    late = [each.message_id for each in decisions if each.message_id not in done]
    if as_json:
        show_json({"decided": sorted(done), "too_late": late})
    else:
        click.echo(f"Decided: {len(done)} of {len(decisions)}.")
        for message_id in late:
            click.echo(f"Not decided: {message_id} does not wait for review any more, or has no text.", err=True)


def _list(rows: Sequence[dict[str, Any]], *, as_json: bool, personal: bool) -> None:
    from campaign_pipeline.core.notices import counted

    shown = [_row(row, personal=personal) for row in rows]
    if as_json:
        show_json(shown)
    elif not shown:
        click.echo("No text of this run waits for review.")
    else:
        for row in shown:
            _show(row)
        click.echo(
            f"{counted(len(shown), 'text waits', 'texts wait')}. Approve with --approve ID or --approve-all, "
            "change with --edit ID TEXT, refuse with --reject ID."
        )


def _row(row: dict[str, Any], *, personal: bool) -> dict[str, Any]:
    from campaign_pipeline.core.overview import mask

    text = row["text"] if personal else row["masked_text"]
    return {
        "message_id": row["id"],
        "lead": row["lead"] if personal else mask({"lead": row["lead"]})["lead"],
        "planned_at": row["planned_at"],
        "subject": row["subject"] if personal else None,
        "parts": [text],
        "model": row["model"],
        "cost_usd": float(row["cost_usd"] or 0),
        "kept": True,
        "warnings": [],
    }


def _ask(rows: Sequence[dict[str, Any]]) -> Sequence[Decision]:
    """Ask for a decision on each text, shown unmasked."""
    from campaign_pipeline.adapters.reviews import Decision

    decisions: list[Decision] = []
    question = ", ".join(f"{key} {meaning}" for key, meaning in CHOICES.items())
    for row in rows:
        _show(_row(row, personal=True))
        choice = click.prompt(question, type=click.Choice(list(CHOICES)), show_choices=False)
        if choice == "q":
            break
        if choice == "e":
            text = click.edit(row["text"])
            if text is not None and text.strip() != row["text"].strip():
                decisions.append(Decision(row["id"], "approved", text.strip()))
        elif choice != "s":
            decisions.append(Decision(row["id"], "approved" if choice == "a" else "rejected"))
    return decisions


@click.command("test-send")
@click.argument("campaign", metavar="CAMPAIGN")
@click.option("--to", required=True, metavar="NUMBER", help="Your own number, or your e-mail address for a mailbox.")
@click.option(
    "--lead", "lead_id", type=click.UUID, metavar="ID", help="Write it for this lead. Default: a sample lead."
)
@json_option
def test_send(campaign: str, to: str, lead_id: UUID | None, as_json: bool) -> None:
    """Send one text of a campaign to yourself, with the real model and provider.

    It does not touch the queue, counters, rate limits, leads or the CRM's chat. Nobody else receives anything.
    """
    from campaign_pipeline.adapters.queue_connection import connect_rows
    from campaign_pipeline.campaigns.finding import NotFound, find_campaign
    from campaign_pipeline.defs.trial import TrialFailed, send_test

    url = queue_url()
    try:
        with connect_rows(url) as connection:
            found = find_campaign(connection, campaign)
        text = send_test(url, found, to, lead_id)
    except NotFound as error:
        raise WrongSetting(str(error)) from None
    except TrialFailed as error:
        raise Trouble(str(error)) from None
    if as_json:
        show_json({"status": text.status, "why": text.why, "parts": len(text.parts), "cost_usd": text.cost_usd})
    else:
        row = {"message_id": "test", "lead": to, "subject": text.subject, "parts": text.parts, "model": text.model}
        _show({**row, "cost_usd": text.cost_usd, "kept": False, "warnings": text.warnings})
        if text.status == "sent":
            click.echo(f"Sent to {to}, parts: {len(text.parts)}.")
    if text.status != "sent":
        raise Trouble(f"It was not sent: {text.why}")


COMMANDS = (preview, review, test_send)
