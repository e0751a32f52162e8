"""Tables of the answers of message providers and their meaning; the first matching row of an adapter's table decides.

Each row answers one question: could the message be on the lead's phone? A row says "surely not sent" only for an answer
that its provider is known to give before sending. An answer without a row is `Unknown` and never followed by a resend.

A row matches by the HTTP status and by facts that the adapter reads from named fields (a provider's own error code, if
it has one); then by words. A word pattern must match one whole statement of the answer, after everything that we sent
has been removed from it: line numbers, stack traces and quoted texts decide nothing.

If a provider rewords a failure, add a row to its adapter's table and a sample to the tests' `answers/`.
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
"""Redirects that guarantee that nothing was done; other redirects do not."""

MOST_READ = 2000
"""Characters of a statement that are examined: megabytes of text must cost no more than a sentence."""

_NAMES = frozenset(
    {
        *("status", "statusCode", "code", "error", "errors", "message", "messages", "reason", "response", "details"),
        *("detail", "data", "success", "result", "type", "title", "description", "key", "id"),
    }
)
"""Field names that may be quoted when an answer is described: any other might be a lead's name."""

_ERROR_NAMES = re.compile(r"(?:(?:error|exception|badrequestexception)\s*:\s*)+", re.IGNORECASE)
_SHORTEST_ECHO = 6
"""Characters. A shorter text of ours is not removed: removing "Olá" everywhere would garble the statement."""


@dataclass(frozen=True)
class Contents:
    """The contents of an answer, read from the fields that its provider names."""

    statements: tuple[str, ...] = ()
    facts: frozenset[str] = frozenset()  # what the adapter found in fields of the body, in its table's words


NO_CONTENTS = Contents()


@dataclass(frozen=True)
class Row:
    """One kind of answer. Unset fields match everything; `{status}` in code and sentence is the answer's status."""

    outcome: type[Sent] | type[Permanent] | type[Transient] | type[Throttled] | type[Systemic] | type[Unknown]
    code: str  # stable, machine-readable
    sentence: str  # for the operator
    status: Container[int] | None = None  # HTTP
    fact: str | None = None  # see Contents
    says: str | None = None  # a pattern that matches one whole statement, ignoring case
    scope: Scope = Scope.INBOX
    retry_after: float | None = None  # seconds, if the provider gives no hint
    attempts: int | None = None  # see core.ports.Transient

    def matches(self, status: int, contents: Contents) -> bool:
        """Return whether an answer is of this kind."""
        return (
            (self.status is None or status in self.status)
            and (self.fact is None or self.fact in contents.facts)
            and (self.says is None or any(self._is_said(statement) for statement in contents.statements))
        )

    def _is_said(self, statement: str) -> bool:
        assert self.says is not None
        return re.fullmatch(self.says, statement, re.IGNORECASE) is not None


def redirected(variable: str, status: Container[int] = NOT_HERE) -> Row:
    """Match an answer that redirects the request; `variable` holds the address to correct."""
    sentence = f"The request was redirected; set {variable} to the address that it was redirected to."
    return Row(Systemic, "redirected", sentence, status=status)


def tells_nothing(server: str, status: Container[int]) -> Row:
    """Match statuses that do not say whether it was sent; `server` is the subject of the sentence."""
    sentence = f"{server} answered {{status}}, which does not say whether it was sent."
    return Row(Unknown, "http_{status}", sentence, status=status)


def first_row(table: Sequence[Row], status: int, contents: Contents = NO_CONTENTS) -> Row | None:
    """Return the first matching row, or None."""
    return next((row for row in table if row.matches(status, contents)), None)


def known(table: Sequence[Row], answer: Answer, contents: Contents = NO_CONTENTS) -> Outcome | None:
    """Return the outcome by the first matching row, or None."""
    row = first_row(table, answer.status, contents)
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


def failure(table: Sequence[Row], answer: Answer, contents: Contents = NO_CONTENTS) -> Failure | None:
    """Return the outcome, like `known`, of a table without a row that means `sent`."""
    outcome = known(table, answer, contents)
    assert not isinstance(outcome, Sent)
    return outcome


def unrecognised(provider: str, answer: Answer) -> Unknown:
    """Return the outcome of an answer without a row: a server got the request, so the outcome is unknown.

    The sentence describes the shape of the body, never its content, which only the ledger keeps.
    """
    reason = f"{provider} answered {answer.status} with {shape(answer)}, which no row of its table knows."
    return Unknown(UNRECOGNISED, reason, kept(answer))


def kept(answer: Answer) -> dict[str, Any]:
    """Return the part of an answer that the ledger keeps."""
    return {"status": answer.status, "body": answer.evidence}


def no_answer(answer: NoAnswer) -> Transient | Unknown | Systemic:
    """Return the outcome if no answer came: retry if nothing left, unless the address is refused."""
    if answer.refused:
        return Systemic("address_refused", answer.reason, Scope.INBOX)
    return Unknown("no_answer", answer.reason) if answer.may_have_left else Transient("unreachable", answer.reason)


def statements(pieces: Iterable[Any], envelope: Envelope | None, prefix: str | None = None) -> tuple[str, ...]:
    """Extract statements to match from some fields of an answer: each on one line, without what we sent.

    `prefix` is a pattern of what a provider prepends to errors that it forwards (`Evolution API error: `).
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
    """Describe a body without quoting it: it may contain a lead's text or name."""
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
    """Return every text in a part of a JSON body, in order: for fields whose structure changes between releases."""
    if isinstance(body, str):
        return [body]
    inner = body.values() if isinstance(body, dict) else body if isinstance(body, list) else ()
    return [text for each in inner for text in texts(each, depth - 1)] if depth else []
