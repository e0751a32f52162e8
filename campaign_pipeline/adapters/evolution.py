"""Evolution API v2: WhatsApp over Baileys.

Contract: EvolutionAPI/evolution-api 2.3.x. Nearly every failure comes as 400 "Bad Request": the class lies in the body.
It takes no key of ours, so a part whose answer was lost is searched for by number, text and time; a miss counts only
if a part that was surely sent is found in the same way, since a server may be set not to keep messages.
"""

import re
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any
from urllib.parse import quote

import httpx

from campaign_pipeline.adapters.http import Answer, NoAnswer, at, get, post, redact_phones
from campaign_pipeline.core.address import alternatives
from campaign_pipeline.core.ports import (
    Absent,
    Attempt,
    ChannelTraits,
    Envelope,
    Failure,
    Found,
    LookUp,
    LookUpAnswer,
    LookUpFailed,
    Outcome,
    Permanent,
    Scope,
    Sent,
    Systemic,
    Throttled,
    Transient,
    Unknown,
)

TRAITS = ChannelTraits(name="evolution", max_part_chars=4096, look_up=LookUp.SEARCH, number_check=True)

CLOCK_SKEW = timedelta(minutes=5)
"""How far the provider's clock may be from the database's when a part is searched for by time."""

# What a 400 says, and what it means; the first that matches. Read in the body's message, case-insensitively.
BAD_REQUESTS: tuple[tuple[str, str, str], ...] = (
    (r"connection closed|not (open|connected)|no session|disconnected", "systemic", "inbox_disconnected"),
    (r"rate.?overlimit|too many requests|\b429\b", "throttled", "rate_limited"),
    (r"timed? ?out", "unknown", "provider_timeout"),
    (
        r"requires property|is not of a type|does not (match|meet)|must be|should (have|be)|is not allowed",
        "permanent",
        "invalid_request",
    ),
)

SENTENCES: Mapping[str, str] = {
    "inbox_disconnected": "The WhatsApp connection of this inbox is closed; connect the instance and it goes on by itself.",
    "rate_limited": "WhatsApp says that this number sends too fast.",
    "provider_timeout": "Evolution timed out while it talked to WhatsApp.",
    "invalid_request": "Evolution refused the request as invalid.",
    "not_on_whatsapp": "The number is not on WhatsApp.",
    "bad_key": "Evolution refuses the key of this instance (instance_token, api_key or EVOLUTION_API_KEY).",
    "instance_missing": "Evolution does not know this instance.",
    "unrecognised_400": "Evolution answered 400 with a text that is not in the table.",
}


class Evolution:
    """One WhatsApp number of one Evolution server; see `core.ports.MessageChannel`."""

    traits = TRAITS

    def __init__(
        self, client: httpx.AsyncClient, base_url: str, instance: str, api_key: str, send_timeout: float = 30.0
    ) -> None:
        self._client = client
        self._base = base_url.rstrip("/")
        self._instance = quote(instance, safe="")
        self._headers = {"apikey": api_key}
        self._send_timeout = send_timeout

    async def check_connection(self) -> Failure | None:
        """Ask the instance for its state. A server that cannot be asked is no reason to hold back: sending will tell."""
        answer = await get(self._client, f"{self._base}/instance/connectionState/{self._instance}", self._headers, 10.0)
        if isinstance(answer, NoAnswer):
            return None
        if answer.status in {401, 403}:
            return Systemic("bad_key", SENTENCES["bad_key"], Scope.INBOX)
        if answer.status == httpx.codes.NOT_FOUND:
            return Systemic("instance_missing", SENTENCES["instance_missing"], Scope.INBOX)
        state = at(answer.body, "instance", "state")
        if state == "connecting":
            return Throttled("connecting", "The instance is connecting to WhatsApp.", Scope.INBOX, retry_after=10.0)
        if state == "close":
            return Systemic("inbox_disconnected", SENTENCES["inbox_disconnected"], Scope.INBOX)
        return None

    async def send(self, envelope: Envelope) -> Outcome:
        """Send one part. Evolution waits `delay` inside the request, so the time-out is added to it."""
        body = {"number": envelope.address, "text": envelope.text, "delay": envelope.delay_ms, "linkPreview": False}
        timeout = envelope.delay_ms / 1000 + self._send_timeout
        answer = await post(
            self._client, f"{self._base}/message/sendText/{self._instance}", body, self._headers, timeout
        )
        return read_send(answer)

    async def find_accepted(self, attempt: Attempt) -> LookUpAnswer:
        """Search the messages that this number sent to the address since the attempt began."""
        envelope = attempt.envelope
        started = datetime.fromtimestamp(attempt.started_at, timezone.utc)
        for digits in alternatives(envelope.address):
            found = await self._find(
                {
                    "key": {"fromMe": True, "remoteJid": f"{digits}@s.whatsapp.net"},
                    "messageTimestamp": {
                        "gte": (started - CLOCK_SKEW).strftime("%Y-%m-%dT%H:%M:%S.000Z"),
                        "lte": (started + timedelta(days=2)).strftime("%Y-%m-%dT%H:%M:%S.000Z"),
                    },
                }
            )
            if isinstance(found, LookUpFailed):
                return found
            for record in found:
                provider_id = at(record, "key", "id")
                if _text(record) == envelope.text and provider_id and provider_id not in attempt.taken_provider_ids:
                    return Found(str(provider_id), {"status": at(record, "status")})
        return await self._absent(attempt)

    async def _absent(self, attempt: Attempt) -> LookUpAnswer:
        """A miss proves something only where a message that was surely sent can be found."""
        if attempt.control_provider_id is None:
            return Absent(
                proven=False, reason="This inbox has not sent anything yet by which its search could be tried."
            )
        control = await self._find({"key": {"id": attempt.control_provider_id}})
        if isinstance(control, LookUpFailed):
            return control
        if not any(at(record, "key", "id") == attempt.control_provider_id for record in control):
            return Absent(proven=False, reason="The server does not keep sent messages, so nothing can be looked up.")
        return Absent(
            proven=True, reason="It was searched for by number, text and time, and the search is known to work."
        )

    async def _find(self, where: dict[str, Any]) -> list[Any] | LookUpFailed:
        url = f"{self._base}/chat/findMessages/{self._instance}"
        answer = await post(self._client, url, {"where": where, "page": 1, "offset": 50}, self._headers, 15.0)
        if isinstance(answer, NoAnswer):
            return LookUpFailed(answer.reason)
        records = at(answer.body, "messages", "records")
        if answer.status not in {200, 201} or not isinstance(records, list):
            return LookUpFailed(f"Evolution answered {answer.status} to a search.")
        return records


def _text(record: Any) -> str | None:
    """The text of a stored message: plain, or with a preview."""
    text = at(record, "message", "conversation") or at(record, "message", "extendedTextMessage", "text")
    return text if isinstance(text, str) else None


def read_send(answer: Answer | NoAnswer) -> Outcome:
    """Class the answer to a send."""
    if isinstance(answer, NoAnswer):
        return Unknown("no_answer", answer.reason) if answer.left else Transient("unreachable", answer.reason)
    if answer.status in {200, 201}:
        provider_id = at(answer.body, "key", "id")
        if isinstance(provider_id, str) and provider_id:
            kept = {key: at(answer.body, key) for key in ("status", "messageTimestamp", "instanceId")}
            return Sent(provider_id, kept, at(answer.body, "key", "remoteJid"))
        # Meta's errors pass through as a success, and so may half an answer: nobody can tell whether it went out.
        return Unknown("no_id", "Evolution reported success without a message id.")
    if answer.status == httpx.codes.BAD_REQUEST:
        return _read_bad_request(answer)
    if answer.status in {401, 403}:
        return Systemic("bad_key", SENTENCES["bad_key"], Scope.INBOX)
    if answer.status == httpx.codes.NOT_FOUND:
        return Systemic("instance_missing", SENTENCES["instance_missing"], Scope.INBOX)
    if answer.status == httpx.codes.TOO_MANY_REQUESTS:
        return Throttled("rate_limited", SENTENCES["rate_limited"], Scope.INBOX, answer.retry_after)
    return Unknown(
        f"http_{answer.status}", f"Evolution answered {answer.status}, which does not say whether it was sent."
    )


def _read_bad_request(answer: Answer) -> Outcome:
    said = at(answer.body, "response", "message")
    pieces = said if isinstance(said, list) else [said]
    if any(at(piece, "exists") is False for piece in pieces):
        return Permanent("not_on_whatsapp", SENTENCES["not_on_whatsapp"])
    text = " ".join(str(piece) for piece in pieces if piece) or answer.text
    kind, code = next(
        ((kind, code) for pattern, kind, code in BAD_REQUESTS if re.search(pattern, text, re.IGNORECASE)),
        ("transient", "unrecognised_400"),
    )
    reason = f"{SENTENCES[code]} It said: {redact_phones(text)}"
    match kind:
        case "systemic":
            return Systemic(code, reason, Scope.INBOX)
        case "throttled":
            return Throttled(code, reason, Scope.INBOX, answer.retry_after)
        case "unknown":
            return Unknown(code, reason)
        case "permanent":
            return Permanent(code, reason)
        case _:
            return Transient(code, reason)


def from_connection(
    client: httpx.AsyncClient, row: Mapping[str, Any], variables: Mapping[str, str], send_timeout: float
) -> Evolution:
    """Build the channel of an inbox from its instance row, else from EVOLUTION_API_URL and EVOLUTION_API_KEY.

    Raises LookupError with a sentence that names what is missing.
    """
    base_url = row["provider_config"].get("base_url") or variables.get("EVOLUTION_API_URL")
    api_key = row["instance_token"] or row["api_key"] or variables.get("EVOLUTION_API_KEY")
    if not base_url:
        raise LookupError("EVOLUTION_API_URL is not set, and the instance names no provider_config.base_url.")
    if not api_key:
        raise LookupError("EVOLUTION_API_KEY is not set, and the instance has neither instance_token nor api_key.")
    if not row["name"]:
        raise LookupError("The instance has no name (instances.name), by which Evolution knows it.")
    return Evolution(client, base_url, row["name"], api_key, send_timeout)
