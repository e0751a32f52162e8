"""Old and new code on one queue at once, as during an upgrade: the old code is taken from the repository's history."""

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from campaign_pipeline.adapters import schema
from campaign_pipeline.sandbox import Behaviour, Kind, Latency, SandboxProcess
from campaign_pipeline_tests.crash.harness import many_messages, open_messages, start_worker, variables, violations
from campaign_pipeline_tests.factories import World

pytestmark = pytest.mark.crash

CHECKOUT = Path(__file__).parents[2]

OLDEST = "59f5575"
"""The oldest code that may work beside this one: that of schema 0017."""


@pytest.fixture
def old_code(tmp_path: Path) -> Path:
    """The package and its tests, as they were."""
    archive = subprocess.run(
        ["git", "archive", OLDEST, "campaign_pipeline", "campaign_pipeline_tests"],
        cwd=CHECKOUT, capture_output=True, check=False,
    )  # fmt: skip
    assert not archive.returncode, (
        f"The history of the repository is needed (git fetch --unshallow): {archive.stderr!r}"
    )
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(tmp_path, filter="data")
    return tmp_path


def test_old_and_new_workers_share_a_queue_while_it_is_upgraded(world: World, old_code: Path) -> None:
    many_messages(world, 160)
    with SandboxProcess(Behaviour(latencies={Kind.GENERATION: Latency(0.02), Kind.SEND: Latency(0.15)})) as sandbox:
        old = subprocess.Popen(
            [sys.executable, "-m", "campaign_pipeline_tests.crash.worker", world.url, "10", "10", "2"],
            cwd=old_code,
            env=variables(world.url, sandbox, PYTHONPATH=os.fspath(old_code)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while not sandbox.summary()["accepted"]:
            assert old.poll() is None, old.communicate()[1]
        new = start_worker(world.url, sandbox, batch=40, shard=20, concurrency=20)
        schema.upgrade(world.url)
        by_new = new.finish()
        claimed, errors = old.communicate(timeout=120)
        assert old.returncode == 0, errors[-3000:]
        assert (int(claimed) > 0, by_new > 0) == (True, True)
        assert open_messages(world) == 0
        assert violations(world, sandbox.record()) == []
