"""Where a part goes: phone numbers as the channels want them, and addresses as logs may show them."""

import re
import unicodedata
from typing import Final, Literal, TypeAlias

import phonenumbers

AddressCode: TypeAlias = Literal["no_phone", "invalid_phone"]

_BRAZIL: Final = "55"
_LONGEST_RAW: Final = 100  # characters: far more than any number with its separators
_NATIONAL: Final = (10, 11)  # digits of a Brazilian number with its area code
_JID: Final = re.compile(r"([0-9]+)(?::[0-9]{1,4})?@(?:s\.whatsapp\.net|c\.us)|([0-9]+):[0-9]{1,4}", re.ASCII)
_WRITTEN: Final = re.compile(r"\(?\+?[\d\s().\-‐‑‒–—]+")
_BRAZILIAN_MOBILE: Final = re.compile(r"(55[1-9][1-9])(9?)([6-9][0-9]{7})", re.ASCII)


class InvalidAddress(ValueError):
    """A lead cannot be reached at what the CRM has as its phone number; the text is one sentence, number masked."""

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
