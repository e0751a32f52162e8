"""Every column, table and function that the SQL names exists in the CRM's database."""

import re
from collections import defaultdict

from campaign_pipeline.sql import functions_text, statement, statements
from campaign_pipeline_tests.crm import Crm
from campaign_pipeline_tests.sql.test_statements import numbered

CODE = re.compile(r"--[^\n]*|'[^']*'")
TABLE = r"(?P<schema>public|campaign_pipeline)\.(?P<table>\w+)"
ALIAS = re.compile(rf"\b(?:FROM|JOIN|UPDATE|INTO)\s+{TABLE}\b(?!\()(?:\s+(?:AS\s+)?(?P<alias>[a-z]\w*))?")
WORDS = {"set", "where", "on", "left", "join", "cross", "order", "for", "using", "values", "select", "group"}
INSERTED = re.compile(rf"\bINTO\s+{TABLE}(?:\s+AS\s+\w+)?\s*\(([^()]*)\)\s*(?:SELECT|VALUES|OVERRIDING)")
FUNCTION = re.compile(r"CREATE (?:OR REPLACE )?FUNCTION .*?\$\$;", re.DOTALL)


def columns(crm: Crm) -> dict[str, set[str]]:
    found = defaultdict(set)
    for row in crm.all(
        "SELECT table_schema || '.' || table_name AS name, column_name FROM information_schema.columns"
        " WHERE table_schema IN ('public', 'campaign_pipeline')"
    ):
        found[row["name"]].add(row["column_name"])
    return found


def missing(text: str, known: dict[str, set[str]]) -> set[str]:
    """Return the columns that a piece of SQL uses and its tables do not have."""
    code = CODE.sub("''", text).replace("%%", "%")
    tables = defaultdict(set)
    for found in ALIAS.finditer(code):
        name = f"{found['schema']}.{found['table']}"
        alias = found["alias"]
        tables[found["table"]].add(name)
        if alias and alias.lower() not in WORDS:
            tables[alias].add(name)
    unknown = {name for names in tables.values() for name in names if name not in known and not known.get(name)}
    # An alias that the SQL also uses for its own rows (jsonb_to_recordset AS i) proves nothing.
    own = set(re.findall(r"\bAS\s+(\w+)\s*\(", code)) | set(re.findall(r"\)\s+(\w+)\b", code))
    own |= set(re.findall(r"\b(?:FROM|JOIN)\s+\w+\s+(\w+)\b", code))  # of a WITH
    wrong = set()
    for alias, column in re.findall(r"(?<![\w.])(\w+)\.(\w+)\b(?!\s*\()", code):
        names = tables.get(alias, set())
        if names and alias not in own and not any(column in known[name] for name in names):
            wrong.add(f"{alias}.{column} of {' or '.join(sorted(names))}")
    for schema, table, listed in INSERTED.findall(code):
        name = f"{schema}.{table}"
        wrong |= {f"{column} of {name}" for column in re.findall(r"\w+", listed) if column not in known[name]}
    return wrong | unknown


def test_the_crms_server_understands_every_statement(crm: Crm) -> None:
    for name in statements():
        crm.connection.execute(f"PREPARE {name} AS {numbered(statement(name))}".encode())
    assert crm.value("SELECT count(*) FROM pg_prepared_statements") == len(statements())


def test_every_column_that_a_function_names_exists(crm: Crm) -> None:
    """PL/pgSQL would notice this only when it executes it."""
    known = columns(crm)
    bodies = FUNCTION.findall(functions_text())
    assert len(bodies) > 50
    assert {body.split("(")[0]: missing(body, known) for body in bodies if missing(body, known)} == {}


def test_a_column_that_is_missing_would_be_noticed(crm: Crm) -> None:
    known = columns(crm)
    text = "SELECT c.name FROM public.campaign_runs r LEFT JOIN public.campaign_configs c ON c.id = r.config_id"
    assert missing(text, known) == {"c.name of public.campaign_configs"}
    assert missing("INSERT INTO public.messages (text_content, sender) VALUES ('', '')", known) == {
        "sender of public.messages"
    }
