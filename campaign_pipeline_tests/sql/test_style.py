"""SQL reads like the rest of the code: lines of one width, and each list spelled once."""

import re
from importlib import resources

import pytest

from campaign_pipeline import sql
from campaign_pipeline.core.states import LEASED

WIDTH = 120

LANDED_BEFORE = 25
"""Migrations before this one were released with longer lines, and a released migration is not edited."""


def sql_files() -> dict[str, list[str]]:
    """Lines of every file that may still be edited, by its path below `sql/`."""
    root = resources.files(sql)
    migrations = (name for name in sql.migration_names() if int(name[:4]) >= LANDED_BEFORE)
    paths = [
        *(f"functions/{name}.sql" for name in sql.FUNCTION_FILES),
        *(f"statements/{name}.sql" for name in sql.STATEMENT_FILES),
        *(f"migrations/versions/{name}.sql" for name in migrations),
    ]
    return {path: root.joinpath(path).read_text(encoding="utf-8").splitlines() for path in paths}


def test_no_line_is_longer_than_120_characters() -> None:
    long = [
        f"{path}:{n}" for path, lines in sql_files().items() for n, line in enumerate(lines, 1) if len(line) > WIDTH
    ]
    assert long == []


def test_every_file_of_functions_and_statements_is_in_the_list_that_is_loaded() -> None:
    root = resources.files(sql)
    for folder, listed in (("functions", sql.FUNCTION_FILES), ("statements", sql.STATEMENT_FILES)):
        found = {file.name.removesuffix(".sql") for file in root.joinpath(folder).iterdir()}
        assert found == set(listed)


@pytest.mark.parametrize(
    ("spelled", "allowed"),
    [
        # The trigger's condition is evaluated for every client that changes a message, which may call none of ours.
        (r"'queued',\s*'generating',\s*'sending'", {"functions/clock.sql": 1, "functions/crm.sql": 2}),
        (r"next_attempt_at,[^,]{0,40}scheduled_at,[^,]{0,40}created_at", {"functions/clock.sql": 1}),
    ],
    ids=["leased statuses", "due time"],
)
def test_each_list_is_spelled_in_one_function(spelled: str, allowed: dict[str, int]) -> None:
    files = {path: "\n".join(lines) for path, lines in sql_files().items() if not path.startswith("migrations/")}
    counts = {path: len(re.findall(spelled, text)) for path, text in files.items()}
    assert {path: count for path, count in counts.items() if count} == allowed


def test_the_leased_statuses_of_sql_are_those_of_python() -> None:
    text = "\n".join(sql_files()["functions/clock.sql"])
    assert f"SELECT ARRAY[{', '.join(repr(str(status)) for status in LEASED)}]" in text
