"""The pipeline's own schema."""

from alembic import op

from campaign_pipeline.sql import run_migration, run_migration_with_functions

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Move the pipeline's tables out of public, and drop the functions that were there."""
    run_migration(op.get_bind(), "0008_closed_runs")
    run_migration_with_functions(op.get_bind(), "0008_own_schema")
