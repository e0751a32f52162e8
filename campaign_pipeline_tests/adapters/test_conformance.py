"""The requirements of every message channel: one suite, one entry per channel.

A further channel over HTTP is one more entry in CHANNELS, one file in `answers/`, and a stand-in in the sandbox; what
is its provider's alone is tested in a file of its own. SMTP speaks another protocol and has its own suite with the same
facts (`test_smtp.py`).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from campaign_pipeline.adapters import cloud_api, evolution, supabase, uazapi
from campaign_pipeline.adapters.answers import Row
from campaign_pipeline.adapters.http import Answer, NoAnswer, http_client
from campaign_pipeline.adapters.inbox_connection import InboxConnection
from campaign_pipeline.core.ports import (
    UNRECOGNISED,
    Absent,
    Attempt,
    Envelope,
    Failure,
    Found,
    LookUp,
    LookUpFailed,
    MessageChannel,
    NotReady,
    NumberExists,
    NumberMissing,
    NumberNotChecked,
    Outcome,
    Permanent,
    Sent,
    Systemic,
    Throttled,
    Transient,
    Unknown,
)
from campaign_pipeline.sandbox import FAULTS, Behaviour, Fault, InstanceState, Kind, Latency, Sandbox
from campaign_pipeline_tests.adapters.wire import (
    Serve,
    answering,
    differences,
    played,
    read_request,
    response,
    samples,
    serving,
)

KEY = "B6D711FCDE4D4FD5936544120E713976"
CONVERSATION = "0b6f3c1e-5a44-4f0e-9a53-6f2c0a8d1e77"
ENVELOPE = Envelope("m-1", 1, "Olá, Ana! Podemos conversar?", "5511987654321", conversation_id=CONVERSATION)
Classes = Mapping[str, tuple[type[object], str]]

NO_ANSWER: Classes = dict.fromkeys(
    ("cut_before", "cut_after", "hang_before", "hang_after", "late"), (Unknown, "no_answer")
)
SCRIPTED: Classes = {"scripted": (Unknown, UNRECOGNISED)}
FROM_PROXIES: Classes = {"proxy_html_502": (Unknown, "http_502"), "gateway_timeout_504": (Unknown, "http_504")}
HALF_ANSWERS: Classes = {"malformed_json": (Unknown, "no_id"), "no_id": (Unknown, "no_id")}


@dataclass(frozen=True)
class Channel:
    """One adapter with its test data."""

    name: str  # also of its file in answers/, and of its provider in the sandbox
    build: Callable[[httpx.AsyncBaseTransport, InboxConnection, Mapping[str, str], float], MessageChannel]
    read: Callable[[Answer | NoAnswer], Outcome]
    table: Sequence[Row]
    instance: str  # the sandbox's name of our inbox
    faults: Classes
    states: Classes = field(default_factory=dict)  # of an instance that cannot send
    success: int = 200
    delay: float = 0.0  # seconds that its server itself may take, beyond the time-out

    @property
    def samples(self) -> Sequence[Mapping[str, Any]]:
        """Its answers, each with the expected class."""
        return samples(f"{self.name}.json")

    def connect(self, client: httpx.AsyncBaseTransport, base_url: str, send_timeout: float = 5.0) -> MessageChannel:
        """Return its channel, with keys, constructed like the pipeline does."""
        connection = InboxConnection(
            name="loja",
            instance_token=KEY,
            status="connected",
            provider_config={"phone_number_id": "106540352242922"},
        )
        variables = {f"{self.name.upper()}_API_URL": base_url}
        variables |= {"CLOUD_API_URL": base_url, "SUPABASE_URL": base_url, "SUPABASE_SERVICE_ROLE_KEY": KEY}
        return self.build(client, connection, variables, send_timeout)

    def url(self, sandbox: Sandbox) -> str:
        """Return where the sandbox serves its provider."""
        return f"{sandbox.url}/{self.name}"


CHANNELS = (
    Channel(
        "evolution",
        evolution.from_connection,
        evolution.Evolution.read_send,
        evolution.Evolution.answers,
        "loja",
        {
            "not_on_whatsapp": (Permanent, "not_on_whatsapp"),
            "connection_closed": (Systemic, "inbox_disconnected"),
            "timed_out": (Unknown, "provider_timeout"),
            "rate_overlimit": (Throttled, "rate_limited"),
            "schema": (Permanent, "invalid_request"),
            "no_keys": (Transient, "no_keys"),
            "other_400": (Unknown, UNRECOGNISED),
            "unauthorized_401": (Systemic, "bad_key"),
            "instance_404": (Systemic, "instance_missing"),
            "timeout_408": (Unknown, "http_408"),
            "server_error_500": (Unknown, "http_500"),
            **FROM_PROXIES,
            **HALF_ANSWERS,
            **NO_ANSWER,
            **SCRIPTED,
        },
        {
            "connecting": (NotReady, "connecting"),
            "close": (Systemic, "inbox_disconnected"),
            "missing": (Systemic, "instance_missing"),
        },
        success=201,
        delay=2.0,
    ),
    Channel(
        "uazapi",
        uazapi.from_connection,
        uazapi.Uazapi.read_send,
        uazapi.Uazapi.answers,
        KEY,
        {
            "not_on_whatsapp": (Permanent, "not_on_whatsapp"),
            "connection_closed": (Systemic, "inbox_disconnected"),
            "timed_out": (Unknown, "provider_timeout"),
            "rate_overlimit": (Throttled, "rate_limited"),
            "schema": (Permanent, "invalid_request"),
            "no_keys": (Transient, "no_keys"),
            "other_400": (Unknown, UNRECOGNISED),
            "unauthorized_401": (Systemic, "bad_key"),
            "instance_404": (Systemic, "instance_missing"),
            "timeout_408": (Unknown, "http_408"),
            "server_error_500": (Unknown, "send_failed"),
            **FROM_PROXIES,
            **HALF_ANSWERS,
            **NO_ANSWER,
            **SCRIPTED,
        },
        {
            "connecting": (NotReady, "connecting"),
            "close": (Systemic, "inbox_disconnected"),
            "missing": (Systemic, "instance_missing"),
        },
        delay=2.0,
    ),
    Channel(
        "cloud_api",
        cloud_api.from_connection,
        cloud_api.CloudApi.read_send,
        cloud_api.CloudApi.answers,
        "106540352242922",
        {
            "not_on_whatsapp": (Permanent, "undeliverable"),
            "connection_closed": (Systemic, "not_registered"),
            "timed_out": (Transient, "meta_unavailable"),
            "rate_overlimit": (Throttled, "rate_limited"),
            "schema": (Permanent, "invalid_request"),
            "no_keys": (Transient, "meta_unavailable"),
            "other_400": (Unknown, UNRECOGNISED),
            "unauthorized_401": (Systemic, "bad_key"),
            "instance_404": (Systemic, "number_missing"),
            "timeout_408": (Transient, "meta_unavailable"),
            "server_error_500": (Transient, "meta_unavailable"),
            **FROM_PROXIES,
            **HALF_ANSWERS,
            **NO_ANSWER,
            **SCRIPTED,
        },
        {
            "connecting": (NotReady, "connecting"),
            "close": (Systemic, "number_unusable"),
            "missing": (Systemic, "number_missing"),
        },
    ),
    Channel(
        "supabase",
        supabase.from_connection,
        supabase.InternalSend.read_send,
        supabase.InternalSend.answers,
        "crm",
        {
            "not_on_whatsapp": (Permanent, "not_on_whatsapp"),
            "connection_closed": (Systemic, "inbox_disconnected"),
            "timed_out": (Unknown, "provider_timeout"),
            "rate_overlimit": (Throttled, "rate_limited"),
            "schema": (Permanent, "invalid_request"),
            "no_keys": (Transient, "no_keys"),
            "other_400": (Unknown, UNRECOGNISED),
            "unauthorized_401": (Systemic, "bad_key"),
            "instance_404": (Permanent, "conversation_missing"),
            "timeout_408": (Unknown, "http_408"),
            "server_error_500": (Unknown, UNRECOGNISED),
            **FROM_PROXIES,
            **HALF_ANSWERS,
            **NO_ANSWER,
            **SCRIPTED,
        },
        delay=1.0,
    ),
)

every_channel = pytest.mark.parametrize("channel", CHANNELS, ids=[channel.name for channel in CHANNELS])
channels_that_tell = [channel for channel in CHANNELS if channel.states]
every_channel_that_tells = pytest.mark.parametrize(
    "channel", channels_that_tell, ids=[channel.name for channel in channels_that_tell]
)

Use = Callable[[MessageChannel], Awaitable[Any]]


def with_server(channel: Channel, serve: Serve, use: Use, send_timeout: float = 5.0) -> Any:
    """Run something with the channel of a raw server."""

    async def inside() -> Any:
        async with serving(serve) as place, http_client(connections=2) as client:
            return await asyncio.wait_for(use(channel.connect(client, f"http://{place}", send_timeout)), 20)

    return asyncio.run(inside())


def with_sandbox(
    channel: Channel,
    use: Callable[[MessageChannel, Sandbox], Awaitable[Any]],
    behaviour: Behaviour | None = None,
    send_timeout: float = 5.0,
) -> Any:
    """Run something with the channel of a sandbox."""

    async def inside() -> Any:
        async with Sandbox(behaviour) as sandbox, http_client(connections=2) as client:
            return await asyncio.wait_for(use(channel.connect(client, channel.url(sandbox), send_timeout), sandbox), 20)

    return asyncio.run(inside())


def with_faults(*rules: str) -> Behaviour:
    return Behaviour(faults=tuple(Fault.parse(rule) for rule in rules))


async def send(adapter: MessageChannel) -> Outcome:
    return await adapter.send(ENVELOPE)


# Deadline -------------------------------------------------------------------------------------------------------------


@every_channel
def test_an_expired_request_is_not_written_and_the_check_follows_the_connection(
    channel: Channel,
) -> None:
    seen: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append("connected")
        while await reader.read(1):
            seen.append("byte")

    def refuse() -> bool:
        seen.append("asked")
        return False

    async def use(adapter: MessageChannel) -> Outcome:
        return await adapter.send(replace(ENVELOPE, may_leave=refuse))

    outcome = with_server(channel, serve, use)
    assert isinstance(outcome, Transient)
    assert sorted(seen) == ["asked", "connected"]


@every_channel
def test_a_refused_departure_spoils_no_other_request(channel: Channel) -> None:
    async def use(adapter: MessageChannel, sandbox: Sandbox) -> list[bool]:
        refusing = replace(ENVELOPE, may_leave=lambda: False)
        sends = [adapter.send(refusing if number % 2 else ENVELOPE) for number in range(6)]
        outcomes = await asyncio.gather(*sends)
        return [isinstance(outcome, Sent) for outcome in outcomes]

    assert with_sandbox(channel, use) == [True, False] * 3


# Classification -------------------------------------------------------------------------------------------------------

SAMPLES = [(channel, sample) for channel in CHANNELS for sample in channel.samples]


@pytest.mark.parametrize(
    ("channel", "sample"), SAMPLES, ids=[f"{channel.name}: {sample['name']}" for channel, sample in SAMPLES]
)
def test_each_answer_has_its_class(channel: Channel, sample: Mapping[str, Any]) -> None:
    outcome = with_server(channel, played(sample), send)
    assert differences(outcome, sample["expect"]) == {}
    reason = getattr(outcome, "reason", "one.")
    assert reason[0].isupper() or reason == "one.", "an operator reads a sentence"
    assert sample["expect"].get("reason_lacks", KEY) not in reason


@every_channel
def test_the_samples_cover_every_row_of_the_table(channel: Channel) -> None:
    expected = {
        (s["expect"]["outcome"], s["expect"].get("code") or s["expect"].get("response", {}).get("warning"))
        for s in channel.samples
    }
    for row in channel.table:
        codes = {row.code.format(status=status) for status in (408, 500, 502)}
        assert expected & {(row.outcome.__name__.lower(), code) for code in codes}, row


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["key", "id", "messageid", "error", "code", "message", "messages", "response", "success", "details",
             "provider_response", "provider_message_id", "contacts", "exists", "error_data", "error_subcode"]
        ),
        inner,
        max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@every_channel
@given(status=st.integers(200, 599), body=JSON, after=st.none() | st.floats(0, 100))
def test_every_answer_is_classified_and_only_a_success_with_an_id_is_sent(
    channel: Channel, status: int, body: object, after: float | None
) -> None:
    raw = orjson.dumps(body, option=orjson.OPT_PASSTHROUGH_SUBCLASS) if not _too_big(body) else b"{}"
    outcome = channel.read(Answer(status, orjson.loads(raw), raw, after))
    if isinstance(outcome, Sent):
        assert outcome.provider_message_id
        assert status in {200, 201}
    else:
        assert isinstance(outcome, Permanent | Transient | Throttled | Systemic | Unknown)
        assert outcome.code
        assert outcome.reason
        assert outcome.answer or outcome.code != UNRECOGNISED, "what nobody knows is kept"


def _too_big(body: object) -> bool:
    """Return whether JSON cannot represent one of its numbers."""
    if isinstance(body, dict | list):
        return any(_too_big(each) for each in (body.values() if isinstance(body, dict) else body))
    return isinstance(body, int) and abs(body) >= 2**63


@every_channel
def test_an_answer_that_no_row_knows_keeps_its_body_for_the_ledger_and_out_of_the_sentence(channel: Channel) -> None:
    body = orjson.dumps({"error": "Surpresa! Ligue para 5511987654321", "Ana Souza": f"key {KEY}"})
    outcome = with_server(channel, answering(response(body, status="418 I'm a teapot")), send)
    assert isinstance(outcome, Unknown)
    assert outcome.code == UNRECOGNISED
    assert "a JSON object of error, 1 more" in outcome.reason
    assert "Ana" not in outcome.reason
    assert outcome.answer["status"] == 418
    assert "Surpresa!" in str(outcome.answer["body"])
    assert "5511987654321" not in str(outcome.answer["body"])
    assert KEY not in str(outcome.answer["body"])


# Sending --------------------------------------------------------------------------------------------------------------


@every_channel
def test_a_part_is_sent_once_and_bears_the_id_that_its_provider_gave_it(channel: Channel) -> None:
    async def use(adapter: MessageChannel, sandbox: Sandbox) -> None:
        outcome = await adapter.send(ENVELOPE)
        (entry,) = sandbox.record.where(kind="send")
        assert isinstance(outcome, Sent)
        assert outcome.provider_message_id == entry["provider_message_id"]
        assert (entry["text"], entry["provider"]) == (ENVELOPE.text, channel.name)

    with_sandbox(channel, use)


@every_channel
def test_every_fault_of_the_sandbox_is_known_here(channel: Channel) -> None:
    assert set(channel.faults) == set(FAULTS[Kind.SEND])


@every_channel
@pytest.mark.parametrize("fault", FAULTS[Kind.SEND])
def test_each_fault_has_its_class(channel: Channel, fault: str) -> None:
    async def use(adapter: MessageChannel, _: Sandbox) -> Outcome:
        return await adapter.send(ENVELOPE)

    outcome = with_sandbox(channel, use, Behaviour(faults=(Fault(Kind.SEND, fault),)), 0.3 if "hang" in fault else 5.0)
    kind, code = channel.faults[fault]
    assert (type(outcome), getattr(outcome, "code", None)) == (kind, code)


@every_channel
def test_a_server_that_cannot_be_reached_let_nothing_leave(channel: Channel) -> None:
    async def inside() -> Outcome:
        async with serving(answering(b"")) as place:
            pass
        async with http_client(connections=1) as client:
            return await channel.connect(client, f"http://{place}").send(ENVELOPE)

    outcome = asyncio.run(inside())
    assert isinstance(outcome, Transient)
    assert outcome.code == "unreachable"


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"


@every_channel
@pytest.mark.parametrize("written", [b"", b"HTTP/1.1 20", HEAD, HEAD + b'{"key"'], ids=["0", "line", "head", "half"])
def test_a_connection_that_is_lost_after_the_request_leaves_the_outcome_unknown(
    channel: Channel, written: bytes
) -> None:
    outcome = with_server(channel, answering(written), send)
    assert isinstance(outcome, Unknown)
    assert outcome.code == "no_answer"


@every_channel
@pytest.mark.parametrize("body", [b"", b"ok", b"[]", b"7", b"null", b"<html>ok</html>", b"{}", b"\xff\xfe\x00"])
def test_a_success_without_sense_leaves_the_outcome_unknown(channel: Channel, body: bytes) -> None:
    outcome = with_server(channel, answering(response(body, status=f"{channel.success} OK")), send)
    assert isinstance(outcome, Unknown)
    assert outcome.code == "no_id"


@every_channel
@pytest.mark.parametrize("status", [200, 400, 500, 502])
def test_a_huge_body_makes_no_huge_outcome(channel: Channel, status: int) -> None:
    body = b'{"error": "' + b"x" * 5_000_000 + b'"}'
    outcome = with_server(channel, answering(response(body, status=f"{status} X")), send)
    assert not isinstance(outcome, Sent)
    assert len(repr(outcome)) < 2000


@every_channel
def test_a_trickling_body_ends_at_the_timeout(channel: Channel) -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while True:
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.02)

    outcome = with_server(channel, drip, send, send_timeout=0.2)
    assert isinstance(outcome, Unknown)
    assert outcome.code == "no_answer"


@every_channel
def test_the_servers_own_delay_extends_the_timeout(channel: Channel) -> None:
    if not channel.delay:
        return  # it answers at once
    types = channel.name != "supabase"  # there the delay is its own, and not ours to choose
    envelope = replace(ENVELOPE, delay_ms=round(1000 * channel.delay) if types else 0)

    async def use(adapter: MessageChannel, _: Sandbox) -> Outcome:
        return await adapter.send(envelope)

    behaviour = Behaviour() if types else Behaviour(latencies={Kind.SEND: Latency(channel.delay)})
    assert isinstance(with_sandbox(channel, use, behaviour, send_timeout=0.9 * channel.delay), Sent)


# Keys -----------------------------------------------------------------------------------------------------------------


@every_channel
@pytest.mark.parametrize("status", [200, 400, 401, 404, 418, 429, 500, 502])
def test_a_key_quoted_in_an_answer_is_in_no_result(
    channel: Channel, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    quoting = {"error": {"message": f"key {KEY} may not", "code": 139999}, "message": f"Bearer {KEY}", "response": KEY}
    answer = response(orjson.dumps(quoting), f"X-Debug: {KEY}", status=f"{status} {KEY}")
    seen: list[object] = []

    async def use(adapter: MessageChannel) -> None:
        attempt = Attempt(ENVELOPE, 0.0)
        seen.extend([adapter, await adapter.send(ENVELOPE), await adapter.check_connection()])
        seen.extend([await adapter.find_accepted(attempt), await adapter.check_number("5511987654321")])

    with_server(channel, answering(answer), use)
    assert KEY not in repr(seen)
    assert KEY not in str([vars(each) for each in seen[1:] if each is not None])
    assert KEY not in caplog.text


@every_channel
def test_a_key_that_no_header_can_bear_is_refused_without_being_quoted(channel: Channel) -> None:
    bad = "chave-secretíssima"
    variables = {
        f"{channel.name.upper()}_API_URL": "http://x",
        "SUPABASE_URL": "http://x",
        "SUPABASE_SERVICE_ROLE_KEY": bad,
    }
    number = {"phone_number_id": "106540352242922"}
    connection = InboxConnection(name="loja", instance_token=bad, provider_config=number)
    with pytest.raises(LookupError) as problem:
        channel.build(http_client(connections=1), connection, variables, 5.0)
    assert bad not in str(problem.value)
    assert str(problem.value).endswith(".")


# Connection -----------------------------------------------------------------------------------------------------------


@every_channel_that_tells
@pytest.mark.parametrize("state", list(InstanceState), ids=[state.value for state in InstanceState])
def test_the_state_of_the_connection(channel: Channel, state: InstanceState) -> None:
    async def use(adapter: MessageChannel, _: Sandbox) -> Failure | NotReady | None:
        return await adapter.check_connection()

    refusal = with_sandbox(channel, use, Behaviour(instances={channel.instance: state}))
    expected = channel.states.get(state.value)
    assert (None if refusal is None else (type(refusal), refusal.code)) == expected


@every_channel_that_tells
@pytest.mark.parametrize("fault", ["server_error_500", "proxy_html_502", "malformed_json", "cut"])
def test_a_state_that_cannot_be_asked_holds_nothing_back(channel: Channel, fault: str) -> None:
    async def use(adapter: MessageChannel, _: Sandbox) -> Failure | NotReady | None:
        return await adapter.check_connection()

    assert with_sandbox(channel, use, with_faults(f"status:{fault}")) is None


# Numbers --------------------------------------------------------------------------------------------------------------


@every_channel
def test_a_number_is_checked_if_the_channel_can_and_never_assumed_to_exist(channel: Channel) -> None:
    async def use(adapter: MessageChannel, sandbox: Sandbox) -> None:
        known, missing = await adapter.check_number("5531987654321"), await adapter.check_number("5511900000001")
        if adapter.traits.number_check:
            # Registered without its ninth digit.
            assert known == NumberExists("553187654321", "553187654321@s.whatsapp.net")
            assert isinstance(missing, NumberMissing)
        else:
            assert isinstance(known, NumberNotChecked)
            assert isinstance(missing, NumberNotChecked)
            assert sandbox.record.entries == []

    rule = Fault.parse("number_check:not_on_whatsapp:phone=5511900000001")
    with_sandbox(channel, use, Behaviour(faults=(rule,)))


@every_channel
@pytest.mark.parametrize(
    "fault", [name for name in FAULTS[Kind.NUMBER_CHECK] if name not in {"not_on_whatsapp", "hang"}]
)
def test_a_number_that_could_not_be_asked_for_is_not_known(channel: Channel, fault: str) -> None:
    async def use(adapter: MessageChannel, _: Sandbox) -> object:
        return await adapter.check_number("5511987654321")

    assert isinstance(with_sandbox(channel, use, with_faults(f"number_check:{fault}")), NumberNotChecked)


# Looking up -----------------------------------------------------------------------------------------------------------

can_be_asked = pytest.mark.parametrize(
    "channel", [channel for channel in CHANNELS if channel.name in {"evolution", "uazapi"}], ids=lambda c: c.name
)


@can_be_asked
@pytest.mark.parametrize("fault", ["cut_after", "malformed_json", "hang_after", "server_error_500:accepts=true"])
def test_a_part_sent_without_an_answer_is_found_with_its_id(channel: Channel, fault: str) -> None:
    async def use(adapter: MessageChannel, sandbox: Sandbox) -> None:
        assert isinstance(await adapter.send(ENVELOPE), Unknown)
        found = await adapter.find_accepted(Attempt(ENVELOPE, sandbox.record.entries[0]["received_at"]))
        assert isinstance(found, Found)
        assert [found.provider_message_id] == [entry["provider_message_id"] for entry in sandbox.record.sent()]

    with_sandbox(channel, use, with_faults(f"send:{fault}"), send_timeout=0.5)


@can_be_asked
def test_a_part_that_never_arrived_is_absent_for_sure(channel: Channel) -> None:
    async def use(adapter: MessageChannel, sandbox: Sandbox) -> None:
        control = await adapter.send(replace(ENVELOPE, message_id="m-0", text="Outra.", address="5511911112222"))
        assert isinstance(control, Sent)
        assert isinstance(await adapter.send(ENVELOPE), Unknown)
        started = sandbox.record.entries[0]["received_at"]
        absent = await adapter.find_accepted(Attempt(ENVELOPE, started, control.provider_message_id))
        assert isinstance(absent, Absent)
        assert absent.proven

    with_sandbox(channel, use, with_faults("send:cut_before:text=Ana"))


@can_be_asked
@pytest.mark.parametrize("fault", ["server_error_500", "proxy_html_502", "malformed_json", "cut", "unauthorized_401"])
def test_a_look_up_that_fails_proves_nothing(channel: Channel, fault: str) -> None:
    async def use(adapter: MessageChannel, sandbox: Sandbox) -> None:
        assert isinstance(await adapter.find_accepted(Attempt(ENVELOPE, 0.0)), LookUpFailed)

    with_sandbox(channel, use, with_faults(f"look_up:{fault}"))


@every_channel
def test_a_channel_that_cannot_be_asked_never_proves_an_absence(channel: Channel) -> None:
    async def use(adapter: MessageChannel, _: Sandbox) -> None:
        if adapter.traits.look_up is LookUp.EXACT:
            return
        absent = await adapter.find_accepted(Attempt(ENVELOPE, 0.0))
        assert isinstance(absent, Absent)
        assert not absent.proven

    with_sandbox(channel, use)
