"""Maps columns to fields of a lead: by the user's choice, by the heading, or by the content."""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from campaign_pipeline.core.phone_reading import NotANumber, read_phone
from campaign_pipeline.core.texts import BUSINESS_FIELDS
from campaign_pipeline.leads.model import LeadsFileError
from campaign_pipeline.leads.values import filled, fold, shown
from campaign_pipeline.leads.vocabulary import (
    BUSINESS,
    GENERAL,
    NO_PHONE_WORDS,
    PHONE_RANKS,
    PHONE_WORDS,
    PLAIN_PHONE_RANK,
    QUESTIONS,
    RFB,
    RFB_COLUMNS,
    TOOLS,
    Tool,
)

FIELDS: Final = {
    "name": "client_name",
    "company": "company",
    "phone": "phone",
    "email": "email",
    "value": "deal_value",
    "priority": "priority",
    "tags": "tags",
    "notes": "notes",
    "cnpj": "cnpj",
}
"""The fields that `--map` accepts, by name."""

_MOSTLY: Final = 0.7  # share of a column's filled cells that decides its content
_EMAIL: Final = re.compile(r"[^@\s]+@[^@\s]+\.[a-zA-Z]{2,}")
_LETTERS: Final = re.compile(r"[^\W\d_]{2,}")


@dataclass(frozen=True)
class PhoneColumn:
    """A column with phone numbers, and the column with their area codes if there is one."""

    index: int
    rank: int  # lower is preferred; 0: a WhatsApp column
    area_code: int | None = None


@dataclass
class Columns:
    """The columns of each field."""

    headings: list[str]
    tool: Tool | None = None
    fields: dict[str, list[int]] = field(default_factory=dict)  # field -> columns, the preferred one first
    phones: list[PhoneColumn] = field(default_factory=list)  # by preference
    joined_names: list[int] = field(default_factory=list)  # first, middle and last name
    cnpj_parts: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        named = (self.heading(index) for index in range(len(self.headings)))
        self.custom_names = [_BUSINESS_BY_HEADING.get(fold(heading), heading) for heading in named]
        # These columns stay custom fields even if they also provide the company's name.
        self.legal_names = {index for index, name in enumerate(self.custom_names) if name == "Razão Social"}

    def of(self, name: str) -> Sequence[int]:
        """Return the columns of a field, the preferred one first."""
        return self.fields.get(name, ())

    def shown(self, sample: Sequence[Sequence[str]]) -> list[tuple[str, str, str]]:
        """Return field, columns and first filled value of each mapping, for display."""
        rows: list[tuple[str, str, str]] = []
        for name, lead_field in FIELDS.items():
            indexes = [column.index for column in self.phones] if lead_field == "phone" else list(self.of(lead_field))
            ways = [self.heading(index) for index in indexes]
            if lead_field == "client_name" and self.joined_names:
                ways.append(" + ".join(map(self.heading, self.joined_names)))
                indexes += self.joined_names
            if lead_field == "client_name" and not ways:
                indexes = [*self.of("title"), *self.of("company")]
                ways = [self.heading(index) for index in indexes]
            if ways:
                rows.append((name, ", else ".join(ways), _first(sample, indexes)))
        return rows

    def heading(self, index: int) -> str:
        """Return the heading of a column, or `column 7` if it has none."""
        return (self.headings[index] if index < len(self.headings) else "") or f"column {index + 1}"


def _first(sample: Sequence[Sequence[str]], indexes: Sequence[int]) -> str:
    cells = (filled(row[index]) for index in indexes for row in sample if index < len(row))
    return " ".join(next((cell for cell in cells if cell), "").split())[:40]


def known_headings(cells: Sequence[str]) -> int:
    """Count the known headings in a row; 0 if a cell is a lead's data."""
    known = {index for index, cell in enumerate(cells) if _known(cell)}
    data = any(_EMAIL.fullmatch(cell.strip()) or _is_number(cell) for cell in cells if cell)
    return 0 if data else len(known)


def choose_columns(
    headings: Sequence[str] | None,
    sample: Sequence[Sequence[str]],
    chosen: Mapping[str, Sequence[str]],
    *,
    emails: bool = False,
) -> Columns:
    """Map columns to fields. `chosen` is the user's choice: field -> headings, or column numbers from 1.

    Raises LeadsFileError if no column holds a name or a phone; with `emails`, an e-mail address replaces the phone.
    """
    width = max((len(row) for row in sample), default=0)
    if headings is None and _is_rfb(sample):
        headings = RFB_COLUMNS
    columns = Columns([" ".join(heading.split()) for heading in headings or [""] * width])
    columns.tool = _tool_of(columns.headings)
    for lead_field in (*GENERAL, *BUSINESS):
        columns.fields[lead_field] = _by_heading(columns, lead_field)
    columns.phones = _phones_by_heading(columns)
    _by_content(columns, sample)
    _apply(columns, chosen)
    _compose_names(columns, mapped="name" in chosen)
    parts = {fold(heading): index for index, heading in enumerate(columns.headings)}
    if all(part in parts for part in ("cnpjbasico", "cnpjordem", "cnpjdv")):
        columns.cnpj_parts = [parts["cnpjbasico"], parts["cnpjordem"], parts["cnpjdv"]]
    _require(columns, headings is not None, emails=emails)
    return columns


def _known(heading: str) -> bool:
    return fold(heading) in _KNOWN or _phone_rank(heading) is not None or _asks_for_name(heading)


def _asks_for_name(heading: str) -> bool:
    words = set(_words(heading))
    return any(question <= words for question in QUESTIONS) and not words & {"empresa", "company"}


def _is_number(cell: str) -> bool:
    try:
        read_phone(cell)
    except NotANumber:
        return False
    return True


def _is_rfb(sample: Sequence[Sequence[str]]) -> bool:
    """Return whether rows without a header have the layout of the Receita Federal's list of companies."""
    patterns = (r"\d{8}", r"\d{4}", r"\d{2}", r"[12]")
    rows = [row for row in sample if len(row) == len(RFB_COLUMNS)]
    return bool(rows) and all(
        re.fullmatch(pattern, cell.strip()) for row in rows for pattern, cell in zip(patterns, row, strict=False)
    )


def _tool_of(headings: Sequence[str]) -> Tool | None:
    folded = {fold(heading) for heading in headings}
    tools = (tool for tool in (*TOOLS, RFB) if all(fold(heading) in folded for heading in tool.signature))
    return max(tools, key=lambda tool: len(tool.signature), default=None)


def _by_heading(columns: Columns, lead_field: str) -> list[int]:
    """Return the columns with a heading of this field: the tool's own headings first, then general ones."""
    own = columns.tool.columns if columns.tool else {}
    elsewhere = {fold(heading) for name, known in own.items() if name != lead_field for heading in known}
    general = [] if lead_field in own else [*GENERAL.get(lead_field, BUSINESS.get(lead_field, ()))]
    ranks: dict[str, int] = {}
    for heading in (*own.get(lead_field, ()), *general):
        if fold(heading) not in elsewhere or heading in own.get(lead_field, ()):
            ranks.setdefault(fold(heading), len(ranks))
    found = [(ranks[fold(h)], index) for index, h in enumerate(columns.headings) if h and fold(h) in ranks]
    if lead_field == "client_name" and not found:
        found = [(0, index) for index, heading in enumerate(columns.headings) if _asks_for_name(heading)]
    return [index for _, index in sorted(found)]


def _words(heading: str) -> list[str]:
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", heading)
    decomposed = unicodedata.normalize("NFKD", apart.casefold())
    return re.findall("[a-z0-9]+", "".join(char for char in decomposed if not unicodedata.combining(char)))


def _phone_rank(heading: str) -> int | None:
    """Rank a column as the phone, by the words of its heading; None if it is not a phone."""
    words = set(_words(heading))
    if (not words & PHONE_WORDS and not {"whats", "app"} <= words) or words & NO_PHONE_WORDS:
        return None
    return min((rank for known, rank in PHONE_RANKS if words & known), default=PLAIN_PHONE_RANK)


def _phones_by_heading(columns: Columns) -> list[PhoneColumn]:
    found = []
    for index, heading in enumerate(columns.headings):
        rank = _phone_rank(heading)
        if rank is not None:
            before = index > 0 and "ddd" in _words(columns.headings[index - 1])
            area_code = index - 1 if before or (index > 0 and fold(columns.headings[index - 1])[:3] == "ddd") else None
            found.append(PhoneColumn(index, rank, area_code))
    return sorted(found, key=lambda column: (column.rank, column.index))


# By content -----------------------------------------------------------------------------------------------------------


def _by_content(columns: Columns, sample: Sequence[Sequence[str]]) -> None:
    """Decide by content if headings do not: a `Contato` that holds numbers, or a file without headings."""
    for index in list(columns.of("client_name")):
        if _share(sample, index, _is_number) >= _MOSTLY:
            columns.fields["client_name"].remove(index)
            columns.phones.append(PhoneColumn(index, PLAIN_PHONE_RANK))
            columns.notes.append(f"{columns.heading(index)!r} holds phone numbers, so it is read as the phone.")
    area_codes = {c.index for c in columns.phones if _share(sample, c.index, lambda cell: len(cell) <= 3) == 1}
    columns.phones = [column for column in columns.phones if column.index not in area_codes]
    taken = {index for indexes in columns.fields.values() for index in indexes} | {p.index for p in columns.phones}
    free = [index for index in range(len(columns.headings)) if index not in taken]
    # If a column is called phone but has no numbers, and another one has, the content decides.
    if not any(_share(sample, column.index, _is_number) > 0 for column in columns.phones):
        found = [
            index for index in free if _share(sample, index, _is_number) >= _MOSTLY and _may_be_phone(columns, index)
        ]
        columns.phones += [PhoneColumn(index, PLAIN_PHONE_RANK) for index in found]
        columns.notes += [
            f"{columns.heading(index)!r} holds phone numbers, so it is read as the phone." for index in found
        ]
        free = [index for index in free if index not in found]
    if any(columns.headings):
        return
    emails = [index for index in free if _share(sample, index, lambda cell: bool(_EMAIL.fullmatch(cell))) >= _MOSTLY]
    columns.fields["email"] += emails
    texts = [index for index in free if index not in emails and _share(sample, index, _is_text) >= _MOSTLY]
    if len(texts) == 1:
        columns.fields["client_name"] += texts
        columns.notes.append(f"The file has no header; column {texts[0] + 1} holds text, so it is read as the name.")


def _may_be_phone(columns: Columns, index: int) -> bool:
    """Return whether a column without a phone heading may hold phones: not if its heading means something else."""
    words = set(_words(columns.headings[index]))
    return not words & {
        "cpf",
        "cnpj",
        "cep",
        "id",
        "codigo",
        "code",
        "rg",
        "pis",
        "nis",
        "protocolo",
        "pedido",
        "fax",
    } and (not words & NO_PHONE_WORDS)


def _is_text(cell: str) -> bool:
    return bool(_LETTERS.search(cell)) and not _EMAIL.fullmatch(cell) and not _is_number(cell)


def _share(sample: Sequence[Sequence[str]], index: int, fits: Callable[[str], bool]) -> float:
    cells = [cell for row in sample if index < len(row) and (cell := filled(row[index]))]
    return sum(map(fits, cells)) / len(cells) if cells else 0.0


# By the user's choice -------------------------------------------------------------------------------------------------


def _apply(columns: Columns, chosen: Mapping[str, Sequence[str]]) -> None:
    for name, wanted in chosen.items():
        if name not in FIELDS:
            raise LeadsFileError(f"--map has no field {name!r}. The fields are {', '.join(FIELDS)}.")
        indexes = [_index_of(columns, heading) for heading in wanted]
        for others in columns.fields.values():
            others[:] = [index for index in others if index not in indexes]
        columns.phones = [column for column in columns.phones if column.index not in indexes]
        if name == "phone":
            columns.phones = [PhoneColumn(index, place) for place, index in enumerate(indexes)]
        else:
            columns.fields[FIELDS[name]] = indexes


def _index_of(columns: Columns, heading: str) -> int:
    wanted = fold(heading)
    for index, known in enumerate(columns.headings):
        if known and fold(known) == wanted:
            return index
    number = re.fullmatch(r"(?:column|coluna)?\s*(\d{1,4})", heading.strip(), re.IGNORECASE)
    if number and 1 <= int(number[1]) <= len(columns.headings):
        return int(number[1]) - 1
    found = ", ".join(filter(None, columns.headings)) or f"{len(columns.headings)} columns without a heading"
    raise LeadsFileError(f"The file has no column {heading!r} (found: {shown(found, 200)}).")


def _compose_names(columns: Columns, *, mapped: bool) -> None:
    """Find the columns that together form a name."""
    if mapped:
        named = list(columns.of("client_name"))
        if len(named) > 1:
            columns.joined_names, columns.fields["client_name"] = named, []
        columns.fields["title"] = []
        return
    first, last = columns.of("first_name"), columns.of("last_name")
    if not last and not first:
        return
    # `Nome` beside `Sobrenome` is the first name, unless there is a `Full name`.
    names = columns.fields["client_name"]
    if last and not first and names and fold(columns.headings[names[0]]) in {"nome", "name"}:
        first = [names.pop(0)]
    parts = [index for found in (first, columns.of("middle_name"), last) for index in found[:1]]
    columns.joined_names = parts


def _require(columns: Columns, has_header: bool, *, emails: bool) -> None:
    named = any(columns.of(each) for each in ("client_name", "title", "company")) or columns.joined_names
    missing = []
    if not named:
        missing.append(("name", "Nome, Cliente, Contato or Name"))
    if not columns.phones and not (emails and columns.of("email")):
        missing.append(("phone", "Telefone, Celular, WhatsApp or Phone"))
    if not missing:
        return
    what, examples = missing[0]
    beginning = "has" if has_header else "has no header and"
    mails = " (e-mail addresses alone are not enough)" if what == "phone" and columns.of("email") else ""
    found = ", ".join(filter(None, columns.headings)) or "no header"
    raise LeadsFileError(
        f"{beginning} no column for the {what}{mails}: use the heading {examples}, or choose a column with "
        f'--map {what}="Heading" (found: {shown(found, 200)}).'
    )


_KNOWN: Final = frozenset(
    fold(heading)
    for headings in (*GENERAL.values(), *BUSINESS.values(), *(t for tool in TOOLS for t in tool.columns.values()))
    for heading in headings
) | frozenset(fold(heading) for tool in TOOLS for heading in tool.signature)

_BUSINESS_BY_HEADING: Final = {fold(name): name for name in BUSINESS_FIELDS} | {
    fold(heading): name for name, headings in BUSINESS.items() for heading in headings
}
