"""Finds links, phone numbers, e-mail addresses and payment keys in a text that the model invented.

A contact is known if the model's input contains it, in any spelling. Lookalikes (prices, years, dates, quantities,
postal codes, versions) are ignored: each pattern requires the shape of a contact. All patterns are linear, or look at a
bounded number of characters from each position.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, Literal, TypeAlias

from campaign_pipeline.core.text_rules import fold

ContactRule: TypeAlias = Literal["unknown_link", "unknown_number", "unknown_email", "unknown_payment_key"]

_EMAIL: Final = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,5}[a-zA-Z]{2,24}(?![\w-])")
_HANDLE: Final = re.compile(r"(?<![\w@./])@(?P<name>[A-Za-z][\w.]{2,29})(?<!\.)(?![\w@])")
_UNAMBIGUOUS: Final = "com|net|org|edu|gov|info|biz|dev|app|gg|gle|ly|be|br"
_WITH_PATH: Final = "me|site|online|link|store|shop|page|bio|tech|loja|io|ai|co|us|es|pt|cc|tv|to|gl|im|in|live|"
"vip|club|digital|space|website|blog|xyz|top|pro|pix"
_LINK: Final = re.compile(
    r"(?:https?://|www\.)[^\s<>{}\"“”»|]{2,2000}"
    rf"|(?<![\w@.-])(?:[^\W_](?:[\w-]{{0,61}}[^\W_])?\.){{1,4}}(?:{_UNAMBIGUOUS})(?![\w-])(?:[/?#][^\s<>{{}}\"“”»|]{{0,2000}})?(?!@)"
    rf"|(?<![\w@.-])(?:[a-z0-9](?:[a-z0-9-]{{0,61}}[a-z0-9])?\.){{1,4}}(?:{_WITH_PATH})/[^\s<>{{}}\"“”»|]{{0,2000}}"
    r"|(?<![\w@.-])(?:wa\.me|t\.me|m\.me|bit\.ly|linktr\.ee|tinyurl\.com|cutt\.ly)\b(?:/[^\s<>{}\"“”»|]{0,2000})?",
    re.IGNORECASE,
)
_LINK_END: Final = ".,;:!?)]}'\"*_~>…"
# Names of companies and products that look like a domain.
_NO_LINKS: Final = frozenset(
    [
        "booking.com",
        "hoteis.com",
        "hotels.com",
        "decolar.com",
        "monday.com",
        "asp.net",
        "vb.net",
        "mercadolivre.com",
        "amazon.com",
        "amazon.com.br",
        "americanas.com",
        "gov.br",
        "salesforce.com",
    ]
)

_PROFILES: Final = frozenset({"instagram.com", "facebook.com", "tiktok.com", "youtube.com", "x.com", "twitter.com"})

_UUID: Final = re.compile(r"(?<![\w-])[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}(?![\w-])")
_PIX_CODE: Final = re.compile(r"(?<!\w)0002\d{2}\d{2}26\d{2}\S{8,400}", re.ASCII)
_CPF: Final = re.compile(r"(?<![\w.])\d{3}\.\d{3}\.\d{3}[-/]\d{2}(?!\d)", re.ASCII)
_CNPJ: Final = re.compile(  # newer ones contain letters and count only if written with dots
    r"(?<![\w.])(?:\d{8}/\d{4}-?\d{2}|[0-9A-Z]{2}\.[0-9A-Z]{3}\.[0-9A-Z]{3}/[0-9A-Z]{4}-?\d{2})(?!\d)", re.ASCII
)
_ACCOUNT: Final = re.compile(
    r"\b(?:conta|c/c|cc|agencia|ag)(?: corrente| poupanca)?\s?[.:]?\s?(?:n[.ºo°]{0,2}\s?)?\d{3,12}-[\dx]\b"
)
_IBAN: Final = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?(?!\w)", re.ASCII)
_WALLET: Final = re.compile(r"(?<!\w)(?:0x[0-9a-fA-F]{40}|bc1[0-9a-z]{20,60})(?!\w)", re.ASCII)

# A number that could be dialled, or is as long as one. The text around it decides too.
_NUMBER: Final = re.compile(
    r"(?<![\w.,/:-])(?:"
    r"\+\d{1,3}[\s().-]{0,3}(?:\d[\s().-]{0,2}){6,13}\d"  # +55 11 98765-4321
    r"|0[3589]00[\s.-]?\d{2,4}[\s.-]?\d{2,4}(?:[\s.-]?\d{1,4})?"  # 0800 123 4567
    r"|(?:55[\s-]?)?(?:0\d{0,2}[\s-]?)?\(\s?0?\d{2}\s?\)[\s.-]{0,2}(?:9[\s.-])?\d{4,5}[\s.-]?\d{4}"  # (11) 98765-4321
    r"|(?:55[\s-]?)?0?\d{2}[\s.-]{1,3}(?:9[\s.])?\d{4,5}[\s.-]?\d{4}"  # 11 98765-4321
    r"|9[\s.]?\d{4}[\s.-]\d{4}"  # 98765-4321
    r"|[2-57]\d{3}-\d{4}"  # 3456-7890
    r"|\d{4}(?:[ -]\d{4}){2,4}"  # a card
    r"|\d{5}\.\d{5}[ ]\d{5}\.\d{6}[ \d.]{0,40}"  # a payment slip
    r"|\d{8,50}"
    r")(?![\w/]|[.,:-]\d)",
    re.ASCII,
)
_MONEY_BEFORE: Final = re.compile(r"(?:r\$|us\$|u\$|\$|€|£|cep|cep:|n[º°]|lei|nbr|iso|art\.?|reais|brl)\s{0,3}\Z")
_UNIT_AFTER: Final = re.compile(
    r"\s{0,2}(?:%|reais|real|mil\b|milh|bilh|anos?\b|dias?\b|horas?\b|h\b|km|kg|m2|m²|clientes|empresas|pessoas|"
    r"leads|unidades|"
    r"produtos|pedidos|seguidores|avaliac|vendas|usuarios|lojas|itens|metros|litros|views|visualizac)"
)
_YEARS: Final = re.compile(r"(?:19|20)\d\d[-. ](?:19|20)\d\d\Z")
_CALLED: Final = re.compile(
    r"(?:ligue|liga|tel|telefone|fone|whats(?:app)?|zap|contato|celular|numero|sac|central)\W{0,3}(?:\w+\W){0,3}\Z"
)
_POST_CODE: Final = re.compile(r"\d{5}-\d{3}\Z")

_KEYS: Final = (_UUID, _PIX_CODE, _CNPJ, _CPF, _IBAN, _WALLET)
_DOT_IN_A_WORD: Final = re.compile(r"\.[A-Za-z]")
_MANY_DIGITS: Final = re.compile(r"\d(?:[^\d\n]{0,4}\d){4}")


@dataclass
class KnownContacts:
    """The contacts that some texts contain."""

    links: set[str] = field(default_factory=set)  # without scheme, www. and the punctuation that ends a sentence
    hosts: set[str] = field(default_factory=set)
    emails: set[str] = field(default_factory=set)
    digits: set[str] = field(default_factory=set)  # of everything as long as a phone number
    keys: set[str] = field(default_factory=set)  # payment keys without separators
    words: str = ""  # the folded texts

    @classmethod
    def of(cls, texts: Iterable[str]) -> "KnownContacts":
        """Return every contact in these texts."""
        known = cls()
        for text in texts:
            known._add(text)
        return known

    def joined_with(self, other: "KnownContacts") -> "KnownContacts":
        """Return the union of both."""
        return KnownContacts(
            self.links | other.links,
            self.hosts | other.hosts,
            self.emails | other.emails,
            self.digits | other.digits,
            self.keys | other.keys,
            f"{self.words}\n{other.words}",
        )

    def _add(self, text: str) -> None:
        self.words += f"{fold(text)}\n"
        for email in _EMAIL.finditer(text):
            self.emails.add(email[0].casefold())
            self.hosts.add(_host(email[0].partition("@")[2]))
        for link in _LINK.finditer(text):
            plain = _plain_link(link[0])
            self.links.add(plain)
            self.hosts.add(_host(plain))
        for run in _LONG_DIGITS.finditer(text):
            digits = _digits(run[0])
            self.digits.add(digits)
            # Numbers side by side match as one: each piece between wide separators counts too.
            self.digits.update(_digits(piece) for piece in re.split(r"[,;|\n]| {2,}", run[0]))
        for pattern in _KEYS:
            self.keys.update(_bare(found[0]) for found in pattern.finditer(text))
        for found in _NUMBER.finditer(text):
            self.digits.add(_digits(found[0]))


_LONG_DIGITS: Final = re.compile(r"\d(?:[\s().,/+-]{0,3}\d){6,40}", re.ASCII)


@lru_cache(maxsize=256)
def known_in(text: str) -> KnownContacts:
    """Return the contacts of one text; cached, because all leads of a campaign share its instructions."""
    return KnownContacts.of([text])


def unknown_contact(text: str, known: KnownContacts) -> ContactRule | None:
    """Return the rule that the first unknown contact breaks; None if the text has none."""
    return next(_unknown(text, known), None)


def may_have_contact(text: str) -> bool:
    """Return whether a text needs a closer look: most lack the characters that every contact has."""
    return "@" in text or _may_have_link(text) or _MANY_DIGITS.search(text) is not None or text.count("-") > 3


def _may_have_link(text: str) -> bool:
    return "://" in text or _DOT_IN_A_WORD.search(text) is not None


def _unknown(text: str, known: KnownContacts) -> Iterator[ContactRule]:
    """Yield the rules that a text breaks. Each match is blanked afterwards, so that no digits are judged twice."""
    text = "".join(str(unicodedata.decimal(char)) if _is_foreign_digit(char) else char for char in text)
    if "@" in text:
        yield from _unknown_emails(text, known)
        text = _EMAIL.sub(" ", text)
    if _may_have_link(text):
        if any(not _is_known_link(link[0], known) for link in _LINK.finditer(text)):
            yield "unknown_link"
        text = _LINK.sub(" ", text)
    if any(char.isdigit() for char in text):
        for pattern in _KEYS:
            if any(not _is_known_key(key[0], known) for key in pattern.finditer(text)):
                yield "unknown_payment_key"
            text = pattern.sub(" ", text)
        yield from _unknown_numbers(text, known)


def _is_foreign_digit(char: str) -> bool:
    return char > "\x7f" and char.isdecimal()


def _unknown_emails(text: str, known: KnownContacts) -> Iterator[ContactRule]:
    if any(email[0].casefold() not in known.emails for email in _EMAIL.finditer(text)):
        yield "unknown_email"
    if any(fold(handle["name"]) not in known.words for handle in _HANDLE.finditer(_EMAIL.sub(" ", text))):
        yield "unknown_link"  # a profile that is not in the input


def _unknown_numbers(text: str, known: KnownContacts) -> Iterator[ContactRule]:
    for account in _ACCOUNT.finditer(fold(text)):
        if account[0] not in known.words and _digits(account[0]) not in known.words:
            yield "unknown_payment_key"
    for number in _NUMBER.finditer(text):
        if _is_contact(text, number) and not _is_known_number(_digits(number[0]), known):
            yield "unknown_number"


def _is_known_key(key: str, known: KnownContacts) -> bool:
    bare = _bare(key)
    return bare in known.keys or _digits(bare) in known.digits


def _is_contact(text: str, number: re.Match[str]) -> bool:
    """Tell a number that could be dialled or paid to from a price, a range of years, a quantity or a postal code."""
    found = number[0]
    before = fold(text[max(0, number.start() - 40) : number.start()])
    after = fold(text[number.end() : number.end() + 20])
    if _MONEY_BEFORE.search(before) or _UNIT_AFTER.match(after) or _YEARS.match(found) or _POST_CODE.match(found):
        return False
    digits = _digits(found)
    if len(digits) == 8 and digits.endswith("00") and digits[2:4] == "00":  # "3000-4000": a range
        return _CALLED.search(before) is not None
    return True


def _is_known_number(digits: str, known: KnownContacts) -> bool:
    """Return whether a number is known, with or without country code, trunk prefix, area code and ninth digit."""
    if digits in known.digits:
        return True
    asked = _national(digits)
    return any(asked == each or _same_number(asked, each) for each in map(_national, known.digits))


def _national(digits: str) -> str:
    bare = digits.lstrip("0")
    return bare[2:] if bare.startswith("55") and len(bare) in {12, 13} else bare


def _same_number(one: str, other: str) -> bool:
    """Return whether `one` is `other`, with or without its area code and ninth digit."""
    if not (8 <= len(one) <= 11 and 8 <= len(other) <= 11) or one[-8:] != other[-8:]:
        return False
    return len(one) < 10 or one[:2] == other[:2]


def _is_known_link(link: str, known: KnownContacts) -> bool:
    plain = _plain_link(link)
    if plain in known.links or plain in _NO_LINKS or not plain:
        return True
    host, _, path = plain.partition("/")
    if host in _PROFILES and f"@{path.strip('@')}" in known.words:  # a profile that is known by its handle
        return True
    if not path and "?" not in host and _host(plain) in known.hosts:
        return True
    if host == "wa.me" or host.endswith("whatsapp.com"):  # a link to a number is known if the number is
        digits = _digits(path.partition("?")[0])
        return bool(digits) and _is_known_number(digits, known)
    return False


def _plain_link(link: str) -> str:
    bare = link.rstrip(_LINK_END)
    if bare.count("(") > bare.count(")") and link.startswith(f"{bare})"):
        bare += ")"
    bare = re.sub(r"\A(?:https?://)?(?:www\.)?", "", bare, flags=re.IGNORECASE)
    return bare.rstrip("/").casefold()


def _host(link: str) -> str:
    return re.split(r"[/?#:]", link.casefold(), maxsplit=1)[0].removeprefix("www.")


def _digits(text: str) -> str:
    return "".join(char for char in text if char.isascii() and char.isdigit())


def _bare(key: str) -> str:
    return "".join(char for char in key if char.isalnum()).casefold()
