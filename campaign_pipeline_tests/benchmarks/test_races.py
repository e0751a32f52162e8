"""The races run, and the README shows the figures of RESULTS.md. Nothing is timed here: CI machines are busy.

small_batch, punctual and idle are left out: they compare with an older commit, in real time.
"""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.races import RACES
from benchmarks.readme import figures, written_figures

ROOT = Path(__file__).parents[2]


def run_benchmarks(*flags: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *flags], cwd=ROOT, capture_output=True, text=True, check=False, timeout=540
    )


@pytest.mark.timeout(600)
def test_a_short_run_writes_the_tables_of_its_races_and_judges_none(tmp_path: Path) -> None:
    done = run_benchmarks("--short", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    text = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    titles = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert titles == [
        "The old system's work: 100 messages, five in flight",
        "1,000 messages, 100 in flight",
        "20,000 messages, providers that answer at once",
        "Claiming 500 of 10,000 and of 10 million",
        "Contexts of 1,000 leads",
        "Footprint: round trips, memory, events, imports",
        "A database 20 ms and 80 ms away",
        "Input tokens of a campaign with long instructions",
    ]
    judged = [line for line in text.splitlines() if line.endswith(("| met |", "| NOT met |"))]
    assert judged == []
    for figure in (
        "send phase, in process / limit",
        "old way: chunks of five / limit",
        "whole run, four shards",
        "this project, 4 shards",
        "bare aiohttp loop: 2 processes",
        "8 claimers at once",
        "the calls / the statement",
        "round trips a one-part message, 5 in flight",
        "send phase, database 80 ms away",
        "anthropic/claude-sonnet-4.5: billed / without caching",
    ):
        assert f"| {figure} |" in text


def test_the_readme_shows_the_figures_of_the_results() -> None:
    results = ROOT.joinpath("benchmarks", "RESULTS.md").read_text(encoding="utf-8")
    assert written_figures(ROOT.joinpath("README.md").read_text(encoding="utf-8")) == figures(results)


def test_no_section_of_the_results_is_written_by_hand() -> None:
    results = ROOT.joinpath("benchmarks", "RESULTS.md").read_text(encoding="utf-8")
    titles = {line.removeprefix("## ") for line in results.splitlines() if line.startswith("## ")}
    races = {str(importlib.import_module(f"benchmarks.races.{name}").__doc__) for name in RACES}
    assert titles <= {docstring.partition(".\n")[0] for docstring in races}


def test_a_short_run_never_replaces_the_results_of_a_real_one() -> None:
    refused = run_benchmarks("--short")
    assert refused.returncode == 2
    assert "--short needs --out" in refused.stderr


def test_an_unknown_race_is_refused_with_the_names_of_all() -> None:
    refused = run_benchmarks("--only", "nothing")
    assert refused.returncode == 2
    assert "throughput" in refused.stderr
