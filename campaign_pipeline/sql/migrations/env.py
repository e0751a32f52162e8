"""Alembic's environment: runs the migrations on the connection that `campaign_pipeline.adapters.schema` hands over."""

from alembic import context

from campaign_pipeline.sql import SCHEMA, VERSION_TABLE

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    version_table=VERSION_TABLE,
    version_table_schema=SCHEMA,
    transaction_per_migration=False,
)
with context.begin_transaction():
    context.run_migrations()
