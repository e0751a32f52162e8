"""The console script as an operator runs it: in its own process, without the test environment."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from campaign_pipeline.adapters.environment import PROVIDER_PREFIXES
from campaign_pipeline_tests.guard import ONLY_THIS_MACHINE

SCRIPT = str(Path(sys.executable).with_name("campaign-pipeline"))
OURS = ("CAMPAIGN_", "OPENROUTER_", "DAGSTER_", *PROVIDER_PREFIXES)


def variables(home: Path, **more: str) -> dict[str, str]:
    """Return this process's environment without the pipeline's variables, with the test's own home."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    return {**kept, **ONLY_THIS_MACHINE, "CAMPAIGN_HOME": str(home), "COLUMNS": "100", **more}


def run(home: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run it until it ends."""
    return subprocess.run(
        [SCRIPT, *arguments], env=variables(home, **more), capture_output=True, text=True, timeout=150, check=False
    )


def start(home: Path, *arguments: str, **more: str) -> "subprocess.Popen[str]":
    """Start it as a session leader, like a terminal."""
    return subprocess.Popen(
        [SCRIPT, *arguments],
        env=variables(home, **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_until(what: Callable[[], bool], seconds: float = 60.0) -> None:
    """Poll until a condition holds. Raises TimeoutError if it does not."""
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so within {seconds:g} seconds")
        time.sleep(0.05)


def processes_of(home: Path) -> list[str]:
    """Return command lines of living processes that use this home: by their arguments, or by where they write."""
    return [command for _, command in numbered_processes_of(home)]


def numbered_processes_of(home: Path) -> list[tuple[int, str]]:
    """Return the same with their process ids."""
    name = str(home)
    return [(pid, command) for pid, environment, command in _processes() if name in environment or name in command]


def _processes() -> Iterator[tuple[int, str, str]]:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().decode(errors="replace")
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it ended meanwhile, or belongs to another user
            continue
        if command:  # a zombie has none
            yield int(folder.name), environment, command
