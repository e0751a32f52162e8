"""Read-only commands: runs, messages, one message's history, inboxes, pauses and the forecast."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click

from campaign_pipeline.adapters.environment import DeliverySettings
from campaign_pipeline.cli import output
from campaign_pipeline.cli.options import beginning_of, json_option, limit_option, personal_data_option
from campaign_pipeline.cli.queue import queue_url

if TYPE_CHECKING:
    from campaign_pipeline.adapters.operator import Operator
    from campaign_pipeline.core.overview import FoundLead, InboxOverview, PauseOverview

STATUSES = ("pending", "queued", "generating", "sending", "sent", "replied", "failed", "skipped")
RUN_STATUSES = ("running", "paused", "completed", "failed", "cancelled")


def operator() -> Operator:
    """Connect to the queue's database."""
    from campaign_pipeline.adapters.operator import Operator

    return Operator(queue_url())


@click.command()
@click.argument("run", required=False)
@click.option("--status", "statuses", type=click.Choice(RUN_STATUSES), multiple=True, help="Only these statuses.")
@limit_option
@json_option
def runs(run: str | None, statuses: tuple[str, ...], limit: int, as_json: bool) -> None:
    """Show campaign runs: progress, pace, and why each waits.

    RUN is an id, the beginning of one, or a name. Without it, all runs are shown, running ones first. `ends` is a
    forecast from due messages, sending windows and rate limits.
    """
    max_age = DeliverySettings.from_environment().max_age
    with operator() as desk:
        run_id = desk.find("run", run).id if run else None
        found = desk.runs(max_age, statuses or None, run_id, limit)
    rows = [{**asdict(each), "waiting": each.pending + each.leased, "why": each.wait_reason} for each in found]
    columns = {"run_id": "id", "name": "run", "status": "status", "inbox": "inbox", "total": "leads", "sent": "sent"}
    columns |= {"failed": "failed", "skipped": "skipped", "waiting": "waiting", "sent_last_hour": "last hour"}
    columns |= {"finished_at": "ends", "why": "why it waits"}
    output.show(rows, columns, as_json=as_json, empty="No campaign run found.")


@click.command()
@click.option("--run", metavar="RUN", help="Only this campaign run: an id, the beginning of one, or a name.")
@click.option("--status", "statuses", type=click.Choice(STATUSES), multiple=True, help="Only these statuses.")
@click.option("--reason", metavar="CODE", help="Only this error code or class: not_on_whatsapp, exhausted, …")
@click.option("--lead", metavar="LEAD", help="Only this lead: an id, the beginning of one, or a part of the name.")
@click.option("--phone", metavar="NUMBER", help="Only this number, in any spelling; its last digits are enough.")
@click.option(
    "--day",
    type=click.DateTime(["%Y-%m-%d"]),
    metavar="YYYY-MM-DD",
    help="Only messages that ended, or are due, on this day (in CAMPAIGN_TIMEZONE).",
)
@limit_option
@personal_data_option
@json_option
def messages(
    run: str | None,
    statuses: tuple[str, ...],
    reason: str | None,
    lead: str | None,
    phone: str | None,
    day: datetime | None,
    limit: int,
    personal: bool,
    as_json: bool,
) -> None:
    """Find messages by run, status, reason, lead, phone or day.

    The newest come first. `campaign-pipeline message ID` shows the history of one.
    """
    from campaign_pipeline.core.overview import mask
    from campaign_pipeline.core.ports import Verdict

    with operator() as desk:
        leads = desk.find_leads(lead) if lead else None
        found = desk.messages(
            run_id=desk.find("run", run).id if run else None,
            statuses=statuses or None,
            reason=reason,
            lead_ids=None if leads is None else [each.lead_id for each in leads],
            phone=phone,
            since=beginning_of(day) if day else None,
            shown=limit,
        )
    rows = [asdict(each) if personal else mask(asdict(each)) for each in found]
    columns = {"message_id": "id", "lead": "lead", "address": "to", "run": "run", "status": "status"}
    columns |= {"at": "ended, or due", "inbox": "inbox", "reason_code": "reason", "reason": "details"}
    for row in rows:
        waits = row["status"] == "pending" and row["reason_code"] == Verdict.AWAITING_REVIEW
        row["at"] = None if waits else row["finished_at"] or row["due_at"]  # its due time is only the next look
    output.show(rows, columns, as_json=as_json, empty=_no_messages(leads, personal=personal))


def _no_messages(leads: list[FoundLead] | None, *, personal: bool) -> str:
    """Say why nothing is shown: no such lead, or no message of these leads, and whether they are suppressed."""
    from campaign_pipeline.core.overview import mask

    if leads is None:
        return "No message found."
    if not leads:
        return "No lead found."
    lines = []
    for lead in leads:
        shown = asdict(lead) if personal else mask(asdict(lead))
        suppressed = f"; suppressed: {lead.suppressed_because}" if lead.suppressed_because else ""
        had = (
            f"{lead.messages:,} campaign messages, none of which matches"
            if lead.messages
            else "no campaign message, because it is in no run"
        )
        lines.append(f"{shown['lead'] or 'A lead without a name'} ({lead.lead_id}): {had}{suppressed}.")
    return "\n".join(lines)


@click.command()
@click.argument("message_id", metavar="ID")
@personal_data_option
@json_option
def message(message_id: str, personal: bool, as_json: bool) -> None:
    """Show one message's history: what happened, why, and what to do.

    ID is a message's id, or a unique beginning of one.
    """
    with operator() as desk:
        found = desk.find("message", message_id)
        story = desk.story(found.id, DeliverySettings.from_environment().max_age, output.zone())
    told = story.to_dict(personal=personal)
    if as_json:
        output.show_json(told)
        return
    click.echo(told["summary"])
    click.echo(f"What to do: {told['next_step']}")
    click.echo()
    _show_fields(told)
    parts = {"part_no": "part", "status": "status", "text": "text", "inbox": "inbox", "attempts": "attempts"}
    parts |= {"sent_at": "sent", "delivery_status": "delivery"}
    attempts = {"at": "at", "part_no": "part", "what": "what", "inbox": "inbox", "outcome": "outcome", "code": "code"}
    attempts |= {"answer": "answer"}
    calls = {"at": "at", "purpose": "for", "model": "model", "rule": "refused by", "changed": "changed by"}
    calls |= {"cost_usd": "US$"}
    log = {"at": "at", "step": "step", "level": "level", "message": "message"}
    _show_table("Parts", told["parts"], parts)
    _show_table("Attempts", told["attempts"], attempts)
    _show_table("Texts refused or changed", told["model_calls"], calls)
    _show_table("Log", told["log"], log)
    click.echo(f"Times are in {output.zone()}.")


def _show_table(title: str, rows: list[dict[str, Any]], columns: dict[str, str]) -> None:
    """Print a table if it has rows. Times are to the second, so that their order shows."""
    if not rows:
        return
    click.echo()
    shown = [
        {**row, "at": f"{row['at'].astimezone(output.zone()):%m-%d %H:%M:%S}"} if "at" in row else row for row in rows
    ]
    output.print_tables(output.table_of(shown, columns, title))


def _show_fields(told: dict[str, Any]) -> None:
    """Print the message's fields, one per line; empty fields are left out."""
    fields = {"message_id": "message", "lead": "lead", "lead_id": "lead id", "address": "to", "run": "run"}
    fields |= {"run_id": "run id", "workspace": "workspace", "inbox": "inbox", "status": "status"}
    fields |= {"error_class": "class", "error_code": "code", "reason": "reason", "waits_because": "its run waits"}
    fields |= {"due_at": "due", "queued_at": "claimed", "sent_at": "sent", "replied_at": "replied"}
    fields |= {"finished_at": "ended", "requeued_at": "put back", "retry_count": "attempts counted"}
    fields |= {"lease_owner": "last held by", "lease_expires_at": "lease ends", "worker_deaths": "workers died"}
    fields |= {"subject": "subject", "text": "text", "model": "model", "tokens": "tokens", "cost_usd": "US$"}
    widest = max(map(len, fields.values()))
    for name, heading in fields.items():
        if told.get(name):
            value = told[name]
            click.echo(f"{heading:{widest}}  {value if isinstance(value, UUID) else output.cell(value)}")


@click.command()
@json_option
def inboxes(as_json: bool) -> None:
    """Show inboxes: connection, pace, today's count and limits.

    `today` is the number sent today and the daily limit, warm-up included; `hour` is the same for the last 60 minutes.
    """
    with operator() as desk:
        found = desk.inboxes()
    rows = [
        {
            **asdict(inbox),
            "today": _of(inbox.sent_today, inbox.daily_limit),
            "hour": _of(inbox.hour_count, inbox.hourly_limit) if inbox.hourly_limit is not None else None,
            "pace": _pace(inbox),
        }
        for inbox in found
    ]
    columns = {"inbox_id": "id", "name": "inbox", "workspace": "workspace", "provider": "provider"}
    columns |= {"connection": "connection", "pace": "pace", "today": "today", "hour": "hour"}
    columns |= {"warm_up_day": "warm-up day", "failed_today": "failed today", "waiting": "waiting"}
    columns |= {"free_at": "next", "pauses": "paused because"}
    output.show(rows, columns, as_json=as_json, empty="No campaign has an inbox.")


def _of(count: int, limit: int | None) -> str:
    return f"{count:,}" if limit is None else f"{count:,} of {limit:,}"


def _pace(inbox: InboxOverview) -> str:
    """Describe the pace: the gap in seconds, rests and the slow-down."""
    if not inbox.gap_seconds:
        return "none"
    slower = f", {inbox.slow_factor:g} times slower" if inbox.slow_factor > 1 else ""
    rests = f", rests {inbox.pause_seconds:g} s after {inbox.pause_after}" if inbox.pause_after else ""
    return f"{inbox.gap_seconds:g} s{rests}{slower}"


@click.command()
@json_option
def pauses(as_json: bool) -> None:
    """Show what is paused or slowed down, why, and by whom.

    A pause that the pipeline made ends when a probe message succeeds; `lift` ends it now. `resume` ends a pause that a
    person made.
    """
    with operator() as desk:
        found = desk.pauses()
    rows = [{**asdict(each), "pause": each.pause, "short": _short(each)} for each in found]
    columns = {"short": "pause", "name": "name", "kind": "kind", "code": "code", "since": "since"}
    columns |= {"until": "tried again", "paused_by": "by", "reason": "reason"}
    output.show(rows, columns, as_json=as_json, empty="Nothing is paused.")


def _short(pause: PauseOverview) -> str:
    """Shorten the id of a pause's scope; the name of a model stays whole."""
    return pause.pause if pause.scope == "model" else pause.pause[: len(pause.scope) + 9]


@click.command()
@click.option(
    "--days", type=click.IntRange(1, 14), default=2, show_default=True, help="Number of days, beginning today."
)
@json_option
def forecast(days: int, as_json: bool) -> None:
    """Show how many messages will be sent today and tomorrow, by inbox and hour.

    The forecast assumes the current windows, rate limits and daily limits. It leaves out runs that wait for a person;
    `campaign-pipeline runs` shows them.
    """
    with operator() as desk:
        names = {inbox.inbox_id: inbox.name for inbox in desk.inboxes()}
        laid_out = desk.forecast(DeliverySettings.from_environment().max_age)
    last = datetime.now(output.zone()).date() + timedelta(days=days - 1)
    rows = [
        {
            "inbox_id": slot.inbox_id,
            "inbox": names.get(slot.inbox_id),
            "hour": slot.hour,
            "messages": slot.messages,
            "waiting": slot.waiting,
        }
        for slot in laid_out.slots
        if slot.hour.astimezone(output.zone()).date() <= last and (slot.messages or slot.waiting)
    ]
    columns = {"hour": "hour", "inbox": "inbox", "messages": "messages", "waiting": "left waiting"}
    output.show(rows, columns, as_json=as_json, empty="No message that can be sent is due then.")


COMMANDS = (runs, messages, message, inboxes, pauses, forecast)
