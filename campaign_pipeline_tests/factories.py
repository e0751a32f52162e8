"""Factories named by the state that they create, over one plain connection; and recounts of the invariants."""

from datetime import timedelta
from types import TracebackType
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

COUNTERS_EQUAL_RECOUNT = """
    SELECT r.id, r.leads_processed, r.leads_success, r.leads_failed, r.leads_skipped, n.success, n.failed, n.skipped
    FROM campaign_runs r
    CROSS JOIN LATERAL (
        SELECT count(*) FILTER (WHERE status IN ('sent', 'replied')) AS success,
               count(*) FILTER (WHERE status = 'failed') AS failed,
               count(*) FILTER (WHERE status = 'skipped') AS skipped
        FROM campaign_messages m WHERE m.run_id = r.id) n
    WHERE (r.leads_success, r.leads_failed, r.leads_skipped, r.leads_processed)
       <> (n.success, n.failed, n.skipped, n.success + n.failed + n.skipped)
"""

PLAIN_NAMES = "-c search_path=public,campaign_pipeline"
"""Options of a connection on which tests write table names without their schema. The product never does."""


class World:
    """A CRM's database under construction."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._phones = 0

    def __enter__(self) -> "World":
        self.connection = self._connect()
        return self

    def _connect(self) -> "psycopg.Connection[dict[str, Any]]":
        return psycopg.connect(self.url, autocommit=True, row_factory=dict_row, options=PLAIN_NAMES)

    def reconnect(self) -> None:
        """Connect again, after the server was restarted."""
        self.connection.close()
        self.connection = self._connect()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.connection.close()

    # Reading and moving ---------------------------------------------------------------------------------------------

    def all(self, query: str, *values: Any) -> list[dict[str, Any]]:
        """Rows of a query."""
        return self.connection.execute(query, values).fetchall()

    def one(self, query: str, *values: Any) -> dict[str, Any]:
        """The only row of a query."""
        (row,) = self.all(query, *values)
        return row

    def value(self, query: str, *values: Any) -> Any:
        """The only column of the only row."""
        (value,) = self.one(query, *values).values()
        return value

    def do(self, query: str, *values: Any) -> int:
        """Run a statement; returns the number of rows."""
        return self.connection.execute(query, values).rowcount

    def move_clock(self, by: timedelta) -> None:
        """Move the database's clock, for this connection and all later ones."""
        seconds = f"{by.total_seconds()} seconds"
        name = self.value("SELECT current_database()")
        self.connection.execute(f"ALTER DATABASE {name} SET campaign.clock_offset = '{seconds}'")
        self.connection.execute(f"SET campaign.clock_offset = '{seconds}'")

    def wrong_counters(self) -> list[dict[str, Any]]:
        """Return runs whose counters differ from a recount (I6); expected: none."""
        return self.all(COUNTERS_EQUAL_RECOUNT)

    def messages(self, run: UUID | None = None) -> list[dict[str, Any]]:
        """Messages, oldest first."""
        return self.all(
            "SELECT * FROM campaign_messages WHERE %s::uuid IS NULL OR run_id = %s ORDER BY scheduled_at, id", run, run
        )

    # Making ---------------------------------------------------------------------------------------------------------

    def insert(self, table: str, **columns: Any) -> UUID:
        """Insert one row; returns its id."""
        values = [Jsonb(v) if isinstance(v, dict) else v for v in columns.values()]
        names, places = ", ".join(columns), ", ".join(["%s"] * len(columns))
        row = self.connection.execute(f"INSERT INTO {table} ({names}) VALUES ({places}) RETURNING *", values).fetchone()
        assert row is not None
        return row.get("id")  # type: ignore[return-value]

    def workspace(self, model: str | None = "openai/gpt-4o-mini", *, number_rest_hours: int = 0) -> UUID:
        """A tenant; without a model if None. Numbers need no rest: most tests send to one number repeatedly."""
        workspace = self.insert("workspaces", name="Acme")
        # A database of an earlier version has no such column.
        if self.all(
            "SELECT FROM pg_attribute WHERE attrelid = 'workspaces'::regclass AND attname = 'number_rest_hours'"
        ):
            self.do("UPDATE workspaces SET number_rest_hours = %s WHERE id = %s", number_rest_hours, workspace)
        if model:
            self.insert("ai_agents", workspace_id=workspace, model=model)
        return workspace

    def inbox(
        self, workspace: UUID, *, status: str | None = "connected", name: str | None = None, **instance: Any
    ) -> UUID:
        """A WhatsApp number; without an instance if status is None."""
        inbox = self.insert("inboxes", workspace_id=workspace, name="Vendas")
        if status is not None:
            made = self.insert(
                "instances",
                **{
                    "workspace_id": workspace,
                    "name": name or f"numero_{inbox.hex[:8]}",
                    "status": status,
                    "provider": "whatsapp",
                    "provider_type": "evolution",
                    "instance_token": f"token-{inbox.hex[:8]}",
                    **instance,
                },
            )
            self.insert("inbox_instances", inbox_id=inbox, instance_id=made)
        return inbox

    def campaign(self, workspace: UUID | None = None, inbox: UUID | None = None, **columns: Any) -> UUID:
        """A campaign that may always send, in one part; by default in the inbox's workspace."""
        if workspace is None and inbox is not None:
            workspace = self.value("SELECT workspace_id FROM inboxes WHERE id = %s", inbox)
        workspace = workspace or self.workspace()
        return self.insert(
            "campaign_configs",
            **{
                "workspace_id": workspace,
                "inbox_id": inbox or self.inbox(workspace),
                "ai_instructions": "Você vende máquinas de café. Seja breve.",
                "split_messages": False,
                **columns,
            },
        )

    def run(self, config: UUID | None = None, **columns: Any) -> UUID:
        """A running run without messages."""
        return self.insert("campaign_runs", **{"config_id": config or self.campaign(), "name": "Hoje", **columns})

    def lead(self, workspace: UUID | None = None, **columns: Any) -> UUID:
        """A lead with a number of its own."""
        self._phones += 1
        phone = f"+55 11 9{10_000_000 + self._phones:08d}"
        return self.insert(
            "leads", **{"workspace_id": workspace, "client_name": "Ana Souza", "phone": phone, **columns}
        )

    def due_message(self, run: UUID, lead: UUID | None = None, **columns: Any) -> UUID:
        """A message that became due a minute ago, to a new lead of the run's workspace."""
        workspace = self.value(
            "SELECT c.workspace_id FROM campaign_runs r JOIN campaign_configs c ON c.id = r.config_id WHERE r.id = %s",
            run,
        )
        due = self.value("SELECT campaign_now() - interval '1 minute'")
        return self.insert(
            "campaign_messages",
            **{"run_id": run, "lead_id": lead or self.lead(workspace), "scheduled_at": due, **columns},
        )

    def due_messages(self, run: UUID, count: int) -> list[UUID]:
        """Several such messages."""
        return [self.due_message(run) for _ in range(count)]
