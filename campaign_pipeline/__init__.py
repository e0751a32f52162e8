"""Sends a CRM's outbound campaigns from PostgreSQL through language models and message providers, worked by Dagster."""
