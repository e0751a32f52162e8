"""The last message to each number."""

from alembic import op

from campaign_pipeline.sql import run_migration

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    """Add the directory of contacted numbers and how long a number rests."""
    run_migration(op.get_bind(), "0016_number_contacts")
