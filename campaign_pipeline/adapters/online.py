"""Schema changes of a database in use, in steps that block no other client.

A statement that locks a table waits in the table's lock queue, and later statements wait behind it. So each statement
is its own transaction, sent and committed in one message, gives up after a moment in the queue, and is repeated.
Indexes are built concurrently, which blocks no writer. Every statement is idempotent, so an interrupted upgrade is
simply started again.
"""

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
from tenacity import RetryError, Retrying, retry_if_exception_type, stop_after_delay, wait_random

from campaign_pipeline.adapters.queue_connection import connect, is_pooled

LOCK_WAIT_MS = 150
"""How long a step may wait in a table's lock queue. Others wait behind it for that long; a step with several tables may
wait in several queues, one after another."""

_TRY_AGAIN = (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected)
_KEY = 7_235_019_244_518_873  # the advisory lock of upgrades

_INDEX = re.compile(
    r"CREATE (?:UNIQUE )?INDEX CONCURRENTLY IF NOT EXISTS (?P<name>\w+)\s+ON (?P<table>[\w.]+)", re.IGNORECASE
)
_OUTSIDE_A_TRANSACTION = re.compile(r"DROP INDEX CONCURRENTLY\b", re.IGNORECASE)
_LEADING_COMMENTS = re.compile(r"(?:\s+|--[^\n]*\n|/\*.*?\*/)*", re.DOTALL)


class StepFailed(RuntimeError):
    """A step failed for a reason other than the database; the message is one sentence."""


class OnlineSteps:
    """Runs statements on one connection. A context manager."""

    def __init__(self, url: str, say: Callable[[str], None] = lambda _: None, patience_seconds: float = 900.0) -> None:
        """`patience_seconds`: how long a step is retried; `say` is told what takes long."""
        self._url = url
        self._say = say
        self._patience = patience_seconds

    def __enter__(self) -> "OnlineSteps":
        self.connection = connect(self._url, autocommit=True)
        # Several statements in one message have no binary results, whatever the session's date style.
        self.connection.cursor_factory = psycopg.Cursor
        self._pooled = is_pooled(self.connection)
        if not self._pooled:
            # An index of a large table takes long. A pooler would leak these settings to others; see _build_index.
            self.connection.execute("SET statement_timeout = 0; SET lock_timeout = 0")
        return self

    def __exit__(self, *exception: object) -> None:
        self.connection.close()

    def run(self, statement: str, search_path: str | None = None) -> None:
        """Run a statement, or several that belong together, as one step. Raises psycopg.Error, or StepFailed."""
        statement = statement[_LEADING_COMMENTS.match(statement).end() :]  # type: ignore[union-attr]
        if _INDEX.match(statement):
            self._build_index(statement)
        elif _OUTSIDE_A_TRANSACTION.match(statement):
            self._patiently(lambda: self.connection.execute(statement.encode()), statement)
        else:
            # Several statements in one message are one transaction: its locks last no round trip.
            settings = f"SET LOCAL lock_timeout = '{LOCK_WAIT_MS}ms'; "
            if search_path:
                settings += f"SET LOCAL search_path = {search_path}; "
            self._patiently(lambda: self.connection.execute((settings + statement).encode()), statement)

    def _patiently(self, call: Callable[[], object], statement: str) -> None:
        again = Retrying(
            retry=retry_if_exception_type(_TRY_AGAIN),
            wait=wait_random(0.1, 1.0),  # clients that waited behind us go first
            stop=stop_after_delay(self._patience),
            before_sleep=lambda state: self._tell_once(statement, state.attempt_number),
        )
        try:
            again(call)
        except RetryError:
            raise StepFailed(
                f"Another transaction held a lock for {self._patience / 60:.0f} minutes, so that this could not be "
                f"done: {_first_words(statement)} … What was done stays; start again when it has ended."
            ) from None

    def _tell_once(self, statement: str, attempt: int) -> None:
        if attempt == 2:
            self._say(f"Waiting for a moment without a long transaction: {_first_words(statement)} …")

    def _build_index(self, statement: str) -> None:
        match = _INDEX.match(statement)
        assert match is not None

        def build() -> None:
            # If we or a conflict interrupted the build, an invalid index remains: useless, but every write pays for it.
            found = self.connection.execute(_FIND_INDEX, [match["table"], match["name"]]).fetchone()
            if found is not None and found[1]:
                return
            if found is not None:
                self.connection.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {found[0]}".encode())
            self._say(f"Building the index {match['name']} …")
            self.connection.execute(statement.encode())

        try:
            self._patiently(build, statement)
        except psycopg.errors.QueryCanceled as error:
            if not self._pooled:
                raise
            raise StepFailed(
                f"Building the index {match['name']} was cut short ({str(error).strip()}), and through a pooler that "
                "cannot be prevented: name the direct connection (on Supabase port 5432) in CAMPAIGN_DATABASE_URL for "
                "this command. What was done stays."
            ) from None


_FIND_INDEX = """
SELECT i.indexrelid::regclass::text, i.indisvalid
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE i.indrelid = to_regclass(%s) AND c.relname = %s
"""


@contextlib.contextmanager
def one_at_a_time(url: str, say: Callable[[str], None], patience_seconds: float = 900.0) -> Iterator[None]:
    """Exclude all other upgrades, even through a pooler: an idle transaction holds an advisory lock.

    A pooler assigns a server connection for a whole transaction, so this lock is ours until its end; a session lock
    would not be. Between its statements the transaction has no snapshot, so no index build waits for it. Other upgrades
    poll instead of waiting in the server, where our index builds would wait for them. Each poll is its own transaction:
    a build that starts during one waits for that transaction, and would wait for good if it lasted until the next.
    """
    end = time.monotonic() + patience_seconds
    with connect(url) as guard:
        told = False
        while not _took_upgrade_lock(guard):
            guard.rollback()
            if time.monotonic() > end:
                raise StepFailed(
                    f"Another upgrade of this database has not ended for {patience_seconds / 60:.0f} minutes."
                )
            if not told:
                say("Waiting for another upgrade of this database to end …")
                told = True
            time.sleep(0.1)
        yield


def _took_upgrade_lock(guard: "psycopg.Connection[Any]") -> bool:
    """Try to take the lock for the rest of the transaction that this call begins."""
    guard.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
    # Without parameters, hence by the simple protocol: the extended one keeps a snapshot until the next statement.
    row = guard.execute(f"SELECT pg_try_advisory_xact_lock({_KEY})").fetchone()
    assert row is not None
    return bool(row[0])


def _first_words(statement: str) -> str:
    return " ".join(statement.split())[:60]
