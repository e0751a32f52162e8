import re
from importlib import resources

import pytest

from campaign_pipeline import sql
from campaign_pipeline.adapters import schema

FOLDER = resources.files(sql).joinpath("migrations/versions")
MIGRATIONS = sorted(file.name for file in FOLDER.iterdir() if file.name.endswith(".sql"))


@pytest.mark.parametrize(
    ("text", "statements"),
    [
        ("SELECT 1; SELECT 2;", ["SELECT 1;", "SELECT 2;"]),
        ("SELECT 'it''s; so'; SELECT \"a;b\";", ["SELECT 'it''s; so';", 'SELECT "a;b";']),
        ("-- it's; so\nSELECT 1;", ["-- it's; so\nSELECT 1;"]),
        ("/* a; b */ SELECT 1;", ["/* a; b */ SELECT 1;"]),
        ("DO $$ BEGIN a; b; END $$; SELECT 1;", ["DO $$ BEGIN a; b; END $$;", "SELECT 1;"]),
        ("DO $a$ x; $$ y; $$ z; $a$; SELECT 1;", ["DO $a$ x; $$ y; $$ z; $a$;", "SELECT 1;"]),
        ("SELECT $1 || '$$'; SELECT 2;", ["SELECT $1 || '$$';", "SELECT 2;"]),
    ],
)
def test_a_file_is_cut_at_the_semicolons_that_end_statements(text: str, statements: list[str]) -> None:
    assert sql.split_statements(text) == statements


def test_triggers_are_distinguished_from_functions() -> None:
    functions, triggers = sql.functions_and_triggers()
    assert "CREATE OR REPLACE TRIGGER" not in functions
    assert {(trigger.name, trigger.table) for trigger in triggers} >= {
        ("campaign_count_updated", "public.campaign_messages"),
        ("campaign_process_reply", "public.messages"),
        ("campaign_note_resume", "public.campaign_runs"),
        ("campaign_recheck_paced_runs", "campaign_pipeline.campaign_inbox_pace"),
    }


@pytest.mark.parametrize("name", MIGRATIONS)
def test_no_step_of_a_migration_keeps_the_crm_waiting_or_fails_when_it_is_repeated(name: str) -> None:
    """Checked by reading; crm/test_online_upgrade.py checks it on a CRM in use."""
    for statement in sql.split_statements(FOLDER.joinpath(name).read_text(encoding="utf-8")):
        text = " ".join(re.sub(r"--[^\n]*", "", statement).split())
        if text.startswith("CREATE") and "INDEX" in text.partition(" ON ")[0]:
            assert "IF NOT EXISTS" in text
            assert ("CONCURRENTLY" in text) == (" ON public." in text), text
        elif text.startswith("CREATE TABLE"):
            assert text.startswith("CREATE TABLE IF NOT EXISTS"), text
        elif text.startswith("DROP INDEX") and "public." in text:
            assert text.startswith("DROP INDEX CONCURRENTLY IF EXISTS"), text
        elif text.startswith("INSERT"):
            assert "ON CONFLICT" in text, text
        for column in re.findall(r"ADD COLUMN (?!IF NOT EXISTS)\w+", text):
            pytest.fail(f"{column} of {name} cannot be repeated")
        for constraint in re.findall(r"ADD CONSTRAINT (\w+)", text):
            assert f"DROP CONSTRAINT IF EXISTS {constraint}" in text, constraint
            # A primary key cannot be added like that; our own tables are small, and the CRM does not wait for them.
            assert "NOT VALID" in text or "public." not in text, constraint
        for table in re.findall(r"ALTER TABLE (?:IF EXISTS )?public\.(\w+)", text):
            assert table in {*schema.OWNED_BY_CRM, sql.VERSION_TABLE}, f"add {table} to schema.OWNED_BY_CRM"
