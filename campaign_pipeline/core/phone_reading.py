"""The one reader of phone numbers: for imported rows, the CRM's rows, replies and what an operator types.

People, CRMs and spreadsheets write a number in many ways, and spreadsheets damage it in some. A number is given only
where its text has exactly one reading. Everything else is refused: a wrong guess is another person's valid number.

Two functions share one grammar. `read_phone` says which number to write to, or why there is none. `canonical_address`
gives one spelling of every way to write an address, to compare and to hash by; it never refuses. The database has a
copy of `canonical_address` for replies that it hears itself (`sql/functions/addresses.sql`); a property test holds both
equal.
"""

import re
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import phonenumbers

PhoneCode: TypeAlias = Literal["no_phone", "invalid_phone"]

BRAZIL: Final = "55"

AREA_CODES: Final = "1[1-9]|2[12478]|3[1-578]|4[1-9]|5[1345]|6[1-9]|7[134579]|8[1-9]|9[1-9]"
"""Brazil's area codes, as a pattern (ANATEL's numbering plan: 67 of them)."""

_LONGEST_TEXT: Final = 200  # characters: a link with a prepared text
_LONGEST_ADDRESS: Final = 320  # characters: an e-mail address has no more
_SHORTEST_FOREIGN: Final = 12  # digits without a plus: a shorter number may be a Brazilian one that is damaged

# The grammar. The patterns keep to what Python and PostgreSQL read alike, and stand in the same order in both.
INVISIBLE: Final = "\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff"
"""Invisible characters that are copied with a number from a contact card or a chat, as a character class."""

_WIDE: Final = {0xFF01 + offset: 0x21 + offset for offset in range(94)} | dict.fromkeys(
    (0x00A0, 0x2002, 0x2003, 0x2007, 0x2009, 0x202F, 0x3000), 0x20
)
_DASHES: Final = dict.fromkeys((0x2010, 0x2011, 0x2012, 0x2013, 0x2014, 0x2212), 0x2D)
_PLAIN: Final = _WIDE | _DASHES

_INVISIBLE: Final = re.compile(f"[{INVISIBLE}]")
_EDGES: Final = " \t\r\n'\"=`´‘’"
_JID: Final = re.compile(r"([0-9]+)(:[0-9]{1,4})?@(s\.whatsapp\.net|c\.us)", re.IGNORECASE)
_DEVICE: Final = re.compile(r"([0-9]+):[0-9]{1,4}")
_BUSINESS_SCOPED: Final = re.compile(r"[A-Z]{2}\.[A-Za-z0-9]+")
_LINK: Final = re.compile(
    r"(?:(?:https?://)?(?:[a-z]+\.)?wa\.me/"
    r"|(?:(?:https?://)?(?:[a-z]+\.)?whatsapp\.com/|whatsapp://)send/?[?](?:[^ ]*&)?phone=)"
    r"(?:[+]|%2B|%20)*([0-9][0-9().-]*)(?:[/?&#][^ ]*)?",
    re.IGNORECASE,
)
_LABEL: Final = re.compile(
    r"(?:tel|telefone|fone|cel|celular|whats|whatsapp|zap|phone|mobile|contato|numero|número|n|nº|p|ph|sms|callto)"
    r"[ ]*[.:]+[ /]*",
    re.IGNORECASE,
)
_ASIDE_BEFORE: Final = re.compile(r"[(\[][^0-9()+*\[\]]*[^0-9()+*\[\] xX][^0-9()+*\[\]]*[)\]][ ]*")
_ASIDE_AFTER: Final = re.compile(
    r"[ ]*[(\[][^0-9()+*\[\]]+[)\]]$"
    r"|[ ]*[ -][ ]*(?:whats|whatsapp|zap|cel|celular|movel|móvel|fixo|comercial|residencial|pessoal|trabalho|casa"
    r"|recado|mobile|work|home|vivo|tim|claro|oi)$",
    re.IGNORECASE,
)
_WHOLE_AS_FLOAT: Final = re.compile(r"([+]?[0-9]{10,})[.,]0+")
_THOUSANDS: Final = re.compile(
    r"([0-9]{1,3})((?:\.[0-9]{3}){2,})(?:,0{1,2})?|([0-9]{1,3})((?:,[0-9]{3}){2,})(?:\.0{1,2})?"
)
_EXPONENT: Final = re.compile(r"[+]?([0-9])[.,]?([0-9]*)[eE][+]?([0-9]{1,2})")
_TRUNK: Final = re.compile(r"^([+]?55)?[ ]*([(]?)[ ]*0?[ ]*(?:xx|XX|\*\*)[ ]*")
# A carrier code is told from an area code by what follows it: an area code that stands alone.
_CARRIER: Final = re.compile(
    rf"^([+]?55)?[ ]*[(]?0[ ]?(?:12|14|15|21|23|25|31|41|43)[)]?[ -]+(?=[(]?(?:{AREA_CODES})[)]?[ .-])"
)
_ZERO_ASIDE: Final = re.compile(r"[(][ ]*0[ ]*[)]")
_WRITTEN: Final = re.compile(r"[(]?[ ]*[+]?[0-9(][0-9 \t\r\n().-]*")
_NATIONAL: Final = rf"(?:({AREA_CODES})(9[0-9]{{8}}|[2-9][0-9]{{7}})|800([0-9]{{7}}))"
_WITH_COUNTRY: Final = re.compile(rf"550?{_NATIONAL}")
_WITHOUT_PLUS: Final = re.compile(rf"(?:0?55)?0?{_NATIONAL}")
_USUAL: Final = re.compile(rf"[+]?55({AREA_CODES})9[0-9]{{8}}")
_DAMAGED: Final = re.compile(rf"{_NATIONAL}(?:[0-9]|00)")
_MOBILE: Final = re.compile(rf"55(?:{AREA_CODES})(?:9[0-9]{{8}}|[6-9][0-9]{{7}})")
_EIGHT: Final = re.compile(rf"(55(?:{AREA_CODES}))([6-9][0-9]{{7}})")
# "98765-432": a mobile number without its last digit. Its digits alone would be read as an old number of eight.
_LOST_DIGIT: Final = re.compile(r"(?:^|[^0-9])9[0-9]{4}[ .-][0-9]{3}$")
_SPLIT: Final = re.compile(r"[;,|\r\n/]+|:::|[ ](?:e|ou|and|or)[ ]", re.IGNORECASE)


class NotANumber(ValueError):
    """A text is not one phone number. `str()` says what is wrong, to follow the name of the field and its value."""

    def __init__(self, code: PhoneCode, fault: str) -> None:
        super().__init__(fault)
        self.code: PhoneCode = code

    def __reduce__(self) -> "tuple[type[NotANumber], tuple[PhoneCode, str]]":
        return type(self), (self.code, str(self))


@dataclass(frozen=True)
class Phone:
    """A number that was read."""

    digits: str  # international, without plus: 5511987654321
    others: tuple[str, ...] = ()  # further numbers of the same cell: land lines beside the one mobile number


def read_phone(raw: str | None) -> Phone:
    """Read the number that a text holds.

    Read are: separators, `+`, `00`, a trunk zero, carrier codes (`0 15 11`, `0xx11`), `(0)`, `tel:` and `wa.me` links,
    WhatsApp jids, a label before and a name in brackets after the number, an apostrophe in front, and a whole number
    that a spreadsheet wrote as an amount (`11987654321.0`, `5,511987654321E+12` with all digits). A number without
    country code is Brazilian. Of several numbers in one cell the only mobile number is meant.

    Refused are: a fraction, an exponent that lost digits, a sign, a number with too many or too few digits or an area
    code that does not exist, an extension, letters, and two mobile numbers. A number of another country must exist in
    its country's plan. Raises NotANumber.
    """
    text = plain(raw) if isinstance(raw, str) else ""
    if not text:
        raise NotANumber("no_phone", "is empty")
    if _USUAL.fullmatch(text):
        return Phone(text.removeprefix("+"))
    if len(text) > _LONGEST_TEXT:
        raise _invalid(f"has {len(text)} characters, which is no number")
    try:
        return Phone(_single(text))
    except NotANumber:
        if several := _several(text):
            return several
        raise


def canonical_number(digits: str) -> str:
    """The spelling by which numbers are compared: a Brazilian mobile number always with its ninth digit."""
    return _EIGHT.sub(r"\g<1>9\2", digits) if _EIGHT.fullmatch(digits) else digits


def canonical_address(raw: str | None) -> str | None:
    """One spelling of every way to write an address; None for none.

    Digits with country code for a number (a Brazilian mobile number with its ninth digit), lower case for an e-mail
    address or a lid, a business-scoped id as it is. What `read_phone` reads has the spelling of its digits; what it
    refuses has its bare digits, if it has nothing but digits and separators.
    """
    text = plain(raw) if raw and len(raw) <= _LONGEST_ADDRESS else ""
    if jid := _JID.fullmatch(text) or _DEVICE.fullmatch(text):
        return canonical_number(jid[1])
    if "@" in text and not _LINK.fullmatch(text):
        return text.lower()
    if _BUSINESS_SCOPED.fullmatch(text):
        return text
    text, linked = _unwrapped(text)
    if not linked:
        text = _whole(text)
    if not _WRITTEN.fullmatch(text):
        return None
    digits = re.sub("[^0-9]", "", text)
    plus = "+" in text
    if digits.startswith("00"):
        digits, plus = digits[2:], True
    found = (_WITH_COUNTRY if plus else _WITHOUT_PLUS).fullmatch(digits)
    return canonical_number(_brazilian(found)) if found else digits or None


def alternatives(digits: str) -> tuple[str, ...]:
    """Give a number and, for a Brazilian mobile number, its twin with or without the ninth digit; the given one first.

    WhatsApp knows many old accounts without the ninth digit. Only numbers from 6 to 9 have a twin: the others would
    become a land line, which is somebody else's.
    """
    if _EIGHT.fullmatch(digits):
        return digits, canonical_number(digits)
    if _MOBILE.fullmatch(digits) and digits[5] in "6789":
        return digits, digits[:4] + digits[5:]
    return (digits,)


def is_mobile(digits: str) -> bool:
    """Whether international digits are a Brazilian mobile number, with or without its ninth digit."""
    return _MOBILE.fullmatch(digits) is not None


def plain(raw: str) -> str:
    """A text with plain digits, spaces and dashes, without invisible marks, and without quotes or spaces around it."""
    return raw.strip(_EDGES) if raw.isascii() else _INVISIBLE.sub("", raw).translate(_PLAIN).strip(_EDGES)


def _invalid(fault: str) -> NotANumber:
    return NotANumber("invalid_phone", fault)


def _single(text: str) -> str:
    """The digits of the one number that a text is; raises NotANumber."""
    if jid := _JID.fullmatch(text) or _DEVICE.fullmatch(text):
        return _of_account(jid[1])
    text, linked = _unwrapped(text)
    if linked:
        return _linked(text)
    text = _whole(text)
    _refuse_damage(text)
    digits = re.sub("[^0-9]", "", text)
    if "+" in text:
        number = _international(digits)
    elif digits.startswith("00"):
        number = _international(digits[2:])
    else:
        number = _without_plus(digits)
    if number.startswith(BRAZIL) and _LOST_DIGIT.search(text):
        raise _invalid("has lost a digit: no Brazilian number ends in five and three digits")
    return number


def _unwrapped(text: str) -> tuple[str, bool]:
    """A text without its link, label, asides and trunk code; and whether it was a link to a number."""
    if link := _LINK.fullmatch(text):
        return link[1], True
    text = _LABEL.sub("", text, count=1) if _LABEL.match(text) else text
    text = _ASIDE_BEFORE.sub("", text, count=1) if _ASIDE_BEFORE.match(text) else text
    text = _ASIDE_AFTER.sub("", text, count=1)
    text = _CARRIER.sub(r"\1 ", _TRUNK.sub(r"\1 \2", text, count=1), count=1)
    return _ZERO_ASIDE.sub(" ", text, count=1).strip(_EDGES), False


def _whole(text: str) -> str:
    """A whole number that a spreadsheet wrote as an amount, as its digits; any other text as it is."""
    if found := _WHOLE_AS_FLOAT.fullmatch(text):
        return found[1]
    if found := _THOUSANDS.fullmatch(text):
        return re.sub("[^0-9]", "", (found[1] or found[3]) + (found[2] or found[4]))
    if found := _EXPONENT.fullmatch(text):
        digits = found[1] + found[2]
        if len(digits) == int(found[3]) + 1:
            return digits
    return text


def _refuse_damage(text: str) -> None:
    """Refuse what is no number or more than one thing; raises NotANumber."""
    if _EXPONENT.fullmatch(text):
        raise _invalid("is in scientific notation and has lost its last digits")
    if re.fullmatch(r"-[0-9 ().-]+|[0-9 ().-]+-", text):
        raise _invalid("has a minus sign")
    fraction = re.fullmatch(r"[^.,]*[.,]([0-9]{1,2})|.*[.,]([0-9]|00)", text, re.DOTALL)
    if fraction and re.search("[0-9]", text[:-3]):
        raise _invalid(f"ends in a fraction (.{fraction[1] or fraction[2]})")
    if not _WRITTEN.fullmatch(text):
        raise _invalid("has characters that are no part of a phone number")


def _brazilian(found: "re.Match[str]") -> str:
    """The digits of a match of the Brazilian plan."""
    area, subscriber, toll_free = found.groups()[-3:]
    return f"{BRAZIL}800{toll_free}" if toll_free else f"{BRAZIL}{area}{subscriber}"


def _without_plus(digits: str) -> str:
    """Read digits that begin with no plus: Brazilian, else the number of another country that lost its plus."""
    if found := _WITHOUT_PLUS.fullmatch(digits):
        return _brazilian(found)
    # One digit too many, or the `00` of cents, makes a Brazilian number look like one of India, Germany or Argentina.
    if len(digits) >= _SHORTEST_FOREIGN and not digits.startswith((BRAZIL, "0")) and not _DAMAGED.fullmatch(digits):
        return _foreign(digits)
    raise _invalid(_why_not_brazilian(digits))


def _international(digits: str) -> str:
    if found := _WITH_COUNTRY.fullmatch(digits):
        return _brazilian(found)
    if digits.startswith(BRAZIL):
        raise _invalid(_why_not_brazilian(digits.removeprefix(BRAZIL)))
    return _foreign(digits)


def _linked(digits: str) -> str:
    """Read the number of a link, which should have its country code; without one it has to have only one reading."""
    digits = re.sub("[^0-9]", "", digits).removeprefix("00")
    if found := _WITH_COUNTRY.fullmatch(digits):
        return _brazilian(found)
    national = _WITHOUT_PLUS.fullmatch(digits)
    try:
        foreign = _international(digits)
    except NotANumber:
        if national is None:
            raise
        return _brazilian(national)
    if national:
        raise _invalid("may be a Brazilian number or one of another country: write it with +55")
    return foreign


def _of_account(digits: str) -> str:
    """Read the digits of a WhatsApp account's own name, which are right as they are."""
    if found := _WITH_COUNTRY.fullmatch(digits):
        return _brazilian(found)
    try:
        number = phonenumbers.parse(f"+{digits}")
    except phonenumbers.NumberParseException:
        raise _invalid(_wrong_length(digits)) from None
    if digits.startswith(BRAZIL) or not phonenumbers.is_possible_number(number):
        raise _invalid(_wrong_length(digits))
    return digits


def _foreign(digits: str) -> str:
    """Give a number of another country if it exists in that country's plan and is written without a trunk zero."""
    try:
        number = phonenumbers.parse(f"+{digits}")
    except phonenumbers.NumberParseException:
        raise _invalid(_wrong_length(digits)) from None
    written = f"{number.country_code}{phonenumbers.national_significant_number(number)}"
    if written != digits or not phonenumbers.is_valid_number(number):
        raise _invalid(f"does not exist in the numbering plan of its country (+{number.country_code})")
    return digits


def _wrong_length(digits: str) -> str:
    return f"has {_count(digits)}, which no number of its country has"


def _count(digits: str) -> str:
    return f"{len(digits)} digit{'' if len(digits) == 1 else 's'}"


def _why_not_brazilian(digits: str) -> str:
    """What keeps digits from being a Brazilian number with its area code."""
    national = digits.removeprefix("0")
    if len(national) < 10:
        return f"has {_count(digits)}, too few for a number with its area code"
    if len(national) not in (10, 11):
        return _wrong_length(digits)
    if not re.match(AREA_CODES, national):
        return f"begins with {national[:2]}, which is no Brazilian area code"
    return "is no Brazilian number: after the area code come 9 and eight digits, or eight digits from 2 on"


def _several(text: str) -> Phone | None:
    """Read the only mobile number among several numbers of one cell, or the one number that all of them are.

    None where the text is no list of whole numbers; raises NotANumber where it is not said which one is meant.
    """
    pieces = [piece for piece in map(str.strip, _SPLIT.split(text)) if piece]
    if len(pieces) < 2 or _LINK.fullmatch(text):
        return None
    try:
        numbers = [_single(piece.strip(_EDGES)) for piece in pieces]
    except NotANumber:
        return None
    distinct = list({canonical_number(number): number for number in reversed(numbers)}.values())[::-1]
    mobiles = [number for number in distinct if _MOBILE.fullmatch(number)]
    meant = mobiles or distinct
    if len(meant) > 1:
        raise _invalid(f"holds {len(meant)} numbers: keep the one to write to")
    return Phone(meant[0], tuple(number for number in distinct if number != meant[0]))
