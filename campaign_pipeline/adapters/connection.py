"""How an inbox is reached: what its instance row says, else what the environment says. Each problem is a sentence.

Everything here raises LookupError where something is missing or unusable; the text names it and never quotes a key.
"""

from collections.abc import Mapping
from typing import Any

from campaign_pipeline.adapters.http import at


def setting(row: Mapping[str, Any], name: str) -> str | None:
    """A text of the instance's provider_config, else of its settings."""
    for column in ("provider_config", "settings"):
        value = at(row.get(column), name)
        if isinstance(value, str) and value.strip():
            return value.strip()
    return None


def base_url(
    row: Mapping[str, Any] | None, variables: Mapping[str, str], variable: str, usual: str | None = None
) -> str:
    """Where the provider is: provider_config.base_url, settings.base_url, a variable, or its usual address.

    No row: the instance has no say in it.
    """
    for column in ("provider_config", "settings"):
        given = at((row or {}).get(column), "base_url")
        if given is not None and not isinstance(given, str):
            raise LookupError(f"{column}.base_url of the instance must be a text that begins with http(s)://.")
    url = (row and setting(row, "base_url")) or variables.get(variable) or usual
    if not url:
        also = "" if row is None else ", and the instance names no provider_config.base_url"
        raise LookupError(f"{variable} is not set{also}.")
    if not url.startswith(("http://", "https://")):
        named = variable if row is None else f"provider_config.base_url or {variable}"
        raise LookupError(f"The base URL ({named}) must begin with http(s)://.")
    return url


def own_key(row: Mapping[str, Any], variables: Mapping[str, str], variable: str | None) -> str:
    """The instance's instance_token or api_key, else a variable where one may stand for all instances."""
    key = row.get("instance_token") or row.get("api_key") or (variables.get(variable) if variable else None)
    if not key:
        also = f"{variable} is not set, and the" if variable else "The"
        raise LookupError(f"{also} instance has neither instance_token nor api_key.")
    named = ", ".join(["instance_token", "api_key", *([variable] if variable else [])])
    return usable_key(key, named)


def usable_key(key: Any, named: str) -> str:
    """The same key, if a header can bear it."""
    if not isinstance(key, str) or not (key.isascii() and key.isprintable()):
        raise LookupError(f"The key ({named}) has characters that no key has.")
    return key
