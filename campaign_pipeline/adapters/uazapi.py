"""UAZAPI (uazapiGO v2): WhatsApp over its web protocol, with our tracking id on every message.

Contract: the provider's OpenAPI specification. The header `token` identifies the instance, that is the sending number,
so no key in the environment can serve all of them. A part whose answer was lost is found exactly, by its tracking id;
the server accepts the same id twice, so it must be asked before anything is sent again.
"""

import re
from collections.abc import Mapping
from typing import Any

import httpx

from campaign_pipeline.adapters.answers import Contents, statements
from campaign_pipeline.adapters.channel import Page, Request
from campaign_pipeline.adapters.connection import endpoint
from campaign_pipeline.adapters.http import Answer, at, text_at
from campaign_pipeline.adapters.inbox_connection import InboxConnection
from campaign_pipeline.adapters.uazapi_answers import ANSWERS, STATE_ANSWERS
from campaign_pipeline.adapters.whatsapp_web import WebChannel
from campaign_pipeline.core.ports import (
    Absent,
    Attempt,
    ChannelTraits,
    Envelope,
    Found,
    LookUp,
    LookUpAnswer,
    LookUpFailed,
    Sent,
)

TRACK_SOURCE = "campaign_pipeline"
"""The source of our messages; the CRM's own may use the same ids with another source."""

PAGE = 50
"""Messages per page of a look-up: a part's own id should match one message."""

_WRAPPED = r"(error sending|failed to send|could ?n[o']t send)( message)?: "
"""What UAZAPI prepends to the words of its WhatsApp library."""

_NO_INSTANCE = r"instance (not found|does not exist)\.?"

_BETWEEN_BRACES = re.compile(r"(?<=\{)(?=\{)|(?<=\})(?=\})")
_JOINER = "\u200d"


class Uazapi(WebChannel):
    """One WhatsApp number of one UAZAPI server."""

    provider = "UAZAPI"
    traits = ChannelTraits(name="uazapi", max_part_chars=4096, look_up=LookUp.EXACT, number_check=True)
    answers = ANSWERS
    state_field = ("instance", "status")
    states = WebChannel.states_of("disconnected")
    state_answers = STATE_ANSWERS
    exists_field = "isInWhatsapp"
    numbers_path = "/chat/check"

    def __init__(self, client: httpx.AsyncBaseTransport, base_url: str, token: str, send_timeout: float = 30.0) -> None:
        super().__init__(client, base_url, {"token": token}, send_timeout, "/instance/status")

    def request(self, envelope: Envelope) -> Request:
        """Send at once, because the answer to a queued message (`async`) has no outcome. UAZAPI waits `delay` first."""
        body = {
            "number": envelope.address,
            "text": harmless(envelope.text),
            "delay": envelope.delay_ms,
            "readchat": True,
            "linkPreview": False,
            "track_source": TRACK_SOURCE,
            "track_id": envelope.idempotency_key,
        }
        return Request("/send/text", body, envelope.delay_ms / 1000)

    @classmethod
    def accepted(cls, body: Any) -> Sent | None:
        """Read WhatsApp's id of the message; its `id` is the server's own."""
        provider_id = text_at(body, "messageid")
        kept = {key: at(body, key) for key in ("status", "messageTimestamp", "track_id")}
        return Sent(provider_id, kept, text_at(body, "chatid")) if provider_id else None

    @classmethod
    def contents(cls, answer: Answer, envelope: Envelope | None) -> Contents:
        """Read `error`, or `message` if there is none."""
        said = at(answer.body, "error")
        said = said if isinstance(said, str) else at(answer.body, "message")
        missing = isinstance(said, str) and re.fullmatch(_NO_INSTANCE, said, re.IGNORECASE)
        return Contents(statements([said], envelope, _WRAPPED), facts=frozenset({"no_instance"} if missing else ()))

    async def find_accepted(self, attempt: Attempt) -> LookUpAnswer:
        """Look the part up by its tracking id."""
        key, foreign = attempt.envelope.idempotency_key, False

        def is_it(message: Any) -> bool:
            nonlocal foreign
            ours = at(message, "track_id") == key and at(message, "track_source") == TRACK_SOURCE
            foreign = foreign or not ours
            return ours and text_at(message, "messageid") is not None and not _failed(message)

        def body(number: int) -> dict[str, Any]:
            return {"track_source": TRACK_SOURCE, "track_id": key, "limit": PAGE, "offset": (number - 1) * PAGE}

        found = await self.search("/message/find", body, _page, is_it)
        if found is None or isinstance(found, LookUpFailed):
            return found or _absent(foreign)
        return Found(found["messageid"], {"status": at(found, "status"), "address": at(found, "chatid")})


def harmless(text: str) -> str:
    """The text with a zero-width joiner between doubled braces.

    The server replaces `{{name}}` as a placeholder; a reader sees no difference.
    """
    return _BETWEEN_BRACES.sub(_JOINER, text)


def _page(number: int, body: Any) -> Page | None:
    messages = at(body, "messages")
    return Page(messages, last=at(body, "hasMore") is not True) if isinstance(messages, list) else None


def _failed(message: Any) -> bool:
    """Return whether the server keeps a message that it could not send."""
    status = at(message, "status")
    return isinstance(status, str) and status.casefold() in {"failed", "error"}


def _absent(foreign: bool) -> Absent:
    if foreign:
        # A server that does not support tracking ids ignores them and returns any messages.
        return Absent(proven=False, reason="The server does not look up by tracking id, so a miss proves nothing.")
    return Absent(proven=True, reason="It was looked up by its own tracking id.")


def from_connection(
    client: httpx.AsyncBaseTransport, connection: InboxConnection, variables: Mapping[str, str], send_timeout: float
) -> Uazapi:
    """Build the channel of an inbox from its instance row, else from UAZAPI_API_URL and UAZAPI_TOKEN.

    Raises LookupError with a sentence that names what is missing.
    """
    server = endpoint(connection, variables, "UAZAPI_API_URL", "UAZAPI_TOKEN")
    return Uazapi(client, server.url, server.key, send_timeout)
