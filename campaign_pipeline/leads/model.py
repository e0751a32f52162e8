"""A lead as a file has it, and what is wrong with rows and files."""

from dataclasses import dataclass, field
from decimal import Decimal

BUSINESS_FIELDS = (
    "Categoria",
    "CNAE Principal",
    "Porte da Empresa",
    "Razão Social",
    "Rating",
    "Avaliações",
    "Endereço",
    "Cidade/UF",
    "Website Principal",
    "Email",
    "WHOIS Responsável",
    "Capital Social",
    "Data Abertura",
)
"""The custom fields about a lead's firm, named as the CRM names them, in the order in which a context shows them."""

PRIORITIES = ("low", "medium", "high")


@dataclass(frozen=True)
class Lead:
    """A person at a firm, as the CRM's `leads` row and its custom values hold it."""

    client_name: str
    company: str | None = None
    phone: str | None = None  # as a person wrote it: neither normalised nor surely a number
    deal_value: Decimal | None = None  # Brazilian reais
    priority: str = "medium"  # one of PRIORITIES
    tags: tuple[str, ...] = ()
    notes: str | None = None
    cnpj: str | None = None  # written 11.222.333/0001-81
    custom_fields: dict[str, str] = field(default_factory=dict, hash=False)  # field name -> value, never empty


@dataclass(frozen=True)
class Problem:
    """Why a row of a CSV was left out. Holds what the cell holds, personal data too: to be shown, not logged."""

    line: int  # where the row begins in the file, from 1
    column: str  # the heading as the file has it; `column 7` for a cell without one; empty if the whole row is meant
    value: str  # the whole cell
    message: str  # one sentence: the field, the value, and what would be right


class LeadsFileError(ValueError):
    """The file as a whole cannot be used; the text says why, in one sentence."""
