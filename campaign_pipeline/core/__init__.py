"""Domain: what a delivery is and what must hold. No clock, no environment, no I/O."""
