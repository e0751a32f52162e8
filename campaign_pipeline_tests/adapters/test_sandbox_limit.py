"""If every provider is a sandbox, no adapter reaches anything else, whatever sets the address.

Each adapter is tried with each source of an address; what would resolve a name or make a connection only records.
"""

import asyncio
import os
import socket
import subprocess
import sys
from dataclasses import dataclass, field, replace
from typing import Any

import aiohappyeyeballs
import httpx
import pytest

from campaign_pipeline.adapters.connection import model_url
from campaign_pipeline.adapters.environment import PROVIDER_PREFIXES, Environment, NotifierSettings, SettingError
from campaign_pipeline.adapters.http import http_client
from campaign_pipeline.adapters.inbox_connection import InboxConnection
from campaign_pipeline.adapters.notice_formats import Notice
from campaign_pipeline.adapters.notify import Notifier
from campaign_pipeline.adapters.openrouter import OpenRouter
from campaign_pipeline.core.ports import Attempt, Envelope, MessageChannel, Prompt, Systemic
from campaign_pipeline.defs.resources import CHANNELS, channel_of
from campaign_pipeline.demo.demo import sandbox_variables
from campaign_pipeline.sandbox import SandboxProcess
from campaign_pipeline_tests.adapters.wire import Playback, response, serving
from campaign_pipeline_tests.guard import ForbiddenConnection

WHATSAPP = Envelope(
    message_id="8f6f1d3e-0000-4000-8000-000000000002",
    part_no=1,
    text="Olá!",
    address="5511987654321",
    conversation_id="8f6f1d3e-0000-4000-8000-000000000003",
    attempted_at=1_764_000_000.0,
)
MAIL = replace(WHATSAPP, address="ana@acme.example", subject="Uma ideia")
PROMPT = Prompt(model="m", system="s", user="u", timeout=2.0)
ELSEWHERE = [
    "https://graph.facebook.com",
    "https://api.example.com/v2",
    "https://93.184.216.34",
    "http://10.0.0.7:8080",
    "http://evolution:8080",
    "http://127.0.0.1:1",  # this machine, but not the sandbox
    "http://localhost:1",
]
ROW: dict[str, Any] = {
    "name": "loja",
    "inbox_id": "8f6f1d3e-0000-4000-8000-000000000001",
    "workspace_id": "w",
    "instance_token": "own-token-of-the-row",
    "api_key": None,
    "status": "connected",
    "provider_type": "evolution",
    "settings": {},
    "provider_config": {},
}
BASICS = {"phone_number_id": "106540352242922", "from_address": "vendas@acme.example"}


@dataclass
class Wire:
    """Records of network access."""

    resolved: list[str] = field(default_factory=list)
    connected: list[Any] = field(default_factory=list)


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    wire = Wire()

    async def getaddrinfo(_: object, host: str, port: int, **__: Any) -> list[Any]:
        wire.resolved.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", port))]

    async def start_connection(addr_infos: list[Any], **_: Any) -> socket.socket:
        wire.connected += [info[4] for info in addr_infos]
        raise ConnectionRefusedError("nothing is connected here")

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(aiohappyeyeballs, "start_connection", start_connection)
    return wire


@pytest.fixture(scope="module")
def sandbox() -> Any:
    with SandboxProcess() as sandbox:
        yield sandbox


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Without any provider's variable."""
    for name in list(os.environ):
        if name.startswith(("OPENROUTER_", *PROVIDER_PREFIXES)):
            monkeypatch.delenv(name)
    return monkeypatch


@pytest.fixture
def sandboxed(sandbox: SandboxProcess, variables: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """This process like one that `dev --sandbox` starts."""
    for name, value in sandbox_variables(sandbox, {}).items():
        variables.setenv(name, value)
    return variables


def variables_of(kind: str) -> tuple[str, ...]:
    """The variables that name an adapter's address."""
    return {"smtp": ("SMTP_URL",), "supabase": ("SUPABASE_URL",)}.get(
        kind, (f"{kind.upper()}_URL", f"{kind.upper()}_API_URL")
    )


def address_for(kind: str, address: str) -> str:
    return httpx.URL(address).host if kind == "smtp" else address


async def try_everything(channel: MessageChannel) -> list[Any]:
    """Make every request that an adapter can make."""
    envelope = MAIL if channel.traits.name == "smtp" else WHATSAPP
    return [
        await channel.check_connection(),
        await channel.send(envelope),
        await channel.find_accepted(Attempt(envelope, 1_764_000_000.0)),
        await channel.check_number(envelope.address),
    ]


def build_and_try(row: dict[str, Any]) -> list[Any]:
    async def inside() -> list[Any]:
        async with http_client(connections=2) as client:
            return await try_everything(channel_of(client, InboxConnection(**row), Environment.read(), 2.0))

    return asyncio.run(inside())


@pytest.mark.parametrize("address", ELSEWHERE)
@pytest.mark.parametrize("column", ["provider_config", "settings"])
@pytest.mark.parametrize("kind", sorted(CHANNELS))
def test_no_address_of_a_row_is_reached(
    sandboxed: pytest.MonkeyPatch, wire: Wire, sandbox: SandboxProcess, kind: str, column: str, address: str
) -> None:
    where = address_for(kind, address)
    row = ROW | {"provider_type": kind, column: {"base_url": where, "host": where, **BASICS}}
    outcome = build_and_try(row)[1]
    assert all(address == ("127.0.0.1", sandbox.port) for address in wire.connected)
    if kind != "supabase":  # it does not listen to the row at all, and asks the sandbox
        assert isinstance(outcome, Systemic)
        assert "not the sandbox" in outcome.reason
        assert (wire.resolved, wire.connected) == ([], [])


@pytest.mark.parametrize("address", ELSEWHERE)
@pytest.mark.parametrize("kind", sorted(CHANNELS))
def test_no_address_of_a_variable_is_reached(
    sandboxed: pytest.MonkeyPatch, wire: Wire, kind: str, address: str
) -> None:
    for name in variables_of(kind):
        sandboxed.setenv(name, f"smtp://{address_for(kind, address)}:25" if kind == "smtp" else address)
    outcome = build_and_try(ROW | {"provider_type": kind, "provider_config": BASICS})[1]
    assert isinstance(outcome, Systemic)
    assert "not the sandbox" in outcome.reason
    assert (wire.resolved, wire.connected) == ([], [])


@pytest.mark.parametrize("kind", ["cloud_api", "smtp"])
def test_no_usual_address_is_reached_where_none_is_named(sandboxed: pytest.MonkeyPatch, wire: Wire, kind: str) -> None:
    for name in variables_of(kind):
        sandboxed.delenv(name, raising=False)
    assert isinstance(build_and_try(ROW | {"provider_type": kind, "provider_config": BASICS})[1], Systemic)
    assert (wire.resolved, wire.connected) == ([], [])


@pytest.mark.parametrize("address", ELSEWHERE)
def test_no_other_language_model_is_asked(sandboxed: pytest.MonkeyPatch, wire: Wire, address: str) -> None:
    sandboxed.setenv("OPENROUTER_BASE_URL", address)
    with pytest.raises(SettingError, match="not the sandbox"):
        model_url(Environment.read())

    async def inside() -> Any:
        async with http_client(connections=1) as client:
            return await OpenRouter(client, address, "sk-or-a-key-of-no-account").complete(PROMPT)

    outcome = asyncio.run(inside())
    assert isinstance(outcome, Systemic)
    assert (wire.resolved, wire.connected) == ([], [])


@pytest.mark.parametrize("address", ELSEWHERE)
def test_no_adapter_that_was_built_without_a_question_connects_either(
    sandboxed: pytest.MonkeyPatch, wire: Wire, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    """The connector decides last: here the constructors accept every address."""
    monkeypatch.setattr("campaign_pipeline.adapters.connection._reachable", lambda url, _: url)
    for kind in CHANNELS:
        for name in variables_of(kind):
            sandboxed.setenv(name, f"smtp://{address_for(kind, address)}:25" if kind == "smtp" else address)
        outcome = build_and_try(ROW | {"provider_type": kind, "provider_config": BASICS})[1]
        assert isinstance(outcome, Systemic), kind
        assert outcome.code == "address_refused", kind
    assert (wire.resolved, wire.connected) == ([], [])


@pytest.mark.parametrize("address", [ELSEWHERE[0], ELSEWHERE[-1]])
def test_no_notice_leaves(sandboxed: pytest.MonkeyPatch, wire: Wire, address: str) -> None:
    settings = NotifierSettings(
        webhook_url=f"{address}/hook-SECRET", email="ops@example.com", smtp_url=f"smtp://{httpx.URL(address).host}:25"
    )
    webhook, mail = Notifier(settings, lambda _: None).tell(Notice("Title", ["A line."]))
    assert webhook == "CAMPAIGN_NOTIFY_WEBHOOK names a host that may not be reached."
    assert mail.endswith("the server of CAMPAIGN_SMTP_URL may not be reached.")
    assert (wire.resolved, wire.connected) == ([], [])


@pytest.mark.parametrize("kind", sorted(set(CHANNELS) - {"smtp"}))
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(variables: pytest.MonkeyPatch, kind: str, status: int) -> None:
    taken: list[str] = []

    async def inside() -> None:
        other = Playback(iter([]), requests=[])
        async with serving(other) as elsewhere:
            head = response(b"", f"Location: http://{elsewhere}/stolen", status=f"{status} Elsewhere")
            near = Playback(iter([head] * 10))
            async with serving(near) as place, http_client(connections=2) as client:
                for name in variables_of(kind):
                    variables.setenv(name, f"http://{place}")
                variables.setenv("SUPABASE_SERVICE_ROLE_KEY", "role-key-of-no-project")
                row = ROW | {"provider_type": kind, "provider_config": BASICS}
                await try_everything(channel_of(client, InboxConnection(**row), Environment.read(), 2.0))
            assert near.requests
        taken.extend(line for line, _ in other.requests)

    asyncio.run(inside())
    assert taken == []


CHILD = """
import asyncio, sys
from campaign_pipeline.adapters.http import http_client, post

async def main():
    async with http_client(connections=1) as client:
        for url in sys.argv[1:]:
            print(await post(client, url, {}, {"apikey": "a-key-of-no-account"}, 2.0))

asyncio.run(main())
"""


def ask_in_a_child(env: dict[str, str], *urls: str) -> str:
    done = subprocess.run([sys.executable, "-c", CHILD, *urls], env=env, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


@pytest.mark.slow
def test_the_limit_is_inherited_and_a_process_that_lost_it_reaches_nothing(sandbox: SandboxProcess) -> None:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("CAMPAIGN_")}
    given = sandbox_variables(sandbox, plain)
    near, far = ask_in_a_child(given, sandbox.evolution_url, "http://127.0.0.1:1/x").splitlines()
    assert near.startswith("Answer(status=")
    assert "is not the sandbox" in far
    given.pop("CAMPAIGN_ONLY_HOSTS")
    assert "SettingError: CAMPAIGN_ONLY_HOSTS names no host" in ask_in_a_child(given, sandbox.evolution_url)


def test_made_up_messages_go_to_a_sandbox_alone(variables: pytest.MonkeyPatch, wire: Wire) -> None:
    variables.delenv("CAMPAIGN_ONLY_HOSTS")
    variables.setenv("EVOLUTION_API_URL", "https://evolution.example")
    outcome = build_and_try(ROW | {"provider_config": {"sandbox_only": True}})[1]
    assert isinstance(outcome, Systemic)
    assert "made up" in outcome.reason
    assert (wire.resolved, wire.connected) == ([], [])


def test_the_tests_themselves_reach_no_other_machine() -> None:
    with pytest.raises(ForbiddenConnection):
        socket.create_connection(("93.184.216.34", 9), 0.1)
    with pytest.raises(ForbiddenConnection):
        socket.getaddrinfo("example.com", 443)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams, pytest.raises(ForbiddenConnection):
        datagrams.sendto(b"x", ("93.184.216.34", 9))
