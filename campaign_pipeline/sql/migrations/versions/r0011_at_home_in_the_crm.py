"""A ledger that outlives the CRM's messages, and other columns for coexistence with the CRM."""

from alembic import op

from campaign_pipeline.sql import run_migration

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Add columns and constraints; drop the foreign key that deleted parts with their message."""
    run_migration(op.get_bind(), "0011_at_home_in_the_crm")
