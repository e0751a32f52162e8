"""Mock of OpenRouter: chat completions and the state of a key."""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any
from uuid import uuid4

import orjson
from aiohttp import web

from campaign_pipeline.sandbox.behaviour import Fault, Kind, Subject
from campaign_pipeline.sandbox.prompt_cache import CHARS_PER_TOKEN, PromptCache, PromptUse
from campaign_pipeline.sandbox.provider import (
    ConnectionCut,
    Exchange,
    Provider,
    Stage,
    answer,
    broken_off,
)
from campaign_pipeline.sandbox.writer import first_name_in, split_text, text_to_split, write_message

_PROMPT_PRICE = 0.15e-6  # US dollars a token
_COMPLETION_PRICE = 0.6e-6
_CREDIT_LIMIT = 100.0  # US dollars, of every key

_ERRORS: Mapping[str, tuple[int, str, dict[str, Any]]] = {
    "invalid_400": (400, "Invalid request", {"error_type": "invalid_request"}),
    "no_auth_401": (401, "No auth credentials found", {"error_type": "authentication"}),
    "unauthorized_401": (401, "User not found.", {"error_type": "authentication"}),
    "no_credit_402": (
        402,
        "Insufficient credits. Add more to continue.",
        {"error_type": "payment_required", "limit_source": "account_credits"},
    ),
    "moderation_403": (
        403,
        "The input was flagged by moderation.",
        {"error_type": "content_policy_violation", "reasons": ["harassment"], "flagged_input": "..."},
    ),
    "permission_403": (403, "This key may not use this endpoint.", {"error_type": "permission_denied"}),
    "model_404": (404, "No endpoints found for this model.", {"error_type": "not_found"}),
    "instance_404": (404, "Not found", {"error_type": "not_found"}),
    "model_not_found_400": (400, "The model is not a valid model ID", {"error_type": "invalid_request"}),
    "context_length_400": (
        400,
        "This endpoint's maximum context length is exceeded.",
        {"error_type": "context_length_exceeded"},
    ),
    "rate_limit_429": (429, "Rate limit exceeded", {"error_type": "rate_limit_exceeded"}),
    "server_error_500": (500, "Internal Server Error", {"error_type": "server"}),
    "bad_gateway_502": (
        502,
        "Provider returned error",
        {"error_type": "provider_unavailable", "provider_name": "Sandbox"},
    ),
    "unavailable_503": (503, "Provider is overloaded", {"error_type": "provider_overloaded"}),
}
"""Status, message and metadata of each error answer."""

_TEXT_SPOILERS: Mapping[str, str] = {
    "too_short": "Oi!",
    "placeholder": "Olá {{nome}}! Aqui é o time comercial. Podemos conversar esta semana?",
    "quoted": '"%s"',
    "fenced": "```\n%s\n```",
    "empty_content": "",
    "content_filter": "",
}
"""How a fault changes a good text."""

_FINISH_REASONS = {"length": "length", "content_filter": "content_filter"}
_FREE = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0, "cost": 0.0, "is_byok": False}
_UNCHARGED = {"empty_content", "empty_choices", "content_filter"}  # an empty answer costs nothing
_UNGENERATED = {"hang", "cut_before", "html_200", "proxy_html_502", "error_in_200", "choice_error_in_200"}

_FALLS_BACK = {"model_404", "model_not_found_400", "rate_limit_429", "bad_gateway_502", "unavailable_503"}
"""Errors after which the next of `models` is tried."""

_ASKS_FOR_EMAIL = re.compile(r"\bjson\b.*\bsubject\b.*\bbody\b", re.IGNORECASE | re.DOTALL)
_ASKS_FOR_JSON = re.compile(r"\bjson\b.*\bparts\b|\bparts\b.*\bjson\b", re.IGNORECASE | re.DOTALL)
_AT_MOST = re.compile(r"(?:at[ée]|m[áa]ximo(?: de)?|at most|up to)\s+(\d+)\s+(?:partes|mensagens|parts)", re.IGNORECASE)
_USUAL_PARTS = 3


_NOT_LOOKED_UP = PromptUse(1)


@dataclass(frozen=True)
class _Prompt:
    """The parts of a request that the mock uses."""

    model: str
    all_text: str
    last_user_text: str
    digest: bytes
    most_parts: int | None  # None: a plain text is wanted
    is_email: bool = False  # JSON with subject and body is wanted
    fallbacks: tuple[str, ...] = ()  # models that answer if this one cannot
    keys: tuple[str, ...] = ()  # JSON with a short text for each of these is wanted
    use: PromptUse = _NOT_LOOKED_UP

    def write(self) -> str:
        """Write the requested text: a first contact, or JSON with the parts of a text."""
        name = first_name_in(self.last_user_text) or first_name_in(self.all_text)
        if self.is_email:
            subject = f"{name}, uma ideia rápida" if name else "Uma ideia rápida"
            return orjson.dumps({"subject": subject, "body": write_message(name, self.digest)}).decode()
        if self.keys:
            texts = [name or "tudo bem", *write_message(name, self.digest).splitlines()]
            values = [texts[min(place, len(texts) - 1)] or texts[0] for place in range(len(self.keys))]
            return orjson.dumps(dict(zip(self.keys, values, strict=True))).decode()
        if self.most_parts is None:
            return write_message(name, self.digest)
        text = text_to_split(self.last_user_text)
        if text is None and first_name_in(self.last_user_text) is not None:
            text = write_message(name, self.digest)  # a lead in place of a text: write and split in one call
        if text is None:
            text = self.last_user_text
        return orjson.dumps({"parts": split_text(text, self.most_parts)}).decode()


class OpenRouter(Provider):
    """`POST /chat/completions` and `GET /key`, under OpenRouter's path."""

    name = "openrouter"
    prefix = "/openrouter/api/v1"
    kinds = frozenset({Kind.GENERATION, Kind.STATUS})

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self._prompts = PromptCache()
        self._cache: dict[tuple[str, bytes] | None, dict[str, Any]] = {}  # never under None

    def routes(self) -> Sequence[web.RouteDef]:
        """List the endpoints."""
        return [
            self.route("POST", "/chat/completions", Kind.GENERATION, self.complete),
            self.route("GET", "/key", Kind.STATUS, self.describe_key),
        ]

    def spoiled(self, fault: str, subject: Subject) -> web.Response:
        """Answer with an error."""
        if fault == "malformed_json":
            return broken_off(answer(200, {"data": {"label": "sandbox", "limit": _CREDIT_LIMIT}}))
        return _refuse(fault)

    async def complete(self, exchange: Exchange) -> web.Response:
        """Write a text, or apply the fault."""
        if not _is_authorized(exchange):
            return _refuse("no_auth_401")
        body = exchange.json()
        if body is None or body.get("stream"):
            return _refuse("invalid_400", "The sandbox takes a JSON object, and does not stream.")
        prompt = _read(body)
        if isinstance(prompt, str):
            return _refuse("invalid_400", prompt)
        key = _key_of(body)
        exchange.entry["prompt"] = key
        cached = self._cache.get(_cache_key(exchange))
        if cached is not None:
            return answer(200, cached, {"X-OpenRouter-Cache-Status": "HIT"})
        subject = Subject(key, text=prompt.all_text)
        account = exchange.request.headers.get("Authorization", "")
        prompt = replace(prompt, use=self._prompts.look(account, prompt.model, body))
        fault = await self.meet(exchange, Kind.GENERATION, subject)
        if fault is not None and fault.name in _FALLS_BACK and prompt.fallbacks:
            prompt, fault = replace(prompt, model=prompt.fallbacks[0], fallbacks=prompt.fallbacks[1:]), None
        if fault is not None and (fault.name in _ERRORS or fault.name in _UNGENERATED):
            return await self._refuse_for(exchange, fault, prompt, subject)
        return self._answer_generated(exchange, fault.name if fault is not None else "", prompt)

    async def describe_key(self, exchange: Exchange) -> web.Response:
        """Return the key's remaining credit; all keys share one account."""
        if not _is_authorized(exchange):
            return _refuse("no_auth_401")
        subject = Subject("key")
        fault = await self.meet(exchange, Kind.STATUS, subject)
        if fault is not None:
            return await self.spoil(exchange, fault, subject)
        usage = sum(entry["cost"] or 0.0 for entry in self.stage.record.where(kind=Kind.GENERATION.value))
        data = {
            "label": "sk-or-v1-sandbox",
            "limit": _CREDIT_LIMIT,
            "limit_remaining": max(0.0, _CREDIT_LIMIT - usage),
            "limit_reset": None,
            "usage": usage,
            "usage_daily": usage,
            "usage_weekly": usage,
            "usage_monthly": usage,
            "is_free_tier": False,
            "is_provisioning_key": False,
            "rate_limit": {"requests": -1, "interval": "10s", "note": "This field is deprecated."},
        }
        return answer(200, {"data": data})

    async def _refuse_for(self, exchange: Exchange, fault: Fault, prompt: _Prompt, subject: Subject) -> web.Response:
        """Answer without having generated anything."""
        if fault.name in _ERRORS:
            return _refuse(fault.name, retry_after=fault.seconds, model=prompt.model)
        generation_id = _new_generation_id()
        error = {"code": 502, "message": "Provider returned error", "metadata": {"error_type": "provider_unavailable"}}
        if fault.name == "error_in_200":
            return answer(200, {"id": generation_id, "error": error}, {"X-Generation-Id": generation_id})
        if fault.name == "choice_error_in_200":
            completion = _completion(generation_id, prompt, "", "error", 0)
            completion["choices"][0]["error"] = error
            return answer(200, completion, {"X-Generation-Id": generation_id})
        return await self.spoil(exchange, fault, subject)

    def _answer_generated(self, exchange: Exchange, fault: str, prompt: _Prompt) -> web.Response:
        """Write the text, apply the fault, and charge for it."""
        text = prompt.write()
        if fault == "length":
            text = text[: max(1, len(text) // 2)]
        spoiler = _TEXT_SPOILERS.get(fault)
        if spoiler is not None:
            text = spoiler % text if "%s" in spoiler else spoiler
        generation_id = _new_generation_id()
        completion_tokens = 0 if fault in _UNCHARGED else _tokens(text)
        completion = _completion(generation_id, prompt, text, _FINISH_REASONS.get(fault, "stop"), completion_tokens)
        if fault in _UNCHARGED:
            completion["usage"]["cost"] = 0.0
        else:
            exchange.entry["text"] = text
            exchange.entry["cost"] = completion["usage"]["cost"]
            exchange.entry["prompt_tokens"] = prompt.use.tokens
            exchange.entry["billed_prompt_tokens"] = prompt.use.billed
            self._prompts.keep(prompt.use)
            self.stage.record.accept(exchange.entry, generation_id, time.time(), None)
            if (cache_key := _cache_key(exchange)) is not None:
                self._cache[cache_key] = {**completion, "usage": _FREE}
        if fault == "empty_choices":
            completion["choices"] = []
        if fault == "cut_after":
            raise ConnectionCut
        response = answer(200, completion, {"X-Generation-Id": generation_id})
        return broken_off(response) if fault == "malformed_json" else response


def _is_authorized(exchange: Exchange) -> bool:
    scheme, _, key = exchange.request.headers.get("Authorization", "").partition(" ")
    return scheme.lower() == "bearer" and bool(key.strip())


def _cache_key(exchange: Exchange) -> tuple[str, bytes] | None:
    """Return the cache key of a request: API key and raw body; None if caching was not requested."""
    headers = exchange.request.headers
    asked = headers.get("X-OpenRouter-Cache", "").lower() == "true"
    return (headers["Authorization"], exchange.body) if asked else None


def _new_generation_id() -> str:
    return f"gen-{int(time.time())}-{uuid4().hex[:20]}"


def _tokens(text: str) -> int:
    return max(1, -(-len(text) // CHARS_PER_TOKEN))


def _key_of(body: Mapping[str, Any]) -> str:
    """Identify a request: the same for a retry, different for two leads with equal prompts."""
    key = orjson.dumps([body.get("messages"), body.get("user"), body.get("metadata")])
    return blake2b(key, digest_size=16).hexdigest()


def _read(body: Mapping[str, Any]) -> _Prompt | str:
    """Parse a request; return a sentence if it is invalid."""
    models = body.get("models")
    model = body.get("model") or (models[0] if isinstance(models, list) and models else None)
    if not isinstance(model, str):
        return "No models provided"
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(each, dict) for each in messages):
        return 'Input required: specify "messages"'
    texts = [(each.get("role"), _content(each.get("content"))) for each in messages]
    all_text = "\n".join(text for _, text in texts)
    last_user_text = next((text for role, text in reversed(texts) if role == "user"), "")
    digest = blake2b(orjson.dumps(messages), digest_size=8).digest()
    names_json = "json" in all_text.lower()  # before the patterns, which took a third of the sandbox's time
    is_email = names_json and _ASKS_FOR_EMAIL.search(all_text) is not None
    most_parts = None if is_email else _most_parts(body.get("response_format"), all_text, names_json)
    fallbacks = tuple(each for each in models[1:] if isinstance(each, str)) if isinstance(models, list) else ()
    keys = () if is_email else _wanted_keys(body.get("response_format"))
    return _Prompt(model, all_text, last_user_text, digest, most_parts, is_email, fallbacks, keys)


def _content(content: object) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(str(piece.get("text", "")) for piece in content if isinstance(piece, dict))
    return ""


def _wanted_keys(response_format: object) -> tuple[str, ...]:
    """Return the keys of the requested object, if all of them are strings."""
    try:
        properties = response_format["json_schema"]["schema"]["properties"]  # type: ignore[index]
        return tuple(properties) if all(each.get("type") == "string" for each in properties.values()) else ()
    except (KeyError, TypeError, AttributeError):
        return ()


def _most_parts(response_format: object, text: str, names_json: bool) -> int | None:
    """Return the most parts of a text; None if no JSON was requested."""
    if isinstance(response_format, dict) and response_format.get("type") in {"json_schema", "json_object"}:
        try:
            limit = response_format["json_schema"]["schema"]["properties"]["parts"]["maxItems"]
        except (KeyError, TypeError):
            limit = None
        return limit if isinstance(limit, int) and limit > 0 else _most_asked(text)
    return _most_asked(text) if names_json and _ASKS_FOR_JSON.search(text) is not None else None


def _most_asked(text: str) -> int:
    asked = _AT_MOST.search(text)
    return max(1, int(asked[1])) if asked is not None else _USUAL_PARTS


def _completion(
    generation_id: str, prompt: _Prompt, text: str, finish_reason: str, completion_tokens: int
) -> dict[str, Any]:
    prompt_tokens = prompt.use.tokens
    prompt_cost = prompt.use.billed * _PROMPT_PRICE
    completion_cost = completion_tokens * _COMPLETION_PRICE
    return {
        "id": generation_id,
        "provider": "Sandbox",
        "model": prompt.model,
        "object": "chat.completion",
        "created": int(time.time()),
        "choices": [
            {
                "logprobs": None,
                "finish_reason": finish_reason,
                "native_finish_reason": finish_reason,
                "index": 0,
                "message": {"role": "assistant", "content": text, "refusal": None, "reasoning": None},
            }
        ],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "cost": prompt_cost + completion_cost,
            "is_byok": False,
            "prompt_tokens_details": {"cached_tokens": prompt.use.cached, "cache_write_tokens": prompt.use.written},
            "cost_details": {
                "upstream_inference_cost": None,
                "upstream_inference_prompt_cost": prompt_cost,
                "upstream_inference_completions_cost": completion_cost,
            },
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
    }


def _refuse(
    error: str, message: str | None = None, *, retry_after: float | None = None, model: str = ""
) -> web.Response:
    status, usual_message, metadata = _ERRORS[error]
    content: dict[str, Any] = {"code": status, "message": message or usual_message, "metadata": metadata}
    headers = {"X-Generation-Id": _new_generation_id()}
    if error == "model_not_found_400":
        content["availability"] = {
            "code": "model_not_found",
            "retryable": False,
            "retry_after": None,
            "requested_models": [model],
            "fallback_models": [],
        }
    if status == 429:
        retry_after = 1.0 if retry_after is None else retry_after
        reset = str(int((time.time() + retry_after) * 1000))
        headers |= {"X-RateLimit-Limit": "20", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": reset}
    if retry_after is not None:
        headers["Retry-After"] = f"{retry_after:g}"
    return answer(status, {"error": content, "user_id": None}, headers)
