"""The migrations, in order; none is ever changed once released."""
