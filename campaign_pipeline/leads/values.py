"""Parses cells (amounts, registry numbers, priorities, tags) and quotes them in sentences."""

import json
import re
import unicodedata
from decimal import Decimal
from functools import lru_cache
from typing import Final

from campaign_pipeline.core.phone_reading import plain

_SHOWN_CHARS: Final = 40  # most characters of a quoted value

_NOTHING: Final = frozenset(
    ("null", "nan", "none", "nil", "n/a", "#n/a", "n/d", "#n/d", "na", "<na>", "nat", "undefined", "-", "--", "—", "–")
)
"""Texts that mean an empty cell."""

_PRIORITY_WORDS: Final = {
    **dict.fromkeys(("low", "baixa", "baixo"), "low"),
    **dict.fromkeys(("medium", "media", "medio", "normal"), "medium"),
    **dict.fromkeys(("high", "alta", "alto", "urgente", "urgent"), "high"),
}


def filled(cell: str) -> str:
    """Return the stripped text of a cell; empty if the text means an empty cell."""
    text = cell.strip()
    if len(text) <= 9 and (text.lower() in _NOTHING or text in {"{}", "[]"}):
        return ""
    return text


def clean(text: str) -> str:
    """Return a number without invisible marks, wide characters, and the quotes that spreadsheets add."""
    return plain(unicodedata.normalize("NFKC", text))


_AMOUNTS: Final = (
    # Pattern, thousands separators, decimal mark. The first match counts: 1.234 is more than a thousand.
    (re.compile(r"[0-9]{1,3}(?:[. ][0-9]{3})+(?:,[0-9]{1,2})?"), ". ", ","),
    (re.compile(r"[0-9]+(?:,[0-9]{1,2})?"), "", ","),
    (re.compile(r"[0-9]+\.[0-9]{1,2}"), "", "."),
    (re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+\.[0-9]{1,2}"), ",", "."),
    (re.compile(r"[0-9]{1,3}(?:,[0-9]{3}){2,}"), ",", "."),
)


def amount(text: str) -> Decimal | None:
    """Read a non-negative amount; None if it is not a number or ambiguous (`1,234`)."""
    for pattern, grouping, decimal_mark in _AMOUNTS:
        # 0.125 has three decimals, while 1.234 has thousands.
        if pattern.fullmatch(text) and not (grouping and text.startswith("0")):
            return Decimal(text.translate(str.maketrans("", "", grouping)).replace(decimal_mark, "."))
    return None


def priority(word: str) -> str | None:
    """Read low, medium or high from a word in Portuguese or English; None for any other word."""
    return _PRIORITY_WORDS.get(fold(word))


def tags(cell: str) -> tuple[str, ...]:
    """Read the distinct tags of a cell: a JSON list, or separated by comma, semicolon or bar."""
    listed: list[str] = []
    if cell.startswith("["):
        try:
            found = json.loads(cell)
        except ValueError:
            found = None
        if isinstance(found, list):
            listed = [str(tag) for tag in found]
    names = (tag.strip() for tag in listed or re.split(r"[,;|]", cell))
    return tuple(dict.fromkeys(filter(None, names)))


def cnpj_check_digits(base: str) -> str:
    """Compute the two check digits of a CNPJ's first twelve characters (digits, or capital letters since 2026)."""
    digits = ""
    for _ in range(2):
        # Weights 2 to 9 from the right, repeated; a letter counts as its distance from "0" in ASCII.
        total = sum((ord(char) - 48) * (2 + place % 8) for place, char in enumerate(reversed(base + digits)))
        digits += str((11 - total % 11) % 11 % 10)
    return digits


def format_cnpj(digits: str) -> str:
    """Format a CNPJ: 11.222.333/0001-81."""
    return f"{digits[:2]}.{digits[2:5]}.{digits[5:8]}/{digits[8:12]}-{digits[12:]}"


@lru_cache(maxsize=4096)
def fold(heading: str) -> str:
    """Reduce a heading or word to its letters and digits, without case, accents and spaces."""
    decomposed = unicodedata.normalize("NFKD", heading.casefold())
    return "".join(char for char in decomposed if char.isalnum())


def shown(value: str, limit: int = _SHOWN_CHARS) -> str:
    """Quote a value for a sentence, on one line and not too long."""
    flat = " ".join(value.encode("utf-8", "replace").decode().split())
    return repr(flat if len(flat) <= limit else flat[: limit - 1] + "…")
