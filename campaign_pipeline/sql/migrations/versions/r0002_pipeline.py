"""Leases, the ledger of parts, error classes, cost, pauses."""

from alembic import op

from campaign_pipeline.sql import run_migration

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add columns, tables and indexes; change nothing that the CRM has."""
    run_migration(op.get_bind(), "0002_pipeline")
