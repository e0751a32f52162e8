"""Removes a person's data from texts of third parties.

A provider that refuses a request may repeat parts of it: a name, an e-mail address, a document number, the text itself.
Its stored answer contains none of them.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from campaign_pipeline.core.model import Lead, LeasedMessage

HIDDEN: Final = "***"
SHORTEST_VALUE: Final = 3
"""Characters. Shorter values occur in many ordinary words, and reveal little."""

SHORTEST_NUMBER: Final = 5
"""Digits from which a number is found in any punctuation."""

LONGEST_VALUE: Final = 120
"""Characters of a value, or of one of its sentences, that are searched for; a stored answer is short too."""

MOST_VALUES: Final = 200
"""Values that are searched for, the longest first; the time is proportional to their number."""

_WORD: Final = re.compile(r"\w+")
_SENTENCE: Final = re.compile(r"[^.!?\n]+")


def personal_values(message: LeasedMessage, lead: Lead | None, texts: Iterable[str | None] = ()) -> list[str]:
    """Return every value that an answer about this message may repeat: the lead's fields and numbers, and the texts."""
    values: list[str | None] = [message.phone_number, *_pieces_of(texts)]
    if lead is not None:
        context = lead.context
        names = (context.client_name, context.whatsapp_name, context.company)
        values += [lead.phone, lead.email, *lead.other_phones, *names, *context.tags]
        values += [value for _, value in context.custom_fields]
        values += [word for name in names for word in _WORD.findall(name)]  # "Olá, Ana" contains one word of the name
    return [value for value in values if value]


def _pieces_of(texts: Iterable[str | None]) -> Iterable[str]:
    """Split each text into sentences: a provider may quote one of them."""
    for text in texts:
        if text:
            yield from (piece.strip() for piece in _SENTENCE.findall(text))


def without_values(answer: Mapping[str, Any], values: Iterable[str]) -> dict[str, Any]:
    """Remove these values from an answer, in any case and punctuation; its field names stay."""
    forms = {form for value in values if (form := _form(value))}
    if not forms:
        return dict(answer)
    # Longest first: removing a name inside a longer one would leave the rest of it.
    pattern = re.compile("|".join(sorted(forms, key=len, reverse=True)[:MOST_VALUES]), re.IGNORECASE)
    return {name: _hidden(value, pattern) for name, value in answer.items()}


def _form(value: str) -> str | None:
    """Return the pattern that finds a value; None if the value is too short to search for."""
    value = value.strip()[:LONGEST_VALUE]
    digits = re.sub(r"\D", "", value)
    if len(digits) >= SHORTEST_NUMBER and not re.search(r"[^\W\d_]", value):
        return r"[\W_]{0,2}".join(digits)
    words = _WORD.findall(value)
    if sum(map(len, words)) < SHORTEST_VALUE:
        return None
    return r"(?<!\w)" + r"[\W_]{1,3}".join(map(re.escape, words)) + r"(?!\w)"


def _hidden(value: Any, pattern: re.Pattern[str]) -> Any:
    if isinstance(value, str):
        return pattern.sub(HIDDEN, value)
    if isinstance(value, Mapping):
        return {name: _hidden(inner, pattern) for name, inner in value.items()}
    if isinstance(value, list):
        return [_hidden(inner, pattern) for inner in value]
    return value
