"""Flags that several commands share."""

from __future__ import annotations

import getpass
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

import click

from campaign_pipeline.cli.errors import WrongSetting

F = TypeVar("F", bound=Callable[..., Any])


def all_of(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Combine several arguments and flags into one decorator; `--help` shows them in this order."""

    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


map_option = click.option(
    "--map",
    "mapping",
    multiple=True,
    metavar='FIELD="COLUMN"',
    help="The column of a field, by its heading or number. Fields: name, company, phone, email, value, priority, "
    "tags, notes, cnpj. May be repeated: phones are tried in this order, names are joined.",
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of tables.")

personal_data_option = click.option(
    "--show-personal-data", "personal", is_flag=True, help="Do not mask names, numbers, addresses and texts."
)

by_option = click.option(
    "--by", default=getpass.getuser, show_default="your login name", help="Your name, for the log."
)


def number_option(flag: str, usual: int, most: int, what: str) -> Callable[[F], F]:
    """A flag that is a number from 1 to `most`."""
    return click.option(flag, type=click.IntRange(1, most), default=usual, show_default=True, help=what)


limit_option = number_option("--limit", 50, 10_000, "Show at most this many.")

yes_option = click.option("--yes", is_flag=True, help="Do not ask for confirmation.")


def beginning_of(day: datetime) -> datetime:
    """Return the start of a day in CAMPAIGN_TIMEZONE, as reports and back-fills use it. Raises SettingError."""
    from campaign_pipeline.adapters.environment import BusinessDays

    return day.replace(tzinfo=BusinessDays.from_environment().zone)


def mapping_of(given: tuple[str, ...]) -> dict[str, list[str]]:
    """Parse options like phone=Telefone 2 into field -> headings."""
    mapping: dict[str, list[str]] = {}
    for each in given:
        name, equals, heading = each.partition("=")
        if not equals or not heading.strip():
            raise WrongSetting(f'--map is {each!r}, but must name a field and a column, like phone="Telefone 2".')
        mapping.setdefault(name.strip().lower(), []).append(heading.strip())
    return mapping
