"""Findings of `doctor` and `crm check`: what was examined, how it is, and what to do."""

from dataclasses import asdict, dataclass
from enum import StrEnum


class State(StrEnum):
    """What a finding means."""

    FINE = "ok"
    LOOK = "look"  # a person should look at it; it stops nothing
    STOPS = "stops"  # it stops messages, or an attach


@dataclass(frozen=True)
class Finding:
    """One line of a check."""

    what: str
    state: State
    found: str
    todo: str = ""

    def to_dict(self) -> dict[str, str]:
        """For `--json`."""
        return {name: str(value) for name, value in asdict(self).items()}
