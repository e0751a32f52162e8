from datetime import UTC, datetime, time, timedelta
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

from campaign_pipeline.core.forecast import Forecast, Limits, RunPlan, forecast
from campaign_pipeline.core.window import SendingWindow

ZONE = ZoneInfo("America/Sao_Paulo")
NOW = datetime(2026, 11, 23, 12, 30, tzinfo=UTC)  # a Monday, 09:30 there
HOUR = timedelta(hours=1)
ALWAYS = SendingWindow(None, None, ZONE)
INBOX, CAMPAIGN = uuid4(), uuid4()


def plan(messages: int, *, window: SendingWindow = ALWAYS, held: bool = False, config: UUID = CAMPAIGN) -> RunPlan:
    return RunPlan(uuid4(), INBOX, config, window, {NOW.replace(minute=0): messages}, held)


def hours(laid_out: Forecast) -> list[tuple[int, int, int]]:
    return [(slot.hour.astimezone(ZONE).hour, slot.messages, slot.waiting) for slot in laid_out.slots]


def test_without_a_pace_every_message_is_sent_in_its_due_hour() -> None:
    run = plan(500)
    laid_out = forecast(NOW, [run], {}, {})
    assert hours(laid_out) == [(9, 500, 0)]
    assert laid_out.finished_at[run.run_id] == NOW.replace(minute=0) + HOUR


def test_a_gap_counts_only_the_rest_of_this_hour() -> None:
    assert hours(forecast(NOW, [plan(100)], {INBOX: Limits(ZONE, gap_seconds=60)}, {})) == [
        (9, 30, 70),
        (10, 60, 10),
        (11, 10, 0),
    ]


def test_a_closed_window_keeps_messages_until_it_opens() -> None:
    evening = SendingWindow(time(18), time(20), ZONE)
    laid_out = forecast(NOW, [plan(5, window=evening)], {}, {})
    assert [slot for slot in hours(laid_out) if slot[1]] == [(18, 5, 0)]


def test_a_daily_limit_leaves_the_rest_to_the_next_day_and_counts_earlier_use() -> None:
    laid_out = forecast(NOW, [plan(50)], {INBOX: Limits(ZONE, day_limits=(30, 60), day_count=25)}, {})
    sent = {slot.hour.astimezone(ZONE).date().day: 0 for slot in laid_out.slots}
    for slot in laid_out.slots:
        sent[slot.hour.astimezone(ZONE).date().day] += slot.messages
    assert sent == {23: 5, 24: 45}


def test_quiet_hours_send_nothing() -> None:
    quiet = Limits(ZONE, hours=SendingWindow(time(11), time(9), ZONE))
    assert hours(forecast(NOW, [plan(5)], {INBOX: quiet}, {}))[:3] == [(9, 0, 5), (10, 0, 5), (11, 5, 0)]


def test_runs_of_one_inbox_share_its_pace_and_unused_shares() -> None:
    small, large = plan(4), plan(100)
    laid_out = forecast(NOW, [large, small], {INBOX: Limits(ZONE, hourly_limit=20)}, {})
    assert laid_out.slots[0].messages == 20
    assert laid_out.finished_at[small.run_id] == NOW.replace(minute=0) + HOUR


def test_two_runs_of_one_campaign_share_its_limit() -> None:
    laid_out = forecast(NOW, [plan(8), plan(8)], {}, {CAMPAIGN: Limits(ZONE, day_limits=(10,))})
    assert laid_out.slots[0].messages == 10


def test_a_run_that_waits_for_a_person_sends_nothing_and_has_no_end() -> None:
    run = plan(5, held=True)
    laid_out = forecast(NOW, [run], {}, {})
    assert (laid_out.slots, laid_out.finished_at) == ([], {run.run_id: None})
