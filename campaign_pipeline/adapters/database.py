"""Selects the queue's database, named or embedded, and checks that it can be used."""

import os
from ipaddress import ip_address

from psycopg.conninfo import conninfo_to_dict

from campaign_pipeline.adapters import schema
from campaign_pipeline.adapters.embedded import (
    DAGSTER_DATABASE,
    EmbeddedServer,
    EmbeddedServerFailed,
    embedded_server,
)
from campaign_pipeline.adapters.environment import Environment, SettingError


def queue_url(environment: Environment) -> str:
    """Return the URL of the queue's database, reachable and with our schema.

    The embedded one is started and upgraded as needed, because nothing else uses it. A named one is only checked.
    Raises SettingError or schema.DatabaseUnusable with one clear sentence.
    """
    if environment.database_url is None:
        url = _embedded(environment).url()
        try:
            schema.check(url)
        except schema.DatabaseUnusable:
            schema.upgrade(url)
        return url
    url = named_url(environment)
    schema.check(url)
    return url


def _embedded(environment: Environment) -> EmbeddedServer:
    try:
        return embedded_server(environment.home)
    except EmbeddedServerFailed as error:
        raise schema.DatabaseUnusable(str(error)) from None


def named_url(environment: Environment) -> str:
    """Return CAMPAIGN_DATABASE_URL, if valid; with TLS for a public host. Raises SettingError."""
    url = environment.database_url or ""
    if not url.startswith(("postgresql://", "postgres://")):
        scheme, found, _ = url.partition("://")
        shown = repr(scheme) if found and scheme.isalnum() else "no scheme"
        raise SettingError(f"CAMPAIGN_DATABASE_URL has {shown}, but must be a postgresql:// URL.")
    if not schema.is_readable(url):
        raise SettingError(schema.UNREADABLE)
    return _over_tls(url)


def _over_tls(url: str) -> str:
    """Return the URL; for a public host it requires TLS unless it sets sslmode itself.

    libpq alone would send the password and all data unencrypted to a server without TLS.
    """
    parts = conninfo_to_dict(url)
    hosts = str(parts.get("host") or "").split(",")
    if "sslmode" in parts or "PGSSLMODE" in os.environ or not any(_is_public(host) for host in hosts):
        return url
    return f"{url}{'&' if '?' in url else '?'}sslmode=require"


def _is_public(host: str) -> bool:
    """Return whether a host is outside this machine and its network: a name with a dot, or a public address."""
    if not host or host.startswith("/"):
        return False
    try:
        return ip_address(host).is_global
    except ValueError:
        return "." in host


def hold(environment: Environment) -> None:
    """Keep the embedded server running while this process lives; does nothing for a named database."""
    if environment.database_url is None:
        _embedded(environment)


def dagster_storage_url(environment: Environment) -> str:
    """Return the URL of Dagster's storage on the embedded server: a database of its own, with its driver named.

    SQLAlchemy's default driver for postgresql:// is now psycopg 3, with which dagster-postgres does not work.
    """
    url = _embedded(environment).url(DAGSTER_DATABASE)
    return url.replace("postgresql://", "postgresql+psycopg2://", 1)
