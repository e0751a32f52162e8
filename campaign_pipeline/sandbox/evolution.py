"""Mock of Evolution API v2: sends, connection state, number checks and the search for messages."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any

from aiohttp import web

from campaign_pipeline.sandbox.behaviour import InstanceState, Kind, Subject
from campaign_pipeline.sandbox.phone import digits_of, jid_of
from campaign_pipeline.sandbox.provider import Exchange, Message, MessageProvider, answer, broken_off
from campaign_pipeline.sandbox.record import Entry

_REASONS = {
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    408: "Request Timeout",
    500: "Internal Server Error",
}
_USUAL_PAGE = 50  # records

_REFUSALS: Mapping[str, tuple[int, object]] = {
    "connection_closed": (400, ["Error: Connection Closed"]),
    "timed_out": (400, ["Error: Timed Out"]),
    "rate_overlimit": (400, ["Error: rate-overlimit"]),
    "schema": (400, [['requires property "number"']]),
    "no_keys": (400, ["SessionError: No sessions"]),
    "other_400": (400, ["Error: Evaluation failed: a is not a function"]),
    "unauthorized_401": (401, "Unauthorized"),
    "timeout_408": (408, "Request Time-out"),
    "server_error_500": (500, "Internal Server Error"),
}
"""Status and `response.message` of each refusal."""


class Evolution(MessageProvider):
    """Every instance exists and is open, unless the behaviour says otherwise; every `apikey` is right."""

    name = "evolution"
    prefix = "/evolution"
    kinds = frozenset({Kind.SEND, Kind.LOOK_UP, Kind.STATUS, Kind.NUMBER_CHECK})

    def routes(self) -> Sequence[web.RouteDef]:
        """List the endpoints."""
        return [
            self.route("POST", "/message/sendText/{instance}", Kind.SEND, self.send_text),
            self.route("GET", "/instance/connectionState/{instance}", Kind.STATUS, self.connection_state),
            self.route("POST", "/chat/whatsappNumbers/{instance}", Kind.NUMBER_CHECK, self.check_numbers),
            self.route("POST", "/chat/findMessages/{instance}", Kind.LOOK_UP, self.find_messages),
        ]

    def spoiled(self, fault: str, subject: Subject) -> web.Response:
        """Answer with an error. Nearly all have status 400 and differ only in the message."""
        if fault == "not_on_whatsapp":
            nobody = {"jid": jid_of(subject.number), "exists": False, "number": subject.number}
            return _refuse(400, [nobody])
        if fault == "instance_404":
            return _refuse(404, [f'The "{subject.instance}" instance does not exist'])
        if fault == "no_id":  # the WhatsApp Business integration forwards Meta's error with a success status
            error = {"message": "(#131030) Recipient phone number not in allowed list", "code": 131030}
            return answer(201, {"error": error | {"type": "OAuthException", "fbtrace_id": "AbCdEfGh"}})
        if fault == "malformed_json":
            return broken_off(answer(200, {"instance": {"instanceName": subject.instance, "state": "open"}}))
        return _refuse(*_REFUSALS[fault])

    def sent(self, message: Message, entry: Entry) -> web.Response:
        """Answer like the real API: 201, pending."""
        return answer(201, _as_sent(entry))

    async def send_text(self, exchange: Exchange) -> web.Response:
        """Send, after the request's typing delay."""
        refusal = self._guard(exchange)
        if refusal is not None:
            return refusal
        body = exchange.json() or {}
        complaints = _complaints(body)
        if complaints:
            return _refuse(400, [complaints])
        entry = exchange.entry
        instance = exchange.request.match_info["instance"]
        message = Message(instance, body["number"], body["text"], body.get("delay", 0) / 1000)
        entry["number"], entry["text"] = message.number, message.text
        if self.stage.conduct.state_of(instance) is not InstanceState.OPEN:
            return self.spoiled("connection_closed", message.subject)
        return await self.send(exchange, message)

    async def connection_state(self, exchange: Exchange) -> web.Response:
        """Return whether the instance is connected."""
        refusal = self._guard(exchange)
        if refusal is not None:
            return refusal
        instance = exchange.request.match_info["instance"]
        subject = Subject(instance, instance)
        fault = await self.meet(exchange, Kind.STATUS, subject)
        if fault is not None:
            return await self.spoil(exchange, fault, subject)
        state = self.stage.conduct.state_of(instance)
        return answer(200, {"instance": {"instanceName": instance, "state": state.value}})

    async def check_numbers(self, exchange: Exchange) -> web.Response:
        """Return which numbers have an account."""
        refusal = self._guard(exchange)
        if refusal is not None:
            return refusal
        numbers = (exchange.json() or {}).get("numbers")
        if not isinstance(numbers, list) or not all(isinstance(number, str) for number in numbers) or not numbers:
            return _refuse(400, [['requires property "numbers"']])
        instance = exchange.request.match_info["instance"]
        if self.stage.conduct.state_of(instance) is not InstanceState.OPEN:
            return _refuse(500, "Connection Closed")
        exchange.entry["number"] = digits_of(numbers[0])
        found: list[dict[str, Any]] = []
        for number in numbers:
            subject = Subject(f"{instance}\x1f{digits_of(number)}", instance, digits_of(number))
            fault = await self.meet(exchange, Kind.NUMBER_CHECK, subject)
            if fault is not None and fault.name != "not_on_whatsapp":
                return await self.spoil(exchange, fault, subject)
            found.append({"jid": jid_of(number), "exists": fault is None, "number": digits_of(number)})
        return answer(200, found)

    async def find_messages(self, exchange: Exchange) -> web.Response:
        """Search this instance's sent messages, newest first."""
        refusal = self._guard(exchange)
        if refusal is not None:
            return refusal
        body = exchange.json()
        if body is None:
            return _refuse(400, "Unexpected end of JSON input")
        where = _object(body.get("where"))
        key = _object(where.get("key"))
        message_id, jid = _text(key.get("id")), _text(key.get("remoteJid"))
        instance = exchange.request.match_info["instance"]
        exchange.entry["jid"], exchange.entry["number"] = jid, None if jid is None else digits_of(jid)
        subject = Subject(f"{instance}\x1f{message_id}\x1f{jid}", instance, digits_of(jid or ""))
        fault = await self.meet(exchange, Kind.LOOK_UP, subject)
        if fault is not None:
            return await self.spoil(exchange, fault, subject)
        try:
            since, until = _span(_object(where.get("messageTimestamp")))
        except ValueError:
            return _refuse(500, "Internal Server Error")
        found = [
            entry
            for entry in self.stage.record.saved(self.name, instance, message_id=message_id, jid=jid)
            if since <= int(entry["accepted_at"] or 0) <= until
        ]
        return answer(
            200, {"messages": _page(found, _count(body.get("page"), 1), _count(body.get("offset"), _USUAL_PAGE))}
        )

    def _guard(self, exchange: Exchange) -> web.Response | None:
        """Refuse unknown instances first and missing keys second, like the real API."""
        instance = exchange.request.match_info["instance"]
        exchange.entry["instance"] = instance
        if self.stage.conduct.state_of(instance) is InstanceState.MISSING:
            return self.spoiled("instance_404", Subject("", instance))
        if not exchange.request.headers.get("apikey"):
            return _refuse(*_REFUSALS["unauthorized_401"])
        return None


def _refuse(status: int, message: object) -> web.Response:
    return answer(status, {"status": status, "error": _REASONS[status], "response": {"message": message}})


def _complaints(body: Mapping[str, Any]) -> list[str]:
    complaints = [f'requires property "{name}"' for name in ("number", "text") if not isinstance(body.get(name), str)]
    if not complaints and not digits_of(body["number"]):
        complaints.append("number does not match pattern")
    if not complaints and not body["text"].strip():
        complaints.append("Text is required")
    delay = body.get("delay", 0)
    if isinstance(delay, bool) or not isinstance(delay, int) or delay < 0:
        complaints.append("Enter a value in milliseconds")
    return complaints


def _as_sent(entry: Entry) -> dict[str, Any]:
    return {
        "key": {"remoteJid": entry["jid"], "fromMe": True, "id": entry["provider_message_id"]},
        "pushName": "Você",
        "status": "PENDING",
        "message": {"conversation": entry["text"]},
        "contextInfo": None,
        "messageType": "conversation",
        "messageTimestamp": int(entry["accepted_at"] or 0),
        "instanceId": _instance_id(entry["instance"] or ""),
        "source": "unknown",
    }


def _as_record(entry: Entry) -> dict[str, Any]:
    record = _as_sent(entry)
    del record["status"]
    return {"id": f"c{entry['seq']:024d}", **record, "MessageUpdate": [{"status": "SERVER_ACK"}]}


def _instance_id(instance: str) -> str:
    return blake2b(instance.encode(), digest_size=16).hexdigest()


def _page(found: Sequence[Entry], page: int, size: int) -> dict[str, Any]:
    return {
        "total": len(found),
        "pages": -(-len(found) // size),
        "currentPage": page,
        "records": [_as_record(entry) for entry in found[(page - 1) * size : page * size]],
    }


def _span(bounds: Mapping[str, Any]) -> tuple[float, float]:
    """Read the time span in seconds since the epoch; it counts only when both its ends are given.

    Raises:
        ValueError: an end is not an ISO date and time.
    """
    since, until = bounds.get("gte"), bounds.get("lte")
    if not since or not until:
        return 0.0, float("inf")
    return _seconds(str(since)), _seconds(str(until))


def _seconds(instant: str) -> int:
    moment = datetime.fromisoformat(f"{instant[:-1]}+00:00" if instant.endswith(("Z", "z")) else instant)
    return int((moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp())


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _count(value: object, usual: int) -> int:
    return value if isinstance(value, int) and value > 0 else usual
