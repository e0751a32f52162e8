"""The lead's data that the model may read, sanitised so that it cannot act as instructions.

Outsiders fill in these fields: the lead on a form, a scraper, an import. So each value is bounded, on one line, and
free of characters that hide or reorder text and of the brackets that delimit data in a prompt.
"""

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from functools import lru_cache
from itertools import islice
from typing import Any, Final

from campaign_pipeline.core import texts
from campaign_pipeline.core.splitting import cluster_starts

VALUE_CHARS: Final = 200
BUSINESS_CHARS: Final = 300
NAME_CHARS: Final = 60  # of a custom field
TAG_CHARS: Final = 50
MOST_TAGS: Final = 20
MOST_OTHERS: Final = 10  # custom fields beyond the business ones
MOST_FIELDS: Final = 500  # custom fields that are read, however many there are

_LARGEST_VALUE: Final = Decimal(10) ** 15
_CENT: Final = Decimal("0.01")
_LOOKED_AT: Final = 8  # times the limit: how many characters of a huge value are read at all

# Format characters that hide, reorder or smuggle text: directions, zero widths, tags, supplementary selectors. The
# joiners U+200C and U+200D stay: emoji and several scripts need them.
_HIDDEN: Final = re.compile(
    "[\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e0fff]"
)
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f]")
# Square brackets and braces too: a model that repeats "Loja [Matriz]" would seem to have left a placeholder.
_ACTIVE: Final = "<>＜＞﹤﹥[]{}［］｛｝`"
_NEUTRAL: Final = str.maketrans(_ACTIVE, "‹›‹›‹›()()()()'")
_HAS_ACTIVE: Final = re.compile(f"[{re.escape(_ACTIVE)}]")  # a third of the time of a translation that changes nothing
_NOTHING: Final = frozenset(
    {
        "None",
        "none",
        "null",
        "NULL",
        "Null",
        "undefined",
        "NaN",
        "nan",
        "N/A",
        "n/a",
        "#N/A",
        "#N/D",
        "#REF!",
        "#VALUE!",
    }
    | {"#VALOR!", "[object Object]"}
)
_UNSAID: Final = frozenset(
    (
        "-", "--", "?", "n/d", "n/i", "nulo", "vazio", "(vazio)", "sem nome", "não informado", "nao informado",
        "nome não informado", "nome nao informado", "não consta", "nao consta", "desconhecido", "desconhecida",
        "unknown",
        "sem informação", "sem informacao", "não identificado", "nao identificado",
    )
)  # fmt: skip
"""Placeholders for an empty value, in lower case: a model that takes one for a name greets the lead by it."""

_LONGEST_UNSAID: Final = max(map(len, _UNSAID))
_LIKE_JSON: Final = re.compile(r"\s*[\[{]\s*(?:[\[{\"}\]]|\Z)")


@dataclass(frozen=True)
class LeadContext:
    """A lead's fields, sanitised and bounded; empty if the CRM has no value. Build it with `from_row`."""

    client_name: str = ""
    company: str = ""
    deal_value: Decimal | None = None  # in reais; None when unknown or not positive
    priority: str = ""
    tags: tuple[str, ...] = ()
    whatsapp_name: str = ""
    funnel: str = ""
    column: str = ""
    custom_fields: tuple[tuple[str, str], ...] = ()  # name and value: business fields in their order, then others

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "LeadContext":
        """Build from a JSON-like row; missing values and wrong types become empty. Never raises."""
        return cls(
            client_name=_text(row.get("client_name")),
            company=_text(row.get("company")),
            deal_value=_money(row.get("deal_value")),
            priority=_text(row.get("priority")),
            tags=tuple(_tags(row.get("tags"))),
            whatsapp_name=_text(row.get("whatsapp_name")),
            funnel=_text(row.get("funnel")),
            column=_text(row.get("column")),
            custom_fields=tuple(_custom_fields(row.get("custom_fields"))),
        )

    def values(self) -> tuple[str, ...]:
        """Return every non-empty value that the model reads, without its label."""
        money = "" if self.deal_value is None else _reais(self.deal_value)
        own = (self.client_name, self.company, self.whatsapp_name, *self.tags, self.funnel, self.column, money)
        return tuple(filter(None, (*own, *(value for _, value in self.custom_fields))))

    def render(self) -> str:
        """Render the fields as labelled Portuguese lines; no value contains `<`, `>` or a line break."""
        lines = [
            (texts.LABEL_NAME, self.client_name),
            (texts.LABEL_COMPANY, self.company),
            (texts.LABEL_DEAL_VALUE, "" if self.deal_value is None else _reais(self.deal_value)),
            (texts.LABEL_PRIORITY, texts.PRIORITIES.get(self.priority.casefold(), self.priority)),
            (texts.LABEL_TAGS, ", ".join(self.tags)),
            (texts.LABEL_WHATSAPP_NAME, self.whatsapp_name),
            (texts.LABEL_FUNNEL, self.funnel),
            (texts.LABEL_COLUMN, self.column),
        ]
        shown = [(label, _tidy(value, VALUE_CHARS)) for label, value in lines]
        # Sanitised again, so that a context that was not built by `from_row` is safe too.
        shown += [(_tidy_name(name), _tidy(value, BUSINESS_CHARS)) for name, value in self.custom_fields]
        text = "\n".join(f"{label}: {value}" for label, value in shown if value)
        return text.translate(_NEUTRAL) if _HAS_ACTIVE.search(text) else text


def in_order(custom_fields: object) -> list[dict[str, Any]]:
    """Return custom fields of get_lead_contexts (`<position> <name>` -> value) as `name` and `value`.

    In the CRM's display order: by position, those without one last, then by name.
    """
    if not isinstance(custom_fields, Mapping):
        return []
    split = ((*key.partition(" ")[::2], value) for key, value in custom_fields.items())
    placed = sorted((not position, int(position or 0), name, value) for position, name, value in split)
    return [{"name": name, "value": value} for _, _, name, value in placed]


def _text(value: object, limit: int = VALUE_CHARS) -> str:
    """Read a text or a number; other types, and what programs write for an empty value, become empty."""
    if isinstance(value, str):
        text = _tidy(value, limit)
        unsaid = len(text) <= _LONGEST_UNSAID and text.lower() in _UNSAID
        return "" if unsaid or text in _NOTHING else text
    if isinstance(value, bool):
        return texts.YES if value else texts.NO
    if isinstance(value, int):
        return str(value) if abs(value) < _LARGEST_VALUE else ""
    if isinstance(value, float | Decimal):
        number = Decimal(str(value))
        return format(number, "f") if number.is_finite() and Decimal("1e-9") < abs(number) < _LARGEST_VALUE else ""
    return ""


def _tidy(text: str, limit: int) -> str:
    """Put a text on one line without hidden characters, cut to `limit` characters at a grapheme boundary."""
    head = text[: limit * _LOOKED_AT]
    is_plain = head.isascii() and head.isprintable()  # as most values are: nothing to remove, in a third of the time
    line = " ".join((head if is_plain else _CONTROL.sub(" ", _HIDDEN.sub("", head))).split())
    if len(line) <= limit and len(head) == len(text):
        return line
    cut = min(len(line), limit - 1)
    starts = cluster_starts(line[: cut + 1])
    while 0 < cut < len(line) and not starts[cut]:
        cut -= 1
    return f"{line[:cut].rstrip()}…" if cut else ""


def _money(value: object) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | str):
        return None
    if isinstance(value, int) and abs(value) >= _LARGEST_VALUE:  # before a conversion whose time grows with the digits
        return None
    try:
        amount = Decimal(value.strip()[:40] if isinstance(value, str) else str(value))
    except InvalidOperation:
        return None
    if not amount.is_finite() or not _CENT / 2 <= amount < _LARGEST_VALUE:
        return None
    return amount.quantize(_CENT, ROUND_HALF_UP)


def _reais(amount: Decimal) -> str:
    return "R$ " + f"{amount:,.2f}".translate(str.maketrans(",.", ".,"))


def _tags(value: object) -> Iterator[str]:
    """Yield the tags, each once."""
    listed = [value] if isinstance(value, str) else value
    if isinstance(listed, list | tuple):
        tags = (_tidy(tag, TAG_CHARS) for tag in islice(listed, MOST_FIELDS) if isinstance(tag, str))
        yield from islice(dict.fromkeys(tag for tag in tags if tag), MOST_TAGS)


def _custom_fields(value: object) -> Iterator[tuple[str, str]]:
    """Yield the business fields in their order, then others that are short and not JSON; each name once."""
    business: dict[str, str] = {}
    others: dict[str, tuple[str, str]] = {}
    for name, raw in _named_values(value):
        key = _key(name)
        if key in _BUSINESS_KEYS:
            text = _text(raw, BUSINESS_CHARS)
            if text:
                business.setdefault(key, text)
        elif _is_short(raw) and (text := _text(raw)):
            others.setdefault(key, (name, text))
    yield from ((label, business[key]) for key, label in _BUSINESS_KEYS.items() if key in business)
    yield from islice(others.values(), MOST_OTHERS)


def _named_values(value: object) -> Iterator[tuple[str, object]]:
    if not isinstance(value, list | tuple):
        return
    for item in islice(value, MOST_FIELDS):
        if isinstance(item, Mapping) and (name := _name(item.get("name"))):
            yield name, item.get("value")


def _name(value: object) -> str:
    return _tidy_name(value) if isinstance(value, str) else _text(value, NAME_CHARS)


@lru_cache(maxsize=1024)
def _tidy_name(name: str) -> str:
    """Sanitise a field's name. Cached: names repeat for every lead, and took a third of the time to read a lead."""
    return _tidy(name, NAME_CHARS)


def _is_short(value: object) -> bool:
    """Return whether a value fits on a line: neither long nor a structure that some tool stored."""
    if not isinstance(value, str):
        return True  # numbers are short; structures become empty
    text = value.strip()
    return len(text) <= VALUE_CHARS and not _LIKE_JSON.match(text) and not _is_json(text)


def _is_json(text: str) -> bool:
    if not text.startswith(("[", "{")):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


@lru_cache(maxsize=1024)
def _key(name: str) -> str:
    """Fold case and accents of a name: operators type names by hand."""
    plain = unicodedata.normalize("NFKD", name.casefold())
    return "".join(char for char in plain if not unicodedata.combining(char))


_BUSINESS_KEYS: Final = {_key(label): label for label in texts.BUSINESS_FIELDS}
