"""What the answers of message providers mean, as data: each adapter has one table, the first row that matches decides.

One question decides each row: could the message be on the lead's phone? A row says "surely not sent" only of an answer
that is known to be given before sending. Everything that no row knows is `Unknown` and is never followed by a resend.

A row is chosen by the HTTP status and by facts that the adapter reads from named fields (a provider's own code of the
error, where it has one); then by words. A pattern of words has to match one whole statement of the answer, after
everything that we sent has been taken out of it: line numbers, stack traces and quoted texts decide nothing.

A provider that words a failure anew needs a row in its adapter's table and a sample in the tests' `answers/`.
"""

import re
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from campaign_pipeline.adapters.http import Answer, NoAnswer
from campaign_pipeline.core.ports import (
    UNRECOGNISED,
    Envelope,
    Failure,
    Outcome,
    Permanent,
    Scope,
    Sent,
    Systemic,
    Throttled,
    Transient,
    Unknown,
)

DAY = 24 * 3600.0
"""Seconds."""

NOT_HERE = frozenset({301, 307, 308})
"""Redirects that promise that nothing was done; other redirects do not say."""

MOST_READ = 2000
"""Characters of a statement that are looked at: a text of megabytes must cost no more than a sentence."""

_NAMES = frozenset(
    {
        *("status", "statusCode", "code", "error", "errors", "message", "messages", "reason", "response", "details"),
        *("detail", "data", "success", "result", "type", "title", "description", "key", "id"),
    }
)
"""Names of fields that may be quoted when an answer is described: any other might be a lead's name."""

_ERROR_NAMES = re.compile(r"(?:(?:error|exception|badrequestexception)\s*:\s*)+", re.IGNORECASE)
_SHORTEST_ECHO = 6
"""Characters. A shorter text of ours is left in a statement: taking out "Olá" everywhere would garble what was said."""


@dataclass(frozen=True)
class Heard:
    """What an answer says, read from the fields that its provider names."""

    statements: tuple[str, ...] = ()
    facts: frozenset[str] = frozenset()  # what the adapter found in fields of the body, in words of its table


NOTHING_HEARD = Heard()


@dataclass(frozen=True)
class Row:
    """One kind of answer. What is not named matches everything; `{status}` in code and sentence is the answer's own."""

    outcome: type[Sent] | type[Permanent] | type[Transient] | type[Throttled] | type[Systemic] | type[Unknown]
    code: str  # stable, machine readable
    sentence: str  # for the operator
    status: Container[int] | None = None  # HTTP
    fact: str | None = None  # see Heard
    says: str | None = None  # a pattern that matches one whole statement; case does not matter
    scope: Scope = Scope.INBOX
    retry_after: float | None = None  # seconds, where the provider gives no hint of its own
    attempts: int | None = None  # see core.ports.Transient

    def matches(self, status: int, heard: Heard) -> bool:
        """Whether an answer is of this kind."""
        return (
            (self.status is None or status in self.status)
            and (self.fact is None or self.fact in heard.facts)
            and (self.says is None or any(self._is_said(statement) for statement in heard.statements))
        )

    def _is_said(self, statement: str) -> bool:
        assert self.says is not None
        return re.fullmatch(self.says, statement, re.IGNORECASE) is not None


def redirected(variable: str, status: Container[int] = NOT_HERE) -> Row:
    """The answer that sends the request elsewhere; `variable` holds the address that has to be corrected."""
    sentence = f"The request was redirected; set {variable} to the address that it was redirected to."
    return Row(Systemic, "redirected", sentence, status=status)


def tells_nothing(server: str, status: Container[int]) -> Row:
    """Statuses that do not say whether it was sent; `server` is the subject of the sentence."""
    sentence = f"{server} answered {{status}}, which does not say whether it was sent."
    return Row(Unknown, "http_{status}", sentence, status=status)


def first_row(table: Sequence[Row], status: int, heard: Heard = NOTHING_HEARD) -> Row | None:
    """The first row that matches; None where no row knows such an answer."""
    return next((row for row in table if row.matches(status, heard)), None)


def known(table: Sequence[Row], answer: Answer, heard: Heard = NOTHING_HEARD) -> Outcome | None:
    """What the first row that matches makes of an answer; None where no row knows it."""
    row = first_row(table, answer.status, heard)
    if row is None:
        return None
    code = row.code.format(status=answer.status)
    reason = row.sentence.format(status=answer.status)
    after = row.retry_after if answer.retry_after is None else answer.retry_after
    if row.outcome is Sent:
        return Sent(None, {"warning": code})
    came = kept(answer)
    if row.outcome is Systemic:
        return Systemic(code, reason, row.scope, after, by_words=row.says is not None, answer=came)
    if row.outcome is Throttled:
        return Throttled(code, reason, row.scope, after, came)
    if row.outcome is Transient:
        return Transient(code, reason, after, row.attempts, came)
    return Permanent(code, reason, came) if row.outcome is Permanent else Unknown(code, reason, came)


def failure(table: Sequence[Row], answer: Answer, heard: Heard = NOTHING_HEARD) -> Failure | None:
    """As `known`, where the table has no row that means `sent`."""
    outcome = known(table, answer, heard)
    assert not isinstance(outcome, Sent)
    return outcome


def unrecognised(provider: str, answer: Answer) -> Unknown:
    """An answer that no row knows. The request reached a server, so its outcome is unknown.

    The sentence has the shape of the body, never its content, which goes to the ledger alone.
    """
    reason = f"{provider} answered {answer.status} with {shape(answer)}, which no row of its table knows."
    return Unknown(UNRECOGNISED, reason, kept(answer))


def kept(answer: Answer) -> dict[str, Any]:
    """What of an answer goes to the ledger."""
    return {"status": answer.status, "body": answer.evidence}


def no_answer(answer: NoAnswer) -> Transient | Unknown | Systemic:
    """What it means that no answer came: if nothing left, it may be tried again, unless the address is refused."""
    if answer.refused:
        return Systemic("address_refused", answer.reason, Scope.INBOX)
    return Unknown("no_answer", answer.reason) if answer.left else Transient("unreachable", answer.reason)


def statements(pieces: Iterable[Any], envelope: Envelope | None, prefix: str | None = None) -> tuple[str, ...]:
    """The texts among some fields of an answer as statements to match: without what we sent, in one line.

    `prefix` is a pattern of what a provider puts before an error that it passes on (`Evolution API error: `).
    """
    sent = [] if envelope is None else [envelope.text, envelope.address, envelope.subject, envelope.contact_name]
    echoes = sorted({text for text in sent if text and len(text) >= _SHORTEST_ECHO}, key=len, reverse=True)
    return tuple(_statement(piece, echoes, prefix) for piece in pieces if isinstance(piece, str) and piece.strip())


def _statement(text: str, echoes: Sequence[str], prefix: str | None) -> str:
    text = text[:MOST_READ]
    for echo in echoes:
        text = text.replace(echo, "…")
    text = " ".join(text.split())
    if prefix is not None:
        text = re.sub(rf"(?i:{prefix})", "", text, count=1) if re.match(prefix, text, re.IGNORECASE) else text
    named = _ERROR_NAMES.match(text)
    return text[named.end() if named else 0 :].rstrip(" .!")


def shape(answer: Answer) -> str:
    """Name what a body is without quoting it: it may hold a text to a lead, or a name."""
    body, size = answer.body, len(answer.raw)
    if isinstance(body, dict):
        fields = [name for name in body if name in _NAMES]
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
    """Every text in a part of a JSON body, in its order: for fields in which each release puts its error elsewhere."""
    if isinstance(body, str):
        return [body]
    inner = body.values() if isinstance(body, dict) else body if isinstance(body, list) else ()
    return [text for each in inner for text in texts(each, depth - 1)] if depth else []
