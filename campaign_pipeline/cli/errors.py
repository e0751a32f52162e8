"""Errors of commands: one sentence, and the exit code.

Raise `Trouble` if the pipeline could not work, and `WrongSetting` for wrong usage or configuration. Known errors of the
other packages are converted to one of the two. Any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import click

from campaign_pipeline.adapters.environment import SettingError

INTERRUPTED = 130


class Trouble(click.ClickException):
    """The pipeline could not work; one sentence says why."""

    exit_code = 1


class WrongSetting(Trouble):
    """Wrong usage or configuration; one sentence says what would be right."""

    exit_code = 2


def known_trouble(error: Exception) -> Trouble | None:
    """Convert an error that an operator can fix; return None for a bug."""
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
