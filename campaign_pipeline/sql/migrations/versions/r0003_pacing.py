"""Pacing of inboxes and campaigns, fallback inboxes."""

from alembic import op

from campaign_pipeline.sql import run_migration

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add what the pace of an inbox needs."""
    run_migration(op.get_bind(), "0003_pacing")
