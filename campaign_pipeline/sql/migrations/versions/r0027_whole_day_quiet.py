"""No quiet hours of a whole day."""

from alembic import op

from campaign_pipeline.sql import run_migration

revision = "0027"
down_revision = "0026"


def upgrade() -> None:
    """Refuse quiet hours from 00:00 until 24:00."""
    run_migration(op.get_bind(), "0027_whole_day_quiet")
