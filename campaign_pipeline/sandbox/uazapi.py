"""Mock of UAZAPI v2: sends, look-up by tracking id, the state of an instance and number checks."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import web

from campaign_pipeline.sandbox.behaviour import InstanceState, Kind, Subject
from campaign_pipeline.sandbox.phone import digits_of, jid_of
from campaign_pipeline.sandbox.provider import Exchange, Message, MessageProvider, answer, broken_off
from campaign_pipeline.sandbox.record import Entry

_OWNER = "5511900000000"  # the number of every instance
_USUAL_PAGE = 100  # messages
_PLACEHOLDER = re.compile(r"\{\{[^{}]*\}\}")
_STATES = {
    InstanceState.OPEN: "connected",
    InstanceState.CONNECTING: "connecting",
    InstanceState.CLOSE: "disconnected",
}

_REFUSALS: Mapping[str, tuple[int, str]] = {
    "not_on_whatsapp": (500, "the number {number} is not on WhatsApp"),
    "connection_closed": (500, "client not connected"),
    "timed_out": (500, "error sending message: context deadline exceeded"),
    "rate_overlimit": (429, "rate-overlimit"),
    "schema": (400, "Missing number or text"),
    "no_keys": (500, "can't encrypt message for device: no signal session established with {number}"),
    "other_400": (400, "Something that no page describes"),
    "unauthorized_401": (401, "Invalid token"),
    "instance_404": (404, "Instance not found"),
    "timeout_408": (408, "Request timeout"),
    "server_error_500": (500, "failed to send message"),
}
"""Status and text of each refusal."""


class Uazapi(MessageProvider):
    """The header `token` is the instance: each one exists and is connected, unless the behaviour says otherwise.

    The record contains the tokens as names of instances, so never use real ones.
    """

    name = "uazapi"
    prefix = "/uazapi"
    kinds = frozenset({Kind.SEND, Kind.LOOK_UP, Kind.STATUS, Kind.NUMBER_CHECK})

    def routes(self) -> Sequence[web.RouteDef]:
        """List the endpoints."""
        return [
            self.route("POST", "/send/text", Kind.SEND, self.send_text),
            self.route("POST", "/message/find", Kind.LOOK_UP, self.find_messages),
            self.route("GET", "/instance/status", Kind.STATUS, self.instance_status),
            self.route("POST", "/chat/check", Kind.NUMBER_CHECK, self.check_numbers),
        ]

    def spoiled(self, fault: str, subject: Subject) -> web.Response:
        """Answer with an error."""
        if fault == "no_id":
            return answer(200, {"response": {"status": "success", "message": "Message sent successfully"}})
        if fault == "malformed_json":
            return broken_off(answer(200, {"returnedMessages": 0, "messages": []}))
        status, text = _REFUSALS[fault]
        return _refuse(status, text.format(number=subject.number))

    def sent(self, message: Message, entry: Entry) -> web.Response:
        """Answer like the real API: 200, with the message and its status."""
        done = {"status": "success", "message": "Message sent successfully"}
        return answer(200, {**_as_message(entry), "status": "Pending", "response": done})

    async def send_text(self, exchange: Exchange) -> web.Response:
        """Send, after the request's typing delay. `{{...}}` in the text is a placeholder and is removed."""
        refusal = self._guard(exchange)
        if refusal is not None:
            return refusal
        body = exchange.json() or {}
        number, text, delay = body.get("number"), body.get("text"), body.get("delay") or 0
        if not isinstance(number, str) or not isinstance(text, str) or not digits_of(number) or not text.strip():
            return self.spoiled("schema", Subject(""))
        if isinstance(delay, bool) or not isinstance(delay, int) or delay < 0:
            return _refuse(400, "Invalid delay")
        entry = exchange.entry
        message = Message(entry["instance"] or "", number, _PLACEHOLDER.sub("", text), delay / 1000)
        entry["number"], entry["text"] = message.number, message.text
        entry["track_source"], entry["track_id"] = _text(body.get("track_source")), _text(body.get("track_id"))
        if self.stage.conduct.state_of(message.instance) is not InstanceState.OPEN:
            return self.spoiled("connection_closed", message.subject)
        return await self.send(exchange, message)

    async def find_messages(self, exchange: Exchange) -> web.Response:
        """Find sent messages by tracking id, message id or chat, newest first."""
        refusal = self._guard(exchange)
        if refusal is not None:
            return refusal
        body = exchange.json()
        if body is None:
            return _refuse(400, "Invalid payload")
        instance = exchange.entry["instance"] or ""
        source, track_id = _text(body.get("track_source")), _text(body.get("track_id"))
        message_id, jid = _text(body.get("id")), _text(body.get("chatid"))
        exchange.entry["track_source"], exchange.entry["track_id"] = source, track_id
        subject = Subject(
            f"{instance}\x1f{source}\x1f{track_id}\x1f{message_id}\x1f{jid}",
            instance,
            digits_of(jid or ""),
            track_id or "",
        )
        fault = await self.meet(exchange, Kind.LOOK_UP, subject)
        if fault is not None:
            return await self.spoil(exchange, fault, subject)
        bare_id = None if message_id is None else message_id.rpartition(":")[2]  # `owner:id` is taken too
        found = [
            entry
            for entry in self.stage.record.saved(self.name, instance, message_id=bare_id, jid=jid, track_id=track_id)
            if (source is None or entry["track_source"] == source)
            and (track_id is None or entry["track_id"] == track_id)
        ]
        return answer(200, _page(found, _count(body.get("limit"), _USUAL_PAGE), _count(body.get("offset"), 0)))

    async def instance_status(self, exchange: Exchange) -> web.Response:
        """Return whether the instance is connected."""
        refusal = self._guard(exchange)
        if refusal is not None:
            return refusal
        instance = exchange.entry["instance"] or ""
        subject = Subject(instance, instance)
        fault = await self.meet(exchange, Kind.STATUS, subject)
        if fault is not None:
            return await self.spoil(exchange, fault, subject)
        state = self.stage.conduct.state_of(instance)
        connected = state is InstanceState.OPEN
        lost = "" if connected else "logged out from another device"
        about = {"id": "r000000000000000", "name": "sandbox", "status": _STATES[state], "owner": _OWNER}
        return answer(
            200,
            {
                "instance": {**about, "lastDisconnect": "", "lastDisconnectReason": lost},
                "status": {
                    "connected": connected,
                    "loggedIn": connected,
                    "jid": f"{_OWNER}@s.whatsapp.net" if connected else None,
                },
            },
        )

    async def check_numbers(self, exchange: Exchange) -> web.Response:
        """Return which numbers have an account."""
        refusal = self._guard(exchange)
        if refusal is not None:
            return refusal
        numbers = (exchange.json() or {}).get("numbers")
        if not isinstance(numbers, list) or not all(isinstance(number, str) for number in numbers) or not numbers:
            return _refuse(400, "Missing numbers")
        instance = exchange.entry["instance"] or ""
        if self.stage.conduct.state_of(instance) is not InstanceState.OPEN:
            return self.spoiled("connection_closed", Subject("", instance))
        exchange.entry["number"] = digits_of(numbers[0])
        found: list[dict[str, Any]] = []
        for number in numbers:
            subject = Subject(f"{instance}\x1f{digits_of(number)}", instance, digits_of(number))
            fault = await self.meet(exchange, Kind.NUMBER_CHECK, subject)
            if fault is not None and fault.name != "not_on_whatsapp":
                return await self.spoil(exchange, fault, subject)
            found.append(_as_checked(number, fault is None))
        return answer(200, found)

    def _guard(self, exchange: Exchange) -> web.Response | None:
        """Refuse missing tokens and unknown instances."""
        token = exchange.request.headers.get("token")
        if not token:
            return _refuse(401, "Missing token")
        exchange.entry["instance"] = token
        if self.stage.conduct.state_of(token) is InstanceState.MISSING:
            return _refuse(*_REFUSALS["instance_404"])
        return None


def _refuse(status: int, text: str) -> web.Response:
    return answer(status, {"error": text})


def _as_message(entry: Entry) -> dict[str, Any]:
    return {
        "id": f"{_OWNER}:{entry['provider_message_id']}",
        "messageid": entry["provider_message_id"],
        "chatid": entry["jid"],
        "sender": f"{_OWNER}@s.whatsapp.net",
        "owner": _OWNER,
        "fromMe": True,
        "isGroup": False,
        "messageType": "ExtendedTextMessage",
        "source": "api",
        "messageTimestamp": int((entry["accepted_at"] or 0) * 1000),
        "status": "ServerAck",
        "text": entry["text"],
        "track_source": entry["track_source"] or "",
        "track_id": entry["track_id"] or "",
    }


def _as_checked(number: str, exists: bool) -> dict[str, Any]:
    jid = jid_of(number) if exists else ""
    return {"query": number, "jid": jid, "lid": "", "isInWhatsapp": exists, "verifiedName": "", "error": ""}


def _page(found: Sequence[Entry], limit: int, offset: int) -> dict[str, Any]:
    messages = [_as_message(entry) for entry in found[offset : offset + limit]]
    return {
        "returnedMessages": len(messages),
        "messages": messages,
        "limit": limit,
        "offset": offset,
        "nextOffset": offset + len(messages),
        "hasMore": offset + len(messages) < len(found),
    }


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _count(value: object, usual: int) -> int:
    return value if isinstance(value, int) and value > 0 else usual
