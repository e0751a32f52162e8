"""Who met the same failure."""

from alembic import op

from campaign_pipeline.sql import run_migration

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Make the table of failures that an inbox or a model met in a row."""
    run_migration(op.get_bind(), "0012_failure_streaks")
