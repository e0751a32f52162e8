"""docs/settings.md lists the environment variables that the code reads."""

import re
from pathlib import Path

import campaign_pipeline
from campaign_pipeline.defs.resources import CHANNELS

PACKAGE = Path(campaign_pipeline.__file__).parent
SETTINGS = (PACKAGE.parent / "docs" / "settings.md").read_text(encoding="utf-8")
VARIABLE = re.compile(r"\b(?:CAMPAIGN|OPENROUTER|EVOLUTION|UAZAPI|CLOUD_API|SUPABASE|SMTP|DAGSTER_PG)_[A-Z_]*[A-Z]\b")


def read_variables() -> set[str]:
    """Every variable that is quoted in the packages that read the environment, and in the production settings."""
    files = [*PACKAGE.joinpath("adapters").rglob("*.py"), PACKAGE.parent / "deploy" / "dagster.yaml"]
    quoted = re.compile(rf"[\"'{{ ]({VARIABLE.pattern})[\"'}}]")
    return {found for file in files for found in quoted.findall(file.read_text(encoding="utf-8"))}


def test_every_variable_that_is_read_is_documented_and_no_other() -> None:
    assert set(VARIABLE.findall(SETTINGS)) == read_variables()


def test_every_provider_is_documented() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", SETTINGS.partition("## Message providers")[2], re.MULTILINE)
    assert set(CHANNELS) <= set(rows)
