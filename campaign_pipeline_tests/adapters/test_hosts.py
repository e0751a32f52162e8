"""Allowed hosts: by name and by address, for HTTP and for mail. Names are not really resolved."""

import asyncio
import socket
from dataclasses import dataclass, field
from typing import Any

import aiohappyeyeballs
import pytest

from campaign_pipeline.adapters import http
from campaign_pipeline.adapters.environment import SettingError
from campaign_pipeline.adapters.hosts import HostRefused, Hosts
from campaign_pipeline.adapters.http import NoAnswer, http_client

ADDRESSES = {
    "public.example": "93.184.216.34",
    "rebound.example": "10.0.0.7",
    "loop.example": "127.0.0.1",
    "metadata.example": "169.254.169.254",
    "mapped.example": "::ffff:192.168.0.1",
    "evolution": "172.18.0.3",
    "localhost": "127.0.0.1",
}


@dataclass
class Network:
    """Replaces name resolution and connecting: records both and makes none."""

    resolved: list[str] = field(default_factory=list)
    connected: list[tuple[str, int]] = field(default_factory=list)

    async def getaddrinfo(self, host: str, port: int, **_: Any) -> list[Any]:
        self.resolved.append(host)
        address = ADDRESSES.get(host, host)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return [(family, socket.SOCK_STREAM, 6, "", (address, port))]

    async def start_connection(self, addr_infos: list[Any], **_: Any) -> socket.socket:
        self.connected += [tuple(info[4][:2]) for info in addr_infos]
        raise ConnectionRefusedError("nobody is there")


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    network = Network()

    async def getaddrinfo(_: object, host: str, port: int, **options: Any) -> list[Any]:
        return await network.getaddrinfo(host, port, **options)

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(aiohappyeyeballs, "start_connection", network.start_connection)
    return network


def ask(url: str, hosts: Hosts) -> NoAnswer:
    async def inside() -> Any:
        async with http_client(connections=1, hosts=hosts) as client:
            return await http.post(client, url, {}, {"apikey": "a-key-of-no-account"}, 2.0)

    answer = asyncio.run(inside())
    assert isinstance(answer, NoAnswer)
    assert not answer.may_have_left
    return answer


def hosts(**variables: str) -> Hosts:
    return Hosts.from_environment({f"CAMPAIGN_{name}": value for name, value in variables.items()})


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://public.example/x", "without TLS"),
        ("http://93.184.216.34/x", "without TLS"),
        ("https://10.0.0.7/x", "private address"),
        ("https://192.168.1.1:8443/x", "private address"),
        ("https://169.254.169.254/latest", "private address"),
        ("https://100.64.0.1/x", "private address"),
        ("https://0.0.0.0/x", "private address"),
        ("https://[fe80::1]/x", "private address"),
        ("https://[fd00::1]/x", "private address"),
        ("https://[::ffff:10.0.0.7]/x", "private address"),
        ("https://[64:ff9b::a00:7]/x", "private address"),
        ("https://[2002:a00:7::1]/x", "private address"),
        ("https://224.0.0.1/x", "private address"),
    ],
)
def test_a_forbidden_host_is_refused_before_it_is_resolved(network: Network, url: str, reason: str) -> None:
    answer = ask(url, hosts())
    assert answer.refused
    assert reason in answer.reason
    assert (network.resolved, network.connected) == ([], [])


@pytest.mark.parametrize("name", ["rebound.example", "loop.example", "metadata.example", "mapped.example", "evolution"])
def test_a_name_that_resolves_to_a_private_address_is_refused_before_it_is_connected(
    network: Network, name: str
) -> None:
    answer = ask(f"https://{name}/x", hosts())
    assert answer.refused
    assert f"{name} is a name of the private address" in answer.reason
    assert network.resolved == [name]
    assert network.connected == []


@pytest.mark.parametrize(
    ("url", "allowed", "address"),
    [
        ("https://public.example/x", "", ("93.184.216.34", 443)),
        ("http://127.0.0.1:8080/x", "", ("127.0.0.1", 8080)),
        ("http://localhost:8080/x", "", ("127.0.0.1", 8080)),
        ("http://evolution:8080/x", "evolution", ("172.18.0.3", 8080)),
        ("http://evolution:8080/x", "other, Evolution:8080", ("172.18.0.3", 8080)),
        ("https://rebound.example/x", "10.0.0.0/8", ("10.0.0.7", 443)),
        ("http://10.0.0.7/x", "10.0.0.7:80", ("10.0.0.7", 80)),
        ("http://[fd00::1]:80/x", "[fd00::1]:80", ("fd00::1", 80)),
        ("http://public.example/x", "public.example", ("93.184.216.34", 80)),
    ],
)
def test_public_hosts_this_machine_and_allowed_hosts_are_reached(
    network: Network, url: str, allowed: str, address: tuple[str, int]
) -> None:
    answer = ask(url, hosts(ALLOWED_HOSTS=allowed))
    assert not answer.refused
    assert network.connected == [address]


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("http://evolution:8081/x", "evolution:8080"),
        ("http://evolution.evil.example/x", "evolution"),
        ("http://10.0.0.7:81/x", "10.0.0.7:80"),
        ("https://192.168.0.1/x", "10.0.0.0/8"),
    ],
)
def test_an_allowance_is_of_one_host_and_port(network: Network, url: str, allowed: str) -> None:
    assert ask(url, hosts(ALLOWED_HOSTS=allowed)).refused
    assert network.connected == []


@pytest.mark.parametrize(
    "url",
    [
        "https://public.example/x",
        "https://93.184.216.34/x",
        "http://127.0.0.1:8081/x",
        "http://localhost:8081/x",
        "http://[::1]:8080/x",
        "http://127.0.0.1.public.example:8080/x",
        "http://evolution:8080/x",  # allowed, but not the sandbox
    ],
)
def test_in_a_sandbox_nothing_else_is_reached(network: Network, url: str) -> None:
    answer = ask(url, hosts(ONLY_HOSTS="127.0.0.1:8080", ALLOWED_HOSTS="evolution"))
    assert answer.refused
    assert "is not the sandbox" in answer.reason
    assert network.connected == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:8080/x", "http://localhost:8080/x"])
def test_in_a_sandbox_the_sandbox_is_reached(network: Network, url: str) -> None:
    ask(url, hosts(SANDBOX="on", ONLY_HOSTS="127.0.0.1:8080"))
    assert network.connected == [("127.0.0.1", 8080)]


@pytest.mark.parametrize(
    "variables",
    [
        {"ONLY_HOSTS": ""},
        {"ONLY_HOSTS": " , "},
        {"ONLY_HOSTS": "http://127.0.0.1:8080"},
        {"ONLY_HOSTS": "127.0.0.1:99999"},
        {"ONLY_HOSTS": "127.0.0.1.5"},
        {"SANDBOX": "on"},
        {"SANDBOX": "yes", "ONLY_HOSTS": "127.0.0.1"},
        {"ALLOWED_HOSTS": "*"},
        {"ALLOWED_HOSTS": "10.0.0.0/64"},
    ],
)
def test_a_limit_that_is_missing_or_cannot_be_read_allows_nothing(variables: dict[str, str]) -> None:
    with pytest.raises(SettingError, match=r"CAMPAIGN_(ONLY_HOSTS|SANDBOX|ALLOWED_HOSTS) .*\.$"):
        hosts(**variables)


@pytest.mark.parametrize(
    ("host", "variables"),
    [
        ("10.0.0.7", {}),
        ("rebound.example", {}),
        ("public.example", {"ONLY_HOSTS": "127.0.0.1:2525"}),
        ("127.0.0.1", {"ONLY_HOSTS": "127.0.0.1:2525"}),
    ],
)
def test_mail_goes_to_no_other_host_either(network: Network, host: str, variables: dict[str, str]) -> None:
    with pytest.raises(HostRefused):
        asyncio.run(hosts(**variables).connect(host, 25))
    assert network.connected == []


@pytest.mark.parametrize("host", ["mail..example", "x" * 64 + ".example", "mail\0.example", "", "."])
def test_an_invalid_host_name_is_a_network_error(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def start_connection(*_: object, **__: object) -> None:
        raise ConnectionRefusedError("nothing is connected here")

    monkeypatch.setattr(aiohappyeyeballs, "start_connection", start_connection)
    with pytest.raises(OSError, match="is no name that a host can have"):
        asyncio.run(hosts().connect(host, 25))


def test_mail_reaches_a_public_host(network: Network) -> None:
    with pytest.raises(ConnectionRefusedError):
        asyncio.run(hosts().connect("public.example", 587))
    assert network.connected == [("93.184.216.34", 587)]


def test_a_name_is_checked_again_at_each_connection(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not ask("https://public.example/x", hosts()).refused
    monkeypatch.setitem(ADDRESSES, "public.example", "10.0.0.7")
    assert ask("https://public.example/x", hosts()).refused
    assert network.connected == [("93.184.216.34", 443)]
