"""Databases of tests, created and dropped on one server."""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import psycopg


class Databases:
    """Creates a database for each test, and drops it once the next test has its own.

    The server ends a closed connection a moment later, and a DROP that finds one sleeps for 100 ms. After the next
    test's CREATE it finds none.
    """

    def __init__(self, admin_url: str) -> None:
        self._admin = psycopg.connect(admin_url, autocommit=True)
        self._left: list[str] = []

    @contextmanager
    def create(self, template: str = "template1", owner: str = "postgres") -> Iterator[str]:
        """Yield the name of a new database, empty unless a template is named."""
        name = f"test_{uuid4().hex[:16]}"
        self._admin.execute(f"CREATE DATABASE {name} OWNER {owner} TEMPLATE {template} STRATEGY file_copy")
        self._drop_left()
        try:
            yield name
        finally:
            self._left.append(name)

    def _drop_left(self) -> None:
        while self._left:
            self._admin.execute(f"DROP DATABASE {self._left.pop()} WITH (FORCE)")

    def close(self) -> None:
        """Drop the rest, and disconnect."""
        self._drop_left()
        self._admin.close()
