"""UAZAPI (uazapiGO v2): WhatsApp over its web protocol, with a tracking id of ours on every message.

Contract: the provider's OpenAPI specification. The header `token` is the instance: it names the number that sends, so
there is no key in the environment that could stand for all of them. A part whose answer was lost is found exactly, by
its tracking id; the server takes the same id twice, so it must be asked before anything is sent again.
"""

import re
from collections.abc import Mapping
from typing import Any

import httpx

from campaign_pipeline.adapters.answers import (
    DAY,
    NO_KEYS,
    NOT_HERE,
    SAYS_DISCONNECTED,
    SAYS_NO_KEYS,
    SAYS_NOBODY,
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

TRAITS = ChannelTraits(name="uazapi", max_part_chars=4096, look_up=LookUp.EXACT, number_check=True)

TRACK_SOURCE = "campaign_pipeline"
"""Under which our messages are tracked; the CRM's own may use the same ids under another."""

PAGE, MOST_PAGES = 50, 20
"""Messages a page and pages at most, when a part is looked up: by its own id there should be one message."""

NOT_ON_WHATSAPP = "The number is not on WhatsApp."
DISCONNECTED = "This inbox's connection to WhatsApp is closed; connect it and it goes on by itself."

_WRAPPED = r"(error sending|failed to send|could ?n[o']t send)( message)?: "
"""What UAZAPI puts before the words of its WhatsApp library."""

ANSWERS: tuple[Row, ...] = (
    Row(
        Permanent,
        "invalid_request",
        "UAZAPI refused the request as invalid.",
        status={400},
        says=r"(missing|invalid) .{0,30}(number|text|payload|json|body|parameter)\b.{0,60}"
        r"|(number|text|phone)( and \w{1,20})? (is|are) required",
    ),
    Row(
        Systemic,
        "bad_key",
        "UAZAPI refuses the token of this instance (instance_token or api_key).",
        status={401, 403},
    ),
    Row(
        Systemic,
        "instance_missing",
        "UAZAPI does not know this instance.",
        status={404},
        fact="no_instance",
    ),
    Row(
        Systemic,
        "redirected",
        "UAZAPI redirects the request; set its base URL (UAZAPI_API_URL) to the address it leads to.",
        status=NOT_HERE,
    ),
    Row(
        Throttled,
        "rate_limited",
        "UAZAPI says that this number sends too fast, or that its server has no room for another connected number.",
        status={429},
    ),
    Row(
        Unknown,
        "provider_timeout",
        "UAZAPI timed out while it talked to WhatsApp.",
        status={500},
        says=SAYS_TIMED_OUT,
    ),
    Row(Permanent, "not_on_whatsapp", NOT_ON_WHATSAPP, status={500}, says=SAYS_NOBODY),
    Row(Transient, "no_keys", NO_KEYS, status={500}, says=SAYS_NO_KEYS),
    Row(Systemic, "inbox_disconnected", DISCONNECTED, status={500}, says=SAYS_DISCONNECTED),
    Row(
        Throttled,
        "rate_limited",
        "WhatsApp says that this number sends too fast.",
        status={500},
        says=SAYS_TOO_FAST + r"|server returned error 429",
    ),
    Row(
        Systemic,
        "new_chats_limited",
        "WhatsApp keeps this number from writing to people who never wrote to it (error 463).",
        status={500},
        says=r"server returned error 463",
        retry_after=DAY,
    ),
    Row(
        Unknown,
        "http_{status}",
        "UAZAPI answered {status}, which does not say whether it was sent.",
        status={408, 502, 503, 504},
    ),
    Row(
        Unknown,
        "send_failed",
        "UAZAPI says that sending failed, which does not say whether it was sent all the same.",
        status={500},
        says=r"(fail(ed)?|error) (to send|sending)( (the )?message)?|internal server error",
    ),
)
"""Every answer to a send that is known, with its class; the first row that matches."""

STATES: tuple[Row, ...] = (
    *(row for row in ANSWERS if row.code == "bad_key"),
    Row(Systemic, "instance_missing", "UAZAPI does not know this instance.", status={404}),
    Row(
        Systemic,
        "redirected",
        "UAZAPI redirects the request; set its base URL (UAZAPI_API_URL) to the address it leads to.",
        status=range(300, 400),
    ),
)
"""What a question for the state of an instance may be answered that concerns sending too."""

_BETWEEN_BRACES = re.compile(r"(?<=\{)(?=\{)|(?<=\})(?=\})")
_JOINER = "\u200d"


class Uazapi:
    """One WhatsApp number of one UAZAPI server; see `core.ports.MessageChannel`."""

    traits = TRAITS

    def __init__(self, client: httpx.AsyncBaseTransport, base_url: str, token: str, send_timeout: float = 30.0) -> None:
        self._client = client
        self._base = base_url.rstrip("/")
        self._headers = {"token": token}
        self._send_timeout = send_timeout

    async def check_connection(self) -> Failure | NotReady | None:
        """Ask the instance for its state. A server that does not answer holds nothing back: sending will tell."""
        answer = await get(self._client, f"{self._base}/instance/status", self._headers, 10.0)
        if isinstance(answer, NoAnswer):
            return None
        refusal = failure(STATES, answer)
        if refusal is not None:
            return refusal
        state = at(answer.body, "instance", "status")
        if state == "connecting":
            return NotReady("connecting", "The instance is connecting to WhatsApp.", retry_after=5.0)
        if state == "disconnected":
            return Systemic("inbox_disconnected", DISCONNECTED, Scope.INBOX)
        return None

    async def send(self, envelope: Envelope) -> Outcome:
        """Send one part, not queued (`async`): only so does the answer say what came of it."""
        body = {
            "number": envelope.address,
            "text": harmless(envelope.text),
            "delay": envelope.delay_ms,
            "readchat": True,
            "linkPreview": False,
            "track_source": TRACK_SOURCE,
            "track_id": envelope.idempotency_key,
        }
        # UAZAPI waits `delay` inside the request.
        timeout = envelope.delay_ms / 1000 + self._send_timeout
        url = f"{self._base}/send/text"
        answer = await post(self._client, url, body, self._headers, timeout, may_leave=envelope.may_leave)
        return read_send(answer, envelope)

    async def find_accepted(self, attempt: Attempt) -> LookUpAnswer:
        """Ask for the part by its tracking id."""
        key, foreign = attempt.envelope.idempotency_key, False
        for page in range(MOST_PAGES):
            body = {"track_source": TRACK_SOURCE, "track_id": key, "limit": PAGE, "offset": page * PAGE}
            answer = await post(self._client, f"{self._base}/message/find", body, self._headers, 15.0)
            if isinstance(answer, NoAnswer):
                return LookUpFailed(answer.reason)
            messages = at(answer.body, "messages")
            if answer.status != httpx.codes.OK or not isinstance(messages, list):
                return LookUpFailed(f"UAZAPI answered {answer.status} when it was asked for a message.")
            for message in messages:
                if at(message, "track_id") != key or at(message, "track_source") != TRACK_SOURCE:
                    foreign = True
                    continue
                provider_id = _provider_id(message)
                if provider_id and not _failed(message):
                    return Found(provider_id, {"status": at(message, "status"), "address": at(message, "chatid")})
            if not messages or at(answer.body, "hasMore") is not True:
                return _absent(foreign)
        return LookUpFailed(f"A look-up by one tracking id found more than {MOST_PAGES * PAGE} messages.")

    async def check_number(self, number: str) -> NumberCheck:
        """Ask WhatsApp for one number."""
        answer = await post(self._client, f"{self._base}/chat/check", {"numbers": [number]}, self._headers, 15.0)
        if isinstance(answer, NoAnswer):
            return NumberNotChecked(answer.reason)
        exists, error = at(answer.body, 0, "isInWhatsapp"), at(answer.body, 0, "error")
        if answer.status != httpx.codes.OK or not isinstance(exists, bool) or error:
            return NumberNotChecked(
                f"UAZAPI answered {answer.status} when it was asked for a number, without a yes or no."
            )
        if not exists:
            return NumberMissing(NOT_ON_WHATSAPP)
        jid, lid = (_name(at(answer.body, 0, name)) for name in ("jid", "lid"))
        user, _, server = (jid or "").partition("@")
        return NumberExists(user if server == "s.whatsapp.net" and user.isdigit() else number, jid, lid)


def harmless(text: str) -> str:
    """The text with a zero-width joiner between doubled braces.

    The server takes `{{name}}` for a placeholder and puts something else in its place; a reader sees no difference.
    """
    return _BETWEEN_BRACES.sub(_JOINER, text)


def read_send(answer: Answer | NoAnswer, envelope: Envelope | None = None) -> Outcome:
    """Class the answer to a send of `envelope`, whose own texts decide nothing where the answer repeats them."""
    if isinstance(answer, NoAnswer):
        return no_answer(answer)
    if answer.status == httpx.codes.OK:
        provider_id = _provider_id(answer.body)
        if provider_id is None:
            return Unknown("no_id", "UAZAPI reported success without a message id.")
        kept = {key: at(answer.body, key) for key in ("status", "messageTimestamp", "track_id")}
        chat = at(answer.body, "chatid")
        return Sent(provider_id, kept, chat if isinstance(chat, str) and chat else None)
    return known(ANSWERS, answer, _heard(answer, envelope)) or unrecognised("UAZAPI", answer)


def _heard(answer: Answer, envelope: Envelope | None) -> Heard:
    """What `error` says, or `message` where there is none."""
    said = at(answer.body, "error")
    said = said if isinstance(said, str) else at(answer.body, "message")
    facts = {"no_instance"} if isinstance(said, str) and re.fullmatch(_NO_INSTANCE, said, re.IGNORECASE) else set()
    return Heard(statements([said], envelope, _WRAPPED), facts=frozenset(facts))


_NO_INSTANCE = r"instance (not found|does not exist)\.?"


def _provider_id(message: Any) -> str | None:
    """WhatsApp's id of a message; its `id` is the server's own."""
    provider_id = at(message, "messageid")
    return provider_id if isinstance(provider_id, str) and provider_id else None


def _failed(message: Any) -> bool:
    """Whether the server keeps a message that it could not send."""
    status = at(message, "status")
    return isinstance(status, str) and status.casefold() in {"failed", "error"}


def _absent(foreign: bool) -> Absent:
    if foreign:
        # A server that does not know tracking ids ignores them and gives whatever it has.
        return Absent(proven=False, reason="The server does not look up by tracking id, so a miss proves nothing.")
    return Absent(proven=True, reason="It was looked up by its own tracking id.")


def _name(value: Any) -> str | None:
    """A jid or a lid."""
    return value if isinstance(value, str) and "@" in value else None


def from_connection(
    client: httpx.AsyncBaseTransport, row: Mapping[str, Any], variables: Mapping[str, str], send_timeout: float
) -> Uazapi:
    """Build the channel of an inbox from its instance row; its server else from UAZAPI_API_URL.

    Raises LookupError with a sentence that names what is missing.
    """
    server = endpoint(row, variables, "UAZAPI_API_URL", None)
    return Uazapi(client, server.url, server.key, send_timeout)
