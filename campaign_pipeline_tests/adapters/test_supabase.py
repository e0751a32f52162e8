"""The own behaviour of the CRM's sender. test_conformance has the tests of every channel."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from campaign_pipeline.adapters.http import http_client
from campaign_pipeline.adapters.inbox_connection import InboxConnection
from campaign_pipeline.adapters.supabase import InternalSend, from_connection
from campaign_pipeline.core.ports import Absent, Attempt, Envelope, Found, NotReady, Outcome, Permanent, Systemic
from campaign_pipeline.sandbox import Sandbox
from campaign_pipeline_tests.adapters.wire import playback, read_request, response, serving

CONVERSATION = "0b6f3c1e-5a44-4f0e-9a53-6f2c0a8d1e77"
ENVELOPE = Envelope("m-1", 1, "Olá, Ana!", "5511987654321", conversation_id=CONVERSATION)
KEY = "service-role-key"


def channel_of(client: Any, url: str, status: str | None = "connected") -> InternalSend:
    return InternalSend(client, url, KEY, status, 5.0)


def test_a_part_goes_into_its_conversation_with_the_key_in_both_headers() -> None:
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await read_request(reader))
        writer.write(response(b'{"success": true, "provider_response": {"id": "x"}}'))
        await writer.drain()

    async def inside() -> None:
        async with serving(serve) as place, http_client(connections=1) as client:
            await channel_of(client, f"http://{place}/").send(ENVELOPE)

    asyncio.run(inside())
    assert heads[0].startswith(b"POST /functions/v1/internal-send-ai-message HTTP/1.1\r\n")
    assert f"x-service-role-key: {KEY}".encode() in heads[0].lower()
    assert f"Authorization: Bearer {KEY}".lower().encode() in heads[0].lower()
    assert heads[0].endswith(f'{{"conversationId":"{CONVERSATION}","text":"Olá, Ana!"}}'.encode())


def test_a_message_without_a_conversation_is_not_sent_to_nowhere() -> None:
    async def inside() -> Outcome:
        async with Sandbox() as sandbox, http_client(connections=1) as client:
            outcome = await channel_of(client, sandbox.supabase_url).send(replace(ENVELOPE, conversation_id=None))
            assert sandbox.record.entries == []
            return outcome

    outcome = asyncio.run(inside())
    assert isinstance(outcome, Permanent)
    assert outcome.code == "no_conversation"


def test_an_inbox_that_connects_is_given_a_little_time_and_no_pause() -> None:
    async def inside() -> object:
        async with http_client(connections=1) as client:
            return await channel_of(client, "http://127.0.0.1:1", "connecting").check_connection()

    assert isinstance(asyncio.run(inside()), NotReady)


@pytest.mark.parametrize("status", ["disconnected", None])
def test_an_inbox_that_is_not_connected_sends_nothing_for_the_function_would_take_another_number(
    status: str | None,
) -> None:
    async def inside() -> object:
        async with http_client(connections=1) as client:
            return await channel_of(client, "http://127.0.0.1:1", status).check_connection()

    refusal = asyncio.run(inside())
    assert isinstance(refusal, Systemic)
    assert refusal.code == "inbox_disconnected"


def find(*ids: str, taken: frozenset[str] = frozenset()) -> object:
    async def inside() -> object:
        async with http_client(connections=1) as client:
            attempt = Attempt(ENVELOPE, 0.0, taken_provider_ids=taken, conversation_ids=ids)
            return await channel_of(client, "http://127.0.0.1:1").find_accepted(attempt)

    return asyncio.run(inside())


def test_a_part_is_found_in_its_conversation_unless_another_part_took_it() -> None:
    found = find("3EB0A", "3EB0B", taken=frozenset({"3EB0A"}))
    assert isinstance(found, Found)
    assert (found.provider_message_id, found.in_conversation) == ("3EB0B", True)


@pytest.mark.parametrize(("ids", "taken"), [((), frozenset[str]()), (("3EB0A",), frozenset({"3EB0A"}))])
def test_a_miss_proves_nothing(ids: tuple[str, ...], taken: frozenset[str]) -> None:
    absent = find(*ids, taken=taken)
    assert isinstance(absent, Absent)
    assert not absent.proven


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"SUPABASE_SERVICE_ROLE_KEY": KEY}, "SUPABASE_URL is not set."),
        ({"SUPABASE_URL": "http://x"}, "SUPABASE_SERVICE_ROLE_KEY is not set"),
        ({"SUPABASE_URL": "x.supabase.co", "SUPABASE_SERVICE_ROLE_KEY": KEY}, "SUPABASE_URL"),
    ],
)
def test_missing_or_unusable_settings_are_named(variables: dict[str, str], named: str) -> None:
    connection = InboxConnection(instance_token="of its provider", provider_config={"base_url": "http://evolution"})
    with pytest.raises(LookupError, match=named):
        from_connection(http_client(connections=1), connection, variables, 30.0)


def test_the_instances_own_address_is_its_providers_and_not_the_functions() -> None:
    server = playback({"success": True, "provider_response": {"id": "x"}})

    async def inside() -> None:
        async with serving(server) as place, http_client(connections=1) as client:
            connection = InboxConnection(provider_config={"base_url": "http://127.0.0.1:1"}, status="connected")
            variables = {"SUPABASE_URL": f"http://{place}", "SUPABASE_SERVICE_ROLE_KEY": KEY}
            await from_connection(client, connection, variables, 5.0).send(ENVELOPE)

    asyncio.run(inside())
    assert len(server.requests) == 1
