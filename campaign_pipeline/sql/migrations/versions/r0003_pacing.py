"""Pacing of inboxes and campaigns, fallback inboxes."""

from alembic import op

from campaign_pipeline.sql import run_migration

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the tables and columns for paces."""
    run_migration(op.get_bind(), "0003_pacing")
