"""A sample CRM: one workspace, two inboxes, three campaigns, their leads and due messages."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from psycopg.types.json import Jsonb

from campaign_pipeline.adapters.operations import DEMO
from campaign_pipeline.adapters.queue_connection import connect
from campaign_pipeline.adapters.unconfigured import SANDBOX_ONLY
from campaign_pipeline.leads import BUSINESS_FIELDS, Lead

if TYPE_CHECKING:
    import psycopg

MODEL = "openai/gpt-4o-mini"


@dataclass(frozen=True)
class Campaign:
    """A campaign of the demo: its instructions and its inbox."""

    name: str
    inbox: str
    instructions: str
    split: bool = False


CAMPAIGNS = (
    Campaign(
        "Primeiro contato",
        "Vendas",
        "Você é consultora da Aurora, que vende um sistema de atendimento por WhatsApp para pequenas empresas. "
        "Apresente-se em poucas linhas, mostre que conhece o ramo do cliente e pergunte se pode explicar mais.",
    ),
    Campaign(
        "Reativação de orçamentos",
        "Vendas",
        "Você é consultora da Aurora. O cliente pediu um orçamento há algum tempo e não respondeu. Retome a conversa "
        "com leveza, lembre um benefício concreto para o negócio dele e ofereça uma condição para este mês.",
        split=True,
    ),
    Campaign(
        "Diagnóstico gratuito",
        "Relacionamento",
        "Você é da equipe de relacionamento da Aurora. Convide o cliente para um diagnóstico gratuito de quinze "
        "minutos, por vídeo, e sugira dois horários nesta semana. Seja cordial e direta.",
    ),
)


@dataclass(frozen=True)
class World:
    """The sample CRM: the run of each campaign, by the campaign's name."""

    workspace_id: UUID
    runs: dict[str, UUID]
    messages: int


def make_world(url: str, leads: Sequence[Lead], name: str) -> World:
    """Create a workspace, and distribute the leads over the campaigns, in one transaction. Every message is due now."""
    with connect(url) as connection, connection.transaction(), connection.cursor() as cursor:
        return _Maker(cursor, uuid4()).make(leads, name)


class _Maker:
    """Writes the rows of one workspace."""

    def __init__(self, cursor: "psycopg.Cursor[tuple[object, ...]]", workspace_id: UUID) -> None:
        self._cursor = cursor
        self._workspace = workspace_id

    def make(self, leads: Sequence[Lead], name: str) -> World:
        self._cursor.execute(
            "INSERT INTO public.workspaces (id, name, slug, settings) VALUES (%s, %s, %s, %s)",
            [self._workspace, name, f"demo-{self._workspace.hex[:8]}", Jsonb({"made_by": DEMO})],
        )
        self._cursor.execute(
            "INSERT INTO public.ai_agents (workspace_id, name, model) VALUES (%s, 'Aurora', %s)",
            [self._workspace, MODEL],
        )
        funnel, source, target = self._make_funnel()
        lead_ids = self._make_leads(leads, funnel, source)
        self._make_custom_values(leads, lead_ids)
        inboxes = {inbox: self._make_inbox(inbox) for inbox in dict.fromkeys(c.inbox for c in CAMPAIGNS)}
        runs: dict[str, UUID] = {}
        for no, campaign in enumerate(CAMPAIGNS):
            config = uuid4()
            self._cursor.execute(
                "INSERT INTO public.campaign_configs (id, workspace_id, inbox_id, source_funnel_id, source_column_id, "
                "target_column_id, name, ai_instructions, split_messages) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
                (
                    *(config, self._workspace, inboxes[campaign.inbox], funnel, source, target),
                    *(campaign.name, campaign.instructions, campaign.split),
                ),
            )
            mine = range(no, len(leads), len(CAMPAIGNS))
            runs[campaign.name] = self._make_run(config, campaign, [(lead_ids[i], leads[i].phone) for i in mine])
        return World(self._workspace, runs, len(leads))

    def _make_funnel(self) -> tuple[UUID, UUID, UUID]:
        funnel, source, target = uuid4(), uuid4(), uuid4()
        self._cursor.execute(
            "INSERT INTO public.funnels (id, workspace_id, name, position) VALUES (%s, %s, 'Prospecção', 1)",
            [funnel, self._workspace],
        )
        self._cursor.executemany(
            "INSERT INTO public.funnel_columns (id, funnel_id, title, position) VALUES (%s, %s, %s, %s)",
            [(source, funnel, "Novos", 1), (target, funnel, "Contatados", 2)],
        )
        return funnel, source, target

    def _make_inbox(self, name: str) -> UUID:
        inbox, instance = uuid4(), uuid4()
        self._cursor.execute(
            "INSERT INTO public.inboxes (id, workspace_id, name) VALUES (%s, %s, %s)", [inbox, self._workspace, name]
        )
        self._cursor.execute(
            "INSERT INTO public.instances (id, workspace_id, name, instance_token, provider_config, status, "
            "last_connected_at) VALUES (%s, %s, %s, %s, %s, 'connected', campaign_pipeline.campaign_now())",
            (
                *(instance, self._workspace, f"demo-{name.lower()}-{inbox.hex[:8]}"),
                *("only-for-the-sandbox", Jsonb({SANDBOX_ONLY: True})),
            ),
        )
        self._cursor.execute(
            "INSERT INTO public.inbox_instances (inbox_id, instance_id) VALUES (%s, %s)", [inbox, instance]
        )
        return inbox

    def _make_leads(self, leads: Sequence[Lead], funnel: UUID, column: UUID) -> list[UUID]:
        ids = [uuid4() for _ in leads]
        with self._cursor.copy(
            "COPY public.leads (id, workspace_id, funnel_id, column_id, client_name, company, phone, deal_value, "
            "priority, tags, notes, cnpj) FROM STDIN"
        ) as copy:
            for lead_id, lead in zip(ids, leads, strict=True):
                copy.write_row(
                    (
                        *(lead_id, self._workspace, funnel, column, lead.client_name, lead.company, lead.phone),
                        *(lead.deal_value, lead.priority, list(lead.tags), lead.notes, lead.cnpj),
                    )
                )
        return ids

    def _make_custom_values(self, leads: Sequence[Lead], lead_ids: Sequence[UUID]) -> None:
        # The company's fields first, in the CRM's order; then the leads' other fields.
        names = dict.fromkeys((*BUSINESS_FIELDS, *(name for lead in leads for name in lead.custom_fields)))
        fields = {name: uuid4() for name in names}
        self._cursor.executemany(
            "INSERT INTO public.custom_fields (id, workspace_id, name, position) VALUES (%s, %s, %s, %s)",
            [(field, self._workspace, name, place) for place, (name, field) in enumerate(fields.items(), start=1)],
        )
        with self._cursor.copy("COPY public.lead_custom_values (lead_id, custom_field_id, value) FROM STDIN") as copy:
            for lead_id, lead in zip(lead_ids, leads, strict=True):
                for name, value in lead.custom_fields.items():
                    copy.write_row((lead_id, fields[name], value))

    def _make_run(self, config: UUID, campaign: Campaign, recipients: Sequence[tuple[UUID, str | None]]) -> UUID:
        run = uuid4()
        self._cursor.execute(
            "INSERT INTO public.campaign_runs (id, config_id, name, run_date, started_at, leads_total) "
            "VALUES (%s, %s, %s, campaign_pipeline.campaign_now()::date, campaign_pipeline.campaign_now(), %s)",
            [run, config, campaign.name, len(recipients)],
        )
        self._cursor.executemany(
            "INSERT INTO public.campaign_messages (run_id, lead_id, phone_number, scheduled_at) "
            "VALUES (%s, %s, %s, campaign_pipeline.campaign_now())",
            [(run, lead, phone) for lead, phone in recipients],
        )
        return run


def count_waiting(url: str) -> tuple[int, int]:
    """Count the waiting messages of running runs: those of demo workspaces, and all others."""
    with connect(url) as connection:
        row = connection.execute(
            """
            SELECT count(*) FILTER (WHERE w.settings ->> 'made_by' = %(made_by)s),
                   count(*) FILTER (WHERE w.settings ->> 'made_by' IS DISTINCT FROM %(made_by)s)
            FROM public.campaign_runs r
            JOIN public.campaign_messages m
              ON m.run_id = r.id AND m.status IN ('pending', 'queued', 'generating', 'sending')
            LEFT JOIN public.campaign_configs c ON c.id = r.config_id
            LEFT JOIN public.workspaces w ON w.id = c.workspace_id
            WHERE r.status = 'running'
            """,
            {"made_by": DEMO},
        ).fetchone()
    assert row is not None
    return row[0], row[1]


def holds_only_demos(url: str) -> bool:
    """Return whether the demo created every workspace of this database."""
    with connect(url) as connection:
        row = connection.execute(
            "SELECT NOT EXISTS (SELECT FROM public.workspaces WHERE settings ->> 'made_by' IS DISTINCT FROM %s)",
            [DEMO],
        ).fetchone()
    assert row is not None
    return bool(row[0])
