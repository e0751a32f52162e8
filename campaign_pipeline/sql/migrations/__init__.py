"""Alembic's folder: one SQL file a migration, and the thin Python that alembic wants."""
