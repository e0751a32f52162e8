"""Output of commands: tables, or JSON with `--json`.

A command builds its rows once, as mappings of plain values, and passes them to `show`. The table has the columns that
the command names; the JSON has every field of every row.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

    from rich.console import Console

PIPED_WIDTH = 1000
"""Width if the output is not a terminal: each row stays on one line, for grep and for files."""

SHORTEST = 8
"""Least width of a column on a narrow terminal: that of a short id."""

STYLES = {
    "ok": "green",
    "sent": "green",
    "replied": "green",
    "completed": "green",
    "look": "yellow",
    "paused": "yellow",
    "stops": "red",
    "failed": "red",
}
"""Colours of single words in tables."""


def console(*, stderr: bool = False) -> Console:
    """Return the console; progress and remarks go to stderr."""
    from rich.console import Console

    return Console(highlight=False, stderr=stderr)


def print_tables(*tables: Any) -> None:
    """Print tables; if the output is not a terminal, lines are not wrapped."""
    to = console()
    if not to.is_terminal and "COLUMNS" not in os.environ:
        to.width = PIPED_WIDTH
    for table in tables:
        to.print(table)


def show(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], *, as_json: bool, empty: str) -> None:
    """Print rows as a table of `columns` (field -> heading), or all their fields as one JSON array.

    `empty` is the sentence that is printed if there are no rows.
    """
    if as_json:
        show_json(list(rows))
    elif not rows:
        click.echo(empty)
    else:
        print_tables(table_of(rows, columns))
        say_zone(rows, columns)


def table_of(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], title: str | None = None) -> Any:
    """Build a rich table: numbers to the right, short times in `zone`, no empty columns."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, title=title, title_justify="left", title_style="bold")
    filled = {field: columns[field] for field in columns if any(cell(row.get(field)) for row in rows)}
    for field, heading in filled.items():
        numbers = all(isinstance(row.get(field), int | float | Decimal | None) for row in rows)
        widest = max(len(cell(row.get(field))) for row in rows)
        # On a narrow terminal long cells wrap, but ids do not.
        table.add_column(
            heading,
            justify="right" if numbers else "left",
            no_wrap=widest <= SHORTEST,
            min_width=min(widest, SHORTEST),
            overflow="fold",
        )
    for row in rows:
        cells = [cell(row.get(field)) for field in filled]
        table.add_row(*(Text(each, style=STYLES.get(each, "")) for each in cells))
    return table


@cache
def zone() -> ZoneInfo:
    """Return the time zone of all shown times: CAMPAIGN_TIMEZONE, as in reports and in the UI. Raises SettingError."""
    from campaign_pipeline.adapters.environment import BusinessDays

    return BusinessDays.from_environment().zone


def say_zone(rows: Sequence[Mapping[str, Any]], fields: Iterable[str]) -> None:
    """Print the time zone below a table that shows times."""
    if any(isinstance(row.get(field), datetime) for row in rows for field in fields):
        click.echo(f"Times are in {zone()}.")


def show_json(value: Any) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2, default=_plain))


def cell(value: Any) -> str:
    """Format a value for a table."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return f"{value.astimezone(zone()):%Y-%m-%d %H:%M}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float | Decimal):
        return f"{value:,.4f}".rstrip("0").rstrip(".")
    if isinstance(value, UUID):
        return str(value)[:8]  # enough for every command that takes an id
    if isinstance(value, list | tuple | set):
        return ", ".join(map(cell, value))
    return str(value)


def _plain(value: Any) -> Any:
    """Convert what JSON cannot represent: times to ISO 8601, ids to text, amounts to numbers, durations to seconds."""
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
