"""The CRM's own tables, if they do not exist."""

from alembic import op

from campaign_pipeline.sql import run_migration

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create missing tables; leave existing ones."""
    run_migration(op.get_bind(), "0001_crm_tables")
