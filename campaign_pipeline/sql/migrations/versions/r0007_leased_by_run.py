"""The index of leased messages by run is used only by queries by run."""

from alembic import op

from campaign_pipeline.sql import run_migration

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Rebuild the index."""
    run_migration(op.get_bind(), "0007_leased_by_run")
