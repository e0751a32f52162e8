from typing import Any

import aiohttp
import pytest

from campaign_pipeline.sandbox import Behaviour, InstanceState
from campaign_pipeline.sandbox.behaviour import FAULTS, Kind
from campaign_pipeline_tests.sandbox.conversation import PHONE, Answer, Client, converse, with_faults

NUMBER = "106540352242922"
TOKEN = {"Authorization": "Bearer invented"}


async def send(client: Client, headers: dict[str, str] | None = None, **fields: Any) -> Answer:
    body = {"messaging_product": "whatsapp", "to": PHONE, "type": "text", "text": {"body": "Olá, Ana!"}, **fields}
    url = f"{client.sandbox.cloud_api_url}/v23.0/{NUMBER}/messages"
    return await client.call("POST", url, body, TOKEN if headers is None else headers)


def template(*values: str) -> dict[str, Any]:
    parameters = [{"type": "text", "text": value} for value in values]
    components = [{"type": "body", "parameters": parameters}]
    return {
        "type": "template",
        "template": {"name": "oi", "language": {"code": "pt_BR"}, "components": components},
    }


def test_an_accepted_message_bears_its_id_the_account_and_our_key() -> None:
    async def talk(client: Client) -> None:
        answer = await send(client, to="5531987654321", biz_opaque_callback_data="m-1:1")
        (entry,) = client.sandbox.record.sent()
        assert answer.json == {
            "messaging_product": "whatsapp",
            "contacts": [{"input": "5531987654321", "wa_id": "553187654321"}],
            "messages": [{"id": entry["provider_message_id"], "message_status": "accepted"}],
        }
        assert (entry["provider_message_id"] or "").startswith("wamid.")
        assert (entry["track_id"], entry["instance"]) == ("m-1:1", NUMBER)

    converse(talk)


def test_a_template_is_recorded_with_its_variables() -> None:
    async def talk(client: Client) -> None:
        assert (await send(client, **template("Ana", "Vi que cresceram."))).status == 200
        assert client.sandbox.record.sent()[0]["text"] == "oi pt_BR | Ana | Vi que cresceram."

    converse(talk)


def test_a_user_id_goes_into_recipient_and_never_into_to() -> None:
    async def talk(client: Client) -> None:
        assert (await send(client, to="BR.13491208655302741918")).status == 400
        assert (await send(client, to=None, recipient="BR.13491208655302741918")).status == 200
        assert len(client.sandbox.record.sent()) == 1

    converse(talk)


@pytest.mark.parametrize("value", ["", "a\nb", "a\tb", "a     b", "x" * 1025])
def test_a_variable_that_meta_would_refuse_is_refused(value: str) -> None:
    async def talk(client: Client) -> None:
        answer = await send(client, **template(value))
        assert (answer.status, answer.json["error"]["code"]) == (400, 132012)
        assert client.sandbox.record.sent() == []

    converse(talk)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"to": ""}, 100),
        ({"messaging_product": "sms"}, 100),
        ({"text": {}}, 131008),
        ({"text": {"body": "x" * 4097}}, 100),
        ({"type": "template", "template": {"name": "oi"}}, 131008),
        ({"biz_opaque_callback_data": "x" * 513}, 100),
    ],
)
def test_a_request_that_is_not_valid_is_refused(fields: dict[str, Any], code: int) -> None:
    async def talk(client: Client) -> None:
        answer = await send(client, **fields)
        assert (answer.status, answer.json["error"]["code"]) == (400, code)

    converse(talk)


def test_no_token_is_refused_and_an_unknown_number_is_missing() -> None:
    async def talk(client: Client) -> None:
        assert (await send(client, {})).json["error"]["code"] == 190
        missing = (await send(client)).json["error"]
        assert (missing["code"], missing["error_subcode"]) == (100, 33)

    converse(talk, Behaviour(instances={NUMBER: InstanceState.MISSING}))


@pytest.mark.parametrize(
    ("state", "word"),
    [
        (InstanceState.OPEN, "CONNECTED"),
        (InstanceState.CONNECTING, "PENDING"),
        (InstanceState.CLOSE, "DISCONNECTED"),
    ],
)
def test_the_state_of_a_number_decides_whether_it_sends(state: InstanceState, word: str) -> None:
    async def talk(client: Client) -> None:
        url = f"{client.sandbox.cloud_api_url}/v23.0/{NUMBER}?fields=status"
        assert (await client.call("GET", url, None, TOKEN)).json == {"id": NUMBER, "status": word}
        assert (await send(client)).status == (200 if word == "CONNECTED" else 400)

    converse(talk, Behaviour(instances={NUMBER: state}))


STATUSES = {
    "not_on_whatsapp": 400,
    "connection_closed": 400,
    "timed_out": 500,
    "rate_overlimit": 429,
    "schema": 400,
    "no_keys": 500,
    "other_400": 400,
    "unauthorized_401": 401,
    "instance_404": 400,
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
        assert (await send(client)).status == STATUSES[fault]
        assert bool(client.sandbox.record.sent()) is (fault == "malformed_json")

    converse(talk, with_faults(f"cloud_api/send:{fault}"))


def test_every_fault_that_is_an_answer_is_tested_here() -> None:
    assert set(STATUSES) | {"cut_before", "cut_after", "hang_before", "hang_after", "late", "scripted"} == set(
        FAULTS[Kind.SEND]
    )


def test_an_answer_can_be_lost_though_the_message_goes_out() -> None:
    async def talk(client: Client) -> None:
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await send(client, biz_opaque_callback_data="m-1:1")
        assert client.sandbox.record.sent()[0]["track_id"] == "m-1:1"

    converse(talk, with_faults("cloud_api/send:cut_after"))
