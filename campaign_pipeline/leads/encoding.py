"""Decodes text files: by the byte order mark, else as UTF-8, else in the encoding that fits the whole file."""

import io
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from charset_normalizer import from_bytes

from campaign_pipeline.leads.model import LeadsFileError

_MARKS: Final = (
    (b"\xef\xbb\xbf", "utf-8-sig", "UTF-8"),
    (b"\xff\xfe\x00\x00", "utf-32", "UTF-32"),
    (b"\x00\x00\xfe\xff", "utf-32", "UTF-32"),
    (b"\xff\xfe", "utf-16", "UTF-16"),
    (b"\xfe\xff", "utf-16", "UTF-16"),
)
_SINGLE_BYTE: Final = {"cp1252": "Windows-1252", "cp850": "CP850 (MS-DOS)", "mac_roman": "Mac Roman"}
_EVIDENCE: Final = 256 * 1024  # most bytes that are examined; most files have fewer
# Weight of a non-ASCII character as evidence: letters of Portuguese, then typographic and foreign characters.
_WEIGHTS: Final = (
    dict.fromkeys("ñüèìòùäëïöÿåæøßÑÜÈÌÒÙÄËÏÖÅÆØ£¥¡¿«»", 0.4)
    | dict.fromkeys("ªº°–—“”‘’…•€§´·®©™½¼\u00a0", 0.8)
    | dict.fromkeys("ãçéíáóõêâúàôÃÇÉÍÁÓÕÊÂÚÀÔ", 1.0)
)
_ESCAPED: Final = re.compile("[\udc80-\udcff]")  # a byte that could not be decoded
_BEYOND_ASCII: Final = re.compile("[^\x00-\x7f]")
_TWICE: Final = ("Ã", "Â", "â€")  # the first byte of an accent in a text that was encoded twice


@dataclass(frozen=True)
class Decoded:
    """A decoded text, its encoding and its faults."""

    text: str
    encoding: str  # in words
    notes: list[str] = field(default_factory=list)
    undecodable: dict[int, int] = field(default_factory=dict)  # line, from 1 -> its first byte that is not UTF-8
    twice: frozenset[int] = frozenset()  # lines, from 1, that were encoded twice while others were not


def decode(raw: bytes) -> Decoded:
    """Decode a whole file. Bytes that cannot be decoded stay as lone surrogates in lines that `undecodable` names.

    Raises LeadsFileError where it is no text.
    """
    for mark, codec, name in _MARKS:
        if raw.startswith(mark):
            try:
                return _checked(raw.decode(codec), f"{name} with a byte order mark")
            except UnicodeDecodeError as error:
                raise LeadsFileError(f"is not a text file: byte {error.start} is not {name}.") from None
    if b"\0" in raw:
        return _unmarked_utf16(raw)
    try:
        return _checked(raw.decode("utf-8"), "UTF-8")
    except UnicodeDecodeError:
        return _mostly_utf8(raw) or _single_byte(raw)


def physical_lines(text: str) -> Iterator[str]:
    """Split a text into lines with their line breaks, as editors do: not at U+2028 or form feeds."""
    return io.StringIO(text, newline="")


def _unmarked_utf16(raw: bytes) -> Decoded:
    """Decode UTF-16 without a mark. In Latin text every other byte is zero; its position shows the byte order."""
    even, odd = raw[0::2].count(0), raw[1::2].count(0)
    codec = "utf-16-le" if odd > even else "utf-16-be"
    if max(even, odd) < len(raw) // 4:
        raise LeadsFileError("is not a text file: save the leads as CSV in UTF-8.")
    try:
        text = raw.decode(codec)
    except UnicodeDecodeError:
        raise LeadsFileError("is not a text file: save the leads as CSV in UTF-8.") from None
    if "\0" in text:
        raise LeadsFileError("is not a text file: save the leads as CSV in UTF-8.")
    name = "UTF-16 without a byte order mark"
    return Decoded(text, name, [f"The file is {name}, as found by its zero bytes."])


def _mostly_utf8(raw: bytes) -> Decoded | None:
    """Decode UTF-8 with a few invalid bytes; return None if most accents are not UTF-8."""
    text = raw.decode("utf-8", "surrogateescape")
    bad = len(_ESCAPED.findall(text))
    good = len(_BEYOND_ASCII.findall(text)) - bad
    if good < 2 * bad:
        return None
    undecodable = {}
    for number, line in enumerate(physical_lines(text), start=1):
        if first := _ESCAPED.search(line):
            undecodable[number] = ord(first[0]) - 0xDC00
    return Decoded(text, "UTF-8", [], undecodable)


def _single_byte(raw: bytes) -> Decoded:
    """Decode one of the single-byte encodings that spreadsheets write.

    charset-normalizer says which of them make a readable text. Where it finds several, as in short files or ones in
    capitals, the one counts whose letters beyond ASCII Portuguese writes most.
    """
    evidence = _telling_lines(raw)
    matches = [match.encoding for match in from_bytes(evidence, cp_isolation=list(_SINGLE_BYTE))]
    # Windows-1252 is left out if a byte of the file is undefined in it.
    found = dict.fromkeys([encoding for encoding in matches if encoding in _SINGLE_BYTE] + ["cp1252"])
    codec = max(found, key=lambda encoding: _likeness(evidence.decode(encoding, "replace")))
    name = _SINGLE_BYTE[codec]
    try:
        text = raw.decode(codec)
    except UnicodeDecodeError:  # Windows-1252 leaves five bytes undefined, which Latin-1 has as control characters
        text = raw.decode("latin-1").translate(_WINDOWS)
    likeness = _likeness(evidence.decode(codec, "replace"))
    notes = [f"The file is not UTF-8; it was read as {name}, which fits its accents best."]
    if likeness < 0.5:
        notes = [
            f"The file is not UTF-8, and no encoding fits its accents well; it was read as {name}. Check the names."
        ]
    return Decoded(text, name, [] if codec == "cp1252" and likeness > 0.9 else notes)


def _telling_lines(raw: bytes) -> bytes:
    """Return the distinct lines with non-ASCII bytes, up to a size."""
    lines: dict[bytes, None] = {}
    size = 0
    for line in raw.splitlines(keepends=True):
        if not line.isascii() and line not in lines:
            lines[line] = None
            size += len(line)
            if size > _EVIDENCE:
                break
    return b"".join(lines)


def _likeness(text: str) -> float:
    """Rate how Portuguese the non-ASCII characters are, from 0 to 1."""
    foreign = Counter(_BEYOND_ASCII.findall(text))
    return sum(_WEIGHTS.get(char, 0.0) * count for char, count in foreign.items()) / max(1, foreign.total())


def _windows(byte: int) -> str:
    try:
        return bytes((byte,)).decode("cp1252")
    except UnicodeDecodeError:
        return chr(byte)


_WINDOWS: Final = {byte: ord(_windows(byte)) for byte in range(0x80, 0xA0)}
_FROM_WINDOWS: Final = {char: byte for byte, char in _WINDOWS.items()}


def _checked(text: str, encoding: str) -> Decoded:
    """Decode a text again if all of it was encoded twice; if only some lines were, list them."""
    if "\0" in text:
        raise LeadsFileError("is not a text file: save the leads as CSV in UTF-8.")
    if not any(sign in text for sign in _TWICE):
        return Decoded(text, encoding)
    whole = _once_less(text)
    if whole is not None:
        note = "The file was encoded in UTF-8 twice (João became JoÃ£o); this was undone."
        return Decoded(whole, f"{encoding}, twice", [note])
    twice = frozenset(
        number for number, line in enumerate(physical_lines(text), start=1) if _once_less(line) is not None
    )
    return Decoded(text, encoding, [], twice=twice)


def _once_less(text: str) -> str | None:
    """Undo a second encoding; return None if there was none."""
    try:
        once = text.translate(_FROM_WINDOWS).encode("latin-1").decode("utf-8")
    except UnicodeError:
        return None
    return None if once == text else once
