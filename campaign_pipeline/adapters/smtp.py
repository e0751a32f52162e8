"""E-mail by SMTP: one mailbox of one mail server, over a bounded pool of connections.

Contract: RFC 5321, RFC 3463 (enhanced codes), RFC 8058 (one-click unsubscribe). Once the content has left, a server may
have accepted it, whatever happens to the connection: from then on, no reply means an unknown outcome. Before that,
nothing was sent. SMTP has no look-up; the Message-ID is the same in every attempt, so that many mailboxes
collapse a duplicate that a person asked for.
"""

import asyncio
import contextlib
import html
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.charset import QP, Charset
from email.header import Header
from email.mime.multipart import MIMEMultipart
from email.mime.nonmultipart import MIMENonMultipart
from email.policy import compat32
from email.utils import format_datetime
from types import TracebackType
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit
from uuid import UUID, uuid5

import aiosmtplib
import httpx

from campaign_pipeline.adapters.hosts import HostRefused, Hosts
from campaign_pipeline.adapters.inbox_connection import InboxConnection
from campaign_pipeline.adapters.redaction import hide_text, redact
from campaign_pipeline.adapters.smtp_replies import Stage, classify
from campaign_pipeline.core import texts
from campaign_pipeline.core.address import InvalidAddress, masked, normalize_email
from campaign_pipeline.core.generation import check_subject
from campaign_pipeline.core.ports import (
    Attempt,
    ChannelTraits,
    Envelope,
    Failure,
    LookUp,
    LookUpAnswer,
    LookUpFailed,
    NumberCheck,
    NumberNotChecked,
    Outcome,
    Permanent,
    Scope,
    Sent,
    Systemic,
    Throttled,
    Transient,
    Unknown,
)
from campaign_pipeline.core.text_rules import TextProblem

TRAITS = ChannelTraits(
    name="smtp", max_part_chars=20_000, look_up=LookUp.NONE, number_check=False, may_split=False, has_subject=True
)

_MESSAGE_IDS: Final = UUID("6f0f6b1c-53cf-5c7a-9a55-5a0a2f6f3b11")
"""Namespace of the Message-IDs. It must never change, or a repeat would get another id."""

FAILURES_IN_A_ROW = 3
"""If this many connections in a row fail, the server is down or misconfigured."""

DATA_PATIENCE = 4
"""Multiple of the usual timeout for the reply to a whole message: scanners take minutes; a timeout is unknown."""

_ON_THE_WIRE: Final = compat32.clone(linesep="\r\n", max_line_length=998)
"""998 characters per line (RFC 5322) keep addresses and URLs whole: shorter folding would produce encoded words, which
no mail program decodes there. `policy.SMTP` would join the encoded words of a subject to one of that length."""

_QUOTED_PRINTABLE: Final = Charset("utf-8")
_QUOTED_PRINTABLE.body_encoding = QP

# The message ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mailbox:
    """One mailbox and its server."""

    host: str
    port: int
    security: str  # starttls, tls, none
    from_address: str
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    from_name: str = ""
    reply_to: str | None = None
    domain: str = ""  # domain of Message-IDs
    unsubscribe_url: str | None = None  # https; {message_id} and {email} are replaced
    unsubscribe_mailto: str | None = None
    ca_file: str | None = None  # certificates to trust besides the system's
    stream: str = "campaign"  # identifies the inbox in Gmail's postmaster tools
    max_connections: int = 5
    messages_per_connection: int = 100


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


# The channel ----------------------------------------------------------------------------------------------------------


@dataclass
class _Progress:
    stage: Stage = Stage.CONNECT


SENTENCES: Mapping[str, str] = {
    "untrusted_certificate": "The mail server's certificate is not to be trusted.",
    "no_tls": "The mail server offers no STARTTLS, and security is starttls; a password would be readable on the way.",
    "no_login": "The mail server offers no way to log in that is known here.",
}


class _TooLate(Exception):
    """The lease ended before the content was sent."""


class _Stale(Exception):
    """A kept connection had died meanwhile; nothing was sent over it."""


_EMAIL: Final = re.compile(r"[^\s<>\"'(),:;]+@[\w.-]+")


def _said(text: str) -> str:
    """Return the server's acceptance text, to be stored with the message."""
    return _EMAIL.sub(lambda found: masked(found[0]), redact(text))


_LOST = (aiosmtplib.SMTPServerDisconnected, aiosmtplib.SMTPTimeoutError, OSError, asyncio.TimeoutError, TimeoutError)


class Smtp:
    """One mailbox; see `core.ports.MessageChannel`. As a context manager it closes its connections at the end."""

    traits = TRAITS

    def __init__(self, mailbox: Mailbox, timeout: float = 30.0, hosts: Hosts | None = None) -> None:
        """`hosts`: those that may be reached; from the environment if None."""
        self._mailbox = mailbox
        self._timeout = timeout
        self._hosts = Hosts.from_environment() if hosts is None else hosts
        self._slots = asyncio.Semaphore(mailbox.max_connections)
        self._idle: list[tuple[aiosmtplib.SMTP, int]] = []  # connection, messages sent over it
        self._failures = 0  # to connect, in a row

    async def __aenter__(self) -> "Smtp":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        idle, self._idle = self._idle, []
        await asyncio.gather(*(_say_goodbye(client) for client, _ in idle))

    async def check_connection(self) -> Failure | None:
        """Log in once. If the server does not answer, nothing is held back: sending will tell."""
        if not self._idle:
            client = await self._connect()
            if not isinstance(client, aiosmtplib.SMTP):
                return client if isinstance(client, Systemic | Throttled) else None
            self._idle.append((client, 0))
        return None

    async def send(self, envelope: Envelope) -> Outcome:
        """Send one message, once."""
        try:
            recipient, content = normalize_email(envelope.address), compose(self._mailbox, envelope)
        except (InvalidAddress, TextProblem) as problem:
            return Permanent(problem.code, str(problem))
        async with self._slots:
            while self._idle:
                client, messages = self._idle.pop()
                with contextlib.suppress(_Stale):
                    return await self._deliver(client, messages, envelope, recipient, content)
            fresh = await self._connect(envelope.attempted_at)
            if not isinstance(fresh, aiosmtplib.SMTP):
                return fresh
            return await self._deliver(fresh, 0, envelope, recipient, content)

    async def find_accepted(self, attempt: Attempt) -> LookUpAnswer:
        """Return no result: SMTP has no look-up."""
        return LookUpFailed("SMTP has no way to ask whether a message was accepted.")

    async def check_number(self, number: str) -> NumberCheck:
        """Return no result: a mailbox has no number."""
        return NumberNotChecked("A mailbox cannot be asked for numbers.")

    async def _connect(self, at: float | None = None) -> aiosmtplib.SMTP | Failure:
        """Return a connection that is logged in, or why there is none."""
        mailbox, progress = self._mailbox, _Progress()
        try:
            connection = await asyncio.wait_for(self._hosts.connect(mailbox.host, mailbox.port), self._timeout)
        except HostRefused as refused:
            return Systemic("address_refused", f"{refused}.", Scope.INBOX)
        except (OSError, TimeoutError) as error:
            return self._unreachable(progress.stage, error)
        try:
            client = aiosmtplib.SMTP(
                hostname=mailbox.host,
                sock=connection,
                local_hostname=mailbox.domain,
                timeout=self._timeout,
                use_tls=mailbox.security == "tls",
                start_tls=mailbox.security == "starttls",
                cert_bundle=mailbox.ca_file,
            )
            await client.connect()
            progress.stage = Stage.LOGIN
            if mailbox.username:
                await client.login(mailbox.username, mailbox.password or "")
        except aiosmtplib.SMTPResponseException as error:
            client.close()
            self._failures = 0  # it answers
            return classify(progress.stage, error.code, self._without_password(error.message), at)
        except (aiosmtplib.SMTPException, *_LOST) as error:
            client.close()
            return self._unreachable(progress.stage, error)
        self._failures = 0
        return client

    def _unreachable(self, stage: Stage, error: Exception) -> Failure:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ssl.SSLCertVerificationError):
            cause = cause.__cause__
        if cause is not None:
            reason = f"{SENTENCES['untrusted_certificate']} {redact(str(cause))}"
            return Systemic("untrusted_certificate", reason, Scope.INBOX)
        if type(error) is aiosmtplib.SMTPException:  # the server lacks a required feature
            code = "no_login" if stage is Stage.LOGIN else "no_tls"
            return Systemic(code, SENTENCES[code], Scope.INBOX)
        self._failures += 1
        where = f"{self._mailbox.host}:{self._mailbox.port}"
        reason = f"The mail server {where} cannot be reached: {redact(str(error)) or type(error).__name__}."
        if self._failures >= FAILURES_IN_A_ROW:
            return Systemic("server_unreachable", f"{reason} So it was {self._failures} times in a row.", Scope.INBOX)
        return Transient("unreachable", reason)

    async def _deliver(
        self, client: aiosmtplib.SMTP, messages: int, envelope: Envelope, recipient: str, content: bytes
    ) -> Outcome:
        """Send one message over one connection, which is kept if it can be reused. Raises _Stale."""
        progress, keep = _Progress(Stage.MAIL), False
        try:
            said = await self._exchange(client, recipient, content, progress, envelope.may_leave)
            keep = True
            return Sent(message_id(self._mailbox, envelope)[1:-1], {"reply": _said(self._without_password(said))})
        except aiosmtplib.SMTPResponseException as error:
            if messages and progress.stage is Stage.MAIL and error.code == 421:
                raise _Stale from None  # it was about to close an idle connection
            keep = await self._start_over(client)
            return classify(progress.stage, error.code, self._without_password(error.message), envelope.attempted_at)
        except _TooLate:
            return Transient("too_late", "It was too late to send, so the mail server did not get the last line.")
        except _LOST as error:
            if messages and progress.stage is Stage.MAIL:
                raise _Stale from None
            said = redact(str(error)) or type(error).__name__
            if progress.stage is Stage.BODY:
                return Unknown("no_answer", f"The mail server gave no answer after it had the whole message: {said}.")
            return Transient("connection_lost", f"The connection to the mail server was lost: {said}.")
        finally:
            # Also if this task is cancelled: a connection in the middle of a message cannot be reused.
            if keep and client.is_connected and messages + 1 < self._mailbox.messages_per_connection:
                self._idle.append((client, messages + 1))
            else:
                client.close()

    def _without_password(self, said: str) -> str:
        """Return a server's reply without the password, in case it quotes what it was told."""
        return hide_text(said, self._mailbox.password)

    async def _exchange(
        self,
        client: aiosmtplib.SMTP,
        recipient: str,
        content: bytes,
        progress: _Progress,
        may_leave: Callable[[], bool],
    ) -> str:
        await client.mail(self._mailbox.from_address)
        progress.stage = Stage.RCPT
        await client.rcpt(recipient)
        progress.stage = Stage.DATA
        # Not client.data(): it would not tell whether the connection was lost before or after the content left.
        started = await client.execute_command(b"DATA")
        if started.code != 354:
            raise aiosmtplib.SMTPDataError(started.code, started.message)
        protocol = client.protocol
        if protocol is None:
            raise aiosmtplib.SMTPServerDisconnected("Connection lost")
        protocol.write(re.sub(rb"(?m)^\.", b"..", content))  # raises if the connection is already lost
        # The server accepts nothing before the last line: until then, closing the connection withdraws the message.
        if not may_leave():
            raise _TooLate
        protocol.write(b".\r\n")
        progress.stage = Stage.BODY
        answer = await protocol.read_response(timeout=DATA_PATIENCE * self._timeout)
        if not 200 <= answer.code <= 299:  # any of these means that it accepted the message
            raise aiosmtplib.SMTPDataError(answer.code, answer.message)
        return answer.message

    async def _start_over(self, client: aiosmtplib.SMTP) -> bool:
        """Reset a connection for the next message after a refusal; return whether that worked."""
        try:
            await client.rset()
        except (aiosmtplib.SMTPException, *_LOST):
            return False
        return True


async def _say_goodbye(client: aiosmtplib.SMTP) -> None:
    with contextlib.suppress(aiosmtplib.SMTPException, *_LOST):
        await client.quit(timeout=2.0)
    client.close()


# Its settings ---------------------------------------------------------------------------------------------------------

PORTS: Mapping[str, int] = {"starttls": 587, "tls": 465, "none": 25}
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


def from_connection(
    client: httpx.AsyncBaseTransport, connection: InboxConnection, variables: Mapping[str, str], send_timeout: float
) -> Smtp:
    """Build the channel of an inbox from its instance row; the SMTP_* variables supply what the row omits.

    The row's settings and provider_config name host, port, security, username, from_address, from_name, reply_to,
    domain, unsubscribe_url, unsubscribe_mailto; the password is its instance_token or api_key. A row with a host gets
    no credentials from the environment, which are for another server. Raises LookupError with one sentence.
    """
    given = {**_plain(connection.settings), **_plain(connection.provider_config)}
    server = _server(given, connection) if given.get("host") else _server_of_environment(variables)
    name, address = _sender(given, variables)

    reply_to = given.get("reply_to") or variables.get("SMTP_REPLY_TO")
    domain = given.get("domain") or variables.get("SMTP_DOMAIN") or address.partition("@")[2]
    unsubscribe_url = given.get("unsubscribe_url") or variables.get("SMTP_UNSUBSCRIBE_URL")
    unsubscribe_mailto = given.get("unsubscribe_mailto") or variables.get("SMTP_UNSUBSCRIBE_MAILTO")
    mailbox = Mailbox(
        **server,
        from_address=address,
        from_name=name,
        reply_to=_address("reply_to", reply_to) if reply_to else None,
        domain=_address("domain", f"x@{domain}").partition("@")[2],
        unsubscribe_url=_template("unsubscribe_url", unsubscribe_url, r"https://[!-;=?-~]+"),
        unsubscribe_mailto=_template("unsubscribe_mailto", unsubscribe_mailto, r"mailto:[!-;=?-~]+@[!-;=?-~]+"),
        ca_file=variables.get("SMTP_CA_FILE"),
        stream=f"campaign:{str(connection.inbox_id).partition('-')[0]}",
        max_connections=_count(given, "max_connections", 5, 50),
        messages_per_connection=_count(given, "messages_per_connection", 100, 10_000),
    )
    return Smtp(mailbox, send_timeout)


def _plain(settings: Any) -> dict[str, Any]:
    """Return the settings that are texts or numbers; a CRM stores other values beside them."""
    if not isinstance(settings, Mapping):
        return {}
    return {
        key: str(value).strip()
        for key, value in settings.items()
        if isinstance(value, str | int) and not isinstance(value, bool)
    }


def _server(given: Mapping[str, str], connection: InboxConnection) -> dict[str, Any]:
    security = given.get("security", "starttls").lower()
    password = connection.key
    username = given.get("username") or (given.get("from_address") if password else None)
    return _checked_server(given["host"], given.get("port"), security, username, password)


def _server_of_environment(variables: Mapping[str, str]) -> dict[str, Any]:
    raw = variables.get("SMTP_URL")
    if not raw:
        raise LookupError("SMTP_URL is not set, and the instance names no host in its provider_config.")
    wrong = "SMTP_URL must be like smtp://user:password@mail.example.com:587 (or smtps://), percent-encoded."
    try:
        url = urlsplit(raw)
        port, host = url.port, url.hostname
    except ValueError:
        raise LookupError(wrong) from None
    if url.scheme not in {"smtp", "smtps"} or not host:
        raise LookupError(wrong)
    found = re.search(r"(?:^|&)security=(\w+)", url.query)
    security = found[1].lower() if found else "tls" if url.scheme == "smtps" else "starttls"
    username, password = (unquote(part) if part else None for part in (url.username, url.password))
    return _checked_server(host, str(port) if port else None, security, username, password)


def _checked_server(
    host: str, port: str | None, security: str, username: str | None, password: str | None
) -> dict[str, Any]:
    if security not in PORTS:
        raise LookupError(f"The mailbox's security is {security!r}, but must be starttls, tls or none.")
    if port is not None and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise LookupError(f"The mailbox's port is {port!r}, but must be a number from 1 to 65535.")
    if security == "none" and password and host not in _LOOPBACK:
        raise LookupError(
            "The mailbox has a password and security none; it would be readable on the way: use starttls."
        )
    return {
        "host": host,
        "port": int(port) if port else PORTS[security],
        "security": security,
        "username": username,
        "password": password,
    }


_NAMED_ADDRESS: Final = re.compile(r"\s*\"?(?P<name>[^<>\"]*?)\"?\s*<(?P<address>[^<>]+)>\s*")


def _sender(given: Mapping[str, str], variables: Mapping[str, str]) -> tuple[str, str]:
    """Return name and address of the sender: the row's, else SMTP_FROM as `Name <address>` or an address."""
    if given.get("from_address"):
        return given.get("from_name", ""), _address("from_address", given["from_address"])
    raw = variables.get("SMTP_FROM")
    if not raw:
        raise LookupError("SMTP_FROM is not set, and the instance names no from_address in its provider_config.")
    named = _NAMED_ADDRESS.fullmatch(raw)
    name, address = (named["name"], named["address"]) if named else ("", raw)
    return given.get("from_name") or name, _address("SMTP_FROM", address)


def _address(field_name: str, value: str | None) -> str:
    try:
        return normalize_email(value)
    except InvalidAddress:
        raise LookupError(f"The mailbox's {field_name} is {value!r}, but must be like vendas@example.com.") from None


def _template(field_name: str, value: str | None, form: str) -> str | None:
    if value is None:
        return None
    left_over = value.replace("{message_id}", "x").replace("{email}", "x")
    if "{" in left_over or "}" in left_over or not re.fullmatch(form, left_over):
        scheme = "https:" if "url" in field_name else "mailto:"
        raise LookupError(
            f"The mailbox's {field_name} is {value!r}, but must be an address that begins with {scheme} and has no "
            "spaces; {message_id} and {email} are filled in."
        )
    return value


def _count(given: Mapping[str, str], name: str, default: int, most: int) -> int:
    raw = given.get(name)
    if raw is None:
        return default
    if not (raw.isascii() and raw.isdigit() and 1 <= int(raw) <= most):
        raise LookupError(f"The mailbox's {name} is {raw!r}, but must be a number from 1 to {most}.")
    return int(raw)
