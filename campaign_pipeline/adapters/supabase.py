"""The CRM's own sender: the Supabase edge function `internal-send-ai-message`, which sends through Evolution or UAZAPI.

Contract: the function's source. It takes a conversation and a text and nothing else, writes the message into the CRM's
conversation itself, and answers with whatever its provider said. A part whose answer was lost is searched for among
the conversation's messages; since they are written after the sending, a miss proves nothing.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import httpx

from campaign_pipeline.adapters.answers import (
    NO_KEYS,
    NOT_HERE,
    SAYS_DISCONNECTED,
    SAYS_NO_KEYS,
    SAYS_NOBODY,
    SAYS_TIMED_OUT,
    SAYS_TOO_FAST,
    Heard,
    Row,
    known,
    no_answer,
    statements,
    texts,
    unrecognised,
)
from campaign_pipeline.adapters.connection import environment_endpoint
from campaign_pipeline.adapters.http import Answer, NoAnswer, at, post
from campaign_pipeline.core.ports import (
    Absent,
    Attempt,
    ChannelTraits,
    Envelope,
    Failure,
    Found,
    LookUp,
    LookUpAnswer,
    NotReady,
    NumberCheck,
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

TRAITS = ChannelTraits(name="supabase", max_part_chars=4096, look_up=LookUp.SEARCH)

FUNCTION = "internal-send-ai-message"
OWN_DELAY = 1.2  # seconds of "typing" that the function itself asks its provider for

NOT_ON_WHATSAPP = "The number is not on WhatsApp."
DISCONNECTED = "This inbox's connection to WhatsApp is closed; connect it and it goes on by itself."

SAYS_SENT_NOT_SAVED = (
    r"(the )?message (was )?sent( successfully)?[ ,]*(but|and)? .{0,30}(failed|could not|unable|error)\b.{0,30}"
    r"(sav|stor|insert|record)\w*\b.{0,40}|fail(ed|ure)? to (save|store|insert) (the )?(sent )?message\b.{0,40}"
    r"|(a )?mensagem (foi )?enviada,? mas .{0,30}(falh|erro|n[ãa]o)\w*\b.{0,30}(salv|grav|regist)\w*\b.{0,40}"
)
"""What the function says where the message went out and only its row could not be written."""

_WRAPPED = r"(evolution|uazapi)( api)? error: |(error sending|failed to send)( message)?: "
"""What the function puts before the words of its provider."""

ANSWERS: tuple[Row, ...] = (
    # It went out: taken for a failure, it would go out twice. Its row is missing in the CRM, so we write it.
    Row(Sent, "sent_not_stored", "It was sent, and not saved.", status={500}, says=SAYS_SENT_NOT_SAVED),
    Row(
        Systemic,
        "bad_key",
        "The function refuses SUPABASE_SERVICE_ROLE_KEY.",
        status={401, 403},
    ),
    Row(
        Systemic,
        "inbox_disconnected",
        "The function found no connected instance for this inbox; connect one and it goes on by itself.",
        status={400},
        says=r"no (\w{1,20} ){0,3}instance( was)? found( for .{1,60})?"
        r"|(the )?instance( \S{1,60})? (is )?not (found|connected)"
        r"|nenhuma inst[âa]ncia (conectada|encontrada)\b.{0,60}"
        r"|(a )?inst[âa]ncia( \S{1,60})? (est[áa] )?(desconectada|n[ãa]o (est[áa] )?(conectada|encontrada))",
    ),
    Row(
        Permanent,
        "invalid_request",
        "The function refused the request as incomplete.",
        status={400},
        says=r"missing (conversationid|text|required)\b.{0,60}|(conversationid|text)\b.{0,30} (is|are) required"
        r"|(conversationid|text)\b.{0,30} obrigat[óo]ri\w{1,3}",
    ),
    Row(Permanent, "invalid_request", "The function takes no such request.", status={405}),
    Row(
        Permanent,
        "conversation_missing",
        "The function does not know the conversation of this message.",
        status={404},
        says=r"conversation( \S{1,60})? (was )?not found|conversa n[ãa]o encontrada",
    ),
    Row(
        Systemic,
        "function_missing",
        f"There is no function {FUNCTION} at SUPABASE_URL; deploy it, or correct the URL.",
        status={404},
        says=r"(requested )?function( \S{1,60})?( was)? not found|not_found",
    ),
    Row(
        Systemic,
        "redirected",
        "The request was redirected; set SUPABASE_URL to the address it leads to.",
        status=NOT_HERE,
    ),
    Row(Throttled, "rate_limited", "Supabase says that requests come too fast.", status={429}),
    Row(
        Systemic,
        "no_token",
        "The instance that the function sends through has no token; set instance_token or api_key.",
        status={500},
        says=r"(no|missing) (\w{1,20} ){0,2}(token|api.?key)\b.{0,40}"
        r"|(\w{1,20} ){0,2}(token|api.?key) (is )?(not configured|missing)\b.{0,40}",
    ),
    # What its provider said, in the provider's words.
    Row(
        Unknown,
        "provider_timeout",
        "The function's provider timed out while it talked to WhatsApp.",
        status={500},
        says=SAYS_TIMED_OUT,
    ),
    Row(Permanent, "not_on_whatsapp", NOT_ON_WHATSAPP, status={500}, fact="nobody"),
    Row(Permanent, "not_on_whatsapp", NOT_ON_WHATSAPP, status={500}, says=SAYS_NOBODY),
    Row(Transient, "no_keys", NO_KEYS, status={500}, says=SAYS_NO_KEYS),
    Row(Systemic, "inbox_disconnected", DISCONNECTED, status={500}, says=SAYS_DISCONNECTED),
    Row(
        Throttled,
        "rate_limited",
        "WhatsApp says that this number sends too fast.",
        status={500},
        says=SAYS_TOO_FAST,
    ),
    Row(
        Unknown,
        "worker_killed",
        "Supabase stopped the function for its use of processor or memory; it may have sent before.",
        status={546},
    ),
    Row(
        Unknown,
        "http_{status}",
        "Supabase answered {status}, which does not say whether it was sent.",
        status={408, 502, 503, 504},
    ),
)
"""Every answer that is known, with its class; the first row that matches."""

_IDS: tuple[tuple[str, ...], ...] = (
    ("message", "provider_message_id"),
    ("provider_response", "key", "id"),
    ("provider_response", "messageid"),
    ("provider_response", "message", "key", "id"),
    ("provider_response", "id"),
)
_DETAILED_IDS: tuple[tuple[str, ...], ...] = tuple(
    ("details", *path) for path in (("key", "id"), ("messageid",), ("provider_message_id",), ("message", "key", "id"))
)


class InternalSend:
    """One inbox, through the CRM's own function; see `core.ports.MessageChannel`."""

    traits = TRAITS

    def __init__(
        self,
        client: httpx.AsyncBaseTransport,
        base_url: str,
        service_key: str,
        status: str | None,
        send_timeout: float = 30.0,
    ) -> None:
        """`status` is what the CRM's `instances` table says of the inbox."""
        self._client = client
        self._url = f"{base_url.rstrip('/')}/functions/v1/{FUNCTION}"
        # The second one is for the gateway, where the project has it check every call of a function.
        self._headers = {"X-Service-Role-Key": service_key, "Authorization": f"Bearer {service_key}"}
        self._status = status
        self._send_timeout = send_timeout

    async def check_connection(self) -> Failure | NotReady | None:
        """What the CRM says. Where the inbox is not connected the function would send from another number."""
        if self._status == "connected":
            return None
        if self._status == "connecting":
            return NotReady("connecting", "The instance is connecting to WhatsApp.", retry_after=120.0)
        return Systemic("inbox_disconnected", DISCONNECTED, Scope.INBOX)

    async def send(self, envelope: Envelope) -> Outcome:
        """Send one part into its conversation."""
        if envelope.conversation_id is None:
            reason = "The message has no conversation, and the function sends to nothing else."
            return Permanent("no_conversation", reason)
        body = {"conversationId": envelope.conversation_id, "text": envelope.text}
        timeout = OWN_DELAY + self._send_timeout
        answer = await post(self._client, self._url, body, self._headers, timeout, may_leave=envelope.may_leave)
        return read_send(answer, envelope)

    async def find_accepted(self, attempt: Attempt) -> LookUpAnswer:
        """What the CRM's conversation has of this text since the attempt began, where no other part took it."""
        for provider_id in attempt.conversation_ids:
            if provider_id not in attempt.taken_provider_ids:
                return Found(provider_id, {"found_in": "messages"}, in_conversation=True)
        reason = "The conversation has no message of this text, but it is written only after the sending."
        return Absent(proven=False, reason=reason)

    async def check_number(self, number: str) -> NumberCheck:
        """The function has no such question."""
        return NumberNotChecked("The CRM's function cannot be asked whether a number is on WhatsApp.")


def read_send(answer: Answer | NoAnswer, envelope: Envelope | None = None) -> Outcome:
    """Class the answer to a send of `envelope`, whose own texts decide nothing where the answer repeats them."""
    if isinstance(answer, NoAnswer):
        return no_answer(answer)
    if answer.status == httpx.codes.OK and at(answer.body, "success") is not False:
        provider_id = _first_text(answer.body, _IDS)
        if provider_id is None:
            return Unknown("no_id", "The function reported success without a message id.")
        status = at(answer.body, "provider_response", "status")
        return Sent(provider_id, {"status": status if isinstance(status, str) else None}, in_conversation=True)
    outcome = known(ANSWERS, answer, _heard(answer, envelope))
    if isinstance(outcome, Sent):
        return replace(outcome, provider_message_id=_first_text(answer.body, _DETAILED_IDS))
    return outcome or unrecognised("The function", answer)


def _heard(answer: Answer, envelope: Envelope | None) -> Heard:
    """What `error` and `message` say, and the provider's own answer in `details`."""
    details = at(answer.body, "details")
    said = [at(answer.body, "error"), at(answer.body, "message"), *texts(details)]
    listed = at(details, "response", "message")
    nobody = any(at(piece, "exists") is False for piece in (listed if isinstance(listed, list) else [listed]))
    return Heard(statements(said, envelope, _WRAPPED), facts=frozenset({"nobody"} if nobody else ()))


def _first_text(body: Any, paths: tuple[tuple[str, ...], ...]) -> str | None:
    found = (at(body, *path) for path in paths)
    return next((value for value in found if isinstance(value, str) and value), None)


def from_connection(
    client: httpx.AsyncBaseTransport, row: Mapping[str, Any], variables: Mapping[str, str], send_timeout: float
) -> InternalSend:
    """Build the channel of an inbox from SUPABASE_URL and SUPABASE_SERVICE_ROLE_KEY.

    The instance's own token is its provider's, not the function's. Raises LookupError with a sentence that names what
    is missing.
    """
    project = environment_endpoint(variables, "SUPABASE_URL", "SUPABASE_SERVICE_ROLE_KEY")
    return InternalSend(client, project.url, project.key, row.get("status"), send_timeout)
