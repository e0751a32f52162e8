from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise
from time import process_time
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from campaign_pipeline.core.window import LOOK_BACK, InvalidWindow, SendingWindow

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)

ZONES = (
    "America/Sao_Paulo",
    "Australia/Lord_Howe",
    "Asia/Kathmandu",
    "America/New_York",
    "America/St_Johns",  # until 2011 its clocks went back over midnight
    "Pacific/Apia",  # left out 30 December 2011
    "Africa/Casablanca",
)
# A day before a change of the clocks in each zone; the brute-force checks look at the days after it.
CHANGES = {
    "America/Sao_Paulo": (datetime(2018, 11, 3, tzinfo=UTC), datetime(2019, 2, 15, tzinfo=UTC)),
    "Australia/Lord_Howe": (datetime(2024, 4, 5, tzinfo=UTC), datetime(2024, 10, 4, tzinfo=UTC)),
    "Asia/Kathmandu": (datetime(2024, 5, 3, tzinfo=UTC), datetime(1985, 12, 30, tzinfo=UTC)),
    "America/New_York": (datetime(2024, 3, 9, tzinfo=UTC), datetime(2024, 11, 2, tzinfo=UTC)),
    "America/St_Johns": (datetime(2010, 11, 5, tzinfo=UTC), datetime(2011, 3, 12, tzinfo=UTC)),
    "Pacific/Apia": (datetime(2011, 12, 28, tzinfo=UTC), datetime(2024, 5, 3, tzinfo=UTC)),
    "Africa/Casablanca": (datetime(2024, 3, 9, tzinfo=UTC), datetime(2024, 4, 13, tzinfo=UTC)),
}


def window(
    start: str | None, end: str | None, zone: str = "America/Sao_Paulo", frequency: str = "daily"
) -> SendingWindow:
    return SendingWindow.parse(start, end, zone, frequency)


def at(text: str, zone: str = "America/Sao_Paulo", fold: int = 0) -> datetime:
    """Read a local wall time as an instant in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).astimezone(UTC)


minutes_of_day = st.integers(0, 24 * 60 - 1).map(lambda minute: time(minute // 60, minute % 60))
windows = st.builds(
    SendingWindow,
    start=st.none() | minutes_of_day,
    end=st.none() | minutes_of_day,
    zone=st.sampled_from(ZONES).map(ZoneInfo),
    weekdays_only=st.booleans(),
    weekdays=st.none() | st.sets(st.integers(1, 7), min_size=1).map(frozenset),
    holidays=st.frozensets(
        st.builds(
            lambda moment, days: moment.date() + timedelta(days=days),
            st.sampled_from([moment for moments in CHANGES.values() for moment in moments]),
            st.integers(-2, 4),
        ),
        max_size=3,
    ),
)
instants = st.one_of(
    st.datetimes(datetime(1990, 1, 1), datetime(2060, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001 - asked for naive
    st.builds(
        lambda base, minute: base + minute * MINUTE,
        st.sampled_from([moment for moments in CHANGES.values() for moment in moments]),
        st.integers(0, 4 * 24 * 60),
    ),
)
spans = st.timedeltas(timedelta(0), timedelta(days=9))


# --- reading a campaign's columns -------------------------------------------------------------------------------------


def test_columns_of_a_campaign_become_a_window() -> None:
    assert SendingWindow.parse("08:30", time(18), "America/Recife", "weekdays") == SendingWindow(
        time(8, 30), time(18), ZoneInfo("America/Recife"), weekdays_only=True
    )


def test_seconds_are_read() -> None:
    assert SendingWindow.parse("08:30:15", None, None, None).start == time(8, 30, 15)


def test_no_zone_and_no_frequency_mean_the_columns_defaults() -> None:
    assert SendingWindow.parse(None, None, None, None) == SendingWindow(None, None, ZoneInfo("America/Sao_Paulo"))


def test_twenty_four_hours_as_an_end_is_midnight() -> None:
    evening = window("18:00", "24:00")
    assert evening.closes_at(at("2024-05-07T20:00")) == at("2024-05-08T00:00")


def test_an_unknown_zone_is_refused_with_the_right_one_named() -> None:
    with pytest.raises(InvalidWindow) as caught:
        SendingWindow.parse("08:00", "18:00", "America/Sao_Paolo", "daily")
    assert str(caught.value) == (
        "timezone is 'America/Sao_Paolo', which is not a known time zone; did you mean 'America/Sao_Paulo'?"
    )


@pytest.mark.parametrize(
    "zone", ["", " ", "America", "../etc/passwd", "/etc/localtime", "localtime", "BRT-", "a\0b", "\ud800", "x" * 5000]
)
def test_an_invalid_zone_is_never_replaced_silently(zone: str) -> None:
    with pytest.raises(InvalidWindow, match="timezone is ") as caught:
        SendingWindow.parse("08:00", "18:00", zone, "daily")
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("value", ["8h", "25:00", "24:00", "08:60", "08:00:60", "", "8:00", "08:00 ", "٠٨:٠٠", "-1:00"])
def test_a_start_that_is_no_time_is_refused(value: str) -> None:
    with pytest.raises(InvalidWindow, match=r"start_time is .* must be a time of day such as '08:30'"):
        SendingWindow.parse(value, "18:00", None, "daily")


def test_a_time_with_its_own_zone_is_refused() -> None:
    with pytest.raises(InvalidWindow, match="end_time"):
        SendingWindow.parse("08:00", time(18, tzinfo=UTC), None, "daily")


def test_an_unknown_frequency_is_refused() -> None:
    with pytest.raises(InvalidWindow, match="frequency is 'weekly', but must be 'daily' or 'weekdays'"):
        SendingWindow.parse("08:00", "18:00", None, "weekly")


def test_naive_instants_are_refused() -> None:
    with pytest.raises(ValueError, match="no time zone"):
        window("08:00", "18:00").is_open(datetime(2024, 5, 7, 12))  # noqa: DTZ001 - what is refused


# --- plain days -------------------------------------------------------------------------------------------------------


def test_a_window_closes_by_its_own_clock_and_not_by_utc() -> None:
    """18:00 in São Paulo is 21:00 UTC: the previous system sent three hours too long."""
    day = window("08:00", "18:00")
    assert day.is_open(datetime(2024, 5, 7, 20, 59, 59, tzinfo=UTC))
    assert not day.is_open(datetime(2024, 5, 7, 21, 0, tzinfo=UTC))
    assert day.closes_at(datetime(2024, 5, 7, 12, 0, tzinfo=UTC)) == datetime(2024, 5, 7, 21, 0, tzinfo=UTC)


def test_the_start_is_inside_and_the_end_is_outside() -> None:
    day = window("08:00", "18:00")
    assert not day.is_open(at("2024-05-07T07:59:59.999999"))
    assert day.is_open(at("2024-05-07T08:00"))
    assert day.is_open(at("2024-05-07T17:59:59.999999"))
    assert not day.is_open(at("2024-05-07T18:00"))


def test_the_next_opening_is_now_when_open_and_tomorrow_after_closing() -> None:
    day = window("08:00", "18:00")
    now = datetime(2024, 5, 7, 9, tzinfo=ZoneInfo("America/Sao_Paulo"))
    assert day.next_opening(now) is now
    assert day.next_opening(at("2024-05-07T07:00")) == at("2024-05-07T08:00")
    assert day.next_opening(at("2024-05-07T18:00")) == at("2024-05-08T08:00")


def test_no_bounds_are_always_open_and_never_close() -> None:
    always = window(None, None)
    now = at("2024-05-05T03:00")
    assert always.is_open(now)
    assert always.next_opening(now) is now
    assert always.closes_at(now) is None
    assert always.open_time_between(now, now + timedelta(days=3)) == timedelta(days=3)
    assert always.age_cutoff(now, HOUR) == now - HOUR


@pytest.mark.parametrize("moment", ["00:00", "09:00", "15:30"])
def test_equal_bounds_are_open_all_day(moment: str) -> None:
    all_day = window(moment, moment)
    assert all_day.is_open(at("2024-05-05T03:00"))
    assert all_day.closes_at(at("2024-05-05T03:00")) is None


def test_a_missing_bound_is_midnight() -> None:
    assert window(None, "12:00").is_open(at("2024-05-07T00:00"))
    assert not window(None, "12:00").is_open(at("2024-05-07T12:00"))
    assert window("12:00", None).closes_at(at("2024-05-07T12:00")) == at("2024-05-08T00:00")


def test_a_closed_window_has_no_end() -> None:
    assert window("08:00", "18:00").closes_at(at("2024-05-07T19:00")) is None


# --- over midnight and weekends ---------------------------------------------------------------------------------------


def test_a_window_over_midnight_is_open_on_both_sides_of_it() -> None:
    night = window("22:00", "06:00")
    assert not night.is_open(at("2024-05-07T21:59"))
    assert night.is_open(at("2024-05-07T23:00"))
    assert night.is_open(at("2024-05-08T05:59"))
    assert not night.is_open(at("2024-05-08T06:00"))
    assert night.closes_at(at("2024-05-07T23:00")) == at("2024-05-08T06:00")


def test_friday_night_runs_into_saturday_and_sunday_night_does_not_open() -> None:
    night = window("22:00", "06:00", frequency="weekdays")
    assert night.is_open(at("2024-05-11T05:59"))  # Saturday morning
    assert night.closes_at(at("2024-05-10T22:00")) == at("2024-05-11T06:00")
    assert not night.is_open(at("2024-05-11T22:00"))  # Saturday
    assert not night.is_open(at("2024-05-12T23:00"))  # Sunday
    assert not night.is_open(at("2024-05-13T05:00"))  # Monday morning belongs to Sunday
    assert night.next_opening(at("2024-05-11T06:00")) == at("2024-05-13T22:00")


def test_working_days_open_all_day_are_one_opening_from_monday_to_saturday() -> None:
    week = window(None, None, frequency="weekdays")
    assert week.closes_at(at("2024-05-07T10:00")) == at("2024-05-11T00:00")
    assert week.next_opening(at("2024-05-11T00:00")) == at("2024-05-13T00:00")
    assert week.open_time_between(at("2024-05-05T12:00"), at("2024-05-12T12:00")) == timedelta(days=5)


def test_the_weekend_is_that_of_the_campaigns_zone() -> None:
    week = window(None, None, "Asia/Kathmandu", "weekdays")
    assert week.is_open(datetime(2024, 5, 12, 18, 15, tzinfo=UTC))  # Monday 00:00 in Kathmandu, Sunday in UTC
    assert not week.is_open(datetime(2024, 5, 10, 18, 15, tzinfo=UTC))  # Saturday 00:00 there, Friday in UTC


# --- nights when the clocks change ------------------------------------------------------------------------------------


def test_an_opening_that_the_clocks_skip_begins_after_the_gap() -> None:
    early = window("02:30", "04:00", "America/New_York")
    assert early.next_opening(at("2024-03-10T00:00", "America/New_York")) == datetime(2024, 3, 10, 7, tzinfo=UTC)
    assert early.open_time_between(datetime(2024, 3, 10, tzinfo=UTC), datetime(2024, 3, 11, tzinfo=UTC)) == HOUR


def test_a_closing_that_the_clocks_skip_is_the_end_of_the_gap() -> None:
    early = window("01:00", "02:30", "America/New_York")
    assert early.closes_at(at("2024-03-10T01:30", "America/New_York")) == datetime(2024, 3, 10, 7, tzinfo=UTC)


def test_a_window_inside_the_gap_does_not_open_that_day() -> None:
    hour = window("02:00", "03:00", "America/New_York")
    assert hour.next_opening(at("2024-03-10T00:00", "America/New_York")) == at("2024-03-11T02:00", "America/New_York")


def test_a_window_inside_the_repeated_hour_opens_once() -> None:
    hour = window("01:00", "01:30", "America/New_York")
    assert hour.is_open(at("2024-11-03T01:15", "America/New_York"))
    assert not hour.is_open(at("2024-11-03T01:15", "America/New_York", fold=1))
    day = at("2024-11-03T00:00", "America/New_York")
    assert hour.open_time_between(day, day + timedelta(days=1)) == timedelta(minutes=30)


def test_a_window_around_the_repeated_hour_is_an_hour_longer() -> None:
    night = window("22:00", "06:00", "America/New_York")
    evening = at("2024-11-02T20:00", "America/New_York")
    assert night.open_time_between(evening, evening + timedelta(hours=16)) == timedelta(hours=9)


def test_sao_paulos_midnight_that_did_not_exist_opens_at_one() -> None:
    morning = window(None, "12:00")
    assert morning.next_opening(at("2018-11-03T13:00")) == datetime(2018, 11, 4, 3, tzinfo=UTC)
    assert morning.closes_at(at("2018-11-04T05:00")) == at("2018-11-04T12:00")


def test_sao_paulos_saturday_of_twenty_five_hours_does_not_open_on_working_days() -> None:
    week = window(None, None, frequency="weekdays")
    assert not week.is_open(at("2019-02-16T23:30", fold=0))
    assert not week.is_open(at("2019-02-16T23:30", fold=1))


def test_lord_howes_half_hour_shift_is_counted() -> None:
    night = window("01:00", "03:00", "Australia/Lord_Howe")
    spring, autumn = (at(day, "Australia/Lord_Howe") for day in ("2024-10-06T00:00", "2024-04-07T00:00"))
    assert night.open_time_between(spring, spring + 12 * HOUR) == timedelta(minutes=90)
    assert night.open_time_between(autumn, autumn + 12 * HOUR) == timedelta(minutes=150)


def test_a_day_that_a_country_left_out_does_not_open() -> None:
    day = window("08:00", "18:00", "Pacific/Apia")
    assert day.next_opening(at("2011-12-29T18:00", "Pacific/Apia")) == at("2011-12-31T08:00", "Pacific/Apia")


def test_elapsed_time_is_real_when_both_ends_share_a_zone() -> None:
    """Python subtracts wall clocks when both datetimes have the same tzinfo."""
    zone = ZoneInfo("America/New_York")
    always = window(None, None, "America/New_York")
    before, after = datetime(2024, 11, 3, 0, 0, tzinfo=zone), datetime(2024, 11, 3, 12, 0, tzinfo=zone)
    assert always.open_time_between(before, after) == 13 * HOUR


# --- the age of a message ---------------------------------------------------------------------------------------------


def test_the_night_does_not_age_a_message() -> None:
    day = window("08:00", "18:00")
    assert day.age_cutoff(at("2024-05-08T08:20"), HOUR) == at("2024-05-07T17:20")


def test_a_weekend_does_not_age_a_message() -> None:
    week = window("08:00", "18:00", frequency="weekdays")
    assert week.age_cutoff(at("2024-05-13T08:20"), HOUR) == at("2024-05-10T17:20")


def test_while_closed_the_cutoff_stands_still() -> None:
    day = window("08:00", "18:00")
    assert day.age_cutoff(at("2024-05-07T18:00"), HOUR) == at("2024-05-07T17:00")
    assert day.age_cutoff(at("2024-05-08T08:00"), HOUR) == at("2024-05-07T17:00")


def test_the_cutoff_never_looks_back_beyond_its_bound() -> None:
    now = at("2024-05-08T08:00")
    assert window("08:00", "08:01").age_cutoff(now, timedelta(days=2)) == now - LOOK_BACK
    assert window(None, None).age_cutoff(now, timedelta.max) == now - LOOK_BACK


def test_a_negative_age_is_refused() -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        window(None, None).age_cutoff(at("2024-05-08T08:00"), -HOUR)


def test_the_cutoffs_of_two_hundred_runs_take_under_twenty_milliseconds() -> None:
    now = datetime(2024, 11, 4, 13, 37, tzinfo=UTC)
    runs = [
        SendingWindow(
            time(6 + number % 7, number % 60), time(17 + number % 5), ZoneInfo(ZONES[number % 7]), number % 2 == 0
        )
        for number in range(200)
    ]
    best = 1.0
    for attempt in range(5):  # the best of five: the machine does other things too
        started = process_time()
        for run in runs:
            run.age_cutoff(now + attempt * HOUR, HOUR)
        best = min(best, process_time() - started)
    assert best < 0.02


# --- properties -------------------------------------------------------------------------------------------------------


def brute_force(campaign: SendingWindow, first: datetime, minutes: int) -> list[bool]:
    """Tell for each minute whether a window is open, from nothing but a clock that is watched all the time.

    `shown` is the latest wall time that the clock has shown so far, so a repeated hour shows nothing new.
    """
    start, end = campaign.start or time(0), campaign.end or time(0)
    all_day = start == end
    moment = first - timedelta(days=3)
    shown = datetime.min  # noqa: DTZ901 - a wall clock
    answers = []
    while moment < first + minutes * MINUTE:
        shown = max(shown, moment.astimezone(campaign.zone).replace(tzinfo=None))
        if moment >= first:
            wall, today, yesterday = shown.time(), works(campaign, shown), works(campaign, shown - timedelta(days=1))
            if all_day:
                answers.append(today)
            elif start < end:
                answers.append(today and start <= wall < end)
            else:
                answers.append((today and wall >= start) or (yesterday and wall < end))
        moment += MINUTE
    return answers


def works(campaign: SendingWindow, wall: datetime) -> bool:
    """Tell whether a window opens on the day of a wall time."""
    days = campaign.weekdays or (range(1, 6) if campaign.weekdays_only else range(1, 8))
    return wall.isoweekday() in days and wall.date() not in campaign.holidays


@given(campaign=windows, which=st.integers(0, 1), offset=st.integers(0, 24 * 60))
@settings(max_examples=settings().max_examples // 2)
@example(SendingWindow(time(1, 30), time(1, 15), ZoneInfo("America/New_York")), 1, 0)
@example(SendingWindow(time(22), time(6), ZoneInfo("Pacific/Apia"), weekdays_only=True), 0, 0)
@example(SendingWindow(None, time(23, 30), ZoneInfo("America/St_Johns")), 0, 60)
def test_every_minute_around_a_change_agrees_with_a_watched_clock(
    campaign: SendingWindow, which: int, offset: int
) -> None:
    first = CHANGES[campaign.zone.key][which] + offset * MINUTE
    minutes = 3 * 24 * 60
    expected = brute_force(campaign, first, minutes)
    checked = range(0, minutes, 7)  # every seventh minute, and all minutes around a change of the answer
    changes = [n for n, (before, after) in enumerate(pairwise(expected)) if before != after]
    for number in {*checked, *changes, *(n + 1 for n in changes)}:
        assert campaign.is_open(first + number * MINUTE) == expected[number]
    assert campaign.open_time_between(first, first + minutes * MINUTE) == sum(expected) * MINUTE
    if not expected[0] and True in expected:
        assert campaign.next_opening(first) == first + expected.index(True) * MINUTE
    if expected[0] and False in expected:
        assert campaign.closes_at(first) == first + expected.index(False) * MINUTE


@given(windows, instants)
def test_the_next_opening_is_open_and_nothing_before_it_is(campaign: SendingWindow, now: datetime) -> None:
    opening = campaign.next_opening(now)
    assert opening >= now
    assert campaign.is_open(opening)
    assert campaign.open_time_between(now, opening) == timedelta(0)


@given(windows, instants)
@example(  # a holiday right after an opening that runs into another
    SendingWindow(None, None, ZoneInfo("America/Sao_Paulo"), holidays=frozenset({date(2018, 11, 5)})),
    datetime(2018, 11, 3, tzinfo=UTC),
)
def test_an_opening_lasts_exactly_until_it_closes(campaign: SendingWindow, now: datetime) -> None:
    opening = campaign.next_opening(now)
    closing = campaign.closes_at(opening)
    if closing is None:
        assert all(works(campaign, opening + timedelta(days=day)) for day in range(2, 9))
    else:
        assert not campaign.is_open(closing)
        assert campaign.is_open(closing - timedelta(microseconds=1))
        assert campaign.open_time_between(opening, closing) == closing - opening


@given(windows, instants, spans, spans)
def test_open_time_adds_up(campaign: SendingWindow, a: datetime, first: timedelta, second: timedelta) -> None:
    b, c = a + first, a + first + second
    total = campaign.open_time_between(a, c)
    assert campaign.open_time_between(a, b) + campaign.open_time_between(b, c) == total
    assert timedelta(0) <= total <= c - a
    assert campaign.open_time_between(c, a) == timedelta(0)


@given(windows, instants, st.timedeltas(timedelta(0), timedelta(hours=30)))
def test_the_cutoff_is_the_latest_instant_that_is_old_enough(
    campaign: SendingWindow, now: datetime, max_age: timedelta
) -> None:
    cutoff = campaign.age_cutoff(now, max_age)
    assert now - LOOK_BACK <= cutoff <= now
    if cutoff > now - LOOK_BACK:
        assert campaign.open_time_between(cutoff, now) == max_age
        assert max_age == timedelta(0) or (
            campaign.open_time_between(cutoff + timedelta(microseconds=1), now) < max_age
        )
    else:
        assert campaign.open_time_between(cutoff + timedelta(microseconds=1), now) < max_age


@given(windows, instants, spans, st.timedeltas(timedelta(0), timedelta(hours=30)))
def test_the_cutoff_never_runs_backwards(
    campaign: SendingWindow, now: datetime, later: timedelta, max_age: timedelta
) -> None:
    assert campaign.age_cutoff(now, max_age) <= campaign.age_cutoff(now + later, max_age)


@given(windows, instants, st.sampled_from(ZONES))
def test_the_zone_in_which_an_instant_is_written_changes_nothing(
    campaign: SendingWindow, now: datetime, zone: str
) -> None:
    elsewhere = now.astimezone(ZoneInfo(zone))
    assert campaign.is_open(elsewhere) == campaign.is_open(now)
    assert campaign.closes_at(elsewhere) == campaign.closes_at(now)
    assert campaign.age_cutoff(elsewhere, HOUR) == campaign.age_cutoff(now, HOUR)
