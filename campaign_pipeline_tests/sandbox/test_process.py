import http.client
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from campaign_pipeline.sandbox import (
    Behaviour,
    Fault,
    InstanceState,
    Kind,
    Latency,
    SandboxFailed,
    SandboxProcess,
    behaviour_from_flags,
)
from campaign_pipeline.sandbox.command import main


@pytest.fixture
def sandbox() -> Iterator[SandboxProcess]:
    with SandboxProcess() as process:
        yield process


def begin_send(sandbox: SandboxProcess, text: str, delay: int = 0) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection(sandbox.host, sandbox.port, timeout=20)
    body = orjson.dumps({"number": "5511987654321", "text": text, "delay": delay})
    connection.request("POST", "/evolution/message/sendText/loja", body, {"apikey": "invented"})
    return connection


def send(sandbox: SandboxProcess, text: str) -> int:
    connection = begin_send(sandbox, text)
    try:
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


def wait_for_requests(sandbox: SandboxProcess, number: int) -> None:
    while sandbox.summary()["received"] < number:
        pass


@pytest.mark.crash
def test_a_kill_loses_nothing_that_was_accepted_and_nothing_else_survives(sandbox: SandboxProcess) -> None:
    assert send(sandbox, "aceita") == 201
    under_way = begin_send(sandbox, "a caminho", delay=60_000)
    wait_for_requests(sandbox, 2)
    port = sandbox.port
    sandbox.kill()
    with pytest.raises(ConnectionError):
        under_way.getresponse()
    under_way.close()
    with pytest.raises(ConnectionError):
        sandbox.summary()
    sandbox.restart()
    assert sandbox.port == port
    assert [entry["text"] for entry in sandbox.record(accepted=True)] == ["aceita"]
    assert send(sandbox, "aceita") == 201
    assert len(sandbox.summary()["accepted_twice"]) == 1


@pytest.mark.crash
def test_a_restart_keeps_the_behaviour_that_was_set(sandbox: SandboxProcess) -> None:
    sandbox.set_behaviour(Behaviour(instances={"loja": InstanceState.CLOSE}))
    sandbox.restart()
    assert send(sandbox, "Olá") == 400


def test_a_reset_empties_the_record_and_its_file(sandbox: SandboxProcess) -> None:
    send(sandbox, "Olá")
    assert sandbox.record(provider="evolution", kind="send")[0]["text"] == "Olá"
    sandbox.reset()
    assert sandbox.record() == []
    assert sandbox.record_file.read_bytes() == b""


def test_a_terminated_sandbox_ends_at_once_and_in_good_order_while_requests_hang() -> None:
    with SandboxProcess(Behaviour(faults=(Fault(Kind.SEND, "hang_before"),))) as sandbox:
        hanging = begin_send(sandbox, "Olá")
        wait_for_requests(sandbox, 1)
        begin = time.monotonic()
        assert sandbox.stop() == 0
        assert time.monotonic() - begin < 5
        with pytest.raises(ConnectionError):
            hanging.getresponse()
        hanging.close()


def test_a_refused_behaviour_is_told(sandbox: SandboxProcess) -> None:
    with pytest.raises(SandboxFailed, match="There is no provider 'telegram'"):
        sandbox.set_behaviour(Behaviour(faults=(Fault(Kind.SEND, "late", provider="telegram"),)))


def test_a_sandbox_that_cannot_start_says_why(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("not a record\n")
    with (
        pytest.raises(SandboxFailed, match="is not an entry of a sandbox's record"),
        SandboxProcess(record_file=file),
    ):
        raise AssertionError("It started.")


def test_a_taken_port_is_one_clear_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit) as end:
        main(["--port", str(taken.getsockname()[1])])
    assert end.value.code == 2
    assert "address already in use" in capsys.readouterr().err.lower()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--fault", "send:burns"], "'burns' is not a fault of send"),
        (["--fault", "telegram/send:late"], "There is no provider 'telegram'"),
        (["--send-latency", "-1"], "A latency's mean must be a number of 0 or more"),
        (["--behaviour-file", "/nowhere/behaviour.json"], "No such file"),
        (["--port", "70000"], "70000 is not in the range 0<=x<=65535"),
        (["--seed", "one"], "'one' is not a valid integer"),
    ],
)
def test_bad_flags_end_with_status_2_and_the_reason(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert complaint in capsys.readouterr().err.splitlines()[-1]


def test_without_flags_the_latencies_are_those_of_usual_providers() -> None:
    assert behaviour_from_flags().latencies == {Kind.GENERATION: Latency(0.7), Kind.SEND: Latency(0.2)}


def test_flags_win_over_the_behaviour_file(tmp_path: Path) -> None:
    file = tmp_path / "behaviour.json"
    file.write_text('{"seed": 4, "latencies": {"send": {"mean": 1, "sigma": 0.5}}, "instances": {"loja": "close"}}')
    behaviour = behaviour_from_flags(
        send_latency=2.0, generation_sigma=0.25, faults=["send:late:times=1"], behaviour_file=file
    )
    assert behaviour == Behaviour(
        seed=4,
        latencies={Kind.GENERATION: Latency(0, 0.25), Kind.SEND: Latency(2, 0.5)},
        faults=(Fault(Kind.SEND, "late", times=1),),
        instances={"loja": InstanceState.CLOSE},
    )
