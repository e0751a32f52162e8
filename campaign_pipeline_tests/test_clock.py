"""The database's clock decides: a worker whose own clock is an hour off must decide nothing by it."""

import ast
from pathlib import Path

import campaign_pipeline

PACKAGE = Path(campaign_pipeline.__file__).parent
DECIDING = ("core", "adapters", "defs", "sql")  # the sandbox and the demo are no part of the pipeline
WALL_CLOCK = {
    ("datetime", "now"),
    ("datetime", "utcnow"),
    ("datetime", "today"),
    ("date", "today"),
    ("time", "time"),
    ("time", "time_ns"),
    ("time", "localtime"),
    ("time", "gmtime"),
    ("Timestamp", "now"),
}

NOT_THE_QUEUE = {"io.py": "the age of a file is told by the clock that stamped it"}


def wall_clock_uses(source: str) -> list[str]:
    """Return where a module reads this machine's clock."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else node.value.attr
            if (owner, node.attr) in WALL_CLOCK:
                found.append(f"line {node.lineno}: {owner}.{node.attr}")
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            found += [f"line {node.lineno}: from time import {alias.name}" for alias in node.names]
    return found


def test_no_module_that_decides_anything_reads_this_machines_clock() -> None:
    modules = [path for room in DECIDING for path in (PACKAGE / room).rglob("*.py")]
    assert len(modules) > 20
    uses = {
        path.name: wall_clock_uses(path.read_text(encoding="utf-8"))
        for path in modules
        if path.name not in NOT_THE_QUEUE
    }
    assert {name: found for name, found in uses.items() if found} == {}


def test_a_reading_of_this_machines_clock_would_be_noticed() -> None:
    source = "import time\nfrom time import monotonic\nfrom datetime import datetime\nx = time.time(), datetime.now()\n"
    assert wall_clock_uses(source) == [
        "line 2: from time import monotonic",
        "line 4: time.time",
        "line 4: datetime.now",
    ]
