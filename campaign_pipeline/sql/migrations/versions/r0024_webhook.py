"""The pipeline's own webhook."""

from alembic import op

from campaign_pipeline.sql import run_migration

revision = "0024"
down_revision = "0023"


def upgrade() -> None:
    """Add the events of its webhook."""
    run_migration(op.get_bind(), "0024_webhook")
