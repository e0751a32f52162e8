"""What the answers of message providers mean, as data: each adapter has one table, the first row that matches decides.

A provider that words a failure anew needs a row in its adapter's table and a sample in the tests' `answers/`. An answer
that no row knows is never guessed at: it gets the code UNRECOGNISED, its shape in a sentence, and its body, redacted,
for the ledger.
"""

import re
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

from campaign_pipeline.adapters.http import Answer, NoAnswer
from campaign_pipeline.adapters.redaction import redact_phones
from campaign_pipeline.core.ports import (
    UNRECOGNISED,
    Failure,
    Permanent,
    Scope,
    Systemic,
    Throttled,
    Transient,
    Unknown,
)

# How the servers that speak WhatsApp over its web protocol word what happened to them; whoever hands their texts on
# reads the same words.
SAYS_DISCONNECTED = (
    r"connection closed|not (open|connected|logged in)|no (active )?session|disconnected|n[ãa]o (est[áa] )?conectad"
)
SAYS_TOO_FAST = r"rate.?overlimit|too many requests|\b429\b"
SAYS_TIMED_OUT = (  # looked for first: a connection that ended on the way says nothing of what it carried
    r"timed?[ -]?out|deadline exceeded|connection (was )?(lost|terminated)|stream errored|disconnected (before|while)"
)
SAYS_NOBODY = r"not (registered )?on whatsapp|n[ãa]o (est[áa] )?(no|registrad[oa] no) whatsapp|invalid (phone )?number"

MOST_READ = 2000
"""Characters of a body that are searched for what it says: a page of megabytes must cost no more than a sentence."""

_FIELD_NAME = re.compile(r"[A-Za-z][A-Za-z_]{0,31}")
_MOST_FIELDS = 8


@dataclass(frozen=True)
class Row:
    """One kind of answer. What is not named matches everything; `{status}` in a code is the answer's own."""

    outcome: type[Permanent] | type[Transient] | type[Throttled] | type[Systemic] | type[Unknown]
    code: str  # stable, machine readable
    sentence: str  # for the operator
    status: Container[int] | None = None  # HTTP
    says: str | None = None  # a pattern, searched in what it says; case does not matter
    number: Container[int] | None = None  # the provider's own number of the error
    scope: Scope = Scope.INBOX
    retry_after: float | None = None  # seconds, where the provider gives no hint of its own
    attempts: int | None = None  # see core.ports.Transient
    quoted: bool = False  # whether the operator needs to read what it said

    def matches(self, status: int, said: str, number: int | None) -> bool:
        """Whether an answer is of this kind."""
        return (
            (self.status is None or status in self.status)
            and (self.number is None or (number is not None and number in self.number))
            and (self.says is None or re.search(self.says, said, re.IGNORECASE) is not None)
        )


def first_row(table: Sequence[Row], status: int, said: str, number: int | None = None) -> Row | None:
    """The first row that matches; None where no row knows such an answer."""
    return next((row for row in table if row.matches(status, said, number)), None)


def failure(table: Sequence[Row], answer: Answer, said: str | None = None, number: int | None = None) -> Failure | None:
    """What the first row that matches makes of an answer; None where no row knows it.

    `said` is the part of the body that says what happened; None: all of it.
    """
    words = (answer.text if said is None else said)[:MOST_READ]
    row = first_row(table, answer.status, words, number)
    if row is None:
        return None
    code = row.code.format(status=answer.status)
    reason = row.sentence.format(status=answer.status)
    if row.quoted and words.strip():
        reason = f"{reason} It said: {redact_phones(words)}"
    after = row.retry_after if answer.retry_after is None else answer.retry_after
    if row.outcome is Systemic:
        return Systemic(code, reason, row.scope, answer.retry_after)
    if row.outcome is Throttled:
        return Throttled(code, reason, row.scope, after)
    if row.outcome is Transient:
        return Transient(code, reason, after, row.attempts)
    return Permanent(code, reason) if row.outcome is Permanent else Unknown(code, reason)


def unrecognised(provider: str, answer: Answer, *, surely_not_sent: bool = False) -> Transient | Unknown:
    """An answer that no row knows: not sent for sure where its status says so, otherwise nobody knows.

    The sentence has the shape of the body, never its content, which goes to the ledger alone.
    """
    reason = f"{provider} answered {answer.status} with {shape(answer)}, which no row of its table knows."
    kept = {"status": answer.status, "body": answer.evidence}
    if surely_not_sent:
        return Transient(UNRECOGNISED, reason, answer.retry_after, answer=kept)
    return Unknown(UNRECOGNISED, reason, answer=kept)


def no_answer(answer: NoAnswer) -> Transient | Unknown | Systemic:
    """What it means that no answer came: if nothing left, it may be tried again, unless the address is refused."""
    if answer.refused:
        return Systemic("address_refused", answer.reason, Scope.INBOX)
    return Unknown("no_answer", answer.reason) if answer.left else Transient("unreachable", answer.reason)


def shape(answer: Answer) -> str:
    """Name what a body is without quoting it: it may hold a text to a lead, or a number."""
    body, size = answer.body, len(answer.raw)
    if isinstance(body, dict):
        fields = [name for name in body if _FIELD_NAME.fullmatch(name)][:_MOST_FIELDS]
        rest = len(body) - len(fields)
        named = ", ".join([*fields, *([f"{rest} more"] if rest else [])])
        return f"a JSON object of {named}" if named else "an empty JSON object"
    if isinstance(body, list):
        return f"a JSON list of {len(body)}"
    if body is not None:
        return f"JSON that is neither object nor list ({type(body).__name__})"
    if not answer.raw.strip():
        return "an empty body"
    kind = "an HTML page" if re.match(rb"\s*<(!doctype|html)", answer.raw, re.IGNORECASE) else "a text"
    return f"{kind} of {size} bytes"


def texts(body: Any, depth: int = 4) -> list[str]:
    """Every text in a JSON body, in its order: where each release puts its error somewhere else."""
    if isinstance(body, str):
        return [body]
    inner = body.values() if isinstance(body, dict) else body if isinstance(body, list) else ()
    return [text for each in inner for text in texts(each, depth - 1)] if depth else []
