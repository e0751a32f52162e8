"""An index for refused answers by lead."""

from alembic import op

from campaign_pipeline.sql import run_migration

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    """Add the lead to the answers that are kept."""
    run_migration(op.get_bind(), "0017_model_calls_of_leads")
