"""Session defaults of a role or a database (time zone, date and interval style) change nothing."""

from datetime import UTC, datetime, timedelta

import pytest

from campaign_pipeline.adapters import schema
from campaign_pipeline.adapters.operations import Operations
from campaign_pipeline.adapters.queue_connection import connect_rows
from campaign_pipeline_tests.defs.test_shard import Play, Rig, play
from campaign_pipeline_tests.factories import World

__all__ = ["play"]  # the fixture

CLOCKS_GO_BACK = datetime(2026, 10, 25, 1, tzinfo=UTC)
"""In Berlin it is three o'clock then, and becomes two."""

SETTINGS = {"timezone": "'Europe/Berlin'", "datestyle": "'SQL, DMY'", "intervalstyle": "'sql_standard'"}


@pytest.fixture(params=["DATABASE {database}", "ROLE postgres IN DATABASE {database}"], ids=["database", "role"])
def odd_sessions(request: pytest.FixtureRequest, world: World) -> World:
    """Sessions that begin with foreign settings; the test's own began before."""
    whose = request.param.format(database=world.value("SELECT current_database()"))
    for name, value in SETTINGS.items():
        world.do(f"ALTER {whose} SET {name} = {value}")
    return world


def test_times_arrive_in_utc_and_differ_by_what_passed_between_them(odd_sessions: World) -> None:
    with connect_rows(odd_sessions.url) as connection:
        row = connection.execute("SELECT now() AS now, %s::timestamptz AS a, %s::timestamptz AS b, %s AS span", [
            CLOCKS_GO_BACK - timedelta(minutes=10), CLOCKS_GO_BACK + timedelta(minutes=20), timedelta(days=1, hours=-2),
        ]).fetchone()  # fmt: skip
    assert row is not None
    assert {row[name].tzinfo for name in ("now", "a", "b")} == {UTC}
    assert row["b"] - row["a"] == timedelta(minutes=30)
    assert row["span"] == timedelta(hours=22)
    with Operations(odd_sessions.url) as operations:
        assert operations.now().tzinfo is UTC


def test_a_pace_of_half_an_hour_holds_while_the_sessions_clocks_go_back(odd_sessions: World, play: Play) -> None:
    world = odd_sessions
    workspace = world.workspace()
    inbox = world.inbox(workspace)
    world.insert("campaign_inbox_pace", inbox_id=inbox, min_gap_seconds=1800, jitter=0)
    run = world.run(world.campaign(workspace, inbox))
    world.move_clock(CLOCKS_GO_BACK - timedelta(minutes=10) - world.value("SELECT now()"))
    first, second = world.due_message(run), world.due_message(run)

    async def scenario(rig: Rig) -> None:
        await rig.batch()
        sent = [message for message in (first, second) if rig.message(message)["status"] == "sent"]
        assert len(sent) == 1
        await rig.batch()
        row = world.one("SELECT wait_code, wait_until - campaign_now() AS wait FROM campaign_runs WHERE id = %s", run)
        assert row["wait_code"] == "paced"
        assert timedelta(minutes=28) < row["wait"] <= timedelta(minutes=30)
        world.move_clock(CLOCKS_GO_BACK + timedelta(minutes=21) - world.value("SELECT now()"))
        await rig.batch()
        assert {rig.message(message)["status"] for message in (first, second)} == {"sent"}

    play(scenario)


def test_an_upgrade_works_in_such_sessions(odd_sessions: World) -> None:
    odd_sessions.do("DROP TRIGGER campaign_process_reply ON messages")
    assert schema.upgrade(odd_sessions.url) == schema.head_revision()
    assert odd_sessions.value("SELECT count(*) FROM pg_trigger WHERE tgname = 'campaign_process_reply'") == 1
