"""Splits a text into parts: locally and without loss, or as a model proposed if that is provably the same text.

Lengths are in code points, as in Python. Two texts are the same if they are equal without white space, because a cut
removes the white space around it and nothing else.
"""

import json
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Any, Final, NamedTuple

from campaign_pipeline.core.texts import ABBREVIATIONS

DEFAULT_MAX_PARTS: Final = 3
MAX_PARTS: Final = 5

_ZWJ: Final = "\u200d"
_BREAKS: Final = re.compile(r"\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")
_NO_BREAK_SPACES: Final = frozenset("\u00a0\u2007\u202f")
_LIST_ITEM: Final = re.compile(r"(?:[-*•·–—▪✓✔➡▶]|\d{1,2}[.)])\s")
_CURRENCY: Final = re.compile(r"(?:R\$|US\$|\$|€|£)\Z")
_CLOSERS: Final = "\"'”’»›)]*_~"
_OPENERS: Final = "\"'“‘«‹([*_~"
_TERMINATORS: Final = ".!?…"
_LOOK_BEHIND: Final = 80  # characters: enough for any abbreviation, and it keeps long texts linear
_SMALLEST_SHARE: Final = 0.3  # of the ideal length: a shorter part is not cut off voluntarily
_UNREACHABLE: Final = 1_000_000
_MOST_STARTS: Final = 200  # positions tried in a model's answer before it counts as prose


class TextTooLong(ValueError):
    """The text does not fit in the allowed number of parts of the allowed length."""


class _Kind(IntEnum):
    """What a cut falls on, best first."""

    PARAGRAPH = 0
    LINE = 1
    SENTENCE = 2
    LIST_INTRO = 3  # between "Temos:" and its list
    SPACE = 4
    GLUE = 5  # white space that must not be cut: no-break spaces, "R$ 10", "Sr. Silva"
    LONG_WORD = 6  # inside a word that is longer than a part
    WORD = 7  # inside any word: only if the parts could not hold the text otherwise


# The distance from the balanced position is in ideal lengths (0 to about 1), so a step of 10 always outweighs it.
_PENALTY: Final = {
    _Kind.PARAGRAPH: 0.0,
    _Kind.LINE: 0.15,
    _Kind.SENTENCE: 0.4,
    _Kind.LIST_INTRO: 0.9,
    _Kind.SPACE: 10.0,
    _Kind.GLUE: 20.0,
    _Kind.LONG_WORD: 30.0,
    _Kind.WORD: 40.0,
}


class _Cut(NamedTuple):
    end: int  # where the part before it ends
    begin: int  # where the part after it begins
    kind: _Kind


def effective_max_parts(value: int | None) -> tuple[int, str | None]:
    """Return the number of parts to use, and a warning for the operator if it differs from the setting."""
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_PARTS:
        return value, None
    found = "not set" if value is None else repr(value)[:40]
    return (
        DEFAULT_MAX_PARTS,
        f"max_split_parts is {found}, but must be from 1 to {MAX_PARTS}: {DEFAULT_MAX_PARTS} is used.",
    )


def split_text(text: str, max_parts: int, max_chars: int, min_chars: int = 150) -> tuple[str, ...]:
    """Split a text into at most `max_parts` parts of at most `max_chars` characters; only white space is lost.

    A text shorter than `min_chars` stays whole if it fits; a blank one has no parts. Cuts fall on paragraphs, lines and
    list items, or sentences; on other white space only if a part would be too long; inside a word only if it is longer
    than a part or the parts could not hold the text otherwise; never inside a grapheme.
    Raises TextTooLong if the text is longer than all parts together, or does not fit without breaking a grapheme.
    Raises ValueError for limits below 1.
    """
    if max_parts < 1 or max_chars < 1:
        raise ValueError(f"max_parts is {max_parts} and max_chars is {max_chars}, but both must be at least 1.")
    text = text.strip()
    if not text:
        return ()
    if len(text) <= max_chars and (max_parts == 1 or len(text) < min_chars):
        return (text,)
    if len(text) > max_parts * max_chars:
        raise _too_long(text, max_parts, max_chars)
    cuts = _white_space_cuts(text)
    for level in (_Kind.LIST_INTRO, _Kind.SPACE, _Kind.GLUE, _Kind.LONG_WORD, _Kind.WORD):
        if level is _Kind.LONG_WORD:
            cuts = sorted([*cuts, *_word_cuts(text, max_chars)])
        plan = _Plan(text, [cut for cut in cuts if cut.kind <= level], max_chars)
        fewest = plan.fewest_parts(0)
        if fewest <= max_parts:
            return plan.parts(max(fewest, min(max_parts, _wanted_parts(text, cuts, min_chars))))
    raise _too_long(text, max_parts, max_chars)


def accept_proposal(text: str, proposal: Sequence[str], max_parts: int, max_chars: int) -> tuple[str, ...] | None:
    """Return a model's parts if they are the same text within the limits; otherwise None.

    Only the positions of the cuts are taken from the model, and each must be white space in the text. The parts are cut
    from the original, so a line break that the model lost or a space that it added does not reach the lead.
    """
    if isinstance(proposal, str) or not all(isinstance(part, str) for part in proposal):
        return None
    bare_parts = [bare for part in proposal if (bare := _bare(part))]
    if not 1 <= len(bare_parts) <= max_parts or "".join(bare_parts) != _bare(text):
        return None
    visible = [index for index, char in enumerate(text) if not char.isspace()]
    starts = cluster_starts(text)
    parts: list[str] = []
    begin = done = 0
    for bare in bare_parts:
        done += len(bare)
        following = visible[done] if done < len(visible) else len(text)
        if done < len(visible) and (not text[following - 1].isspace() or not starts[following]):
            return None
        parts.append(text[begin:following].strip())
        begin = following
    return tuple(parts) if all(len(part) <= max_chars for part in parts) else None


def parse_proposal(answer: str) -> list[str] | None:
    """Find `{"parts": [...]}` or a bare list of texts in a model's answer, ignoring the text around it."""
    decoder = json.JSONDecoder(strict=False)  # models put real line breaks into strings
    for number, start in enumerate(re.finditer(r"[\[{]", answer)):
        if number == _MOST_STARTS:
            break
        try:
            value: Any = decoder.raw_decode(answer, start.start())[0]
        except ValueError:
            continue
        except RecursionError:  # what begins inside it is as deep
            break
        parts = value.get("parts") if isinstance(value, dict) else value
        if isinstance(parts, list) and parts and all(isinstance(part, str) for part in parts):
            return parts
    return None


def cluster_starts(text: str) -> bytearray:
    """Mark with 1 each index where a grapheme begins: the only positions where a text may be cut.

    Emoji sequences, flags, accents, Hangul syllables, surrogate pairs and CR LF stay whole.
    """
    starts = bytearray(b"\x01") * len(text)
    previous = ""
    flag_letters = 0  # regional indicators in a row so far: two make one flag
    for index, char in enumerate(text):
        is_flag_letter = "\U0001f1e6" <= char <= "\U0001f1ff"
        if _joins(previous, char) or (is_flag_letter and flag_letters % 2):
            starts[index] = 0
        flag_letters = flag_letters + 1 if is_flag_letter else 0
        previous = char
    if starts:
        starts[0] = 1
    return starts


def _joins(previous: str, char: str) -> bool:
    """Return whether a code point belongs to the same grapheme as the one before."""
    if char < "\u0300":
        return (char == "\n" and previous == "\r") or previous == _ZWJ
    return (
        previous == _ZWJ
        or char in (_ZWJ, "\u200c")
        or "\U0001f3fb" <= char <= "\U0001f3ff"  # skin tones
        or "\U000e0020" <= char <= "\U000e007f"  # tags, as in the flag of England
        or unicodedata.category(char) in ("Mn", "Me", "Mc")
        or ("\udc00" <= char <= "\udfff" and "\ud800" <= previous <= "\udbff")
        or ("\u1160" <= char <= "\u11ff" and ("\u1100" <= previous <= "\u11ff" or "\uac00" <= previous <= "\ud7a3"))
    )


class _Plan:
    """A text with its allowed cuts, in order."""

    def __init__(self, text: str, cuts: list[_Cut], max_chars: int) -> None:
        self.text = text
        self.cuts = cuts
        self.max_chars = max_chars
        self.ends = [cut.end for cut in cuts]
        self.begins = [cut.begin for cut in cuts]

    def fewest_parts(self, start: int) -> int:
        """Return how many parts the rest needs at least: each takes as much as it can hold."""
        parts = 1
        while len(self.text) - start > self.max_chars:
            furthest = bisect_right(self.ends, start + self.max_chars) - 1
            if furthest < 0 or self.begins[furthest] <= start:
                return _UNREACHABLE
            start = self.begins[furthest]
            parts += 1
        return parts

    def parts(self, number: int) -> tuple[str, ...]:
        """Split into `number` parts; fewer if the text has no good place for more."""
        parts: list[str] = []
        start = 0
        for remaining in range(number, 1, -1):
            cut = self._best_cut(start, remaining)
            if cut is None:
                continue
            parts.append(self.text[start : cut.end])
            start = cut.begin
        return (*parts, self.text[start:])

    def _best_cut(self, start: int, remaining: int) -> _Cut | None:
        """Choose the next cut so that the rest still fits in the remaining parts; None to continue without one."""
        length = len(self.text) - start
        ideal = length / remaining
        first, last = bisect_right(self.begins, start), bisect_right(self.ends, start + self.max_chars)
        reachable = [cut for cut in self.cuts[first:last] if self.fewest_parts(cut.begin) < remaining]
        smallest = ideal * _SMALLEST_SHARE
        good = [
            cut
            for cut in reachable
            if cut.kind <= _Kind.LIST_INTRO and cut.end - start >= smallest and len(self.text) - cut.begin >= smallest
        ]
        if not good and self.fewest_parts(start) < remaining:
            return None
        return min(good or reachable, key=lambda cut: abs(cut.end - start - ideal) / ideal + _PENALTY[cut.kind])


def _wanted_parts(text: str, cuts: list[_Cut], min_chars: int) -> int:
    """Choose how many bubbles a person would send: one per paragraph, none of them tiny."""
    paragraphs = 1 + sum(cut.kind is _Kind.PARAGRAPH for cut in cuts)
    if paragraphs > 1:  # the author meant them to stand alone, so they may be half as short
        return min(paragraphs, 1 + 2 * len(text) // max(1, min_chars))
    return 1 + len(text) // max(1, min_chars)


def _white_space_cuts(text: str) -> list[_Cut]:
    starts = cluster_starts(text)
    return [
        _Cut(gap.start(), gap.end(), _kind_of(text, gap.start(), gap.end()))
        for gap in re.finditer(r"\s+", text)
        if starts[gap.end()]
    ]


def _word_cuts(text: str, max_chars: int) -> Iterator[_Cut]:
    starts = cluster_starts(text)
    for word in re.finditer(r"\S+", text):
        kind = _Kind.LONG_WORD if word.end() - word.start() > max_chars else _Kind.WORD
        for index in range(word.start() + 1, word.end()):
            if starts[index]:
                yield _Cut(index, index, kind)


def _kind_of(text: str, start: int, end: int) -> _Kind:
    """Return what the white space from `start` to `end` separates."""
    breaks = len(_BREAKS.findall(text, start, end))
    if breaks:
        if text[start - 1] == ":" and _LIST_ITEM.match(text, end):
            return _Kind.LIST_INTRO
        return _Kind.PARAGRAPH if breaks > 1 else _Kind.LINE
    if all(char in _NO_BREAK_SPACES for char in text[start:end]):
        return _Kind.GLUE
    behind = text[max(0, start - _LOOK_BEHIND) : start]
    if _CURRENCY.search(behind) and text[end].isdigit():
        return _Kind.GLUE
    return _kind_after(behind, text[end])


def _kind_after(behind: str, following: str) -> _Kind:
    """Return whether a sentence ends before a space."""
    if _is_emoji(following):  # "Oi! 👋 Tudo bem?": the emoji belongs to what it follows
        return _Kind.SPACE
    sentence = behind
    while sentence and (_is_emoji(sentence[-1]) or sentence[-1] in _CLOSERS or sentence[-1].isspace()):
        sentence = sentence[:-1]
    stem = sentence.rstrip(_TERMINATORS)
    mark = sentence[len(stem) :]
    if not mark:
        return _Kind.SPACE
    if mark == "." and sentence == behind and _is_abbreviation(stem):
        return _Kind.GLUE
    if not set(mark) & set("!?") and following.islower():
        return _Kind.SPACE
    return _Kind.SENTENCE


def _is_abbreviation(stem: str) -> bool:
    """Return whether a full stop after this text belongs to its last word: Sr., S.A., J., 1."""
    words = stem.split()
    word = words[-1].lstrip(_OPENERS).casefold() if words else ""
    is_marker = len(word) <= 2 and word.isdigit()  # "1. Primeiro"
    return word in ABBREVIATIONS or len(word) == 1 or is_marker or bool(re.fullmatch(r"(?:\w{1,2}\.)+\w{1,2}", word))


def _is_emoji(char: str) -> bool:
    return (
        char == _ZWJ
        or "\U0001f1e6" <= char <= "\U0001faff"
        or "\ufe00" <= char <= "\ufe0f"
        or "\U000e0020" <= char <= "\U000e007f"
        or (char > "\u2000" and unicodedata.category(char) == "So")
    )


def _bare(text: str) -> str:
    """Remove all white space: the remainder must stay the same."""
    return "".join(text.split())


def _too_long(text: str, max_parts: int, max_chars: int) -> TextTooLong:
    return TextTooLong(
        f"The text has {len(text)} characters and does not fit in {max_parts} part{'s' * (max_parts > 1)} "
        f"of at most {max_chars} characters."
    )
