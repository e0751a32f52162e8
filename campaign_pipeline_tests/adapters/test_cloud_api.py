"""The Cloud API's own behaviour. test_conformance has the tests of every channel."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from campaign_pipeline.adapters.cloud_api import CloudApi, from_connection
from campaign_pipeline.adapters.cloud_api_answers import CODES
from campaign_pipeline.adapters.cloud_api_events import read_status
from campaign_pipeline.adapters.http import Answer, http_client
from campaign_pipeline.adapters.inbox_connection import InboxConnection
from campaign_pipeline.core.ports import (
    UNRECOGNISED,
    Envelope,
    Failure,
    Sent,
    StatusEvent,
    Systemic,
    Template,
    Throttled,
    Unknown,
)
from campaign_pipeline_tests.adapters.wire import Playback, playback, serving

ENVELOPE = Envelope("m-1", 2, "Olá, Ana!", "5511987654321", delay_ms=700)
NUMBER = "106540352242922"
MESSAGE = str(uuid4())


def with_server(server: Playback, use: Callable[[CloudApi], Awaitable[Any]]) -> Any:
    async def inside() -> Any:
        async with serving(server) as place, http_client(connections=1) as client:
            return await asyncio.wait_for(use(CloudApi(client, f"http://{place}/v23.0/", NUMBER, "token", 5.0)), 20)

    return asyncio.run(inside())


def sent_body(envelope: Envelope) -> dict[str, Any]:
    server = playback({"messages": [{"id": "wamid.A"}]})
    with_server(server, lambda channel: channel.send(envelope))
    ((line, body),) = server.requests
    assert line == f"POST /v23.0/{NUMBER}/messages"
    assert isinstance(body, dict)
    return body


def test_free_text_bears_our_key() -> None:
    assert sent_body(ENVELOPE) == {
        "messaging_product": "whatsapp",
        "recipient_type": "individual",
        "to": "5511987654321",
        "biz_opaque_callback_data": "m-1:2",
        "type": "text",
        "text": {"preview_url": False, "body": "Olá, Ana!"},
    }


def test_a_template_is_sent_with_its_variables_in_their_order_and_not_with_its_text() -> None:
    body = sent_body(replace(ENVELOPE, template=Template("primeiro_contato", "pt_BR", ("Ana", "Vi que cresceram."))))
    assert "text" not in body
    assert (body["type"], body["biz_opaque_callback_data"]) == ("template", "m-1:2")
    assert body["template"] == {
        "name": "primeiro_contato",
        "language": {"code": "pt_BR"},
        "components": [
            {
                "type": "body",
                "parameters": [{"type": "text", "text": "Ana"}, {"type": "text", "text": "Vi que cresceram."}],
            }
        ],
    }


def test_a_template_without_variables_has_no_components() -> None:
    body = sent_body(replace(ENVELOPE, template=Template("oi", "en")))
    assert body["template"] == {"name": "oi", "language": {"code": "en"}}


def test_a_user_without_a_number_is_written_to_by_the_id_that_meta_gave_the_business() -> None:
    body = sent_body(replace(ENVELOPE, address="BR.13491208655302741918"))
    assert body["recipient"] == "BR.13491208655302741918"
    assert "to" not in body


@pytest.mark.parametrize("number", sorted({number for number in CODES if not 200 < number < 300}))
def test_each_code_of_metas_list_means_the_same_in_an_answer_and_in_a_status_event(number: int) -> None:
    outcome = CloudApi.read_send(Answer(400, {"error": {"code": number, "message": "x"}}, b"{}", None))
    assert not isinstance(outcome, Sent)
    assert outcome.code != UNRECOGNISED
    assert re.search(r"[.]$", outcome.reason)
    settled = read_status(event(status="failed", errors=[{"code": number}]))
    assert settled is not None
    if not isinstance(outcome, Unknown):
        assert (settled.error_class, settled.code) == (type(outcome).__name__.lower(), outcome.code)


def test_the_list_of_codes_has_what_was_once_missing() -> None:
    kept = {131037, 130497, 131030, 613, 17, 32, 341, 80008, 131043, 132068, 132069, 133006, 134101, 135000}
    assert kept <= set(CODES)


@pytest.mark.parametrize(("attempt", "seconds"), [(1, 4.0), (2, 16.0), (3, 64.0), (6, 3600.0), (50, 3600.0)])
def test_the_pause_of_a_pair_grows_fourfold_with_each_attempt(attempt: int, seconds: float) -> None:
    server = playback({"error": {"code": 131056, "message": "x"}}, status="400 Bad Request")
    outcome = with_server(server, lambda channel: channel.send(replace(ENVELOPE, attempt_no=attempt)))
    assert isinstance(outcome, Throttled)
    assert outcome.retry_after == seconds


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("CONNECTED", None),
        ("FLAGGED", None),
        ("something new", None),
        (7, None),
        ("BANNED", (Systemic, "number_unusable")),
        ("MIGRATED", (Systemic, "number_unusable")),
        ("RATE_LIMITED", (Throttled, "rate_limited")),
    ],
)
def test_the_state_of_a_number(state: object, expected: tuple[type[object], str] | None) -> None:
    server = playback({"id": NUMBER, "status": state})
    refusal: Failure | None = with_server(server, lambda channel: channel.check_connection())
    assert (None if refusal is None else (type(refusal), refusal.code)) == expected
    assert server.requests[0][0] == f"GET /v23.0/{NUMBER}?fields=status,quality_rating,throughput"


# Status events --------------------------------------------------------------------------------------------------------


def event(**columns: Any) -> dict[str, Any]:
    usual = {"id": "wamid.A", "status": "delivered", "timestamp": "1764000000", "recipient_id": "5511987654321"}
    return {**usual, "biz_opaque_callback_data": f"{MESSAGE}:2", **columns}


def test_a_status_event_names_the_part_by_the_key_that_we_gave() -> None:
    assert read_status(event()) == StatusEvent(MESSAGE, 2, "wamid.A", "delivered", 1764000000.0)


@pytest.mark.parametrize(
    ("number", "error_class", "code"),
    [
        (131026, "permanent", "undeliverable"),
        (131050, "permanent", "opted_out"),
        (131049, "transient", "marketing_cap"),
        (131048, "systemic", "spam_limit"),
        (130429, "throttled", "rate_limited"),
        (139999, "permanent", "unrecognised_answer"),
        ("131026", "permanent", "unrecognised_answer"),
        (None, "permanent", "unrecognised_answer"),
    ],
)
def test_a_failure_has_the_class_that_its_number_has_in_an_answer(number: object, error_class: str, code: str) -> None:
    said = {"code": number, "title": "x", "error_data": {"details": "to 5511987654321"}}
    read = read_status(event(status="failed", errors=[said]))
    assert read is not None
    assert (read.error_class, read.code) == (error_class, code)
    assert read.reason is not None
    assert "5511987654321" not in read.reason


@pytest.mark.parametrize("errors", [None, [], {}, ["x"], 7])
def test_a_failure_without_a_readable_reason_is_a_failure(errors: object) -> None:
    read = read_status(event(status="failed", errors=errors))
    assert read is not None
    assert (read.status, read.error_class) == ("failed", "permanent")


@pytest.mark.parametrize("stamp", [None, "", "soon", -1, "1764000000000000000", ["1764000000"], "١٢٣"])
def test_a_time_that_is_none_is_left_out(stamp: object) -> None:
    read = read_status(event(timestamp=stamp))
    assert read is not None
    assert read.at is None


@pytest.mark.parametrize(
    "strange",
    [
        None,
        [],
        "x",
        {},
        event(biz_opaque_callback_data=None),
        event(biz_opaque_callback_data="m-1:1"),
        event(biz_opaque_callback_data=f"{MESSAGE}:0"),
        event(biz_opaque_callback_data=f"{MESSAGE}:1:1"),
        event(biz_opaque_callback_data=f"{MESSAGE}:99999"),
        event(biz_opaque_callback_data=f"{MESSAGE.upper()}x:1"),
        event(status="warning"),
        event(status=["sent"]),
    ],
)
def test_events_about_other_messages_are_left_alone(strange: object) -> None:
    assert read_status(strange) is None


# Configuration --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "variables", "named"),
    [
        ({}, {"CLOUD_API_TOKEN": "t"}, "phone_number_id"),
        ({"provider_config": {"phone_number_id": "+55 11"}}, {"CLOUD_API_TOKEN": "t"}, "must be digits"),
        ({"provider_config": {"phone_number_id": NUMBER}}, {}, "CLOUD_API_TOKEN"),
        (
            {"provider_config": {"phone_number_id": NUMBER}, "api_key": "t"},
            {"CLOUD_API_VERSION": "23"},
            "CLOUD_API_VERSION",
        ),
        (
            {"provider_config": {"phone_number_id": NUMBER}, "api_key": "t"},
            {"CLOUD_API_URL": "graph"},
            "CLOUD_API_URL",
        ),
    ],
)
def test_missing_or_unusable_settings_are_named(row: dict[str, Any], variables: dict[str, str], named: str) -> None:
    with pytest.raises(LookupError, match=named):
        from_connection(http_client(connections=1), InboxConnection(**row), variables, 30.0)


def test_the_version_is_a_setting_and_the_instance_may_have_its_own() -> None:
    server = Playback(iter([*playback({}).answers, *playback({}).answers]))

    async def inside() -> None:
        async with serving(server) as place, http_client(connections=1) as client:
            variables = {"CLOUD_API_URL": f"http://{place}", "CLOUD_API_VERSION": "v24.0", "CLOUD_API_TOKEN": "t"}
            for config in ({}, {"version": "v25.1"}):
                connection = InboxConnection(provider_config={"phone_number_id": NUMBER, **config})
                await from_connection(client, connection, variables, 5.0).send(ENVELOPE)

    asyncio.run(inside())
    assert [line for line, _ in server.requests] == [f"POST /{v}/{NUMBER}/messages" for v in ("v24.0", "v25.1")]
