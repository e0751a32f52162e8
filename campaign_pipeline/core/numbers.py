"""Which of a lead's numbers to use: what providers answered about them, and which is tried next.

A provider is asked about one number at a time, right before its message leaves; its answer is cached for days. If it
cannot be asked, the message is sent to the number as it is, whose answer tells, and nothing is cached.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from campaign_pipeline.core.address import InvalidAddress, alternatives, normalize_phone

NOT_ON_WHATSAPP: Final = "not_on_whatsapp"
"""The code of a number that surely has no account, by any source."""

MOST_NUMBERS: Final = 6
"""Numbers tried for one message: each is a request, and a lead with more numbers is probably a contact list."""

_PHONE_FIELD: Final = re.compile(r"\b(telefones?|fones?|celular(es)?|whatsapp|whats|zap|phones?|mobile)\b")


@dataclass(frozen=True)
class KnownNumber:
    """A provider's answer about a number."""

    number: str  # international digits, as asked for
    exists: bool
    account: str | None = None  # the account's own digits, without the ninth if it was registered without
    jid: str | None = None
    lid: str | None = None

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "KnownNumber":
        """Build from the statement `read_number_checks`."""
        return cls(row["number"], row["exists"], row["account"], row["jid"], row["lid"])


@dataclass(frozen=True)
class NumberNote:
    """Something learned about a number, to be kept; and what it says of its lead."""

    known: KnownNumber
    lead_id: str | None
    reachable: bool | None = None  # True: this number works; False: none of the lead's does; None: others are left


def phones_among(fields: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """The values of custom fields (`name`, `value`) that are named like a phone number, in their order."""
    named = (field for field in fields if _names_a_phone(str(field.get("name") or "")))
    return tuple(str(field["value"]) for field in named if field.get("value"))


@lru_cache(maxsize=1024)
def _names_a_phone(name: str) -> bool:
    """Return whether a field is named like a phone number. Cached: names repeat for every lead."""
    return _PHONE_FIELD.search(_plain(name)) is not None


def candidate_numbers(first: str, others: Sequence[str]) -> tuple[str, ...]:
    """The numbers at which a lead may be reached, in the order in which they are tried.

    First the number itself and its twin with or without the ninth digit, then each other one with its twin; what is no
    number is left out. `first` is normalised.
    """
    numbers = (first, *filter(None, map(_normalized, others)))
    found = dict.fromkeys(spelling for number in numbers for spelling in alternatives(number))
    return tuple(found)[:MOST_NUMBERS]


def _normalized(raw: str) -> str | None:
    try:
        return normalize_phone(raw)
    except InvalidAddress:
        return None


def _plain(text: str) -> str:
    decomposed = unicodedata.normalize("NFKD", text.lower())
    return "".join(" " if char in "_-/." else char for char in decomposed if not unicodedata.combining(char))
