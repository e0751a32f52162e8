"""What all races share: a PostgreSQL server, a generated CRM, the theoretical limit, and clocks."""

import contextlib
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import psycopg
from dagster import DagsterInstance
from psycopg.rows import dict_row

from campaign_pipeline.adapters import schema
from campaign_pipeline.adapters.dagster_home import write_dagster_home
from campaign_pipeline.adapters.embedded import DAGSTER_DATABASE, EmbeddedServer, embedded_server
from campaign_pipeline.sandbox import Behaviour, Kind, Latency, SandboxProcess
from campaign_pipeline.sandbox.behaviour import Conduct

T = TypeVar("T")

TEMPLATE = "bench_template"
KEY = "sk-or-benchmark-of-no-account"
TOKEN = "benchmark-token-of-no-inbox"  # noqa: S105 (the sandbox takes any)

USUAL_LATENCIES = {Kind.GENERATION: Latency(0.7, 0.5), Kind.SEND: Latency(0.2, 0.5)}
"""Seconds, log-normal: the latencies with which the replaced system was measured."""


@dataclass(frozen=True)
class Options:
    """The command's flags."""

    short: bool = False  # tiny sizes, which only prove that a race runs
    seed: int = 1
    repeat: int = 1  # repetitions; medians are reported. With one, all races together take less than 40 minutes
    rows: int = 10_000_000  # of the large queue
    only: tuple[str, ...] = ()  # names of races; empty: all
    out: Path = Path("benchmarks")  # folder of RESULTS.md, plots and plans

    def pick(self, full: T, short: T) -> T:
        """Return the full size, or the short one in a short run."""
        return short if self.short else full

    @property
    def seeds(self) -> Sequence[int]:
        """One seed per repetition."""
        return range(self.seed, self.seed + (1 if self.short else self.repeat))


class Bench:
    """A folder and a PostgreSQL server with production settings (fsync stays on)."""

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="campaign-bench-"))
        self.server: EmbeddedServer = embedded_server(self.home)

    def __enter__(self) -> "Bench":
        with psycopg.connect(self.server.url("postgres"), autocommit=True) as admin:
            admin.execute(f"CREATE DATABASE {TEMPLATE}")
        schema.upgrade(self.server.url(TEMPLATE))
        self.dagster_home = make_dagster_home(self.home, self.server.url(DAGSTER_DATABASE))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.leave()
        shutil.rmtree(self.home, ignore_errors=True)

    @contextlib.contextmanager
    def database(self, name: str) -> Iterator[str]:
        """Create a database with the schema; yield its URL, and drop it afterwards."""
        with psycopg.connect(self.server.url("postgres"), autocommit=True) as admin:
            admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
            admin.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
            try:
                yield self.server.url(name)
            finally:
                admin.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def postgres_version(self) -> str:
        """Return the server's own version string."""
        with psycopg.connect(self.server.url("postgres")) as connection:
            row = connection.execute("SHOW server_version").fetchone()
        assert row is not None
        return str(row[0])

    def environment(self, url: str, sandbox: SandboxProcess) -> dict[str, str]:
        """Return the variables of a process that works a queue against a sandbox, without real keys.

        Python writes compiled modules, as for an installed package.
        """
        ours = ("CAMPAIGN_", "OPENROUTER_", "EVOLUTION_", "UAZAPI_", "DAGSTER_", "PYTHONDONTWRITEBYTECODE")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        root = str(Path(__file__).parents[1])
        return kept | {
            "PYTHONPATH": os.pathsep.join(filter(None, (root, kept.get("PYTHONPATH")))),
            "PYTHONPYCACHEPREFIX": str(self.home / "compiled"),
            "CAMPAIGN_ONLY_HOSTS": f"{sandbox.host}:{sandbox.port}",
            "CAMPAIGN_DATABASE_URL": url,
            "CAMPAIGN_HOME": str(self.home / "unused"),
            "CAMPAIGN_OUTPUTS": str(self.home / "outputs"),
            "CAMPAIGN_MAX_AGE_MINUTES": "100000",
            "DAGSTER_HOME": str(self.dagster_home),
            "DAGSTER_DISABLE_TELEMETRY": "1",
            "OPENROUTER_API_KEY": KEY,
            "OPENROUTER_BASE_URL": sandbox.openrouter_url,
            "EVOLUTION_API_URL": sandbox.evolution_url,
        }


def make_dagster_home(home: Path, storage: str) -> Path:
    """Write Dagster's settings into a folder, as after their first use: its storage has its tables."""
    url = storage.replace("postgresql://", "postgresql+psycopg2://", 1)
    DagsterInstance.from_config(str(write_dagster_home(home, url))).dispose()
    return write_dagster_home(home, url)


# The CRM ------------------------------------------------------------------------------------------------------------

_PEOPLE = """
INSERT INTO public.workspaces (id, name) VALUES (md5('workspace')::uuid, 'Aurora');
INSERT INTO public.ai_agents (workspace_id, model) VALUES (md5('workspace')::uuid, 'openai/gpt-4o-mini');
INSERT INTO public.funnels (id, workspace_id, name) VALUES (md5('funnel')::uuid, md5('workspace')::uuid, 'Prospecção');
INSERT INTO public.funnel_columns (id, funnel_id, title)
VALUES (md5('source')::uuid, md5('funnel')::uuid, 'Novos'), (md5('target')::uuid, md5('funnel')::uuid, 'Contatados');
INSERT INTO public.custom_fields (id, workspace_id, name, position)
SELECT md5('field' || f)::uuid, md5('workspace')::uuid,
       COALESCE((ARRAY['Categoria', 'CNAE Principal', 'Porte da Empresa', 'Razão Social', 'Rating', 'Endereço',
                       'Cidade/UF', 'Website Principal'])[f], 'Campo ' || f), f
FROM generate_series(1, %(fields)s) AS f;
INSERT INTO public.leads (id, workspace_id, funnel_id, column_id, client_name, company, phone, deal_value, priority,
                          tags)
SELECT md5('lead' || n)::uuid, md5('workspace')::uuid, md5('funnel')::uuid, md5('source')::uuid,
       (ARRAY['Ana', 'Bruno', 'Carla', 'Davi', 'Elisa'])[1 + n %% 5] || ' Souza ' || n, 'Padaria ' || n,
       '+55 11 9' || (10000000 + n), 100 * n, 'alta', ARRAY['inbound', 'sp']
FROM generate_series(1, %(leads)s) AS n;
INSERT INTO public.lead_custom_values (lead_id, custom_field_id, value)
SELECT md5('lead' || n)::uuid, md5('field' || f)::uuid, 'Valor ' || f || ' do lead ' || n || ', como o CRM o guarda'
FROM generate_series(1, %(leads)s) AS n, generate_series(1, %(fields)s) AS f
"""

_CAMPAIGNS = """
INSERT INTO public.inboxes (id, workspace_id, name)
SELECT md5('inbox' || i)::uuid, md5('workspace')::uuid, 'Vendas ' || i FROM generate_series(1, %(inboxes)s) AS i;
INSERT INTO public.instances (id, workspace_id, name, instance_token, status)
SELECT md5('instance' || i)::uuid, md5('workspace')::uuid, 'numero_' || i, %(token)s, 'connected'
FROM generate_series(1, %(inboxes)s) AS i;
INSERT INTO public.inbox_instances (inbox_id, instance_id)
SELECT md5('inbox' || i)::uuid, md5('instance' || i)::uuid FROM generate_series(1, %(inboxes)s) AS i;
INSERT INTO public.campaign_configs (id, workspace_id, inbox_id, source_funnel_id, source_column_id, target_column_id,
                                     name, ai_instructions)
SELECT md5('config' || i)::uuid, md5('workspace')::uuid, md5('inbox' || i)::uuid, md5('funnel')::uuid,
       md5('source')::uuid, md5('target')::uuid, 'Primeiro contato ' || i,
       'Você é consultora da Aurora, que vende um sistema de atendimento por WhatsApp para pequenas empresas. '
       || 'Apresente-se em poucas linhas e pergunte se pode explicar mais.'
FROM generate_series(1, %(inboxes)s) AS i;
INSERT INTO public.campaign_runs (id, config_id, name, started_at, leads_total)
SELECT md5('run' || i)::uuid, md5('config' || i)::uuid, 'Hoje', now(), %(leads)s / %(inboxes)s
FROM generate_series(1, %(inboxes)s) AS i;
INSERT INTO public.campaign_messages (id, run_id, lead_id, phone_number, scheduled_at)
SELECT md5('message' || n)::uuid, md5('run' || (1 + n %% %(inboxes)s))::uuid, md5('lead' || n)::uuid,
       '+55 11 9' || (10000000 + n), now() - interval '5 minutes' + n * interval '1 millisecond'
FROM generate_series(1, %(leads)s) AS n
"""


def fill(url: str, messages: int, *, inboxes: int = 1, custom_fields: int = 8) -> None:
    """Fill a new database: one due message per lead, spread evenly over inboxes with one campaign and one run each.

    Ids are hashes of the number: every contestant makes the same requests and gets the same latencies.
    """
    values = {"leads": messages, "inboxes": inboxes, "fields": custom_fields, "token": TOKEN}
    with psycopg.connect(url, autocommit=True, cursor_factory=psycopg.ClientCursor) as connection:
        connection.execute(_PEOPLE, values)
        connection.execute(_CAMPAIGNS, values)
        # Otherwise autovacuum would run during a race. Only filled tables: the planner assumes that a table that was
        # vacuumed while empty stays empty.
        for table in ("leads", "custom_fields", "lead_custom_values", "campaign_runs", "campaign_messages"):
            connection.execute(f"VACUUM ANALYZE {table}")


def count_statuses(url: str) -> dict[str, int]:
    """Count the messages by status."""
    with psycopg.connect(url, row_factory=dict_row) as connection:
        rows = connection.execute(
            "SELECT status, count(*) AS n FROM public.campaign_messages GROUP BY status"
        ).fetchall()
    return {row["status"]: row["n"] for row in rows}


# The limit ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawn:
    """The sandbox's requests, and the latencies that it drew for them."""

    generations: int
    sends: int
    seconds: float  # of all latencies together
    twice: int  # messages that were sent more than once: must be 0

    def limit(self, in_flight: int) -> float:
        """Return the theoretical minimum, in seconds, with so many requests in flight."""
        return self.seconds / in_flight


def read_drawn(sandbox: SandboxProcess, behaviour: Behaviour) -> Drawn:
    """Recompute from the seed every latency since the sandbox was reset. This is independent of measured time."""
    conduct = Conduct(behaviour)
    counts = {Kind.GENERATION: 0, Kind.SEND: 0}
    seconds = 0.0
    for entry in sandbox.record():
        kind = Kind(entry["kind"])
        if kind is Kind.GENERATION:
            key = entry["prompt"]
        elif kind is Kind.SEND:
            key = f"{entry['instance']}\x1f{entry['number']}\x1f{entry['text']}"
        else:
            continue
        counts[kind] += 1
        seconds += conduct.latency(kind, key)
    twice = len(sandbox.summary()["accepted_twice"])
    return Drawn(counts[Kind.GENERATION], counts[Kind.SEND], seconds, twice)


def progress(text: str) -> None:
    """Print a line of progress to stderr: some races take minutes."""
    print(f"  {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


# Clocks -------------------------------------------------------------------------------------------------------------


@dataclass
class Times:
    """Repeated measurements of one call, in seconds."""

    seconds: list[float] = field(default_factory=list)

    def time(self, call: Callable[[], T]) -> T:
        """Measure one call."""
        started = time.perf_counter()
        result = call()
        self.seconds.append(time.perf_counter() - started)
        return result

    @property
    def median(self) -> float:
        """Return the median in seconds."""
        return statistics.median(self.seconds)

    @property
    def ms(self) -> float:
        """Return the median in milliseconds."""
        return 1000 * self.median


def medians(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the median of each figure over the repetitions."""
    gathered: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            gathered.setdefault(name, []).append(value)
    return {name: statistics.median(values) for name, values in gathered.items()}


def plain_environment(**more: Any) -> dict[str, str]:
    """Return this process's environment plus some variables, for a rival's process."""
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, **{name: str(value) for name, value in more.items()}}
