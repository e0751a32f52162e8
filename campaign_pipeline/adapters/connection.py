"""Address and key of an inbox: from its instance row, else from the environment. Each problem is a sentence.

All functions raise LookupError if something is missing or unusable; the message names it and never quotes a key.

Two rules protect keys. A key from the environment goes only to the address from the environment: a person who may write
a row must not be able to redirect it. And an address must be allowed (`adapters.hosts`), without a part that would
change the path or add a key.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from campaign_pipeline.adapters.environment import Environment, SettingError
from campaign_pipeline.adapters.hosts import HostRefused, Hosts
from campaign_pipeline.adapters.http import at
from campaign_pipeline.adapters.inbox_connection import InboxConnection


@dataclass(frozen=True)
class Endpoint:
    """The address of a provider, and the key for it."""

    url: str  # without a trailing slash
    key: str = field(repr=False)


def endpoint(
    connection: InboxConnection,
    variables: Mapping[str, str],
    url_variable: str,
    key_variable: str | None,
    usual_url: str | None = None,
) -> Endpoint:
    """Return address and key of one inbox.

    The address is the row's base_url (in provider_config, else settings), else the variable's, else the default. The
    key is the row's instance_token or api_key, else the variable's, which goes only to the variable's address.
    """
    named = _own_url(connection)
    common = variables.get(url_variable) or usual_url
    if named is None and not common:
        raise LookupError(f"{url_variable} is not set, and the instance names no provider_config.base_url.")
    source = url_variable if named is None else "provider_config.base_url of the instance"
    url = base_address(named or common or "", source)

    key, key_name = connection.key, "instance_token, api_key"
    if not key and key_variable is not None and variables.get(key_variable):
        if common is None or url != _tidy(common):
            raise LookupError(
                f"The instance names an address of its own and has neither instance_token nor api_key; {key_variable} "
                f"is only sent to the address of {url_variable}."
            )
        key, key_name = variables[key_variable], key_variable
    if not key:
        also = f"{key_variable} is not set, and the" if key_variable else "The"
        raise LookupError(f"{also} instance has neither instance_token nor api_key.")
    key = usable_key(key, key_name)
    return Endpoint(_reachable(url, source), key)


@dataclass(frozen=True)
class KeyVariable:
    """The variable with a provider's key, and the prefix of variables that an inbox may name instead."""

    usual: str
    prefix: str


KEY_VARIABLES = {
    "evolution": KeyVariable("EVOLUTION_API_KEY", "EVOLUTION_"),
    "uazapi": KeyVariable("UAZAPI_TOKEN", "UAZAPI_"),
    "cloud_api": KeyVariable("CLOUD_API_TOKEN", "CLOUD_API_"),
    "smtp": KeyVariable("SMTP_URL", "SMTP_"),
}


def variables_of(connection: InboxConnection, provider: str, variables: Mapping[str, str]) -> Mapping[str, str]:
    """Return the variables for one inbox, with the key that its provider_config.key_variable names.

    A row cannot name any other secret, because the name must begin like the provider's own; and the key goes where the
    usual key would go. Raises LookupError.
    """
    named, known = connection.setting("key_variable"), KEY_VARIABLES.get(provider)
    if named is None or known is None:
        return variables
    if not named.startswith(known.prefix):
        raise LookupError(f"provider_config.key_variable of the instance must begin with {known.prefix}.")
    if not variables.get(named):
        raise LookupError(f"{named} is not set, which provider_config.key_variable of the instance names.")
    return {**variables, known.usual: variables[named]}


def environment_endpoint(variables: Mapping[str, str], url_variable: str, key_variable: str) -> Endpoint:
    """Return address and key of a provider that rows cannot configure."""
    for variable in (url_variable, key_variable):
        if not variables.get(variable):
            raise LookupError(f"{variable} is not set.")
    url = base_address(variables[url_variable], url_variable)
    key = usable_key(variables[key_variable], key_variable)
    return Endpoint(_reachable(url, url_variable), key)


def model_url(environment: Environment) -> str:
    """Return OPENROUTER_BASE_URL. Raises SettingError, because it concerns every message."""
    try:
        return _reachable(base_address(environment.openrouter_base_url, "OPENROUTER_BASE_URL"), "OPENROUTER_BASE_URL")
    except LookupError as error:
        raise SettingError(str(error.args[0])) from None


def base_address(url: str, named: str) -> str:
    """Return an address without a trailing slash, if a path can be appended."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if (
        not host
        or parts.scheme not in {"http", "https"}
        or not (url.isascii() and url.isprintable() and " " not in url)
    ):
        raise LookupError(f"The base URL ({named}) must be an address such as https://api.example.com.")
    if "#" in url or "?" in url or "\\" in url or "@" in parts.netloc:
        # A `#` or `?` would swallow the appended path; a user part would be sent as a key.
        raise LookupError(f"The base URL ({named}) must be without #, ?, backslash, user and password.")
    return _tidy(url)


def _reachable(url: str, named: str) -> str:
    parts = urlsplit(url)
    encrypted = parts.scheme == "https"
    port = parts.port or (443 if encrypted else 80)
    try:
        Hosts.from_environment().check(parts.hostname or "", port, encrypted=encrypted)
    except HostRefused as refused:
        raise LookupError(f"The base URL ({named}) cannot be used: {refused}.") from None
    return url


def usable_key(key: Any, named: str) -> str:
    """Return a key, if it is valid in a header."""
    if not isinstance(key, str) or not (key.isascii() and key.isprintable()):
        raise LookupError(f"The key ({named}) has characters that no key has.")
    return key


def _own_url(connection: InboxConnection) -> str | None:
    columns = {"provider_config": connection.provider_config, "settings": connection.settings}
    for column, settings in columns.items():
        given = at(settings, "base_url")
        if given is not None and not isinstance(given, str):
            raise LookupError(f"{column}.base_url of the instance must be a text that begins with https://.")
    return connection.setting("base_url")


def _tidy(url: str) -> str:
    return url.strip().rstrip("/")
