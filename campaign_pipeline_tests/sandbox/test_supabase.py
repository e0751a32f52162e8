import pytest

from campaign_pipeline.sandbox import Behaviour, InstanceState
from campaign_pipeline.sandbox.behaviour import FAULTS, Kind
from campaign_pipeline_tests.sandbox.conversation import Answer, Client, converse, with_faults

CONVERSATION = "0b6f3c1e-5a44-4f0e-9a53-6f2c0a8d1e77"
KEYS = {"X-Service-Role-Key": "invented", "Authorization": "Bearer invented"}
BODY = {"conversationId": CONVERSATION, "text": "Olá, Ana!"}


async def send(client: Client, body: object = BODY, headers: dict[str, str] | None = None) -> Answer:
    url = f"{client.sandbox.supabase_url}/functions/v1/internal-send-ai-message"
    return await client.call("POST", url, body, KEYS if headers is None else headers)


def test_an_accepted_message_bears_the_row_and_what_its_provider_said() -> None:
    async def talk(client: Client) -> None:
        answer = (await send(client)).json
        (entry,) = client.sandbox.record.sent()
        assert answer["success"] is True
        assert answer["message"]["provider_message_id"] == entry["provider_message_id"]
        assert answer["provider_response"]["key"]["id"] == entry["provider_message_id"]
        assert (entry["number"], entry["text"]) == (CONVERSATION, "Olá, Ana!")

    converse(talk)


@pytest.mark.parametrize(
    "headers",
    [{}, {"X-Service-Role-Key": "invented"}, {"Authorization": "Bearer invented"}, {**KEYS, "X-Service-Role-Key": "x"}],
)
def test_both_headers_are_needed(headers: dict[str, str]) -> None:
    async def talk(client: Client) -> None:
        assert (await send(client, headers=headers)).status == 401

    converse(talk)


@pytest.mark.parametrize("body", [{}, {"text": "Olá"}, {"conversationId": CONVERSATION}, {**BODY, "text": " "}])
def test_a_request_that_is_not_complete_is_refused(body: object) -> None:
    async def talk(client: Client) -> None:
        assert (await send(client, body)).status == 400
        assert client.sandbox.record.sent() == []

    converse(talk)


@pytest.mark.parametrize(
    ("state", "status"), [(InstanceState.OPEN, 200), (InstanceState.CLOSE, 400), (InstanceState.MISSING, 404)]
)
def test_the_state_of_the_inbox_decides_whether_it_sends(state: InstanceState, status: int) -> None:
    async def talk(client: Client) -> None:
        assert (await send(client)).status == status

    converse(talk, Behaviour(instances={"crm": state}))


STATUSES = {
    "not_on_whatsapp": 500,
    "connection_closed": 400,
    "timed_out": 500,
    "rate_overlimit": 500,
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
        assert (await send(client)).status == STATUSES[fault]
        assert bool(client.sandbox.record.sent()) is (fault == "malformed_json")

    converse(talk, with_faults(f"supabase/send:{fault}"))


def test_every_fault_that_is_an_answer_is_tested_here() -> None:
    assert set(STATUSES) | {"cut_before", "cut_after", "hang_before", "hang_after", "late", "scripted"} == set(
        FAULTS[Kind.SEND]
    )
