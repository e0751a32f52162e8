"""OpenRouter: every answer of its contract, over real HTTP, with the class that it must get."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from campaign_pipeline.adapters.http import http_client
from campaign_pipeline.adapters.openrouter import ERROR_TYPES, STATUSES, OpenRouter
from campaign_pipeline.core.ports import Completion, Failure, Permanent, Prompt, Scope, Systemic, Throttled, Transient
from campaign_pipeline.sandbox import FAULTS, Behaviour, Fault, Kind, Sandbox
from campaign_pipeline_tests.adapters.wire import Playback, Serve, differences, playback, played, samples, serving

KEY = "sk-or-v1-0123456789abcdef"
PROMPT = Prompt("openai/gpt-4o-mini", "Você vende café.", "Nome: Ana Souza", reference="m-1")
SAMPLES = samples("openrouter.json")


def ask(serve: Serve, prompt: Prompt = PROMPT, key: str | None = KEY) -> Completion | Failure:
    """Ask a server once."""

    async def run() -> Completion | Failure:
        async with serving(serve) as place, http_client(connections=2) as client:
            return await OpenRouter(client, f"http://{place}/api/v1/", key).complete(prompt)

    return asyncio.run(run())


@pytest.mark.parametrize("sample", SAMPLES, ids=[sample["name"] for sample in SAMPLES])
def test_each_answer_has_its_class(sample: Mapping[str, Any]) -> None:
    outcome = ask(played(sample))
    assert differences(outcome, sample["expect"]) == {}
    reason = getattr(outcome, "reason", "one.")
    assert reason.strip(), "an operator reads a sentence"
    assert sample["expect"].get("reason_lacks", KEY) not in reason


def test_the_samples_cover_every_error_type_and_every_status_of_the_tables() -> None:
    bodies = [sample["body"] for sample in SAMPLES if isinstance(sample.get("body"), dict)]
    metadata = [body["error"].get("metadata") for body in bodies if isinstance(body.get("error"), dict)]
    types = {
        each["error_type"] for each in metadata if isinstance(each, dict) and isinstance(each.get("error_type"), str)
    }
    assert set(ERROR_TYPES) <= types
    assert set(STATUSES) <= {sample["status"] for sample in SAMPLES}


# Against the sandbox --------------------------------------------------------------------------------------------------

FROM_SANDBOX: Mapping[str, tuple[type[object], str, Scope | None]] = {
    "unauthorized_401": (Systemic, "authentication", Scope.PROVIDER),
    "no_credit_402": (Systemic, "payment_required", Scope.PROVIDER),
    "moderation_403": (Permanent, "moderated", None),
    "permission_403": (Systemic, "permission_denied", Scope.PROVIDER),
    "model_404": (Systemic, "model_unavailable", Scope.MODEL),
    "model_not_found_400": (Systemic, "model_not_found", Scope.MODEL),
    "context_length_400": (Permanent, "context_length_exceeded", None),
    "rate_limit_429": (Throttled, "rate_limit_exceeded", Scope.MODEL),
    "server_error_500": (Transient, "server", None),
    "bad_gateway_502": (Transient, "provider_unavailable", None),
    "unavailable_503": (Transient, "provider_overloaded", None),
    "error_in_200": (Transient, "provider_unavailable", None),
    "choice_error_in_200": (Transient, "provider_unavailable", None),
    "length": (Transient, "truncated", None),
    "content_filter": (Permanent, "content_filter", None),
    "empty_content": (Transient, "empty", None),
    "empty_choices": (Transient, "no_choice", None),
    "html_200": (Transient, "no_choice", None),
    "proxy_html_502": (Transient, "http_502", None),
    "malformed_json": (Transient, "no_choice", None),
    "too_short": (Completion, "", None),
    "placeholder": (Completion, "", None),
    "quoted": (Completion, "", None),
    "fenced": (Completion, "", None),
    "hang": (Transient, "no_answer", None),
    "cut_before": (Transient, "no_answer", None),
    "cut_after": (Transient, "no_answer", None),
}


def ask_sandbox(behaviour: Behaviour | None = None, prompt: Prompt = PROMPT) -> tuple[Completion | Failure, Sandbox]:
    async def run() -> tuple[Completion | Failure, Sandbox]:
        async with Sandbox(behaviour) as sandbox, http_client(connections=2) as client:
            return await OpenRouter(client, sandbox.openrouter_url, KEY).complete(prompt), sandbox

    return asyncio.run(run())


def test_every_fault_of_the_sandbox_is_known_here() -> None:
    assert set(FROM_SANDBOX) == set(FAULTS[Kind.GENERATION])


@pytest.mark.parametrize("fault", FROM_SANDBOX)
def test_each_fault_has_its_class(fault: str) -> None:
    prompt = Prompt("vendor/model", "s", "Nome: Ana Souza", timeout=0.3 if fault == "hang" else 10.0)
    outcome, _ = ask_sandbox(Behaviour(faults=(Fault(Kind.GENERATION, fault),)), prompt)
    kind, code, scope = FROM_SANDBOX[fault]
    assert isinstance(outcome, kind)
    assert getattr(outcome, "code", "") == code
    assert getattr(outcome, "scope", None) == scope


def test_a_completion_has_text_model_tokens_and_the_cost_that_was_charged() -> None:
    outcome, sandbox = ask_sandbox()
    assert isinstance(outcome, Completion)
    (entry,) = sandbox.record.where(kind="generation")
    assert outcome.text == entry["text"]
    assert outcome.cost == pytest.approx(entry["cost"])
    assert outcome.generation_id == entry["provider_message_id"]
    assert outcome.total_tokens == outcome.prompt_tokens + outcome.completion_tokens > 0


@pytest.mark.parametrize(
    ("fault", "seconds"), [("rate_limit_429", 7.0), ("no_credit_402", 90.0), ("unavailable_503", 4.0)]
)
def test_retry_after_is_handed_on(fault: str, seconds: float) -> None:
    outcome, _ = ask_sandbox(Behaviour(faults=(Fault(Kind.GENERATION, fault, seconds=seconds),)))
    assert isinstance(outcome, Throttled | Systemic | Transient)
    assert outcome.retry_after == seconds


# The request ----------------------------------------------------------------------------------------------------------


def asked_with(prompt: Prompt) -> dict[str, Any]:
    server = playback({})
    ask(server, prompt)
    ((line, body),) = server.requests
    assert line == "POST /api/v1/chat/completions"
    assert isinstance(body, dict)
    return body


def test_the_request_bears_model_prompts_and_limits_and_no_stream() -> None:
    assert asked_with(PROMPT) == {
        "model": "openai/gpt-4o-mini",
        "messages": [{"role": "system", "content": "Você vende café."}, {"role": "user", "content": "Nome: Ana Souza"}],
        "max_tokens": 500,
        "temperature": 0.7,
        "user": "m-1",
    }


def test_structured_output_goes_only_to_endpoints_that_take_it() -> None:
    body = asked_with(Prompt("m", "s", "u", json_schema={"name": "parts", "schema": {}}))
    assert body["response_format"] == {"type": "json_schema", "json_schema": {"name": "parts", "schema": {}}}
    assert body["provider"] == {"require_parameters": True}


def test_two_leads_with_the_same_prompt_are_told_apart() -> None:
    assert asked_with(PROMPT) != asked_with(Prompt(PROMPT.model, PROMPT.system, PROMPT.user, reference="m-2"))


@pytest.mark.parametrize("key", [None, "", "chave-ção", "sk-or\nline"])
def test_without_a_usable_key_nothing_is_asked_and_the_variable_is_named(key: str | None) -> None:
    server = Playback(iter([]))
    outcome = ask(server, key=key)
    assert server.requests == []
    assert isinstance(outcome, Systemic)
    assert outcome.scope is Scope.PROVIDER
    assert "OPENROUTER_API_KEY" in outcome.reason


def test_a_key_that_the_answer_quotes_is_in_no_reason() -> None:
    outcome = ask(playback({"error": {"code": 401, "message": f"Unknown key {KEY}"}}, status="401 Unauthorized"))
    assert isinstance(outcome, Systemic)
    assert KEY not in str(outcome)
    assert "Unknown key ***" in outcome.reason


def test_a_generation_whose_answer_is_lost_may_be_asked_for_again() -> None:
    async def hang_up(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read(100)

    outcome = ask(hang_up)
    assert isinstance(outcome, Transient)
    assert outcome.code == "no_answer"
