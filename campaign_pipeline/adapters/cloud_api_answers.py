"""Meta's error codes, in answers of the Cloud API and in its status events."""

from collections.abc import Mapping
from typing import Any

from campaign_pipeline.adapters.answers import DAY, Row, redirected, tells_nothing
from campaign_pipeline.adapters.http import at
from campaign_pipeline.core.ports import Failure, NotReady, Permanent, Scope, Systemic, Throttled, Transient, Unknown

PAIR_RATE = "pair_rate_limited"
MARKETING_CAP_ATTEMPTS = 2  # the first, and one a day later

# Permanent for this recipient or this text.
_UNDELIVERABLE = Row(
    Permanent,
    "undeliverable",
    "WhatsApp cannot deliver to this number: no account, terms not accepted, or an old version of the app.",
)
_SENDER_IS_RECIPIENT = Row(Permanent, "sender_is_recipient", "The lead's number is the number that sends.")
_OPTED_OUT = Row(Permanent, "opted_out", "The lead opted out of marketing messages from this business.")
_WINDOW_OVER = Row(
    Permanent,
    "window_over",
    "More than 24 hours have passed since the lead last wrote, so only a template may go out.",
)
_IN_EXPERIMENT = Row(Permanent, "in_experiment", "The lead is in an experiment of Meta's and gets no marketing.")
_COUNTRY = Row(Permanent, "country_restricted", "Meta does not let this account write to leads in this country.")
_NOT_ALLOWED = Row(
    Permanent,
    "not_in_allowed_list",
    "This is a test number of Meta's, and the lead is not on its list of allowed recipients.",
)
_EXPIRED = Row(Permanent, "expired", "Meta gave the message up, because it could not be delivered in time.")
_TEMPLATE_PARAMETERS = Row(
    Permanent,
    "template_parameters",
    "What was put into the template does not fit it; compare template_variables of the campaign with the template.",
)
_INVALID = Row(Permanent, "invalid_request", "Meta refused the request as invalid.")

# It was sent before, or may have been.
_DUPLICATE = Row(Unknown, "duplicate", "Meta says that it has this very message already.")

# Retry later.
_MARKETING_CAP = Row(
    Transient,
    "marketing_cap",
    "Meta limits how many marketing messages this lead gets; it is tried once more after a day.",
    retry_after=DAY,
    attempts=MARKETING_CAP_ATTEMPTS,
)
_PAIR_RATE = Row(Throttled, PAIR_RATE, "Too many messages went to this lead just now.", scope=Scope.MESSAGE)
_UPGRADING = Row(Throttled, "upgrading", "Meta is upgrading or moving this number.", retry_after=60.0)
_TOO_FAST = Row(Throttled, "rate_limited", "This number sends faster than Meta allows.")
_TOO_MANY_CALLS = Row(
    Throttled, "rate_limited", "This app or account makes more requests than Meta allows.", retry_after=300.0
)
_UNAVAILABLE = Row(
    Transient, "meta_unavailable", "Meta could not do it just now and says that the message was not sent."
)

# Nothing can be sent until a person acts.
_BAD_KEY = Row(
    Systemic,
    "bad_key",
    "Meta refuses the access token (instance_token, api_key or CLOUD_API_TOKEN); it may have expired.",
)
_NO_PERMISSION = Row(
    Systemic,
    "no_permission",
    "The access token may not send from this number; give it whatsapp_business_messaging.",
)
_LOCKED = Row(Systemic, "account_locked", "Meta locked this account for breaking a policy; see WhatsApp Manager.")
_DISPLAY_NAME = Row(
    Systemic,
    "display_name_not_approved",
    "Meta has not approved the display name of this number; until then nothing can be sent from it.",
)
_PAYMENT = Row(
    Systemic, "payment", "Meta has no valid means of payment for this account, or its terms are not accepted."
)
_NOT_REGISTERED = Row(Systemic, "not_registered", "This number is not registered with the Cloud API; register it.")
_SPAM_LIMIT = Row(Systemic, "spam_limit", "Too many people blocked or reported this number, so Meta stops it.")
_NUMBER_DELETED = Row(Systemic, "number_deleted", "This business phone number was deleted.")
_NUMBER_MISSING = Row(
    Systemic,
    "number_missing",
    "Meta does not know this phone_number_id, or the token may not use it; correct it in the instance.",
)
_TEMPLATE_MISSING = Row(
    Systemic,
    "template_missing",
    "There is no approved template of this name in this language; correct the campaign's template_name or "
    "template_language.",
    scope=Scope.RUN,
)
_TEMPLATE_PAUSED = Row(
    Systemic,
    "template_paused",
    "Meta paused the campaign's template for its low quality; wait, or give the campaign another.",
    scope=Scope.RUN,
)
_TEMPLATE_DISABLED = Row(
    Systemic,
    "template_disabled",
    "Meta disabled the campaign's template for good; give the campaign another.",
    scope=Scope.RUN,
)
_FLOW_THROTTLED = Row(
    Throttled,
    "flow_throttled",
    "Meta lets few messages an hour go out with the flow of this template.",
    scope=Scope.RUN,
    retry_after=3600.0,
)
_TEMPLATE_NOT_READY = Row(
    Throttled,
    "template_not_ready",
    "Meta is still preparing the campaign's template for marketing.",
    scope=Scope.RUN,
    retry_after=600.0,
)

CODES: Mapping[int, tuple[str, Row]] = {
    # Meta's code -> its title and meaning: the whole published list of the Cloud API, and the codes of the
    # underlying Graph API. Status events use the same codes.
    0: ("AuthException", _BAD_KEY),
    1: ("API Unknown", _UNAVAILABLE),
    2: ("API Service", _UNAVAILABLE),
    3: ("API Method", _NO_PERMISSION),
    4: ("API Too Many Calls", _TOO_MANY_CALLS),
    10: ("Permission Denied", _NO_PERMISSION),
    17: ("API User Too Many Calls", _TOO_MANY_CALLS),
    32: ("Page request limit reached", _TOO_MANY_CALLS),
    33: ("Parameter value is not valid (the business phone number was deleted)", _NUMBER_DELETED),
    100: ("Invalid parameter", _INVALID),
    102: ("API Session", _BAD_KEY),
    104: ("Incorrect signature (appsecret_proof)", _BAD_KEY),
    190: ("Access token has expired", _BAD_KEY),
    **dict.fromkeys(range(200, 300), ("API Permission", _NO_PERMISSION)),
    341: ("Application limit reached", _TOO_MANY_CALLS),
    368: ("Temporarily blocked for policies violations", _LOCKED),
    506: ("Duplicate Post", _DUPLICATE),
    613: ("Calls to this API have exceeded the rate limit", _TOO_MANY_CALLS),
    80007: ("Rate limit issues", _TOO_FAST),
    80008: ("WhatsApp Business Management API rate limit", _TOO_MANY_CALLS),
    130429: ("Rate limit hit", _TOO_FAST),
    130472: ("User's number is part of an experiment", _IN_EXPERIMENT),
    130497: ("Business account is restricted from messaging users in this country", _COUNTRY),
    131000: ("Something went wrong", _UNAVAILABLE),
    131001: ("Message too long", _INVALID),
    131002: ("Invalid recipient type", _INVALID),
    131005: ("Access denied", _NO_PERMISSION),
    131006: ("Resource not found", _INVALID),
    131008: ("Required parameter is missing", _INVALID),
    131009: ("Parameter value is not valid", _INVALID),
    131016: ("Service unavailable", _UNAVAILABLE),
    131021: ("Recipient cannot be sender", _SENDER_IS_RECIPIENT),
    131026: ("Message undeliverable", _UNDELIVERABLE),
    131030: ("Recipient phone number not in allowed list", _NOT_ALLOWED),
    131031: ("Account has been locked", _LOCKED),
    131037: (
        "WhatsApp provided number needs display name approval before message can be sent",
        _DISPLAY_NAME,
    ),
    131042: ("Business eligibility payment issue", _PAYMENT),
    131043: ("Message expired", _EXPIRED),
    131045: ("Incorrect certificate", _NOT_REGISTERED),
    131047: ("Re-engagement message", _WINDOW_OVER),
    131048: ("Spam rate limit hit", _SPAM_LIMIT),
    131049: ("Meta chose not to deliver", _MARKETING_CAP),
    131050: ("User has stopped marketing messages from this business", _OPTED_OUT),
    131051: ("Unsupported message type", _INVALID),
    131052: ("Media download error", _INVALID),
    131053: ("Media upload error", _INVALID),
    131055: ("Method not allowed", _INVALID),
    131056: ("(Business account, consumer account) pair rate limit hit", _PAIR_RATE),
    131057: ("Account in maintenance mode", _UPGRADING),
    131062: ("Business-scoped user id recipients are not supported for this message", _INVALID),
    131063: ("This recipient cannot get this kind of message", _INVALID),
    132000: ("Template param count mismatch", _TEMPLATE_PARAMETERS),
    132001: ("Template does not exist", _TEMPLATE_MISSING),
    132005: ("Template hydrated text too long", _TEMPLATE_PARAMETERS),
    132007: ("Template format character policy violated", _TEMPLATE_PARAMETERS),
    132012: ("Template parameter format mismatch", _TEMPLATE_PARAMETERS),
    132015: ("Template is paused", _TEMPLATE_PAUSED),
    132016: ("Template is disabled", _TEMPLATE_DISABLED),
    132018: ("Template parameters are not valid", _TEMPLATE_PARAMETERS),
    132068: ("Flow is in blocked state", _TEMPLATE_DISABLED),
    132069: ("Flow is in throttled state", _FLOW_THROTTLED),
    133000: ("Incomplete deregistration", _NOT_REGISTERED),
    133004: ("Server temporarily unavailable", _UNAVAILABLE),
    133005: ("Two-step verification PIN mismatch", _NOT_REGISTERED),
    133006: ("Phone number re-verification needed", _NOT_REGISTERED),
    133008: ("Too many two-step verification PIN guesses", _NOT_REGISTERED),
    133009: ("Two-step verification PIN guessed too fast", _NOT_REGISTERED),
    133010: ("Phone number not registered", _NOT_REGISTERED),
    133015: ("Phone number was recently deleted; please wait before registering it", _NOT_REGISTERED),
    133016: ("Account register deregister rate limit exceeded", _NOT_REGISTERED),
    134011: ("WhatsApp Payments terms of service has not been accepted", _PAYMENT),
    134100: ("Only marketing messages supported", _INVALID),
    134101: ("Template is still being synced", _TEMPLATE_NOT_READY),
    134102: ("Template is unavailable for use", _TEMPLATE_MISSING),
    135000: ("Generic user error", _INVALID),
    136025: ("Verify code error", _NOT_REGISTERED),
    1752041: ("Duplicate request", _DUPLICATE),
    2388001: ("Cannot create certificate", _NOT_REGISTERED),
    2388012: ("Phone number already added", _NOT_REGISTERED),
    2388019: ("Template limit exceeded", _INVALID),
    2388040: ("Template character limit exceeded", _INVALID),
    2388047: ("Template header format incorrect", _INVALID),
    2388072: ("Template body format incorrect", _INVALID),
    2388073: ("Template footer format incorrect", _INVALID),
    2388091: ("Two-step verification PIN needed", _NOT_REGISTERED),
    2388093: ("Number is already registered", _NOT_REGISTERED),
    2388103: ("Phone number cannot be migrated", _NOT_REGISTERED),
    2388293: ("Template parameters words ratio exceeds limit", _INVALID),
    2388299: ("Template leading or trailing params not allowed", _INVALID),
    2494100: ("Phone number in maintenance mode", _UPGRADING),
    2593107: ("Synchronisation request limit exceeded", _NOT_REGISTERED),
    2593108: ("Synchronisation request made outside of its time window", _NOT_REGISTERED),
}

SUBCODES: Mapping[tuple[int, int], tuple[str, Row]] = {
    (100, 33): ("Unsupported post request: the object does not exist, or permissions are missing", _NUMBER_MISSING),
}
"""Errors whose `error_subcode` says more than the code."""

WITHOUT_A_CODE: tuple[Row, ...] = (
    Row(Throttled, "rate_limited", "Something before Meta says that requests come too fast.", status={429}),
    redirected("CLOUD_API_URL"),
    tells_nothing("Something between here and Meta", {408, *range(500, 600)}),
)
"""Answers that are not Meta's own."""

ANSWERS: tuple[Row, ...] = (
    *dict.fromkeys(row for _, row in (*CODES.values(), *SUBCODES.values())),
    *WITHOUT_A_CODE,
)
"""Every known kind of answer."""

STATES: Mapping[str, Failure | NotReady] = {
    "PENDING": NotReady("connecting", "Meta is still setting this number up.", retry_after=10.0),
    "RATE_LIMITED": Throttled("rate_limited", "Meta holds this number back for its rate.", Scope.INBOX),
    **{
        state: Systemic("number_unusable", f"Meta says that this number is {state}; see WhatsApp Manager.", Scope.INBOX)
        for state in ("DISCONNECTED", "BANNED", "DELETED", "MIGRATED", "UNVERIFIED")
    },
}
"""States of a number in which nothing can be sent; in others (CONNECTED, FLAGGED, RESTRICTED) sending will tell."""


def rows_of(error: Any) -> tuple[Row, ...]:
    """Return the rows for an answer with this `error`: its code's own row, or those of answers without a code."""
    code, subcode = at(error, "code"), at(error, "error_subcode")
    if not isinstance(code, int) or isinstance(code, bool):
        return WITHOUT_A_CODE
    _, row = SUBCODES.get((code, subcode if isinstance(subcode, int) else 0)) or CODES.get(code) or (None, None)
    return (row,) if row else ()
