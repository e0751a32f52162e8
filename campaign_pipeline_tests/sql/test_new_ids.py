"""Ids that the pipeline makes: unique, and in the order in which they were made."""

from datetime import UTC, datetime, timedelta
from uuid import RFC_4122, UUID

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from campaign_pipeline.campaigns.planning import plan_campaign
from campaign_pipeline_tests.campaigns.test_planning import campaign
from campaign_pipeline_tests.factories import World
from campaign_pipeline_tests.sql.holder import rows

MICROSECOND = timedelta(microseconds=1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def new_ids(world: World, count: int) -> list[UUID]:
    return [row["id"] for row in rows(world, "make_ids", count=count)]


def made_at(made: UUID) -> datetime:
    """The time in an id, to the microsecond, by RFC 9562: 48 bits of milliseconds, then 12 bits of their fraction."""
    milliseconds, fraction = made.int >> 80, made.int >> 64 & 0xFFF
    return EPOCH + timedelta(milliseconds=milliseconds) + -(-fraction * 1000 // 4096) * MICROSECOND


@given(count=st.integers(1, 3000))
@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[*settings().suppress_health_check, HealthCheck.function_scoped_fixture],
)
def test_ids_are_unique_and_each_is_at_or_after_the_time_of_the_one_before(world: World, count: int) -> None:
    made = new_ids(world, count)
    assert len(set(made)) == count
    times = [made_at(each) for each in made]
    assert times == sorted(times)
    assert {(each.version, each.variant) for each in made} == {(7, RFC_4122)}


def test_an_id_has_the_time_at_which_it_was_made(world: World) -> None:
    for _ in range(50):
        before = world.value("SELECT clock_timestamp()")
        made = made_at(world.value("SELECT campaign_pipeline.campaign_new_id()"))
        assert before <= made <= world.value("SELECT clock_timestamp()")


def test_the_planned_messages_of_a_day_have_their_ids_in_the_order_of_their_times(world: World) -> None:
    campaign(world, leads=40, min_interval_seconds=50)
    planned = plan_campaign(world.url, "Hoje")
    assert planned.planned == 40
    ids = world.connection.execute("SELECT id FROM campaign_messages ORDER BY scheduled_at").fetchall()
    times = [made_at(row["id"]) for row in ids]
    assert times == sorted(times)
    assert {row["id"].version for row in ids} == {7}
