import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import orjson
import pytest

from campaign_pipeline.sandbox import Behaviour, InstanceState, Kind
from campaign_pipeline.sandbox.behaviour import FAULTS
from campaign_pipeline_tests.sandbox.conversation import PHONE, Client, converse, with_faults


def test_an_accepted_message_is_answered_with_201_and_its_id() -> None:
    async def talk(client: Client) -> None:
        answer = await client.evolution_send("Olá, Ana!")
        assert answer.status == 201
        body = answer.json
        assert body["key"]["remoteJid"] == f"{PHONE}@s.whatsapp.net"
        assert body["key"]["fromMe"] is True
        assert body["status"] == "PENDING"
        (entry,) = client.sandbox.record.entries
        assert entry["provider_message_id"] == body["key"]["id"]
        assert (entry["instance"], entry["number"], entry["text"]) == ("loja", PHONE, "Olá, Ana!")
        assert (entry["accepted"], entry["answered"], entry["fault"]) == (True, 201, None)

    converse(talk)


def test_each_send_is_a_message_of_its_own() -> None:
    async def talk(client: Client) -> None:
        ids = {(await client.evolution_send()).json["key"]["id"] for _ in range(3)}
        assert len(ids) == 3
        (twice,) = client.sandbox.record.summary()["accepted_twice"]
        assert len(twice["seqs"]) == 3

    converse(talk)


def test_the_typing_time_is_spent_inside_the_request() -> None:
    async def talk(client: Client) -> None:
        begin = time.monotonic()
        await client.evolution_send(delay=80)
        assert time.monotonic() - begin >= 0.08

    converse(talk)


def test_a_client_that_loses_patience_does_not_stop_its_message() -> None:
    async def talk(client: Client) -> None:
        asking = client.evolution_send("impaciente", delay=200)
        entry = await client.give_up(asking, lambda entry: entry["text"] == "impaciente")
        assert not entry["accepted"]
        await client.until(lambda: entry["accepted"])
        assert [sent["text"] for sent in client.sandbox.record.sent()] == ["impaciente"]
        assert entry["answered"] is None

    converse(talk)


PATHS: Mapping[str, object] = {
    "/message/sendText/{}": {"number": PHONE, "text": "Olá"},
    "/instance/connectionState/{}": None,
    "/chat/whatsappNumbers/{}": {"numbers": [PHONE]},
    "/chat/findMessages/{}": {"where": {}},
}


@pytest.mark.parametrize("path", PATHS)
def test_an_unknown_instance_is_found_missing_before_the_key_is_looked_at(path: str) -> None:
    async def talk(client: Client) -> None:
        method = "GET" if PATHS[path] is None else "POST"
        answers = [
            await client.call(method, client.sandbox.evolution_url + path.format(instance), PATHS[path])
            for instance in ("fantasma", "loja")
        ]
        assert [answer.status for answer in answers] == [404, 401]
        assert answers[0].json["response"]["message"] == ['The "fantasma" instance does not exist']
        assert answers[1].json["response"]["message"] == "Unauthorized"

    converse(talk, Behaviour(instances={"fantasma": InstanceState.MISSING}))


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ({"text": "Olá"}, 'requires property "number"'),
        ({"number": PHONE}, 'requires property "text"'),
        ({"number": "abc", "text": "Olá"}, "number does not match pattern"),
        ({"number": PHONE, "text": " "}, "Text is required"),
        ({"number": PHONE, "text": "Olá", "delay": "1200"}, "Enter a value in milliseconds"),
    ],
)
def test_a_request_that_is_not_valid_is_refused(body: object, complaint: str) -> None:
    async def talk(client: Client) -> None:
        answer = await client.evolution("/message/sendText/loja", body)
        assert answer.status == 400
        assert answer.json["response"]["message"] == [[complaint]]
        assert not client.sandbox.record.sent()

    converse(talk)


@pytest.mark.parametrize("state", [InstanceState.CLOSE, InstanceState.CONNECTING])
def test_a_disconnected_instance_says_so_and_sends_nothing(state: InstanceState) -> None:
    async def talk(client: Client) -> None:
        assert (await client.evolution("/instance/connectionState/loja")).json["instance"]["state"] == state.value
        refused = await client.evolution_send()
        assert refused.status == 400
        assert refused.json["response"]["message"] == ["Error: Connection Closed"]
        assert (await client.evolution("/chat/whatsappNumbers/loja", {"numbers": [PHONE]})).status == 500
        assert not client.sandbox.record.sent()
        assert (await client.evolution("/instance/connectionState/filial")).json["instance"]["state"] == "open"

    converse(talk, Behaviour(instances={"loja": state}))


ANSWERED: Mapping[str, tuple[int, object]] = {
    "connection_closed": (400, ["Error: Connection Closed"]),
    "timed_out": (400, ["Error: Timed Out"]),
    "rate_overlimit": (400, ["Error: rate-overlimit"]),
    "schema": (400, [['requires property "number"']]),
    "no_keys": (400, ["SessionError: No sessions"]),
    "other_400": (400, ["Error: Evaluation failed: a is not a function"]),
    "unauthorized_401": (401, "Unauthorized"),
    "instance_404": (404, ['The "loja" instance does not exist']),
    "timeout_408": (408, "Request Time-out"),
    "server_error_500": (500, "Internal Server Error"),
    "not_on_whatsapp": (400, [{"jid": f"{PHONE}@s.whatsapp.net", "exists": False, "number": PHONE}]),
}


@pytest.mark.parametrize("accepts", [False, True])
@pytest.mark.parametrize("fault", ANSWERED)
def test_a_refusal_has_the_shape_of_the_real_one(fault: str, accepts: bool) -> None:
    async def talk(client: Client) -> None:
        answer = await client.evolution_send()
        status, message = ANSWERED[fault]
        assert answer.status == answer.json["status"] == status
        assert answer.json["response"] == {"message": message}
        (entry,) = client.sandbox.record.entries
        assert (entry["accepted"], entry["fault"], entry["answered"]) == (accepts, fault, status)

    converse(talk, with_faults(f"send:{fault}:accepts={'true' if accepts else 'false'}"))


@pytest.mark.parametrize(
    ("fault", "status", "accepted"),
    [("proxy_html_502", 502, False), ("gateway_timeout_504", 504, False), ("malformed_json", 201, True)],
)
def test_bodies_that_are_no_json(fault: str, status: int, accepted: bool) -> None:
    async def talk(client: Client) -> None:
        answer = await client.evolution_send()
        assert answer.status == status
        with pytest.raises(orjson.JSONDecodeError):
            orjson.loads(answer.body)
        assert bool(client.sandbox.record.sent()) is accepted

    converse(talk, with_faults(f"send:{fault}"))


def test_a_success_without_an_id_was_no_success() -> None:
    async def talk(client: Client) -> None:
        answer = await client.evolution_send()
        assert answer.status == 201
        assert "key" not in answer.json
        assert not client.sandbox.record.sent()

    converse(talk, with_faults("send:no_id"))


@pytest.mark.parametrize(("fault", "accepted"), [("cut_before", False), ("cut_after", True)])
def test_a_cut_connection_gives_no_answer(fault: str, accepted: bool) -> None:
    async def talk(client: Client) -> None:
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await client.evolution_send()
        (entry,) = client.sandbox.record.entries
        assert (entry["accepted"], entry["answered"]) == (accepted, None)

    converse(talk, with_faults(f"send:{fault}"))


@pytest.mark.parametrize(("fault", "accepted"), [("hang_before", False), ("hang_after", True)])
def test_a_hanging_request_lasts_until_the_client_gives_up(fault: str, accepted: bool) -> None:
    async def talk(client: Client) -> None:
        entry = await client.give_up(client.evolution_send(), lambda entry: entry["fault"] is not None)
        await client.until(lambda: entry["accepted"] is accepted)
        assert (entry["accepted"], entry["answered"]) == (accepted, None)

    converse(talk, with_faults(f"send:{fault}"))


def test_an_answer_can_come_long_after_the_message_went_out() -> None:
    async def talk(client: Client) -> None:
        begin = time.monotonic()
        answer = await client.evolution_send()
        assert time.monotonic() - begin >= 0.08
        assert answer.json["key"]["id"] == client.sandbox.record.sent()[0]["provider_message_id"]

    converse(talk, with_faults("send:hang_after:seconds=0.08"))


@pytest.mark.parametrize(("seconds", "accepted"), [("0", True), ("3600", False)])
def test_a_late_message_goes_out_after_its_connection_was_cut(seconds: str, accepted: bool) -> None:
    async def talk(client: Client) -> None:
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await client.evolution_send()
        await client.evolution("/instance/connectionState/loja")  # by the time of this answer the rest was done
        (entry,) = client.sandbox.record.where(kind="send")
        assert (entry["accepted"], entry["answered"]) == (accepted, None)

    converse(talk, with_faults(f"send:late:seconds={seconds}"))


def test_every_fault_of_a_send_is_tested_here() -> None:
    others = {"scripted", "proxy_html_502", "gateway_timeout_504", "malformed_json", "no_id", "late"}
    tested = {*ANSWERED, *others, "cut_before", "cut_after", "hang_before", "hang_after"}
    assert tested == set(FAULTS[Kind.SEND])


@pytest.mark.parametrize("kind", [Kind.LOOK_UP, Kind.STATUS, Kind.NUMBER_CHECK])
@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ("unauthorized_401", 401),
        ("instance_404", 404),
        ("server_error_500", 500),
        ("proxy_html_502", 502),
        ("malformed_json", 200),
        ("hang", None),
        ("cut", None),
    ],
)
def test_every_other_endpoint_can_fail_too(kind: Kind, fault: str, status: int | None) -> None:
    places: Mapping[Kind, tuple[str, object]] = {
        Kind.LOOK_UP: ("/chat/findMessages/loja", {"where": {}}),
        Kind.STATUS: ("/instance/connectionState/loja", None),
        Kind.NUMBER_CHECK: ("/chat/whatsappNumbers/loja", {"numbers": [PHONE]}),
    }
    path, body = places[kind]

    async def talk(client: Client) -> None:
        if fault == "hang":
            await client.give_up(client.evolution(path, body), lambda entry: entry["fault"] == "hang")
        elif fault == "cut":
            with pytest.raises(aiohttp.ServerDisconnectedError):
                await client.evolution(path, body)
        else:
            assert (await client.evolution(path, body)).status == status

    converse(talk, with_faults(f"{kind.value}:{fault}"))


def test_numbers_are_checked_one_by_one_and_lose_their_ninth_digit_where_whatsapp_does() -> None:
    async def talk(client: Client) -> None:
        numbers = [PHONE, "5531987654321", "5511900000001"]
        assert (await client.evolution("/chat/whatsappNumbers/loja", {"numbers": numbers})).json == [
            {"jid": f"{PHONE}@s.whatsapp.net", "exists": True, "number": PHONE},
            {"jid": "553187654321@s.whatsapp.net", "exists": True, "number": "5531987654321"},
            {"jid": "5511900000001@s.whatsapp.net", "exists": False, "number": "5511900000001"},
        ]

    converse(talk, with_faults("number_check:not_on_whatsapp:phone=5511900000001"))


async def found(client: Client, where: Mapping[str, object], **paging: int) -> Any:
    answer = await client.evolution("/chat/findMessages/loja", {"where": where, **paging})
    assert answer.status == 200
    return answer.json["messages"]


def test_a_message_is_found_by_id_by_jid_and_by_time() -> None:
    async def talk(client: Client) -> None:
        first = (await client.evolution_send("Olá")).json["key"]
        await client.evolution("/message/sendText/loja", {"number": "5511900000001", "text": "Oi"})
        await client.evolution("/message/sendText/filial", {"number": PHONE, "text": "Outra"})
        (record,) = (await found(client, {"key": {"id": first["id"]}}))["records"]
        assert record["key"] == first
        assert record["message"] == {"conversation": "Olá"}
        assert record["MessageUpdate"] == [{"status": "SERVER_ACK"}]
        by_jid = await found(client, {"key": {"fromMe": True, "remoteJid": first["remoteJid"]}})
        assert [each["key"]["id"] for each in by_jid["records"]] == [first["id"]]
        both = await found(client, {"key": {"id": first["id"], "remoteJid": "5511900000001@s.whatsapp.net"}})
        assert both["records"] == []
        assert (await found(client, {}))["total"] == 2

    converse(talk)


def test_a_time_span_counts_only_with_both_its_ends() -> None:
    now = datetime.now(UTC)
    before, after = now - timedelta(hours=1), now + timedelta(hours=1)

    async def talk(client: Client) -> None:
        await client.evolution_send()
        spans = [
            {"gte": before.isoformat(), "lte": after.isoformat()},
            {"gte": before.strftime("%Y-%m-%dT%H:%M:%S.000Z"), "lte": after.strftime("%Y-%m-%dT%H:%M:%SZ")},
            {"gte": after.isoformat()},
            {"gte": after.isoformat(), "lte": (after + timedelta(hours=1)).isoformat()},
        ]
        assert [(await found(client, {"messageTimestamp": span}))["total"] for span in spans] == [1, 1, 1, 0]
        broken = {"where": {"messageTimestamp": {"gte": "ontem", "lte": "hoje"}}}
        assert (await client.evolution("/chat/findMessages/loja", broken)).status == 500

    converse(talk)


def test_pages_are_as_long_as_their_offset_and_begin_with_the_newest() -> None:
    async def talk(client: Client) -> None:
        for no in range(5):
            await client.evolution_send(f"texto {no}")
        texts = []
        for page in (1, 2, 3):
            messages = await found(client, {}, page=page, offset=2)
            assert (messages["total"], messages["pages"], messages["currentPage"]) == (5, 3, page)
            texts += [record["message"]["conversation"] for record in messages["records"]]
        assert texts == [f"texto {no}" for no in (4, 3, 2, 1, 0)]

    converse(talk)


@pytest.mark.parametrize("change", [{"saves_messages": False}, {"saved_after": 3600.0}])
def test_a_message_that_is_not_saved_or_not_yet_is_not_found(change: Mapping[str, Any]) -> None:
    async def talk(client: Client) -> None:
        client.sandbox.set_behaviour(replace(Behaviour(), **change))
        await client.evolution_send("sumida")
        client.sandbox.set_behaviour(Behaviour())
        await client.evolution_send("achada")
        records = (await found(client, {}))["records"]
        assert [record["message"]["conversation"] for record in records] == ["achada"]

    converse(talk)


def test_a_message_accepted_behind_a_lost_answer_is_found() -> None:
    async def talk(client: Client) -> None:
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await client.evolution_send("perdida")
        (record,) = (await found(client, {"key": {"remoteJid": f"{PHONE}@s.whatsapp.net"}}))["records"]
        assert record["message"]["conversation"] == "perdida"

    converse(talk, with_faults("send:cut_after"))
