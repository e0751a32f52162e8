"""How a command ends where something is wrong: in one sentence, with the exit code that fits.

Raise `Trouble` where the pipeline could not work and `WrongSetting` where it was told what cannot be. Known errors of
the rooms below become one of the two by themselves; what is left is a bug, whose traceback is wanted.
"""

from __future__ import annotations

import click

from campaign_pipeline.adapters.environment import SettingError

INTERRUPTED = 130


class Trouble(click.ClickException):
    """The pipeline could not work; one sentence says why."""

    exit_code = 1


class WrongSetting(Trouble):
    """What it was told cannot be; one sentence says what would be right."""

    exit_code = 2


def known_trouble(error: Exception) -> Trouble | None:
    """The one sentence for what an operator can mend; None for a bug of ours, whose traceback is wanted."""
    from psycopg import Error as DatabaseError
    from sqlalchemy.exc import SQLAlchemyError

    from campaign_pipeline.adapters.embedded import EmbeddedServerFailed
    from campaign_pipeline.adapters.operator import OperatorError
    from campaign_pipeline.adapters.schema import DatabaseUnusable
    from campaign_pipeline.core.ports import StoreUnavailable
    from campaign_pipeline.leads.model import LeadsFileError

    if isinstance(error, SettingError | LeadsFileError):
        return WrongSetting(str(error))
    if isinstance(error, DatabaseUnusable | EmbeddedServerFailed | StoreUnavailable | OperatorError):
        return Trouble(str(error))
    if isinstance(error, DatabaseError | SQLAlchemyError):
        return Trouble(f"The database refused: {_first_line(error)}")
    if isinstance(error, OSError):
        return Trouble(_first_line(error))
    return None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
