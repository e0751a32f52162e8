"""The queue's schema: brought up to date by alembic and one file of SQL functions; checked before work begins."""

import re
from pathlib import Path

import psycopg
import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from campaign_pipeline import sql
from campaign_pipeline.adapters.queue_connection import connect

_LOCK = 7_235_019_244_518_873  # an advisory lock of our own, so that two upgrades do not run into each other


class DatabaseUnusable(RuntimeError):
    """The queue's database cannot be reached, or has not the schema that this code needs; the text says what to do."""


def _alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(sql.__file__).parent / "migrations"))
    return config


def head_revision() -> str:
    """The newest migration in the folder."""
    head = ScriptDirectory.from_config(_alembic_config()).get_current_head()
    assert head is not None
    return head


def upgrade(url: str) -> str:
    """Bring the schema up to date, in one transaction; harmless when it is. Returns the revision.

    Raises DatabaseUnusable with one sentence when it cannot be reached or refuses.
    """
    _refuse_unreadable(url)
    # SQLAlchemy reads URLs in its own way (no second host, other escapes); the database is to be the same for both.
    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://", creator=lambda: connect(url), poolclass=sqlalchemy.NullPool
    )
    config = _alembic_config()
    try:
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            driver = connection.connection.driver_connection
            assert isinstance(driver, psycopg.Connection)
            driver.execute(sql.BEFORE_MIGRATIONS.encode())
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            driver.execute(sql.functions_text().encode())
    except sqlalchemy.exc.DBAPIError as error:
        raise DatabaseUnusable(_unreachable(url, error.orig)) from None
    except psycopg.Error as error:
        raise DatabaseUnusable(_unreachable(url, error)) from None
    finally:
        engine.dispose()
    return head_revision()


def check(url: str) -> None:
    """Make sure that the database answers and has our schema. Raises DatabaseUnusable with one sentence if not."""
    _refuse_unreadable(url)
    try:
        with connect(url, autocommit=True) as connection:
            # Up to 0007 it was in public.
            places = [f"{place}.{sql.VERSION_TABLE}" for place in (sql.SCHEMA, "public")]
            version = None
            for place in places:
                found = connection.execute("SELECT to_regclass(%s) IS NOT NULL", [place]).fetchone()
                if found and found[0]:
                    row = connection.execute(f"SELECT version_num FROM {place}").fetchone()  # noqa: S608 (a constant)
                    version = row[0] if row else None
                    break
    except (psycopg.OperationalError, psycopg.ProgrammingError) as error:
        raise DatabaseUnusable(_unreachable(url, error)) from None
    if version != sql.HEAD:
        raise DatabaseUnusable(
            f"The database {describe(url)} has the campaign schema {version or 'not at all'}, but {sql.HEAD} is "
            "needed: run `campaign-pipeline db upgrade`."
        )


_READABLE = re.compile(
    r"postgres(ql)?://"
    r"([^:@/?#\s]*(:[^@/?#\s]*)?@)?"
    r"(\[[^\]@/?#\s]*\]|[^:@/?#\s,]*)(:\d+)?(,(\[[^\]@/?#\s]*\]|[^:@/?#\s,]*)(:\d+)?)*"
    r"(/[^@?#\s]*)?"
    r"(\?(\w+=[^&#\s]*)(&\w+=[^&#\s]*)*)?"
)
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})|%00")


def is_readable(url: str) -> bool:
    """Whether a URL can be read in one way only.

    With a bare @ or / in the password libpq takes its rest for a host or a port, and says so in its errors, which are
    logged. Such a URL is refused before anybody reads it.
    """
    if not _READABLE.fullmatch(url) or _BAD_ESCAPE.search(url):
        return False
    try:
        psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        return False
    return True


UNREADABLE = (
    "CAMPAIGN_DATABASE_URL cannot be read as a URL such as postgresql://user:password@host:5432/database; characters "
    "like @ : / ? # % in the user or the password must be percent-encoded (@ is %40)."
)


def _refuse_unreadable(url: str) -> None:
    if not is_readable(url):
        raise DatabaseUnusable(UNREADABLE)


def describe(url: str) -> str:
    """Host, port and name of a database, without user and password."""
    parts = psycopg.conninfo.conninfo_to_dict(url)
    return f"{parts.get('dbname', '?')} at {parts.get('host', 'localhost')}:{parts.get('port', 5432)}"


def _unreachable(url: str, error: BaseException | None) -> str:
    reason = str(error).strip().splitlines()[0] if error and str(error).strip() else "no answer"
    return (
        f"The database {describe(url)} cannot be used: {reason.rstrip('.')}. CAMPAIGN_DATABASE_URL must be a "
        "postgresql:// URL of a PostgreSQL 14 or newer that answers from here."
    )
