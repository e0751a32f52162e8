"""Suppression, consent records, number checks."""

from alembic import op

from campaign_pipeline.sql import run_migration

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the tables and columns for consent."""
    run_migration(op.get_bind(), "0004_consent")
