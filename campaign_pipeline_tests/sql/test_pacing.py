"""Pacing of inboxes and campaigns in the database: which message may begin, and when."""

import threading
from collections.abc import Callable
from datetime import date, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import psycopg
import pytest
from psycopg.types.json import Jsonb

from campaign_pipeline.sql import statement
from campaign_pipeline_tests.factories import World
from campaign_pipeline_tests.sql.holder import (
    PHONE,
    Holder,
    claim_batch,
    holding,
    insert_due,
    message,
    part_states,
    parts,
    rows,
    run_row,
    wait_until_blocked,
)

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
SAO_PAULO = ZoneInfo("America/Sao_Paulo")


class Inbox:
    """An inbox with a pace, a campaign on it, and a holder of its messages."""

    def __init__(self, world: World, **pace: Any) -> None:
        self.world = world
        self.moved = timedelta(0)
        self.workspace = world.workspace()
        self.id = world.inbox(self.workspace)
        self.holder = Holder(world)
        if pace:
            self.set(**pace)

    def set(self, **pace: Any) -> None:
        """Change its settings."""
        self.world.do("DELETE FROM campaign_inbox_pace WHERE inbox_id = %s", self.id)
        self.world.insert("campaign_inbox_pace", inbox_id=self.id, **{"jitter": 0, **pace})

    def run(self, **campaign: Any) -> UUID:
        """A run of a campaign of its own."""
        return self.world.run(self.world.campaign(self.workspace, self.id, **campaign))

    def held(self, count: int, run: UUID | None = None) -> list[UUID]:
        """Messages under the holder's lease."""
        dues = self.world.due_messages(run or self.run(), count)
        self.holder.take_over(dues, lease_seconds=1000 * 86_400.0)
        return dues

    def ask(self, *messages: UUID, **item: Any) -> list[dict[str, Any]]:
        """Ask for all of them in one group; return the answers in that order."""
        text = {"text": "Olá!", "parts": ["Olá!"]}
        answers = self.holder.begin_all({"id": m, "inbox_id": self.id, **text, **item} for m in messages)
        return [answers[m] for m in messages]

    def verdicts(self, *messages: UUID, **item: Any) -> list[str]:
        """Only the verdicts."""
        return [answer["verdict"] for answer in self.ask(*messages, **item)]

    def settle(self, message_id: UUID, outcome: str = "sent", **item: Any) -> None:
        """An outcome of the first attempt at the first part."""
        self.holder.settle(message_id, **{"part_no": 1, "attempt_no": 1, "outcome": outcome, **item})

    def send(self, message_id: UUID) -> None:
        """Begin and be accepted at once."""
        assert self.verdicts(message_id) == ["go"]
        self.settle(message_id)

    def later(self, by: timedelta) -> None:
        """Let time pass."""
        self.moved += by
        self.world.move_clock(self.moved)

    def at(self, *local: int) -> None:
        """Set the time in São Paulo."""
        there = datetime(*local, tzinfo=SAO_PAULO)  # type: ignore[misc,arg-type]
        self.moved += there - self.world.value("SELECT campaign_now()")
        self.world.move_clock(self.moved)

    def state(self, scope: str = "inbox") -> dict[str, Any]:
        """Return its state."""
        return self.world.one(
            "SELECT day_count, since_rest, slow_factor, floor_message_id, greatest(next_at, '1970-01-01Z') AS next_at,"
            " greatest(held_until, '1970-01-01Z') AS held_until FROM campaign_pace_state WHERE scope = %s",
            scope,
        )

    def wait(self, message_id: UUID) -> float:
        """Return the answer for a waiting message."""
        (row,) = rows(self.world, "peek_turn", message_id=message_id, inbox_id=self.id)
        return float(row["wait_seconds"])


Make = Callable[..., Inbox]


@pytest.fixture
def inbox(world: World) -> Make:
    """Makes an inbox at noon, so that no hour and no day ends while a test counts in it."""

    def make(**pace: Any) -> Inbox:
        made = Inbox(world, **pace)
        made.at(2026, 3, 3, 12, 1)
        return made

    return make


# Gaps -----------------------------------------------------------------------------------------------------------------


def test_an_inbox_without_a_pace_lets_everything_go_and_leaves_no_trace(inbox: Make) -> None:
    plain = inbox()
    dues = plain.held(5)
    answers = plain.ask(*dues)
    assert {(a["verdict"], a["wait_seconds"], a["grace_seconds"]) for a in answers} == {("go", None, None)}
    plain.settle(dues[0])
    assert plain.world.all("SELECT * FROM campaign_pace_state") == []
    assert {part["slot_at"] for due in dues for part in parts(plain.world, due)} == {None}


def test_one_message_of_a_group_is_admitted_and_the_others_get_their_wait(inbox: Make) -> None:
    paced = inbox(min_gap_seconds=40)
    dues = paced.held(4)
    answers = paced.ask(*dues)
    gone = [a for a in answers if a["verdict"] == "go"]
    waiting = [a for a in answers if a["verdict"] == "paced"]
    assert (len(gone), len(waiting)) == (1, 3)
    assert gone[0]["grace_seconds"] == 5  # at most, however long the gap
    # The request may leave within the grace, so until it is answered the next one waits for that too.
    assert {(a["wait_seconds"], a["wait_code"]) for a in waiting} == {(45, "paced")}


def test_a_text_is_stored_although_its_turn_has_not_come(inbox: Make) -> None:
    paced = inbox(min_gap_seconds=40)
    first, second = sorted(paced.held(2))
    paced.ask(first, second)
    assert message(paced.world, second)["generated_message"] == "Olá!"
    assert part_states(paced.world, second) == [("planned", 0)]
    assert message(paced.world, second)["status"] == "queued"


def test_the_next_message_goes_a_whole_gap_after_the_answer(inbox: Make) -> None:
    paced = inbox(min_gap_seconds=40)
    first, second = paced.held(2)
    paced.ask(first)
    paced.later(3 * SECOND)  # the provider took its time
    paced.settle(first)
    assert paced.wait(second) == pytest.approx(40, abs=0.2)
    paced.later(39.5 * SECOND)
    assert paced.verdicts(second) == ["paced"]
    paced.later(1 * SECOND)
    assert paced.verdicts(second) == ["go"]


def test_an_unanswered_request_delays_the_next_one_by_gap_and_grace(inbox: Make) -> None:
    paced = inbox(min_gap_seconds=8)
    first, second = paced.held(2)
    paced.ask(first)
    paced.later(9 * SECOND)
    assert paced.verdicts(second) == ["paced"]
    paced.later(1.5 * SECOND)
    assert paced.verdicts(second) == ["go"]


def test_a_gap_is_stretched_at_random_within_its_jitter(inbox: Make) -> None:
    paced = inbox(min_gap_seconds=100, jitter=0.5)
    paced.world.do("SELECT setseed(0.5)")  # of 30 gaps at random, the mean is off by 10 in one of 7,000 runs
    gaps = []
    for due in paced.held(30):
        paced.send(due)
        gaps.append((paced.state()["next_at"] - paced.world.value("SELECT campaign_now()")).total_seconds())
        paced.later(151 * SECOND)
    assert all(99.5 < gap <= 150 for gap in gaps)
    assert max(gaps) - min(gaps) > 20
    assert 115 < sum(gaps) / len(gaps) < 135


def test_the_second_of_two_concurrent_workers_finds_the_slot_taken(inbox: Make) -> None:
    paced = inbox(min_gap_seconds=30)
    earlier, first, second = paced.held(3)
    paced.send(earlier)
    paced.later(31 * SECOND)
    verdicts: list[str] = []

    def ask() -> None:
        item = {
            "id": str(second), "token": str(paced.holder.token), "part_no": 1, "attempt_no": 1, "address": PHONE,
            "channel": "whatsapp", "inbox_id": str(paced.id), "text": "Olá!", "parts": ["Olá!"],
        }  # fmt: skip
        with psycopg.connect(paced.world.url, autocommit=True) as connection:
            cursor = connection.execute(statement("begin_parts"), {"items": Jsonb([item])})
            verdicts.extend(row[1] for row in cursor)

    other = threading.Thread(target=ask)
    with World(paced.world.url) as watcher:
        with paced.world.connection.transaction():
            assert paced.verdicts(first) == ["go"]
            other.start()
            wait_until_blocked(watcher)
        other.join()
    assert verdicts == ["paced"]


def test_asking_again_after_a_lost_answer_keeps_the_slot_and_takes_no_other(inbox: Make) -> None:
    paced = inbox(min_gap_seconds=30, daily_limit=10)
    due, other = paced.held(2)
    assert paced.verdicts(due) == ["go"]
    (again,) = paced.ask(due)
    assert (again["verdict"], again["grace_seconds"]) == ("go", 5)
    assert paced.state()["day_count"] == 1
    assert paced.verdicts(other) == ["paced"]


def test_two_inboxes_do_not_wait_for_each_other(world: World) -> None:
    one, two = Inbox(world, min_gap_seconds=30), Inbox(world, min_gap_seconds=30)
    assert one.verdicts(*one.held(1)) == two.verdicts(*two.held(1)) == ["go"]


def test_campaigns_that_share_an_inbox_share_its_pace(inbox: Make) -> None:
    paced = inbox(min_gap_seconds=30)
    dues = [*paced.held(1, paced.run()), *paced.held(1, paced.run())]
    assert sorted(paced.verdicts(*dues)) == ["go", "paced"]


def test_a_campaign_has_a_pace_of_its_own_whatever_inbox_it_goes_through(inbox: Make) -> None:
    plain = inbox()
    slow, fast = plain.run(min_interval_seconds=60), plain.run()
    first, second = plain.held(2, slow)
    assert sorted(plain.verdicts(first, second)) == ["go", "paced"]
    assert plain.verdicts(*plain.held(3, fast)) == ["go"] * 3
    plain.settle(first)
    plain.settle(second)
    plain.later(61 * SECOND)
    assert plain.verdicts(*plain.held(1, slow)) == ["go"]


def test_the_slower_of_inbox_and_campaign_counts(inbox: Make) -> None:
    paced = inbox(min_gap_seconds=10)
    first, second = paced.held(2, paced.run(min_interval_seconds=60))
    paced.send(first)
    paced.later(11 * SECOND)
    assert paced.wait(second) == pytest.approx(49, abs=0.2)


# Parts ----------------------------------------------------------------------------------------------------------------


def test_further_parts_follow_without_waiting_and_move_the_next_message_on(inbox: Make) -> None:
    paced = inbox(min_gap_seconds=30, daily_limit=10)
    first, second = paced.held(2)
    paced.ask(first, parts=["Um", "Dois"])
    paced.settle(first)
    paced.later(20 * SECOND)
    assert paced.verdicts(first, part_no=2, parts=None) == ["go"]
    paced.settle(first, part_no=2)
    assert paced.wait(second) == pytest.approx(30, abs=0.2)
    assert paced.state()["day_count"] == 1


def test_a_message_in_the_middle_waits_for_the_gap_after_another_one_but_for_no_limit(inbox: Make) -> None:
    paced = inbox(min_gap_seconds=30, daily_limit=2)
    first, second, third = paced.held(3)
    paced.ask(first, parts=["Um", "Dois"])
    paced.settle(first)
    paced.later(31 * SECOND)
    paced.send(second)
    (answer,) = paced.ask(first, part_no=2, parts=None)
    assert (answer["verdict"], answer["wait_code"]) == ("paced", "paced")
    assert 29 < answer["wait_seconds"] <= 30
    paced.later(31 * SECOND)
    assert paced.verdicts(first, part_no=2, parts=None) == ["go"]
    paced.settle(first, part_no=2)
    paced.later(31 * SECOND)
    assert paced.ask(third)[0]["wait_code"] == "daily_limit"


# Limits ---------------------------------------------------------------------------------------------------------------


def test_an_hourly_limit_counts_any_sixty_minutes(inbox: Make) -> None:
    limited = inbox(hourly_limit=3)
    dues = limited.held(5)
    for due in dues[:3]:
        limited.send(due)
        limited.later(10 * MINUTE)
    (answer,) = limited.ask(dues[3])
    assert (answer["verdict"], answer["wait_code"]) == ("paced", "hourly_limit")
    assert answer["wait_seconds"] == pytest.approx(30 * 60, abs=1)
    limited.later(30 * MINUTE + SECOND)
    limited.send(dues[3])
    assert limited.ask(dues[4])[0]["wait_seconds"] == pytest.approx(10 * 60, abs=2)


def test_a_daily_limit_ends_with_the_local_day(inbox: Make) -> None:
    limited = inbox(daily_limit=2)
    dues = limited.held(3)
    limited.at(2027, 3, 3, 22, 30)
    for due in dues[:2]:
        limited.send(due)
    (answer,) = limited.ask(dues[2])
    assert (answer["verdict"], answer["wait_code"]) == ("paced", "daily_limit")
    assert answer["wait_seconds"] == pytest.approx(90 * 60, abs=1)
    limited.at(2027, 3, 4, 0, 0, 1)
    assert limited.verdicts(dues[2]) == ["go"]


def test_a_campaigns_daily_limit_is_of_its_own_time_zone(inbox: Make) -> None:
    plain = inbox()
    dues = plain.held(2, plain.run(daily_limit=1, timezone="Asia/Kathmandu"))
    plain.at(2027, 3, 3, 15, 0)  # 23:45 in Kathmandu
    plain.send(dues[0])
    assert plain.ask(dues[1])[0]["wait_seconds"] == pytest.approx(15 * 60, abs=1)


def test_an_unknown_zone_stops_no_message(inbox: Make) -> None:
    plain = inbox()
    dues = plain.held(2, plain.run(daily_limit=1, timezone="Nowhere/At_All"))
    assert sorted(plain.verdicts(*dues)) == ["go", "paced"]


@pytest.mark.parametrize("outcome", ["failed", "planned"])
def test_a_part_that_was_surely_not_sent_leaves_the_limits_but_keeps_its_gap(inbox: Make, outcome: str) -> None:
    limited = inbox(min_gap_seconds=30, daily_limit=1, hourly_limit=1)
    first, second = limited.held(2)
    limited.ask(first)
    limited.settle(first, outcome)
    assert limited.state()["day_count"] == 0
    assert limited.world.all("SELECT * FROM campaign_inbox_slots") == []
    (answer,) = limited.ask(second)
    assert (answer["wait_code"], round(answer["wait_seconds"])) == ("paced", 30)
    limited.later(31 * SECOND)
    assert limited.verdicts(second) == ["go"]


def test_a_later_part_that_does_not_go_out_leaves_its_message_on_the_limits(inbox: Make) -> None:
    limited = inbox(daily_limit=2)
    (due,) = limited.held(1)
    assert limited.verdicts(due, text="Um Dois", parts=["Um", "Dois"]) == ["go"]
    limited.settle(due)
    assert limited.holder.begin(due, part_no=2, inbox_id=limited.id) == "go"
    limited.settle(due, "failed", part_no=2)
    assert limited.state()["day_count"] == 1


def test_an_unknown_part_counts_against_the_limits_until_it_was_surely_not_sent(inbox: Make) -> None:
    limited = inbox(daily_limit=5, hourly_limit=5)
    (due,) = limited.held(1)
    limited.ask(due)
    limited.settle(due, "unknown")
    assert limited.state()["day_count"] == 1
    for _ in range(2):  # said twice, taken off once
        limited.settle(due, "planned", looked_up=True)
        assert limited.state()["day_count"] == 0


def test_a_slot_that_was_never_used_goes_to_the_next_one_at_once(inbox: Make) -> None:
    paced = inbox(min_gap_seconds=30, daily_limit=1)
    first, second = paced.held(2)
    paced.ask(first)
    paced.settle(first, "planned", unrequested=True)
    assert paced.verdicts(second) == ["go"]


def test_a_slot_that_was_never_used_and_is_not_the_last_one_frees_nothing(inbox: Make) -> None:
    paced = inbox(min_gap_seconds=8)
    first, second, third = paced.held(3)
    paced.ask(first)
    paced.later(11 * SECOND)
    paced.send(second)
    paced.settle(first, "planned", unrequested=True)
    assert paced.verdicts(third) == ["paced"]


# Rests, quiet hours, warm-up ------------------------------------------------------------------------------------------


def test_an_inbox_rests_after_so_many_messages(inbox: Make) -> None:
    resting = inbox(min_gap_seconds=10, pause_after=3, pause_seconds=600)
    dues = resting.held(5)
    for due in dues[:3]:
        resting.send(due)
        resting.later(11 * SECOND)
    (answer,) = resting.ask(dues[3])
    assert (answer["wait_code"], round(answer["wait_seconds"])) == ("resting", 589)
    resting.later(590 * SECOND)
    resting.send(dues[3])
    resting.later(11 * SECOND)
    assert resting.verdicts(dues[4]) == ["go"]


def test_an_inbox_that_was_idle_for_so_long_has_rested(inbox: Make) -> None:
    resting = inbox(pause_after=2, pause_seconds=600)
    dues = resting.held(3)
    resting.send(dues[0])
    resting.later(11 * MINUTE)
    resting.send(dues[1])
    assert resting.verdicts(dues[2]) == ["go"]


@pytest.mark.parametrize(
    ("quiet", "now", "until"),
    [
        (("12:00", "14:00"), (12, 0), (3, 14, 0)),
        (("12:00", "14:00"), (13, 59), (3, 14, 0)),
        (("12:00", "14:00"), (14, 0), None),
        (("12:00", "14:00"), (11, 59), None),
        (("21:00", "08:00"), (21, 30), (4, 8, 0)),
        (("21:00", "08:00"), (3, 0), (3, 8, 0)),
        (("21:00", "08:00"), (8, 0), None),
    ],
)
def test_quiet_hours_are_local_and_may_run_over_midnight(
    inbox: Make, quiet: tuple[str, str], now: tuple[int, int], until: tuple[int, int, int] | None
) -> None:
    calm = inbox(quiet_from=quiet[0], quiet_until=quiet[1])
    (due,) = calm.held(1)
    calm.at(2027, 3, 3, *now)
    (answer,) = calm.ask(due)
    if until is None:
        assert answer["verdict"] == "go"
        return
    day, hour, minute = until
    expected = datetime(2027, 3, day, hour, minute, tzinfo=SAO_PAULO) - calm.world.value("SELECT campaign_now()")
    assert (answer["verdict"], answer["wait_code"]) == ("paced", "quiet_hours")
    assert answer["wait_seconds"] == pytest.approx(expected.total_seconds(), abs=1)


def test_a_message_that_has_begun_is_finished_in_quiet_hours(inbox: Make) -> None:
    calm = inbox(quiet_from="21:00", quiet_until="08:00")
    (due,) = calm.held(1)
    calm.at(2027, 3, 3, 20, 59)
    calm.ask(due, parts=["Um", "Dois"])
    calm.settle(due)
    calm.at(2027, 3, 3, 21, 1)
    assert calm.verdicts(due, part_no=2, parts=None) == ["go"]


def test_a_new_number_is_warmed_up_day_by_day(inbox: Make) -> None:
    young = inbox(warm_up_from=date(2027, 3, 1), daily_limit=130)
    run = young.run()
    limits = {1: 20, 2: 20, 3: 40, 4: 40, 5: 80, 7: 80, 8: 120, 14: 120, 15: 130, 16: 130}
    for day, limit in limits.items():
        young.at(2027, 3, day, 10, 0)
        answers = young.ask(*young.held(limit + 1, run))
        assert [answer["verdict"] for answer in answers].count("go") == limit
        codes = {answer["wait_code"] for answer in answers if answer["verdict"] == "paced"}
        assert codes == {"warming_up" if day < 15 else "daily_limit"}


def test_a_warm_up_that_begins_tomorrow_already_limits_today(inbox: Make) -> None:
    young = inbox(warm_up_from=date(2027, 3, 5))
    dues = young.held(25)
    young.at(2027, 3, 1, 10, 0)
    assert young.verdicts(*dues).count("go") == 20


# Slowing down ---------------------------------------------------------------------------------------------------------


def slow_down(inbox: Inbox) -> float:
    (row,) = rows(inbox.world, "slow_inbox_down", inbox_id=inbox.id)
    return float(row["factor"])


def test_each_throttle_doubles_the_gap_up_to_eight_times(inbox: Make) -> None:
    paced = inbox(min_gap_seconds=10)
    factors = []
    for _ in range(5):
        factors.append(slow_down(paced))
        paced.later(6 * SECOND)
    assert factors == [2, 4, 8, 8, 8]
    first, second = paced.held(2)
    paced.send(first)
    assert paced.wait(second) == pytest.approx(80, abs=0.5)


def test_simultaneous_throttles_count_once(inbox: Make) -> None:
    paced = inbox(min_gap_seconds=10)
    assert [slow_down(paced) for _ in range(5)] == [2] * 5


def test_a_slow_down_recovers_step_by_step_with_time(inbox: Make) -> None:
    paced = inbox(min_gap_seconds=10)
    for _ in range(3):
        slow_down(paced)
        paced.later(6 * SECOND)
    found = []
    for _ in range(5):
        found.append(paced.world.value("SELECT gap_seconds FROM campaign_pace('inbox', %s)", paced.id))
        paced.later(15 * MINUTE)
    assert found == [80, 40, 20, 10, 10]
    assert slow_down(paced) == 2


def test_a_slow_down_recovers_with_accepted_messages(inbox: Make) -> None:
    paced = inbox(min_gap_seconds=1)
    slow_down(paced)
    dues = paced.held(11)
    for due in dues[:10]:
        paced.send(due)
        paced.later(3 * SECOND)
    paced.send(dues[10])
    assert paced.world.value("SELECT slow_factor FROM campaign_pace('inbox', %s)", paced.id) == 1


def test_an_inbox_without_a_pace_is_slowed_down_until_it_has_recovered(inbox: Make) -> None:
    plain = inbox()
    slow_down(plain)
    assert sorted(plain.verdicts(*plain.held(3))) == ["go", "paced", "paced"]
    plain.later(timedelta(minutes=46))
    claim_batch(plain.world)
    assert plain.world.all("SELECT * FROM campaign_pace_state") == []
    assert plain.verdicts(*plain.held(3)) == ["go"] * 3


# Settings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "columns",
    [
        {"min_gap_seconds": 0},
        {"jitter": -0.1},
        {"hourly_limit": 0},
        {"pause_after": 3},
        {"quiet_from": "21:00"},
        {"quiet_from": "21:00", "quiet_until": "21:00"},
        {"quiet_from": "00:00", "quiet_until": "24:00"},
    ],
)
def test_settings_refuse_nonsense(inbox: Make, columns: dict[str, Any]) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        inbox(**columns)


def test_settings_refuse_an_unknown_time_zone_by_name(inbox: Make) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="Nowhere"):
        inbox(timezone="Nowhere/At_All")


def test_a_setting_counts_from_the_next_message_on(inbox: Make) -> None:
    paced = inbox(daily_limit=1)
    first, second = paced.held(2)
    paced.send(first)
    assert paced.verdicts(second) == ["paced"]
    paced.set(daily_limit=2)
    assert paced.verdicts(second) == ["go"]


@pytest.mark.parametrize("changed", ["inbox", "campaign"])
def test_a_changed_pace_reconsiders_the_runs_that_wait_for_it(inbox: Make, changed: str) -> None:
    paced = inbox(daily_limit=1)
    run = paced.run(daily_limit=1)
    paced.send(paced.held(1, run)[0])
    insert_due(paced.world, run, 2)
    claim_batch(paced.world)
    assert run_row(paced.world, run)["wait_until"] > paced.world.value("SELECT campaign_now()")
    if changed == "inbox":
        paced.world.do("UPDATE campaign_inbox_pace SET daily_limit = 5")
    else:
        paced.world.do("UPDATE campaign_configs SET daily_limit = 5")
    assert run_row(paced.world, run)["wait_until"] <= paced.world.value("SELECT campaign_now()")


# Claiming -------------------------------------------------------------------------------------------------------------


def test_a_batch_claims_no_more_than_the_pace_lets_go_within_its_lease(inbox: Make) -> None:
    paced = inbox(min_gap_seconds=30)
    run = paced.run()
    insert_due(paced.world, run, 50)
    assert len(claim_batch(paced.world, lease_seconds=120.0).rows) == 5  # at 0, 30, 60, 90 and 120 seconds
    assert claim_batch(paced.world, lease_seconds=120.0).rows == []  # leased messages count
    assert run_row(paced.world, run)["wait_code"] is None  # it is being worked


def test_a_claim_takes_one_message_if_the_next_would_wait_too_long(inbox: Make) -> None:
    paced = inbox(min_gap_seconds=90)
    insert_due(paced.world, paced.run(), 5)
    assert len(claim_batch(paced.world, max_wait_seconds=60.0).rows) == 1


def test_runs_that_share_an_inbox_share_its_pace(inbox: Make) -> None:
    paced = inbox(daily_limit=10)
    runs = [paced.run() for _ in range(3)]
    for run, count in zip(runs, (100, 100, 2), strict=True):
        insert_due(paced.world, run, count)
    rows_ = claim_batch(paced.world).rows
    counts = sorted(sum(row.run_id == run for row in rows_) for run in runs)
    assert counts in ([2, 4, 4], [2, 3, 5])  # the odd ones go to random runs


def test_an_unpaced_run_beside_a_paced_one_gets_the_rest_of_the_batch(world: World) -> None:
    paced, plain = Inbox(world, daily_limit=3), Inbox(world)
    insert_due(world, paced.run(), 50)
    other = plain.run()
    insert_due(world, other, 50)
    rows_ = claim_batch(world, batch_size=40).rows
    assert len(rows_) == 40 or sum(row.run_id == other for row in rows_) >= 20
    assert sum(row.run_id != other for row in rows_) == 3


@pytest.mark.parametrize(
    ("pace", "code"),
    [
        ({"daily_limit": 2}, "daily_limit"),
        ({"hourly_limit": 2}, "hourly_limit"),
        ({"warm_up_from": date(2027, 3, 3), "daily_limit": 25}, "warming_up"),
        ({"min_gap_seconds": 300}, "paced"),
        ({"pause_after": 2, "pause_seconds": 900}, "resting"),
        ({"quiet_from": "10:05", "quiet_until": "11:00"}, "quiet_hours"),
    ],
)
def test_a_run_delayed_by_its_pace_shows_that_reason(inbox: Make, pace: dict[str, Any], code: str) -> None:
    paced = inbox(**pace)
    run = paced.run()
    paced.at(2027, 3, 3, 10, 0)
    dues = paced.held(20, run)
    for due in dues:
        if paced.verdicts(due) == ["go"]:
            paced.settle(due)
    insert_due(paced.world, run, 3)
    paced.later(5 * MINUTE if code == "quiet_hours" else SECOND)
    batch = claim_batch(paced.world)
    assert batch.rows == []
    row = run_row(paced.world, run)
    assert row["wait_code"] == code
    assert row["wait_until"] > paced.world.value("SELECT campaign_now()")
    assert f"{row['wait_until'].astimezone(SAO_PAULO):%Y-%m-%d %H:%M}" in row["wait_reason"]
    assert [wait.code for wait in batch.waits] == [code]


def test_messages_that_wait_for_the_next_day_are_neither_too_old_nor_spread(inbox: Make) -> None:
    paced = inbox(daily_limit=3)
    run = paced.run(start_time="09:00", end_time="18:00")
    paced.at(2027, 3, 3, 9, 30)
    insert_due(paced.world, run, 8)
    claimed = []
    for day in (3, 4, 5):
        for hour in (10, 12, 17):
            paced.at(2027, 3, day, hour, 0)
            batch = claim_batch(paced.world)
            assert (batch.expired, batch.spread) == (0, 0)
            claimed.append(len(batch.rows))
            paced.holder.take_over([row.message_id for row in batch.rows], UUID(batch.token) if batch.token else None)
            for row in batch.rows:
                paced.send(row.message_id)
        assert run_row(paced.world, run)["pace_held_since"] is not None or day == 5
    assert claimed == [3, 0, 0, 3, 0, 0, 2, 0, 0]
    assert run_row(paced.world, run)["pace_held_since"] is None


def test_messages_that_were_too_old_before_the_pace_held_them_are_skipped(inbox: Make) -> None:
    paced = inbox(daily_limit=3)
    run = paced.run()
    insert_due(paced.world, run, 2, age=2 * HOUR)
    assert claim_batch(paced.world).expired == 2


# Fallback inboxes -----------------------------------------------------------------------------------------------------


class Detour:
    """A campaign with a first inbox and two others."""

    def __init__(self, world: World, when_inbox_down: str = "fallback") -> None:
        self.world = world
        workspace = world.workspace()
        self.first, self.second, self.third = (world.inbox(workspace) for _ in range(3))
        self.config = world.campaign(
            workspace, self.first, fallback_inbox_ids=[self.second, self.third], when_inbox_down=when_inbox_down
        )
        self.run = world.run(self.config)

    def connect(self, inbox: UUID, status: str = "connected") -> None:
        self.world.do(
            "UPDATE instances i SET status = %s FROM inbox_instances x WHERE i.id = x.instance_id AND x.inbox_id = %s",
            status,
            inbox,
        )

    def pause(self, inbox: UUID) -> None:
        rows(
            self.world, "open_pause", scope="inbox", scope_id=str(inbox), kind="systemic", code="banned",
            reason="The number was banned.", seconds=None, message_id=None,
        )  # fmt: skip

    def claim(self, count: int = 1) -> list[UUID]:
        """Claim so many new messages; return their inboxes."""
        insert_due(self.world, self.run, count)
        return [row.inbox_id for row in claim_batch(self.world).rows]


@pytest.fixture
def detour(world: World) -> Detour:
    return Detour(world)


def test_while_the_first_inbox_is_down_the_next_healthy_one_is_used_and_it_comes_back(detour: Detour) -> None:
    assert detour.claim() == [detour.first]
    detour.connect(detour.first, "disconnected")
    assert detour.claim(2) == [detour.second] * 2
    assert run_row(detour.world, detour.run)["active_inbox_id"] == detour.second
    detour.pause(detour.second)
    assert detour.claim() == [detour.third]
    detour.connect(detour.first)
    assert detour.claim() == [detour.first]
    assert run_row(detour.world, detour.run)["active_inbox_id"] is None


def test_without_a_healthy_inbox_the_run_waits_for_the_first(detour: Detour) -> None:
    for inbox in (detour.first, detour.second, detour.third):
        detour.connect(inbox, "disconnected")
    assert detour.claim() == []
    assert run_row(detour.world, detour.run)["wait_code"] == "inbox_disconnected"


def test_a_campaign_that_asks_for_a_pause_takes_no_fallback(world: World) -> None:
    detour = Detour(world, "pause")
    detour.connect(detour.first, "disconnected")
    assert detour.claim() == []


def test_a_fallback_of_another_tenant_or_channel_is_not_used(detour: Detour) -> None:
    stranger = detour.world.inbox(detour.world.workspace())
    workspace = detour.world.value("SELECT workspace_id FROM campaign_configs WHERE id = %s", detour.config)
    mailbox = detour.world.inbox(workspace, provider="email", provider_type="smtp")
    detour.world.do("UPDATE campaign_configs SET fallback_inbox_ids = %s", [stranger, mailbox, uuid4()])
    detour.connect(detour.first, "disconnected")
    assert detour.claim() == []


def test_a_pause_of_the_inbox_that_is_used_stops_a_message_and_one_of_the_other_does_not(detour: Detour) -> None:
    detour.connect(detour.first, "disconnected")
    insert_due(detour.world, detour.run, 2)
    batch = claim_batch(detour.world)
    first, second = (row.message_id for row in batch.rows)
    holder = Holder(detour.world)
    assert batch.token is not None
    holder.take_over([first, second], UUID(batch.token))
    (read, _) = rows(detour.world, "read_leased_messages", ids=[first, second], token=holder.token)
    assert read["inbox_id"] == str(detour.second)
    detour.pause(detour.first)
    assert holder.begin_new(first, inbox_id=detour.second) == "go"
    detour.pause(detour.second)
    assert holder.begin_new(second, inbox_id=detour.second) == "scope_paused"


@pytest.mark.parametrize("outcome", ["sent", "unknown"])
def test_a_conversation_continues_only_through_the_inbox_that_began_it(detour: Detour, outcome: str) -> None:
    due = detour.world.due_message(detour.run)
    holder = holding(detour.world, due)
    holder.begin_new(due, "Um", "Dois", inbox_id=detour.first)
    holder.settle(due, part_no=1, attempt_no=1, outcome=outcome)
    holder.settle(due, status="pending")
    detour.connect(detour.first, "disconnected")
    assert detour.claim() == [detour.second]  # the new one; the one that has begun waits
    assert message(detour.world, due)["status"] == "pending"
    detour.connect(detour.first)
    batch = claim_batch(detour.world)
    assert [(row.message_id, row.inbox_id) for row in batch.rows] == [(due, detour.first)]


def test_a_conversation_that_a_fallback_began_stays_there_when_the_first_inbox_is_back(detour: Detour) -> None:
    detour.connect(detour.first, "disconnected")
    due = detour.world.due_message(detour.run)
    batch = claim_batch(detour.world)
    assert batch.token is not None
    holder = Holder(detour.world)
    holder.take_over([due], UUID(batch.token))
    holder.begin_new(due, "Um", "Dois", inbox_id=detour.second)
    holder.sent(due)
    holder.settle(due, status="pending")
    detour.connect(detour.first)
    other = detour.world.due_message(detour.run)
    batch = claim_batch(detour.world)
    assert {row.message_id: row.inbox_id for row in batch.rows} == {due: detour.second, other: detour.first}
    assert (message(detour.world, due)["inbox_id"], message(detour.world, other)["inbox_id"]) == (detour.second, None)


def test_a_message_that_was_surely_not_sent_may_change_its_inbox(detour: Detour) -> None:
    due = detour.world.due_message(detour.run)
    holder = holding(detour.world, due)
    holder.begin_new(due, inbox_id=detour.first)
    assert message(detour.world, due)["inbox_id"] == detour.first
    holder.settle(due, part_no=1, attempt_no=1, outcome="planned", status="pending")
    detour.connect(detour.first, "disconnected")
    assert [row.inbox_id for row in claim_batch(detour.world).rows] == [detour.second]


def test_a_probe_goes_through_the_first_inbox_while_the_others_take_the_detour(detour: Detour) -> None:
    detour.pause(detour.first)
    assert detour.claim(3) == [detour.second] * 3
    detour.world.move_clock(1.5 * MINUTE)
    assert sorted(detour.claim(3), key=str) == sorted([detour.first, detour.second, detour.second], key=str)
    assert detour.claim(2) == [detour.second] * 2  # one probe at a time
    assert run_row(detour.world, detour.run)["active_inbox_id"] == detour.second
    probe = detour.world.one("SELECT * FROM campaign_messages WHERE inbox_id IS NULL")
    holder = Holder(detour.world)
    holder.take_over([probe["id"]], probe["lease_token"])
    assert holder.begin_new(probe["id"], inbox_id=detour.first) == "go"
    holder.sent(probe["id"])
    assert detour.claim() == [detour.first]


def test_a_new_conversation_belongs_to_the_inbox_that_is_used(detour: Detour) -> None:
    detour.connect(detour.first, "disconnected")
    due = detour.world.due_message(detour.run)
    batch = claim_batch(detour.world)
    holder = Holder(detour.world)
    assert batch.token is not None
    holder.take_over([due], UUID(batch.token))
    holder.begin_new(due, inbox_id=detour.second)
    assert detour.world.value("SELECT inbox_id FROM conversations") == detour.second
