"""Evolution API v2: WhatsApp over Baileys.

Contract: EvolutionAPI/evolution-api 2.3.x. It accepts no idempotency key: a part whose answer was lost is searched for
by number, text and time. Some servers store no messages, so a miss counts only if a part that was surely sent is found.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import httpx

from campaign_pipeline.adapters.channel import Page, Request
from campaign_pipeline.adapters.connection import endpoint
from campaign_pipeline.adapters.evolution_answers import ANSWERS, STATE_ANSWERS, contents
from campaign_pipeline.adapters.http import at, text_at
from campaign_pipeline.adapters.inbox_connection import InboxConnection
from campaign_pipeline.adapters.whatsapp_web import WebChannel, account_name
from campaign_pipeline.core.address import alternatives
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

CLOCK_SKEW = timedelta(days=1)
"""Allowed between the provider's clock and the database's. Wide, because a part that is not found would be sent twice,
while an older message with the same text to the same number hardly exists."""

LARGEST_PAGE = 4 * 2**20
"""Bytes: a stored message may contain a picture's thumbnail, as a list of numbers."""

_STAMP = "%Y-%m-%dT%H:%M:%S.000Z"


class Evolution(WebChannel):
    """One WhatsApp number of one Evolution server."""

    provider = "Evolution"
    traits = ChannelTraits(name="evolution", max_part_chars=4096, look_up=LookUp.SEARCH, number_check=True)
    answers = ANSWERS
    success = frozenset({200, 201})
    contents = staticmethod(contents)
    state_field = ("instance", "state")
    states = WebChannel.states_of("close")
    state_answers = STATE_ANSWERS
    exists_field = "exists"

    def __init__(
        self, client: httpx.AsyncBaseTransport, base_url: str, instance: str, api_key: str, send_timeout: float = 30.0
    ) -> None:
        self._instance = quote(instance, safe="")
        self.numbers_path = f"/chat/whatsappNumbers/{self._instance}"
        state_path = f"/instance/connectionState/{self._instance}"
        super().__init__(client, base_url, {"apikey": api_key}, send_timeout, state_path)

    def request(self, envelope: Envelope) -> Request:
        """Evolution shows "typing" for the delay before it answers."""
        body = {"number": envelope.address, "text": envelope.text, "delay": envelope.delay_ms, "linkPreview": False}
        return Request(f"/message/sendText/{self._instance}", body, envelope.delay_ms / 1000)

    @classmethod
    def accepted(cls, body: Any) -> Sent | None:
        """Read `key.id`. Meta's errors arrive as a success without one."""
        provider_id = text_at(body, "key", "id")
        kept = {key: at(body, key) for key in ("status", "messageTimestamp", "instanceId")}
        return Sent(provider_id, kept, text_at(body, "key", "remoteJid")) if provider_id else None

    async def find_accepted(self, attempt: Attempt) -> LookUpAnswer:
        """Search the messages that this number has sent to the address since the attempt began."""
        address = attempt.envelope.address
        plain = [address] if "@" in address else [f"{digits}@s.whatsapp.net" for digits in alternatives(address)]
        found = await self._sent_to(attempt, plain)
        if found is not None:
            return found
        absent = await self._absent(attempt)
        if not isinstance(absent, Absent) or not absent.proven:
            return absent
        # Before it counts as absent: WhatsApp may know the number by an id that hides it (a LID).
        accounts = await self.accounts(address)
        if isinstance(accounts, LookUpFailed):
            return accounts
        names = [account_name(at(account, key)) for account in accounts for key in ("jid", "lid")]
        return await self._sent_to(attempt, [name for name in names if name and name not in plain]) or absent

    async def _sent_to(self, attempt: Attempt, jids: list[str]) -> Found | LookUpFailed | None:
        """Return the first message with this text to one of these ids that belongs to no other part."""
        started = datetime.fromtimestamp(attempt.started_at, UTC)
        span = {"gte": f"{started - CLOCK_SKEW:{_STAMP}}", "lte": f"{started + timedelta(days=2):{_STAMP}}"}

        def is_it(record: Any) -> bool:
            ours = at(record, "key", "fromMe") is not False and _says(record, attempt.envelope.text)
            return ours and text_at(record, "key", "id") not in {None, *attempt.taken_provider_ids}

        for jid in jids:
            record = await self._find({"key": {"fromMe": True, "remoteJid": jid}, "messageTimestamp": span}, is_it)
            if isinstance(record, LookUpFailed):
                return record
            if record is not None:
                return Found(record["key"]["id"], {"status": at(record, "MessageUpdate", 0, "status"), "address": jid})
        return None

    async def _absent(self, attempt: Attempt) -> LookUpAnswer:
        """A miss proves absence only if a message that was surely sent can be found."""
        control = attempt.control_provider_id
        if control is None:
            reason = "This inbox has not sent anything yet by which its search could be tried."
            return Absent(proven=False, reason=reason, may_improve=True)
        found = await self._find({"key": {"id": control}}, lambda record: at(record, "key", "id") == control)
        if isinstance(found, LookUpFailed):
            return found
        if found is None:
            return Absent(proven=False, reason="The server does not keep sent messages, so nothing can be looked up.")
        return Absent(proven=True, reason="A search by number, text and time found nothing, and is known to work.")

    async def _find(self, where: Mapping[str, Any], is_it: Callable[[Any], bool]) -> Any | LookUpFailed | None:
        path, asked = f"/chat/findMessages/{self._instance}", {"where": where, "offset": 50}
        return await self.search(path, lambda number: {**asked, "page": number}, _page, is_it, LARGEST_PAGE)


def _page(number: int, body: Any) -> Page | None:
    records, pages = at(body, "messages", "records"), at(body, "messages", "pages")
    last = not isinstance(pages, int) or number >= pages
    return Page(records, last) if isinstance(records, list) else None


def _says(record: Any, text: str) -> bool:
    """Return whether a stored message, plain or with a preview, has this text, ignoring white space."""
    stored = text_at(record, "message", "conversation") or text_at(record, "message", "extendedTextMessage", "text")
    return stored is not None and stored.split() == text.split()


def from_connection(
    client: httpx.AsyncBaseTransport, connection: InboxConnection, variables: Mapping[str, str], send_timeout: float
) -> Evolution:
    """Build the channel of an inbox from its instance row, else from EVOLUTION_API_URL and EVOLUTION_API_KEY.

    Raises LookupError with a sentence that names what is missing.
    """
    if not connection.name:
        raise LookupError("The instance has no name (instances.name), by which Evolution knows it.")
    server = endpoint(connection, variables, "EVOLUTION_API_URL", "EVOLUTION_API_KEY")
    return Evolution(client, server.url, connection.name, server.key, send_timeout)
