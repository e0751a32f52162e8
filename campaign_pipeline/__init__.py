"""Sends a CRM's outbound campaigns from PostgreSQL through language models and message providers, run by Dagster."""
