"""Evolution's own behaviour, mainly the search. test_conformance has the tests of every channel."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from campaign_pipeline.adapters.channel import MOST_PAGES
from campaign_pipeline.adapters.evolution import Evolution, from_connection
from campaign_pipeline.adapters.http import http_client
from campaign_pipeline.adapters.inbox_connection import InboxConnection
from campaign_pipeline.core.ports import (
    Absent,
    Attempt,
    Envelope,
    Failure,
    Found,
    LookUpFailed,
    NotReady,
    NumberExists,
    NumberMissing,
    NumberNotChecked,
    Outcome,
    Scope,
    Sent,
    Systemic,
    Transient,
    Unknown,
)
from campaign_pipeline.sandbox import FAULTS, Behaviour, Fault, InstanceState, Kind, Sandbox
from campaign_pipeline_tests.adapters.wire import Playback, Serve, playback, serving

KEY = "B6D711FCDE4D4FD5936544120E713976"
ENVELOPE = Envelope("m-1", 1, "Olá, Ana! Podemos conversar?", "5511987654321")


def with_server(serve: Serve, send_timeout: float = 5.0) -> Callable[[Callable[[Evolution], Awaitable[Any]]], Any]:
    """Run something with the channel of a raw server."""

    def run(use: Callable[[Evolution], Awaitable[Any]]) -> Any:
        async def inside() -> Any:
            async with serving(serve) as place, http_client(connections=2) as client:
                return await asyncio.wait_for(use(Evolution(client, f"http://{place}/", "loja", KEY, send_timeout)), 20)

        return asyncio.run(inside())

    return run


def with_sandbox(
    use: Callable[[Evolution, Sandbox], Awaitable[Any]], behaviour: Behaviour | None = None, send_timeout: float = 5.0
) -> Any:
    """Run something with the channel of a sandbox."""

    async def inside() -> Any:
        async with Sandbox(behaviour) as sandbox, http_client(connections=2) as client:
            channel = Evolution(client, sandbox.evolution_url, "loja", KEY, send_timeout)
            return await asyncio.wait_for(use(channel, sandbox), 20)

    return asyncio.run(inside())


def with_faults(*rules: str) -> Behaviour:
    return Behaviour(faults=tuple(Fault.parse(rule) for rule in rules))


# Sending --------------------------------------------------------------------------------------------------------------


def test_a_message_arrives_unchanged_with_its_typing_time() -> None:
    server = playback({"key": {"id": "3EB0"}}, status="201 Created")
    text = "Olá 👋🏽!\n\nA — “b” {{x}} \u200f مرحبا"
    with_server(server)(lambda channel: channel.send(Envelope("m-1", 2, text, "5511987654321", delay_ms=700)))
    ((line, body),) = server.requests
    assert line == "POST /message/sendText/loja"
    assert body == {"number": "5511987654321", "text": text, "delay": 700, "linkPreview": False}


def test_the_name_of_an_instance_cannot_leave_its_place_in_the_path() -> None:
    server = playback({"key": {"id": "3EB0"}})

    async def inside() -> None:
        async with serving(server) as place, http_client(connections=1) as client:
            await Evolution(client, f"http://{place}", "loja 1/../admin?x#y", KEY).send(ENVELOPE)

    asyncio.run(inside())
    assert server.requests[0][0] == "POST /message/sendText/loja%201%2F..%2Fadmin%3Fx%23y"


def test_the_typing_time_is_added_to_the_time_out() -> None:
    async def use(channel: Evolution, sandbox: Sandbox) -> Outcome:
        return await channel.send(Envelope("m-1", 1, "Olá, Ana!", "5511987654321", delay_ms=2000))

    assert isinstance(with_sandbox(use, send_timeout=1.8), Sent)


def test_a_number_that_cannot_be_reached_let_nothing_leave() -> None:
    async def inside() -> Outcome:
        async with serving(playback()) as place:
            pass
        async with http_client(connections=1) as client:
            return await Evolution(client, f"http://{place}", "loja", KEY).send(ENVELOPE)

    outcome = asyncio.run(inside())
    assert isinstance(outcome, Transient)
    assert outcome.code == "unreachable"


def test_a_key_that_the_answer_quotes_is_in_no_reason() -> None:
    body = {"response": {"message": [f"apikey {KEY} may not"]}}
    outcome = with_server(playback(body, status="400 Bad Request"))(lambda channel: channel.send(ENVELOPE))
    assert KEY not in str(outcome)


# Connection -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (InstanceState.OPEN, None),
        (InstanceState.CONNECTING, (NotReady, "connecting")),
        (InstanceState.CLOSE, (Systemic, "inbox_disconnected")),
        (InstanceState.MISSING, (Systemic, "instance_missing")),
    ],
)
def test_the_state_of_the_connection(state: InstanceState, expected: tuple[type[object], str] | None) -> None:
    async def use(channel: Evolution, _: Sandbox) -> Failure | NotReady | None:
        return await channel.check_connection()

    refusal = with_sandbox(use, Behaviour(instances={"loja": state}))
    assert (None if refusal is None else (type(refusal), refusal.code)) == expected


@pytest.mark.parametrize("fault", ["server_error_500", "proxy_html_502", "malformed_json", "cut"])
def test_a_state_that_cannot_be_asked_holds_nothing_back(fault: str) -> None:
    async def use(channel: Evolution, _: Sandbox) -> Failure | NotReady | None:
        return await channel.check_connection()

    assert with_sandbox(use, with_faults(f"status:{fault}")) is None


@pytest.mark.parametrize(("status", "code"), [(401, "bad_key"), (403, "bad_key"), (302, "redirected")])
def test_a_state_that_is_refused_pauses_the_inbox(status: int, code: str) -> None:
    refusal = with_server(playback({}, status=f"{status} X"))(lambda channel: channel.check_connection())
    assert isinstance(refusal, Systemic)
    assert (refusal.code, refusal.scope) == (code, Scope.INBOX)


# Looking up -----------------------------------------------------------------------------------------------------------


def attempt(
    envelope: Envelope = ENVELOPE, *, control: str | None = None, taken: frozenset[str] = frozenset()
) -> Attempt:
    return Attempt(envelope, time.time() - 1, control, taken)


async def send_control(channel: Evolution) -> str:
    """Send a message as a control for the search."""
    sent = await channel.send(Envelope("m-0", 1, "Outra mensagem.", "5511911112222"))
    assert isinstance(sent, Sent)
    assert sent.provider_message_id is not None
    return sent.provider_message_id


@pytest.mark.parametrize("fault", ["cut_after", "malformed_json", "hang_after", "server_error_500:accepts=true"])
def test_a_part_sent_without_an_answer_is_found_with_its_id(fault: str) -> None:
    async def use(channel: Evolution, sandbox: Sandbox) -> None:
        assert isinstance(await channel.send(ENVELOPE), Unknown)
        found = await channel.find_accepted(attempt())
        assert isinstance(found, Found)
        assert [found.provider_message_id] == [entry["provider_message_id"] for entry in sandbox.record.sent()]

    with_sandbox(use, with_faults(f"send:{fault}"), send_timeout=0.5)


@pytest.mark.parametrize(
    ("address", "jid"),
    [
        ("5531987654321", "553187654321@s.whatsapp.net"),  # known to WhatsApp without the ninth digit
        ("553187654321", "553187654321@s.whatsapp.net"),
        ("5511987654321", "5511987654321@s.whatsapp.net"),
        ("351912345678", "351912345678@s.whatsapp.net"),
    ],
)
def test_a_part_is_found_with_and_without_the_ninth_digit(address: str, jid: str) -> None:
    envelope = Envelope("m-1", 1, "Olá, Ana!", address)

    async def use(channel: Evolution, sandbox: Sandbox) -> None:
        await channel.send(envelope)
        assert sandbox.record.sent()[0]["jid"] == jid
        assert isinstance(await channel.find_accepted(attempt(envelope)), Found)

    with_sandbox(use, with_faults("send:cut_after"))


def test_a_part_is_found_under_the_hidden_name_that_whatsapp_gives_the_number() -> None:
    record = {"key": {"id": "3EB0LID", "fromMe": True}, "message": {"conversation": ENVELOPE.text}}
    server = playback(
        {"messages": {"records": []}},  # by number
        {"messages": {"records": []}},  # by number without the ninth digit
        {"messages": {"records": [{"key": {"id": "3EB0CONTROL", "fromMe": True}}]}},
        [{"jid": "5511987654321@s.whatsapp.net", "exists": True, "lid": "18446744@lid"}],
        {"messages": {"records": [record]}},
    )
    found = with_server(server)(lambda channel: channel.find_accepted(attempt(control="3EB0CONTROL")))
    assert isinstance(found, Found)
    assert found.provider_message_id == "3EB0LID"
    assert server.requests[-1][1]["where"]["key"]["remoteJid"] == "18446744@lid"


def test_a_part_is_proven_absent_if_a_sent_one_is_found_the_same_way() -> None:
    async def use(channel: Evolution, _: Sandbox) -> None:
        control = await send_control(channel)
        assert isinstance(await channel.send(ENVELOPE), Unknown)
        absent = await channel.find_accepted(attempt(control=control))
        assert isinstance(absent, Absent)
        assert absent.proven

    with_sandbox(use, with_faults("send:cut_before:text=Ana"))


def test_a_miss_proves_nothing_where_sent_messages_are_not_kept() -> None:
    async def use(channel: Evolution, sandbox: Sandbox) -> None:
        control = await send_control(channel)
        await channel.send(ENVELOPE)
        absent = await channel.find_accepted(attempt(control=control))
        assert len(sandbox.record.sent()) == 2
        assert isinstance(absent, Absent)
        assert not absent.proven

    with_sandbox(use, Behaviour(saves_messages=False, faults=(Fault.parse("send:cut_after:text=Ana"),)))


def test_a_miss_proves_nothing_before_anything_was_surely_sent() -> None:
    async def use(channel: Evolution, _: Sandbox) -> None:
        absent = await channel.find_accepted(attempt())
        assert isinstance(absent, Absent)
        assert not absent.proven

    with_sandbox(use)


def test_a_record_that_is_late_is_found_when_it_is_there() -> None:
    async def use(channel: Evolution, sandbox: Sandbox) -> None:
        control = await send_control(channel)
        sandbox.set_behaviour(Behaviour(saved_after=3600, faults=(Fault.parse("send:cut_after"),)))
        await channel.send(ENVELOPE)
        assert isinstance(await channel.find_accepted(attempt(control=control)), Absent)
        sandbox.record.sent()[1]["saved_from"] = time.time()
        assert isinstance(await channel.find_accepted(attempt(control=control)), Found)

    with_sandbox(use)


@pytest.mark.parametrize("kind", ["look_up", "number_check"])
@pytest.mark.parametrize(
    "fault", ["server_error_500", "proxy_html_502", "malformed_json", "cut", "unauthorized_401", "instance_404"]
)
def test_a_question_that_fails_proves_nothing_and_is_asked_again(kind: str, fault: str) -> None:
    async def use(channel: Evolution, sandbox: Sandbox) -> None:
        control = await send_control(channel)
        sandbox.set_behaviour(with_faults(f"{kind}:{fault}"))
        assert isinstance(await channel.find_accepted(attempt(control=control)), LookUpFailed)

    with_sandbox(use)


def test_a_part_is_not_absent_while_the_disconnected_inbox_cannot_tell_what_whatsapp_calls_the_number() -> None:
    async def use(channel: Evolution, sandbox: Sandbox) -> None:
        control = await send_control(channel)
        sandbox.set_behaviour(Behaviour(instances={"loja": InstanceState.CLOSE}))
        assert isinstance(await channel.find_accepted(attempt(control=control)), LookUpFailed)

    with_sandbox(use)


def test_another_parts_message_is_no_result() -> None:
    async def use(channel: Evolution, _: Sandbox) -> None:
        control = await send_control(channel)
        sent = await channel.send(ENVELOPE)
        assert isinstance(sent, Sent)
        taken = frozenset({str(sent.provider_message_id)})
        assert isinstance(await channel.find_accepted(attempt(control=control, taken=taken)), Absent)
        assert isinstance(await channel.find_accepted(attempt(control=control)), Found)

    with_sandbox(use)


def records(*found: Mapping[str, Any], pages: int | None = None) -> dict[str, Any]:
    return {"messages": {"total": len(found), "pages": pages, "currentPage": 1, "records": list(found)}}


def record(
    text: object = ENVELOPE.text, *, own: object = True, provider_id: object = "3EB0", kind: str = "conversation"
) -> dict[str, Any]:
    message = {"conversation": text} if kind == "conversation" else {"extendedTextMessage": {"text": text}}
    return {"key": {"id": provider_id, "fromMe": own}, "message": message}


@pytest.mark.parametrize(
    ("stored", "found"),
    [
        (record(), True),
        (record(kind="extended"), True),
        (record("Olá, Ana!   Podemos\nconversar? "), True),  # a server that tidies blanks
        (record("Olá, Ana! Podemos"), False),
        (record(own=False), False),  # the lead wrote the same back
        (record(provider_id=None), False),
        (record(provider_id=7), False),
        (record(None), False),
        ({}, False),
        ({"key": "x", "message": []}, False),
    ],
)
def test_only_an_own_message_of_the_same_text_is_the_part(stored: Mapping[str, Any], found: bool) -> None:
    server = Playback(iter([*playback(records(stored)).answers, *playback(*[records()] * 3).answers]))
    answer = with_server(server)(lambda channel: channel.find_accepted(attempt()))
    assert isinstance(answer, Found if found else Absent)


def test_every_page_of_a_long_conversation_is_searched() -> None:
    server = playback(records(*[record("outra")] * 50, pages=2), records(record(provider_id="3EB0LAST"), pages=2))
    found = with_server(server)(lambda channel: channel.find_accepted(attempt()))
    assert isinstance(found, Found)
    assert found.provider_message_id == "3EB0LAST"
    assert [body["page"] for _, body in server.requests] == [1, 2]


def test_a_conversation_that_is_too_long_to_be_searched_proves_nothing() -> None:
    server = playback(*[records(record("outra"), pages=10_000)] * (MOST_PAGES + 1))
    assert isinstance(with_server(server)(lambda channel: channel.find_accepted(attempt())), LookUpFailed)
    assert len(server.requests) == MOST_PAGES


def test_the_search_names_number_direction_and_a_span_that_a_wrong_clock_cannot_miss() -> None:
    server = playback(records(record()))
    asked = Attempt(ENVELOPE, datetime(2026, 11, 22, 13, 0, tzinfo=UTC).timestamp())
    with_server(server)(lambda channel: channel.find_accepted(asked))
    where = server.requests[0][1]["where"]
    assert where["key"] == {"fromMe": True, "remoteJid": "5511987654321@s.whatsapp.net"}
    assert where["messageTimestamp"]["gte"] < "2026-11-22T11:59:00"
    assert where["messageTimestamp"]["lte"] > "2026-11-22T14:01:00"


# Numbers --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (
            [{"jid": "5511987654321@s.whatsapp.net", "exists": True, "number": "5511987654321", "lid": "18@lid"}],
            NumberExists("5511987654321", "5511987654321@s.whatsapp.net", "18@lid"),
        ),
        (  # registered without the ninth digit
            [{"jid": "553187654321@s.whatsapp.net", "exists": True, "number": "5531987654321"}],
            NumberExists("553187654321", "553187654321@s.whatsapp.net"),
        ),
        ([{"jid": "18@lid", "exists": True}], NumberExists("5511987654321", "18@lid", "18@lid")),
        ([{"exists": True, "jid": 7, "lid": ["x"]}], NumberExists("5511987654321")),
        (
            [{"jid": "5511987654321@s.whatsapp.net", "exists": False, "number": "5511987654321"}],
            NumberMissing("The number is not on WhatsApp."),
        ),
    ],
)
def test_number_checks_return_whatsapps_answer(answer: object, expected: object) -> None:
    server = playback(answer)
    assert with_server(server)(lambda channel: channel.check_number("5511987654321")) == expected
    ((line, body),) = server.requests
    assert (line, body) == ("POST /chat/whatsappNumbers/loja", {"numbers": ["5511987654321"]})


@pytest.mark.parametrize("answer", [[], {}, {"exists": True}, [{"exists": "true"}], [None], "sim", None])
def test_an_answer_that_does_not_say_so_is_no_existing_number(answer: object) -> None:
    checked = with_server(playback(answer))(lambda channel: channel.check_number("5511987654321"))
    assert isinstance(checked, NumberNotChecked)


@pytest.mark.parametrize(
    "fault", [name for name in FAULTS[Kind.NUMBER_CHECK] if name not in {"not_on_whatsapp", "hang"}]
)
def test_a_number_that_could_not_be_asked_for_is_not_known(fault: str) -> None:
    async def use(channel: Evolution, _: Sandbox) -> object:
        return await channel.check_number("5511987654321")

    assert isinstance(with_sandbox(use, with_faults(f"number_check:{fault}")), NumberNotChecked)


# Configuration --------------------------------------------------------------------------------------------------------


def build(variables: Mapping[str, str], **row: Any) -> Evolution:
    return from_connection(http_client(connections=1), InboxConnection(**{"name": "loja", **row}), variables, 30.0)


@pytest.mark.parametrize(
    ("row", "variables", "named"),
    [
        ({"api_key": "k"}, {}, "EVOLUTION_API_URL"),
        ({}, {"EVOLUTION_API_URL": "http://x"}, "EVOLUTION_API_KEY"),
        ({"api_key": "k", "name": None}, {"EVOLUTION_API_URL": "http://x"}, "instances.name"),
        ({"api_key": "k"}, {"EVOLUTION_API_URL": "evolution.example.com"}, "EVOLUTION_API_URL"),
        ({"api_key": "k", "provider_config": {"base_url": 7}}, {}, "provider_config.base_url"),
        ({"api_key": "k", "provider_config": ["x"]}, {}, "EVOLUTION_API_URL"),
        ({"api_key": "k", "provider_config": None}, {}, "EVOLUTION_API_URL"),
        ({"api_key": "chave-ção"}, {"EVOLUTION_API_URL": "http://x"}, "api_key"),
    ],
)
def test_missing_or_unusable_settings_are_named(row: dict[str, Any], variables: dict[str, str], named: str) -> None:
    with pytest.raises(LookupError, match=named) as problem:
        build(variables, **row)
    assert "ção" not in str(problem.value)


def test_the_instances_own_address_and_token_come_before_the_environments() -> None:
    requests: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n"))

    async def inside() -> None:
        async with serving(serve) as place, http_client(connections=1) as client:
            config = {"base_url": f"http://{place}"}
            connection = InboxConnection(
                name="loja", instance_token="own-token", api_key="other", provider_config=config
            )
            variables = {"EVOLUTION_API_URL": "http://127.0.0.1:1", "EVOLUTION_API_KEY": "global"}
            await from_connection(client, connection, variables, 5.0).send(ENVELOPE)

    asyncio.run(inside())
    assert b"apikey: own-token\r\n" in requests[0]
