"""Messages that the CRM planned are sent as planned: scheduled_at is their pace."""

from uuid import UUID

from campaign_pipeline_tests.crm import Crm
from campaign_pipeline_tests.sql.holder import claim_batch, holding


def test_two_runs_of_a_day_are_claimed_beyond_the_limits_by_which_the_crm_planned_each(crm: Crm) -> None:
    crm.do("UPDATE campaign_configs SET daily_limit = 5, min_interval_seconds = 120")
    _let_one_number_stand_for_all(crm)
    crm.start_run(5)
    crm.start_run(5, skip=5)
    batch = claim_batch(crm)
    assert len(batch.rows) == 10
    messages = [row.message_id for row in batch.rows]
    holder = holding(crm, *_let_go(crm, messages))
    answers = holder.begin_all({"id": m, "text": "Oi", "parts": ["Oi"]} for m in messages)
    assert {row["verdict"] for row in answers.values()} == {"go"}
    assert crm.all("SELECT * FROM campaign_pace_state") == []


def test_a_campaign_may_ask_for_its_limits_over_all_runs_and_says_that_it_waits_for_them(crm: Crm) -> None:
    crm.do("UPDATE campaign_configs SET daily_limit = 5, min_interval_seconds = 0, enforce_pace = true")
    _let_one_number_stand_for_all(crm)
    first = crm.start_run(5)
    messages = [row.message_id for row in claim_batch(crm).rows]
    holder = holding(crm, *_let_go(crm, messages))
    holder.begin_all({"id": m, "text": "Oi", "parts": ["Oi"]} for m in messages)
    second = crm.start_run(5, skip=5)
    assert claim_batch(crm).rows == []
    row = crm.one("SELECT wait_code, wait_reason FROM campaign_runs WHERE id = %s", second)
    assert row["wait_code"] == "daily_limit"
    assert row["wait_reason"].startswith("The campaign has begun the 5 messages that it may today")
    crm.do("UPDATE campaign_configs SET enforce_pace = NULL")
    assert len(claim_batch(crm).rows) == 5, "the change is noticed at once"
    assert first != second


def _let_one_number_stand_for_all(crm: Crm) -> None:
    """Give all of the holder's parts one address, which these tests do not examine."""
    crm.do("UPDATE workspaces SET number_rest_hours = 0")


def _let_go(crm: Crm, messages: list[UUID]) -> list[UUID]:
    """End the batch's own lease, so that a shard takes over its messages."""
    crm.do("UPDATE campaign_messages SET lease_expires_at = campaign_pipeline.campaign_now() - interval '1 second'")
    return messages
