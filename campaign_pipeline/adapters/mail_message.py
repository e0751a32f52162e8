"""The e-mail that a part is sent as: headers, plain text and HTML (RFC 5322, RFC 2047, RFC 8058)."""

import html
import re
from datetime import UTC, datetime
from email.charset import QP, Charset
from email.header import Header
from email.mime.multipart import MIMEMultipart
from email.mime.nonmultipart import MIMENonMultipart
from email.policy import compat32
from email.utils import format_datetime
from typing import Final
from urllib.parse import quote
from uuid import UUID, uuid5

from campaign_pipeline.adapters.mailbox import Mailbox
from campaign_pipeline.core import texts
from campaign_pipeline.core.address import normalize_email
from campaign_pipeline.core.generation import check_subject
from campaign_pipeline.core.ports import Envelope

_MESSAGE_IDS: Final = UUID("6f0f6b1c-53cf-5c7a-9a55-5a0a2f6f3b11")
"""Namespace of the Message-IDs. It must never change, or a repeat would get another id."""

_ON_THE_WIRE: Final = compat32.clone(linesep="\r\n", max_line_length=998)
"""998 characters per line (RFC 5322) keep addresses and URLs whole: shorter folding would produce encoded words, which
no mail program decodes there. `policy.SMTP` would join the encoded words of a subject to one of that length."""

_QUOTED_PRINTABLE: Final = Charset("utf-8")
_QUOTED_PRINTABLE.body_encoding = QP


def message_id(mailbox: Mailbox, envelope: Envelope) -> str:
    """Return the Message-ID, the same for every attempt at a part."""
    return f"<{uuid5(_MESSAGE_IDS, envelope.idempotency_key)}@{mailbox.domain}>"


def compose(mailbox: Mailbox, envelope: Envelope) -> bytes:
    """Return the message as it is sent, except for the escaped dots at the beginning of lines.

    Raises InvalidAddress or TextProblem.
    """
    recipient = normalize_email(envelope.address)
    subject = check_subject(envelope.subject, envelope.text)
    unsubscribe = _unsubscribe(mailbox, envelope, recipient)
    own_id = message_id(mailbox, envelope)
    headers = {
        "From": _mailbox(mailbox.from_name, mailbox.from_address),
        "To": _mailbox(envelope.contact_name or "", recipient),
        "Subject": _encoded(subject),
        "Date": format_datetime(datetime.fromtimestamp(envelope.attempted_at, UTC)),
        "Message-ID": own_id,
        **({"Reply-To": mailbox.reply_to} if mailbox.reply_to else {}),
        **({"List-Unsubscribe": ", ".join(f"<{way}>" for way in unsubscribe)} if unsubscribe else {}),
        # RFC 8058: only with an https address, which must unsubscribe at once on a POST.
        **({"List-Unsubscribe-Post": "List-Unsubscribe=One-Click"} if mailbox.unsubscribe_url else {}),
        "Auto-Submitted": "auto-generated",  # suppresses out-of-office replies
        "Feedback-ID": f"{mailbox.stream}:email:{mailbox.domain}",
    }
    boundary = f"=_{own_id[1:37]}"  # `=_` does not occur in quoted-printable text
    message = MIMEMultipart("alternative", boundary, policy=_ON_THE_WIRE)
    for name, value in headers.items():
        message[name] = _safe(name, value)
    plain = envelope.text + (f"\n\n-- \n{texts.UNSUBSCRIBE} {unsubscribe[0]}" if unsubscribe else "")
    for kind, text in (("plain", plain), ("html", _html(envelope.text, unsubscribe))):
        part = MIMENonMultipart("text", kind, policy=_ON_THE_WIRE, charset="utf-8")
        part.set_payload(_encodable(text).replace("\r", ""), _QUOTED_PRINTABLE)
        message.attach(part)
    return message.as_bytes()


def _unsubscribe(mailbox: Mailbox, envelope: Envelope, recipient: str) -> list[str]:
    filled = {"{message_id}": quote(envelope.message_id, safe=""), "{email}": quote(recipient, safe="")}
    ways = [way for way in (mailbox.unsubscribe_url, mailbox.unsubscribe_mailto) if way]
    for place, value in filled.items():
        ways = [way.replace(place, value) for way in ways]
    return ways


_LINK: Final = re.compile(r"https?://[^\s<>\"']*[^\s<>\"'.,;:!?)\]…]")


def _html(text: str, unsubscribe: list[str]) -> str:
    """Convert paragraphs, line breaks and links to HTML; everything else is text."""
    paragraphs = [piece.strip("\n") for piece in re.split(r"\n\s*\n", text) if piece.strip()]
    body = "\n".join(f"<p>{_linked(piece)}</p>" for piece in paragraphs)
    if unsubscribe:
        link = html.escape(unsubscribe[0])
        note = texts.UNSUBSCRIBE
        body += f'\n<p style="color:#777;font-size:12px">{html.escape(note)} <a href="{link}">{link}</a></p>'
    return f'<!DOCTYPE html>\n<html lang="pt-BR"><head><meta charset="utf-8"></head><body>\n{body}\n</body></html>\n'


def _linked(text: str) -> str:
    pieces, end = [], 0
    for found in _LINK.finditer(text):
        link = html.escape(found[0])
        pieces += [html.escape(text[end : found.start()]), f'<a href="{link}">{link}</a>']
        end = found.end()
    return "".join((*pieces, html.escape(text[end:]))).replace("\n", "<br>\n")


def _mailbox(name: str, address: str) -> str:
    """Return `Ana Souza <ana@example.com>`, safe for any name."""
    shown = " ".join("".join(char if char.isprintable() else " " for char in name).split())[:60].strip()
    if not shown:
        return address
    if re.fullmatch(r"[A-Za-z0-9 ]+", shown):
        return f"{shown} <{address}>"
    return f"{_encoded(shown, always=True)} <{address}>"


def _encoded(text: str, *, always: bool = False) -> str:
    """Return plain ASCII as it is, other text as encoded words (RFC 2047) of at most 75 characters."""
    if not always and text.isascii() and text.isprintable() and "=?" not in text:
        return text
    return Header(_encodable(text), "utf-8", maxlinelen=75).encode(linesep="")


def _encodable(text: str) -> str:
    """Return the text without lone surrogates, which UTF-8 cannot encode."""
    return text.encode("utf-8", "replace").decode()


def _safe(name: str, value: str) -> str:
    """The final guard against header injection: a header contains only printable ASCII."""
    if not (value.isascii() and value.isprintable()):
        raise ValueError(f"The header {name} has characters that no header can bear.")
    return value
