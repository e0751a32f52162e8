"""The meaning of Evolution's answers.

Nearly every failure is a 400 "Bad Request", even errors thrown after WhatsApp accepted the message; `response.message`
tells them apart.
"""

import re

from campaign_pipeline.adapters.answers import Contents, Row, redirected, statements, tells_nothing
from campaign_pipeline.adapters.http import Answer, at
from campaign_pipeline.adapters.whatsapp_web import in_words, no_account, timed_out, too_fast
from campaign_pipeline.core.ports import NOT_STORED, Envelope, Permanent, Sent, Systemic, Unknown

_STORED_AFTER_SENDING = r"(this\.prismaRepository\.message(update)?\.create|this\.cache\.delete)\(\)"
"""Calls that Evolution makes after WhatsApp accepted the message."""

_BASE_URL = "the instance's base URL (EVOLUTION_API_URL)"
_NO_INSTANCE = "Evolution does not know this instance."
_SAYS_NO_INSTANCE = r'The "[^"]{1,200}" instance does not exist'

_BAD_KEY = Row(
    Systemic,
    "bad_key",
    "Evolution refuses the key of this instance (instance_token, api_key or EVOLUTION_API_KEY).",
    status={401, 403},
)

ANSWERS: tuple[Row, ...] = (
    # First the answers that are possible for a message that was sent.
    Row(
        Sent,
        "sent_not_stored",
        "Evolution sent the message and could not write it into its own database.",
        status={400, 500},
        says=r"prismaclient(known|unknown)request\w*error: invalid `" + _STORED_AFTER_SENDING + r"` invocation\b.*",
    ),
    Row(
        Unknown,
        NOT_STORED,
        "Evolution's own database failed while it sent, which does not say whether it was sent.",
        status={400, 500},
        says=r"prisma\w*error\b.*|can'?t reach database server.*",
    ),
    timed_out("Evolution", {400}),
    no_account({400}, fact="no_account"),
    *in_words({400}),
    Row(
        Permanent,
        "invalid_request",
        "Evolution refused the request as invalid.",
        status={400},
        fact="complaints",
        says=r"(instance\.)?[\w.\[\]]{0,40}\s?(requires property \"\w{1,40}\"|is not of a type\(s\) [\w, ]{1,60}"
        r"|does not (match|meet)\b.{0,120}|must be .{1,80}|should (have|be) .{1,80}|is not allowed\b.{0,80}"
        r"|is required|can ?not be empty)|the \"?\w{1,40}\"? can ?not be empty|enter a value\b.{0,60}|invalid format",
    ),
    # Its guards give these answers before anything else.
    _BAD_KEY,
    Row(Systemic, "instance_missing", _NO_INSTANCE, status={404}, fact="no_instance"),
    redirected(_BASE_URL),
    too_fast({429}),
    tells_nothing("Evolution", {408, *range(500, 600)}),
)
"""To a send; the first matching row decides."""

STATE_ANSWERS: tuple[Row, ...] = (
    _BAD_KEY,
    Row(Systemic, "instance_missing", _NO_INSTANCE, status={404}),
    redirected(_BASE_URL, range(300, 400)),
)
"""To the query for an instance's state."""


def contents(answer: Answer, envelope: Envelope | None) -> Contents:
    """Read `response.message`: a text, or a list of texts, objects, and lists of validation errors."""
    said = at(answer.body, "response", "message")
    pieces = said if isinstance(said, list) else [said]
    facts = {"no_account"} if any(at(piece, "exists") is False for piece in pieces) else set()
    complaints = [piece for piece in pieces if isinstance(piece, list)]
    if complaints and len(complaints) == len(pieces):
        # Only request validation returns a list within the list; later errors are texts.
        facts.add("complaints")
        pieces = [text for complaint in complaints for text in complaint]
    if any(isinstance(piece, str) and re.fullmatch(_SAYS_NO_INSTANCE, piece) for piece in pieces):
        facts.add("no_instance")
    worded = [at(piece, "message") if isinstance(piece, dict) else piece for piece in pieces]
    return Contents(statements(worded, envelope), facts=frozenset(facts))
