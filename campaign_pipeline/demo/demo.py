"""The demo: a sample CRM, the real job on a real PostgreSQL, and mock providers on this machine."""

import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.text import Text

from campaign_pipeline.adapters.dagster_home import write_dagster_home
from campaign_pipeline.adapters.database import dagster_storage_url, queue_url
from campaign_pipeline.adapters.environment import PROVIDER_PREFIXES, Environment, SettingError
from campaign_pipeline.adapters.hosts import HOST_VARIABLES, ONLY_HOSTS, SANDBOX
from campaign_pipeline.demo.leads import make_leads
from campaign_pipeline.demo.report import read_report, read_samples, report_table, sample_panels
from campaign_pipeline.demo.world import World, count_waiting, make_world
from campaign_pipeline.launch import JobConfig, JobProcess, JobResult, follow, uninterrupted
from campaign_pipeline.leads import Lead, LeadsFileError, read_leads
from campaign_pipeline.leads.report import show_reading
from campaign_pipeline.sandbox import Behaviour, Fault, Kind, Latency, SandboxProcess

MOST_LEADS = 10_000
"""The demo is one batch, and a batch holds no more."""

_OUTSIDE = ("OPENROUTER_", *PROVIDER_PREFIXES, "CAMPAIGN_NOTIFY_", "CAMPAIGN_SMTP_", *HOST_VARIABLES)
_KEY = "only-for-the-sandbox"


def sandbox_behaviour(seed: int) -> Behaviour:
    """Return the behaviour of fast providers that do not know a few numbers."""
    return Behaviour(
        seed=seed,
        latencies={Kind.GENERATION: Latency(0.7, 0.4), Kind.SEND: Latency(0.2, 0.4)},
        faults=(Fault(Kind.SEND, "not_on_whatsapp", rate=0.03),),
    )


def sandbox_variables(sandbox: SandboxProcess, variables: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which every provider is the sandbox, without real keys and addresses.

    No other host can be reached, whatever a row, a redirect or a `.env` file says, and no notices are sent. Dagster's
    processes inherit these variables.
    """
    kept = {name: value for name, value in variables.items() if not name.startswith(_OUTSIDE)}
    return kept | {
        SANDBOX: "on",
        ONLY_HOSTS: f"{sandbox.host}:{sandbox.port}",
        "OPENROUTER_API_KEY": _KEY,
        "OPENROUTER_BASE_URL": sandbox.openrouter_url,
        "EVOLUTION_API_URL": sandbox.evolution_url,
        "EVOLUTION_API_KEY": _KEY,
        "UAZAPI_API_URL": sandbox.uazapi_url,
        "CLOUD_API_URL": sandbox.cloud_api_url,
        "CLOUD_API_TOKEN": _KEY,
        "SUPABASE_URL": sandbox.supabase_url,
        "SUPABASE_SERVICE_ROLE_KEY": _KEY,
    }


def refuse_foreign_messages(url: str, what: str) -> None:
    """Refuse to start if real messages wait: a sandbox would mark them as sent.

    Raises SettingError, which says what to do.
    """
    _, foreign = count_waiting(url)
    if foreign:
        raise SettingError(
            f"The database holds {foreign:,} waiting messages of your own workspaces, and {what} would mark them as "
            "sent; use another database for it, or another folder as CAMPAIGN_HOME."
        )


def gather_leads(
    console: Console, leads_file: Path | None, count: int, seed: int, mapping: Mapping[str, Sequence[str]] | None = None
) -> list[Lead]:
    """Read the leads of a file and show how it was read, or generate leads.

    `mapping`: field -> headings, where a person says which column is what. Raises LeadsFileError where a file has
    nothing to send to, or too much.
    """
    if leads_file is None:
        return make_leads(count, seed)
    read = read_leads(leads_file, mapping)
    show_reading(console, leads_file.name, read)
    if not read.leads:
        raise LeadsFileError(f"{leads_file} has no row that can be used: correct the rows listed above.")
    if len(read.leads) > MOST_LEADS:
        raise LeadsFileError(f"{leads_file} has {len(read.leads):,} leads, but the demo allows at most {MOST_LEADS:,}.")
    console.print(f"{leads_file}: {len(read.leads):,} leads.", markup=False, highlight=False)
    return read.leads


def run_demo(
    console: Console, leads_file: Path | None, count: int, seed: int, mapping: Mapping[str, Sequence[str]] | None = None
) -> bool:
    """Create a sample CRM, run the job against a sandbox, and show the results. Return whether the job succeeded.

    It works on the embedded database and on its own sandbox, whatever the environment says. Stopped by
    KeyboardInterrupt, it leaves no process behind, and what was not sent waits as pending.

    Raises LeadsFileError, SettingError, schema.DatabaseUnusable, SandboxFailed.
    """
    leads = gather_leads(console, leads_file, count, seed, mapping)
    variables = {name: value for name, value in os.environ.items() if name != "CAMPAIGN_DATABASE_URL"}
    if "CAMPAIGN_DATABASE_URL" in os.environ:
        console.print("CAMPAIGN_DATABASE_URL is ignored: the demo uses the embedded database.")
    environment = Environment.read(variables)
    with console.status("Starting PostgreSQL"), uninterrupted():
        url = queue_url(environment)
        dagster_home = write_dagster_home(environment.home, dagster_storage_url(environment))
    refuse_foreign_messages(url, "the demo")
    world = make_world(url, leads, f"Demo {datetime.now().astimezone():%Y-%m-%d %H:%M:%S}")
    console.print(
        f"A workspace with 2 inboxes, {len(world.runs)} campaigns and {world.messages:,} leads "
        f"in the embedded PostgreSQL under {environment.home}.",
        highlight=False,
    )
    with SandboxProcess(sandbox_behaviour(seed)) as sandbox:
        console.print(
            f"All providers are the sandbox at {sandbox.url}. No other host can be reached."
            " No real message leaves this machine."
        )
        job_variables = sandbox_variables(sandbox, variables) | {"CAMPAIGN_HOME": str(environment.home)}
        config = JobConfig(batch_size=MOST_LEADS)
        with JobProcess(config, dagster_home, environment.home / "logs", job_variables) as job:
            result = follow(job, url, console)
            log_file = job.log_file
    _show(console, url, world, result)
    if not result.succeeded:
        console.print(Text(f"Dagster's log of the run: {log_file}"))
    return result.succeeded


def _show(console: Console, url: str, world: World, result: JobResult) -> None:
    runs = list(world.runs.values())
    console.print()
    console.print(report_table(read_report(url, runs)))
    console.print()
    console.print(sample_panels(read_samples(url, runs)))
    for failure in result.failures:
        console.print(Text(failure, style="red"))
    if result.run_id is None:
        return
    console.print()
    console.print(
        f"The same run in Dagster's UI: [bold]{dev_command()}[/bold], then open\n"
        f"http://127.0.0.1:3000/runs/{result.run_id}",
        highlight=False,
        soft_wrap=True,
    )


def dev_command() -> str:
    """Return the command that starts the UI: make in a checkout, otherwise the console script."""
    return "make dev" if Path("Makefile").is_file() and Path("workspace.yaml").is_file() else "campaign-pipeline dev"
