"""Races against other ways of doing the same work, side by side in one run: `python -m benchmarks`."""
