"""The rivals' status write, and the wait for its last row."""

import time

import psycopg

from benchmarks.rivals.letters import Letters

MARK_SENT = "UPDATE rival_messages SET status = 'sent', provider_id = %s, sent_at = clock_timestamp() WHERE id = %s"


class RivalFailed(RuntimeError):
    """A rival did not finish."""


def make_table(url: str, letters: Letters) -> None:
    """Create a plain table of messages for one rival."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS rival_messages")
        connection.execute(
            "CREATE TABLE rival_messages (id uuid PRIMARY KEY, status text NOT NULL DEFAULT 'pending', provider_id"
            " text, sent_at timestamptz)"
        )
        with connection.cursor().copy("COPY rival_messages (id) FROM STDIN") as copy:
            for letter in letters.letters:
                copy.write_row((letter.id,))
        connection.execute("VACUUM ANALYZE rival_messages")


def wait_until_sent(url: str, count: int, timeout: float = 1800.0) -> float:
    """Wait until all are sent; return the time of the last (seconds since the epoch). Raises RivalFailed."""
    deadline, sent = time.monotonic() + timeout, 0
    with psycopg.connect(url, autocommit=True) as connection:
        while time.monotonic() < deadline:
            row = connection.execute(
                "SELECT count(*), EXTRACT(epoch FROM max(sent_at))::float8 FROM rival_messages WHERE status = 'sent'"
            ).fetchone()
            assert row is not None
            sent, last = row
            if sent >= count:
                return float(last)
            time.sleep(0.2)
    raise RivalFailed(f"{sent} of {count} messages were sent within {timeout:.0f} seconds.")
