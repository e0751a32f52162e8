"""Counts what a step's process imports after it was forked from the preloaded server.

A folder with a `sitecustomize` comes first on the run's import path; each forked process then writes, when it exits,
the modules that it has and its parent had not.
"""

from collections.abc import Sequence
from pathlib import Path

_SITE_CUSTOMIZE = '''
"""Written by benchmarks.imports: notes what forked processes import."""
import os
import sys
from multiprocessing import util

_before = set()


def _forked():
    _before.clear()
    _before.update(sys.modules)


def _write():
    new = sorted(set(sys.modules) - _before)
    with open(os.path.join({folder!r}, "%d.imports" % os.getpid()), "w") as file:
        file.write("\\n".join(new))


class _Marker:
    pass


_marker = _Marker()
os.register_at_fork(after_in_child=_forked)
util.register_after_fork(_marker, lambda _: util.Finalize(None, _write, exitpriority=0))
'''


def watch_imports(folder: Path) -> Path:
    """Prepare a folder for the run's import path, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(_SITE_CUSTOMIZE.format(folder=str(folder)))
    return folder


def imported_by(folder: Path, pid: int) -> Sequence[str]:
    """Return the modules that a forked process imported itself. Raises FileNotFoundError if it wrote none."""
    return (folder / f"{pid}.imports").read_text().splitlines()
