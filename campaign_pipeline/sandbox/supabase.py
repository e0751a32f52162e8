"""Mock of the CRM's edge function `internal-send-ai-message` on Supabase."""

from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import web

from campaign_pipeline.sandbox.behaviour import InstanceState, Kind, Subject
from campaign_pipeline.sandbox.provider import Exchange, Message, MessageProvider, answer, broken_off
from campaign_pipeline.sandbox.record import Entry

INSTANCE = "crm"
"""The name of the only instance in rules and behaviours; its conversations are its numbers."""

_REFUSALS: Mapping[str, tuple[int, dict[str, Any]]] = {
    "not_on_whatsapp": (
        500,
        {
            "error": "Failed to send message",
            "details": {"status": 400, "response": {"message": [{"exists": False, "number": "5511987654321"}]}},
        },
    ),
    "connection_closed": (400, {"error": "No connected instance found for this inbox"}),
    "timed_out": (500, {"error": "Evolution API error: Timed Out"}),
    "rate_overlimit": (500, {"error": "Evolution API error: rate-overlimit"}),
    "schema": (400, {"error": "conversationId and text are required"}),
    "no_keys": (500, {"error": "Evolution API error: SessionError: No sessions"}),
    "other_400": (400, {"error": "Something that no page describes"}),
    "unauthorized_401": (401, {"error": "Unauthorized"}),
    "instance_404": (404, {"error": "Conversation not found"}),
    "timeout_408": (408, {"error": "Request timeout"}),
    "server_error_500": (500, {"error": "Internal error"}),
}
"""Status and body of each refusal."""


class Supabase(MessageProvider):
    """Every conversation exists, unless the behaviour says otherwise; every service role key is right."""

    name = "supabase"
    prefix = "/supabase"
    kinds = frozenset({Kind.SEND})

    def routes(self) -> Sequence[web.RouteDef]:
        """List the endpoints."""
        return [self.route("POST", "/functions/v1/internal-send-ai-message", Kind.SEND, self.send_message)]

    def spoiled(self, fault: str, subject: Subject) -> web.Response:
        """Answer with an error."""
        if fault == "no_id":
            return answer(200, {"success": True, "message": {}, "provider_response": {}})
        if fault == "malformed_json":
            return broken_off(answer(200, {"success": True}))
        return answer(*_REFUSALS[fault])

    def sent(self, message: Message, entry: Entry) -> web.Response:
        """Answer like the real function: 200, with the row that it wrote and the provider's answer."""
        row = {"conversation_id": entry["number"], "provider_message_id": entry["provider_message_id"]}
        raw = {"key": {"id": entry["provider_message_id"], "fromMe": True}, "status": "PENDING"}
        return answer(200, {"success": True, "message": row, "provider_response": raw})

    async def send_message(self, exchange: Exchange) -> web.Response:
        """Send into a conversation."""
        entry = exchange.entry
        entry["instance"] = INSTANCE
        key = exchange.request.headers.get("X-Service-Role-Key")
        # The gateway needs a bearer token, the function its own header.
        if not key or exchange.request.headers.get("Authorization") != f"Bearer {key}":
            return self.spoiled("unauthorized_401", Subject(""))
        body = exchange.json() or {}
        conversation, text = body.get("conversationId"), body.get("text")
        if not isinstance(conversation, str) or not isinstance(text, str) or not conversation or not text.strip():
            return self.spoiled("schema", Subject(""))
        message = Message(INSTANCE, f"{conversation}@conversation", text, 0.0)
        message.number = conversation
        entry["number"], entry["text"] = conversation, text
        state = self.stage.conduct.state_of(INSTANCE)
        if state is InstanceState.MISSING:
            return self.spoiled("instance_404", message.subject)
        if state is not InstanceState.OPEN:
            return self.spoiled("connection_closed", message.subject)
        return await self.send(exchange, message)
