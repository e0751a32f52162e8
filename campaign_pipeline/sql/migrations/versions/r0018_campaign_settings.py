"""Campaign settings without a column in the CRM, and planned days."""

from alembic import op

from campaign_pipeline.sql import run_migration

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    """Add the settings of campaigns and the planned days."""
    run_migration(op.get_bind(), "0018_campaign_settings")
