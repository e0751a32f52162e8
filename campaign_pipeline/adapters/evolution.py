"""Evolution API v2: WhatsApp over Baileys.

Contract: EvolutionAPI/evolution-api 2.3.x. Nearly every failure comes as 400 "Bad Request", also what it throws after
WhatsApp took the message: the class lies in the body. It takes no key of ours, so a part whose answer was lost is
searched for by number, text and time; a miss counts only if a part that was surely sent is found in the same way, since
a server may be set not to keep messages.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import httpx

from campaign_pipeline.adapters.answers import (
    NO_KEYS,
    NOT_HERE,
    SAYS_DISCONNECTED,
    SAYS_NO_KEYS,
    SAYS_TIMED_OUT,
    SAYS_TOO_FAST,
    Heard,
    Row,
    failure,
    known,
    no_answer,
    statements,
    unrecognised,
)
from campaign_pipeline.adapters.connection import endpoint
from campaign_pipeline.adapters.http import Answer, NoAnswer, at, get, post
from campaign_pipeline.core.address import alternatives
from campaign_pipeline.core.ports import (
    NOT_STORED,
    Absent,
    Attempt,
    ChannelTraits,
    Envelope,
    Failure,
    Found,
    LookUp,
    LookUpAnswer,
    LookUpFailed,
    NotReady,
    NumberCheck,
    NumberExists,
    NumberMissing,
    NumberNotChecked,
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

CLOCK_SKEW = timedelta(days=1)
"""How far the provider's clock may be from the database's when a part is searched for by time. Wide on purpose: a part
that is missed goes out twice, while an older message of the very same text to the same number hardly exists."""

MOST_PAGES = 20
"""Of 50 messages each: what is read of one conversation at most, when a part is searched for."""

LARGEST_PAGE = 4 * 2**20
"""Bytes: a stored message may hold a picture's thumbnail, written as a list of numbers."""

NOT_ON_WHATSAPP = "The number is not on WhatsApp."
DISCONNECTED = "This inbox's connection to WhatsApp is closed; connect it and it goes on by itself."

_STORED_AFTER_SENDING = r"(this\.prismaRepository\.message(update)?\.create|this\.cache\.delete)\(\)"
"""Calls that Evolution makes when WhatsApp has taken the message."""

ANSWERS: tuple[Row, ...] = (
    # Read in `response.message`: the class of a 400 lies there. First what may be said of a message that went out.
    Row(
        Sent,
        "sent_not_stored",
        "Evolution sent the message and could not write it into its own database.",
        status={400, 500},
        says=r"prismaclient(known|unknown)request\w*error: invalid `" + _STORED_AFTER_SENDING + r"` invocation\b.*",
    ),
    Row(
        Unknown,
        NOT_STORED,
        "Evolution's own database failed while it sent, which does not say whether it was sent.",
        status={400, 500},
        says=r"prisma\w*error\b.*|can'?t reach database server.*",
    ),
    Row(
        Unknown,
        "provider_timeout",
        "Evolution timed out while it talked to WhatsApp.",
        status={400},
        says=SAYS_TIMED_OUT,
    ),
    Row(Permanent, "not_on_whatsapp", NOT_ON_WHATSAPP, status={400}, fact="nobody"),
    Row(Transient, "no_keys", NO_KEYS, status={400}, says=SAYS_NO_KEYS),
    Row(Systemic, "inbox_disconnected", DISCONNECTED, status={400}, says=SAYS_DISCONNECTED),
    Row(
        Throttled,
        "rate_limited",
        "WhatsApp says that this number sends too fast.",
        status={400},
        says=SAYS_TOO_FAST,
    ),
    Row(
        Permanent,
        "invalid_request",
        "Evolution refused the request as invalid.",
        status={400},
        fact="complaints",
        says=r"(instance\.)?[\w.\[\]]{0,40}\s?(requires property \"\w{1,40}\"|is not of a type\(s\) [\w, ]{1,60}"
        r"|does not (match|meet)\b.{0,120}|must be .{1,80}|should (have|be) .{1,80}|is not allowed\b.{0,80}"
        r"|is required|can ?not be empty)|the \"?\w{1,40}\"? can ?not be empty|enter a value\b.{0,60}|invalid format",
    ),
    # Its guards answer these before anything else.
    Row(
        Systemic,
        "bad_key",
        "Evolution refuses the key of this instance (instance_token, api_key or EVOLUTION_API_KEY).",
        status={401, 403},
    ),
    Row(
        Systemic,
        "instance_missing",
        "Evolution does not know this instance.",
        status={404},
        fact="no_instance",
    ),
    Row(
        Systemic,
        "redirected",
        "Evolution redirects the request; set its base URL (EVOLUTION_API_URL) to the address it leads to.",
        status=NOT_HERE,
    ),
    Row(Throttled, "rate_limited", "WhatsApp says that this number sends too fast.", status={429}),
    Row(
        Unknown,
        "http_{status}",
        "Evolution answered {status}, which does not say whether it was sent.",
        status={408, *range(500, 600)},
    ),
)
"""Every answer to a send that is known, with its class; the first row that matches."""

STATES: tuple[Row, ...] = (
    *(row for row in ANSWERS if row.code == "bad_key"),
    Row(Systemic, "instance_missing", "Evolution does not know this instance.", status={404}),
    Row(
        Systemic,
        "redirected",
        "Evolution redirects the request; set its base URL (EVOLUTION_API_URL) to the address it leads to.",
        status=range(300, 400),
    ),
)
"""What a question for the state of an instance may be answered that concerns sending too."""


class Evolution:
    """One WhatsApp number of one Evolution server; see `core.ports.MessageChannel`."""

    traits = TRAITS

    def __init__(
        self, client: httpx.AsyncBaseTransport, base_url: str, instance: str, api_key: str, send_timeout: float = 30.0
    ) -> None:
        self._client = client
        self._base = base_url.rstrip("/")
        self._instance = quote(instance, safe="")
        self._headers = {"apikey": api_key}
        self._send_timeout = send_timeout

    async def check_connection(self) -> Failure | NotReady | None:
        """Ask the instance for its state. A server that does not answer holds nothing back: sending will tell."""
        answer = await get(self._client, f"{self._base}/instance/connectionState/{self._instance}", self._headers, 10.0)
        if isinstance(answer, NoAnswer):
            return None
        refusal = failure(STATES, answer)
        if refusal is not None:
            return refusal
        state = at(answer.body, "instance", "state")
        if state == "connecting":
            return NotReady("connecting", "The instance is connecting to WhatsApp.", retry_after=5.0)
        if state == "close":
            return Systemic("inbox_disconnected", DISCONNECTED, Scope.INBOX)
        return None

    async def send(self, envelope: Envelope) -> Outcome:
        """Send one part. Evolution waits `delay` inside the request, so the time-out is added to it."""
        body = {"number": envelope.address, "text": envelope.text, "delay": envelope.delay_ms, "linkPreview": False}
        timeout = envelope.delay_ms / 1000 + self._send_timeout
        url = f"{self._base}/message/sendText/{self._instance}"
        answer = await post(self._client, url, body, self._headers, timeout, may_leave=envelope.may_leave)
        return read_send(answer, envelope)

    async def find_accepted(self, attempt: Attempt) -> LookUpAnswer:
        """Search the messages that this number sent to the address since the attempt began."""
        address = attempt.envelope.address
        plain = [address] if "@" in address else [f"{digits}@s.whatsapp.net" for digits in alternatives(address)]
        found = await self._search(attempt, plain)
        if found is not None:
            return found
        absent = await self._absent(attempt)
        if not isinstance(absent, Absent) or not absent.proven:
            return absent
        # Before it counts as absent: WhatsApp may know the number by a name that hides it (a LID).
        names = await self._names(address)
        if isinstance(names, LookUpFailed):
            return names
        return await self._search(attempt, [name for name in names if name not in plain]) or absent

    async def _search(self, attempt: Attempt, jids: list[str]) -> Found | LookUpFailed | None:
        started = datetime.fromtimestamp(attempt.started_at, UTC)
        for jid in jids:
            records = await self._find(
                {
                    "key": {"fromMe": True, "remoteJid": jid},
                    "messageTimestamp": {
                        "gte": (started - CLOCK_SKEW).strftime("%Y-%m-%dT%H:%M:%S.000Z"),
                        "lte": (started + timedelta(days=2)).strftime("%Y-%m-%dT%H:%M:%S.000Z"),
                    },
                }
            )
            if isinstance(records, LookUpFailed):
                return records
            for record in records:
                provider_id = _own_id(record)
                if provider_id in {None, *attempt.taken_provider_ids}:
                    continue
                if _same(_text(record), attempt.envelope.text):
                    return Found(str(provider_id), {"status": at(record, "MessageUpdate", 0, "status"), "address": jid})
        return None

    async def check_number(self, number: str) -> NumberCheck:
        """Ask WhatsApp for one number; Evolution tries a Brazilian one with and without its ninth digit."""
        entries = await self._ask_for_number(number)
        if isinstance(entries, NumberNotChecked):
            return entries
        exists = at(entries, 0, "exists")
        if exists is False:
            return NumberMissing(NOT_ON_WHATSAPP)
        if exists is not True:
            return NumberNotChecked("Evolution's answer does not say whether the number is on WhatsApp.")
        jid, lid = (_name(at(entries, 0, key)) for key in ("jid", "lid"))
        user, _, server = (jid or "").partition("@")
        known = user if server == "s.whatsapp.net" and user.isdigit() else number
        return NumberExists(known, jid, lid or (jid if server == "lid" else None))

    async def _names(self, address: str) -> list[str] | LookUpFailed:
        """What WhatsApp itself calls a number; asked only for a part that seems absent, for in bulk it risks a ban."""
        entries = await self._ask_for_number(address)
        if isinstance(entries, NumberNotChecked):
            return LookUpFailed(entries.reason)
        names = [_name(at(entry, key)) for entry in entries for key in ("jid", "lid")]
        return [name for name in names if name]

    async def _ask_for_number(self, number: str) -> list[Any] | NumberNotChecked:
        url = f"{self._base}/chat/whatsappNumbers/{self._instance}"
        answer = await post(self._client, url, {"numbers": [number]}, self._headers, 15.0)
        if isinstance(answer, NoAnswer):
            return NumberNotChecked(answer.reason)
        if answer.status not in {200, 201} or not isinstance(answer.body, list):
            said = f"Evolution answered {answer.status} when it was asked what WhatsApp calls the number."
            return NumberNotChecked(said)
        return answer.body

    async def _absent(self, attempt: Attempt) -> LookUpAnswer:
        """A miss proves something only where a message that was surely sent can be found."""
        if attempt.control_provider_id is None:
            reason = "This inbox has not sent anything yet by which its search could be tried."
            return Absent(proven=False, reason=reason, may_improve=True)
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
        found: list[Any] = []
        for page in range(1, MOST_PAGES + 1):
            asked = {"where": where, "page": page, "offset": 50}
            answer = await post(self._client, url, asked, self._headers, 15.0, LARGEST_PAGE)
            if isinstance(answer, NoAnswer):
                return LookUpFailed(answer.reason)
            records, pages = at(answer.body, "messages", "records"), at(answer.body, "messages", "pages")
            if answer.status not in {200, 201} or not isinstance(records, list):
                return LookUpFailed(f"Evolution answered {answer.status} to a search.")
            found += records
            if not records or not isinstance(pages, int) or page >= pages:
                return found
        return LookUpFailed(f"A search found more than {len(found)} messages, too many to look through.")


def _name(value: Any) -> str | None:
    """A jid or a lid."""
    return value if isinstance(value, str) and "@" in value else None


def _own_id(record: Any) -> str | None:
    """The id of a stored message that this number sent."""
    provider_id = at(record, "key", "id")
    return provider_id if isinstance(provider_id, str) and at(record, "key", "fromMe") is not False else None


def _same(stored: str | None, sent: str) -> bool:
    """Whether two texts are the same but for white space, which a server may tidy."""
    return stored is not None and stored.split() == sent.split()


def _text(record: Any) -> str | None:
    """The text of a stored message: plain, or with a preview."""
    text = at(record, "message", "conversation") or at(record, "message", "extendedTextMessage", "text")
    return text if isinstance(text, str) else None


def read_send(answer: Answer | NoAnswer, envelope: Envelope | None = None) -> Outcome:
    """Class the answer to a send of `envelope`, whose own texts decide nothing where the answer repeats them."""
    if isinstance(answer, NoAnswer):
        return no_answer(answer)
    if answer.status in {200, 201}:
        provider_id = at(answer.body, "key", "id")
        if isinstance(provider_id, str) and provider_id:
            kept = {key: at(answer.body, key) for key in ("status", "messageTimestamp", "instanceId")}
            jid = at(answer.body, "key", "remoteJid")
            return Sent(provider_id, kept, jid if isinstance(jid, str) else None)
        # Meta's errors pass through as a success, and so may half an answer: nobody can tell whether it went out.
        return Unknown("no_id", "Evolution reported success without a message id.")
    return known(ANSWERS, answer, _heard(answer, envelope)) or unrecognised("Evolution", answer)


def _heard(answer: Answer, envelope: Envelope | None) -> Heard:
    """What `response.message` says: a text, or a list of texts, objects, and lists of complaints about the request."""
    said = at(answer.body, "response", "message")
    pieces = said if isinstance(said, list) else [said]
    facts = set()
    if any(at(piece, "exists") is False for piece in pieces):
        facts.add("nobody")
    complaints = [piece for piece in pieces if isinstance(piece, list)]
    if complaints and len(complaints) == len(pieces):
        # Only its validation of the request gives a list within the list; what is thrown later gives texts.
        facts.add("complaints")
        pieces = [text for complaint in complaints for text in complaint]
    if any(isinstance(piece, str) and re.fullmatch(_NO_INSTANCE, piece) for piece in pieces):
        facts.add("no_instance")
    worded = [at(piece, "message") if isinstance(piece, dict) else piece for piece in pieces]
    return Heard(statements(worded, envelope), facts=frozenset(facts))


_NO_INSTANCE = r'The "[^"]{1,200}" instance does not exist'


def from_connection(
    client: httpx.AsyncBaseTransport, row: Mapping[str, Any], variables: Mapping[str, str], send_timeout: float
) -> Evolution:
    """Build the channel of an inbox from its instance row, else from EVOLUTION_API_URL and EVOLUTION_API_KEY.

    Raises LookupError with a sentence that names what is missing.
    """
    if not row["name"]:
        raise LookupError("The instance has no name (instances.name), by which Evolution knows it.")
    server = endpoint(row, variables, "EVOLUTION_API_URL", "EVOLUTION_API_KEY")
    return Evolution(client, server.url, row["name"], server.key, send_timeout)
