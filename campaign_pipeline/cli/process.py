"""`campaign-pipeline process`: send one batch of due messages."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from campaign_pipeline.adapters.environment import DeliverySettings, Environment, SettingError
from campaign_pipeline.cli import output
from campaign_pipeline.cli.errors import Trouble
from campaign_pipeline.cli.options import json_option, number_option
from campaign_pipeline.cli.queue import queue_url

if TYPE_CHECKING:
    from rich.console import Console

    from campaign_pipeline.launch import JobResult

_SHOWN_WAITS = 20


@click.command()
@number_option("--batch-size", 1000, 10_000, "Claim at most this many due messages.")
@number_option("--shard-size", 250, 10_000, "Most messages per step.")
@number_option("--concurrency", 20, 500, "Messages in flight at once, per step.")
@click.option(
    "--in-process", is_flag=True, help="Run all steps in one process, one after another: fastest for few messages."
)
@click.option("--dry-run", is_flag=True, help="Only show what would be claimed, and why the rest waits.")
@json_option
def process(batch_size: int, shard_size: int, concurrency: int, in_process: bool, dry_run: bool, as_json: bool) -> None:
    """Send one batch of due messages.

    This is one run of the job process_campaign_queue. It is stored in the Dagster instance of DAGSTER_HOME, or, if that
    is not set, in the one that `dev` uses. With --dry-run nothing is claimed, written or sent.
    """
    if as_json and not dry_run:
        raise click.UsageError("--json needs --dry-run.")
    if dry_run:
        _dry_run(batch_size, as_json=as_json)
        return
    from campaign_pipeline.launch import JobConfig, JobProcess, follow, interrupted_by_signals

    console = output.console()
    DeliverySettings.from_environment()
    environment = Environment.read()
    with console.status("Connecting to the database"):
        url = queue_url()
        folder = dagster_home(environment)
    variables = {**os.environ, "CAMPAIGN_HOME": str(environment.home)}
    config = JobConfig(batch_size, shard_size, concurrency, in_process)
    with interrupted_by_signals(), JobProcess(config, folder, environment.home / "logs", variables) as job:
        result = follow(job, url, console)
        log_file = job.log_file
    _show_result(console, result, url)
    if not result.succeeded:
        raise Trouble(" ".join(result.failures) + f" (Dagster's log: {log_file})")


def _dry_run(batch_size: int, *, as_json: bool) -> None:
    """Show what a batch would claim now, through which inboxes, at what cost, and why the rest waits."""
    import asyncio

    from campaign_pipeline.adapters.operator import Operator
    from campaign_pipeline.adapters.queue import BatchOptions, Queue
    from campaign_pipeline.core.next_steps import step_of_wait

    settings = DeliverySettings.from_environment()
    options = BatchOptions(
        batch_size=batch_size,
        owner="dry run",
        lease_seconds=settings.lease_seconds,
        max_age=settings.max_age,
        max_wait_seconds=settings.max_inline_wait_seconds,
    )
    url = queue_url()
    batch = asyncio.run(Queue(url).try_claim(options))
    waits = {wait.run_id: wait for wait in batch.waits}
    with Operator(url) as desk:
        shares = desk.describe_claim([(row.message_id, row.inbox_id) for row in batch.rows])
        due = desk.due_by_run()
    claimed = [{**asdict(share), "usd": share.usd} for share in shares]
    taken = Counter(row.run_id for row in batch.rows)
    kept = [
        {
            "run_id": run.id,
            "run": run.name,
            "messages": count - taken[run.id],
            "why": wait.reason if (wait := waits.get(run.id)) else "batch size or rate limit reached",
            "todo": step_of_wait(wait.code) if wait else "nothing: the next batches claim them",
        }
        for run, count in due
        if count > taken[run.id]
    ]
    skipped = {"too_old": batch.expired, "suppressed": batch.suppressed, "foreign_workspace": batch.foreign}
    skipped |= {"number_contacted": batch.contacted, "run_cancelled": batch.cancelled}
    if as_json:
        output.show_json({"claimed": claimed, "kept": kept, "ended_or_put_off": skipped})
        return
    columns = {"run": "run", "inbox": "through", "messages": "messages", "to_write": "texts to write"}
    columns |= {"usd": "US$, estimated"}
    output.show(claimed, columns, as_json=False, empty="A batch would claim nothing now.")
    for code, count in skipped.items():
        if count:
            click.echo(f"{count:,} messages would be ended or postponed: {code}.")
    if kept:
        columns = {"run": "run", "messages": "waiting", "why": "why", "todo": "what to do"}
        output.print_tables("", output.table_of(kept, columns, "Due, but not claimed"))
    click.echo("Nothing was changed.")


def dagster_home(environment: Environment) -> Path:
    """Return the folder in DAGSTER_HOME, or the one that `dev` uses."""
    from campaign_pipeline.adapters.dagster_home import write_dagster_home
    from campaign_pipeline.adapters.database import dagster_storage_url
    from campaign_pipeline.launch import uninterrupted

    own = os.environ.get("DAGSTER_HOME", "").strip()
    if own and not (Path(own).is_absolute() and Path(own).is_dir()):
        raise SettingError(f"DAGSTER_HOME is {own}, but must be the absolute path of a folder that exists.")
    with uninterrupted():
        return Path(own) if own else write_dagster_home(environment.home, dagster_storage_url(environment))


def _show_result(console: Console, result: JobResult, url: str) -> None:
    """Print the result of the batch, and the runs that wait."""
    from rich.text import Text

    from campaign_pipeline.core.notices import counted

    closed = int(result.totals.get("runs_closed", 0))

    def whole(name: str) -> str:
        return f"{int(result.totals.get(name, 0)):,}"

    if result.totals.get("messages"):
        console.print(
            f"Run {result.run_id}: {whole('messages')} claimed, {whole('sent')} sent, {whole('failed')} failed, "
            f"{whole('skipped')} skipped, {whole('returned')} returned to the queue; "
            f"{counted(closed, 'campaign run', 'campaign runs')} closed; {whole('tokens')} tokens, "
            f"US$ {result.totals.get('cost_usd', 0):.4f}.",
            highlight=False,
            soft_wrap=True,
        )
    elif result.succeeded:
        console.print(f"Run {result.run_id}: no message is due that can be sent now.", highlight=False, soft_wrap=True)
    waits = _waits(url)
    for name, reason in waits[:_SHOWN_WAITS]:
        console.print(Text(f"{name} waits: {reason}", style="yellow"))
    if len(waits) > _SHOWN_WAITS:
        console.print(Text(f"… and {len(waits) - _SHOWN_WAITS} more runs wait; see campaign_runs.wait_reason."))


def _waits(url: str) -> list[tuple[str, str]]:
    from campaign_pipeline.adapters.queue_connection import connect

    with connect(url) as connection:
        rows = connection.execute(
            "SELECT COALESCE(name, id::text), wait_reason FROM public.campaign_runs "
            "WHERE status = 'running' AND wait_reason IS NOT NULL ORDER BY id"
        ).fetchall()
    return [(row[0], row[1]) for row in rows]


COMMANDS = (process,)
