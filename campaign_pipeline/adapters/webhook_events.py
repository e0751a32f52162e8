"""Providers' webhook events in one format: receipts of sent parts, and messages of leads.

Everything else in a call, and everything about groups, is ignored. Unreadable events are no reason to refuse a call:
its provider would repeat it for hours.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from campaign_pipeline.adapters.cloud_api_events import read_status
from campaign_pipeline.adapters.http import at

LONGEST_TEXT = 10_000
"""Characters of a lead's message that are stored."""


@dataclass(frozen=True)
class WebhookEvent:
    """One event of a provider."""

    provider: str
    event_id: str  # the same in every repetition
    instance: str  # the provider's name of the inbox
    kind: str  # status, message
    body: Mapping[str, Any]


def read_cloud_api(call: Any) -> Iterator[WebhookEvent]:
    """Read a call of Meta's: every status and message of every change."""
    for entry in _list(at(call, "entry")):
        for change in _list(at(entry, "changes")):
            value = at(change, "value")
            number = str(at(value, "metadata", "phone_number_id") or "")
            for status in _list(at(value, "statuses")):
                if (known := read_status(status)) is not None:
                    body = {key: each for key, each in vars(known).items() if each is not None}
                    event_id = f"{known.provider_message_id or known.message_id}:{known.part_no}:{known.status}"
                    yield WebhookEvent("cloud_api", event_id, number, "status", body)
            names = {at(each, "wa_id"): at(each, "profile", "name") for each in _list(at(value, "contacts"))}
            for message in _list(at(value, "messages")):
                sender = at(message, "from")
                text = _first(message, ("text", "body"), ("button", "text"), ("interactive", "button_reply", "title"))
                yield from _message("cloud_api", number, at(message, "id"), sender, names.get(sender), text, message)


_EVOLUTION_STATUSES = {"SERVER_ACK": "sent", "DELIVERY_ACK": "delivered", "READ": "read", "PLAYED": "read"}


def read_evolution(call: Any) -> Iterator[WebhookEvent]:
    """Read a call of Evolution's: messages.upsert and messages.update."""
    instance, event = str(at(call, "instance") or ""), str(at(call, "event") or "").lower().replace("_", ".")
    data = at(call, "data")
    for each in data if isinstance(data, list) else [data]:
        if event == "messages.update":
            status = _EVOLUTION_STATUSES.get(str(at(each, "status") or at(each, "update", "status")))
            provider_id = at(each, "keyId") or at(each, "key", "id")
            if status is not None and at(each, "fromMe") is not False:
                yield from _receipt("evolution", instance, provider_id, status, None)
        elif event == "messages.upsert" and at(each, "key", "fromMe") is False:
            button = ("buttonsResponseMessage", "selectedDisplayText")
            text = _first(at(each, "message"), ("conversation",), ("extendedTextMessage", "text"), button)
            jid = at(each, "key", "senderPn") or at(each, "key", "remoteJidAlt") or at(each, "key", "remoteJid")
            yield from _message("evolution", instance, at(each, "key", "id"), jid, at(each, "pushName"), text, each)


def read_uazapi(call: Any) -> Iterator[WebhookEvent]:
    """Read a call of UAZAPI's: messages and messages_update."""
    instance = str(at(call, "instanceName") or at(call, "instance") or "")
    event = str(at(call, "EventType") or at(call, "event_type") or "").lower()
    if event == "messages_update":
        status = {"delivered": "delivered", "read": "read", "played": "read"}.get(
            str(at(call, "state") or at(call, "event", "Type") or "").lower()
        )
        for provider_id in _list(at(call, "event", "MessageIDs")):
            if status is not None:
                yield from _receipt("uazapi", instance, provider_id, status, at(call, "event", "track_id"))
        return
    message = at(call, "message")
    if event == "messages" and at(message, "fromMe") is False and at(message, "isGroup") is not True:
        sender = at(message, "sender_pn") or at(message, "chatid") or at(message, "sender")
        text = _first(message, ("text",), ("content",))
        yield from _message(
            *("uazapi", instance, at(message, "messageid"), sender, at(message, "senderName"), text, message)
        )


READERS: Mapping[str, Callable[[Any], Iterator[WebhookEvent]]] = {
    "cloud_api": read_cloud_api,
    "evolution": read_evolution,
    "uazapi": read_uazapi,
}
"""The reader of each provider's calls."""

_KEY = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}):([1-9][0-9]{0,3})")


def _receipt(provider: str, instance: str, provider_id: Any, status: str, key: Any) -> Iterator[WebhookEvent]:
    if not isinstance(provider_id, str) or not provider_id:
        return
    body: dict[str, Any] = {"provider_message_id": provider_id, "status": status}
    if isinstance(key, str) and (ours := _KEY.fullmatch(key)):
        body |= {"message_id": ours[1], "part_no": int(ours[2])}
    yield WebhookEvent(provider, f"{provider_id}:{status}", instance, "status", body)


def _message(
    provider: str, instance: str, message_id: Any, sender: Any, name: Any, text: str | None, message: Any
) -> Iterator[WebhookEvent]:
    """Yield a lead's message; nothing for a group, a broadcast, or a message without a sender."""
    number = str(sender or "").partition("@")
    if not isinstance(message_id, str) or not number[0].partition(":")[0].isdigit():
        return
    if number[2] not in {"", "s.whatsapp.net", "c.us"}:
        return
    stamp = at(message, "timestamp") or at(message, "messageTimestamp")
    seconds = float(stamp) if re.fullmatch(r"[0-9]{9,13}", str(stamp)) else None
    body = {
        "id": message_id,
        "from": number[0].partition(":")[0],
        "name": str(name or "")[:200],
        "text": (text or "")[:LONGEST_TEXT].replace("\x00", ""),
        "at": seconds / 1000 if seconds is not None and seconds > 1e11 else seconds,  # some send milliseconds
    }
    yield WebhookEvent(provider, message_id, instance, "message", body)


def _first(value: Any, *paths: tuple[str, ...]) -> str | None:
    found = (at(value, *path) for path in paths)
    return next((each for each in found if isinstance(each, str) and each), None)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
