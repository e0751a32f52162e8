"""A person pauses an inbox, a workspace or all sending."""

from alembic import op

from campaign_pipeline.sql import run_migration

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    """Make the table of what people paused."""
    run_migration(op.get_bind(), "0019_manual_pauses")
