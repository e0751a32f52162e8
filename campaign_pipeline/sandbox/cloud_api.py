"""Mock of Meta's WhatsApp Cloud API: free text, templates, and the state of a number."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import web

from campaign_pipeline.sandbox.behaviour import InstanceState, Kind, Subject
from campaign_pipeline.sandbox.phone import canonical_number, digits_of
from campaign_pipeline.sandbox.provider import Exchange, Message, MessageProvider, answer, broken_off
from campaign_pipeline.sandbox.record import Entry

_LONGEST_TEXT = 4096  # characters
_LONGEST_VARIABLE = 1024
_LONGEST_KEY = 512
_UNFIT = re.compile(r"[\n\r\t]| {5,}")  # what a variable of a template may not have
_STATES = {
    InstanceState.OPEN: "CONNECTED",
    InstanceState.CONNECTING: "PENDING",
    InstanceState.CLOSE: "DISCONNECTED",
}

_REFUSALS: Mapping[str, tuple[int, int, str]] = {
    "not_on_whatsapp": (400, 131026, "Message undeliverable"),
    "connection_closed": (400, 133010, "Phone number not registered on the WhatsApp Business Platform."),
    "timed_out": (500, 131016, "Service temporarily unavailable"),
    "rate_overlimit": (429, 130429, "Cloud API message throughput has been reached."),
    "schema": (400, 100, "Invalid parameter"),
    "no_keys": (500, 131000, "Something went wrong"),
    "other_400": (400, 139999, "Something that no page describes"),
    "unauthorized_401": (401, 190, "The access token could not be decrypted"),
    "instance_404": (400, 100, "Unsupported post request. Object does not exist or cannot be loaded"),
    "timeout_408": (408, 131000, "Something went wrong"),
    "server_error_500": (500, 131000, "Something went wrong"),
}
"""HTTP status, number and text of each refusal."""


class CloudApi(MessageProvider):
    """Every phone number id exists and is connected, unless the behaviour says otherwise; every token is right.

    The instance of its entries is the phone number id; the text of a template is its name, language and variables.
    """

    name = "cloud_api"
    prefix = "/cloud_api"
    kinds = frozenset({Kind.SEND, Kind.STATUS})

    def routes(self) -> Sequence[web.RouteDef]:
        """List the endpoints."""
        return [
            self.route("POST", "/{version}/{phone_number_id}/messages", Kind.SEND, self.send_message),
            self.route("GET", "/{version}/{phone_number_id}", Kind.STATUS, self.phone_number),
        ]

    def spoiled(self, fault: str, subject: Subject) -> web.Response:
        """Answer with an error of the Graph API."""
        if fault == "no_id":
            return answer(200, {"messaging_product": "whatsapp", "contacts": [], "messages": []})
        if fault == "malformed_json":
            return broken_off(answer(200, {"id": subject.instance, "status": "CONNECTED"}))
        status, number, text = _REFUSALS[fault]
        return _refuse(status, number, text, subcode=33 if fault == "instance_404" else None)

    def sent(self, message: Message, entry: Entry) -> web.Response:
        """Answer like the real API: 200, accepted."""
        contact = {"input": message.address, "wa_id": canonical_number(message.address)}
        accepted = {"id": entry["provider_message_id"], "message_status": "accepted"}
        return answer(200, {"messaging_product": "whatsapp", "contacts": [contact], "messages": [accepted]})

    async def send_message(self, exchange: Exchange) -> web.Response:
        """Send a free text or a template, without typing delay."""
        refusal = self._guard(exchange)
        if refusal is not None:
            return refusal
        body = exchange.json() or {}
        complaint, text = _read(body)
        if complaint is not None:
            return complaint
        entry = exchange.entry
        message = Message(entry["instance"] or "", str(body.get("to") or body.get("recipient")), text, 0.0)
        message.message_id = f"wamid.{message.message_id}"
        entry["number"], entry["text"], entry["track_id"] = message.number, text, body.get("biz_opaque_callback_data")
        if self.stage.conduct.state_of(message.instance) is not InstanceState.OPEN:
            return self.spoiled("connection_closed", message.subject)
        return await self.send(exchange, message)

    async def phone_number(self, exchange: Exchange) -> web.Response:
        """Return the state of a number."""
        refusal = self._guard(exchange)
        if refusal is not None:
            return refusal
        instance = exchange.entry["instance"] or ""
        subject = Subject(instance, instance)
        fault = await self.meet(exchange, Kind.STATUS, subject)
        if fault is not None:
            return await self.spoil(exchange, fault, subject)
        state = _STATES[self.stage.conduct.state_of(instance)]
        about = {"id": instance, "status": state, "quality_rating": "GREEN", "throughput": {"level": "STANDARD"}}
        asked = {*exchange.request.query.get("fields", "").split(","), "id"}
        return answer(200, {name: value for name, value in about.items() if name in asked})

    def _guard(self, exchange: Exchange) -> web.Response | None:
        """Refuse missing tokens and unknown numbers."""
        instance = exchange.request.match_info["phone_number_id"]
        exchange.entry["instance"] = instance
        if not exchange.request.headers.get("Authorization", "").startswith("Bearer "):
            return self.spoiled("unauthorized_401", Subject("", instance))
        if self.stage.conduct.state_of(instance) is InstanceState.MISSING:
            return self.spoiled("instance_404", Subject("", instance))
        return None


def _refuse(status: int, number: int, text: str, *, subcode: int | None = None, details: str = "") -> web.Response:
    error: dict[str, Any] = {"message": f"(#{number}) {text}", "type": "OAuthException", "code": number}
    if subcode is not None:
        error["error_subcode"] = subcode
    if details:
        error["error_data"] = {"messaging_product": "whatsapp", "details": details}
    return answer(status, {"error": error | {"fbtrace_id": "AbCdEfGhIjKl"}})


_USER_ID = re.compile(r"[A-Z]{2}(\.ENT)?\.[A-Za-z0-9]+")  # a business-scoped id: no number, so never in `to`


def _read(body: Mapping[str, Any]) -> tuple[web.Response | None, str]:
    """Return the text that a lead will read, or why the request is refused."""
    to, user, key = body.get("to"), body.get("recipient"), body.get("biz_opaque_callback_data")
    reachable = (isinstance(to, str) and bool(digits_of(to)) and not _USER_ID.fullmatch(to)) or (
        isinstance(user, str) and _USER_ID.fullmatch(user) is not None
    )
    if body.get("messaging_product") != "whatsapp" or not reachable:
        return _refuse(400, 100, "Invalid parameter"), ""
    if key is not None and not (isinstance(key, str) and len(key) <= _LONGEST_KEY):
        return _refuse(400, 100, "Invalid parameter", details="biz_opaque_callback_data is too long"), ""
    if body.get("type") == "template":
        return _read_template(_object(body.get("template")))
    text = _object(body.get("text")).get("body")
    if body.get("type") != "text" or not isinstance(text, str) or not text.strip():
        return _refuse(400, 131008, "Required parameter is missing"), ""
    if len(text) > _LONGEST_TEXT:
        return _refuse(400, 100, "Invalid parameter", details="text.body is too long"), ""
    return None, text


def _read_template(template: Mapping[str, Any]) -> tuple[web.Response | None, str]:
    name, language = template.get("name"), _object(template.get("language")).get("code")
    if not isinstance(name, str) or not isinstance(language, str):
        return _refuse(400, 131008, "Required parameter is missing"), ""
    values = []
    for component in template.get("components") or []:
        for parameter in _object(component).get("parameters") or []:
            value = _object(parameter).get("text")
            if not isinstance(value, str) or not value or len(value) > _LONGEST_VARIABLE or _UNFIT.search(value):
                details = "Param text cannot have new-line/tab characters or more than 4 consecutive spaces"
                return _refuse(400, 132012, "Parameter format does not match", details=details), ""
            values.append(value)
    return None, " | ".join([f"{name} {language}", *values])


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
