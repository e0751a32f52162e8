"""Orchestration: the only rooms, with `definitions`, that import dagster."""
