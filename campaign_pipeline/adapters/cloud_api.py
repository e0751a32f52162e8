"""WhatsApp Cloud API (Meta): free text to leads who wrote to us within a day, approved templates to all others.

Contract: facebook/openapi (business messaging) and Meta's developer pages. An answer means acceptance; the result comes
later, as a status event to the CRM's webhook. The API cannot be queried by a key of ours, but echoes one
(`biz_opaque_callback_data`) in every status event: so only events resolve an unknown outcome, see
`cloud_api_events`.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import httpx

from campaign_pipeline.adapters.answers import known
from campaign_pipeline.adapters.channel import HttpChannel, Request
from campaign_pipeline.adapters.cloud_api_answers import ANSWERS, PAIR_RATE, STATES, rows_of
from campaign_pipeline.adapters.connection import endpoint
from campaign_pipeline.adapters.http import Answer, at, text_at
from campaign_pipeline.adapters.inbox_connection import InboxConnection
from campaign_pipeline.core.address import business_scoped_id
from campaign_pipeline.core.ports import (
    Absent,
    Attempt,
    ChannelTraits,
    Envelope,
    LookUp,
    LookUpAnswer,
    Outcome,
    Sent,
    Throttled,
    Unknown,
)

DEFAULT_URL, DEFAULT_VERSION = "https://graph.facebook.com", "v23.0"

LONGEST_PAIR_WAIT = 3600.0  # seconds


class CloudApi(HttpChannel):
    """One business phone number."""

    provider = "Meta"
    traits = ChannelTraits(
        name="cloud_api",
        max_part_chars=4096,
        look_up=LookUp.NONE,
        # Ten minutes less than Meta's day: the text is written before it is sent, and clocks differ.
        free_text_hours=24 - 1 / 6,
        # About one message per six seconds to the same user; a burst delays later messages.
        part_gap_seconds=6.0,
        business_scoped_ids=True,
    )
    answers = ANSWERS
    state_field = ("status",)
    states = STATES

    def __init__(
        self,
        client: httpx.AsyncBaseTransport,
        base_url: str,
        phone_number_id: str,
        token: str,
        send_timeout: float = 30.0,
    ) -> None:
        """`base_url` includes the version: `https://graph.facebook.com/v23.0`."""
        number = f"{base_url.rstrip('/')}/{phone_number_id}"
        fields = "?fields=status,quality_rating,throughput"
        super().__init__(client, number, {"Authorization": f"Bearer {token}"}, send_timeout, fields)

    def request(self, envelope: Envelope) -> Request:
        """Send one part: a template if the envelope has one, otherwise free text."""
        content: dict[str, Any]
        if envelope.template is None:
            content = {"type": "text", "text": {"preview_url": False, "body": envelope.text}}
        else:
            content = {"type": "template", "template": _template(envelope)}
        body = {
            "messaging_product": "whatsapp",
            "recipient_type": "individual",
            ("recipient" if business_scoped_id(envelope.address) else "to"): envelope.address,
            "biz_opaque_callback_data": envelope.idempotency_key,
            **content,
        }
        return Request("/messages", body)

    @classmethod
    def succeeded(cls, answer: Answer) -> bool:
        """A 200 without an error in it is a success."""
        return super().succeeded(answer) and at(answer.body, "error") is None

    @classmethod
    def accepted(cls, body: Any) -> Sent | None:
        """`held_for_quality_assessment` and `paused` are acceptances too: events report the result."""
        provider_id = text_at(body, "messages", 0, "id")
        kept = {"message_status": at(body, "messages", 0, "message_status")}
        account = text_at(body, "contacts", 0, "wa_id") or text_at(body, "contacts", 0, "user_id")
        return Sent(provider_id, kept, account) if provider_id else None

    @classmethod
    def refused(cls, answer: Answer, envelope: Envelope | None = None) -> Outcome | None:
        """Classify an answer by Meta's own code, else by its status; None if neither is known."""
        if cls.accepted(answer.body) is not None:
            return Unknown("contradictory", "Meta gave the message an id and an error in one answer.")
        outcome = known(rows_of(at(answer.body, "error")), answer)
        if isinstance(outcome, Throttled) and outcome.code == PAIR_RATE and outcome.retry_after is None and envelope:
            # As Meta recommends: 4, 16, 64 … seconds.
            return replace(outcome, retry_after=min(LONGEST_PAIR_WAIT, 4.0 ** min(envelope.attempt_no, 6)))
        return outcome

    @classmethod
    def state_refused(cls, answer: Answer) -> Outcome | None:
        """Meta answers every query with the same codes."""
        return cls.refused(answer)

    async def find_accepted(self, attempt: Attempt) -> LookUpAnswer:
        """Nothing can be queried; see `cloud_api_events`."""
        return Absent(proven=False, reason="The Cloud API cannot be asked by our key; only its status events tell.")


def _template(envelope: Envelope) -> dict[str, Any]:
    template = envelope.template
    assert template is not None
    content: dict[str, Any] = {"name": template.name, "language": {"code": template.language}}
    if template.variables:
        parameters = [{"type": "text", "text": value} for value in template.variables]
        content["components"] = [{"type": "body", "parameters": parameters}]
    return content


def from_connection(
    client: httpx.AsyncBaseTransport, connection: InboxConnection, variables: Mapping[str, str], send_timeout: float
) -> CloudApi:
    """Build the channel of an inbox from its instance row, else from CLOUD_API_URL, _VERSION and _TOKEN.

    Raises LookupError with a sentence that names what is missing.
    """
    version = connection.setting("version") or variables.get("CLOUD_API_VERSION") or DEFAULT_VERSION
    if not re.fullmatch(r"v\d{1,3}\.\d{1,2}", version):
        raise LookupError(f"CLOUD_API_VERSION (or provider_config.version) is {version!r}, but must be like v23.0.")
    number = connection.setting("phone_number_id")
    if number is None:
        raise LookupError("The instance names no provider_config.phone_number_id, which is Meta's id of the number.")
    if not re.fullmatch(r"\d{5,25}", number, re.ASCII):
        raise LookupError("provider_config.phone_number_id of the instance must be digits: Meta's id of the number.")
    graph = endpoint(connection, variables, "CLOUD_API_URL", "CLOUD_API_TOKEN", DEFAULT_URL)
    return CloudApi(client, f"{graph.url}/{version}", number, graph.key, send_timeout)
