"""Records built from rows have exactly the columns of their statements."""

from dataclasses import fields
from datetime import UTC, date, datetime
from uuid import uuid4

import pytest

from campaign_pipeline.adapters.day_report import InboxDay, Spending, Unsent, WaitingRun
from campaign_pipeline.adapters.inbox_connection import InboxConnection
from campaign_pipeline.adapters.reports import (
    CampaignDay,
    DoubledProviderId,
    FailedOnDay,
    ForeignChange,
    ForeignRow,
    ForgottenLease,
    RuleCount,
    RunAtWork,
    Undelivered,
    UnknownOutcome,
    WrongCounters,
)
from campaign_pipeline.core.model import ClaimedMessage, LeasedMessage, PartRecord
from campaign_pipeline.core.overview import (
    CampaignPace,
    ClaimedShare,
    FoundLead,
    FoundMessage,
    InboxOverview,
    PauseOverview,
    RunOverview,
)
from campaign_pipeline.core.results import FinishedMessage
from campaign_pipeline.core.runs import OpenPause, RunningRun
from campaign_pipeline.core.story import RuledText, ToldLine, ToldMessage, ToldPart
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
SEARCH = ("run_id", "statuses", "reason", "lead_ids", "digits", "since", "until")
DAY = {"day_start": datetime(2026, 1, 1, tzinfo=UTC), "day_end": datetime(2026, 1, 2, tzinfo=UTC)}


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
        ("read_finished_messages", {"ids": []}, FinishedMessage, set()),
        ("list_runs_at_work", {"closed": []}, RunAtWork, set()),
        ("report_campaign_day", DAY | {"timezone": "UTC"}, CampaignDay, set()),
        ("count_text_rules", DAY, RuleCount, set()),
        ("count_failed_by_day", {"timezone": "UTC", "days": 1}, FailedOnDay, set()),
        ("find_wrong_counters", {}, WrongCounters, set()),
        ("find_forgotten_leases", {"lease_seconds": 1.0, "shown": 1}, ForgottenLease, set()),
        ("find_doubled_provider_ids", {"days": 1, "shown": 1}, DoubledProviderId, set()),
        ("find_foreign_rows", {"days": 1, "shown": 1}, ForeignRow, set()),
        ("count_undelivered", {"days": 1}, Undelivered, set()),
        ("count_foreign_changes", {"days": 1}, ForeignChange, set()),
        ("find_unknown_outcomes", {"shown": 1}, UnknownOutcome, set()),
        ("report_failures", DAY, Unsent, set()),
        ("report_inboxes", DAY, InboxDay, set()),
        ("report_spending", {"day": date(2026, 1, 1)}, Spending, set()),
        ("report_waits", DAY, WaitingRun, set()),
        ("overview_runs", {"run_id": None, "statuses": None, "shown": 1}, RunOverview, {"finished_at"}),  # forecast
        ("overview_inboxes", {}, InboxOverview, {"pauses"}),  # rows of overview_pauses
        ("overview_pauses", {}, PauseOverview, set()),
        ("find_leads", {"low": None, "high": None, "called": "x", "shown": 1}, FoundLead, set()),
        ("find_messages", dict.fromkeys(SEARCH) | {"shown": 1}, FoundMessage, set()),
        ("describe_claim", {"ids": [], "inbox_ids": []}, ClaimedShare, set()),
        ("forecast_campaigns", {}, CampaignPace, set()),
        ("story_of_message", {"message_id": uuid4()}, ToldMessage, set()),
        ("story_of_parts", {"message_id": uuid4()}, ToldPart, set()),
        ("story_of_log", {"message_id": uuid4()}, ToldLine, set()),
        ("story_of_model_calls", {"message_id": uuid4()}, RuledText, set()),
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
