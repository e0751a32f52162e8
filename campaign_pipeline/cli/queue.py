"""Which database a command works on."""

from __future__ import annotations

from campaign_pipeline.adapters.environment import Environment


def queue_url() -> str:
    """The queue's database with our schema; the embedded server is started and brought up to date.

    Raises SettingError or schema.DatabaseUnusable with one sentence.
    """
    from campaign_pipeline.adapters.database import queue_url
    from campaign_pipeline.launch import uninterrupted

    with uninterrupted():
        return queue_url(Environment.read())


def plain_url() -> str:
    """The database's URL, whatever its schema; the embedded server is started."""
    from campaign_pipeline.adapters.database import named_url
    from campaign_pipeline.adapters.embedded import embedded_server
    from campaign_pipeline.launch import uninterrupted

    environment = Environment.read()
    if environment.database_url is not None:
        return named_url(environment)
    with uninterrupted():
        return embedded_server(environment.home).url()
