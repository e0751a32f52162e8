from collections.abc import Callable
from typing import Any

import aiohttp
import orjson
import pytest

from campaign_pipeline.sandbox.behaviour import FAULTS, Kind
from campaign_pipeline_tests.sandbox.conversation import Client, converse, with_faults

LONG = "Oi, Ana! Tudo bem?\n\nTemos uma proposta para a sua loja. Ela cabe no seu bolso.\n\nPodemos conversar?"


def content_of(answer: Any) -> str:
    content: str = answer.json["choices"][0]["message"]["content"]
    return content


def test_a_completion_has_the_shape_of_the_real_one_and_is_charged() -> None:
    async def talk(client: Client) -> None:
        answer = await client.generate()
        body = answer.json
        assert answer.status == 200
        assert body["id"].startswith("gen-")
        assert answer.headers["X-Generation-Id"] == body["id"]
        assert body["model"] == "vendor/model"
        assert body["choices"][0]["finish_reason"] == "stop"
        usage = body["usage"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        assert usage["cost"] > 0
        (entry,) = client.sandbox.record.entries
        assert entry["accepted"]
        assert (entry["provider_message_id"], entry["cost"], entry["text"], entry["answered"]) == (
            body["id"],
            usage["cost"],
            content_of(answer),
            200,
        )

    converse(talk)


def test_the_same_prompt_gives_the_same_text_with_the_name_of_the_lead() -> None:
    async def talk(client: Client) -> None:
        first, again, other = [
            content_of(await client.generate(prompt)) for prompt in ("Nome: Ana\na", "Nome: Ana\na", "Nome: Bia\nb")
        ]
        assert first == again
        assert "Ana" in first
        assert "Bia" in other
        assert len(client.sandbox.record.summary()["generated_twice"]) == 1

    converse(talk)


def test_equal_prompts_of_two_users_are_two_generations() -> None:
    async def talk(client: Client) -> None:
        await client.generate(user="Nome: Ana")
        body = {"model": "m", "messages": [{"role": "user", "content": "Nome: Ana"}], "user": "message-2"}
        url = f"{client.sandbox.openrouter_url}/chat/completions"
        await client.call("POST", url, body, {"Authorization": "Bearer k"})
        assert client.sandbox.record.summary()["generated_twice"] == []

    converse(talk)


@pytest.mark.parametrize(
    ("user", "fields"),
    [
        (LONG, {"response_format": {"type": "json_schema", "json_schema": {"name": "p", "schema": {}}}}),
        (f'Responda em JSON: {{"parts": [...]}}\n<mensagem>\n{LONG}\n</mensagem>', {}),
    ],
)
def test_a_text_is_split_into_json_parts_where_json_is_asked_for(user: str, fields: dict[str, Any]) -> None:
    async def talk(client: Client) -> None:
        parts = orjson.loads(content_of(await client.generate(user, **fields)))["parts"]
        assert len(parts) >= 2
        assert "".join("".join(parts).split()) == "".join(LONG.split())

    converse(talk)


def test_the_schema_limits_the_number_of_parts() -> None:
    schema = {"properties": {"parts": {"type": "array", "maxItems": 2}}}

    async def talk(client: Client) -> None:
        format_ = {"type": "json_schema", "json_schema": {"name": "p", "schema": schema}}
        assert len(orjson.loads(content_of(await client.generate(LONG, response_format=format_)))["parts"]) == 2

    converse(talk)


def test_one_call_can_write_and_split() -> None:
    async def talk(client: Client) -> None:
        format_ = {"type": "json_schema", "json_schema": {"name": "p", "schema": {}}}
        parts = orjson.loads(content_of(await client.generate("Nome: Ana Souza", response_format=format_)))["parts"]
        assert "Ana" in parts[0]
        assert 80 <= len("".join(parts)) <= 400

    converse(talk)


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer "}, {"Authorization": "Basic abc"}])
@pytest.mark.parametrize(("method", "path"), [("POST", "/chat/completions"), ("GET", "/key")])
def test_no_key_is_refused(method: str, path: str, headers: dict[str, str]) -> None:
    async def talk(client: Client) -> None:
        answer = await client.call(method, client.sandbox.openrouter_url + path, None, headers)
        assert answer.status == 401
        assert answer.json["error"]["code"] == 401
        assert answer.json["error"]["metadata"]["error_type"] == "authentication"

    converse(talk)


@pytest.mark.parametrize(
    "body",
    [[], {"model": "m"}, {"model": "m", "messages": []}, {"messages": [{}]}, {"model": "m", "messages": ["Oi"]}],
)
def test_a_request_that_is_not_valid_is_refused(body: object) -> None:
    async def talk(client: Client) -> None:
        url = f"{client.sandbox.openrouter_url}/chat/completions"
        answer = await client.call("POST", url, body, {"Authorization": "Bearer k"})
        assert answer.status == 400
        assert answer.json["error"]["metadata"]["error_type"] == "invalid_request"

    converse(talk)


def test_a_key_tells_what_it_may_still_spend() -> None:
    async def talk(client: Client) -> None:
        cost = (await client.generate()).json["usage"]["cost"]
        url = f"{client.sandbox.openrouter_url}/key"
        data = (await client.call("GET", url, None, {"Authorization": "Bearer k"})).json["data"]
        assert data["usage"] == cost
        assert data["limit_remaining"] == data["limit"] - cost

    converse(talk)


ERRORS = {
    "unauthorized_401": (401, "authentication"),
    "no_credit_402": (402, "payment_required"),
    "moderation_403": (403, "content_policy_violation"),
    "permission_403": (403, "permission_denied"),
    "model_404": (404, "not_found"),
    "model_not_found_400": (400, "invalid_request"),
    "context_length_400": (400, "context_length_exceeded"),
    "rate_limit_429": (429, "rate_limit_exceeded"),
    "server_error_500": (500, "server"),
    "bad_gateway_502": (502, "provider_unavailable"),
    "unavailable_503": (503, "provider_overloaded"),
}


@pytest.mark.parametrize("fault", ERRORS)
def test_an_error_has_its_status_and_type_and_costs_nothing(fault: str) -> None:
    async def talk(client: Client) -> None:
        answer = await client.generate()
        error = answer.json["error"]
        assert (answer.status, error["metadata"]["error_type"]) == ERRORS[fault]
        assert error["code"] == answer.status
        assert answer.headers["X-Generation-Id"].startswith("gen-")
        assert ("Retry-After" in answer.headers) is (fault == "rate_limit_429")
        (entry,) = client.sandbox.record.entries
        assert (entry["accepted"], entry["cost"], entry["fault"]) == (False, None, fault)

    converse(talk, with_faults(f"generation:{fault}"))


def test_details_of_errors_that_adapters_switch_on() -> None:
    async def talk(client: Client) -> None:
        no_credit, moderated, unknown = [await client.generate() for _ in range(3)]
        assert no_credit.headers["Retry-After"] == "60"
        assert moderated.json["error"]["metadata"]["reasons"]
        availability = unknown.json["error"]["availability"]
        assert (availability["code"], availability["retryable"]) == ("model_not_found", False)
        assert availability["requested_models"] == ["vendor/model"]

    rules = ("no_credit_402:seconds=60:times=1", "moderation_403:times=1", "model_not_found_400")
    converse(talk, with_faults(*(f"generation:{rule}" for rule in rules)))


SPOILED_TEXTS: dict[str, Callable[[str], bool]] = {
    "too_short": lambda text: len(text) < 10,
    "placeholder": lambda text: "{{nome}}" in text,
    "quoted": lambda text: text[0] == text[-1] == '"',
    "fenced": lambda text: text.startswith("```\n") and text.endswith("\n```"),
    "empty_content": lambda text: text == "",
    "content_filter": lambda text: text == "",
    "length": lambda text: 0 < len(text) < 300 and text[-1] not in "?!",
}


@pytest.mark.parametrize("fault", SPOILED_TEXTS)
def test_a_text_is_spoiled_and_only_an_empty_one_costs_nothing(fault: str) -> None:
    async def talk(client: Client) -> None:
        answer = await client.generate()
        assert answer.status == 200
        text = content_of(answer)
        assert SPOILED_TEXTS[fault](text)
        finish_reason = answer.json["choices"][0]["finish_reason"]
        assert finish_reason == (fault if fault in {"length", "content_filter"} else "stop")
        assert (answer.json["usage"]["cost"] > 0) is bool(text)
        assert client.sandbox.record.entries[0]["accepted"] is bool(text)

    converse(talk, with_faults(f"generation:{fault}"))


def test_errors_inside_a_success() -> None:
    async def talk(client: Client) -> None:
        top, inner, empty = [await client.generate() for _ in range(3)]
        assert [answer.status for answer in (top, inner, empty)] == [200, 200, 200]
        assert top.json["error"]["code"] == 502
        assert inner.json["choices"][0]["finish_reason"] == "error"
        assert inner.json["choices"][0]["error"]["code"] == 502
        assert empty.json["choices"] == []
        assert not client.sandbox.record.where(accepted=True)

    rules = ("error_in_200:times=1", "choice_error_in_200:times=1", "empty_choices")
    converse(talk, with_faults(*(f"generation:{rule}" for rule in rules)))


@pytest.mark.parametrize(
    ("fault", "status", "accepted"),
    [("html_200", 200, False), ("proxy_html_502", 502, False), ("malformed_json", 200, True)],
)
def test_bodies_that_are_no_json(fault: str, status: int, accepted: bool) -> None:
    async def talk(client: Client) -> None:
        answer = await client.generate()
        assert answer.status == status
        with pytest.raises(orjson.JSONDecodeError):
            orjson.loads(answer.body)
        assert client.sandbox.record.entries[0]["accepted"] is accepted

    converse(talk, with_faults(f"generation:{fault}"))


@pytest.mark.parametrize(("fault", "accepted"), [("cut_before", False), ("cut_after", True)])
def test_a_cut_connection_gives_no_answer(fault: str, accepted: bool) -> None:
    async def talk(client: Client) -> None:
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await client.generate()
        (entry,) = client.sandbox.record.entries
        assert (entry["accepted"], entry["answered"], entry["fault"]) == (accepted, None, fault)

    converse(talk, with_faults(f"generation:{fault}"))


def test_a_hanging_generation_is_never_answered_nor_charged() -> None:
    async def talk(client: Client) -> None:
        entry = await client.give_up(client.generate(), lambda entry: entry["fault"] is not None)
        assert (entry["accepted"], entry["answered"]) == (False, None)

    converse(talk, with_faults("generation:hang"))


def test_a_fault_can_be_meant_for_some_prompts() -> None:
    async def talk(client: Client) -> None:
        assert (await client.generate("Nome: Ana")).status == 200
        assert (await client.generate("Nome: Bia")).status == 500

    converse(talk, with_faults("generation:server_error_500:text=Bia"))


def test_every_fault_of_a_generation_is_tested_here() -> None:
    others = {"error_in_200", "choice_error_in_200", "empty_choices", "html_200", "proxy_html_502", "malformed_json"}
    tested = {*ERRORS, *SPOILED_TEXTS, *others, "cut_before", "cut_after", "hang"}
    assert tested == set(FAULTS[Kind.GENERATION])


def test_a_key_can_be_refused_and_its_endpoint_broken() -> None:
    async def talk(client: Client) -> None:
        url = f"{client.sandbox.openrouter_url}/key"
        answers = [await client.call("GET", url, None, {"Authorization": "Bearer k"}) for _ in range(4)]
        assert [answer.status for answer in answers] == [401, 500, 502, 200]
        with pytest.raises(orjson.JSONDecodeError):
            orjson.loads(answers[-1].body)

    rules = ("unauthorized_401:times=1", "server_error_500:times=1", "proxy_html_502:times=1", "malformed_json")
    converse(talk, with_faults(*(f"status:{rule}" for rule in rules)))


# Prompt caching -------------------------------------------------------------------------------------------------------

CAMPAIGN = "Você vende café. " * 720  # 12,240 characters, so 3,060 tokens


def billed(model: str, *, marked: bool = False, session: str | None = None) -> list[tuple[int, int]]:
    """Tokens read from the cache and written into it, of three leads of one campaign."""
    found = []

    async def talk(client: Client) -> None:
        block = {"type": "text", "text": CAMPAIGN, **({"cache_control": {"type": "ephemeral"}} if marked else {})}
        for name in ("Ana", "Bia", "Carla"):
            messages = [{"role": "system", "content": [block]}, {"role": "user", "content": f"Nome: {name}"}]
            fields = {} if session is None else {"session_id": session}
            usage = (await client.generate(model=model, messages=messages, **fields)).json["usage"]
            details = usage["prompt_tokens_details"]
            found.append((details["cached_tokens"], details["cache_write_tokens"]))

    converse(talk)
    return found


def test_a_marked_prompt_is_written_once_and_then_read_in_one_session() -> None:
    assert billed("anthropic/claude-sonnet-4.5", marked=True, session="c") == [(0, 3060), (3060, 0), (3060, 0)]


def test_a_model_that_wants_a_mark_caches_nothing_without_one() -> None:
    assert billed("anthropic/claude-sonnet-4.5", session="c") == [(0, 0)] * 3


def test_a_model_that_caches_by_itself_reads_whole_blocks_from_1024_tokens_on() -> None:
    assert billed("openai/gpt-4o-mini", session="c") == [(0, 0), (2944, 0), (2944, 0)]


def test_leads_without_a_session_are_spread_over_the_endpoints_of_a_model() -> None:
    assert billed("openai/gpt-4o-mini") != billed("openai/gpt-4o-mini", session="c")


def test_a_model_without_caching_bills_every_token() -> None:
    assert billed("vendor/model", marked=True, session="c") == [(0, 0)] * 3
