"""Real processes are killed; then what must hold is recounted from the database and the providers' records."""
