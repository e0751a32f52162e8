"""UAZAPI's own behaviour. test_conformance has the tests of every channel."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from campaign_pipeline.adapters.channel import MOST_PAGES
from campaign_pipeline.adapters.http import http_client
from campaign_pipeline.adapters.inbox_connection import InboxConnection
from campaign_pipeline.adapters.uazapi import Uazapi, from_connection, harmless
from campaign_pipeline.core.ports import (
    Absent,
    Attempt,
    Envelope,
    Found,
    LookUpFailed,
    NumberExists,
    NumberMissing,
    NumberNotChecked,
    Sent,
)
from campaign_pipeline.sandbox import Sandbox
from campaign_pipeline_tests.adapters.wire import Playback, playback, serving

ENVELOPE = Envelope("m-1", 2, "Olá, Ana!", "5511987654321", delay_ms=700)
OURS = {"track_source": "campaign_pipeline", "track_id": "m-1:2"}


def with_server(server: Playback, use: Callable[[Uazapi], Awaitable[Any]]) -> Any:
    async def inside() -> Any:
        async with serving(server) as place, http_client(connections=1) as client:
            return await asyncio.wait_for(use(Uazapi(client, f"http://{place}/", "token", 5.0)), 20)

    return asyncio.run(inside())


def look_up(*answers: object) -> tuple[Any, Playback]:
    server = playback(*answers)
    return with_server(server, lambda channel: channel.find_accepted(Attempt(ENVELOPE, 0.0))), server


def page(*messages: Mapping[str, Any], more: bool = False) -> dict[str, Any]:
    return {"returnedMessages": len(messages), "messages": list(messages), "hasMore": more}


def test_a_part_is_sent_under_its_own_tracking_id_and_not_queued() -> None:
    server = playback({"messageid": "3EB0"})
    with_server(server, lambda channel: channel.send(ENVELOPE))
    assert server.requests == [
        (
            "POST /send/text",
            {
                "number": "5511987654321",
                "text": "Olá, Ana!",
                "delay": 700,
                "readchat": True,
                "linkPreview": False,
                **OURS,
            },
        )
    ]


@given(st.text(alphabet="{} a\n", max_size=30))
def test_no_text_has_doubled_braces_and_a_reader_sees_none_other(text: str) -> None:
    safe = harmless(text)
    assert "{{" not in safe
    assert "}}" not in safe
    assert safe.replace("\u200d", "") == text
    assert harmless(safe) == safe


def test_a_text_that_looks_like_a_placeholder_arrives_unchanged() -> None:
    async def inside() -> str:
        async with Sandbox() as sandbox, http_client(connections=1) as client:
            channel = Uazapi(client, sandbox.uazapi_url, "loja", 5.0)
            sent = await channel.send(Envelope("m-1", 1, "Custa {{preço}}, sem {graça}.", "5511987654321"))
            assert isinstance(sent, Sent)
            return sandbox.record.sent()[0]["text"] or ""

    assert asyncio.run(inside()).replace("\u200d", "") == "Custa {{preço}}, sem {graça}."


def test_a_part_is_asked_for_by_its_tracking_id_page_by_page() -> None:
    other = {"messageid": "3EB0X", "track_source": "campaign_pipeline", "track_id": "m-9:1"}
    found, server = look_up(page(*[other] * 50, more=True), page({"messageid": "3EB0", **OURS}))
    assert isinstance(found, Found)
    assert found.provider_message_id == "3EB0"
    assert [(line, body["offset"]) for line, body in server.requests] == [
        ("POST /message/find", 0),
        ("POST /message/find", 50),
    ]
    assert all(body["track_id"] == "m-1:2" and body["limit"] == 50 for _, body in server.requests)


@pytest.mark.parametrize("status", ["Failed", "failed", "error"])
def test_a_message_that_the_server_could_not_send_is_absent(status: str) -> None:
    absent, _ = look_up(page({"messageid": "3EB0", "status": status, **OURS}))
    assert absent == Absent(proven=True, reason="It was looked up by its own tracking id.")


def test_of_two_messages_with_one_key_the_sent_one_counts() -> None:
    failed, sent = ({"messageid": name, "status": name, **OURS} for name in ("Failed", "ServerAck"))
    found, _ = look_up(page(failed, sent))
    assert isinstance(found, Found)
    assert found.provider_message_id == "ServerAck"


def test_a_server_that_does_not_know_tracking_ids_proves_nothing() -> None:
    absent, _ = look_up(page({"messageid": "3EB0", "text": "Olá, Ana!"}))
    assert isinstance(absent, Absent)
    assert not absent.proven


def test_the_same_key_under_another_source_is_not_ours() -> None:
    absent, _ = look_up(page({"messageid": "3EB0", **OURS, "track_source": "crm"}))
    assert isinstance(absent, Absent)
    assert not absent.proven


@pytest.mark.parametrize("body", [[], {}, {"messages": None}, "x"])
def test_an_answer_of_another_shape_proves_nothing(body: object) -> None:
    assert isinstance(look_up(body)[0], LookUpFailed)


def test_a_look_up_without_end_is_given_up() -> None:
    answer, server = look_up(*[page({"messageid": "x"}, more=True)] * (MOST_PAGES + 1))
    assert isinstance(answer, LookUpFailed)
    assert len(server.requests) == MOST_PAGES


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            [{"query": "5531987654321", "jid": "553187654321@s.whatsapp.net", "lid": "18@lid", "isInWhatsapp": True}],
            NumberExists("553187654321", "553187654321@s.whatsapp.net", "18@lid"),
        ),
        ([{"isInWhatsapp": True, "jid": "", "lid": ""}], NumberExists("5531987654321")),
        ([{"isInWhatsapp": False, "error": ""}], NumberMissing("The number is not on WhatsApp.")),
    ],
)
def test_number_checks_return_whatsapps_answer(body: object, expected: object) -> None:
    server = playback(body)
    assert with_server(server, lambda channel: channel.check_number("5531987654321")) == expected
    assert server.requests == [("POST /chat/check", {"numbers": ["5531987654321"]})]


@pytest.mark.parametrize(
    "body", [[], {}, None, [{"isInWhatsapp": "true"}], [{"isInWhatsapp": False, "error": "not connected"}], [None]]
)
def test_an_error_is_no_existing_number_as_the_original_took_it(body: object) -> None:
    checked = with_server(playback(body), lambda channel: channel.check_number("5531987654321"))
    assert isinstance(checked, NumberNotChecked)


@pytest.mark.parametrize(
    ("row", "variables", "named"),
    [
        ({"instance_token": "t"}, {}, "UAZAPI_API_URL"),
        ({}, {"UAZAPI_API_URL": "http://x", "UAZAPI_API_KEY": "no number's own"}, "instance_token"),
        ({"instance_token": "t"}, {"UAZAPI_API_URL": "free.uazapi.com"}, "UAZAPI_API_URL"),
        ({"instance_token": "t", "settings": {"base_url": 7}}, {}, "settings.base_url"),
    ],
)
def test_missing_or_unusable_settings_are_named(row: dict[str, Any], variables: dict[str, str], named: str) -> None:
    with pytest.raises(LookupError, match=named):
        from_connection(http_client(connections=1), InboxConnection(**row), variables, 30.0)
