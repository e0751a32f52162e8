"""Reads leads from files of spreadsheets, CRMs and lead tools, and reports the rows that it leaves out."""

import html
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from os import PathLike
from pathlib import Path

from campaign_pipeline.core.address import InvalidAddress, normalize_email
from campaign_pipeline.core.phone_reading import (
    NotANumber,
    Phone,
    canonical_number,
    is_mobile,
    read_phone,
)
from campaign_pipeline.leads.columns import Columns, PhoneColumn, choose_columns, known_headings
from campaign_pipeline.leads.model import Lead, LeadsFileError, Problem
from campaign_pipeline.leads.tables import BrokenRow, Table, read_table
from campaign_pipeline.leads.values import (
    amount,
    clean,
    cnpj_check_digits,
    filled,
    fold,
    format_cnpj,
    priority,
    shown,
    tags,
)
from campaign_pipeline.leads.vocabulary import REFUSALS


@dataclass(frozen=True)
class LeadsFile:
    """The leads of a file, and how it was read."""

    leads: list[Lead]
    problems: list[Problem]
    how: str  # encoding and separator, or the sheet
    tool: str | None  # the tool that probably exported it
    mapping: list[tuple[str, str, str]]  # field, its columns, and the first filled value
    notes: list[str] = field(default_factory=list)  # remarks about the file, for the user
    lines: list[int] = field(default_factory=list)  # the first line of each lead's row


def read_leads(
    path: str | PathLike[str], chosen: Mapping[str, Sequence[str]] | None = None, *, emails: bool = False
) -> LeadsFile:
    """Read leads from a CSV, TSV, XLSX, XLS or ODS file.

    Columns are recognised by `chosen` (field of `columns.FIELDS` -> headings), then by their heading, regardless of
    order, case, accents and spaces, and otherwise by content. Other columns become custom fields under their heading. A
    row needs a name (the person's, else the company's) and a phone, which is returned as international digits.

    With `emails`, a file without phone numbers is read by its e-mail addresses: its leads have no phone.

    A row with faults is left out, with one `Problem` per fault; the others are read. If several rows have the same
    phone, in any spelling, the first one is used.

    Raises:
        LeadsFileError: the file is missing, unreadable, not a table or empty, or it has no column for name or phone.
    """
    file, chosen = Path(path), chosen or {}
    table = read_table(file, known_headings, mapped=bool(chosen))
    try:
        columns = choose_columns(table.headings, table.sample, chosen, emails=emails)
    except LeadsFileError as error:
        raise LeadsFileError(f"{file} {error}" if str(error).startswith("has") else f"{file}: {error}") from None
    table.swallows = _rows_like(columns)
    leads, lines, problems, refusals = _read_rows(table, columns)
    if not leads and not problems:
        raise LeadsFileError(f"{file} has a header but no rows: write one lead on each line below it.")
    notes = [*table.notes, *columns.notes, *_told(refusals)]
    if not columns.phones:
        notes.append("No column holds phone numbers: only a campaign through a mailbox can write to these leads.")
    tool = columns.tool.name if columns.tool else None
    return LeadsFile(leads, problems, table.how, tool, columns.shown(table.sample), notes, lines)


def _read_rows(table: Table, columns: Columns) -> tuple[list[Lead], list[int], list[Problem], Counter[str]]:
    leads: list[Lead] = []
    lines: list[int] = []
    problems: list[Problem] = []
    phone_lines: dict[str, int] = {}
    refusals: Counter[str] = Counter()
    refusing = _refusing_columns(columns)
    for line, record in table.records:
        if isinstance(record, BrokenRow):
            problems.append(Problem(line, "", record.value, str(record)))
            continue
        cells = [filled(cell) for cell in record]
        if not any(cells):
            continue
        row = _Row(columns, line, cells, table.delimiter)
        lead = row.read(phone_lines)
        problems += row.problems
        if not row.problems:
            leads.append(lead)
            lines.append(line)
            refusals.update(heading for heading, index, words in refusing if row.says(index, words))
    return leads, lines, problems, refusals


def _refusing_columns(columns: Columns) -> list[tuple[str, int, tuple[str, ...]]]:
    known = {fold(heading): words for heading, words in REFUSALS}
    headings = enumerate(columns.headings)
    return [(heading, index, known[fold(heading)]) for index, heading in headings if fold(heading) in known]


def _told(refusals: Counter[str]) -> Iterable[str]:
    for heading, count in refusals.items():
        yield (
            f"The column {heading!r} says that {count} of these leads do not want messages. They are included: remove "
            "them from the file, or suppress them with `campaign-pipeline consent suppress`."
        )


def _rows_like(columns: Columns) -> Callable[[Sequence[str]], bool]:
    """Return a test for lines that look like a row of this table: enough cells, and a phone."""

    def looks_like_a_row(cells: Sequence[str]) -> bool:
        if len(cells) < max(2, len(columns.headings)):
            return False
        return any(_phone_of(column, [filled(cell) for cell in cells]) is not None for column in columns.phones)

    return looks_like_a_row


def _phone_of(column: PhoneColumn, cells: Sequence[str]) -> Phone | None:
    try:
        return read_phone(_phone_text(column, cells))
    except NotANumber:
        return None


def _phone_text(column: PhoneColumn, cells: Sequence[str]) -> str:
    """Return the text of a phone, preceded by its area code if that has its own column."""
    text = cells[column.index] if column.index < len(cells) else ""
    if column.area_code is not None and re.fullmatch(r"[0-9-]{8,10}", text):
        area_code = cells[column.area_code].lstrip("0").removesuffix(".0")
        return f"{area_code} {text}" if re.fullmatch("[0-9]{2}", area_code) else text
    return text


class _Row:
    """Converts one row to a lead and notes its faults."""

    def __init__(self, columns: Columns, line: int, cells: Sequence[str], delimiter: str | None) -> None:
        self.problems: list[Problem] = []
        self._columns = columns
        self._line = line
        self._delimiter = delimiter
        missing = len(columns.headings) - len(cells)
        self._cells = [*cells, *[""] * missing]
        self._taken: set[int] = set()

    def read(self, phone_lines: dict[str, int]) -> Lead:
        """Read the lead, which is valid only if there are no problems; note the line of its phone or address."""
        name, company = self._name()
        phone, others = self._phone(phone_lines) if self._columns.phones else self._email(phone_lines)
        return Lead(
            client_name=name,
            company=company,
            phone=phone,
            deal_value=self._deal_value(),
            priority=self._priority(),
            tags=tags(self._take("tags")[1]),
            notes=_without_markup(self._take("notes")[1]) or None,
            cnpj=self._cnpj(),
            custom_fields=self._custom_fields(others),  # last: what the others did not take
        )

    def says(self, index: int, words: Sequence[str]) -> bool:
        """Return whether a cell is one of these words."""
        return fold(self._cells[index]) in words

    def _take(self, name: str) -> tuple[str, str]:
        """Take a field from its first filled cell; return the heading and the cell."""
        candidates = self._columns.of(name)
        index = next((index for index in candidates if self._cells[index]), None)
        if index is None:
            return (self._columns.heading(candidates[0]), "") if candidates else ("", "")
        self._taken.add(index)
        return self._columns.heading(index), self._cells[index]

    def _complain(self, column: str, value: str, fault: str) -> None:
        subject = f"{column} {shown(value)}" if value else column
        self.problems.append(Problem(self._line, column, value, f"{subject} {fault}"))

    def _name(self) -> tuple[str, str | None]:
        """Return the person's name and the company's; if a tool lists companies, each can replace the other."""
        column, name = self._take("client_name")
        joined_column, joined = self._joined_name()
        column, name = (column, name) if name else (joined_column or column, joined)
        company_column, company = self._take("company")
        self._taken -= self._columns.legal_names
        if not name:
            title_column, name = self._take("title")
            column = column or title_column
        name = name or company
        if not name:
            self._complain(
                column or company_column, "", "is empty: write the name of the person, such as Maria de Souza."
            )
        elif self._columns.tool and self._columns.tool.lists_firms:
            company = company or name
        return " ".join(name.split()), company or None

    def _joined_name(self) -> tuple[str, str]:
        parts = [(index, self._cells[index]) for index in self._columns.joined_names if self._cells[index]]
        self._taken.update(index for index, _ in parts)
        heading = " + ".join(map(self._columns.heading, self._columns.joined_names))
        return heading, " ".join(dict.fromkeys(text for _, text in parts))

    def _phone(self, phone_lines: dict[str, int]) -> tuple[str, tuple[str, ...]]:
        """Return the number to contact, and other numbers of the same cell."""
        column = self._phone_column()
        heading, value = self._columns.heading(column.index), self._cells[column.index]
        if not value:
            self._complain(heading, value, "is empty: write a number with its area code, such as (11) 98765-4321.")
            return "", ()
        self._taken.add(column.index)
        if column.area_code is not None:
            self._taken.add(column.area_code)
        try:
            phone = read_phone(_phone_text(column, self._cells))
        except NotANumber as error:
            self._complain(heading, value, f"{error}: write one like (11) 98765-4321.")
            return "", ()
        key = canonical_number(phone.digits)
        if (first := phone_lines.setdefault(key, self._line)) != self._line:
            self._complain(heading, value, f"is also the number of line {first}: keep each number on one line only.")
        return phone.digits, phone.others

    def _email(self, lines: dict[str, int]) -> tuple[None, tuple[str, ...]]:
        """Require an e-mail address, because the file has no phone numbers."""
        heading, value = self._take("email")
        try:
            address = normalize_email(value)
        except InvalidAddress:
            fault = "is not an e-mail address" if value else "is empty"
            self._complain(heading, value, f"{fault}: write one like maria@exemplo.com.br.")
            return None, ()
        if (first := lines.setdefault(address.lower(), self._line)) != self._line:
            fault = f"is also the address of line {first}: keep each address on one line only."
            self._complain(heading, value, fault)
        return None, ()

    def _phone_column(self) -> PhoneColumn:
        """Return the column of the number: one for WhatsApp, else the first mobile number, else the first number.

        If no column holds a number, return the first filled one, which is then reported as a fault.
        """
        written = [column for column in self._columns.phones if self._cells[column.index]]
        if len(written) == 1:
            return written[0]
        read = [(column, phone) for column in written if (phone := _phone_of(column, self._cells))]
        for column, phone in read:
            if column.rank == 0 or is_mobile(phone.digits):
                return column
        return read[0][0] if read else (written or self._columns.phones)[0]

    def _deal_value(self) -> Decimal | None:
        column, value = self._take("deal_value")
        text = re.sub(r"^(R\$|BRL)\s*", "", clean(value), flags=re.IGNORECASE) if value else ""
        if text in {"", "-"}:  # a spreadsheet's currency format shows zero as a dash
            return None
        found = amount(text)
        if found is None:
            self._complain(column, value, "is not an amount of reais: write it like R$ 1.234,56 or 1234.56.")
        return found

    def _priority(self) -> str:
        column, value = self._take("priority")
        found = priority(value) if value else "medium"
        if found is None:
            self._complain(column, value, "is not a priority: write baixa, média or alta (low, medium or high).")
        return found or "medium"

    def _cnpj(self) -> str | None:
        if self._columns.cnpj_parts:
            self._taken.update(self._columns.cnpj_parts)
            column, value = "CNPJ", "".join(self._cells[index] for index in self._columns.cnpj_parts)
        else:
            column, value = self._take("cnpj")
        if not value:
            return None
        # Spreadsheets drop leading zeros of numbers and may append ".0".
        digits = re.sub(r"[\s./-]", "", re.sub(r"\.0$", "", clean(value))).upper().zfill(14)
        if re.fullmatch(r"000[0-9]{11}", digits) and "cpf" in fold(column):  # a person's number
            return None
        # Since July 2026 the first twelve characters may also be letters.
        if not re.fullmatch(r"[0-9A-Z]{12}[0-9]{2}", digits) or len(set(digits)) == 1:
            self._complain(column, value, "is not a CNPJ: write its 14 characters, such as 11.222.333/0001-81.")
        elif cnpj_check_digits(digits[:12]) != digits[12:]:
            self._complain(
                column,
                value,
                "has wrong check digits for a CNPJ: compare it with a right one, such as 11.222.333/0001-81.",
            )
        return format_cnpj(digits)

    def _custom_fields(self, other_phones: Sequence[str]) -> dict[str, str]:
        """Collect the remaining cells under their headings; repeated headings are numbered."""
        names = self._columns.custom_names
        custom: dict[str, str] = {}
        _column, email = self._take("email")
        if email:
            _add(custom, "Email", email)
        for index, value in enumerate(self._cells):
            if not value or index in self._taken:
                continue
            if index >= len(names):
                named = sum(map(bool, self._columns.headings))
                quote = f", or quote the cell that contains {self._delimiter!r}" if self._delimiter else ""
                fault = f"has no heading: the header has {named} columns. Add a heading{quote}."
                self._complain(f"column {index + 1}", value, fault)
                continue
            _add(custom, names[index], value)
        for phone in other_phones:
            _add(custom, "Telefone", phone)
        return custom


def _add(custom: dict[str, str], name: str, value: str) -> None:
    unique, number = name, 1
    while unique in custom:
        number += 1
        unique = f"{name} ({number})"
    custom[unique] = value


def _without_markup(note: str) -> str:
    """Convert a note to plain text if the tool exports HTML."""
    if not re.match(r"<(p|div|br|span|b|ul)\b", note):
        return note
    return " ".join(html.unescape(re.sub(r"<[^<>]{1,200}>", " ", note)).split())
