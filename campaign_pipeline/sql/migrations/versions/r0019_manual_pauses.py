"""Manual pauses of an inbox, a workspace or all sending."""

from alembic import op

from campaign_pipeline.sql import run_migration

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    """Create the table of manual pauses."""
    run_migration(op.get_bind(), "0019_manual_pauses")
