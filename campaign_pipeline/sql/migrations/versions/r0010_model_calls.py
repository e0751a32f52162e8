"""Model calls that are stored and counted on their own."""

from alembic import op

from campaign_pipeline.sql import run_migration

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Create the tables of model calls and of text records."""
    run_migration(op.get_bind(), "0010_model_calls")
