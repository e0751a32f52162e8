"""The README's figures: the block between two marks is made from RESULTS.md."""

from collections.abc import Mapping
from pathlib import Path

BEGIN, END = "<!-- figures: written by `python -m benchmarks` -->", "<!-- end of figures -->"

SHOWN: Mapping[str, str] = {
    "send phase, in process / limit": "100 messages, five in flight: send phase over the theoretical minimum",
    "bare asyncio loop, 5 in flight / limit": "the same for a bare asyncio loop, which guarantees nothing",
    "this project, 4 shards": "20,000 messages, providers that answer at once",
    "time / that of a bare aiohttp loop": "time of these over that of a bare aiohttp loop, which guarantees nothing",
    "this project / a Celery with Redis worker": "rate of these over that of a Celery worker",
    "round trips a one-part message, 5 in flight": "database round trips per message",
    "claim of 500, 10,000,000 rows": "claim of 500 messages out of ten million",
}
"""The README's wording of figures of RESULTS.md, by their names there."""


def figures(results: str) -> str:
    """Return the block, without its marks, for a text of RESULTS.md. Raises KeyError where a figure is missing."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in results.splitlines() if line[:2] == "| "]
    measured = {row[0]: row[1] for row in rows if len(row) == 4}
    head = next(line for line in results.splitlines() if line.endswith(" targets are met."))
    lines = [f"| {words} | {measured[name]} |" for name, words in SHOWN.items()]
    return "\n".join(["| What | Measured |", "|---|---:|", *lines, "", head])


def written_figures(readme: str) -> str:
    """Return the block of a README's text."""
    return readme.partition(BEGIN)[2].partition(END)[0].strip()


def write_figures(readme: Path, results: Path) -> None:
    """Write the figures of RESULTS.md into the README."""
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    block = figures(results.read_text(encoding="utf-8"))
    readme.write_text(f"{before}{BEGIN}\n\n{block}\n\n{END}{after}", encoding="utf-8")
