"""The state of an attachment to a CRM."""

from alembic import op

from campaign_pipeline.sql import run_migration

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    """Add three tables of our own."""
    run_migration(op.get_bind(), "0015_crm_attachment")
