"""Plain names of triggers."""

from alembic import op

from campaign_pipeline.sql import run_migration

revision = "0026"
down_revision = "0025"


def upgrade() -> None:
    """Rename the triggers on replies and on paces, and their functions."""
    run_migration(op.get_bind(), "0026_plain_names")
