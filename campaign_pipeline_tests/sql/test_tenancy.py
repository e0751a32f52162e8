"""Two tenants in one database: a message that references the other tenant is never sent."""

from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

import pytest

from campaign_pipeline_tests.factories import World
from campaign_pipeline_tests.sql.holder import claim_batch, holding, message, rows


@dataclass
class Tenant:
    """A workspace with one of every row that a message references."""

    workspace: UUID
    inbox: UUID
    instance: UUID
    funnel: UUID
    column: UUID
    campaign: UUID
    run: UUID
    lead: UUID
    conversation: UUID
    message: UUID


def tenant(world: World, name: str) -> Tenant:
    """A tenant with a due message that may be sent."""
    workspace = world.workspace()
    inbox = world.inbox(workspace, name=f"instance_of_{name}", status="connected")
    instance = world.value("SELECT instance_id FROM inbox_instances WHERE inbox_id = %s", inbox)
    funnel = world.insert("funnels", workspace_id=workspace, name="Vendas")
    column = world.insert("funnel_columns", funnel_id=funnel, title="Novo")
    campaign = world.campaign(workspace, inbox, source_column_id=column, target_column_id=column)
    run = world.run(campaign)
    lead = world.lead(workspace, client_name="Maria Souza", funnel_id=funnel, column_id=column)
    conversation = world.insert("conversations", workspace_id=workspace, inbox_id=inbox, channel="whatsapp")
    return Tenant(
        *(workspace, inbox, instance, funnel, column, campaign, run, lead, conversation),
        message=world.due_message(run, lead),
    )


Crossing = Callable[[World, Tenant, Tenant], object]

CROSSINGS: dict[str, Crossing] = {
    "lead": lambda w, a, b: w.do("UPDATE campaign_messages SET lead_id = %s WHERE id = %s", b.lead, a.message),
    "inbox": lambda w, a, b: w.do("UPDATE campaign_configs SET inbox_id = %s WHERE id = %s", b.inbox, a.campaign),
    "instance": lambda w, a, b: w.do(
        "UPDATE inbox_instances SET instance_id = %s WHERE inbox_id = %s", b.instance, a.inbox
    ),
    "conversation": lambda w, a, b: w.do(
        "UPDATE campaign_messages SET conversation_id = %s WHERE id = %s", b.conversation, a.message
    ),
    "target column": lambda w, a, b: w.do(
        "UPDATE campaign_configs SET target_column_id = %s WHERE id = %s", b.column, a.campaign
    ),
    "source column": lambda w, a, b: w.do(
        "UPDATE campaign_configs SET source_column_id = %s WHERE id = %s", b.column, a.campaign
    ),
    "lead's column": lambda w, a, b: w.do("UPDATE leads SET column_id = %s WHERE id = %s", b.column, a.lead),
    "lead's funnel": lambda w, a, b: w.do("UPDATE leads SET funnel_id = %s WHERE id = %s", b.funnel, a.lead),
    "moved lead": lambda w, a, b: w.do("UPDATE leads SET workspace_id = %s WHERE id = %s", b.workspace, a.lead),
    "moved inbox": lambda w, a, b: w.do("UPDATE inboxes SET workspace_id = %s WHERE id = %s", b.workspace, a.inbox),
    "moved instance": lambda w, a, b: w.do(
        "UPDATE instances SET workspace_id = %s WHERE id = %s", b.workspace, a.instance
    ),
    "run of another's campaign": lambda w, a, b: w.do(
        "UPDATE campaign_runs SET config_id = %s WHERE id = %s", b.campaign, a.run
    ),
    "message's own inbox": lambda w, a, b: w.do(
        "UPDATE campaign_runs SET active_inbox_id = %s WHERE id = %s", b.inbox, a.run
    ),
}
each_crossing = pytest.mark.parametrize("crossing", CROSSINGS.values(), ids=CROSSINGS)


@pytest.fixture
def tenants(world: World) -> tuple[Tenant, Tenant]:
    return tenant(world, "A"), tenant(world, "B")


def cross(world: World, tenants: tuple[Tenant, Tenant], crossing: Crossing) -> Tenant:
    """Connect the first tenant's message with the second; return the first."""
    crossing(world, *tenants)
    return tenants[0]


@each_crossing
def test_messages_that_reference_another_workspace_are_skipped_in_the_claim(
    world: World, tenants: tuple[Tenant, Tenant], crossing: Crossing
) -> None:
    a = cross(world, tenants, crossing)
    if crossing is CROSSINGS["message's own inbox"]:
        world.do("UPDATE campaign_messages SET inbox_id = %s WHERE id = %s", tenants[1].inbox, a.message)
        refused = rows(world, "skip_refused_messages", message_ids=[a.message])
        assert [row["code"] for row in refused] == ["foreign_workspace"]
        return
    batch = claim_batch(world)
    assert [row.message_id for row in batch.rows] == [tenants[1].message]
    assert (batch.foreign, batch.suppressed) == (1, 0)
    skipped = message(world, a.message)
    assert (skipped["status"], skipped["error_code"]) == ("skipped", "foreign_workspace")
    assert "belongs to another workspace than the campaign, so nothing was sent." in skipped["error_message"]
    assert world.wrong_counters() == []


@each_crossing
def test_a_message_that_references_another_workspace_after_the_claim_is_not_sent(
    world: World, tenants: tuple[Tenant, Tenant], crossing: Crossing
) -> None:
    a, b = tenants
    holder = holding(world, a.message, b.message)
    assert holder.start_generating(a.message) == "go"
    cross(world, tenants, crossing)
    if crossing is CROSSINGS["message's own inbox"]:
        world.do("UPDATE campaign_messages SET inbox_id = %s WHERE id = %s", b.inbox, a.message)
    assert holder.start_generating(a.message) == "foreign_workspace"
    assert holder.begin_new(a.message) == "foreign_workspace"
    assert holder.begin_new(b.message) == "go"
    states = world.all("SELECT status FROM campaign_message_parts WHERE message_id = %s", a.message)
    assert [row["status"] for row in states] == ["planned"], "the text was paid for, and never leaves"


@each_crossing
def test_the_check_names_each_row_that_connects_two_workspaces(
    world: World, tenants: tuple[Tenant, Tenant], crossing: Crossing
) -> None:
    assert rows(world, "find_foreign_rows", days=1, shown=20) == []
    a = cross(world, tenants, crossing)
    if crossing is CROSSINGS["message's own inbox"]:
        world.do("UPDATE campaign_messages SET inbox_id = %s WHERE id = %s", tenants[1].inbox, a.message)
    found = rows(world, "find_foreign_rows", days=1, shown=20)
    assert ("waiting message", a.message) in {(row["kind"], row["id"]) for row in found}
    rows(world, "skip_refused_messages", message_ids=[a.message])
    found = rows(world, "find_foreign_rows", days=1, shown=20)
    assert ("skipped message", a.message) in {(row["kind"], row["id"]) for row in found}


def test_an_inbox_with_an_instance_of_its_own_goes_through_it_and_never_through_another_workspaces(
    world: World, tenants: tuple[Tenant, Tenant]
) -> None:
    a, b = tenants
    world.insert("inbox_instances", inbox_id=a.inbox, instance_id=b.instance)
    world.do("UPDATE instances SET last_connected_at = now() WHERE id = %s", b.instance)
    assert len(claim_batch(world).rows) == 2
    (connection,) = rows(world, "get_inbox_connection", inbox_id=a.inbox)
    assert (connection["instance_id"], connection["name"]) == (a.instance, "instance_of_A")


def test_no_statement_returns_the_key_or_the_name_of_another_workspaces_instance(
    world: World, tenants: tuple[Tenant, Tenant]
) -> None:
    a, b = tenants
    CROSSINGS["instance"](world, a, b)
    world.do("UPDATE instances SET status = 'close' WHERE id = %s", b.instance)
    assert rows(world, "get_inbox_connection", inbox_id=a.inbox) == []
    listed = {row["run_id"]: row for row in rows(world, "list_running_runs", run_id=None)}
    assert (listed[a.run]["instance_name"], listed[a.run]["instance_status"]) == (None, "connected")
    assert listed[b.run]["instance_name"] == "instance_of_B"


def test_a_fallback_inbox_of_another_workspace_or_with_its_instance_is_never_chosen(
    world: World, tenants: tuple[Tenant, Tenant]
) -> None:
    a, b = tenants
    crossed = world.inbox(a.workspace, status=None)
    world.insert("inbox_instances", inbox_id=crossed, instance_id=b.instance)
    world.do(
        "UPDATE campaign_configs SET when_inbox_down = 'fallback', fallback_inbox_ids = %s WHERE id = %s",
        [b.inbox, crossed],
        a.campaign,
    )
    world.do("UPDATE instances SET status = 'close' WHERE id = %s", a.instance)
    batch = claim_batch(world)
    assert [row.message_id for row in batch.rows] == [b.message]
    assert message(world, a.message)["status"] == "pending"
    found = {(row["kind"], row["id"]) for row in rows(world, "find_foreign_rows", days=1, shown=20)}
    assert found == {("campaign", a.campaign), ("inbox", crossed)}


def test_rows_without_a_workspace_are_foreign_to_nobody(world: World, tenants: tuple[Tenant, Tenant]) -> None:
    for table in ("leads", "instances", "funnels", "conversations"):
        world.do(f"UPDATE {table} SET workspace_id = NULL")
    assert len(claim_batch(world).rows) == 2


def test_a_message_with_a_sent_part_is_left_to_its_shard(world: World, tenants: tuple[Tenant, Tenant]) -> None:
    a, b = tenants
    holder = holding(world, a.message)
    holder.begin_new(a.message, "Olá", "Tudo bem?")
    holder.sent(a.message)
    holder.settle(a.message, status="pending")
    CROSSINGS["moved lead"](world, a, b)
    assert {row.message_id for row in claim_batch(world).rows} == {a.message, b.message}
    assert holding_again(world, a.message) == "foreign_workspace"


def holding_again(world: World, due: UUID) -> str:
    """Return the verdict for its next holder about the second part."""
    world.do("UPDATE campaign_messages SET lease_expires_at = campaign_now() - interval '1 s' WHERE id = %s", due)
    return holding(world, due).begin(due, part_no=2)
