"""Reviews of texts before they are sent."""

from alembic import op

from campaign_pipeline.sql import run_migration

revision = "0023"
down_revision = "0022"


def upgrade() -> None:
    """Add the decisions about texts."""
    run_migration(op.get_bind(), "0023_reviews")
