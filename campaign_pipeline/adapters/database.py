"""Which database holds the queue, and whether it can be used: the named one, else the embedded one."""

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
    """The queue's database, reachable and with our schema.

    The embedded one is started and brought up to date as needed: it is nobody else's. A named one is only looked at.
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
    """CAMPAIGN_DATABASE_URL, if it can be one; over TLS where it is a public host. Raises SettingError."""
    url = environment.database_url or ""
    if not url.startswith(("postgresql://", "postgres://")):
        scheme, found, _ = url.partition("://")
        shown = repr(scheme) if found and scheme.isalnum() else "no scheme"
        raise SettingError(f"CAMPAIGN_DATABASE_URL has {shown}, but must be a postgresql:// URL.")
    if not schema.is_readable(url):
        raise SettingError(schema.UNREADABLE)
    return _over_tls(url)


def _over_tls(url: str) -> str:
    """The same URL; for a public host it requires TLS unless it says itself what it wants (sslmode).

    libpq alone would send the password and all data in the clear to a server that offers no TLS.
    """
    parts = conninfo_to_dict(url)
    hosts = str(parts.get("host") or "").split(",")
    if "sslmode" in parts or "PGSSLMODE" in os.environ or not any(_is_public(host) for host in hosts):
        return url
    return f"{url}{'&' if '?' in url else '?'}sslmode=require"


def _is_public(host: str) -> bool:
    """Whether a host is beyond this machine and its own network: a name with a dot, or a public address."""
    if not host or host.startswith("/"):
        return False
    try:
        return ip_address(host).is_global
    except ValueError:
        return "." in host


def hold(environment: Environment) -> None:
    """Keep the embedded server up for as long as this process lives; nothing to do for a named one."""
    if environment.database_url is None:
        _embedded(environment)


def dagster_storage_url(environment: Environment) -> str:
    """Dagster's own storage on the embedded server: a database of its own, its driver named.

    SQLAlchemy's default driver for postgresql:// is psycopg 3 by now, with which dagster-postgres does not work.
    """
    url = _embedded(environment).url(DAGSTER_DATABASE)
    return url.replace("postgresql://", "postgresql+psycopg2://", 1)
