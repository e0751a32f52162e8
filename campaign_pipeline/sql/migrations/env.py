"""Alembic's environment: keeps its books on the connection that `campaign_pipeline.adapters.schema` hands over.

Every statement on it commits by itself, and so does every step of a migration: see `campaign_pipeline.adapters.online`.
"""

from alembic import context

from campaign_pipeline.sql import SCHEMA, VERSION_TABLE

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    version_table=VERSION_TABLE,
    version_table_schema=SCHEMA,
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
