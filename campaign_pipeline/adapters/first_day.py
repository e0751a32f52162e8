"""The first day that has data: found in the database, kept in a file that loading the code location may read.

Partitions are fixed when the code location is loaded, in the code server and again in every step's process. None of
them may wait for a database then. Where the file is missing, as on another host, the days begin earlier, which refuses
nobody's partition; for the same reason the day only ever moves back.
"""

import contextlib
import os
from datetime import date
from pathlib import Path

FILE = "first_day"


def kept_first_day(home: Path) -> date | None:
    """The day, if one is kept and can be read."""
    try:
        return date.fromisoformat((home / FILE).read_text(encoding="utf-8").strip())
    except (OSError, ValueError):
        return None


def keep_first_day(home: Path, day: date) -> None:
    """Keep the day where it is earlier than the one that is kept; a folder that takes no file keeps none."""
    kept = kept_first_day(home)
    if kept is not None and kept <= day:
        return
    draft = home / f"{FILE}.{os.getpid()}"
    with contextlib.suppress(OSError):
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft.write_text(f"{day.isoformat()}\n", encoding="utf-8")
        draft.replace(home / FILE)
