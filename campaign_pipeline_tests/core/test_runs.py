from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from campaign_pipeline.core.runs import (
    DEFAULT_INTERVAL_SECONDS,
    OpenPause,
    RunningRun,
    RunState,
    judge_run,
    why_held,
)

RUN, INBOX, WORKSPACE = (UUID(int=number) for number in (1, 2, 3))
NOON = datetime(2026, 3, 3, 15, tzinfo=UTC)  # 12:00 in São Paulo, a Tuesday
HOUR = timedelta(hours=1)
MAX_AGE = HOUR


def row(**changes: Any) -> dict[str, Any]:
    """A run that may be sent, as `list_running_runs` returns it."""
    return {
        "run_id": RUN,
        "name": "Hoje",
        "wait_code": None,
        "wait_reason": None,
        "wait_until": None,
        "resumed_at": None,
        "now": NOON,
        "config_id": UUID(int=9),
        "workspace_id": WORKSPACE,
        "inbox_id": INBOX,
        "is_active": True,
        "start_time": "09:00:00",
        "end_time": "18:00:00",
        "timezone": "America/Sao_Paulo",
        "frequency": "daily",
        "weekdays": None,
        "holidays": None,
        "min_interval_seconds": 60,
        "instance_id": UUID(int=8),
        "instance_status": "connected",
        "instance_name": "numero",
        "model": "a/model",
        "has_due": True,
        "pace_held_since": None,
        "active_inbox_id": None,
        "fallbacks": None,
        **changes,
    }


def pause(
    scope: str = "inbox", scope_id: Any = INBOX, kind: str = "systemic", lasts: timedelta = HOUR
) -> dict[str, Any]:
    return {
        "scope": scope,
        "scope_id": str(scope_id),
        "kind": kind,
        "code": f"{scope}_trouble",
        "reason": "Trouble.",
        "since": NOON - HOUR / 60,
        "until": NOON - HOUR / 60 + lasts,
        "probe_due": False,
    }


def judge(*pauses: dict[str, Any], **changes: Any) -> RunState:
    return judge_run(RunningRun.from_row(row(**changes)), [OpenPause.from_row(each) for each in pauses], MAX_AGE)


def code(state: RunState) -> str | None:
    return state.wait.code if state.wait else None


def test_a_run_without_a_wait_is_sent() -> None:
    state = judge()
    assert (state.wait, state.has_due, state.resumed, state.note_changed) == (None, True, False, False)
    assert state.too_old_before == NOON - HOUR
    assert state.closes_at == NOON + 6 * HOUR
    assert state.interval_seconds == 60


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"config_id": None, "is_active": None, "inbox_id": None}, "no_campaign"),
        ({"is_active": False, "inbox_id": None}, "campaign_inactive"),
        ({"inbox_id": None, "instance_id": None}, "no_inbox"),
        ({"instance_id": None, "instance_status": None}, "inbox_without_instance"),
        ({"instance_status": "disconnected", "timezone": "Nowhere"}, "inbox_disconnected"),
        ({"instance_status": None}, "inbox_disconnected"),
        ({"instance_status": "close", "model": None}, "inbox_disconnected"),
        ({"timezone": "Nowhere", "model": None}, "no_model"),
        ({"timezone": "Nowhere"}, "invalid_window"),
        ({"start_time": "24:00:00"}, "invalid_window"),
        ({"now": NOON + 12 * HOUR}, "window_closed"),
        ({"now": NOON + 4 * 24 * HOUR, "frequency": "weekdays"}, "window_closed"),  # a Saturday
        ({"holidays": [NOON.date()]}, "window_closed"),
        ({"weekdays": []}, "invalid_window"),
    ],
)
def test_the_most_basic_of_several_reasons_is_reported(changes: dict[str, Any], expected: str) -> None:
    state = judge(**changes)
    assert code(state) == expected
    assert state.wait is not None
    assert state.wait.run_id == RUN
    assert state.wait.reason.endswith((".", "?"))
    assert state.note_changed


def test_a_window_that_opens_within_the_horizon_holds_only_overdue_messages() -> None:
    run = {"start_time": "12:01:00", "timezone": "UTC", "now": NOON.replace(hour=12, minute=0)}

    def ahead(seconds: float, **changes: Any) -> str | None:
        return code(judge_run(RunningRun.from_row(row(**run, **changes)), [], MAX_AGE, timedelta(seconds=seconds)))

    assert (ahead(0), ahead(59), ahead(60)) == ("window_closed", "window_closed", None)
    assert ahead(90, wait_code="window_closed") is None
    assert ahead(90, wait_code="inbox_disconnected") == "window_closed"
    assert ahead(90, resumed_at=run["now"]) == "window_closed"


def test_a_closed_window_says_when_it_opens_on_the_campaigns_own_clock() -> None:
    wait = judge(now=NOON + 12 * HOUR).wait
    assert wait is not None
    assert wait.reason == "The sending window is closed; it opens at 2026-03-04 09:00 (America/Sao_Paulo)."
    assert wait.until == datetime(2026, 3, 4, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("scope", "scope_id"),
    [("run", RUN), ("inbox", INBOX), ("workspace", WORKSPACE), ("model", "a/model"), ("provider", "openrouter")],
)
def test_a_pause_covers_the_runs_of_its_scope(scope: str, scope_id: Any) -> None:
    assert code(judge(pause(scope, scope_id))) == f"{scope}_trouble"
    if scope != "provider":
        assert code(judge(pause(scope, UUID(int=77)))) is None


def test_a_closed_window_is_no_pause_and_a_pause_is_reported_first() -> None:
    assert code(judge(pause(), now=NOON + 12 * HOUR)) == "inbox_trouble"


def test_a_short_throttle_is_reported_as_such_and_after_any_pause() -> None:
    short = pause(kind="throttled", lasts=timedelta(minutes=10))
    assert code(judge(short)) == "slowed_down"
    assert code(judge(pause(kind="throttled", lasts=timedelta(minutes=11)))) == "inbox_trouble"
    assert code(judge(short, pause("workspace", WORKSPACE))) == "workspace_trouble"


# Resuming -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("was", ["inbox_disconnected", "inbox_trouble", "campaign_inactive", "invalid_window"])
def test_the_end_of_a_hold_is_a_resume(was: str) -> None:
    assert judge(wait_code=was).resumed


@pytest.mark.parametrize("was", [None, "window_closed", "slowed_down"])
def test_an_opened_window_and_a_short_slow_down_are_no_resume(was: str | None) -> None:
    assert not judge(wait_code=was).resumed


def test_a_manual_resume_stays_pending_until_it_is_handled() -> None:
    assert judge(resumed_at=NOON - HOUR).resumed
    assert judge(resumed_at=NOON - HOUR, now=NOON + 12 * HOUR).resumed
    assert not judge(resumed_at=NOON - HOUR, instance_status="disconnected").resumed


def test_messages_postponed_to_the_windows_end_are_not_spread_earlier() -> None:
    closing = NOON + 6 * HOUR
    assert not judge(resumed_at=closing).resumed
    assert judge(resumed_at=closing, now=NOON + 21 * HOUR).resumed


def test_the_time_of_a_resume_is_kept() -> None:
    assert judge(wait_code="inbox_trouble").resumed_at == NOON
    assert judge(resumed_at=NOON - HOUR).resumed_at == NOON - HOUR


@pytest.mark.parametrize("interval", [None, 0])
def test_a_campaign_without_an_interval_has_the_crms_minimum(interval: int | None) -> None:
    assert judge(min_interval_seconds=interval).interval_seconds == DEFAULT_INTERVAL_SECONDS


# Notes ----------------------------------------------------------------------------------------------------------------


def test_a_note_is_written_only_when_it_says_something_new() -> None:
    state = judge(pause())
    assert state.wait is not None
    note = {"wait_code": state.wait.code, "wait_reason": state.wait.reason, "wait_until": state.wait.until}
    assert not judge(pause(), **note).note_changed
    for key, other in (("wait_code", "x"), ("wait_reason", "X."), ("wait_until", NOON)):
        assert judge(pause(), **{**note, key: other}).note_changed
    assert judge(**note).note_changed


# Pace and fallback inboxes --------------------------------------------------------------------------------------------


def test_waiting_for_a_pace_does_not_age_a_message() -> None:
    now = NOON + 2 * HOUR
    assert judge(now=now).too_old_before == NOON + HOUR
    assert judge(now=now, pace_held_since=NOON).too_old_before == NOON - HOUR


def test_a_wait_for_a_pace_that_is_over_is_no_resume_but_a_pause_of_the_same_name_is() -> None:
    assert not judge(wait_code="daily_limit", pace_held_since=NOON - HOUR).resumed
    assert judge(wait_code="daily_limit").resumed


def test_a_noted_wait_for_a_pace_holds_until_shortly_before_its_end() -> None:
    note = {"wait_code": "paced", "wait_reason": "The inbox waits.", "wait_until": NOON + HOUR}
    state = judge(**note)
    assert state.wait is None
    assert code(state.with_noted_pace_wait(NOON)) == "paced"
    assert not state.with_noted_pace_wait(NOON).note_changed
    assert state.with_noted_pace_wait(NOON + HOUR).wait is None
    assert code(judge(**note, is_active=False).with_noted_pace_wait(NOON)) == "campaign_inactive"
    assert judge(**{**note, "wait_code": "no_credit"}).with_noted_pace_wait(NOON).wait is None


OTHER = {
    "inbox_id": str(UUID(int=4)),
    "instance_id": str(UUID(int=5)),
    "instance_status": "connected",
    "instance_name": "outro",
}


def test_a_run_whose_inbox_is_down_goes_through_the_first_healthy_fallback() -> None:
    third = {**OTHER, "inbox_id": str(UUID(int=6))}
    down = {"instance_status": "disconnected", "fallbacks": [OTHER, third]}
    assert judge(**down).active_inbox_id == UUID(int=4)
    assert judge(pause("inbox", UUID(int=4)), **down).active_inbox_id == UUID(int=6)
    assert judge(fallbacks=[OTHER]).active_inbox_id is None
    assert code(judge(pause("inbox", UUID(int=4)), pause("inbox", UUID(int=6)), **down)) == "inbox_disconnected"


def test_a_throttle_is_no_reason_for_another_inbox() -> None:
    state = judge(pause(kind="throttled"), fallbacks=[OTHER])
    assert (state.active_inbox_id, code(state)) == (None, "inbox_trouble")


def test_a_probe_of_the_own_inbox_needs_all_its_pauses_due_and_a_connection() -> None:
    own = ("inbox", str(INBOX))
    state = judge(pause(), fallbacks=[OTHER])
    assert state.wait is None
    assert state.may_probe_own_inbox({own})
    assert not state.may_probe_own_inbox(set())
    assert not judge(pause(), fallbacks=[OTHER], instance_status="disconnected").may_probe_own_inbox({own})
    assert not judge(fallbacks=[OTHER]).may_probe_own_inbox({own})


# Probing --------------------------------------------------------------------------------------------------------------


def test_a_run_held_only_by_pauses_may_probe_them_all_at_once() -> None:
    state = judge(pause(), pause("provider", "openrouter"))
    inbox, provider = ("inbox", str(INBOX)), ("provider", "openrouter")
    assert state.may_probe({inbox, provider, ("run", "x")})
    assert not state.may_probe({inbox})
    assert not state.may_probe(set())


@pytest.mark.parametrize("changes", [{"now": NOON + 12 * HOUR}, {"is_active": False}, {"timezone": "Nowhere"}])
def test_a_run_held_by_something_else_may_not_probe(changes: dict[str, Any]) -> None:
    assert not judge(pause(), **changes).may_probe({("inbox", str(INBOX))})


def test_a_run_held_by_no_pause_has_nothing_to_probe() -> None:
    assert not judge().may_probe({("inbox", str(INBOX))})


@given(
    st.fixed_dictionaries(
        {
            "config_id": st.sampled_from([None, UUID(int=9)]),
            "is_active": st.sampled_from([None, True, False]),
            "inbox_id": st.sampled_from([None, INBOX]),
            "instance_id": st.sampled_from([None, UUID(int=8)]),
            "instance_status": st.sampled_from([None, "", "connected", "disconnected"]),
            "start_time": st.sampled_from([None, "00:00:00", "22:00:00", "24:00:00", "08:00:00.5"]),
            "end_time": st.sampled_from([None, "06:00:00", "24:00:00"]),
            "timezone": st.sampled_from(
                [None, "", "Nowhere", "Asia/Kathmandu", "Australia/Lord_Howe", "../etc/passwd"]
            ),
            "frequency": st.sampled_from([None, "daily", "weekdays", "hourly"]),
            "min_interval_seconds": st.sampled_from([None, 0, 30]),
            "model": st.sampled_from([None, "a/model"]),
            "wait_code": st.sampled_from([None, "window_closed", "slowed_down", "inbox_trouble"]),
            "resumed_at": st.sampled_from([None, NOON - HOUR, NOON + HOUR]),
        }
    ),
    st.lists(
        st.builds(pause, st.sampled_from(["run", "inbox", "workspace", "model", "provider"]), st.just(INBOX)),
        max_size=3,
    ),
)
def test_every_row_that_a_crm_may_hold_gets_a_verdict(changes: dict[str, Any], pauses: list[dict[str, Any]]) -> None:
    state = judge(*pauses, **changes)
    if state.wait is None:
        assert changes["config_id"] is not None
        assert changes["is_active"]
        assert changes["instance_status"] == "connected"
        assert not state.pauses
    else:
        assert state.wait.reason
        assert not state.may_probe(set())
    assert state.interval_seconds > 0
    assert state.too_old_before <= NOON - MAX_AGE


# What holds a written text at its planned time ------------------------------------------------------------------------


def held(inbox: UUID = INBOX, **changes: Any) -> str | None:
    wait = why_held(RunningRun.from_row(row(**changes)), inbox)
    return wait.code if wait else None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"is_active": False}, "campaign_inactive"),
        ({"instance_status": "disconnected"}, "inbox_disconnected"),
        ({"instance_id": None}, "inbox_without_instance"),
        ({"inbox_id": UUID(int=5)}, "settings_changed"),
        ({"start_time": "13:00:00"}, "window_closed"),
        ({"end_time": "11:59:00"}, "window_closed"),
        ({"start_time": "12:00:01"}, None),  # the worker woke for the opening; by its clock it is open
        ({"timezone": "Mars/Base"}, "invalid_window"),
        ({"model": None}, None),  # the text is written
    ],
)
def test_a_written_text_is_held_by_what_the_settings_say_at_its_planned_time(
    changes: dict[str, Any], expected: str | None
) -> None:
    assert held(**changes) == expected


def test_a_text_for_a_fallback_inbox_goes_through_it_as_long_as_that_is_a_connected_fallback() -> None:
    other, down = UUID(OTHER["inbox_id"]), {**OTHER, "instance_status": "disconnected"}
    assert held(other, fallbacks=[OTHER], instance_status="disconnected") is None
    assert held(other, fallbacks=[OTHER]) is None, "its own inbox is back; the detour does no harm"
    assert held(other, fallbacks=[down]) == "inbox_disconnected"
    assert held(other) == "settings_changed", "it is no fallback any more"
