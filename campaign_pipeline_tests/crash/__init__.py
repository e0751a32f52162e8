"""Real processes are killed; then the invariants are verified from the database and the providers' records."""
