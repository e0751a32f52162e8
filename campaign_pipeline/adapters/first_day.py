"""The first day with data: found in the database, cached in a file that the code location reads when loaded.

Partitions are fixed when the code location is loaded, in the code server and in every step's process, which must not
wait for a database. If the file is missing, as on another host, the days begin earlier, so no partition is rejected;
for the same reason the day only ever moves back.
"""

import contextlib
import os
from datetime import date
from pathlib import Path

FILE = "first_day"


def kept_first_day(home: Path) -> date | None:
    """Return the cached day, if there is a readable one."""
    try:
        return date.fromisoformat((home / FILE).read_text(encoding="utf-8").strip())
    except (OSError, ValueError):
        return None


def keep_first_day(home: Path, day: date) -> None:
    """Cache the day if it is earlier than the cached one; ignored if the folder is not writable."""
    kept = kept_first_day(home)
    if kept is not None and kept <= day:
        return
    draft = home / f"{FILE}.{os.getpid()}"
    with contextlib.suppress(OSError):
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft.write_text(f"{day.isoformat()}\n", encoding="utf-8")
        draft.replace(home / FILE)
