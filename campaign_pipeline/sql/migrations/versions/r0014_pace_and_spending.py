"""The owner of a campaign's pace, and spending counted from the start of the day."""

from alembic import op

from campaign_pipeline.sql import run_migration

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    """Add the setting and the slots of a sum."""
    run_migration(op.get_bind(), "0014_pace_and_spending")
