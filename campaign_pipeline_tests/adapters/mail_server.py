"""A real SMTP server of the test, which refuses, hangs up and delays on request."""

import asyncio
import ssl
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any
from uuid import UUID

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from campaign_pipeline.adapters.inbox_connection import InboxConnection

HANG_UP = "hang up"
Answer = Callable[[], Awaitable[str] | str]


@dataclass
class MailServer:
    """The configured replies per stage (`mail`, `rcpt`, `data`: the whole message), and the accepted messages."""

    answers: dict[str, Answer] = field(default_factory=dict)
    password: str | None = None  # None: nobody has to log in
    refusal_of_login: str = "535 5.7.8 Error: authentication failed"
    tls: ssl.SSLContext | None = None
    place: str = ""  # host:port
    connections: int = 0
    most_at_once: int = 0
    taken: list[EmailMessage] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    recipients: list[str] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)  # by stage
    open: list["_Connection"] = field(default_factory=list)

    @property
    def port(self) -> int:
        """Return where it listens."""
        return int(self.place.rpartition(":")[2])

    async def hang_up_on_all(self) -> None:
        """Close every connection, as a server does with idle ones."""
        connections = list(self.open)
        for connection in connections:
            if connection.transport is not None:
                connection.transport.close()
        await asyncio.gather(*(connection.lost.wait() for connection in connections))

    async def _say(self, stage: str, server: SMTP, usual: str) -> str:
        self.asked[stage] += 1
        if stage not in self.answers:
            return usual
        said = self.answers[stage]()
        said = said if isinstance(said, str) else await said
        if said == HANG_UP:
            assert server.transport is not None
            server.transport.close()
        return said

    # Hooks of aiosmtpd.

    async def handle_MAIL(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        """Accept or refuse the sender."""
        said = await self._say("mail", server, "250 2.1.0 Ok")
        if said.startswith("2"):
            envelope.mail_from = address
        return said

    async def handle_RCPT(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        """Accept or refuse the recipient."""
        said = await self._say("rcpt", server, "250 2.1.5 Ok")
        if said.startswith("2"):
            envelope.rcpt_tos.append(address)
        return said

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        """Accept or refuse the message."""
        said = await self._say("data", server, f"250 2.0.0 Ok: queued as {len(self.taken) + 1:04X}")
        if said.startswith("2") or said == HANG_UP:  # a server that hangs up has it all the same
            content = envelope.original_content or b""
            self.raw.append(content)
            parsed = message_from_bytes(content, policy=policy.default)
            assert isinstance(parsed, EmailMessage)
            self.taken.append(parsed)
            self.recipients += envelope.rcpt_tos
        return said

    def authenticate(self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any) -> AuthResult:
        """Check the password."""
        good = isinstance(data, LoginPassword) and data.password.decode() == self.password
        return AuthResult(success=good, handled=good, message=None if good else self.refusal_of_login)


class _Connection(SMTP):
    def __init__(self, server: MailServer) -> None:
        with warnings.catch_warnings():  # it warns of passwords without TLS, which here are no secrets
            warnings.simplefilter("ignore", UserWarning)
            super().__init__(
                server,
                hostname="mail.test",
                enable_SMTPUTF8=False,
                tls_context=server.tls,
                require_starttls=server.tls is not None,
                authenticator=server.authenticate,
                auth_required=server.password is not None,
                auth_require_tls=False,
                loop=asyncio.get_running_loop(),
            )
        self._server = server
        self.lost = asyncio.Event()

    def connection_made(self, transport: Any) -> None:
        if self not in self._server.open:  # it is called once more after STARTTLS
            self._server.connections += 1
            self._server.open.append(self)
            self._server.most_at_once = max(self._server.most_at_once, len(self._server.open))
        super().connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        if self in self._server.open:
            self._server.open.remove(self)
            self.lost.set()
        super().connection_lost(error)


@asynccontextmanager
async def mail_server(server: MailServer) -> AsyncIterator[MailServer]:
    """Serve mail on a free port."""
    listening = await asyncio.get_running_loop().create_server(lambda: _Connection(server), "127.0.0.1", 0)
    server.place = f"127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        # asyncio does not report when a connection with a failed handshake is closed.
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(server.hang_up_on_all(), 0.5)
        listening.close()
        await listening.wait_closed()


def mailbox_of(server: MailServer | str, token: str | None = None, **given: Any) -> InboxConnection:
    """The instance row of a mailbox on it."""
    host, _, port = (server if isinstance(server, str) else server.place).rpartition(":")
    config = {"host": host, "port": port, "security": "none", "from_address": "vendas@acme.example", **given}
    return InboxConnection(
        inbox_id=UUID("0f8fad5b-d9cb-469f-a165-70867728950e"),
        name="vendas",
        settings={},
        provider_config={key: value for key, value in config.items() if value is not None},
        instance_token=token,
    )
