"""Which hosts this process may reach; checked for every connection to an outside system, HTTP and mail.

Three rules, set by two variables:

* By default: a public address with TLS, and this machine (loopback) with or without.
* `CAMPAIGN_ALLOWED_HOSTS` names further hosts, which may be private, and reached without TLS.
* `CAMPAIGN_ONLY_HOSTS` restricts connections to these hosts, whatever else is configured. It is set if every provider
is
  a sandbox, and child processes inherit it; `CAMPAIGN_SANDBOX` requires it to be set.

A name is checked before it is resolved, and each resolved address before a connection is made: a name that is public
today may resolve to a private network tomorrow (DNS rebinding).
"""

import asyncio
import ipaddress
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import aiohappyeyeballs
import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from campaign_pipeline.adapters.environment import SettingError

ALLOWED_HOSTS = "CAMPAIGN_ALLOWED_HOSTS"
ONLY_HOSTS = "CAMPAIGN_ONLY_HOSTS"
SANDBOX = "CAMPAIGN_SANDBOX"

HOST_VARIABLES = (ALLOWED_HOSTS, ONLY_HOSTS, SANDBOX)

AddressInfo: TypeAlias = tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[Any, ...]]
_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
_LOOPBACK = (ipaddress.IPv4Address("127.0.0.1"), ipaddress.IPv6Address("::1"))
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class HostRefused(OSError):
    """A forbidden connection; the message is one sentence for the operator. Nothing was sent."""


@dataclass(frozen=True)
class _Entry:
    """One element of a list of hosts: a name or a network, with one port or all."""

    name: str | None
    network: _Network | None
    port: int | None

    @classmethod
    def parse(cls, text: str) -> "_Entry | None":
        """Read `host`, `host:port`, `192.0.2.7`, `10.0.0.0/8`, `10.0.0.7:8080`, `::1` or `[::1]:8080`."""
        host, port = text.strip().lower(), None
        found = re.fullmatch(r"(\[[^\]]+\]|[^:\[\]]+):(\d{1,5})", host)
        if found is not None:
            host, port = found[1], int(found[2])
            if not 0 < port < 65536:
                return None
        host = host.removeprefix("[").removesuffix("]")
        try:
            return cls(None, ipaddress.ip_network(host), port)
        except ValueError:
            return cls(host, None, port) if _NAME.fullmatch(host) and not host[-1].isdigit() else None

    def covers_name(self, name: str, port: int) -> bool:
        return self.name == name and self.port in {None, port}

    def covers_address(self, address: _Address, port: int) -> bool:
        return self.network is not None and address in self.network and self.port in {None, port}


@dataclass(frozen=True)
class Hosts:
    """The hosts that may be reached."""

    allowed: tuple[_Entry, ...] = ()
    only: tuple[_Entry, ...] | None = None  # None: no restriction

    @classmethod
    def from_environment(cls, env: Mapping[str, str] | None = None) -> "Hosts":
        """Read CAMPAIGN_ALLOWED_HOSTS, CAMPAIGN_ONLY_HOSTS and CAMPAIGN_SANDBOX.

        Raises SettingError, so that nothing is reached, if one of them is invalid, or a sandbox has no
        restriction.
        """
        e = os.environ if env is None else env
        sandboxed = e.get(SANDBOX, "").strip().lower()
        if sandboxed not in {"", "on", "off"}:
            raise SettingError(f"{SANDBOX} is {sandboxed!r}, but must be on or off.")
        only = _entries(e, ONLY_HOSTS) if ONLY_HOSTS in e else None
        if only == () or (sandboxed == "on" and only is None):
            raise SettingError(
                f"{ONLY_HOSTS} names no host, so nothing may be reached; it must name the sandbox, such as "
                "127.0.0.1:8080."
            )
        return cls(_entries(e, ALLOWED_HOSTS), only)

    def check(self, host: str, port: int, *, encrypted: bool) -> None:
        """Check a name before it is resolved. Raises HostRefused."""
        if not host.isprintable() or not host.strip(" .") or " " in host:
            raise HostRefused(f"{host!r} is no name that a host can have")
        name, address = host.lower().rstrip("."), _address(host)
        if self.only is not None:
            named = any(entry.covers_name(name, port) for entry in self.only)
            local = _is_local_name(name) and any(
                entry.covers_address(each, port) for entry in self.only for each in _LOOPBACK
            )
            if address is None and not named and not local:
                raise self._not_the_sandbox(host, port)
            if address is not None:
                self.check_address(host, host, port)
            return
        if self._allows(name, address, port):
            return
        if not encrypted and not _is_local_name(name) and not (address is not None and address.is_loopback):
            raise HostRefused(
                f"{host} is not reached without TLS: use https, or name it in {ALLOWED_HOSTS} if that is meant"
            )
        if address is not None:
            self.check_address(host, host, port)

    def check_address(self, host: str, resolved: str, port: int) -> None:
        """Check one address that a host resolved to, or that replaces it. Raises HostRefused."""
        name, address = host.lower().rstrip("."), _address(resolved)
        if address is None:
            raise HostRefused(f"{host} resolves to {resolved!r}, which is no address")
        if self.only is not None:
            named = any(entry.covers_name(name, port) for entry in self.only) and not _is_public(address)
            if not named and not any(entry.covers_address(address, port) for entry in self.only):
                raise self._not_the_sandbox(host, port)
            return
        if self._allows(name, address, port) or _is_public(address):
            return
        if address.is_loopback and (_is_local_name(name) or _address(host) is not None):
            return
        kind = "a private address" if _address(host) is not None else f"a name of the private address {address}"
        raise HostRefused(f"{host} is {kind}, and not reached unless {ALLOWED_HOSTS} names it")

    def _allows(self, name: str, address: _Address | None, port: int) -> bool:
        return any(
            entry.covers_name(name, port) or (address is not None and entry.covers_address(address, port))
            for entry in self.allowed
        )

    @staticmethod
    def _not_the_sandbox(host: str, port: int) -> HostRefused:
        return HostRefused(f"{host}:{port} is not the sandbox, and nothing else may be reached ({ONLY_HOSTS})")

    async def resolve(self, host: str, port: int, *, encrypted: bool, family: int = 0) -> list[AddressInfo]:
        """Return all addresses of a host, each of them checked. Raises HostRefused, or OSError if there is none."""
        self.check(host, port, encrypted=encrypted)
        try:
            found: list[Any] = await asyncio.get_running_loop().getaddrinfo(
                host, port, type=socket.SOCK_STREAM, family=family
            )
        except ValueError:  # an empty label, one that is too long, a zero byte
            raise OSError(f"{host!r} is no name that a host can have") from None
        for info in found:
            self.check_address(host, str(info[4][0]), port)
        return found

    async def connect(self, host: str, port: int) -> socket.socket:
        """Return a connected socket for a protocol with its own encryption, such as SMTP. Raises OSError."""
        found = await self.resolve(host, port, encrypted=True)
        return await aiohappyeyeballs.start_connection(found, happy_eyeballs_delay=0.25)


class GuardedConnector(aiohttp.TCPConnector):
    """The HTTP connector: asks `Hosts` about each request, and about each resolved address."""

    def __init__(self, hosts: Hosts, **options: Any) -> None:
        super().__init__(resolver=_Resolver(hosts), **options)
        self._hosts = hosts
        self._passed: set[tuple[str, int, bool]] = set()

    async def connect(self, req: Any, traces: Any, timeout: Any) -> Any:
        """See aiohttp. Also checks open connections, and addresses instead of names."""
        asked = (req.url.host or "", req.url.port or 0, req.is_ssl())
        if asked not in self._passed:
            self._hosts.check(asked[0], asked[1], encrypted=asked[2])
            self._passed.add(asked)
        return await super().connect(req, traces, timeout)


class _Resolver(AbstractResolver):
    def __init__(self, hosts: Hosts) -> None:
        self._hosts = hosts

    async def resolve(self, host: str, port: int = 0, family: int = socket.AF_UNSPEC) -> list[ResolveResult]:
        # The connector has already checked whether TLS is required; only it knows.
        found = await self._hosts.resolve(host, port, encrypted=True, family=family)
        flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        return [
            ResolveResult(hostname=host, host=str(address[0]), port=port, family=kind, proto=proto, flags=flags)
            for kind, _, proto, _, address in found
        ]

    async def close(self) -> None:
        """Nothing to close."""


def _entries(env: Mapping[str, str], variable: str) -> tuple[_Entry, ...]:
    entries = []
    for piece in filter(None, (piece.strip() for piece in env.get(variable, "").split(","))):
        entry = _Entry.parse(piece)
        if entry is None:
            raise SettingError(
                f"{variable} has {piece!r}, but must be hosts separated by commas, such as "
                "evolution, 10.0.0.0/8, 127.0.0.1:8080."
            )
        entries.append(entry)
    return tuple(entries)


def _address(host: str) -> _Address | None:
    """Return the address in a host, without the IPv6 forms that wrap an IPv4 address; None for a name."""
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo and address.teredo[1])
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return inner or address
    return address


def _is_public(address: _Address) -> bool:
    return address.is_global and not address.is_multicast


def _is_local_name(name: str) -> bool:
    return name == "localhost" or name.endswith(".localhost")
