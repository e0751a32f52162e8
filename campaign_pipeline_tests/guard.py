"""Restricts tests, and the processes that they start, to this machine.

The variable is the product's own limit, which each process of a test inherits. The audit hook is a second one, for this
process: it stops what the product forgot to ask about.
"""

import ipaddress
import os
import sys
from typing import Any

ONLY_THIS_MACHINE = {"CAMPAIGN_ONLY_HOSTS": "127.0.0.0/8, ::1"}


class ForbiddenConnection(RuntimeError):
    """A test tried to reach another machine."""


def stay_on_this_machine() -> None:
    """Install the guard for this process and all that it starts."""
    os.environ.update(ONLY_THIS_MACHINE)
    sys.addaudithook(_refuse_others)


def _refuse_others(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.getaddrinfo":
        host = arguments[0]
    elif event in {"socket.connect", "socket.sendto"} and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    else:
        return
    if not _is_here(host):
        raise ForbiddenConnection(f"{event} of {host!r}")


def _is_here(host: object) -> bool:
    name = host.decode("ascii", "replace") if isinstance(host, bytes) else str(host or "localhost")
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith((".localhost", ".invalid"))
