"""Records built from rows have exactly the columns of their statements."""

from dataclasses import fields
from uuid import uuid4

import pytest

from campaign_pipeline.adapters.inbox_connection import InboxConnection
from campaign_pipeline.core.model import ClaimedMessage, LeasedMessage, PartRecord
from campaign_pipeline.core.runs import OpenPause, RunningRun
from campaign_pipeline.sql import statement
from campaign_pipeline_tests.factories import World
from campaign_pipeline_tests.sql.holder import holding, rows

CLAIM = {
    "run_ids": [],
    "quotas": [],
    "batch_size": 1,
    "token": uuid4(),
    "owner": "test",
    "lease_seconds": 1.0,
    "tried_ids": None,
    "ahead_seconds": 0.0,
}


@pytest.mark.parametrize(
    ("name", "parameters", "record", "besides"),
    [
        ("claim_messages", CLAIM, ClaimedMessage, set()),
        # `now` is read once for all; `last_inbound_at` comes from a statement of its own, where a channel needs it.
        ("read_leased_messages", {"ids": [], "token": uuid4()}, LeasedMessage, {"now", "last_inbound_at"}),
        ("get_inbox_connection", {"inbox_id": uuid4()}, InboxConnection, set()),
        ("list_running_runs", {"run_id": None}, RunningRun, set()),
        ("list_pauses", {}, OpenPause, set()),
        ("look_at_pauses", {}, OpenPause, {"tried_message_ids"}),  # only a claim chooses probes
    ],
)
def test_a_record_has_the_columns_of_its_statement(
    world: World, name: str, parameters: dict[str, object], record: type, besides: set[str]
) -> None:
    cursor = world.connection.execute(statement(name), parameters)
    columns = {column.name for column in cursor.description or ()}
    assert columns ^ {field.name for field in fields(record)} == besides


def test_a_part_has_the_fields_of_the_ledgers_json(world: World) -> None:
    due = world.due_message(world.run())
    holder = holding(world, due)
    holder.begin_new(due)
    (read,) = rows(world, "read_leased_messages", ids=[due], token=holder.token)
    assert set(read["parts"][0]) == {field.name for field in fields(PartRecord)}
    assert PartRecord.from_row(read["parts"][0]).attempts == 1
