"""OpenRouter as the language model: one request, one completion or one classed failure.

Contract: openrouter.ai/docs (API reference, errors, limits); errors can come inside a 200. `error.metadata.error_type`
decides, then the HTTP status; never the message's text.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import httpx

from campaign_pipeline.adapters.answers import kept
from campaign_pipeline.adapters.http import Answer, NoAnswer, at, get, post
from campaign_pipeline.core.ports import (
    UNRECOGNISED,
    Completion,
    Failure,
    Permanent,
    Prompt,
    Scope,
    Systemic,
    Throttled,
    Transient,
)

PERMANENT, TRANSIENT, THROTTLED = "permanent", "transient", "throttled"

ERROR_TYPES: dict[str, tuple[str, Scope]] = {
    # error.metadata.error_type -> class, and its scope
    "context_length_exceeded": (PERMANENT, Scope.MESSAGE),
    "max_tokens_exceeded": (PERMANENT, Scope.MESSAGE),
    "token_limit_exceeded": (PERMANENT, Scope.MESSAGE),
    "string_too_long": (PERMANENT, Scope.MESSAGE),
    "invalid_prompt": (PERMANENT, Scope.MESSAGE),
    "content_policy_violation": (PERMANENT, Scope.MESSAGE),
    "refusal": (PERMANENT, Scope.MESSAGE),
    "invalid_request": (PERMANENT, Scope.MESSAGE),
    "authentication": ("systemic", Scope.PROVIDER),
    "payment_required": ("systemic", Scope.PROVIDER),
    "permission_denied": ("systemic", Scope.PROVIDER),
    "region_restricted": ("systemic", Scope.MODEL),
    "rate_limit_exceeded": (THROTTLED, Scope.MODEL),
    "capacity_exhausted": (THROTTLED, Scope.MODEL),
    "server": (TRANSIENT, Scope.MESSAGE),
    "unmapped": (TRANSIENT, Scope.MESSAGE),
    "provider_unavailable": (TRANSIENT, Scope.MESSAGE),
    "provider_overloaded": (TRANSIENT, Scope.MESSAGE),
    "temporarily_unavailable": (TRANSIENT, Scope.MESSAGE),
}

STATUSES: dict[int, tuple[str, Scope, str]] = {
    # HTTP status (or the code inside a 200) -> class, scope, our code
    400: (PERMANENT, Scope.MESSAGE, "invalid_request"),
    401: ("systemic", Scope.PROVIDER, "bad_key"),
    402: ("systemic", Scope.PROVIDER, "no_credit"),
    403: ("systemic", Scope.PROVIDER, "permission_denied"),
    404: ("systemic", Scope.MODEL, "model_unavailable"),
    408: (TRANSIENT, Scope.MESSAGE, "timeout"),
    412: (PERMANENT, Scope.MESSAGE, "precondition"),
    413: (PERMANENT, Scope.MESSAGE, "too_large"),
    422: (PERMANENT, Scope.MESSAGE, "unprocessable"),
    429: (THROTTLED, Scope.MODEL, "rate_limited"),
}

SHARED_KEY = "OPENROUTER_API_KEY"
OWN_KEY = "The workspace's own key (ai_agents.openrouter_api_key)"

SENTENCES: dict[str, str] = {
    "bad_key": "OpenRouter refuses the key (OPENROUTER_API_KEY); set a valid one.",
    "authentication": "OpenRouter refuses the key (OPENROUTER_API_KEY); set a valid one.",
    "no_credit": "The OpenRouter account or key has no credit left; add some and the runs go on by themselves.",
    "payment_required": "The OpenRouter account or key has no credit left; add some and the runs go on by themselves.",
    "model_not_found": "OpenRouter does not know this model; correct it in ai_agents.",
    "model_unavailable": "No endpoint of OpenRouter offers this model now; choose another in ai_agents.",
    "redirected": "OpenRouter redirects the request; set OPENROUTER_BASE_URL to the address it leads to.",
    "moderated": "The prompt was refused by moderation.",
    "rate_limited": "The language model is asked too often.",
    "rate_limit_exceeded": "The language model is asked too often.",
}


class OpenRouter:
    """The language model of all workspaces, over one HTTP client.

    A workspace in `own_keys` (id -> key) uses its own account, whose problems affect only that workspace.
    With `cache_seconds`, OpenRouter caches each answer for that time and returns it for free to an identical request: a
    text whose answer was lost is not paid for twice. OpenRouter stores personal data for that time.
    """

    def __init__(
        self,
        client: httpx.AsyncBaseTransport,
        base_url: str,
        api_key: str | None,
        own_keys: Mapping[str, str] | None = None,
        cache_seconds: int = 0,
    ) -> None:
        self._client = client
        self._url = f"{base_url.rstrip('/')}/chat/completions"
        self._key = api_key
        self._own_keys = own_keys or {}
        self._cache = (
            {"X-OpenRouter-Cache": "true", "X-OpenRouter-Cache-TTL": str(cache_seconds)} if cache_seconds else {}
        )

    async def complete(self, prompt: Prompt) -> Completion | Failure:
        """Generate once; see `core.ports.LanguageModel`."""
        own = self._own_keys.get(prompt.workspace_id)
        key, named = (own, OWN_KEY) if own else (self._key, SHARED_KEY)
        if not key:
            reason = f"{SHARED_KEY} is not set; set it in the environment of the Dagster processes."
            return Systemic("no_key", reason, Scope.PROVIDER)
        scope = Scope.WORKSPACE if own else Scope.PROVIDER
        if not (key.isascii() and key.isprintable()):
            return Systemic("bad_key", f"{named} has characters that no key has; copy it anew.", scope)
        answer = await post(
            self._client,
            self._url,
            request_body(prompt),
            {"Authorization": f"Bearer {key}", "X-OpenRouter-Title": "campaign_pipeline", **self._cache},
            prompt.timeout,
        )
        outcome = read_answer(answer)
        return _of_workspace(outcome) if own else outcome


async def check_key(
    client: httpx.AsyncBaseTransport, base_url: str, key: str, named: str, timeout: float
) -> Failure | float | None:
    """Ask whether OpenRouter accepts a key, without a generation. Returns its remaining budget in US dollars.

    None: it has no limit of its own. `named`: the key's name in a sentence.
    """
    if not (key.isascii() and key.isprintable()):
        return Systemic("bad_key", f"{named} has characters that no key has; copy it anew.", Scope.PROVIDER)
    answer = await get(client, f"{base_url.rstrip('/')}/key", {"Authorization": f"Bearer {key}"}, timeout)
    if isinstance(answer, Answer) and answer.status == 200:
        left = at(answer.body, "data", "limit_remaining")
        return float(left) if isinstance(left, int | float) else None
    outcome = read_answer(answer)
    assert not isinstance(outcome, Completion)  # a completion comes with 200 only
    return outcome


def request_body(prompt: Prompt) -> dict[str, Any]:
    """Return the request, always in the same order: the same prompt gives the same bytes."""
    # With `models` OpenRouter tries the next model if one cannot answer; its answer names the one that ran.
    asked = {"models": [prompt.model, *prompt.fallback_models]} if prompt.fallback_models else {"model": prompt.model}
    body: dict[str, Any] = {
        **asked,
        "messages": [
            {"role": "system", "content": _system_content(prompt)},
            {"role": "user", "content": prompt.user},
        ],
        "max_tokens": prompt.max_tokens,
        "temperature": prompt.temperature,
    }
    if prompt.reasoning is not None:
        limits = {"effort": prompt.reasoning.effort, "max_tokens": prompt.reasoning.max_tokens}
        # The reasoning text is not used, and would only make the answer longer.
        body["reasoning"] = {name: value for name, value in limits.items() if value is not None} | {"exclude": True}
    if prompt.json_schema is not None:
        body["response_format"] = {"type": "json_schema", "json_schema": dict(prompt.json_schema)}
        body["provider"] = {"require_parameters": True}
    if prompt.reference:
        body["user"] = prompt.reference
    if prompt.session:
        # Otherwise each request may go to any endpoint of the model, most of which have not cached this campaign.
        body["session_id"] = prompt.session
    return body


CACHE_PRICES: tuple[tuple[str, float, float], ...] = (
    # Prefix of a model's name -> price of a token read from the cache, and of one written to it, as shares of an input
    # token's price. See OpenRouter's guide on prompt caching. If a family has several prices, it is the highest, so
    # that savings are never overstated.
    ("anthropic/", 0.1, 1.25),
    ("qwen/", 0.1, 1.25),
    ("deepseek/", 0.1, 1.0),
    ("z-ai/", 0.2, 1.0),
    ("google/", 0.25, 1.0),
    ("moonshotai/", 0.25, 1.0),
    ("x-ai/", 0.25, 1.0),
    ("openai/", 0.5, 1.0),
)

CACHED_ON_REQUEST = ("anthropic/", "~anthropic/", "qwen/")
"""Models whose providers cache the beginning of a prompt only if it is marked; others do so automatically."""

SHORTEST_CACHED = 2_048
"""Characters from which a system prompt is marked: no provider caches fewer than 512 tokens."""


def _system_content(prompt: Prompt) -> Any:
    """Return the system prompt, marked for caching if needed: all leads of a campaign share it."""
    models = (prompt.model, *prompt.fallback_models)
    if len(prompt.system) < SHORTEST_CACHED or not any(model.startswith(CACHED_ON_REQUEST) for model in models):
        return prompt.system
    return [{"type": "text", "text": prompt.system, "cache_control": {"type": "ephemeral"}}]


def read_answer(answer: Answer | NoAnswer) -> Completion | Failure:
    """Classify an answer. A generation whose answer is lost may be repeated: no lead received anything."""
    if isinstance(answer, NoAnswer):
        if answer.refused:
            return Systemic("address_refused", answer.reason, Scope.PROVIDER)
        return Transient("no_answer", answer.reason)
    error = at(answer.body, "error") or at(answer.body, "choices", 0, "error")
    if answer.status != httpx.codes.OK or error or at(answer.body, "choices", 0, "finish_reason") == "error":
        return _failure(answer, error if isinstance(error, dict) else {})
    return _completion(answer)


def _of_workspace(outcome: Completion | Failure) -> Completion | Failure:
    """Limit an account's failure to the workspace that owns the account."""
    if not isinstance(outcome, Systemic | Throttled) or outcome.scope is not Scope.PROVIDER:
        return outcome
    reason = outcome.reason.replace(f"the key ({SHARED_KEY})", f"the{OWN_KEY[3:]}")
    return replace(outcome, scope=Scope.WORKSPACE, reason=reason)


def _failure(answer: Answer, error: dict[str, Any]) -> Failure:
    status = _inner_status(error.get("code")) if answer.status == httpx.codes.OK else answer.status
    error_type = at(error, "metadata", "error_type")
    retry_after, came = answer.retry_after, kept(answer)
    hint = at(error, "availability", "retry_after")
    if retry_after is None and isinstance(hint, int | float):
        retry_after = float(hint)

    if at(error, "availability", "code") == "model_not_found":
        return Systemic("model_not_found", _sentence("model_not_found", status), Scope.MODEL, retry_after, answer=came)
    if status == httpx.codes.FORBIDDEN and _moderated(error):
        return Permanent("moderated", _sentence("moderated", status), came)
    kind, scope, our_code = _classify(status, error_type, error)
    reason = _sentence(our_code, status)
    make: dict[str, Callable[[], Failure]] = {
        PERMANENT: lambda: Permanent(our_code, reason, came),
        TRANSIENT: lambda: Transient(our_code, reason, retry_after, answer=came),
        THROTTLED: lambda: Throttled(our_code, reason, scope, retry_after, came),
        "systemic": lambda: Systemic(our_code, reason, scope, retry_after, answer=came),
    }
    return make[kind]()


def _classify(status: int, error_type: Any, error: dict[str, Any]) -> tuple[str, Scope, str]:
    """Return class, scope and our code of an error."""
    if isinstance(error_type, str) and error_type in ERROR_TYPES:
        return (*ERROR_TYPES[error_type], error_type)
    if at(error, "availability", "retryable") is True and STATUSES.get(status, ("",))[0] != THROTTLED:
        return TRANSIENT, Scope.MESSAGE, "temporarily_unavailable"
    if httpx.codes.is_redirect(status):
        return "systemic", Scope.PROVIDER, "redirected"
    # Anything else: a server error (5xx) or an unexpected answer; neither reached a lead.
    code = UNRECOGNISED if httpx.codes.is_client_error(status) else f"http_{status}"
    return STATUSES.get(status, (TRANSIENT, Scope.MESSAGE, code))


def _inner_status(code: Any) -> int:
    """Return the status inside a 200: a number, or its text."""
    if isinstance(code, str) and code.isascii() and code.isdigit():
        code = int(code[:6])
    return code if isinstance(code, int) and not isinstance(code, bool) else httpx.codes.OK


def _moderated(error: dict[str, Any]) -> bool:
    """Return whether a guardrail or moderation refused this prompt, which does not concern the account."""
    metadata = error.get("metadata")
    return isinstance(metadata, dict) and any(key in metadata for key in ("reasons", "patterns", "flagged_input"))


def _sentence(code: str, status: int) -> str:
    """Return our own sentence: OpenRouter's may repeat the prompt, and with it the lead's data."""
    return SENTENCES.get(code, f"OpenRouter answered {status} ({code}).")


def _completion(answer: Answer) -> Completion | Failure:
    choice = at(answer.body, "choices", 0)
    if not isinstance(choice, dict):
        return Transient("no_choice", "OpenRouter answered without a text (no choices, or no JSON).")
    content = at(choice, "message", "content")
    text = content if isinstance(content, str) else ""
    usage, model = at(answer.body, "usage"), str(at(answer.body, "model") or "")
    return Completion(
        text=text,
        model=model,
        prompt_tokens=_count(at(usage, "prompt_tokens")),
        completion_tokens=_count(at(usage, "completion_tokens")),
        cost=_cost(usage),
        generation_id=str(at(answer.body, "id") or "") or None,
        reasoning_tokens=_count(at(usage, "completion_tokens_details", "reasoning_tokens")),
        cached_tokens=_count(at(usage, "prompt_tokens_details", "cached_tokens")),
        cache_write_tokens=_count(at(usage, "prompt_tokens_details", "cache_write_tokens")),
        cache_saved_usd=_cache_saved(model, usage),
        failure=_unusable(choice.get("finish_reason"), text),
    )


def _unusable(finish: Any, text: str) -> Transient | Permanent | None:
    """Return why the text of an answer may not be used, though it may have been charged."""
    if finish == "length":
        return Transient("truncated", "The text did not fit in the tokens allowed.")
    if finish == "content_filter":
        return Permanent("content_filter", "The model's answer was withheld by a content filter.")
    return None if text.strip() else Transient("empty", "The model answered without a text.")


_MOST_TOKENS = 2**31 - 1
_HIGHEST_COST = 1000.0  # US dollars for one text: a higher figure is invalid


def _count(value: Any) -> int:
    return int(value) if isinstance(value, int | float) and 0 <= value <= _MOST_TOKENS else 0


def _cost(usage: Any) -> float | None:
    """Return the charge in US dollars. With one's own key at the model's maker, it is the sum of both fees."""
    cost = at(usage, "cost")
    if not isinstance(cost, int | float):
        return None
    upstream = at(usage, "cost_details", "upstream_inference_cost") if at(usage, "is_byok") is True else 0.0
    total = float(cost) + (float(upstream) if isinstance(upstream, int | float) else 0.0)
    return total if 0 <= total <= _HIGHEST_COST else None


def _cache_saved(model: str, usage: Any) -> float | None:
    """Return the prompt's cost without a cache minus its actual cost, in US dollars; None if unknown.

    OpenRouter reports tokens and charges, from which the price of an input token follows.
    """
    details = at(usage, "prompt_tokens_details")
    cached, written = _count(at(details, "cached_tokens")), _count(at(details, "cache_write_tokens"))
    if not (cached or written):
        return None
    prices = next((prices for name, *prices in CACHE_PRICES if model.lstrip("~").startswith(name)), None)
    own_key = at(usage, "is_byok") is True
    charged = at(usage, "cost_details", "upstream_inference_cost") if own_key else at(usage, "cost")
    completion = at(usage, "cost_details", "upstream_inference_completions_cost")
    if prices is None or not (isinstance(charged, int | float) and isinstance(completion, int | float)):
        return None
    prompt = max(_count(at(usage, "prompt_tokens")), cached + written)
    weighted = prompt - cached - written + prices[0] * cached + prices[1] * written
    saved = (charged - completion) * (prompt / weighted - 1)
    return saved if abs(saved) <= _HIGHEST_COST else None
