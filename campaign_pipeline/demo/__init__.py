"""The demo: generated leads, a few campaigns, and a table of the results."""
