"""The effect of prompt caches on model calls."""

from alembic import op

from campaign_pipeline.sql import run_migration

revision = "0022"
down_revision = "0021"


def upgrade() -> None:
    """Add the cached tokens, and the savings."""
    run_migration(op.get_bind(), "0022_prompt_cache")
