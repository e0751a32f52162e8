import ast
import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

import campaign_pipeline
from campaign_pipeline.sql import functions_text, parse_statements, statement, statements
from campaign_pipeline_tests.factories import World

PACKAGE = Path(campaign_pipeline.__file__).parent


def numbered(text: str) -> str:
    """Return the statement with $1, $2, … instead of psycopg's named placeholders."""
    names: dict[str, int] = {}
    numbers = re.sub(r"%\((\w+)\)s", lambda found: f"${names.setdefault(found[1], len(names) + 1)}", text)
    return numbers.replace("%%", "%")


def named_in_code() -> Iterator[str]:
    """Return every name passed to `statement(...)`, or to a function that runs one by name, in the package."""
    for path in PACKAGE.rglob("*.py"):
        if path.name == "embedded.py":
            continue  # its `_run` runs programs
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args:
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                first = node.args[0]
                if called in {"statement", "_all", "_do", "_run", "rows", "_rows"} and isinstance(first, ast.Constant):
                    yield str(first.value)
                elif called in {"_giving_way", "_records"}:
                    second = node.args[1]  # after the connection, or the record
                    assert isinstance(second, ast.Constant)
                    yield str(second.value)


def test_the_server_understands_every_statement(world: World) -> None:
    for name in statements():
        world.connection.execute(f"PREPARE {name} AS {numbered(statement(name))}".encode())
    assert world.value("SELECT count(*) FROM pg_prepared_statements") == len(statements())


def test_no_statement_needs_a_search_path(world: World) -> None:
    """A transaction pooler keeps no session settings, and the search_path belongs to the CRM."""
    world.do("SET search_path = ''")
    world.connection.execute(functions_text().encode())
    for name in statements():
        world.connection.execute(f"PREPARE {name} AS {numbered(statement(name))}".encode())


def unqualified(text: str) -> set[str]:
    """Return tables and functions that are named without their schema, ignoring comments and texts."""
    code = re.sub(r"--[^\n]*|'[^']*'", "", text)
    tables = r"\b(?:FROM|JOIN|UPDATE|INTO)\s+(\w+)\b(?!\.)"
    own = r"(?<![\w.])campaign_\w+(?=\()"
    known = {*re.findall(r"(?:public|campaign_pipeline)\.(\w+)", code)}
    return {name for name in (*re.findall(tables, code), *re.findall(own, code)) if name in known}


@pytest.mark.parametrize("text", [*statements().values(), functions_text()], ids=[*statements(), "functions"])
def test_nothing_is_reckoned_in_the_time_zone_of_the_session(text: str) -> None:
    """A calendar day, or today's date, differs in a session with another time zone."""
    code = re.sub(r"--.*", "", text)
    calendar = r"interval '\d+ (day|week|month|year)|make_interval\((days|weeks|months|years)"
    today = r"campaign_now\(\)::(date|timestamp\b)|current_date|localtimestamp|date::timestamptz"
    assert re.findall(f"{calendar}|{today}", code, re.IGNORECASE) == []


def test_every_name_in_the_functions_is_qualified() -> None:
    """PL/pgSQL would notice this only at run time."""
    assert unqualified(functions_text()) == set()


def test_every_statement_is_used_and_every_used_one_exists() -> None:
    assert set(named_in_code()) == set(statements())


def test_every_statement_says_what_it_is_for_or_names_a_documented_function() -> None:
    documented = re.compile(r"^-- .*\n(?:-- .*\n)*CREATE OR REPLACE FUNCTION campaign_pipeline\.(\w+)", re.MULTILINE)
    functions = set(documented.findall(functions_text()))
    for name, text in statements().items():
        called = set(re.findall(r"FROM campaign_pipeline\.(campaign_\w+)\(", text))
        assert text.startswith("--") or called & functions, name


def test_the_functions_may_be_applied_again_and_again(world: World) -> None:
    for _ in range(2):
        world.connection.execute(functions_text().encode())


def test_a_file_is_cut_at_its_name_lines_with_comments_kept() -> None:
    text = "-- a file\n\n-- name: one\n-- Says one.\nSELECT 1;\n\n-- name: two\nSELECT\n  2;\n"
    assert parse_statements(text) == {"one": "-- Says one.\nSELECT 1;", "two": "SELECT\n  2;"}


def test_a_name_that_is_given_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="one is defined twice"):
        parse_statements("-- name: one\nSELECT 1;\n-- name: one\nSELECT 2;")


@pytest.mark.parametrize(
    "text", ["-- name: one\n", "-- name: one\n-- only a comment\n", "-- name: one\n-- name: two\nSELECT 2;"]
)
def test_a_name_without_a_statement_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="one is empty"):
        parse_statements(text)


def test_a_name_line_within_a_line_names_nothing() -> None:
    assert parse_statements("-- name: one\nSELECT '-- name: two';") == {"one": "SELECT '-- name: two';"}


def test_an_unknown_statement_is_an_error_at_once() -> None:
    with pytest.raises(KeyError):
        statement("drop_everything")


def test_a_broken_statement_would_be_noticed(world: World) -> None:
    with pytest.raises(psycopg.errors.UndefinedColumn):
        world.connection.execute(
            f"PREPARE broken AS {numbered(statement('look_at_queue')).replace('run_id', 'runid')}".encode()
        )
