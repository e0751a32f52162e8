"""Flags that more than one command has, each declared once."""

from __future__ import annotations

import getpass
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

import click

from campaign_pipeline.cli.errors import WrongSetting

F = TypeVar("F", bound=Callable[..., Any])


def all_of(*options: Callable[[F], F]) -> Callable[[F], F]:
    """One decorator for several arguments and flags, shown in the given order."""

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
    help="Which column holds a field, by its heading or number: name, company, phone, email, value, priority, tags, "
    "notes, cnpj. May be repeated: phones are tried in this order, names are joined.",
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of tables.")

personal_data_option = click.option(
    "--show-personal-data", "personal", is_flag=True, help="Show names, numbers, addresses and texts; else masked."
)

by_option = click.option(
    "--by", default=getpass.getuser, show_default="your login name", help="Who does it; it is kept."
)

limit_option = click.option(
    "--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="How many at most."
)

yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


def beginning_of(day: datetime) -> datetime:
    """When a day without a time zone begins, as reports and back-fills cut days. Raises SettingError."""
    from zoneinfo import ZoneInfo

    from campaign_pipeline.adapters.environment import BusinessDays

    return day.replace(tzinfo=ZoneInfo(BusinessDays.from_environment().timezone))


def mapping_of(given: tuple[str, ...]) -> dict[str, list[str]]:
    """Field -> headings, of options like phone=Telefone 2."""
    mapping: dict[str, list[str]] = {}
    for each in given:
        name, equals, heading = each.partition("=")
        if not equals or not heading.strip():
            raise WrongSetting(f'--map is {each!r}, but must name a field and a column, like phone="Telefone 2".')
        mapping.setdefault(name.strip().lower(), []).append(heading.strip())
    return mapping
