"""Columns and indexes for back-fills, reports and maintenance."""

from alembic import op

from campaign_pipeline.sql import run_migration

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add indexes."""
    run_migration(op.get_bind(), "0006_operations")
