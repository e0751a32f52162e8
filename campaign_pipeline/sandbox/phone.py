"""Phone numbers in WhatsApp's own spelling."""

import re

_NOT_A_DIGIT = re.compile(r"\D+")
_BRAZILIAN_MOBILE = re.compile(r"55(\d{2})9(\d{8})")


def digits_of(address: str) -> str:
    """Keep the digits of a number or of the user part of a jid (`5511987654321@s.whatsapp.net`)."""
    return _NOT_A_DIGIT.sub("", address.partition("@")[0])


def canonical_number(address: str) -> str:
    """Spell a number like its registered account.

    Brazilian mobiles of area codes from 31 on are registered without their ninth digit when the old number began with
    7, 8 or 9; everything else stays as it is.
    """
    digits = digits_of(address)
    mobile = _BRAZILIAN_MOBILE.fullmatch(digits)
    if mobile is None or int(mobile[1]) < 31 or mobile[2][0] < "7":
        return digits
    return f"55{mobile[1]}{mobile[2]}"


def jid_of(address: str) -> str:
    """Return WhatsApp's address (jid) of a number; a jid stays as it is."""
    return address if "@" in address else f"{canonical_number(address)}@s.whatsapp.net"
