import pytest
from hypothesis import given
from hypothesis import strategies as st

from campaign_pipeline.core.model import ErrorClass, MessageStatus
from campaign_pipeline.core.ports import (
    MAY_HAVE_NO_RECORD,
    Absent,
    Failure,
    Found,
    LookUp,
    LookUpAnswer,
    LookUpFailed,
    Permanent,
    Scope,
    Systemic,
    Throttled,
    Transient,
    Unknown,
)
from campaign_pipeline.core.results import THROTTLE_SECONDS, Fail, GiveBack, Result, RetryPolicy

POLICY = RetryPolicy(jitter=0.0)
texts = st.text(min_size=1, max_size=20)
seconds = st.none() | st.floats(0, 1e6)
scopes = st.sampled_from(Scope)
chances = st.floats(0, 1, exclude_max=True)
failures = st.one_of(
    st.builds(Permanent, texts, texts),
    st.builds(Transient, texts, texts, seconds),
    st.builds(Throttled, texts, texts, scopes, seconds),
    st.builds(Systemic, texts, texts, scopes, seconds),
    st.builds(Unknown, texts, texts),
)
answers = st.one_of(
    st.none(),
    st.builds(Found, texts),
    st.builds(Absent, st.booleans(), texts, st.booleans()),
    st.builds(LookUpFailed, texts),
)


def no_chance() -> float:
    return 0.0


def decide(failure: Failure, attempts_before: int = 0) -> Result:
    return POLICY.decide(failure, attempts_before, no_chance)


# By class -------------------------------------------------------------------------------------------------------------


def test_a_permanent_failure_ends_the_message_and_keeps_its_reason() -> None:
    assert decide(Permanent("not_on_whatsapp", "No such number.")) == Fail(
        "not_on_whatsapp", "No such number.", ErrorClass.PERMANENT
    )


def test_a_transient_failure_is_retried_after_five_and_fifteen_minutes() -> None:
    failure = Transient("provider_500", "It answered 500.")
    first, second, third = (decide(failure, before) for before in range(3))
    assert (first.status, first.delay_seconds, first.count_attempt) == (MessageStatus.PENDING, 300.0, True)
    assert (second.status, second.delay_seconds, second.count_attempt) == (MessageStatus.PENDING, 900.0, True)
    assert third == Fail("provider_500", "It answered 500. Given up after 3 attempts.", ErrorClass.EXHAUSTED)
    assert third.count_attempt


def test_more_attempts_than_delays_repeat_the_last_delay() -> None:
    policy = RetryPolicy((60.0, 120.0), max_attempts=9, jitter=0.0)
    failure = Transient("x", "X.")
    assert [policy.decide(failure, before, no_chance).delay_seconds for before in range(4)] == [
        60.0,
        120.0,
        120.0,
        120.0,
    ]


@pytest.mark.parametrize(("hint", "delay"), [(10.0, 300.0), (1000.0, 1000.0), (None, 300.0)])
def test_a_providers_hint_can_only_lengthen_a_transient_delay(hint: float | None, delay: float) -> None:
    assert decide(Transient("x", "X.", hint)).delay_seconds == delay


@pytest.mark.parametrize(("hint", "delay"), [(None, THROTTLE_SECONDS), (0.0, 0.0), (42.0, 42.0)])
def test_a_throttle_waits_as_long_as_the_provider_says_and_counts_no_attempt(hint: float | None, delay: float) -> None:
    assert decide(Throttled("pair_limited", "Slow.", Scope.MESSAGE, hint), 2) == GiveBack(
        "pair_limited", "Slow.", ErrorClass.THROTTLED, delay
    )


def test_a_throttled_inbox_leaves_its_messages_in_their_order() -> None:
    assert decide(Throttled("daily_limit", "Tomorrow.", Scope.INBOX, 50_000.0)) == GiveBack(
        "daily_limit", "Tomorrow.", ErrorClass.THROTTLED, None
    )


def test_a_systemic_failure_returns_the_message_unchanged() -> None:
    assert decide(Systemic("no_credit", "No credit.", Scope.PROVIDER), 2) == GiveBack(
        "no_credit", "No credit.", ErrorClass.SYSTEMIC, None
    )


def test_an_unknown_outcome_is_never_retried_automatically() -> None:
    assert decide(Unknown("read_timeout", "No answer.")) == Fail("read_timeout", "No answer.", ErrorClass.UNKNOWN)


@given(failures, st.integers(0, 10), chances)
def test_every_failure_keeps_its_code_and_begins_with_its_reason(failure: Failure, before: int, chance: float) -> None:
    decision = RetryPolicy().decide(failure, before, lambda: chance)
    assert decision.code == failure.code
    assert decision.reason.startswith(failure.reason)
    assert decision.status in {MessageStatus.PENDING, MessageStatus.FAILED}
    assert decision.count_attempt == isinstance(failure, Transient)


@given(failures, st.integers(0, 10), chances)
def test_only_waiting_results_have_a_delay_and_none_is_negative(failure: Failure, before: int, chance: float) -> None:
    decision = RetryPolicy().decide(failure, before, lambda: chance)
    if decision.delay_seconds is not None:
        assert decision.status is MessageStatus.PENDING
        assert decision.delay_seconds >= 0


@given(st.integers(0, 1), chances, seconds)
def test_jitter_stretches_a_delay_by_up_to_a_fifth_and_never_shortens_it(
    before: int, chance: float, hint: float | None
) -> None:
    plain = decide(Transient("x", "X.", hint), before).delay_seconds
    jittered = RetryPolicy().decide(Transient("x", "X.", hint), before, lambda: chance).delay_seconds
    assert plain is not None
    assert jittered is not None
    assert plain <= jittered <= 1.2 * plain * (1 + 1e-9)


@given(st.integers(1, 9), st.integers(0, 20))
def test_no_message_is_attempted_more_often_than_allowed(max_attempts: int, before: int) -> None:
    decision = RetryPolicy(max_attempts=max_attempts).decide(Transient("x", "X."), before, no_chance)
    assert (decision.status is MessageStatus.PENDING) == (before + 1 < max_attempts)


# Unknown outcomes -----------------------------------------------------------------------------------------------------

PATIENCE = POLICY.look_up_patience_seconds


def test_a_found_part_was_sent() -> None:
    found = Found("WA-1")
    assert POLICY.decide_unknown(LookUp.EXACT, found, 1.0) is found


@pytest.mark.parametrize("proven", [True, False])
def test_a_miss_within_the_patience_proves_nothing_and_is_looked_up_again(proven: bool) -> None:
    decision = POLICY.decide_unknown(LookUp.SEARCH, Absent(proven, "Not there."), PATIENCE - 10)
    assert isinstance(decision, Result)
    assert (decision.status, decision.error_class, decision.code, decision.delay_seconds) == (
        MessageStatus.PENDING,
        ErrorClass.UNKNOWN,
        "look_up_pending",
        10.0,
    )
    assert "Not there." in decision.reason


def test_a_proven_absence_after_the_patience_may_be_tried_again() -> None:
    answer = POLICY.decide_unknown(LookUp.EXACT, Absent(True, "Not there."), PATIENCE)
    assert answer == Transient("not_accepted", "The provider does not have it. Not there.")


@pytest.mark.parametrize("code", sorted(MAY_HAVE_NO_RECORD))
def test_a_miss_proves_nothing_after_an_answer_whose_provider_may_have_no_record(code: str) -> None:
    decision = POLICY.decide_unknown(LookUp.EXACT, Absent(True, "Not there."), PATIENCE, code=code)
    assert isinstance(decision, Fail)
    assert decision.error_class is ErrorClass.UNKNOWN


def test_a_miss_that_proves_nothing_ends_as_unknown() -> None:
    decision = POLICY.decide_unknown(LookUp.SEARCH, Absent(False, "Nothing to compare."), PATIENCE)
    assert isinstance(decision, Result)
    assert (decision.status, decision.error_class, decision.code) == (
        MessageStatus.FAILED,
        ErrorClass.UNKNOWN,
        "unknown_outcome",
    )
    assert "Nothing to compare." in decision.reason
    assert decision.reason.endswith("It is sent again only when a person says so.")


def test_a_look_up_that_may_prove_more_later_is_repeated_but_not_for_ever() -> None:
    answer = Absent(False, "No control yet.", may_improve=True)
    waiting = POLICY.decide_unknown(LookUp.SEARCH, answer, POLICY.wait_for_proof_seconds - 1)
    ended = POLICY.decide_unknown(LookUp.SEARCH, answer, POLICY.wait_for_proof_seconds)
    assert isinstance(waiting, Result)
    assert isinstance(ended, Result)
    assert (waiting.status, waiting.error_class) == (MessageStatus.PENDING, ErrorClass.UNKNOWN)
    assert (ended.status, ended.error_class) == (MessageStatus.FAILED, ErrorClass.UNKNOWN)


@pytest.mark.parametrize(("age", "delay"), [(0.0, 30.0), (200.0, 200.0), (80_000.0, 900.0)])
def test_an_unavailable_provider_is_asked_ever_more_rarely(age: float, delay: float) -> None:
    decision = POLICY.decide_unknown(LookUp.EXACT, LookUpFailed("It is down."), age)
    assert isinstance(decision, Result)
    assert (decision.status, decision.code, decision.delay_seconds) == (MessageStatus.PENDING, "look_up_failed", delay)


def test_a_provider_that_could_not_be_asked_for_a_day_ends_the_message_as_unknown() -> None:
    decision = POLICY.decide_unknown(LookUp.EXACT, LookUpFailed("It is down."), 24 * 3600.0)
    assert isinstance(decision, Result)
    assert (decision.status, decision.error_class) == (MessageStatus.FAILED, ErrorClass.UNKNOWN)


def test_without_a_look_up_the_message_ends_as_unknown_at_once() -> None:
    decision = POLICY.decide_unknown(LookUp.NONE, None, 0.0)
    assert isinstance(decision, Result)
    assert (decision.status, decision.error_class) == (MessageStatus.FAILED, ErrorClass.UNKNOWN)


@given(st.sampled_from(LookUp), answers, st.floats(0, 1e7))
def test_an_unknown_outcome_is_sent_again_only_after_a_proof_of_absence(
    look_up: LookUp, answer: LookUpAnswer | None, age: float
) -> None:
    decided = POLICY.decide_unknown(look_up, answer, age)
    if isinstance(decided, Transient):
        assert isinstance(answer, Absent)
        assert answer.proven
        assert age >= PATIENCE
    elif isinstance(decided, Result):
        assert decided.error_class is ErrorClass.UNKNOWN
        assert not decided.count_attempt
        assert (decided.delay_seconds is not None) == (decided.status is MessageStatus.PENDING)
    else:
        assert decided is answer
