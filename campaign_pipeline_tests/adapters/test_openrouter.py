"""OpenRouter: every answer of its contract, over real HTTP, with its expected class."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson
import pytest

from campaign_pipeline.adapters.http import http_client
from campaign_pipeline.adapters.openrouter import ERROR_TYPES, STATUSES, OpenRouter
from campaign_pipeline.core.ports import (
    Completion,
    Failure,
    Permanent,
    Prompt,
    Reasoning,
    Scope,
    Systemic,
    Throttled,
    Transient,
)
from campaign_pipeline.sandbox import FAULTS, Behaviour, Fault, Kind, Sandbox
from campaign_pipeline_tests.adapters.wire import (
    Playback,
    Serve,
    differences,
    playback,
    played,
    read_request,
    response,
    samples,
    serving,
)

KEY = "sk-or-v1-0123456789abcdef"
PROMPT = Prompt("openai/gpt-4o-mini", "Você vende café.", "Nome: Ana Souza", reference="m-1")
SAMPLES = samples("openrouter.json")


def judged(outcome: Completion | Failure) -> Completion | Failure:
    """Return the text of an answer, or why it may not be used."""
    return outcome.failure or outcome if isinstance(outcome, Completion) else outcome


def ask(serve: Serve, prompt: Prompt = PROMPT, key: str | None = KEY) -> Completion | Failure:
    """Ask a server once."""

    async def run() -> Completion | Failure:
        async with serving(serve) as place, http_client(connections=2) as client:
            return await OpenRouter(client, f"http://{place}/api/v1/", key).complete(prompt)

    return asyncio.run(run())


@pytest.mark.parametrize("sample", SAMPLES, ids=[sample["name"] for sample in SAMPLES])
def test_each_answer_has_its_class(sample: Mapping[str, Any]) -> None:
    outcome = judged(ask(played(sample)))
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
    answer, _ = ask_sandbox(Behaviour(faults=(Fault(Kind.GENERATION, fault),)), prompt)
    outcome = judged(answer)
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
    assert "Unknown key ***" in str(outcome.answer)


def test_a_generation_whose_answer_is_lost_may_be_repeated() -> None:
    async def hang_up(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read(100)

    outcome = ask(hang_up)
    assert isinstance(outcome, Transient)
    assert outcome.code == "no_answer"


# Account, model, cache ------------------------------------------------------------------------------------------------


def bodies_and_headers(
    prompt: Prompt, *bodies: object, status: str = "200 OK", **options: Any
) -> tuple[list[Completion | Failure], list[bytes]]:
    """Ask once for each body; return the results, and the requests as sent."""
    requests: list[bytes] = []
    answers = iter(bodies)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await read_request(reader))
        writer.write(response(orjson.dumps(next(answers)), status=status))
        await writer.drain()

    async def run() -> list[Completion | Failure]:
        async with serving(serve) as place, http_client(connections=2) as client:
            model = OpenRouter(client, f"http://{place}/api/v1", options.pop("key", KEY), **options)
            return [await model.complete(prompt) for _ in bodies]

    return asyncio.run(run()), requests


WRITTEN = {"model": "a/b", "choices": [{"message": {"content": "Oi, Ana! Tudo bem?"}, "finish_reason": "stop"}]}
REFUSED = {"error": {"code": 401, "message": "User not found.", "metadata": {"error_type": "authentication"}}}


def test_a_workspace_with_a_key_of_its_own_pays_with_it_and_no_other_does() -> None:
    mine, other = replace(PROMPT, workspace_id="w-1"), replace(PROMPT, workspace_id="w-2")
    _, (first,) = bodies_and_headers(mine, WRITTEN, own_keys={"w-1": "sk-or-own-1234567"})
    _, (second,) = bodies_and_headers(other, WRITTEN, own_keys={"w-1": "sk-or-own-1234567"})
    assert b"Bearer sk-or-own-1234567" in first
    assert f"Bearer {KEY}".encode() in second


@pytest.mark.parametrize("own_key", ["sk-or-own-1234567", "sk-ör"])
def test_a_bad_key_of_a_workspace_is_its_own_trouble_and_named(own_key: str) -> None:
    prompt = replace(PROMPT, workspace_id="w-1")
    (outcome,), _ = bodies_and_headers(prompt, REFUSED, status="401 No", own_keys={"w-1": own_key})
    assert isinstance(outcome, Systemic)
    assert outcome.scope is Scope.WORKSPACE
    assert "ai_agents.openrouter_api_key" in outcome.reason
    assert "OPENROUTER_API_KEY" not in outcome.reason
    assert own_key not in outcome.reason


def test_a_workspace_with_a_key_of_its_own_needs_no_shared_one() -> None:
    prompt = replace(PROMPT, workspace_id="w-1")
    (outcome,), _ = bodies_and_headers(prompt, WRITTEN, key=None, own_keys={"w-1": "sk-or-own-1234567"})
    assert isinstance(outcome, Completion)


def test_a_model_of_a_workspaces_own_account_that_is_missing_stays_the_models_trouble() -> None:
    prompt = replace(PROMPT, workspace_id="w-1")
    missing = {"error": {"code": 404, "message": "No endpoints found"}}
    (outcome,), _ = bodies_and_headers(prompt, missing, status="404 No", own_keys={"w-1": "sk-or-own-1234567"})
    assert isinstance(outcome, Systemic)
    assert outcome.scope is Scope.MODEL


def test_openrouter_caches_answers_only_if_requested() -> None:
    _, (without,) = bodies_and_headers(PROMPT, WRITTEN)
    _, (kept,) = bodies_and_headers(PROMPT, WRITTEN, cache_seconds=600)
    assert b"x-openrouter-cache" not in without.lower()
    assert b"x-openrouter-cache: true" in kept.lower()
    assert b"x-openrouter-cache-ttl: 600" in kept.lower()


def test_a_text_cached_by_openrouter_is_free() -> None:
    async def run() -> tuple[Completion | Failure, Completion | Failure, int]:
        async with Sandbox() as sandbox, http_client(connections=2) as client:
            model = OpenRouter(client, sandbox.openrouter_url, KEY, cache_seconds=600)
            first, again = await model.complete(PROMPT), await model.complete(PROMPT)
            return first, again, len(sandbox.record.where(kind="generation", accepted=True))

    first, again, generated = asyncio.run(run())
    assert isinstance(first, Completion)
    assert isinstance(again, Completion)
    assert (again.text, again.cost, generated) == (first.text, 0.0, 1)
    assert first.cost


def test_if_a_model_cannot_answer_the_next_one_does_and_is_named() -> None:
    prompt = replace(PROMPT, fallback_models=("mistral/small", "meta/llama"))
    outcome, _ = ask_sandbox(Behaviour(faults=(Fault(Kind.GENERATION, "model_404"),)), prompt)
    assert isinstance(outcome, Completion)
    assert outcome.model == "mistral/small"


def test_an_only_model_is_asked_for_as_one_and_several_as_a_list_in_their_order() -> None:
    _, (one,) = bodies_and_headers(PROMPT, WRITTEN)
    _, (several,) = bodies_and_headers(replace(PROMPT, fallback_models=("b/c", "d/e")), WRITTEN)
    body = orjson.loads(one.partition(b"\r\n\r\n")[2])
    assert (body["model"], body.get("models")) == (PROMPT.model, None)
    body = orjson.loads(several.partition(b"\r\n\r\n")[2])
    assert (body.get("model"), body["models"]) == (None, [PROMPT.model, "b/c", "d/e"])


# Charges and reasoning ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("finish", "content", "code"),
    [
        ("length", "Oi, An", "truncated"),
        ("length", None, "truncated"),
        ("content_filter", "Oi", "content_filter"),
        ("stop", "", "empty"),
        (None, None, "empty"),
    ],
)
def test_an_answer_that_may_not_be_used_says_what_it_cost(finish: str | None, content: str | None, code: str) -> None:
    usage: dict[str, Any] = {"prompt_tokens": 90, "completion_tokens": 500, "cost": 0.002}
    usage |= {"completion_tokens_details": {"reasoning_tokens": 480}}
    body = {"id": "gen-1", "choices": [{"message": {"content": content}, "finish_reason": finish}], "usage": usage}
    outcome = ask(playback(body))
    assert isinstance(outcome, Completion)
    assert outcome.failure is not None
    assert (outcome.failure.code, outcome.cost, outcome.generation_id) == (code, 0.002, "gen-1")
    assert (outcome.text, outcome.total_tokens, outcome.reasoning_tokens) == (content or "", 590, 480)


@pytest.mark.parametrize(
    ("reasoning", "sent"),
    [
        (None, None),
        (Reasoning(effort="low"), {"effort": "low", "exclude": True}),
        (Reasoning(max_tokens=1024), {"max_tokens": 1024, "exclude": True}),
    ],
)
def test_the_request_limits_a_models_reasoning(reasoning: Reasoning | None, sent: object) -> None:
    assert asked_with(replace(PROMPT, reasoning=reasoning)).get("reasoning") == sent


def test_a_long_system_prompt_is_marked_for_caching_where_its_provider_wants_a_mark() -> None:
    long = replace(PROMPT, model="anthropic/claude-sonnet-4.5", system="Você vende café. " * 300)
    marked = [{"type": "text", "text": long.system, "cache_control": {"type": "ephemeral"}}]
    assert asked_with(long)["messages"][0]["content"] == marked
    assert asked_with(replace(long, system="Curto."))["messages"][0]["content"] == "Curto."
    assert asked_with(replace(long, model="openai/gpt-4o-mini"))["messages"][0]["content"] == long.system


def test_requests_of_a_campaign_go_where_its_prompt_is_cached() -> None:
    assert asked_with(replace(PROMPT, session="campaign-1"))["session_id"] == "campaign-1"
    assert "session_id" not in asked_with(PROMPT)


@pytest.mark.parametrize(("model", "saved"), [("anthropic/claude-sonnet-4.5", 0.0081), ("vendor/model", None)])
def test_savings_of_a_cached_prompt_follow_from_the_charge(model: str, saved: float | None) -> None:
    usage = {
        "prompt_tokens": 3500,
        "completion_tokens": 100,
        "cost": 0.0024 + 0.0015,
        "prompt_tokens_details": {"cached_tokens": 3000, "cache_write_tokens": 0},
        "cost_details": {"upstream_inference_completions_cost": 0.0015},
    }
    body = {"model": model, "choices": [{"message": {"content": "Olá, Ana!"}}], "usage": usage}
    completion = ask(playback(body))
    assert isinstance(completion, Completion)
    assert completion.cached_tokens == 3000
    assert completion.cache_saved_usd == pytest.approx(saved)  # 3,500 tokens at 3 dollars a million, less what was paid


def test_the_second_lead_of_a_campaign_reads_what_the_first_one_wrote() -> None:
    prompt = Prompt("anthropic/claude-sonnet-4.5", "Você vende café. " * 720, "Nome: Ana", session="campaign-1")

    async def run() -> list[Completion | Failure]:
        async with Sandbox() as sandbox, http_client(connections=2) as client:
            model = OpenRouter(client, sandbox.openrouter_url, KEY)
            return [await model.complete(replace(prompt, user=f"Nome: {name}")) for name in ("Ana", "Bia")]

    first, second = asyncio.run(run())
    assert isinstance(first, Completion)
    assert isinstance(second, Completion)
    assert (first.cached_tokens, first.cache_write_tokens) == (0, 3060)
    assert (second.cached_tokens, second.cache_write_tokens) == (3060, 0)
    assert first.cache_saved_usd is not None
    assert second.cache_saved_usd is not None
    assert first.cache_saved_usd < 0 < second.cache_saved_usd
