"""A run's report on its batch: the sentences, and whether they mean success."""

from typing import Any

import pytest

from campaign_pipeline.core.batch_outcome import BatchCounts, batch_outcome


def report(claimed: int, code: str = "", count: int = 0, error_class: str = "") -> dict[str, Any]:
    key = f"returned: {code}"
    reasons = {key: count} if count else {}
    return {"claimed": claimed, "reasons": reasons, "classes": {key: error_class}, "sentences": {key: "Why it waits."}}


def test_messages_of_steps_that_never_ran_are_no_trouble_once_sent() -> None:
    left_out = batch_outcome(6, BatchCounts(sent=3, waiting=3), 0, [report(3)])
    assert not left_out.is_worked
    assert left_out.work_sentence().startswith(
        "3 of 6 messages of this batch are not sent: the steps of 3 of them never"
    )
    assert batch_outcome(6, BatchCounts(sent=6), 0, [report(3)]).is_worked


def test_messages_that_ended_steps_still_held_are_reported() -> None:
    outcome = batch_outcome(4, BatchCounts(waiting=4), 4, [report(4)])
    assert "4 of them were held by steps that have ended" in outcome.work_sentence()


@pytest.mark.parametrize(
    ("code", "error_class", "trouble"),
    [
        ("bad_key", "systemic", True),
        ("inbox_disconnected", "systemic", True),
        ("a_code_of_tomorrow", "systemic", True),
        ("paced", "", False),
        ("no_answer", "transient", False),
        ("paused_by_person", "", False),
        ("awaiting_review", "", False),
    ],
)
def test_only_causes_that_a_person_must_fix_are_trouble(code: str, error_class: str, trouble: bool) -> None:
    outcome = batch_outcome(2, BatchCounts(waiting=2), 0, [report(2, code, 2, error_class)])
    assert outcome.could_send is not trouble
    assert outcome.cause_sentence().startswith("0 of 2 sent")
    assert (f"Waiting ({code}): 2 messages. Why it waits. Next: " in outcome.cause_sentence()) is trouble
