"""Model calls say what prompt caches did."""

from alembic import op

from campaign_pipeline.sql import run_migration

revision = "0022"
down_revision = "0021"


def upgrade() -> None:
    """Add the tokens that were cached, and what that saved."""
    run_migration(op.get_bind(), "0022_prompt_cache")
