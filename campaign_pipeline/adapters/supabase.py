"""The CRM's own sender: the Supabase edge function `internal-send-ai-message`, which sends through Evolution or UAZAPI.

Contract: the function's source. It takes only a conversation and a text, writes the message into the CRM's conversation
itself, and returns its provider's answer. A part whose answer was lost is searched for among the conversation's
messages; these are written after sending, so a miss proves nothing.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import httpx

from campaign_pipeline.adapters.answers import Contents, statements, texts
from campaign_pipeline.adapters.channel import HttpChannel, Request
from campaign_pipeline.adapters.connection import environment_endpoint
from campaign_pipeline.adapters.http import Answer, at, text_at
from campaign_pipeline.adapters.inbox_connection import InboxConnection
from campaign_pipeline.adapters.supabase_answers import ANSWERS, FUNCTION
from campaign_pipeline.adapters.whatsapp_web import CONNECTING, DISCONNECTED
from campaign_pipeline.core.ports import (
    Absent,
    Attempt,
    ChannelTraits,
    Envelope,
    Failure,
    Found,
    LookUp,
    LookUpAnswer,
    NotReady,
    Outcome,
    Permanent,
    Sent,
)

OWN_DELAY_SECONDS = 1.2
"""For which the function asks its provider to show "typing"."""

_WRAPPED = r"(evolution|uazapi)( api)? error: |(error sending|failed to send)( message)?: "
"""What the function prepends to its provider's words."""

_IDS: tuple[tuple[str, ...], ...] = (
    ("message", "provider_message_id"),
    ("provider_response", "key", "id"),
    ("provider_response", "messageid"),
    ("provider_response", "message", "key", "id"),
    ("provider_response", "id"),
)
_DETAILED_IDS: tuple[tuple[str, ...], ...] = tuple(
    ("details", *path) for path in (("key", "id"), ("messageid",), ("provider_message_id",), ("message", "key", "id"))
)


class InternalSend(HttpChannel):
    """One inbox, through the CRM's own function."""

    provider = "The function"
    traits = ChannelTraits(name="supabase", max_part_chars=4096, look_up=LookUp.SEARCH)
    answers = ANSWERS

    def __init__(
        self,
        client: httpx.AsyncBaseTransport,
        base_url: str,
        service_key: str,
        status: str | None,
        send_timeout: float = 30.0,
    ) -> None:
        """`status` is the inbox's status in the CRM's `instances` table."""
        # The second header is for the gateway, if the project makes it check every call of a function.
        headers = {"X-Service-Role-Key": service_key, "Authorization": f"Bearer {service_key}"}
        super().__init__(client, base_url, headers, send_timeout)
        self._status = status

    async def check_connection(self) -> Failure | NotReady | None:
        """Check the CRM's status. If the inbox is not connected, the function would send from another number."""
        if self._status == "connected":
            return None
        if self._status == "connecting":
            return NotReady("connecting", CONNECTING, retry_after=120.0)
        return DISCONNECTED

    def request(self, envelope: Envelope) -> Request | Permanent:
        """Send one part into its conversation."""
        if envelope.conversation_id is None:
            reason = "The message has no conversation, and the function sends to nothing else."
            return Permanent("no_conversation", reason)
        body = {"conversationId": envelope.conversation_id, "text": envelope.text}
        return Request(f"/functions/v1/{FUNCTION}", body, OWN_DELAY_SECONDS)

    @classmethod
    def succeeded(cls, answer: Answer) -> bool:
        """A 200 whose body does not deny it is a success."""
        return super().succeeded(answer) and at(answer.body, "success") is not False

    @classmethod
    def accepted(cls, body: Any) -> Sent | None:
        """Read the id from the CRM's row, else from the provider's answer."""
        provider_id, status = _first_text(body, _IDS), text_at(body, "provider_response", "status")
        return Sent(provider_id, {"status": status}, in_conversation=True) if provider_id else None

    @classmethod
    def refused(cls, answer: Answer, envelope: Envelope | None = None) -> Outcome | None:
        """See `HttpChannel`; a part that was sent but not saved may still have its id in `details`."""
        outcome = super().refused(answer, envelope)
        if isinstance(outcome, Sent):
            return replace(outcome, provider_message_id=_first_text(answer.body, _DETAILED_IDS))
        return outcome

    @classmethod
    def contents(cls, answer: Answer, envelope: Envelope | None) -> Contents:
        """Read `error` and `message`, and the provider's own answer in `details`."""
        details = at(answer.body, "details")
        said = [at(answer.body, "error"), at(answer.body, "message"), *texts(details)]
        listed = at(details, "response", "message")
        missing = any(at(piece, "exists") is False for piece in (listed if isinstance(listed, list) else [listed]))
        return Contents(statements(said, envelope, _WRAPPED), facts=frozenset({"no_account"} if missing else ()))

    async def find_accepted(self, attempt: Attempt) -> LookUpAnswer:
        """Search the CRM's conversation for this text since the attempt began, excluding other parts' messages."""
        for provider_id in attempt.conversation_ids:
            if provider_id not in attempt.taken_provider_ids:
                return Found(provider_id, {"found_in": "messages"}, in_conversation=True)
        reason = "The conversation has no message of this text, but it is written only after the sending."
        return Absent(proven=False, reason=reason)


def _first_text(body: Any, paths: tuple[tuple[str, ...], ...]) -> str | None:
    return next(filter(None, (text_at(body, *path) for path in paths)), None)


def from_connection(
    client: httpx.AsyncBaseTransport, connection: InboxConnection, variables: Mapping[str, str], send_timeout: float
) -> InternalSend:
    """Build the channel of an inbox from SUPABASE_URL and SUPABASE_SERVICE_ROLE_KEY.

    The instance's own token is its provider's, not the function's. Raises LookupError with a sentence that names what
    is missing.
    """
    project = environment_endpoint(variables, "SUPABASE_URL", "SUPABASE_SERVICE_ROLE_KEY")
    return InternalSend(client, project.url, project.key, connection.status, send_timeout)
