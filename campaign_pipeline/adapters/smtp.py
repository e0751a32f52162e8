"""E-mail by SMTP: one mailbox of one mail server, over a bounded pool of connections.

Contract: RFC 5321, RFC 3463 (enhanced codes), RFC 8058 (one-click unsubscribe). Once the content has left, a server may
have accepted it, whatever happens to the connection: from then on, no reply means an unknown outcome. Before that,
nothing was sent. SMTP has no look-up; the Message-ID is the same in every attempt, so that many mailboxes
collapse a duplicate that a person asked for.
"""

import asyncio
import contextlib
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Final

import aiosmtplib
import httpx

from campaign_pipeline.adapters.hosts import HostRefused, Hosts
from campaign_pipeline.adapters.inbox_connection import InboxConnection
from campaign_pipeline.adapters.mail_message import compose, message_id
from campaign_pipeline.adapters.mailbox import Mailbox
from campaign_pipeline.adapters.redaction import hide_text, redact
from campaign_pipeline.adapters.smtp_replies import Stage, classify
from campaign_pipeline.core.address import InvalidAddress, masked, normalize_email
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

FAILURES_IN_A_ROW = 3
"""If this many connections in a row fail, the server is down or misconfigured."""

DATA_PATIENCE = 4
"""Multiple of the usual timeout for the reply to a whole message: scanners take minutes; a timeout is unknown."""


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


def from_connection(
    client: httpx.AsyncBaseTransport, connection: InboxConnection, variables: Mapping[str, str], send_timeout: float
) -> Smtp:
    """Build the channel of an inbox from its instance row. Raises LookupError with one sentence."""
    return Smtp(Mailbox.from_connection(connection, variables), send_timeout)
