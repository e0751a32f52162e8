"""A small world to try the pipeline in: realistic leads, a few campaigns, and a table of what happened."""
