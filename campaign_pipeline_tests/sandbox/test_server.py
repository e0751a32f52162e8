import asyncio
import time
from pathlib import Path

import aiohttp
import pytest

from campaign_pipeline.sandbox import Behaviour, BehaviourError, Fault, Kind, Latency, Sandbox
from campaign_pipeline_tests.sandbox.conversation import Client, converse, with_faults


def test_behaviour_is_changed_over_http_key_by_key() -> None:
    async def talk(client: Client) -> None:
        url = f"{client.sandbox.url}/_sandbox/behaviour"
        faults = [{"kind": "send", "name": "other_400", "times": 1}]
        assert (await client.call("POST", url, {"faults": faults})).status == 200
        assert (await client.call("POST", url, {"instances": {"filial": "close"}})).status == 200
        told = (await client.call("GET", url)).json
        assert told["instances"] == {"filial": "close"}
        assert [fault["name"] for fault in told["faults"]] == ["other_400"]
        assert [(await client.evolution_send()).status for _ in range(2)] == [400, 201]

    converse(talk)


def test_a_change_that_leaves_the_rules_alone_does_not_start_their_counts_anew() -> None:
    async def talk(client: Client) -> None:
        url = f"{client.sandbox.url}/_sandbox/behaviour"
        statuses = [(await client.evolution_send()).status]
        await client.call("POST", url, {"instances": {}})
        statuses.append((await client.evolution_send()).status)
        await client.call("POST", url, {"faults": [{"kind": "send", "name": "other_400", "times": 1}]})
        statuses.append((await client.evolution_send()).status)
        assert statuses == [400, 201, 400]

    converse(talk, with_faults("send:other_400:times=1"))


@pytest.mark.parametrize(
    "raw", [[], {"colour": "red"}, {"faults": [{"kind": "send", "name": "hang"}]}, {"faults": [{"kind": "send"}]}]
)
def test_a_behaviour_that_makes_no_sense_changes_nothing(raw: object) -> None:
    async def talk(client: Client) -> None:
        answer = await client.call("POST", f"{client.sandbox.url}/_sandbox/behaviour", raw)
        assert answer.status == 400
        assert answer.json["error"].endswith(".")
        assert client.sandbox.behaviour == Behaviour()

    converse(talk)


@pytest.mark.parametrize("rule", ["telegram/send:cut_after", "openrouter/send:cut_after", "evolution/generation:hang"])
def test_a_rule_that_could_never_apply_is_refused(rule: str) -> None:
    with pytest.raises(BehaviourError):
        Sandbox(with_faults(rule))


def test_the_record_is_told_over_http_and_can_be_filtered() -> None:
    async def talk(client: Client) -> None:
        await client.evolution_send("primeira")
        await client.evolution_send("segunda")
        await client.uazapi_send("terceira")
        url = f"{client.sandbox.url}/_sandbox/record"
        assert len((await client.call("GET", url)).json) == 3
        accepted = (await client.call("GET", f"{url}?provider=evolution&accepted=true")).json
        assert [entry["text"] for entry in accepted] == ["segunda"]
        assert accepted == client.sandbox.record.where(provider="evolution", accepted=True)
        assert (await client.call("GET", f"{url}?colour=red")).status == 400
        assert (await client.call("GET", f"{url}?accepted=1")).status == 400

    converse(talk, with_faults("evolution/send:other_400:times=1"))


def test_the_summary_counts_what_came_and_what_failed() -> None:
    async def talk(client: Client) -> None:
        for _ in range(3):
            await client.evolution_send()
        summary = (await client.call("GET", f"{client.sandbox.url}/_sandbox/summary")).json
        assert summary["by_endpoint"] == {"evolution/send": {"received": 3, "accepted": 2}}
        assert summary["faults"] == {"evolution/send:other_400": 1}
        assert [len(twice["seqs"]) for twice in summary["accepted_twice"]] == [2]

    converse(talk, with_faults("send:other_400:times=1"))


def test_a_reset_forgets_requests_and_counts_and_keeps_the_behaviour() -> None:
    async def talk(client: Client) -> None:
        assert (await client.evolution_send()).status == 400
        assert (await client.call("POST", f"{client.sandbox.url}/_sandbox/reset")).status == 200
        assert client.sandbox.record.entries == []
        assert (await client.evolution_send()).status == 400
        assert (await client.evolution_send()).status == 201

    converse(talk, with_faults("send:other_400:times=1"))


def test_a_reset_discards_late_messages() -> None:
    async def talk(client: Client) -> None:
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await client.evolution_send("atrasada")
        client.sandbox.reset()
        await client.evolution_send(delay=150)
        assert len(client.sandbox.record.sent()) == 1

    converse(talk, with_faults("send:late:seconds=0.05:text=atrasada"))


@pytest.mark.parametrize("kind", [Kind.SEND, Kind.STATUS])
def test_latency_passes_on_its_own_kind_of_endpoint_only(kind: Kind) -> None:
    async def talk(client: Client) -> None:
        asks = {Kind.SEND: client.evolution_send(), Kind.STATUS: client.evolution("/instance/connectionState/loja")}
        waiting = await client.give_up(asks.pop(kind), lambda entry: entry["kind"] == kind.value)
        assert waiting["answered"] is None
        (other,) = asks.values()
        assert (await other).status in {200, 201}

    converse(talk, Behaviour(latencies={kind: Latency(3600)}))


def test_a_sandbox_stops_at_once_while_requests_hang() -> None:
    async def run() -> float:
        behaviour = Behaviour(faults=(Fault(Kind.SEND, "hang_before"),), latencies={Kind.STATUS: Latency(3600)})
        async with aiohttp.ClientSession() as session:
            sandbox = Sandbox(behaviour)
            await sandbox.start()
            client = Client(sandbox, session)
            asked = [
                asyncio.ensure_future(client.evolution_send()),
                asyncio.ensure_future(client.evolution("/instance/connectionState/loja")),
            ]
            while len(sandbox.record.entries) < 2:
                await client.call("GET", f"{sandbox.url}/_sandbox/summary")
            begin = time.monotonic()
            await sandbox.stop()
            lasted = time.monotonic() - begin
            answers = await asyncio.gather(*asked, return_exceptions=True)
            assert all(isinstance(answer, aiohttp.ClientError) for answer in answers)
            assert not sandbox.record.sent()
            return lasted

    assert asyncio.run(run()) < 2


def test_two_sandboxes_serve_side_by_side_on_ports_of_their_own(tmp_path: Path) -> None:
    async def run() -> None:
        async with Sandbox() as one, Sandbox(record_file=tmp_path / "record.jsonl") as other:
            assert one.port != other.port
            async with aiohttp.ClientSession() as session:
                await Client(other, session).evolution_send()
            assert (len(one.record.sent()), len(other.record.sent())) == (0, 1)

    asyncio.run(run())
