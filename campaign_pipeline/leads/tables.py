"""Reads rows of cells: text separated by comma, semicolon, tab or bar, or a workbook of Excel or LibreOffice."""

import csv
import datetime
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Final, TypeAlias

from campaign_pipeline.leads.encoding import Decoded, decode, physical_lines
from campaign_pipeline.leads.model import LeadsFileError
from campaign_pipeline.leads.values import shown

SAMPLE: Final = 200
"""Number of rows after the header that are used to recognise columns by content."""

_HEADER_WITHIN: Final = 20  # rows; a title, a date and empty lines may come before the header
_LARGEST_FILE: Final = 500 * 1024 * 1024  # bytes; a list of a million leads is smaller
_LONGEST_ROW: Final = 1000  # physical lines; a longer row has an unclosed quote
_DELIMITERS: Final = (";", ",", "\t", "|")
_DELIMITER_NAMES: Final = {";": "semicolons", ",": "commas", "\t": "tabs", "|": "bars"}
_WORKBOOKS: Final = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # XLSX, XLSB and ODS; XLS
_NOT_TABLES: Final = (
    (re.compile(r"[\[{]"), "is JSON, not a table: convert it to CSV, one line a lead."),
    (
        re.compile(r"BEGIN:VCARD", re.IGNORECASE),
        "is a vCard file, not a table: import it in a contacts app and export it as CSV.",
    ),
    (
        re.compile(r"<(?:!doctype|html|table|\?xml)", re.IGNORECASE),
        "is a web page, not a table: save it as CSV or XLSX.",
    ),
    (re.compile(r"%PDF-"), "is a PDF, not a table: export the leads as CSV or XLSX."),
)

Cells: TypeAlias = list[str]


class BrokenRow(Exception):
    """A row that cannot be read; the message is one sentence without the line number."""

    def __init__(self, value: str, sentence: str) -> None:
        super().__init__(sentence)
        self.value = value


Record: TypeAlias = tuple[int, Cells | BrokenRow]
"""The first line of a row, from 1, and its cells or its fault."""


@dataclass
class Table:
    """A table: its header, and its rows, which can be read once."""

    headings: Cells | None  # None: the file has no header
    sample: list[Cells]  # the first rows below the header
    records: Iterator[Record]  # all rows below the header
    how: str  # how the file was read, in words
    delimiter: str | None = None
    notes: list[str] = field(default_factory=list)
    swallows: "Callable[[Cells], bool] | None" = None  # whether cells look like a row; set by the reader


def read_table(path: Path, knows: Callable[[Cells], int], mapped: bool = False) -> Table:
    """Read a file. `knows` counts the headings in a row; `mapped`: the user has chosen columns.

    Raises LeadsFileError.
    """
    raw = _bytes_of(path)
    try:
        if raw.startswith(_WORKBOOKS):
            return _workbook(raw, knows)
        decoded = decode(raw)
        _refuse_other_formats(decoded.text)
        return _text(decoded, knows, mapped)
    except LeadsFileError as error:
        raise LeadsFileError(f"{path}{error}" if str(error).startswith(",") else f"{path} {error}") from None


def _bytes_of(path: Path) -> bytes:
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise LeadsFileError(f"{path} is larger than {_LARGEST_FILE // 1024**2} MB: split it.")
        return path.read_bytes()
    except FileNotFoundError:
        raise LeadsFileError(f"{path} does not exist: give the path of a CSV or XLSX file.") from None
    except OSError as error:
        raise LeadsFileError(f"{path} cannot be read: {error.strerror}.") from error


def _refuse_other_formats(text: str) -> None:
    beginning = text[:200].lstrip()
    if not text.strip():
        raise LeadsFileError("is empty: it needs a header and one lead on each line.")
    for pattern, sentence in _NOT_TABLES:
        if pattern.match(beginning):
            raise LeadsFileError(sentence)


# Text -----------------------------------------------------------------------------------------------------------------


def _text(decoded: Decoded, knows: Callable[[Cells], int], mapped: bool) -> Table:
    lines = [line.rstrip("\r\n") + "\n" for line in physical_lines(decoded.text)]
    start = next(index for index, line in enumerate(lines) if line.strip())
    if re.fullmatch(r"sep=.\s*", lines[start], re.IGNORECASE):  # Excel's hint, not a header
        start += 1
    delimiter, header_at = _sniff(lines, start, knows)
    if header_at is None and not mapped and _quoted_header(lines, start):
        raise LeadsFileError(f", line {start + 1}: the header is not well-formed CSV: close every quote.")
    table = Table(None, [], iter(()), f"{decoded.encoding}, separated by {_DELIMITER_NAMES[delimiter]}", delimiter)
    table.notes += decoded.notes
    first = start
    if header_at is not None:
        records = _parse(lines, header_at, delimiter, table)
        _, header = next(records)
        assert not isinstance(header, BrokenRow)  # it was read when it was found
        table.headings, first = header, _line_after(lines, header_at, delimiter)
        if header_at > start:
            table.notes.append(f"The header is on line {header_at + 1}; the lines before it were ignored.")
    head = list(islice(_parse(lines, first, delimiter, table), SAMPLE))
    table.sample = [cells for _, cells in head if not isinstance(cells, BrokenRow)]
    table.records = _flagged(_parse(lines, first, delimiter, table), lines, decoded)
    return table


def _quoted_header(lines: Sequence[str], start: int) -> bool:
    """Return whether the first row is malformed with every separator."""
    blank = Table(None, [], iter(()), "")
    firsts = (next(_parse(lines, start, delimiter, blank), (0, [])) for delimiter in _DELIMITERS)
    return all(isinstance(cells, BrokenRow) for _, cells in firsts)


def _sniff(lines: Sequence[str], start: int, knows: Callable[[Cells], int]) -> tuple[str, int | None]:
    """Find the separator, and the header: the line with the most known headings.

    `csv.Sniffer` counts characters; a comma in a note or a bar in the tags misleads it.
    """
    best: tuple[int, int, str, int | None] = (0, 0, ";", None)
    blank = Table(None, [], iter(()), "")
    for delimiter in _DELIMITERS:
        for line, cells in islice(_parse(lines, start, delimiter, blank), _HEADER_WITHIN):
            if isinstance(cells, BrokenRow):
                continue
            known, width = knows(cells), len(cells)
            if (known, width) > best[:2] and known:
                best = (known, width, delimiter, line - 1)
    if best[3] is not None:
        return best[2], best[3]
    return max(_DELIMITERS, key=lambda delimiter: _width(lines, start, delimiter)), None


def _width(lines: Sequence[str], start: int, delimiter: str) -> int:
    """Return the least number of cells in the first rows."""
    blank = Table(None, [], iter(()), "")
    rows = (cells for _, cells in islice(_parse(lines, start, delimiter, blank), _HEADER_WITHIN))
    return min((0 if isinstance(cells, BrokenRow) else len(cells) for cells in rows), default=0)


def _line_after(lines: Sequence[str], index: int, delimiter: str) -> int:
    """Return the index of the line after a record."""
    reader = csv.reader(iter(lines[index:]), delimiter=delimiter, strict=True, skipinitialspace=True)
    next(reader)
    return index + reader.line_num


def _parse(lines: Sequence[str], start: int, delimiter: str, table: Table) -> Iterator[Record]:
    """Yield each record from line index `start` on.

    A malformed record is yielded as a BrokenRow, and reading continues at the next line: an unclosed quote costs only
    its own row.
    """
    index = start
    while index < len(lines):
        base = index
        feed = _Feed(lines, base)
        reader = csv.reader(feed, delimiter=delimiter, strict=True, skipinitialspace=True)
        try:
            for record in reader:
                feed.fed = 0
                after = base + reader.line_num
                if after - index > 1 and (swallowed := _swallowed(lines, index, after, delimiter, table)):
                    value = lines[index].rstrip("\n")
                    sentence = (
                        f"The row {shown(value)} has an unclosed quote, which extends over line {swallowed + 1}: "
                        'close every quote, and write a quote within a quoted cell twice ("").'
                    )
                    yield index + 1, BrokenRow(value, sentence)
                    index += 1
                    break
                if record:
                    yield index + 1, record
                index = after
        except csv.Error as error:
            yield index + 1, _not_well_formed(lines[index].rstrip("\n"), error)
            index += 1


class _Feed:
    """Feeds lines to the parser, up to a limit per record."""

    def __init__(self, lines: Sequence[str], base: int) -> None:
        self._lines = lines
        self._next = base
        self.fed = 0

    def __iter__(self) -> "_Feed":
        return self

    def __next__(self) -> str:
        if self._next >= len(self._lines):
            raise StopIteration
        if self.fed > _LONGEST_ROW:
            raise csv.Error(f"it goes on for more than {_LONGEST_ROW} lines")
        self.fed += 1
        self._next += 1
        return self._lines[self._next - 1]


def _swallowed(lines: Sequence[str], index: int, after: int, delimiter: str, table: Table) -> int | None:
    """Find a line inside a multi-line record that looks like a row itself; return its index."""
    if table.swallows is None:
        return None
    for number in range(index + 1, after):
        try:
            cells = next(csv.reader([lines[number]], delimiter=delimiter, strict=True, skipinitialspace=True), [])
        except csv.Error:
            cells = lines[number].rstrip("\n").split(delimiter)
        if table.swallows(cells):
            return number
    return None


def _not_well_formed(value: str, error: csv.Error) -> BrokenRow:
    what = "is not well-formed CSV" if "end of data" not in str(error) else "opens a quote that is never closed"
    sentence = (
        f"The row {shown(value)} {what} ({error}): "
        'close every quote, and write a quote within a quoted cell twice ("").'
    )
    return BrokenRow(value, sentence)


def _flagged(records: Iterator[Record], lines: Sequence[str], decoded: Decoded) -> Iterator[Record]:
    """Replace rows that could not be decoded by their faults."""
    if not decoded.undecodable and not decoded.twice:
        yield from records
        return
    bad = sorted(decoded.undecodable.keys() | decoded.twice)
    ahead = next(records, None)
    place = 0
    while ahead is not None:
        (line, cells), ahead = ahead, next(records, None)
        end = ahead[0] if ahead else len(lines) + 1
        while place < len(bad) and bad[place] < line:
            place += 1
        if place == len(bad) or bad[place] >= end or isinstance(cells, BrokenRow):
            yield line, cells
            continue
        value = lines[bad[place] - 1].rstrip("\n").encode("utf-8", "replace").decode()
        yield line, BrokenRow(value, _why_undecodable(bad[place], value, decoded))


def _why_undecodable(line: int, value: str, decoded: Decoded) -> str:
    if (byte := decoded.undecodable.get(line)) is not None:
        return (
            f"Line {line} {shown(value)} has the byte 0x{byte:02X}, which is not UTF-8 as the rest of the file is: "
            "type its accents anew, or save the whole file as UTF-8."
        )
    return f"Line {line} {shown(value)} was encoded in UTF-8 twice (João became JoÃ£o): type its accents again."


# Workbooks ------------------------------------------------------------------------------------------------------------


def _workbook(raw: bytes, knows: Callable[[Cells], int]) -> Table:
    """Read the first sheet that has a header with known columns."""
    from python_calamine import CalamineError, CalamineWorkbook  # 5 MB, needed for workbooks only

    try:
        book = CalamineWorkbook.from_filelike(io.BytesIO(raw))
        sheets = [(name, book.get_sheet_by_name(name).to_python(skip_empty_area=False)) for name in book.sheet_names]
    except (CalamineError, ValueError, OSError) as error:
        raise LeadsFileError(
            f"is a workbook or an archive that cannot be opened ({error}): open it in Excel and save it as CSV or XLSX."
        ) from None
    found = [(name, rows, _header_row(rows, knows)) for name, rows in sheets if rows]
    if not found:
        raise LeadsFileError("is a workbook without a filled sheet: it needs a header and one lead on each row.")
    name, rows, header_at = next((each for each in found if each[2] is not None), found[0])
    texts = ((number, [_cell(value) for value in row]) for number, row in enumerate(rows, start=1))
    records = iter([(number, cells) for number, cells in texts if any(cells)])
    table = Table(None, [], iter(()), f"workbook, sheet {name!r}")
    if others := [other for other, _, _ in found if other != name]:
        table.notes.append(f"Only the sheet {name!r} was read, not {', '.join(map(repr, others))}.")
    if header_at is not None:
        records = (record for record in records if record[0] > header_at)
        table.headings = [_cell(value) for value in rows[header_at - 1]]
        if any(any(map(_cell, row)) for row in rows[: header_at - 1]):
            table.notes.append(f"The header is on row {header_at}; the rows before it were ignored.")
    head = list(islice(records, SAMPLE))
    table.sample = [cells for _, cells in head]
    table.records = chain(head, records)
    return table


def _header_row(rows: Sequence[Sequence[object]], knows: Callable[[Cells], int]) -> int | None:
    """Return the row, from 1, with the most known headings."""
    scores = [(knows([_cell(value) for value in row]), -number) for number, row in enumerate(rows[:_HEADER_WITHIN], 1)]
    known, place = max(scores)
    return -place if known else None


def _cell(value: object) -> str:
    """Return the text of a cell. Workbooks store every number as a float, so `.0` is removed."""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    if isinstance(value, bool):
        return "sim" if value else "não"
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return value.date().isoformat()
    return "" if value is None else str(value).strip()
