"""Which database holds the queue, and whether it can be used: the named one, else the embedded one."""

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
    """CAMPAIGN_DATABASE_URL, if it can be one. Raises SettingError."""
    url = environment.database_url or ""
    if not url.startswith(("postgresql://", "postgres://")):
        scheme, found, _ = url.partition("://")
        shown = repr(scheme) if found and scheme.isalnum() else "no scheme"
        raise SettingError(f"CAMPAIGN_DATABASE_URL has {shown}, but must be a postgresql:// URL.")
    if not schema.is_readable(url):
        raise SettingError(schema.UNREADABLE)
    return url


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
