"""Commands that change something: pause, resume, cancel, retry, lift. Each prints the change and how to undo it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click

from campaign_pipeline.cli import output
from campaign_pipeline.cli.look import operator
from campaign_pipeline.cli.options import all_of, beginning_of, by_option, json_option, yes_option

if TYPE_CHECKING:
    from campaign_pipeline.adapters.operator import Done, Named, Operator

ERROR_CLASSES = ("transient", "exhausted", "throttled", "systemic", "permanent")

_reason_option = click.option("--reason", metavar="TEXT", help="The reason, kept in the log.")

_scope_options = all_of(
    click.argument("run", required=False),
    click.option("--inbox", metavar="INBOX", help="This inbox: an id, the beginning of one, or a name."),
    click.option("--workspace", metavar="WORKSPACE", help="This workspace: an id, the beginning of one, or a name."),
    click.option("--all", "everything", is_flag=True, help="All sending."),
)


@click.command()
@_scope_options
@_reason_option
@by_option
@json_option
def pause(
    run: str | None,
    inbox: str | None,
    workspace: str | None,
    everything: bool,
    reason: str | None,
    by: str,
    as_json: bool,
) -> None:
    """Pause a run, an inbox, a workspace, or all sending.

    It takes effect within seconds. Requests in flight are finished, no further request is made, and the other messages
    stay pending. RUN is an id, the beginning of one, or a name.
    """
    with operator() as desk:
        scope, target = _target(desk, run, inbox, workspace, everything=everything)
        if scope == "run":
            assert target is not None
            done = desk.pause_run(target, by, reason)
        else:
            done = desk.pause(scope, target, by, reason)
    _say(done, as_json=as_json)


@click.command()
@_scope_options
@by_option
@json_option
def resume(run: str | None, inbox: str | None, workspace: str | None, everything: bool, by: str, as_json: bool) -> None:
    """End a pause that a person made.

    Messages that became overdue during the pause are spread over time, not sent in a burst.
    """
    with operator() as desk:
        scope, target = _target(desk, run, inbox, workspace, everything=everything)
        if scope == "run":
            assert target is not None
            done = desk.resume_run(target, by)
        else:
            done = desk.resume(scope, target, by)
    _say(done, as_json=as_json)


def _target(
    desk: Operator, run: str | None, inbox: str | None, workspace: str | None, *, everything: bool
) -> tuple[str, Named | None]:
    """Return the scope (run, inbox, workspace or all) and its target."""
    given = {"run": run, "inbox": inbox, "workspace": workspace, "all": "all" if everything else None}
    named = [(scope, text) for scope, text in given.items() if text]
    if len(named) != 1:
        raise click.UsageError("Give exactly one of RUN, --inbox, --workspace and --all.")
    ((scope, text),) = named
    return scope, None if scope == "all" else desk.find(scope, text)


@click.command()
@click.argument("run")
@_reason_option
@by_option
@yes_option
@json_option
def cancel(run: str, reason: str | None, by: str, yes: bool, as_json: bool) -> None:
    """Cancel a run for good: its waiting messages are skipped.

    Requests in flight are finished. A message with an unknown outcome fails as unknown.
    """
    with operator() as desk:
        found = desk.find("run", run)
        if not yes:
            now = desk.progress(found.id)
            click.confirm(
                f"Cancel the run {found.name}? {now.pending if now else 0:,} messages are waiting.", abort=True
            )
        done = desk.cancel_run(found, by, reason)
    _say(done, as_json=as_json)


@click.command()
@click.argument("message_ids", metavar="[ID]...", nargs=-1)
@click.option(
    "--day", type=click.DateTime(["%Y-%m-%d"]), metavar="YYYY-MM-DD", help="All messages that failed that day."
)
@click.option("--run", metavar="RUN", help="With --day: only messages of this campaign run.")
@click.option(
    "--class",
    "error_classes",
    type=click.Choice(ERROR_CLASSES),
    multiple=True,
    help="With --day: only messages of these error classes. Default: transient and exhausted.",
)
@click.option(
    "--resend-unknown",
    is_flag=True,
    help="Also messages with an unknown outcome: each is looked up again, and resent if it is not found. The lead may "
    "get it twice.",
)
@by_option
@json_option
def retry(
    message_ids: tuple[str, ...],
    day: datetime | None,
    run: str | None,
    error_classes: tuple[str, ...],
    resend_unknown: bool,
    by: str,
    as_json: bool,
) -> None:
    """Send failed messages again, by their ids or by day.

    Parts that were sent are never sent again. The messages become due, and the next batch sends them. --day selects the
    same messages as the job retry_failed_messages; days are in CAMPAIGN_TIMEZONE.
    """
    if bool(message_ids) == bool(day) or (message_ids and (run or error_classes)):
        raise click.UsageError("Give either message ids, or --day (with --run and --class).")
    with operator() as desk:
        if day is None:
            ids = [desk.find("message", each).id for each in message_ids]
            done = desk.retry(ids, by, resend_unknown=resend_unknown)
        else:
            run_id = desk.find("run", run).id if run else None
            done = _retry_day(desk, day, run_id, error_classes, by, resend_unknown=resend_unknown)
    _say(done, as_json=as_json)


def _retry_day(
    desk: Operator,
    day: datetime,
    run_id: UUID | None,
    error_classes: tuple[str, ...],
    by: str,
    *,
    resend_unknown: bool,
) -> Done:
    from campaign_pipeline.adapters.operations import FailedMessages

    classes: list[Any] = list(error_classes or ("transient", "exhausted"))
    if resend_unknown:
        classes.append("unknown")
    begin, end = beginning_of(day), beginning_of(day + timedelta(days=1))
    return desk.retry_day(FailedMessages(begin, end, classes, None if run_id is None else [run_id]), by)


@click.command()
@click.argument("pause")
@by_option
@json_option
def lift(pause: str, by: str, as_json: bool) -> None:
    """End a pause that the pipeline made; the waiting messages continue.

    PAUSE is an id from `campaign-pipeline pauses`, the beginning of one, or the name of an inbox, workspace or run.
    """
    with operator() as desk:
        done = desk.lift(pause, by)
    _say(done, as_json=as_json)


def _say(done: Done, *, as_json: bool) -> None:
    if as_json:
        output.show_json({"changed": done.changed, "text": done.text, "undo": done.undo})
        return
    click.echo(done.text)
    if done.undo:
        click.echo(done.undo)


COMMANDS = (pause, resume, cancel, retry, lift)
