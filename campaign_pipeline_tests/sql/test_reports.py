"""The statements of reports and checks, against counts made in Python."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest

from campaign_pipeline.sql import statement
from campaign_pipeline_tests.factories import World
from campaign_pipeline_tests.sql.holder import rows

ZONE = ZoneInfo("America/Sao_Paulo")
DAY = datetime(2026, 3, 10, tzinfo=ZONE)
NOON = DAY + timedelta(hours=12)


def report(world: World, start: datetime = DAY, end: datetime | None = None) -> list[dict[str, Any]]:
    end = end or start + timedelta(days=1)
    return rows(world, "report_campaign_day", day_start=start, day_end=end, timezone=str(ZONE))


def ended(world: World, run: UUID, status: str, at: datetime = NOON, **columns: Any) -> UUID:
    """A message that ended at a given time."""
    sent_at = at if status in {"sent", "replied"} else None
    return world.due_message(run, **{"status": status, "finished_at": at, "sent_at": sent_at, **columns})


def part(world: World, message: UUID, part_no: int, provider_message_id: str, inbox: UUID, age: timedelta) -> None:
    world.insert(
        "campaign_message_parts",
        message_id=message,
        part_no=part_no,
        text="Oi",
        status="sent",
        idempotency_key=f"{message}:{part_no}",
        inbox_id=inbox,
        provider_message_id=provider_message_id,
        sent_at=world.value("SELECT campaign_now()") - age,
    )


def test_a_day_is_counted_by_campaign_and_all_together(world: World) -> None:
    coffee = world.run(name="Café")
    tea = world.run(name="Chá")
    for status, count in (("sent", 3), ("replied", 2), ("skipped", 1)):
        for _ in range(count):
            ended(world, coffee, status, ai_tokens_used=100, ai_cost_usd=0.25)
    for error_class in ("permanent", "permanent", "exhausted", "unknown", "systemic", None):
        ended(world, tea, "failed", error_class=error_class)
    first, second, total = report(world)
    assert (first["campaign"], first["due"], first["sent"], first["replied"], first["skipped"]) == ("Café", 6, 5, 2, 1)
    assert (first["tokens"], first["cost_usd"], first["failed"]) == (600, 1.5, 0)
    classes = ("failed", "failed_permanent", "failed_exhausted", "failed_unknown", "failed_other")
    assert [second[name] for name in classes] == [6, 2, 1, 1, 2]
    assert total["campaign"] is None
    assert (total["due"], total["sent"], total["failed"], total["skipped"], total["tokens"]) == (12, 5, 6, 1, 600)
    assert total["by_hour"] == {"12": [5, 6, 1]}


def test_a_message_is_delivered_when_receipts_say_so_of_all_its_parts(world: World) -> None:
    run = world.run()
    inbox = world.inbox(world.workspace())
    of_parts: list[list[str | None]] = [["read", "delivered"], ["delivered", None], ["failed"], [None]]
    for number, receipts in enumerate(of_parts):
        message = ended(world, run, "sent")
        for part_no, receipt in enumerate(receipts, start=1):
            part(world, message, part_no, f"id-{number}-{part_no}", inbox, timedelta())
            world.do(
                "UPDATE campaign_message_parts SET delivery_status = %s WHERE message_id = %s AND part_no = %s",
                *(receipt, message, part_no),
            )
    total = report(world)[-1]
    assert (total["sent"], total["receipts"], total["delivered"]) == (4, 3, 1)


def test_a_message_at_midnight_belongs_to_the_day_that_begins(world: World) -> None:
    run = world.run()
    for at in (DAY - timedelta(microseconds=1), DAY, DAY + timedelta(days=1)):
        ended(world, run, "sent", at)
    assert report(world)[-1]["sent"] == 1
    assert report(world)[-1]["by_hour"] == {"0": [1, 0, 0]}


def test_percentiles_are_those_of_the_messages_not_of_the_campaigns(world: World) -> None:
    slow, quick = world.run(name="lenta"), world.run(name="rápida")
    for number in range(1, 101):
        run = quick if number <= 90 else slow
        due = NOON - timedelta(seconds=number)
        ended(world, run, "sent", ai_generation_time_ms=10 * number, send_time_ms=20 * number, scheduled_at=due)
    ended(world, quick, "failed", send_time_ms=10**6)  # unsent messages do not count for the duration
    by_name = {row["campaign"]: row for row in report(world)}
    assert by_name[None]["median_generation_s"] == pytest.approx(0.505)
    assert by_name[None]["p95_generation_s"] == pytest.approx(0.9505)
    assert by_name[None]["p95_send_s"] == pytest.approx(1.901)
    assert by_name[None]["p95_wait_s"] == pytest.approx(95.05)
    assert by_name["lenta"]["median_generation_s"] == pytest.approx(0.955)
    assert by_name["rápida"]["median_wait_s"] == pytest.approx(45.5)


def test_a_message_that_was_due_since_for_ever_breaks_no_report(world: World) -> None:
    run = world.run()
    for_ever = ended(world, run, "sent")
    world.do("UPDATE campaign_messages SET scheduled_at = '-infinity' WHERE id = %s", for_ever)
    ended(world, run, "sent", scheduled_at=NOON + timedelta(hours=1))  # sent early, by hand
    assert report(world)[-1]["p95_wait_s"] == 0


def test_pace_is_over_the_minutes_in_which_anything_was_sent(world: World) -> None:
    run = world.run()
    for seconds in (0, 1, 59, 60, 3600):
        ended(world, run, "sent", NOON + timedelta(seconds=seconds))
    total = report(world)[-1]
    assert (total["active_minutes"], total["messages_per_minute"]) == (3, pytest.approx(5 / 3))


def test_messages_due_that_day_that_still_wait_are_due_but_not_ended(world: World) -> None:
    run, over = world.run(name="Café"), world.run(status="cancelled")
    world.due_message(run, scheduled_at=NOON)
    world.due_message(run, scheduled_at=NOON, next_attempt_at=NOON + timedelta(days=2))  # waits for another day
    world.due_message(run, scheduled_at=NOON - timedelta(days=1))
    soon = world.value("SELECT campaign_now() + interval '1 minute'")
    world.due_message(run, scheduled_at=NOON, status="sending", lease_token=uuid4(), lease_expires_at=soon)
    world.due_message(over, scheduled_at=NOON)
    one, total = report(world)
    assert (one["campaign"], one["due"], one["waiting"], one["sent"]) == ("Café", 2, 2, 0)
    assert (total["due"], total["waiting"], total["p95_send_s"]) == (2, 2, None)


def test_a_run_without_a_campaign_is_reported_under_its_own_name(world: World) -> None:
    run = world.insert("campaign_runs", name="avulsa")
    world.insert("campaign_messages", run_id=run, status="sent", sent_at=NOON, finished_at=NOON)
    assert [(row["campaign_id"], row["campaign"]) for row in report(world)] == [(run, "avulsa"), (None, None)]


def test_an_empty_day_is_one_row_of_nothing(world: World) -> None:
    (total,) = report(world)
    assert (total["due"], total["sent"], total["cost_usd"], total["messages_per_minute"]) == (0, 0, 0, None)


def test_failed_messages_are_counted_by_business_day_until_they_are_put_back(world: World) -> None:
    run = world.run()
    today = world.value("SELECT campaign_now()").astimezone(ZONE).replace(hour=0, minute=30)
    late = today - timedelta(hours=1)  # yesterday here, and today by UTC
    messages = [ended(world, run, "failed", late, error_class="exhausted") for _ in range(2)]
    ended(world, run, "failed", today - timedelta(days=3))
    ended(world, run, "failed", today - timedelta(days=100), error_class="exhausted")

    def counted() -> list[tuple[str, str, int]]:
        found = rows(world, "count_failed_by_day", timezone=str(ZONE), days=31)
        return [(row["day"], row["error_class"], row["messages"]) for row in found]

    older = ((today - timedelta(days=3)).strftime("%Y-%m-%d"), "none", 1)
    assert counted() == [(late.strftime("%Y-%m-%d"), "exhausted", 2), older]
    world.all("SELECT campaign_requeue_failed(%s)", messages)
    assert counted() == [older]


def test_counters_that_differ_from_a_recount_are_found(world: World) -> None:
    run, other = world.run(), world.run()
    for status in ("sent", "replied", "failed", "skipped"):
        ended(world, run, status)
        ended(world, other, status)
    assert rows(world, "find_wrong_counters") == []
    world.do("UPDATE campaign_runs SET leads_success = 7 WHERE id = %s", run)
    (wrong,) = rows(world, "find_wrong_counters")
    assert (wrong["run_id"], wrong["leads_success"], wrong["success"]) == (run, 7, 2)
    world.do("UPDATE campaign_runs SET status = 'completed', completed_at = campaign_now() WHERE id = %s", run)
    assert rows(world, "find_wrong_counters") == []


def test_a_lease_is_forgotten_one_lease_after_it_ran_out(world: World) -> None:
    run = world.run()
    now = world.value("SELECT campaign_now()")
    for seconds in (-60, 60, 110, 130, 300):
        world.due_message(run, status="sending", lease_token=uuid4(), lease_expires_at=now - timedelta(seconds=seconds))
    found = rows(world, "find_forgotten_leases", lease_seconds=120, shown=1)
    assert [(row["lease_expires_at"], row["of_all"]) for row in found] == [(now - timedelta(seconds=300), 2)]


def test_one_provider_id_on_two_parts_of_an_inbox_is_found(world: World) -> None:
    workspace = world.workspace()
    inbox, other = world.inbox(workspace), world.inbox(workspace)
    run, hour = world.run(), timedelta(hours=1)
    one, two, old = world.due_messages(run, 3)
    part(world, one, 1, "A", inbox, hour)
    part(world, one, 2, "B", inbox, hour)
    part(world, two, 1, "B", other, hour)  # another number's ids are its own
    part(world, old, 1, "A", inbox, timedelta(days=3))
    assert rows(world, "find_doubled_provider_ids", days=2, shown=20) == []
    part(world, two, 2, "A", inbox, hour)
    (found,) = rows(world, "find_doubled_provider_ids", days=2, shown=20)
    assert (found["inbox_id"], found["provider_message_id"], found["of_all"]) == (inbox, "A", 1)
    assert set(found["message_ids"]) == {one, two}


def test_accepted_messages_are_compared_with_their_receipts_by_inbox(world: World) -> None:
    workspace = world.workspace()
    told, silent = world.inbox(workspace), world.inbox(workspace)
    for inbox, statuses in ((told, ["delivered", "read", "failed", "sent", None]), (silent, [None, None])):
        run = world.run(world.campaign(workspace, inbox))
        for number, status in enumerate(statuses):
            message = world.due_message(run)
            world.insert(
                "campaign_message_parts", message_id=message, part_no=1, text="Olá!", status="sent", inbox_id=inbox,
                idempotency_key=f"{message}:1", attempts=1, provider_message_id=f"{inbox}-{number}",
                sent_at=datetime.now(UTC) - timedelta(hours=30), delivery_status=status,
            )  # fmt: skip
    found = {row["inbox_id"]: row for row in rows(world, "count_undelivered", days=7)}
    assert [found[told][name] for name in ("accepted", "delivered", "failed_later", "never_delivered")] == [5, 2, 1, 2]
    assert (found[silent]["accepted"], found[silent]["receipts"]) == (2, 0)
    world.do("UPDATE campaign_message_parts SET sent_at = campaign_now() - interval '1 hour'")
    assert rows(world, "count_undelivered", days=7) == [], "a phone may be off for a day"


def test_unknown_outcomes_are_those_that_ended_without_an_answer(world: World) -> None:
    run = world.run()
    unknown = ended(world, run, "failed", error_class="unknown", error_code="unknown_outcome")
    ended(world, run, "failed", error_class="permanent")
    world.due_message(run, error_class="unknown", error_code="look_up_pending")  # still being looked up
    (found,) = rows(world, "find_unknown_outcomes", shown=20)
    assert (found["message_id"], found["error_code"], found["of_all"]) == (unknown, "unknown_outcome", 1)


def test_the_runs_at_work_and_those_just_closed_are_listed_with_their_counters(world: World) -> None:
    running = world.run(name="Café", wait_code="no_credit", wait_reason="No credit.")
    closed, earlier = (world.run(status="completed") for _ in range(2))
    ended(world, running, "sent")
    found = {row["run_id"]: row for row in rows(world, "list_runs_at_work", closed=[closed])}
    assert set(found) == {running, closed}
    assert earlier not in found
    assert found[running]["campaign"] == "Café"
    assert (found[running]["leads_success"], found[running]["wait_code"]) == (1, "no_credit")
    assert found[closed]["campaign"] == "Hoje"  # a campaign without a name has its run's


PARAMETERS: dict[str, Any] = {
    "day_start": DAY,
    "day_end": DAY + timedelta(days=1),
    "timezone": str(ZONE),
    "closed": [],
    "days": 2,
    "lease_seconds": 120,
    "shown": 20,
}


@pytest.mark.slow
def test_no_report_reads_the_whole_table_of_messages(world: World) -> None:
    workspace = world.workspace()
    inboxes = [world.inbox(workspace) for _ in range(20)]
    runs = [world.run(world.campaign(workspace, inbox), started_at=DAY) for inbox in inboxes]
    world.do(
        """INSERT INTO campaign_messages (run_id, status, scheduled_at, finished_at, sent_at, error_class, lead_id)
           SELECT (%s::uuid[])[1 + n %% 20], CASE WHEN n %% 9 = 0 THEN 'failed' ELSE 'sent' END, at, at, at,
                  CASE WHEN n %% 900 = 0 THEN 'unknown' END, gen_random_uuid()
           FROM (SELECT n, %s::timestamptz + interval '1 day' - n * interval '3 minutes' AS at
                 FROM generate_series(1, 40000) n) t""",
        runs,
        DAY,
    )
    world.do("UPDATE campaign_runs SET status = 'completed', completed_at = %s WHERE id <> %s", DAY, runs[0])
    world.do(
        """INSERT INTO campaign_message_parts
               (message_id, part_no, text, status, idempotency_key, inbox_id, provider_message_id, sent_at)
           SELECT m.id, 1, 'Oi', 'sent', m.id || ':1', c.inbox_id, m.id, m.sent_at
           FROM campaign_messages m JOIN campaign_runs r ON r.id = m.run_id
           JOIN campaign_configs c ON c.id = r.config_id"""
    )
    for table in ("campaign_messages", "campaign_message_parts", "campaign_runs"):
        world.do(f"VACUUM ANALYZE {table}")
    names = ("list_runs_at_work", "report_campaign_day", "count_failed_by_day", "find_wrong_counters")
    guilty = {}
    for name in (*names, "find_forgotten_leases", "find_doubled_provider_ids", "find_unknown_outcomes"):
        plan = world.connection.execute(b"EXPLAIN " + statement(name).encode(), PARAMETERS).fetchall()
        scans = [row["QUERY PLAN"] for row in plan if re.search(r"Seq Scan on campaign_message", row["QUERY PLAN"])]
        if scans:
            guilty[name] = scans
    assert guilty == {}
