"""Checks of 0011, validated."""

from alembic import op

from campaign_pipeline.sql import run_migration

revision = "0025"
down_revision = "0024"


def upgrade() -> None:
    """Validate the checks of the ledger and of retry delays for older rows."""
    run_migration(op.get_bind(), "0025_validated_checks")
