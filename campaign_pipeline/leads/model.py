"""A lead of a file, and the faults of rows and files."""

from dataclasses import dataclass, field
from decimal import Decimal

PRIORITIES = ("low", "medium", "high")


@dataclass(frozen=True)
class Lead:
    """A person at a company: the fields of the CRM's `leads` row and its custom values."""

    client_name: str
    company: str | None = None
    phone: str | None = None  # as it was written: not normalised, perhaps not a number
    deal_value: Decimal | None = None  # Brazilian reais
    priority: str = "medium"  # one of PRIORITIES
    tags: tuple[str, ...] = ()
    notes: str | None = None
    cnpj: str | None = None  # written 11.222.333/0001-81
    custom_fields: dict[str, str] = field(default_factory=dict, hash=False)  # field name -> value, never empty


@dataclass(frozen=True)
class Problem:
    """Why a row was left out. It contains the cell's value, which may be personal data: show it, never log it."""

    line: int  # the first line of the row, from 1
    column: str  # the file's heading; `column 7` if it has none; empty for the whole row
    value: str  # the whole cell
    message: str  # one sentence: the field, the value, and what would be right


class LeadsFileError(ValueError):
    """The file cannot be used; the message says why in one sentence."""
