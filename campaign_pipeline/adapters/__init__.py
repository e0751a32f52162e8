"""Outside systems: each module implements a port of `core.ports`; none decides a status or an attempt budget."""
