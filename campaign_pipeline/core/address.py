"""Where a part goes: phone numbers and e-mail addresses as the channels want them, and as logs may show them."""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, TypeAlias

import phonenumbers

AddressCode: TypeAlias = Literal["no_phone", "invalid_phone", "no_email", "invalid_email"]

AddressKind: TypeAlias = Literal["phone", "jid", "lid", "bsuid", "email"]

_BUSINESS_SCOPED: Final = re.compile(r"[A-Z]{2}\..+", re.DOTALL)
_BRAZIL: Final = "55"
_LONGEST_RAW: Final = 100  # characters: far more than any number with its separators
_NATIONAL: Final = (10, 11)  # digits of a Brazilian number with its area code
_JID: Final = re.compile(r"([0-9]+)(?::[0-9]{1,4})?@(?:s\.whatsapp\.net|c\.us)|([0-9]+):[0-9]{1,4}", re.ASCII)
_WRITTEN: Final = re.compile(r"\(?\+?[\d\s().\-‐‑‒–—]+")
_BRAZILIAN_MOBILE: Final = re.compile(r"(55[1-9][1-9])(9?)([6-9][0-9]{7})", re.ASCII)
_LOCAL_PART: Final = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
_DOMAIN: Final = re.compile(r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+(?!\d+\Z)[a-z0-9][a-z0-9-]{0,61}[a-z0-9]")
_EMAIL_FIELD: Final = re.compile(r"e-?mail( principal| comercial)?", re.IGNORECASE)
_LONGEST_LOCAL_PART: Final = 64  # characters, as servers take them
_LONGEST_EMAIL: Final = 254


class InvalidAddress(ValueError):
    """A lead cannot be reached at what the CRM has of it; the text is one sentence that does not repeat it."""

    def __init__(self, code: AddressCode, reason: str) -> None:
        super().__init__(reason)
        self.code: AddressCode = code

    def __reduce__(self) -> "tuple[type[InvalidAddress], tuple[AddressCode, str]]":
        return type(self), (self.code, str(self))


def normalize_phone(raw: str | None, region: str = "BR") -> str:
    """Give a number as international digits without plus: `5511987654321`.

    `region` is where a number without country code belongs. Separators, `+`, `00`, a trunk `0` and the ending of a
    WhatsApp jid are understood; letters are refused, as they would be read as vanity digits. Only lengths are judged,
    so that ranges younger than the library pass. Raises InvalidAddress.
    """
    text = _visible(raw) if isinstance(raw, str) else ""
    if not text:
        raise InvalidAddress("no_phone", "The lead has no phone number.")
    if jid := _JID.fullmatch(text):
        return _international(jid[1] or jid[2])
    if len(text) > _LONGEST_RAW or not _WRITTEN.fullmatch(text):
        raise InvalidAddress("invalid_phone", "The phone number has characters that are no part of a number.")
    digits = "".join(str(unicodedata.digit(char)) for char in text if char.isdigit())
    if "+" in text:
        return _international(digits)
    if digits.startswith("00"):
        # Not left to the library: it would read 0055 as the prefix of a Brazilian carrier and dial what follows.
        return _international(digits[2:])
    return _national(digits, region)


def normalize_email(raw: str | None) -> str:
    """Give an e-mail address as servers take it: `ana@example.com`, an international domain in its ASCII form.

    Syntax only: whether the mailbox exists, its server tells. Quoted names, several addresses in one field, and names
    that need SMTPUTF8 are refused: hardly one of a thousand is meant. Raises InvalidAddress.
    """
    text = _visible(raw).removeprefix("mailto:") if isinstance(raw, str) else ""
    if not text:
        raise InvalidAddress("no_email", "The lead has no e-mail address.")
    local, _, domain = text.rpartition("@")
    try:
        domain = domain.encode("idna").decode().lower() if len(domain) < _LONGEST_EMAIL else ""
    except UnicodeError:  # an empty label, or one that no domain can have
        domain = ""
    if (
        len(local) > _LONGEST_LOCAL_PART
        or len(local) + len(domain) >= _LONGEST_EMAIL
        or not _LOCAL_PART.fullmatch(local)
        or not _DOMAIN.fullmatch(domain)
    ):
        raise InvalidAddress("invalid_email", "The lead's e-mail address is none that a server would take.")
    return f"{local}@{domain}"


def email_among(custom_fields: Iterable[Mapping[str, Any]]) -> str | None:
    """The e-mail address that the CRM keeps in a custom field, as it stands there; None where there is none."""
    for each in custom_fields:
        value = each.get("value")
        if _EMAIL_FIELD.fullmatch(str(each.get("name") or "").strip()) and isinstance(value, str) and value.strip():
            return value
    return None


def alternatives(digits: str) -> tuple[str, ...]:
    """Give a number and, for a Brazilian mobile, its twin with or without the ninth digit; the given one first.

    WhatsApp knows many old accounts without the ninth digit. Only numbers from 6 to 9 have a twin: the others would
    become a land line, which is somebody else's.
    """
    match = _BRAZILIAN_MOBILE.fullmatch(digits)
    if match is None:
        return (digits,)
    area, ninth, subscriber = match.groups()
    return digits, area + ("" if ninth else "9") + subscriber


def address_kind(address: str) -> AddressKind:
    """What an address is, as the column `address_kind` has it.

    phone: international digits; jid: WhatsApp's own name of an account or group; lid: its name that hides the number;
    bsuid: an id that Meta gives a person for one business (`BR.1A2B`), who may have no number at all; email.
    """
    if "@" in address:
        if address.endswith("@lid"):
            return "lid"
        return "jid" if address.endswith(("@s.whatsapp.net", "@c.us", "@g.us")) else "email"
    return "bsuid" if _BUSINESS_SCOPED.match(address) else "phone"


def masked(address: str) -> str:
    """Hide the middle of an address for logs: `5511*****4321`, `a***@example.com`."""
    local, at, domain = address.partition("@")
    if at and not local.isdigit():
        return f"{local[:1]}***@{domain}"
    if len(local) < 12:
        local = "*" * max(0, len(local) - 2) + local[-2:] if len(local) > 4 else "*" * len(local)
        return local + at + domain
    return f"{local[:4]}{'*' * (len(local) - 8)}{local[-4:]}{at}{domain}"


def _visible(raw: str) -> str:
    """Drop the invisible marks that come along when a number is copied from a contact card."""
    return "".join(char for char in raw if unicodedata.category(char) != "Cf").strip()


def _international(digits: str) -> str:
    try:
        return _possible(phonenumbers.parse(f"+{digits}"))
    except phonenumbers.NumberParseException:
        raise _impossible(digits) from None


def _national(digits: str, region: str) -> str:
    if region == "BR":
        if len(digits) in _NATIONAL and digits[0] != "0":
            return _international(_BRAZIL + digits)
        if digits.startswith(_BRAZIL) and len(digits) - 2 in _NATIONAL:
            return _international(digits)
    try:
        return _possible(phonenumbers.parse(digits, region))
    except (phonenumbers.NumberParseException, InvalidAddress):
        return _foreign(digits)


def _foreign(digits: str) -> str:
    """Read a number that is too long for its region as one whose plus was lost, if it really exists in a plan."""
    try:
        number = phonenumbers.parse(f"+{digits}")
    except phonenumbers.NumberParseException:
        raise _impossible(digits) from None
    if len(digits) <= max(_NATIONAL) or not phonenumbers.is_valid_number(number):
        raise _impossible(digits)
    return _possible(number)


def _possible(number: phonenumbers.PhoneNumber) -> str:
    national = phonenumbers.national_significant_number(number)
    digits = f"{number.country_code}{national}"
    # `is_possible_number` itself is content with a number that lacks its area code.
    reason = phonenumbers.is_possible_number_with_reason(number)
    lacks_area = str(number.country_code) == _BRAZIL and len(national) not in _NATIONAL
    if reason != phonenumbers.ValidationResult.IS_POSSIBLE or lacks_area:
        raise _impossible(digits)
    return digits


def _impossible(digits: str) -> InvalidAddress:
    return InvalidAddress(
        "invalid_phone",
        f"The phone number {masked(digits)} has {len(digits)} digits, which no number of its country has.",
    )
