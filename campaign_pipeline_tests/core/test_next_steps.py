"""Every reason of the pipeline has a correct next step."""

import ast
import re
from pathlib import Path
from typing import get_args

import pytest

import campaign_pipeline
from campaign_pipeline.adapters import openrouter, smtp_replies
from campaign_pipeline.core import claim_budget
from campaign_pipeline.core.address import AddressCode
from campaign_pipeline.core.next_steps import PASSES, REMEDIES, SEND_AGAIN, next_step, step_of_wait
from campaign_pipeline.core.phone_reading import PhoneCode
from campaign_pipeline.core.ports import Verdict
from campaign_pipeline.core.text_rules import RefusalRule

PACKAGE = Path(campaign_pipeline.__file__).parent
GIVE_A_CODE = {
    *("Permanent", "Transient", "Throttled", "Systemic", "Unknown", "Row", "Rule", "RunWait", "Settlement"),
    *("Fail", "Skip", "GiveBack", "Retry", "Lost", "Released", "Unconfigured"),
}
"""What is called with a code: a text of small letters, first or second, or by its name."""

_CODE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_SQL_CODE = re.compile(r"(?:error_code|wait_code)\s*(?:=|:=)\s*'([a-z_]+)'|'([a-z_]+)' AS code")


def literal_codes() -> set[str]:
    """Return the codes, literal or by a constant, where an outcome, a wait or a result is created."""
    trees = [
        ast.parse(path.read_text(encoding="utf-8"))
        for path in PACKAGE.rglob("*.py")
        if not {"sandbox", "demo"} & set(path.parts)
    ]
    constants = {
        target.id: node.value.value
        for tree in trees
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    calls = [
        node
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in GIVE_A_CODE
    ]
    given = [part for node in calls for part in node.args[:2]]
    given += [keyword.value for node in calls for keyword in node.keywords if keyword.arg == "code"]
    texts = [part.value if isinstance(part, ast.Constant) else constants.get(getattr(part, "id", "")) for part in given]
    return {text for text in texts if isinstance(text, str) and _CODE.fullmatch(text)}


def sql_codes() -> set[str]:
    """Return the codes that statements and functions produce."""
    texts = [path.read_text(encoding="utf-8") for path in (PACKAGE / "sql").rglob("*.sql")]
    return {code for text in texts for pair in _SQL_CODE.findall(text) for code in pair if code}


def all_codes() -> set[str]:
    verdicts = {verdict.value for verdict in Verdict} - {"go", "lost"}
    models = {*openrouter.ERROR_TYPES, *(code for _, _, code in openrouter.STATUSES.values())}
    mail = {rule.code for rule in smtp_replies.RULES}
    rules = {*get_args(RefusalRule), *get_args(PhoneCode), *get_args(AddressCode)}
    return literal_codes() | sql_codes() | verdicts | models | mail | rules | claim_budget.CODES


def test_every_code_has_a_remedy_or_is_known_to_pass() -> None:
    found = all_codes()
    assert {"no_template", "worker_died", "too_old", "inbox_disconnected", "hard_bounce"} <= found, "the search works"
    assert sorted(found - REMEDIES.keys()) == []


@pytest.mark.parametrize(
    ("what", "error_class", "code", "words"),
    [
        ("returned", "systemic", "no_template", "give the campaign a template"),
        ("returned", "throttled", "rate_limited", "nothing: it is retried automatically"),
        ("returned", "systemic", "inbox_disconnected", "connect the inbox's instance; it then continues automatically"),
        ("returned", "", "a_code_of_tomorrow", "nothing: it is retried automatically"),
        ("failed", "exhausted", "no_answer", SEND_AGAIN),
        ("failed", "exhausted", "unreachable", f", then {SEND_AGAIN}"),
        ("failed", "permanent", "invalid_phone", "correct the lead's phone number, then"),
        ("failed", "permanent", "not_on_whatsapp", "nothing: it was rejected for good"),
        ("failed", "permanent", "opted_out", "nothing: it was rejected for good"),
        ("failed", "unknown", "no_answer", "only a person may resend it"),
        ("skipped", "", "foreign_workspace", "rows_stay_in_their_workspace"),
        ("skipped", "", "lead_deleted", "nothing: it will not be sent"),
        ("left", "", "lease_lost", "nothing: the worker that holds it"),
    ],
)
def test_the_next_step_follows_from_the_messages_end_and_its_reason(
    what: str, error_class: str, code: str, words: str
) -> None:
    assert words in next_step(what, error_class, code)


def test_no_cause_that_a_person_must_fix_is_said_to_pass() -> None:
    for code, remedy in REMEDIES.items():
        for step in (next_step("returned", "systemic", code), step_of_wait(code)):
            assert step.startswith("nothing") == (remedy == PASSES), code


def test_a_remedy_is_an_imperative_without_a_full_stop() -> None:
    for remedy in set(REMEDIES.values()) - {PASSES}:
        assert remedy[0].islower()
        assert not remedy.endswith(".")
