"""The presence of the processes of Dagster runs."""

from alembic import op

from campaign_pipeline.sql import run_migration

revision = "0021"
down_revision = "0020"


def upgrade() -> None:
    """Add the table of presence."""
    run_migration(op.get_bind(), "0021_run_presence")
