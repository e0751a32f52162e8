"""Real processes are killed; then the invariants are recounted from the database and from what the providers received."""
