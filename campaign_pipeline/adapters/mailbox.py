"""The settings of a mailbox: its server, its sender, and the ways to unsubscribe."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self
from urllib.parse import unquote, urlsplit

from campaign_pipeline.adapters.inbox_connection import InboxConnection
from campaign_pipeline.core.address import InvalidAddress, normalize_email

PORTS: Mapping[str, int] = {"starttls": 587, "tls": 465, "none": 25}
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True)
class Mailbox:
    """One mailbox and its server."""

    host: str
    port: int
    security: str  # starttls, tls, none
    from_address: str
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    from_name: str = ""
    reply_to: str | None = None
    domain: str = ""  # domain of Message-IDs
    unsubscribe_url: str | None = None  # https; {message_id} and {email} are replaced
    unsubscribe_mailto: str | None = None
    ca_file: str | None = None  # certificates to trust besides the system's
    stream: str = "campaign"  # identifies the inbox in Gmail's postmaster tools
    max_connections: int = 5
    messages_per_connection: int = 100

    @classmethod
    def from_connection(cls, connection: InboxConnection, variables: Mapping[str, str]) -> Self:
        """Read the mailbox of an inbox from its instance row; the SMTP_* variables supply what the row omits.

        The row's settings and provider_config name host, port, security, username, from_address, from_name, reply_to,
        domain, unsubscribe_url, unsubscribe_mailto; the password is its instance_token or api_key. A row with a host
        gets no credentials from the environment, which are for another server. Raises LookupError with one sentence.
        """
        given = {**_plain(connection.settings), **_plain(connection.provider_config)}
        server = _server(given, connection) if given.get("host") else _server_of_environment(variables)
        name, address = _sender(given, variables)

        reply_to = given.get("reply_to") or variables.get("SMTP_REPLY_TO")
        domain = given.get("domain") or variables.get("SMTP_DOMAIN") or address.partition("@")[2]
        unsubscribe_url = given.get("unsubscribe_url") or variables.get("SMTP_UNSUBSCRIBE_URL")
        unsubscribe_mailto = given.get("unsubscribe_mailto") or variables.get("SMTP_UNSUBSCRIBE_MAILTO")
        return cls(
            **server,
            from_address=address,
            from_name=name,
            reply_to=_address("reply_to", reply_to) if reply_to else None,
            domain=_address("domain", f"x@{domain}").partition("@")[2],
            unsubscribe_url=_template("unsubscribe_url", unsubscribe_url, r"https://[!-;=?-~]+"),
            unsubscribe_mailto=_template("unsubscribe_mailto", unsubscribe_mailto, r"mailto:[!-;=?-~]+@[!-;=?-~]+"),
            ca_file=variables.get("SMTP_CA_FILE"),
            stream=f"campaign:{str(connection.inbox_id).partition('-')[0]}",
            max_connections=_count(given, "max_connections", 5, 50),
            messages_per_connection=_count(given, "messages_per_connection", 100, 10_000),
        )


def _plain(settings: Any) -> dict[str, Any]:
    """Return the settings that are texts or numbers; a CRM stores other values beside them."""
    if not isinstance(settings, Mapping):
        return {}
    return {
        key: str(value).strip()
        for key, value in settings.items()
        if isinstance(value, str | int) and not isinstance(value, bool)
    }


def _server(given: Mapping[str, str], connection: InboxConnection) -> dict[str, Any]:
    security = given.get("security", "starttls").lower()
    password = connection.key
    username = given.get("username") or (given.get("from_address") if password else None)
    return _checked_server(given["host"], given.get("port"), security, username, password)


def _server_of_environment(variables: Mapping[str, str]) -> dict[str, Any]:
    raw = variables.get("SMTP_URL")
    if not raw:
        raise LookupError("SMTP_URL is not set, and the instance names no host in its provider_config.")
    wrong = "SMTP_URL must be like smtp://user:password@mail.example.com:587 (or smtps://), percent-encoded."
    try:
        url = urlsplit(raw)
        port, host = url.port, url.hostname
    except ValueError:
        raise LookupError(wrong) from None
    if url.scheme not in {"smtp", "smtps"} or not host:
        raise LookupError(wrong)
    found = re.search(r"(?:^|&)security=(\w+)", url.query)
    security = found[1].lower() if found else "tls" if url.scheme == "smtps" else "starttls"
    username, password = (unquote(part) if part else None for part in (url.username, url.password))
    return _checked_server(host, str(port) if port else None, security, username, password)


def _checked_server(
    host: str, port: str | None, security: str, username: str | None, password: str | None
) -> dict[str, Any]:
    if security not in PORTS:
        raise LookupError(f"The mailbox's security is {security!r}, but must be starttls, tls or none.")
    if port is not None and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise LookupError(f"The mailbox's port is {port!r}, but must be a number from 1 to 65535.")
    if security == "none" and password and host not in _LOOPBACK:
        raise LookupError(
            "The mailbox has a password and security none; it would be readable on the way: use starttls."
        )
    return {
        "host": host,
        "port": int(port) if port else PORTS[security],
        "security": security,
        "username": username,
        "password": password,
    }


_NAMED_ADDRESS: Final = re.compile(r"\s*\"?(?P<name>[^<>\"]*?)\"?\s*<(?P<address>[^<>]+)>\s*")


def _sender(given: Mapping[str, str], variables: Mapping[str, str]) -> tuple[str, str]:
    """Return name and address of the sender: the row's, else SMTP_FROM as `Name <address>` or an address."""
    if given.get("from_address"):
        return given.get("from_name", ""), _address("from_address", given["from_address"])
    raw = variables.get("SMTP_FROM")
    if not raw:
        raise LookupError("SMTP_FROM is not set, and the instance names no from_address in its provider_config.")
    named = _NAMED_ADDRESS.fullmatch(raw)
    name, address = (named["name"], named["address"]) if named else ("", raw)
    return given.get("from_name") or name, _address("SMTP_FROM", address)


def _address(field_name: str, value: str | None) -> str:
    try:
        return normalize_email(value)
    except InvalidAddress:
        raise LookupError(f"The mailbox's {field_name} is {value!r}, but must be like vendas@example.com.") from None


def _template(field_name: str, value: str | None, form: str) -> str | None:
    if value is None:
        return None
    left_over = value.replace("{message_id}", "x").replace("{email}", "x")
    if "{" in left_over or "}" in left_over or not re.fullmatch(form, left_over):
        scheme = "https:" if "url" in field_name else "mailto:"
        raise LookupError(
            f"The mailbox's {field_name} is {value!r}, but must be an address that begins with {scheme} and has no "
            "spaces; {message_id} and {email} are filled in."
        )
    return value


def _count(given: Mapping[str, str], name: str, default: int, most: int) -> int:
    raw = given.get(name)
    if raw is None:
        return default
    if not (raw.isascii() and raw.isdigit() and 1 <= int(raw) <= most):
        raise LookupError(f"The mailbox's {name} is {raw!r}, but must be a number from 1 to {most}.")
    return int(raw)
