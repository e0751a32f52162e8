"""The database that a command works on."""

from __future__ import annotations

from campaign_pipeline.adapters.environment import Environment


def queue_url() -> str:
    """Return the URL of the queue's database; start and upgrade the embedded server if it is used.

    Raises SettingError or schema.DatabaseUnusable with one sentence.
    """
    from campaign_pipeline.adapters.database import queue_url
    from campaign_pipeline.launch import uninterrupted

    with uninterrupted():
        return queue_url(Environment.read())


def plain_url() -> str:
    """Return the database's URL without checking its schema; start the embedded server if it is used."""
    from campaign_pipeline.adapters.database import named_url
    from campaign_pipeline.adapters.embedded import embedded_server
    from campaign_pipeline.launch import uninterrupted

    environment = Environment.read()
    if environment.database_url is not None:
        return named_url(environment)
    with uninterrupted():
        return embedded_server(environment.home).url()
