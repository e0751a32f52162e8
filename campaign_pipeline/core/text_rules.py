"""The rules for a model's text, by name, and the refusal of a text that breaks one."""

import re
import unicodedata
from functools import lru_cache
from typing import Final, Literal, TypeAlias

RefusalRule: TypeAlias = Literal[
    "empty",
    "too_short",
    "too_long",
    "malformed",
    "reasoning",
    "control_tokens",
    "refusal",
    "options",
    "placeholder",
    "empty_value",
    "unknown_link",
    "unknown_number",
    "unknown_email",
    "unknown_payment_key",
    "truncated",
]
"""Rules that refuse a text: it is generated again."""

ChangeRule: TypeAlias = Literal[
    "reasoning_cut",
    "control_tokens_cut",
    "unwrapped",
    "json_read",
    "html_converted",
    "preamble_cut",
    "closing_cut",
    "markdown_converted",
]
"""Rules that change a text: the changed text is sent."""

LONGEST_ANSWER: Final = 100_000
"""Characters of a model's answer that are read; a longer answer is refused as `too_long`."""


class TextProblem(ValueError):
    """A text must not be sent. `code` is the rule that it breaks; the message is one sentence for the operator.

    The sentence does not quote the text, which may contain personal data: the text is stored in the database only.
    """

    def __init__(self, code: RefusalRule, reason: str) -> None:
        super().__init__(reason)
        self.code: RefusalRule = code

    def __reduce__(self) -> "tuple[type[TextProblem], tuple[RefusalRule, str]]":
        return type(self), (self.code, str(self))


@lru_cache(maxsize=32)
def fold(text: str) -> str:
    """Lower-case a text and remove its accents, keeping its length: patterns match this, cuts apply to the original.

    Cached for a few texts: one check folds the same text several times.
    """
    lower = text.lower()
    if lower.isascii():
        return lower
    if len(lower) != len(text):  # İ, the Turkish dotted capital, becomes two characters
        lower = text.translate(_FOLD)
    return _ACCENTED.sub(_without_accent, lower)  # four times as fast as a table for all characters


def has_any(text: str, words: tuple[str, ...] | str) -> bool:
    """Return whether a text contains any of some words: a cheap check before a pattern that needs one of them."""
    return any(map(text.__contains__, words))


def _without_accent(found: "re.Match[str]") -> str:
    return _FOLD[ord(found[0])]


def _folded(code: int) -> str:
    base = unicodedata.normalize("NFD", chr(code))[0].lower()
    return base if len(base) == 1 else chr(code)


_FOLD: Final = {code: _folded(code) for code in (*range(0x41, 0x5B), *range(0xC0, 0x250))}
_ACCENTED: Final = re.compile("[\xc0-\u024f]")
