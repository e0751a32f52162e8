"""The index of leased messages by run serves only who asks by run."""

from alembic import op

from campaign_pipeline.sql import run_migration

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Build the index anew."""
    run_migration(op.get_bind(), "0007_leased_by_run")
