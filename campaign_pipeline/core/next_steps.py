"""The next step for a message that was not sent, or for a run that waits: one sentence per reason.

A reason is a code (`error_code`, `wait_code`). The step depends on the code and on the message: a message that is
retried automatically only needs its cause fixed, a failed one must also be sent again. A test compares the table with
all codes of the pipeline.
"""

from collections.abc import Mapping

PASSES = ""
"""The remedy of a cause that passes without action, or that cannot be fixed."""

_LEAD_NUMBER = "correct the lead's phone number"
_LEAD_EMAIL = "correct the lead's e-mail address"
_INSTRUCTIONS = "look at the refused texts (campaign_model_calls) and correct the campaign's instructions or its model"
_KEY = "set a key that the provider accepts, where the reason says"
_MAILBOX = "follow the mail server's answer (campaign_message_parts.provider_response)"
_ADDRESS = "correct the provider's address, in the instance or in the variable that the reason names"
_REPORT = "report the message's id and the log: this is a bug of the pipeline, or an answer that it does not know"
_TEMPLATE = "give the campaign a template that Meta has approved (template_name, template_language)"
_META = "do what the reason says, in Meta's WhatsApp Manager"

_GROUPS: Mapping[str, tuple[str, ...]] = {
    PASSES: (
        # Ours: waits that end by themselves, and ends of a shard.
        *("paced", "resting", "hourly_limit", "daily_limit", "warming_up", "quiet_hours", "window_closed"),
        *(
            "slowed_down",
            "scope_paused",
            "not_due",
            "contacted_today",
            "number_contacted",
            "given_back",
            "overslept",
            "late",
            "settings_changed",
        ),
        *("lease_lost", "message_gone", "worker_died", "look_up_pending", "look_up_failed", "not_accepted"),
        *("resend_approved", "already_sent", "too_late", "old_processor"),
        # A provider that is slow, busy or unavailable for a moment.
        *("rate_limited", "pair_rate_limited", "rate_limit_exceeded", "capacity_exhausted", "flow_throttled"),
        *("upgrading", "connecting", "marketing_cap", "template_not_ready", "timeout", "no_answer", "no_choice"),
        *("provider_timeout", "meta_unavailable", "server", "unmapped", "provider_unavailable", "provider_overloaded"),
        *(
            "temporarily_unavailable",
            "connection_lost",
            "greylisted",
            "deferred",
            "server_busy",
            "worker_killed",
            "send_failed",
        ),
        *("unreadable", "no_id", "not_stored", "sent_not_stored", "duplicate", "contradictory", "expired"),
        # The lead's own state.
        *("in_experiment", "opted_out", "mailbox_full", "hard_bounce", "no_keys", "country_restricted"),
        *("not_on_whatsapp", "undeliverable", "lead_replied"),
        # Refused permanently, because of the text or the lead.
        *("lead_deleted", "lead_erased", "run_cancelled"),
    ),
    _LEAD_NUMBER: ("no_phone", "invalid_phone", "sender_is_recipient"),
    _LEAD_EMAIL: ("no_email", "invalid_email", "unknown_recipient", "not_supported"),
    _INSTRUCTIONS: (
        *("empty", "too_short", "too_long", "malformed", "reasoning", "control_tokens", "refusal", "options"),
        *("placeholder", "empty_value", "unknown_link", "unknown_number", "unknown_email", "unknown_payment_key"),
        *(
            "truncated",
            "moderated",
            "content_filter",
            "content_policy_violation",
            "invalid_prompt",
            "model_refuses_requests",
        ),
        "texts_refused",
        *("context_length_exceeded", "max_tokens_exceeded", "token_limit_exceeded", "string_too_long"),
    ),
    _KEY: ("no_key", "no_token", "bad_key", "authentication", "bad_credentials", "no_login"),
    _MAILBOX: ("sender_refused", "sender_policy", "sender_blocked", "server_refuses", "content_refused", "refused"),
    _ADDRESS: (
        *("unreachable", "server_unreachable", "redirected", "address_refused", "untrusted_certificate", "no_tls"),
        *("function_missing", "instance_missing"),
    ),
    _REPORT: (
        *(
            "internal_error",
            "unrecognised_answer",
            "unrecognised_answers",
            "unknown_outcome",
            "invalid_request",
            "precondition",
        ),
        *("unprocessable", "too_large", "conversation_missing", "no_conversation"),
    ),
    _TEMPLATE: ("no_template", "template_missing", "template_paused", "template_disabled", "window_over"),
    _META: (
        *("account_locked", "payment", "not_registered", "spam_limit", "number_deleted", "number_missing"),
        *("number_unusable", "no_permission", "display_name_not_approved", "not_in_allowed_list"),
    ),
    "compare the campaign's template_variables with the template": ("template_parameters",),
    "resume it with `campaign-pipeline resume` when it may go on": ("paused_by_person",),
    "approve its text with `campaign-pipeline review`": ("awaiting_review",),
    "resume the run (campaign_runs.status), or leave it": ("run_paused", "run_completed", "run_failed"),
    "correct the row that the check rows_stay_in_their_workspace names, and make a new message": ("foreign_workspace",),
    "lift the suppression if the person wants messages again, and make a new message": ("suppressed",),
    "keep the schedule on, or raise CAMPAIGN_MAX_AGE_MINUTES, and make a new message": ("too_old",),
    "read the log of its workers before you send it again": ("worker_died_twice",),
    "look at the chat: a part of it was sent": ("incomplete",),
    "connect the inbox's instance": ("inbox_disconnected",),
    "use the number normally for some days, or send through another": ("new_chats_limited",),
    "link an instance to the inbox (inbox_instances)": ("inbox_without_instance",),
    "give the campaign an inbox (campaign_configs.inbox_id)": ("no_inbox",),
    "give the run a campaign (campaign_runs.config_id), or cancel it": ("no_campaign",),
    "switch the campaign on (campaign_configs.is_active)": ("campaign_inactive",),
    "correct the campaign's window, zone or days": ("invalid_window",),
    "give the workspace an active agent with a model (ai_agents)": ("no_model",),
    "choose another model (ai_agents.model)": (
        *("model_not_found", "model_unavailable", "model_unfit", "region_restricted"),
    ),
    "give the key the right to use this model, or choose another": ("permission_denied",),
    "add credit to the language model's account": ("no_credit", "payment_required"),
    "raise the limit on spending, or wait for the next day": ("spending_limit",),
    "use it in the sandbox only, or set the inbox's real instance": ("made_up",),
    "complete the settings of the inbox's instance as the reason says": ("provider_not_configured", "unknown_provider"),
}

REMEDIES: Mapping[str, str] = {code: remedy for remedy, codes in _GROUPS.items() for code in codes}
"""The remedy of a code, as an imperative without a full stop; PASSES: no action is needed."""

SEND_AGAIN = "launch retry_failed_messages for its day"
SEND_AGAIN_PERMANENT = f'{SEND_AGAIN} with error_classes ["permanent"]'


def next_step(what: str, error_class: str, code: str) -> str:
    """Return what to do about a message that a shard did not send, without a full stop.

    `what` is returned, failed, skipped or left; `error_class` is the message's, or empty.
    """
    remedy = REMEDIES.get(code, PASSES)
    if what == "left":
        return "nothing: the worker that holds it, or the next batch, continues"
    if what == "failed":
        return _after_failure(error_class, remedy)
    if what == "skipped":
        return remedy or "nothing: it will not be sent"
    if error_class == "systemic" and code not in REMEDIES:
        remedy = "do what the reason says"
    return f"{remedy}; it then continues automatically" if remedy else "nothing: it is retried automatically"


def _after_failure(error_class: str, remedy: str) -> str:
    if error_class == "unknown":
        return "look at the chat; only a person may resend it"
    if error_class == "permanent":
        return f"{remedy}, then {SEND_AGAIN_PERMANENT}" if remedy else "nothing: it was rejected for good"
    return f"{remedy}, then {SEND_AGAIN}" if remedy else SEND_AGAIN


def step_of_wait(code: str) -> str:
    """Return what to do about a run that waits for this reason, without a full stop."""
    remedy = REMEDIES.get(code, PASSES)
    return f"{remedy}; it then continues automatically" if remedy else "nothing: it continues automatically"
