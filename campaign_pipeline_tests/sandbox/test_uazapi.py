from collections.abc import Mapping
from typing import Any

import aiohttp
import orjson
import pytest

from campaign_pipeline.sandbox import Behaviour, InstanceState
from campaign_pipeline.sandbox.behaviour import FAULTS, Kind
from campaign_pipeline_tests.sandbox.conversation import PHONE, Client, converse, with_faults

TRACK: Mapping[str, Any] = {"track_source": "campaign_pipeline", "track_id": "42:1"}


def test_an_accepted_message_bears_its_ids_and_our_key() -> None:
    async def talk(client: Client) -> None:
        answer = await client.uazapi_send("Olá, Ana!", **TRACK)
        assert answer.status == 200
        body = answer.json
        assert body["id"].endswith(f":{body['messageid']}")
        assert body["chatid"] == f"{PHONE}@s.whatsapp.net"
        assert body["track_id"] == "42:1"
        assert body["response"]["status"] == "success"
        assert "key" not in body
        (entry,) = client.sandbox.record.entries
        assert (entry["provider_message_id"], entry["track_source"], entry["track_id"]) == (
            body["messageid"],
            "campaign_pipeline",
            "42:1",
        )

    converse(talk)


def test_placeholders_in_a_text_are_replaced_by_the_server() -> None:
    async def talk(client: Client) -> None:
        await client.uazapi_send("Olá, {{name}}! Tudo bem?")
        assert client.sandbox.record.sent()[0]["text"] == "Olá, ! Tudo bem?"

    converse(talk)


def test_a_message_is_found_by_our_key_even_when_its_answer_was_lost() -> None:
    async def talk(client: Client) -> None:
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await client.uazapi_send("perdida", **TRACK)
        await client.uazapi_send("outra", track_source="campaign_pipeline", track_id="42:2")
        answer = (await client.uazapi("/message/find", {**TRACK, "limit": 10})).json
        assert (answer["returnedMessages"], answer["hasMore"]) == (1, False)
        assert answer["messages"][0]["text"] == "perdida"
        strange = await client.uazapi("/message/find", {**TRACK, "track_source": "another"})
        assert strange.json["messages"] == []

    converse(talk, with_faults("send:cut_after:times=1"))


def test_the_same_key_may_be_used_again_so_both_messages_are_found() -> None:
    async def talk(client: Client) -> None:
        for _ in range(2):
            await client.uazapi_send(**TRACK)
        first = (await client.uazapi("/message/find", {**TRACK, "limit": 1})).json
        assert (first["returnedMessages"], first["nextOffset"], first["hasMore"]) == (1, 1, True)
        second = (await client.uazapi("/message/find", {**TRACK, "limit": 1, "offset": 1})).json
        assert second["hasMore"] is False
        assert first["messages"][0]["messageid"] != second["messages"][0]["messageid"]

    converse(talk)


def test_a_message_is_found_by_either_id_and_by_chat() -> None:
    async def talk(client: Client) -> None:
        sent = (await client.uazapi_send()).json
        questions = [{"id": sent["id"]}, {"id": sent["messageid"]}, {"chatid": sent["chatid"]}]
        for question in questions:
            messages = (await client.uazapi("/message/find", question)).json["messages"]
            assert [each["messageid"] for each in messages] == [sent["messageid"]]

    converse(talk)


PATHS: Mapping[str, object] = {
    "/send/text": {"number": PHONE, "text": "Olá"},
    "/message/find": TRACK,
    "/instance/status": None,
    "/chat/check": {"numbers": [PHONE]},
}


@pytest.mark.parametrize("path", PATHS)
def test_no_token_is_refused_and_an_unknown_instance_is_missing(path: str) -> None:
    async def talk(client: Client) -> None:
        method = "GET" if PATHS[path] is None else "POST"
        url = client.sandbox.uazapi_url + path
        answers = [await client.call(method, url, PATHS[path], headers) for headers in ({}, {"token": "fantasma"})]
        assert [answer.status for answer in answers] == [401, 404]

    converse(talk, Behaviour(instances={"fantasma": InstanceState.MISSING}))


@pytest.mark.parametrize("body", [{"text": "Olá"}, {"number": PHONE}, {"number": PHONE, "text": ""}, {}])
def test_a_request_that_is_not_valid_is_refused(body: object) -> None:
    async def talk(client: Client) -> None:
        answer = await client.uazapi("/send/text", body)
        assert (answer.status, answer.json) == (400, {"error": "Missing number or text"})

    converse(talk)


@pytest.mark.parametrize(
    ("state", "word"),
    [
        (InstanceState.OPEN, "connected"),
        (InstanceState.CONNECTING, "connecting"),
        (InstanceState.CLOSE, "disconnected"),
    ],
)
def test_the_state_of_an_instance_decides_whether_it_sends(state: InstanceState, word: str) -> None:
    async def talk(client: Client) -> None:
        status = (await client.uazapi("/instance/status")).json
        assert status["instance"]["status"] == word
        assert status["status"]["connected"] is (word == "connected")
        answer = await client.uazapi_send()
        assert answer.status == (200 if word == "connected" else 500)
        if word != "connected":
            assert answer.json == {"error": "client not connected"}

    converse(talk, Behaviour(instances={"loja": state}))


def test_numbers_are_checked_one_by_one() -> None:
    async def talk(client: Client) -> None:
        answer = await client.uazapi("/chat/check", {"numbers": [PHONE, "5511900000001"]})
        assert [(each["query"], each["isInWhatsapp"]) for each in answer.json] == [
            (PHONE, True),
            ("5511900000001", False),
        ]

    converse(talk, with_faults("number_check:not_on_whatsapp:phone=5511900000001"))


STATUSES = {
    "not_on_whatsapp": 500,
    "connection_closed": 500,
    "timed_out": 500,
    "rate_overlimit": 429,
    "schema": 400,
    "no_keys": 500,
    "other_400": 400,
    "unauthorized_401": 401,
    "instance_404": 404,
    "timeout_408": 408,
    "server_error_500": 500,
    "proxy_html_502": 502,
    "gateway_timeout_504": 504,
    "malformed_json": 200,
    "no_id": 200,
}


@pytest.mark.parametrize("fault", STATUSES)
def test_a_fault_has_its_status(fault: str) -> None:
    async def talk(client: Client) -> None:
        answer = await client.uazapi_send()
        assert answer.status == STATUSES[fault]
        is_json = fault not in {"proxy_html_502", "gateway_timeout_504", "malformed_json"}
        if is_json:
            assert ("error" in answer.json) is (answer.status != 200)
            assert "messageid" not in answer.json
        else:
            with pytest.raises(orjson.JSONDecodeError):
                orjson.loads(answer.body)
        assert bool(client.sandbox.record.sent()) is (fault == "malformed_json")

    converse(talk, with_faults(f"send:{fault}"))


def test_every_fault_that_is_an_answer_is_tested_here() -> None:
    without_answer = {"cut_before", "cut_after", "hang_before", "hang_after", "late", "scripted"}
    assert set(STATUSES) | without_answer == set(FAULTS[Kind.SEND])


def test_a_look_up_can_fail_for_one_key_only() -> None:
    async def talk(client: Client) -> None:
        assert (await client.uazapi("/message/find", TRACK)).status == 500
        assert (await client.uazapi("/message/find", {**TRACK, "track_id": "43:1"})).status == 200

    converse(talk, with_faults("look_up:server_error_500:text=42"))
