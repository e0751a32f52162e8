"""WhatsApp Cloud API (Meta): free text to who wrote to us within a day, approved templates to everybody else.

Contract: facebook/openapi (business messaging) and Meta's developer pages. An answer is an acceptance; what became of
it comes later, as a status event to the webhook of the CRM. The API takes no key of ours that it could be asked by, but
echoes one (`biz_opaque_callback_data`) in every status event: so an outcome that is unknown is settled by its events,
see `read_status`, and by nothing else.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import httpx

from campaign_pipeline.adapters.answers import MOST_READ, Row, failure, first_row, no_answer, unrecognised
from campaign_pipeline.adapters.connection import endpoint, setting
from campaign_pipeline.adapters.http import Answer, NoAnswer, at, get, post
from campaign_pipeline.adapters.redaction import redact_phones
from campaign_pipeline.core.ports import (
    UNRECOGNISED,
    Absent,
    Attempt,
    ChannelTraits,
    Envelope,
    Failure,
    LookUp,
    LookUpAnswer,
    NumberCheck,
    NumberNotChecked,
    Outcome,
    Permanent,
    Scope,
    Sent,
    StatusEvent,
    Systemic,
    Throttled,
    Transient,
    Unknown,
)

TRAITS = ChannelTraits(
    name="cloud_api",
    max_part_chars=4096,
    look_up=LookUp.NONE,
    # Ten minutes short of Meta's day: the text is written before it is sent, and clocks differ.
    free_text_hours=24 - 1 / 6,
    # About one message in six seconds goes to the same user; bursts are paid for later.
    part_gap_seconds=6.0,
)

DEFAULT_URL, DEFAULT_VERSION = "https://graph.facebook.com", "v23.0"

DAY = 24 * 3600.0
PAIR_RATE = "pair_rate_limited"
LONGEST_PAIR_WAIT = 3600.0  # seconds
MARKETING_CAP_ATTEMPTS = 2  # the first, and one a day later

_GRAPH = range(10**9)  # any error that Meta itself numbered
_PERMISSIONS = {3, 10, *range(200, 300)}

ANSWERS: tuple[Row, ...] = (
    # Not for this recipient or this text, ever.
    Row(
        Permanent,
        "undeliverable",
        "WhatsApp cannot deliver to this number: no account, terms not accepted, or an old version of the app.",
        number={131026},
    ),
    Row(Permanent, "sender_is_recipient", "The lead's number is the number that sends.", number={131021}),
    Row(Permanent, "opted_out", "The lead opted out of marketing messages from this business.", number={131050}),
    Row(
        Permanent,
        "window_over",
        "More than 24 hours have passed since the lead last wrote, so only a template may go out.",
        number={131047},
    ),
    Row(Permanent, "in_experiment", "The lead is in an experiment of Meta's and gets no marketing.", number={130472}),
    Row(
        Permanent,
        "template_parameters",
        "What was put into the template does not fit it; compare template_variables of the campaign with the template.",
        number={132000, 132005, 132007, 132012},
        quoted=True,
    ),
    Row(
        Systemic,
        "number_missing",
        "Meta does not know this phone_number_id, or the token may not use it; correct it in the instance.",
        number={100},
        says=r"\bsubcode 33\b",
    ),
    Row(
        Permanent,
        "invalid_request",
        "Meta refused the request as invalid.",
        number={100, 131008, 131009, 131051, 131063},
        quoted=True,
    ),
    # Later.
    Row(
        Transient,
        "marketing_cap",
        "Meta limits how many marketing messages this lead gets; it is tried once more after a day.",
        number={131049},
        retry_after=DAY,
        attempts=MARKETING_CAP_ATTEMPTS,
    ),
    Row(Throttled, PAIR_RATE, "Too many messages went to this lead just now.", number={131056}, scope=Scope.MESSAGE),
    Row(Throttled, "upgrading", "Meta is upgrading this number's throughput.", number={131057}, retry_after=60.0),
    Row(Throttled, "rate_limited", "This number sends faster than Meta allows.", number={130429, 80007, 4}),
    Row(
        Transient,
        "meta_unavailable",
        "Meta could not do it just now and says that it was not sent.",
        number={1, 2, 131000, 131016, 133004},
    ),
    # Nothing can go out until somebody does something.
    Row(
        Systemic,
        "bad_key",
        "Meta refuses the access token (instance_token, api_key or CLOUD_API_TOKEN); it may have expired.",
        number={0, 190},
    ),
    Row(
        Systemic,
        "no_permission",
        "The access token may not send from this number; give it whatsapp_business_messaging.",
        number={*_PERMISSIONS, 131005},
    ),
    Row(
        Systemic,
        "account_locked",
        "Meta locked this account for breaking a policy; see WhatsApp Manager.",
        number={368, 131031},
    ),
    Row(Systemic, "payment", "Meta has no valid means of payment for this account.", number={131042}),
    Row(
        Systemic,
        "not_registered",
        "This number is not registered with the Cloud API; register it.",
        number={131045, 133010},
    ),
    Row(Systemic, "spam_limit", "Too many people blocked or reported this number, so Meta stops it.", number={131048}),
    Row(Systemic, "number_deleted", "This business phone number was deleted.", number={33}),
    Row(
        Systemic,
        "template_missing",
        "There is no approved template of this name in this language; correct the campaign's template_name or "
        "template_language.",
        number={132001},
        scope=Scope.RUN,
    ),
    Row(
        Systemic,
        "template_paused",
        "Meta paused the campaign's template for its low quality; wait, or give the campaign another.",
        number={132015},
        scope=Scope.RUN,
    ),
    Row(
        Systemic,
        "template_disabled",
        "Meta disabled the campaign's template for good; give the campaign another.",
        number={132016},
        scope=Scope.RUN,
    ),
    # What has no number.
    Row(
        Transient,
        "meta_unavailable",
        "Meta answered {status} with an error of its own, so it was not sent.",
        status=range(500, 600),
        number=_GRAPH,
        quoted=True,
    ),
    Row(Throttled, "rate_limited", "Something before Meta says that requests come too fast.", status={429}),
    Row(
        Systemic,
        "redirected",
        "The request was redirected; set CLOUD_API_URL to the address it leads to.",
        status=range(300, 400),
    ),
    Row(
        Unknown,
        "http_{status}",
        "Something between here and Meta answered {status}, which does not say whether it was sent.",
        status={408, *range(500, 600)},
    ),
)
"""Every answer that is known, with its class; the first row that matches. Status events use the same numbers."""

_NUMBER_STATES: Mapping[str, Failure] = {
    **{
        state: Systemic("number_unusable", f"Meta says that this number is {state}; see WhatsApp Manager.", Scope.INBOX)
        for state in ("DISCONNECTED", "BANNED", "DELETED", "MIGRATED", "UNVERIFIED")
    },
    "PENDING": Throttled("connecting", "Meta is still setting this number up.", Scope.INBOX, retry_after=60.0),
    "RATE_LIMITED": Throttled("rate_limited", "Meta holds this number back for its rate.", Scope.INBOX),
}
"""States in which nothing can be sent; in others (CONNECTED, FLAGGED, RESTRICTED) sending will tell."""


class CloudApi:
    """One business phone number; see `core.ports.MessageChannel`."""

    traits = TRAITS

    def __init__(
        self,
        client: httpx.AsyncBaseTransport,
        base_url: str,
        phone_number_id: str,
        token: str,
        send_timeout: float = 30.0,
    ) -> None:
        """`base_url` has the version: `https://graph.facebook.com/v23.0`."""
        self._client = client
        self._number = f"{base_url.rstrip('/')}/{phone_number_id}"
        self._headers = {"Authorization": f"Bearer {token}"}
        self._send_timeout = send_timeout

    async def check_connection(self) -> Failure | None:
        """Ask for the number's state. If no answer tells, nothing is held back: sending will."""
        fields = "status,quality_rating,throughput"
        answer = await get(self._client, f"{self._number}?fields={fields}", self._headers, 10.0)
        if isinstance(answer, NoAnswer):
            return None
        if answer.status == httpx.codes.OK:
            state = at(answer.body, "status")
            return _NUMBER_STATES.get(state) if isinstance(state, str) else None
        refusal = failure(ANSWERS, answer, *_error(answer.body))
        return refusal if isinstance(refusal, Systemic | Throttled) else None

    async def send(self, envelope: Envelope) -> Outcome:
        """Send one part: as a template where the envelope has one, otherwise as free text."""
        content: dict[str, Any]
        if envelope.template is None:
            content = {"type": "text", "text": {"preview_url": False, "body": envelope.text}}
        else:
            content = {"type": "template", "template": _template(envelope)}
        body = {
            "messaging_product": "whatsapp",
            "recipient_type": "individual",
            "to": envelope.address,
            "biz_opaque_callback_data": envelope.idempotency_key,
            **content,
        }
        answer = await post(self._client, f"{self._number}/messages", body, self._headers, self._send_timeout)
        outcome = read_send(answer)
        if isinstance(outcome, Throttled) and outcome.code == PAIR_RATE and outcome.retry_after is None:
            # As Meta asks: 4, 16, 64 … seconds.
            return replace(outcome, retry_after=min(LONGEST_PAIR_WAIT, 4.0 ** min(envelope.attempt_no, 6)))
        return outcome

    async def find_accepted(self, attempt: Attempt) -> LookUpAnswer:
        """Nobody can be asked; see `read_status`."""
        return Absent(proven=False, reason="The Cloud API cannot be asked by our key; only its status events tell.")

    async def check_number(self, number: str) -> NumberCheck:
        """Meta has no such question."""
        return NumberNotChecked("The Cloud API cannot be asked whether a number is on WhatsApp.")


def read_send(answer: Answer | NoAnswer) -> Outcome:
    """Class the answer to a send."""
    if isinstance(answer, NoAnswer):
        return no_answer(answer)
    if answer.status == httpx.codes.OK and at(answer.body, "error") is None:
        provider_id = at(answer.body, "messages", 0, "id")
        if isinstance(provider_id, str) and provider_id:
            # `held_for_quality_assessment` and `paused` are acceptances too: events tell what becomes of them.
            kept = {"message_status": at(answer.body, "messages", 0, "message_status")}
            account = at(answer.body, "contacts", 0, "wa_id")
            return Sent(provider_id, kept, account if isinstance(account, str) and account else None)
        return Unknown("no_id", "Meta reported success without a message id.")
    said, number = _error(answer.body)
    known = failure(ANSWERS, answer, said, number)
    # An error that Meta numbered is an error: nothing was accepted, whatever the number means.
    return known or unrecognised("Meta", answer, surely_not_sent=number is not None)


def _error(body: Any) -> tuple[str | None, int | None]:
    """What a Graph error says, and its number; None, None where the body is none."""
    error = at(body, "error")
    number, subcode = at(error, "code"), at(error, "error_subcode")
    if not isinstance(number, int):
        return None, None
    details = at(error, "error_data", "details") or at(error, "message")
    return f"{details or ''} (code {number}{f', subcode {subcode}' if subcode else ''})".strip(), number


def _template(envelope: Envelope) -> dict[str, Any]:
    template = envelope.template
    assert template is not None
    content: dict[str, Any] = {"name": template.name, "language": {"code": template.language}}
    if template.variables:
        parameters = [{"type": "text", "text": value} for value in template.variables]
        content["components"] = [{"type": "body", "parameters": parameters}]
    return content


# Status events --------------------------------------------------------------------------------------------------------


_KEY = re.compile(r"(?P<message>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}):(?P<part>[1-9][0-9]{0,3})")
_STATUSES = frozenset({"sent", "delivered", "read", "failed"})
_CLASSES: Mapping[type[Failure], str] = {
    Permanent: "permanent",
    Transient: "transient",
    Throttled: "throttled",
    Systemic: "systemic",
}


def read_status(event: Any) -> StatusEvent | None:
    """Read one element of a webhook's `statuses[]`; None where it is not about a part of ours."""
    key, status = at(event, "biz_opaque_callback_data"), at(event, "status")
    found = _KEY.fullmatch(key) if isinstance(key, str) else None
    if found is None or not isinstance(status, str) or status not in _STATUSES:
        return None
    provider_id, stamp = at(event, "id"), at(event, "timestamp")
    seconds = float(stamp) if isinstance(stamp, str | int) and re.fullmatch(r"[0-9]{1,11}", str(stamp)) else None
    error_class, code, reason = _failed(event) if status == "failed" else (None, None, None)
    return StatusEvent(
        message_id=found["message"],
        part_no=int(found["part"]),
        provider_message_id=provider_id if isinstance(provider_id, str) and provider_id else None,
        status=status,
        at=seconds,
        error_class=error_class,
        code=code,
        reason=reason,
    )


def _failed(event: Any) -> tuple[str, str, str]:
    """Class, code and sentence of a delivery that failed."""
    number = at(event, "errors", 0, "code")
    said = at(event, "errors", 0, "error_data", "details") or at(event, "errors", 0, "message")
    words = f" It said: {redact_phones(said[:MOST_READ])}" if isinstance(said, str) and said else ""
    row = first_row(ANSWERS, httpx.codes.BAD_REQUEST, "", number if isinstance(number, int) else None)
    if row is None:
        known = number if isinstance(number, int) else "none"
        reason = f"Meta could not deliver it, for a reason that no row of the table knows (code {known})."
        return "permanent", UNRECOGNISED, reason + words
    return _CLASSES[row.outcome], row.code, row.sentence + words


# Building -------------------------------------------------------------------------------------------------------------


def from_connection(
    client: httpx.AsyncBaseTransport, row: Mapping[str, Any], variables: Mapping[str, str], send_timeout: float
) -> CloudApi:
    """Build the channel of an inbox from its instance row, else from CLOUD_API_URL, _VERSION and _TOKEN.

    Raises LookupError with a sentence that names what is missing.
    """
    version = setting(row, "version") or variables.get("CLOUD_API_VERSION") or DEFAULT_VERSION
    if not re.fullmatch(r"v\d{1,3}\.\d{1,2}", version):
        raise LookupError(f"CLOUD_API_VERSION (or provider_config.version) is {version!r}, but must be like v23.0.")
    number = setting(row, "phone_number_id")
    if number is None:
        raise LookupError("The instance names no provider_config.phone_number_id, which is Meta's id of the number.")
    if not re.fullmatch(r"\d{5,25}", number, re.ASCII):
        raise LookupError("provider_config.phone_number_id of the instance must be digits: Meta's id of the number.")
    graph = endpoint(row, variables, "CLOUD_API_URL", "CLOUD_API_TOKEN", DEFAULT_URL)
    return CloudApi(client, f"{graph.url}/{version}", number, graph.key, send_timeout)
