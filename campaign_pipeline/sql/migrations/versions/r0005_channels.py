"""Columns for e-mail, the Cloud API and OpenRouter: subjects, status events, spending."""

from alembic import op

from campaign_pipeline.sql import run_migration

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add columns and tables."""
    run_migration(op.get_bind(), "0005_channels")
