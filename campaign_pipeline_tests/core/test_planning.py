"""The plan of a day: within window, interval, pace and limits."""

from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

from hypothesis import given
from hypothesis import strategies as st

from campaign_pipeline.core.planning import (
    DAILY_LIMIT,
    DAY_TOO_SHORT,
    INBOX_LIMIT,
    SEND_SECONDS,
    WINDOW_CLOSED,
    CampaignDay,
    InboxDay,
    plan_day,
)
from campaign_pipeline.core.window import SendingWindow

ZONE = ZoneInfo("America/Sao_Paulo")
DAY = date(2026, 12, 1)  # a Tuesday
NINE = datetime(2026, 12, 1, 9, tzinfo=ZONE).astimezone(UTC)
OFFICE = SendingWindow(time(9), time(18), ZONE)
SECOND = timedelta(seconds=1)

minutes_of_day = st.integers(0, 24 * 60 - 1).map(lambda minute: time(minute // 60, minute % 60))
outside_quiet_hours = st.builds(SendingWindow, minutes_of_day, minutes_of_day, st.just(ZONE))
inboxes = st.builds(
    InboxDay,
    gap_seconds=st.sampled_from([0.0, 30.0, 200.0]),
    hourly_limit=st.none() | st.integers(1, 100),
    remaining=st.none() | st.integers(-2, 60),
    hours=st.none() | outside_quiet_hours,
    taken=st.lists(st.integers(-60, 20 * 60).map(lambda m: NINE + m * 60 * SECOND), max_size=6).map(sorted),
)
campaigns = st.builds(
    CampaignDay,
    window=st.builds(SendingWindow, st.none() | minutes_of_day, st.none() | minutes_of_day, st.just(ZONE)),
    day=st.just(DAY),
    now=st.integers(-10 * 60, 30 * 60).map(lambda m: NINE + m * 60 * SECOND),
    interval_seconds=st.sampled_from([0.0, 60.0, 1200.0]),
    remaining=st.none() | st.integers(-2, 60),
    last_due=st.none() | st.just(NINE + timedelta(hours=2)),
)


@given(campaigns, inboxes, st.integers(0, 80))
def test_every_plan_can_be_sent(campaign: CampaignDay, inbox: InboxDay, wanted: int) -> None:
    plan = plan_day(campaign, inbox, wanted)
    assert len(plan.times) + sum(plan.left_out.values()) == wanted
    assert len(plan.times) <= min(
        (each for each in (campaign.remaining, inbox.remaining) if each is not None), default=wanted
    ) or (not plan.times)
    for due in plan.times:
        assert campaign.window.is_open(due)
        assert due >= campaign.now
        assert due.astimezone(ZONE) < campaign.window.opening(DAY)[1]  # type: ignore[index]
        if inbox.hours:
            assert inbox.hours.is_open(due)
        if inbox.spacing:
            assert all(abs(due - other) >= inbox.spacing for other in inbox.taken)
    apart = max(timedelta(seconds=campaign.interval_seconds), inbox.spacing)
    assert all(later - earlier >= apart for earlier, later in pairwise(plan.times))
    if campaign.last_due and plan.times:
        assert plan.times[0] >= campaign.last_due
    if inbox.hourly_limit:
        for first, beyond in zip(plan.times, plan.times[inbox.hourly_limit :], strict=False):
            assert beyond - first > timedelta(hours=1)


def test_messages_follow_each_other_by_the_interval_from_the_opening_on() -> None:
    plan = plan_day(CampaignDay(OFFICE, DAY, NINE - timedelta(hours=3), interval_seconds=120), InboxDay(), 3)
    assert plan.times == tuple(NINE + n * (120 + SEND_SECONDS) * SECOND for n in range(3))


def test_a_start_within_the_window_begins_now() -> None:
    now = NINE + timedelta(hours=4)
    assert plan_day(CampaignDay(OFFICE, DAY, now), InboxDay(), 1).times == (now,)


def test_leads_that_do_not_fit_are_reported_by_reason() -> None:
    campaign = CampaignDay(OFFICE, DAY, NINE, interval_seconds=3600 - SEND_SECONDS, remaining=12)
    assert plan_day(campaign, InboxDay(remaining=10), 20).left_out == {DAILY_LIMIT: 8, INBOX_LIMIT: 2, DAY_TOO_SHORT: 1}
    late = CampaignDay(OFFICE, DAY, NINE + timedelta(hours=9))
    assert plan_day(late, InboxDay(), 5).left_out == {WINDOW_CLOSED: 5}


def test_two_campaigns_of_one_inbox_share_its_pace() -> None:
    inbox = InboxDay(gap_seconds=60 - SEND_SECONDS)
    first = plan_day(CampaignDay(OFFICE, DAY, NINE, interval_seconds=120), inbox, 20)
    second = plan_day(CampaignDay(OFFICE, DAY, NINE), InboxDay(60 - SEND_SECONDS, taken=first.times), 20)
    both = sorted([*first.times, *second.times])
    assert min(later - earlier for earlier, later in pairwise(both)) >= timedelta(seconds=60)


def test_an_inbox_rests_after_its_messages() -> None:
    inbox = InboxDay(gap_seconds=60, pause_after=3, pause_seconds=600)
    times = plan_day(CampaignDay(OFFICE, DAY, NINE), inbox, 7).times
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert [gap >= timedelta(seconds=600) for gap in gaps] == [False, False, True, False, False, True]


def test_quiet_hours_over_midnight_end_in_the_morning() -> None:
    outside_quiet_hours = SendingWindow(time(8), time(21), ZONE)
    night = SendingWindow(time(20), time(10), ZONE)
    late = NINE + timedelta(hours=13)
    times = plan_day(CampaignDay(night, DAY, late), InboxDay(hours=outside_quiet_hours), 1).times
    assert times == (datetime(2026, 12, 2, 8, tzinfo=ZONE),)
