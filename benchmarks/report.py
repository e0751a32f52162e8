"""Results of the races: tables in the terminal, and RESULTS.md with plots."""

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

_PACKAGES = ("dagster", "psycopg", "httpx", "aiohttp", "uvloop", "celery", "redis", "procrastinate")
_WORDS = {True: "met", False: "NOT met", None: ""}


@dataclass(frozen=True)
class Row:
    """One figure, and its target if it has one."""

    what: str
    figure: str
    bar: str = ""
    met: bool | None = None  # None: no target, it explains another figure


@dataclass(frozen=True)
class Plot:
    """Contestants side by side, as horizontal bars."""

    title: str
    unit: str
    values: Mapping[str, float]
    line: tuple[str, float] | None = None  # a reference line: its label and its value


@dataclass
class Result:
    """One race."""

    name: str
    title: str
    compared: str  # what is compared with what, from the race's docstring
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    trusted: bool = True  # False in a short run, whose figures mean nothing

    def tell(self, what: str, value: float, unit: str = "", digits: int = 2) -> None:
        """Add a figure without a target."""
        self.rows.append(Row(what, _number(value, unit, digits)))

    def judge(
        self,
        what: str,
        value: float,
        unit: str = "",
        *,
        most: float | None = None,
        least: float | None = None,
        digits: int = 2,
    ) -> None:
        """Add a figure with its target: `most`, `least` or both."""
        met = (most is None or value <= most) and (least is None or value >= least)
        bars = [
            f"≤ {_number(most, unit, 2)}" if most is not None else "",
            f"≥ {_number(least, unit, 2)}" if least is not None else "",
        ]
        self.rows.append(
            Row(what, _number(value, unit, digits), " and ".join(filter(None, bars)), met if self.trusted else None)
        )


def _number(value: float, unit: str, digits: int) -> str:
    text = f"{value:,.{digits}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return f"{text} {unit}".strip()


def show(result: Result, console: Console) -> None:
    """Print one race's table."""
    table = Table(
        title=result.title, title_justify="left", caption="\n".join(result.notes) or None, caption_justify="left"
    )
    table.add_column("Figure")
    table.add_column("Measured", justify="right")
    table.add_column("Target", justify="right")
    table.add_column("")
    for row in result.rows:
        style = "" if row.met is None else "green" if row.met else "bold red"
        table.add_row(row.what, row.figure, row.bar, _WORDS[row.met], style=style)
    console.print(table)


def describe_machine(postgres: str) -> list[str]:
    """Describe the machine and the versions."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = models[0] if models else cpu
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    packages = ", ".join(f"{name} {found}" for name in _PACKAGES if (found := _version(name)))
    python = f"{platform.python_version()} ({Path(sys.executable).resolve()})"  # how it was compiled matters, too
    return [
        f"{os.cpu_count()} cores ({cpu}), {gigabytes:.0f} GB of memory, {platform.system()} {platform.release()}",
        f"Python {python}, PostgreSQL {postgres} (embedded, on the same cores), {packages}",
        f"load average at the start: {os.getloadavg()[0]:.2f}",
    ]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def write_results(
    results: Sequence[Result], machine: Sequence[str], out: Path, *, seed: int, repeat: int, short: bool
) -> Path:
    """Write all of RESULTS.md, and its plots, into `out`; return the file."""
    out.mkdir(parents=True, exist_ok=True)
    lines = ["# Races", ""]
    if short:
        lines += ["This was a short run. It only proves that the races run; its figures mean nothing.", ""]
    lines += [
        f"Written by `python -m benchmarks --seed {seed} --repeat {repeat}{' --short' if short else ''}` on "
        f"{datetime.now(UTC):%Y-%m-%d}; do not edit it by hand. Compare ratios, not seconds: seconds depend on the "
        "machine. All contestants of a race ran in the same session, with the same seeds, against the same mock "
        "providers (`campaign_pipeline.sandbox`, a separate process on the same cores). Figures are medians.",
        "",
        *(f"* {line}" for line in machine),
        "",
        *_missed(results),
    ]
    for result in results:
        lines += [f"## {result.title}", "", result.compared, ""]
        lines += ["| Figure | Measured | Target | |", "|---|---:|---:|---|"]
        lines += [f"| {row.what} | {row.figure} | {row.bar} | {_WORDS[row.met]} |" for row in result.rows]
        lines += ["", *(f"* {note}" for note in result.notes), ""]
        lines += [f"![{plot.title}](plots/{name})" for plot, name in _draw(result, out / "plots")] + [""]
    file = out / "RESULTS.md"
    text = "\n".join(lines)
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    file.write_text(text.rstrip() + "\n", encoding="utf-8")
    return file


def _missed(results: Sequence[Result]) -> list[str]:
    judged = [row for result in results for row in result.rows if row.met is not None]
    missed = [(result, row) for result in results for row in result.rows if row.met is False]
    if not judged:
        return []
    said = [f"{len(judged) - len(missed)} of {len(judged)} targets are met."]
    said += [f"* Not met: {row.what}: {row.figure} ({row.bar})" for _, row in missed]
    return [said[0], "", *said[1:], ""]


def _draw(result: Result, folder: Path) -> list[tuple[Plot, str]]:
    """Draw a race's plots as small SVG files; draw nothing if matplotlib is not installed."""
    try:
        from matplotlib import rc_context  # type: ignore[import-not-found,import-untyped,unused-ignore]
        from matplotlib.backends.backend_svg import FigureCanvasSVG  # type: ignore[import-not-found,import-untyped,unused-ignore]
        from matplotlib.figure import Figure  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        return []
    drawn = []
    for no, plot in enumerate(result.plots, start=1):
        figure = Figure(figsize=(7.5, 0.9 + 0.42 * len(plot.values)), layout="constrained")
        canvas: Any = FigureCanvasSVG(figure)
        axes = figure.subplots()
        names = list(plot.values)
        colours = ["#1f6f8b" if name.startswith("this") else "#b9c4c9" for name in names]
        bars = axes.barh(names, list(plot.values.values()), color=colours)
        axes.bar_label(bars, fmt="{:,.4g}", padding=3, fontsize=8)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set_xlabel(plot.unit)
        axes.set_title(plot.title, fontsize=10, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        if plot.line is not None:
            axes.axvline(plot.line[1], color="#c0392b", linewidth=1, linestyle="--", label=plot.line[0])
            axes.legend(fontsize=8, frameon=False)
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{result.name}_{no}.svg"
        # Text elements keep the file small. No date and fixed ids: the same figures give the same file.
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
            canvas.print_svg(str(folder / name), metadata={"Date": None})
        drawn.append((plot, name))
    return drawn
