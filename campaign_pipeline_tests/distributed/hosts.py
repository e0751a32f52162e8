"""Hosts on one machine: network namespaces, each with its own cable that can be unplugged."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol

HUB = "hub"
"""The host of the database, the broker, the store and the providers."""


class CannotMakeHosts(RuntimeError):
    """Network namespaces cannot be created here; the message is one sentence that says what is missing."""


def _ip(*arguments: str) -> None:
    try:
        subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise CannotMakeHosts("The program ip is missing; install Debian's package iproute2.") from None
    except subprocess.CalledProcessError as error:
        raise CannotMakeHosts(
            f"Network namespaces cannot be made here ({error.stderr.strip() or error}); these tests need root with "
            "CAP_NET_ADMIN, in a container too."
        ) from None


class Hosts:
    """A hub with workers around it. A context manager: everything started on them ends with it."""

    def __init__(self, workers: Sequence[str]) -> None:
        self.addresses = {HUB: "10.77.0.1", **{name: f"10.77.0.{10 + n}" for n, name in enumerate(workers)}}
        self._prefix = f"cp{os.getpid()}"
        self._made: list[str] = []
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Hosts":
        try:
            for name in self.addresses:
                _ip("netns", "add", self.space(name))
                self._made.append(name)
                _ip("-n", self.space(name), "link", "set", "lo", "up")
            _ip("-n", self.space(HUB), "link", "add", "switch", "type", "bridge")
            _ip("-n", self.space(HUB), "addr", "add", f"{self.addresses[HUB]}/24", "dev", "switch")
            _ip("-n", self.space(HUB), "link", "set", "switch", "up")
            for name, address in self.addresses.items():
                if name != HUB:
                    self._plug(name, address)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in reversed(self._started):
            kill(process)
        for name in self._made:
            self._kill_rest(name)
            subprocess.run(["ip", "netns", "del", self.space(name)], check=False, capture_output=True)

    def _kill_rest(self, name: str) -> None:
        """Kill the programs of a host that left their process group, as RabbitMQ does."""
        pids = subprocess.run(["ip", "netns", "pids", self.space(name)], check=False, capture_output=True).stdout
        for pid in map(int, pids.split()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def space(self, name: str) -> str:
        """Return the name of the host's network namespace."""
        return f"{self._prefix}{name}"

    def _plug(self, name: str, address: str) -> None:
        ours, hub = self.space(name), self.space(HUB)
        _ip("-n", ours, "link", "add", "cable", "type", "veth", "peer", "name", f"to-{name}", "netns", hub)
        _ip("-n", hub, "link", "set", f"to-{name}", "master", "switch", "up")
        _ip("-n", ours, "addr", "add", f"{address}/24", "dev", "cable")
        _ip("-n", ours, "link", "set", "cable", "up")

    def cut_off(self, name: str) -> None:
        """Unplug the host's cable: packets in flight are lost, and nobody is notified."""
        _ip("-n", self.space(HUB), "link", "set", f"to-{name}", "down")

    def heal(self, name: str) -> None:
        """Plug it in again."""
        _ip("-n", self.space(HUB), "link", "set", f"to-{name}", "up")

    def start(
        self, name: str, command: Sequence[str], variables: Mapping[str, str], log: Path
    ) -> "subprocess.Popen[bytes]":
        """Start a program on a host; its output goes to a file."""
        with log.open("ab") as output:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.space(name), *command],
                env=dict(variables),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def run(self, name: str, command: Sequence[str], variables: Mapping[str, str], timeout: float = 60) -> str:
        """Run a program on a host until it ends; return its output. Raises CalledProcessError."""
        done = subprocess.run(
            ["ip", "netns", "exec", self.space(name), *command],
            env=dict(variables),
            check=False,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == 0, f"{command[:4]}: {done.stderr[-3000:]}"
        return done.stdout


class Program(Protocol):
    """What a subprocess.Popen and a forked run have in common."""

    pid: int

    def wait(self, timeout: float | None = None) -> int:
        """See subprocess.Popen."""
        ...


def kill(process: Program) -> None:
    """Kill a program and all its children, like a power failure of a host."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
