"""Who met the same failure."""

from alembic import op

from campaign_pipeline.sql import run_migration

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Make the table of failures that an inbox or a model met in a row."""
    run_migration(op.get_bind(), "0011_failure_streaks")
