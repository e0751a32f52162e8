"""The picture in a daily report: when messages were sent, and where their time went."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from campaign_pipeline.adapters.reports import CampaignDay

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OUTCOMES = {"sent": "seagreen", "failed": "crimson", "skipped": "silver"}
"""The outcomes of a message, in the order of the plot, with their colours."""

STAGES = {"generation": "writing", "send": "sending", "wait": "due until sent"}
"""The stages of a message: the report's column names, and the labels."""

_INK, _GRID = "#3d3d3d", "#e4e4e4"
_TICKS = (0.001, 0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 36000.0, 360000.0)  # seconds
_UNITS = ((3600.0, "h"), (60.0, "min"), (1.0, "s"))


def day_picture(day: str, total: CampaignDay) -> str:
    """Plot a day's total as a PNG in Markdown, about 10 kB, for Dagster's UI.

    It contains only counts and times, neither names nor ids.
    """
    # A figure of its own, without pyplot: no window, no global state, nothing to close.
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from PIL import Image
    except ModuleNotFoundError as missing:
        return f"No picture: {missing.name} is not installed. For pictures, install `campaign_pipeline[plots]`."

    figure = Figure(figsize=(9, 3.1), dpi=100, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_hours(left, day, total.by_hour or {})
    _draw_stages(right, total)
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")
    # A third of the bytes: each picture stays in Dagster's event log for as long as its run.
    Image.open(drawn).convert("RGB").quantize(48).save(small, format="png", optimize=True)
    return f"![{day}](data:image/png;base64,{base64.b64encode(small.getvalue()).decode()})"


def _draw_hours(axes: "Axes", day: str, by_hour: Mapping[str, Sequence[int]]) -> None:
    from matplotlib.ticker import MaxNLocator

    heights = [0] * 24
    for place, (outcome, colour) in enumerate(OUTCOMES.items()):
        counts = [by_hour.get(str(hour), (0, 0, 0))[place] for hour in range(24)]
        if any(counts):
            axes.bar(range(24), counts, bottom=heights, width=0.85, color=colour, label=f"{outcome} ({sum(counts):,})")
        heights = [height + count for height, count in zip(heights, counts, strict=True)]
    _plain_axes(axes)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set(xlim=(-0.6, 23.6), xlabel="hour of the day", ylabel="messages")
    axes.set_xticks(range(0, 24, 3), [f"{hour:02d}:00" for hour in range(0, 24, 3)])
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(f"Messages of {day} by outcome", loc="left", fontsize=10, color=_INK)
    if any(heights):
        axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper left", labelcolor=_INK)
        axes.set_ylim(0, max(heights) * 1.25)  # room for the legend above the highest bar
    else:
        axes.set_yticks([])
        axes.text(0.5, 0.5, "nothing ended on this day", transform=axes.transAxes, ha="center", color=_INK)


def _draw_stages(axes: "Axes", total: CampaignDay) -> None:
    _plain_axes(axes)
    axes.set_title("Duration: median (dot) to 95th percentile", loc="left", fontsize=10, color=_INK)
    times = [
        (name, getattr(total, f"median_{stage}_s"), getattr(total, f"p95_{stage}_s"))
        for stage, name in reversed(STAGES.items())
        if getattr(total, f"p95_{stage}_s") is not None
    ]
    if not times:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "nothing was sent on this day", transform=axes.transAxes, ha="center", color=_INK)
        return
    for place, (_, median, p95) in enumerate(times):
        start, end = (max(seconds, _TICKS[0]) for seconds in (median, p95))  # a logarithmic scale has no zero
        axes.plot((start, end), (place, place), color="#9db8d6", linewidth=5, solid_capstyle="round", zorder=2)
        axes.plot(start, place, "o", color="#2f5d8c", markersize=7, zorder=3)
        text = f"{in_words(median)} to {in_words(p95)}"
        axes.annotate(text, (end, place), (8, 0), textcoords="offset points", va="center", fontsize=8, color=_INK)
    axes.set_xscale("log")
    axes.grid(axis="x", color=_GRID, linewidth=0.8)
    axes.set_yticks(range(len(times)), [name for name, _, _ in times])
    # Room on the right for the labels of the longest line: as much again as the lines take, on a scale of decades.
    low = max(_TICKS[0], min(median for _, median, _ in times)) / 2
    high = max(_TICKS[0], *(p95 for _, _, p95 in times)) * 2
    axes.set(xlim=(low, high * (high / low) ** 0.6), ylim=(-0.6, len(times) - 0.4), xlabel="time (log scale)")
    ticks = [seconds for seconds in _TICKS if low <= seconds <= high]
    ticks = ticks[:: 1 + len(ticks) // 5]  # labels must not touch
    axes.set_xticks(ticks, [in_words(seconds) for seconds in ticks])
    axes.set_xticks([], minor=True)


def in_words(seconds: float) -> str:
    """Format a time for quick reading: `850 ms`, `1.6 s`, `3 min`, `2.5 h`."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    size, unit = next((size, unit) for size, unit in _UNITS if seconds >= size)
    return f"{seconds / size:.1f}".removesuffix(".0") + f" {unit}"


def _plain_axes(axes: "Axes") -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_INK)
    axes.tick_params(colors=_INK, labelsize=8, length=0)
    axes.xaxis.label.set(color=_INK, fontsize=8)
    axes.yaxis.label.set(color=_INK, fontsize=8)
    axes.set_axisbelow(True)
