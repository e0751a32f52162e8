"""Messages that the CRM deletes while they are being sent."""

from alembic import op

from campaign_pipeline.sql import run_migration

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """Add a table."""
    run_migration(op.get_bind(), "0013_deleted_in_flight")
