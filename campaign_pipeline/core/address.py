"""Phone numbers and e-mail addresses: normalised for the channels, masked for logs."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, TypeAlias

from campaign_pipeline.core.phone_reading import NotANumber, alternatives, canonical_address, plain, read_phone

__all__ = [
    "AddressCode",
    "AddressKind",
    "InvalidAddress",
    "address_kind",
    "alternatives",
    "business_scoped_id",
    "canonical_address",
    "email_among",
    "masked",
    "normalize_email",
    "normalize_phone",
]

AddressCode: TypeAlias = Literal["no_phone", "invalid_phone", "no_email", "invalid_email"]

AddressKind: TypeAlias = Literal["phone", "jid", "lid", "bsuid", "email"]

_BUSINESS_SCOPED: Final = re.compile(r"[A-Z]{2}\.[A-Za-z0-9]{1,128}")
_LONGEST_SHOWN: Final = 17  # digits of a refused number that a log may show, masked
_LOCAL_PART: Final = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
_DOMAIN: Final = re.compile(r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+(?!\d+\Z)[a-z0-9][a-z0-9-]{0,61}[a-z0-9]")
_EMAIL_FIELD: Final = re.compile(r"e-?mail( principal| comercial)?", re.IGNORECASE)
_LONGEST_LOCAL_PART: Final = 64  # characters; the limit of servers
_LONGEST_EMAIL: Final = 254


class InvalidAddress(ValueError):
    """A lead's contact data is unusable. The message is one sentence that does not repeat the data."""

    def __init__(self, code: AddressCode, reason: str) -> None:
        super().__init__(reason)
        self.code: AddressCode = code

    def __reduce__(self) -> "tuple[type[InvalidAddress], tuple[AddressCode, str]]":
        return type(self), (self.code, str(self))


def normalize_phone(raw: str | None) -> str:
    """Normalise a number to international digits without plus: `5511987654321`. See `phone_reading.read_phone`.

    Raises InvalidAddress, whose message does not repeat the number.
    """
    try:
        return read_phone(raw).digits
    except NotANumber as error:
        if error.code == "no_phone":
            raise InvalidAddress("no_phone", "The lead has no phone number.") from None
        digits = "".join(char for char in raw or "" if char.isdecimal())
        shown = f" {masked(digits)}" if digits and len(digits) <= _LONGEST_SHOWN else ""
        raise InvalidAddress("invalid_phone", f"The phone number{shown} {error}.") from None


def business_scoped_id(raw: str | None) -> str | None:
    """Return Meta's id of a person for one business (`BR.13491208655302741918`), or None for any other address.

    Such a person may have no number; only the WhatsApp Cloud API can write to it.
    """
    text = plain(raw) if isinstance(raw, str) else ""
    return text if _BUSINESS_SCOPED.fullmatch(text) else None


def normalize_email(raw: str | None) -> str:
    """Normalise an e-mail address for servers: `ana@example.com`, an international domain in its ASCII form.

    Checks the syntax only; whether the mailbox exists, its server tells. Refuses quoted names, several addresses in one
    field, and names that need SMTPUTF8: fewer than one in a thousand is valid. Raises InvalidAddress.
    """
    text = plain(raw).removeprefix("mailto:") if isinstance(raw, str) else ""
    if not text:
        raise InvalidAddress("no_email", "The lead has no e-mail address.")
    local, _, domain = text.rpartition("@")
    try:
        domain = domain.encode("idna").decode().lower() if len(domain) < _LONGEST_EMAIL else ""
    except UnicodeError:  # an empty label, or one that is invalid in every domain
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
    """Return the e-mail address in the CRM's custom fields, unchanged; None if there is none."""
    for each in custom_fields:
        value = each.get("value")
        if _EMAIL_FIELD.fullmatch(str(each.get("name") or "").strip()) and isinstance(value, str) and value.strip():
            return value
    return None


def address_kind(address: str) -> AddressKind:
    """Return the kind of an address, as in the column `address_kind`.

    phone: international digits; jid: WhatsApp's name of an account or group; lid: its name that hides the number;
    bsuid: Meta's id of a person for one business (`BR.1A2B`), who may have no number; email.
    """
    if "@" in address:
        if address.endswith("@lid"):
            return "lid"
        return "jid" if address.endswith(("@s.whatsapp.net", "@c.us", "@g.us")) else "email"
    return "bsuid" if _BUSINESS_SCOPED.fullmatch(address) else "phone"


def masked(address: str) -> str:
    """Hide the middle of an address for logs: `5511*****4321`, `a***@example.com`."""
    local, at, domain = address.partition("@")
    if at and not local.isdigit():
        return f"{local[:1]}***@{domain}"
    if len(local) < 12:
        local = "*" * max(0, len(local) - 2) + local[-2:] if len(local) > 4 else "*" * len(local)
        return local + at + domain
    return f"{local[:4]}{'*' * (len(local) - 8)}{local[-4:]}{at}{domain}"
