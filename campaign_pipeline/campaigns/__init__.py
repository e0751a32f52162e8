"""Campaign files, the import of leads, and the planning of a day's run."""
