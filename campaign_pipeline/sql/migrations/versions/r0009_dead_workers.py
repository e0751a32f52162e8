"""Attempts and messages of dead workers."""

from alembic import op

from campaign_pipeline.sql import run_migration

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Add the end of the lease to attempts, and count workers that died."""
    run_migration(op.get_bind(), "0009_dead_workers")
