"""Removes keys from texts: known ones, even if mangled, and strings that look like one.

A provider may quote a key as it was sent, but also cut, in base64, percent-encoded, or broken over two lines.
"""

import re
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterator, Sequence
from functools import lru_cache

MAX_KEPT_CHARS = 500
SHORTEST_SECRET = 6
"""Characters; shorter secrets would match ordinary words."""

SHORTEST_CUT = 8
"""Characters of a cut key that are removed; fewer reveal nothing, and occur in ordinary words."""

_BLOCK = 6  # length of the samples by which a cut key is found: at its beginning, its end, and at intervals between
_MOST_PIECES = 1000  # in one text
_HIDDEN = b"***"

# Line breaks inside a key: in a text, in JSON, in quoted-printable, in a header.
_LONGEST_BREAK = 16  # bytes
_LINE_BREAK = rb"(?:\\[nrt]|=?\r?\n|[ \t]){1,8}"
_BREAK, _BREAK_BEFORE = re.compile(_LINE_BREAK), re.compile(_LINE_BREAK + rb"\Z")

# Strings that look like a key: in a URL's user part, after Bearer or Basic, in a query or
# its percent-encoded form, after a well-known prefix, as a JSON web token.
_KEY = re.compile(
    r"(?i)(://)[^\s/@]+(?=@)|((?:bearer|basic)\s+|"
    r"(?:api[_-]?key|token|secret|password|authorization)(?:%22|[\"'])?\s*(?:[:=]|%3[ad])\s*(?:%22|[\"'])?"
    r"(?:(?:bearer|basic)(?:\s+|%20|\+))?)(?:(?!%26|%22)[^\s\"',;&])+|sk-[\w-]{8,}|\beyJ[\w-]{10,}(?:\.[\w-]*){0,2}"
)
_EMAIL = re.compile(r"[^\s<>\"'(),:;]{1,64}@[\w.-]{1,255}")
_NUMBER = re.compile(r"[+(]{0,2}\d(?:[ ().+-]{0,2}\d){4,}")


def redact(text: str) -> str:
    """Cut an outside text, and remove what looks like a key and characters that no log can hold."""
    clean = "".join(char if char.isprintable() else " " for char in text)
    return _KEY.sub(lambda found: f"{found[1] or found[2] or ''}***", clean)[:MAX_KEPT_CHARS].strip()


def redact_people(text: str) -> str:
    """Remove e-mail addresses and every number of five digits or more, in any punctuation."""
    return _NUMBER.sub("***", _EMAIL.sub("***", redact(text)))


def hide(raw: bytes, secrets: Sequence[bytes]) -> bytes:
    """Remove these secrets from a body: whole or cut, encoded or not, broken over lines or not.

    A piece of a secret is found if it is its beginning, its end, or at least eleven characters long. The time is
    proportional to the body's length, whatever it contains.
    """
    for secret in secrets:
        if len(secret) >= SHORTEST_SECRET:
            raw = raw.replace(secret, _HIDDEN)
            for form in _forms(secret):
                if form.block == _BLOCK or b"%" in raw:
                    raw = _without(raw, form)
    return raw


def hide_text(text: str, *secrets: str | None) -> str:
    """Remove these secrets from a text."""
    kept = [secret.encode() for secret in secrets if secret]
    return hide(text.encode("utf-8", "replace"), kept).decode("utf-8", "replace") if kept else text


class _Form:
    """One encoding of a secret."""

    def __init__(self, value: bytes, width: int = 1) -> None:
        """`width`: bytes per character of the secret."""
        self.value = value
        self.block = _BLOCK * width
        self.shortest = min(SHORTEST_CUT * width, len(value))
        last = len(value) - self.block
        self.blocks = {value[at : at + self.block]: at for at in (*range(0, last + 1, self.block), last)}


@lru_cache(maxsize=256)
def _forms(secret: bytes) -> tuple[_Form, ...]:
    """Return the secret as it is, as JSON may escape it, percent-encoded (fully, or what must be), and in base64."""
    pairs = [(chr(byte), f"%{byte:02X}") for byte in secret]
    marks = "".join(char if char.isalnum() or char in "-_.~" else code for char, code in pairs)
    whole = "".join(code for _, code in pairs)
    plain = dict.fromkeys((secret, secret.replace(b"/", rb"\/"), marks.encode(), marks.lower().encode()))
    encoded = dict.fromkeys(_in_base64(secret))
    return (  # longest first: the rest of one must not be taken for a piece of another
        *(_Form(value, 3) for value in dict.fromkeys((whole.encode(), whole.lower().encode()))),
        *(_Form(value) for value in (*encoded, *plain) if len(value) >= _BLOCK),
    )


def _in_base64(secret: bytes) -> Iterator[bytes]:
    """Yield three forms, by the number of preceding characters, without those that depend on neighbours."""
    for before in range(3):
        first, end = (before * 8 + 5) // 6, (before + len(secret)) * 8 // 6
        for encode in (b64encode, urlsafe_b64encode):
            yield encode(b"\0" * before + secret)[first:end]


def _without(raw: bytes, form: _Form) -> bytes:
    """Remove a form and its pieces."""
    pieces: list[tuple[int, int]] = []
    looked = 0
    for block, offset in form.blocks.items():
        at = raw.find(block)
        while at >= 0:
            looked += 1
            if looked > _MOST_PIECES:
                return _HIDDEN
            start, end, length = _grown(raw, form, at, offset)
            # Digits alone may coincide with a part of the key: a phone, a time, a count.
            if length >= form.shortest and (length == len(form.value) or not raw[start:end].isdigit()):
                pieces.append((start, end))
            at = raw.find(block, end)
    if not pieces:
        return raw
    kept, done = [], 0
    for start, end in sorted(pieces):
        if end > done:
            kept += [raw[done : max(start, done)], _HIDDEN]
            done = end
    return b"".join((*kept, raw[done:])).replace(_HIDDEN + _HIDDEN, _HIDDEN)


def _grown(raw: bytes, form: _Form, at: int, offset: int) -> tuple[int, int, int]:
    """Extend a found piece: return its first byte, the byte after its last, and how much of the form it is.

    It may continue after a line break.
    """
    value, start, end, ahead = form.value, at, at + form.block, offset + form.block
    while ahead < len(value):
        line_break = _BREAK.match(raw, end)
        resumed = line_break.end() if line_break else end
        if raw[resumed : resumed + 1] != value[ahead : ahead + 1]:
            break
        end, ahead = resumed + 1, ahead + 1
    while offset > 0 and start > 0:
        if raw[start - 1] != value[offset - 1]:
            line_break = _BREAK_BEFORE.search(raw[max(0, start - _LONGEST_BREAK) : start])
            if line_break is None or start - len(line_break[0]) - 1 < 0:
                break
            resumed = start - len(line_break[0])
            if raw[resumed - 1] != value[offset - 1]:
                break
            start = resumed
        start, offset = start - 1, offset - 1
    return start, end, ahead - offset
