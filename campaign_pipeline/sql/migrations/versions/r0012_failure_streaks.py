"""Recipients that met the same failure."""

from alembic import op

from campaign_pipeline.sql import run_migration

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Create the table of failure streaks of inboxes and models."""
    run_migration(op.get_bind(), "0012_failure_streaks")
