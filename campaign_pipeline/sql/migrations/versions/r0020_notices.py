"""Open notices."""

from alembic import op

from campaign_pipeline.sql import run_migration

revision = "0020"
down_revision = "0019"


def upgrade() -> None:
    """Add the table."""
    run_migration(op.get_bind(), "0020_notices")
