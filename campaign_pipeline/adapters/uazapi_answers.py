"""The meaning of UAZAPI's answers."""

from campaign_pipeline.adapters.answers import DAY, Row, redirected, tells_nothing
from campaign_pipeline.adapters.whatsapp_web import in_words, no_account, timed_out
from campaign_pipeline.core.ports import Permanent, Systemic, Throttled, Unknown

_BASE_URL = "the instance's base URL (UAZAPI_API_URL)"
_NO_INSTANCE = "UAZAPI does not know this instance."

_BAD_KEY = Row(
    Systemic,
    "bad_key",
    "UAZAPI refuses the token of this instance (instance_token or api_key).",
    status={401, 403},
)

ANSWERS: tuple[Row, ...] = (
    Row(
        Permanent,
        "invalid_request",
        "UAZAPI refused the request as invalid.",
        status={400},
        says=r"(missing|invalid) .{0,30}(number|text|payload|json|body|parameter)\b.{0,60}"
        r"|(number|text|phone)( and \w{1,20})? (is|are) required",
    ),
    _BAD_KEY,
    Row(Systemic, "instance_missing", _NO_INSTANCE, status={404}, fact="no_instance"),
    redirected(_BASE_URL),
    Row(
        Throttled,
        "rate_limited",
        "UAZAPI says that this number sends too fast, or that its server has no room for another connected number.",
        status={429},
    ),
    timed_out("UAZAPI", {500}),
    no_account({500}),
    *in_words({500}),
    Row(
        Systemic,
        "new_chats_limited",
        "WhatsApp keeps this number from writing to people who never wrote to it (error 463).",
        status={500},
        says=r"server returned error 463",
        retry_after=DAY,
    ),
    tells_nothing("UAZAPI", {408, 502, 503, 504}),
    Row(
        Unknown,
        "send_failed",
        "UAZAPI says that sending failed, which does not say whether it was sent all the same.",
        status={500},
        says=r"(fail(ed)?|error) (to send|sending)( (the )?message)?|internal server error",
    ),
)
"""To a send; the first matching row decides."""

STATE_ANSWERS: tuple[Row, ...] = (
    _BAD_KEY,
    Row(Systemic, "instance_missing", _NO_INSTANCE, status={404}),
    redirected(_BASE_URL, range(300, 400)),
)
"""To the query for an instance's state."""
