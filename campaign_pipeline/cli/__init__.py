"""`campaign-pipeline`: the operator's command line.

Exit codes: 0 it worked (messages that failed are data, not a failure), 1 the pipeline could not work, 2 wrong usage or
configuration, 130 interrupted. What only some commands need is imported by them: help and errors answer at once.
"""

from __future__ import annotations

import getpass
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import click

from campaign_pipeline.adapters.environment import DeliverySettings, Environment, SettingError
from campaign_pipeline.cli.crm import crm

if TYPE_CHECKING:
    from rich.console import Console

    from campaign_pipeline.adapters.consent import Consent
    from campaign_pipeline.launch import JobResult

INTERRUPTED = 130
DEV_LEADS = 60
"""Messages that `dev` puts in an empty queue, so that a first launch from the UI has something to send."""

_STOP_PATIENCE = 60.0  # seconds for Dagster's processes, and the runs that they started, to end
_SHOWN_WAITS = 20

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


class Trouble(click.ClickException):
    """The pipeline could not work; one sentence says why."""

    exit_code = 1


class WrongSetting(Trouble):
    """What it was told cannot be; one sentence says what would be right."""

    exit_code = 2


class _Plainly(click.Group):
    """Commands that end in one sentence where the trouble is known, and with status 130 where they are interrupted."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            raise click.exceptions.Exit(INTERRUPTED) from None
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            trouble = _known_trouble(error)
            if trouble is None:
                raise
            raise trouble from None


def _known_trouble(error: Exception) -> Trouble | None:
    """The one sentence for what an operator can mend; None for a bug of ours, whose traceback is wanted."""
    from psycopg import Error as DatabaseError
    from sqlalchemy.exc import SQLAlchemyError

    from campaign_pipeline.adapters.embedded import EmbeddedServerFailed
    from campaign_pipeline.adapters.schema import DatabaseUnusable
    from campaign_pipeline.leads.model import LeadsFileError
    from campaign_pipeline.sandbox import BehaviourError, RecordError, SandboxFailed

    if isinstance(error, SettingError | LeadsFileError | BehaviourError | RecordError):
        return WrongSetting(str(error))
    if isinstance(error, DatabaseUnusable | EmbeddedServerFailed | SandboxFailed):
        return Trouble(str(error))
    if isinstance(error, DatabaseError | SQLAlchemyError):
        return Trouble(f"The database refused: {_first_line(error)}")
    if isinstance(error, OSError):
        return Trouble(_first_line(error))
    return None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@click.group(
    cls=_Plainly,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 it worked (messages that failed are data, see the tables), 1 the pipeline could not work, "
    "2 wrong usage or configuration, 130 interrupted.",
)
@click.version_option(package_name="campaign_pipeline")
def cli() -> None:
    """Send the outbound campaigns of a CRM: nothing sent twice, nothing lost.

    The queue is the database that CAMPAIGN_DATABASE_URL names, else an embedded PostgreSQL under CAMPAIGN_HOME
    (.campaign in the current folder).
    """


cli.add_command(crm)


_map_option = click.option(
    "--map",
    "mapping",
    multiple=True,
    metavar='FIELD="COLUMN"',
    help="Which column holds a field, by its heading or number: name, company, phone, email, value, priority, tags, "
    "notes, cnpj. May be repeated: phones are tried in this order, names are joined.",
)


@cli.command()
@click.option(
    "--leads",
    "leads_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A CSV, XLSX, XLS or ODS file of leads instead of made-up ones. Columns are known by name (Nome, Telefone, "
    "Empresa, …), others become custom fields; rows that cannot be used are named by line.",
)
@_map_option
@click.option(
    "--count", type=click.IntRange(1, 10_000), default=300, show_default=True, help="How many leads to make up."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the leads, latencies and faults.")
def demo(leads_file: Path | None, mapping: tuple[str, ...], count: int, seed: int) -> None:
    """Run the real job on a made-up CRM, and show what came of it.

    Always on the embedded database and against sandbox providers on this machine: no real message is sent, whatever
    the environment says.
    """
    from campaign_pipeline.demo.demo import run_demo
    from campaign_pipeline.launch import interrupted_by_signals

    with interrupted_by_signals():
        worked = run_demo(_console(), leads_file, count, seed, _mapping(mapping))
    sys.exit(0 if worked else 1)


@cli.command()
@click.argument("leads_file", type=click.Path(path_type=Path), metavar="FILE")
@_map_option
def leads(leads_file: Path, mapping: tuple[str, ...]) -> None:
    """Read a file of leads and show how: its columns, every row that is left out and why. Nothing is written.

    Exit code 1 where rows were left out.
    """
    from campaign_pipeline.leads.reading import read_leads
    from campaign_pipeline.leads.report import show_reading

    read = read_leads(leads_file, _mapping(mapping))
    show_reading(_console(), leads_file.name, read, most_problems=None)
    click.echo(f"{leads_file}: {len(read.leads):,} leads.")
    sys.exit(1 if read.problems else 0)


def _mapping(given: tuple[str, ...]) -> dict[str, list[str]]:
    """Field -> headings, of options like phone=Telefone 2."""
    mapping: dict[str, list[str]] = {}
    for each in given:
        name, equals, heading = each.partition("=")
        if not equals or not heading.strip():
            raise WrongSetting(f'--map is {each!r}, but must name a field and a column, like phone="Telefone 2".')
        mapping.setdefault(name.strip().lower(), []).append(heading.strip())
    return mapping


@cli.group()
def db() -> None:
    """The queue's database."""


@db.command()
def upgrade() -> None:
    """Bring the database up to date: the CRM's tables where they are missing, and what the pipeline adds to them.

    While others work on it: in short steps, none of which keeps a writer waiting. Interrupted anywhere, it is taken up
    again by the next call; harmless when there is nothing to do.
    """
    from campaign_pipeline.adapters import schema

    url = _plain_url()
    revision = schema.upgrade(url, say=lambda text: click.echo(text, err=True))
    click.echo(f"{schema.describe(url)} has schema {revision}.")


@db.command()
@click.option("--hold", is_flag=True, help="Keep the embedded server up until interrupted, for psql and the like.")
def url(hold: bool) -> None:
    """Print the database's URL, password included.

    The embedded server runs only while somebody uses it: `dev`, a run, or this command with --hold.
    """
    from campaign_pipeline.launch import interrupted_by_signals

    click.echo(_plain_url())
    if hold:
        click.echo("Ctrl-C lets go of it.", err=True)
        with interrupted_by_signals():
            signal.pause()


def _plain_url() -> str:
    """The database's URL, whatever its schema; the embedded server is started."""
    from campaign_pipeline.adapters.database import named_url
    from campaign_pipeline.adapters.embedded import embedded_server
    from campaign_pipeline.launch import uninterrupted

    environment = Environment.read()
    if environment.database_url is not None:
        return named_url(environment)
    with uninterrupted():
        return embedded_server(environment.home).url()


@cli.command()
@click.option(
    "--batch-size",
    type=click.IntRange(1, 10_000),
    default=1000,
    show_default=True,
    help="How many due messages to claim at most.",
)
@click.option(
    "--shard-size",
    type=click.IntRange(1, 10_000),
    default=250,
    show_default=True,
    help="How many messages one step sends at most.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 500),
    default=20,
    show_default=True,
    help="How many messages of a step are in flight at once.",
)
@click.option(
    "--in-process", is_flag=True, help="All steps in one process, one after another: quickest for few messages."
)
def process(batch_size: int, shard_size: int, concurrency: int, in_process: bool) -> None:
    """Send one batch of what is due: one run of the job process_campaign_queue.

    With DAGSTER_HOME set, the run is kept there; else where `dev` shows it.
    """
    from campaign_pipeline.adapters.database import queue_url
    from campaign_pipeline.launch import JobConfig, JobProcess, follow, interrupted_by_signals, uninterrupted

    console = _console()
    DeliverySettings.from_environment()
    environment = Environment.read()
    with console.status("Connecting to the database"), uninterrupted():
        url = queue_url(environment)
        dagster_home = _dagster_home(environment)
    variables = {**os.environ, "CAMPAIGN_HOME": str(environment.home)}
    config = JobConfig(batch_size, shard_size, concurrency, in_process)
    with interrupted_by_signals(), JobProcess(config, dagster_home, environment.home / "logs", variables) as job:
        result = follow(job, url, console)
        log_file = job.log_file
    _show_result(console, result, url)
    if not result.succeeded:
        raise Trouble(" ".join(result.failures) + f" (Dagster's log: {log_file})")


def _dagster_home(environment: Environment) -> Path:
    """The person's own DAGSTER_HOME, else ours."""
    from campaign_pipeline.adapters.dagster_home import write_dagster_home
    from campaign_pipeline.adapters.database import dagster_storage_url

    own = os.environ.get("DAGSTER_HOME", "").strip()
    if own and not (Path(own).is_absolute() and Path(own).is_dir()):
        raise SettingError(f"DAGSTER_HOME is {own}, but must be the absolute path of a folder that exists.")
    return Path(own) if own else write_dagster_home(environment.home, dagster_storage_url(environment))


def _show_result(console: Console, result: JobResult, url: str) -> None:
    """Say what became of the batch, and which runs wait for what."""
    from rich.text import Text

    def whole(name: str) -> str:
        return f"{int(result.totals.get(name, 0)):,}"

    if result.totals.get("messages"):
        console.print(
            f"Run {result.run_id}: {whole('messages')} claimed, {whole('sent')} sent, {whole('failed')} failed, "
            f"{whole('skipped')} skipped, {whole('returned')} returned to the queue; "
            f"{whole('runs_closed')} campaign runs closed; {whole('tokens')} tokens, "
            f"US$ {result.totals.get('cost_usd', 0):.4f}.",
            highlight=False,
            soft_wrap=True,
        )
    elif result.succeeded:
        console.print(f"Run {result.run_id}: nothing was due that may be sent now.", highlight=False, soft_wrap=True)
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


def _behaviour_options(command: F) -> F:
    """The flags of `python -m campaign_pipeline.sandbox`."""
    options = (
        click.option("--seed", type=int, help="Of latencies and faults."),
        click.option("--generation-latency", type=float, metavar="SECONDS", help="Mean; 0.7 unless a file says so."),
        click.option("--generation-sigma", type=float, metavar="SIGMA", help="Spread; above 0 it is log-normal."),
        click.option("--send-latency", type=float, metavar="SECONDS", help="Mean; 0.2 unless a file says so."),
        click.option("--send-sigma", type=float, metavar="SIGMA", help="Spread; above 0 it is log-normal."),
        click.option(
            "--fault",
            "faults",
            multiple=True,
            metavar="RULE",
            help="[provider/]kind:name[:key=value]..., with the keys rate, phone, text, instance, times, times_each, "
            "seconds, accepts; may be repeated, the first that applies wins. Example: send:not_on_whatsapp:rate=0.02",
        ),
        click.option("--behaviour-file", type=click.Path(path_type=Path), help="A whole behaviour as JSON."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@cli.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="Port to listen on; any that is free by default."
)
@_behaviour_options
@click.option("--record-file", type=click.Path(path_type=Path), help="Keep what is accepted here, a line each.")
@click.option("--ready-file", type=click.Path(path_type=Path), help="Write address and URLs here when serving.")
@click.option("--list-faults", is_flag=True, help="Print every fault and what it does, and leave.")
def sandbox(
    host: str, port: int, record_file: Path | None, ready_file: Path | None, list_faults: bool, **flags: Any
) -> None:
    """Serve stand-ins for OpenRouter, Evolution and UAZAPI over HTTP, until interrupted.

    What they received is told at /_sandbox/record and counted at /_sandbox/summary.
    """
    from campaign_pipeline.sandbox import FAULTS, Sandbox, SandboxOptions, behaviour_from_flags, serve

    if list_faults:
        for kind, faults in FAULTS.items():
            click.echo(f"{kind.value}")
            for name, meaning in faults.items():
                click.echo(f"  {name:22} {meaning}")
        return

    def announce(sandbox: Sandbox) -> None:
        click.echo(f"The sandbox serves at {sandbox.url}; Ctrl-C stops it. Point the pipeline at it with:")
        click.echo("  export OPENROUTER_API_KEY=any EVOLUTION_API_KEY=any")
        click.echo(f"  export OPENROUTER_BASE_URL={sandbox.openrouter_url}")
        click.echo(f"  export EVOLUTION_API_URL={sandbox.evolution_url}")
        click.echo(f"  export UAZAPI_API_URL={sandbox.uazapi_url}")
        click.echo(f"  export CLOUD_API_URL={sandbox.cloud_api_url}")
        click.echo(f"  export SUPABASE_URL={sandbox.supabase_url}")

    behaviour = behaviour_from_flags(**flags)
    serve(SandboxOptions(host, port, behaviour, record_file, ready_file), announce)


@cli.command()
@click.option("--port", type=click.IntRange(1, 65535), default=3000, show_default=True, help="Of the UI, on 127.0.0.1.")
@click.option(
    "--sandbox/--no-sandbox",
    "sandboxed",
    default=None,
    help="Whether providers are a sandbox. By default they are if OPENROUTER_API_KEY is not set and the embedded "
    "database holds no waiting messages of your own.",
)
def dev(port: int, sandboxed: bool | None) -> None:
    """Start Dagster's UI and daemon on 127.0.0.1, for the same database as the other commands.

    Runs are kept in the database `dagster` of the embedded server. Where that server holds nothing but demos and the
    providers are the sandbox, made-up messages become due every minute and are sent by the schedule. Elsewhere nothing
    is sent until the schedule process_campaign_queue_every_minute is switched on in the UI, or by
    CAMPAIGN_SCHEDULES=on.
    """
    import contextlib

    from campaign_pipeline.adapters.dagster_home import write_dagster_home
    from campaign_pipeline.adapters.database import dagster_storage_url, queue_url
    from campaign_pipeline.demo.demo import sandbox_behaviour, sandbox_variables
    from campaign_pipeline.launch import interrupted_by_signals, uninterrupted
    from campaign_pipeline.sandbox import SandboxProcess

    console = _console()
    DeliverySettings.from_environment()
    environment = Environment.read()
    _refuse_taken_port(port)
    with interrupted_by_signals(), contextlib.ExitStack() as stack:
        with console.status("Starting PostgreSQL"), uninterrupted():
            url = queue_url(environment)
            home = write_dagster_home(environment.home, dagster_storage_url(environment))
        variables = {**os.environ, "CAMPAIGN_HOME": str(environment.home)}
        if _wants_sandbox(console, environment, url, sandboxed):
            sandbox = stack.enter_context(SandboxProcess(sandbox_behaviour(seed=0)))
            # Made-up messages wait until somebody launches the job, be it tomorrow.
            variables = {"CAMPAIGN_MAX_AGE_MINUTES": "100000"} | sandbox_variables(sandbox, variables)
            console.print(
                f"Every provider is a sandbox at {sandbox.url}, and nothing else can be reached: "
                "no real message is sent.",
                soft_wrap=True,
            )
            if _is_demo(environment, url):
                _fill_empty_queue(console, url)
                variables = {"CAMPAIGN_SCHEDULES": "on"} | variables | {"CAMPAIGN_DEMO_TRICKLE": "on"}
        if variables.get("CAMPAIGN_SCHEDULES", "").strip().lower() != "on":
            console.print(
                "Nothing is sent by itself: for that, switch on the schedule process_campaign_queue_every_minute."
            )
        console.print(
            f"The UI will be at http://127.0.0.1:{port} in a few seconds; Ctrl-C stops it. To launch the job: "
            f"http://127.0.0.1:{port}/locations/campaign_pipeline/jobs/process_campaign_queue/playground",
            highlight=False,
            soft_wrap=True,
        )
        _run_dagster_dev(home, port, variables)


def _refuse_taken_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            sentence = f"Port {port} on 127.0.0.1 cannot be used ({error.strerror}); choose another with --port."
            raise WrongSetting(sentence) from None


def _wants_sandbox(console: Console, environment: Environment, url: str, sandboxed: bool | None) -> bool:
    """Never by itself where somebody's own messages would be marked as sent without having been."""
    from campaign_pipeline.demo.world import count_waiting

    if sandboxed is not None or environment.openrouter_api_key is not None:
        return bool(sandboxed)
    own = environment.database_url is not None or count_waiting(url)[1] > 0
    if own:
        console.print(
            "OPENROUTER_API_KEY is not set, so only workspaces with a key of their own send; set it, or try with "
            "--sandbox."
        )
    return not own


def _is_demo(environment: Environment, url: str) -> bool:
    """Whether nobody but the demo ever made a workspace: a sandbox may send there by itself."""
    from campaign_pipeline.demo.world import holds_only_demos

    return environment.database_url is None and holds_only_demos(url)


def _fill_empty_queue(console: Console, url: str) -> None:
    from campaign_pipeline.demo.leads import make_leads
    from campaign_pipeline.demo.world import count_waiting, make_world

    if count_waiting(url) == (0, 0):
        make_world(url, make_leads(DEV_LEADS, seed=1), "Dev")
        console.print(f"The queue was empty: {DEV_LEADS} made-up messages are due now.", highlight=False)
    console.print(
        "More become due every minute, and the schedule process_campaign_queue_every_minute sends them.",
        highlight=False,
    )


def _run_dagster_dev(home: Path, port: int, variables: dict[str, str]) -> None:
    """Run `dagster dev` until interrupted; leave none of its processes behind."""
    command = [sys.executable, "-W", "ignore", "-m", "dagster", "dev", "-w", str(home / "workspace.yaml")]
    command += ["-h", "127.0.0.1", "-p", str(port)]
    child = subprocess.Popen(  # noqa: S603 (our own arguments, without a shell)
        command,
        env={**variables, "DAGSTER_HOME": str(home), "DAGSTER_DISABLE_TELEMETRY": "1"},
        # A session of its own: Ctrl-C reaches us alone, and all that it started can be found again.
        start_new_session=True,
    )
    try:
        status = child.wait()
    except KeyboardInterrupt:
        click.echo("Stopping Dagster …", err=True)
    else:
        raise Trouble(f"Dagster ended by itself with status {status}; what it said is above.")
    finally:
        _end_group(child)


def _end_group(leader: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started: runs finish what is in flight; what does not end in time is killed."""
    try:
        _signal_group(leader, signal.SIGINT)
        leader.wait(_STOP_PATIENCE)
        deadline = time.monotonic() + _STOP_PATIENCE
        while _signal_group(leader, 0) and time.monotonic() < deadline:
            time.sleep(0.1)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        pass  # no more patience: ours, or theirs who interrupt a second time
    _signal_group(leader, signal.SIGKILL)
    leader.wait()


def _signal_group(leader: subprocess.Popen[bytes], number: int) -> bool:
    """Signal all that is left of a process's group; returns whether anything was."""
    try:
        os.killpg(leader.pid, number)
    except ProcessLookupError:
        return False
    return True


@cli.group()
def consent() -> None:
    """Who may not be written to, and what is stored of a person (LGPD).

    Opt-outs in replies (SAIR, PARAR, STOP, …) and refusals of providers suppress by themselves; this is by hand.
    """


def _whom_options(command: F) -> F:
    options = (
        click.option("--lead", "lead_id", type=click.UUID, metavar="ID", help="The lead, at whatever address."),
        click.option("--address", metavar="TEXT", help="A phone number or an e-mail address, however it is written."),
        click.option("--workspace", "workspace_id", type=click.UUID, metavar="ID", help="Only in this workspace."),
        click.option("--channel", type=click.Choice(["whatsapp", "email"]), help="Only in this channel."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _ask_consent(question: Callable[[Consent], Coroutine[Any, Any, T]]) -> T:
    """Ask the queue's database; its refusal is one sentence."""
    import asyncio

    from campaign_pipeline.adapters.consent import Consent, ConsentRefused
    from campaign_pipeline.adapters.database import queue_url
    from campaign_pipeline.core.ports import StoreUnavailable
    from campaign_pipeline.launch import uninterrupted

    with uninterrupted():
        url = queue_url(Environment.read())
    try:
        return asyncio.run(question(Consent(url, patience_seconds=10.0)))
    except (ConsentRefused, StoreUnavailable) as error:
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
@click.option("--by", default=getpass.getuser, show_default="your login name", help="Who lifts it.")
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
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="How many at most.")
def list_(limit: int, **whom: Any) -> None:
    """Show the suppressions that hold, the newest first; addresses masked."""
    from rich.table import Table

    from campaign_pipeline.adapters.consent import Whom
    from campaign_pipeline.core.address import masked

    rows = _ask_consent(lambda consent: consent.suppressions(Whom(**whom), limit))
    table = Table("id", "since", "scope", "address", "lead", "source", "reason", box=None)
    for row in rows:
        scope = " ".join(str(row[name]) for name in ("scope", "channel", "workspace_id") if row[name])
        address = masked(row["address"]) if row["address"] else "erased" if row["source"] == "erasure" else ""
        table.add_row(
            str(row["id"]),
            f"{row['since']:%Y-%m-%d %H:%M}",
            scope,
            address,
            str(row["lead_id"] or ""),
            row["source"],
            row["reason"] or "",
        )
    _console().print(table if table.row_count else "Nobody is suppressed.")


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
@click.option("--by", default=getpass.getuser, show_default="your login name", help="Who erases; it is kept.")
@click.option("--yes", is_flag=True, help="Do not ask.")
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


def _console() -> Console:
    from rich.console import Console

    return Console()


def main() -> None:
    """The console script."""
    try:
        cli(prog_name="campaign-pipeline")
    finally:
        # What is left to do is to stop the embedded server, which an impatient second Ctrl-C must not cut short.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
