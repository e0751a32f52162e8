"""Old and new code on one queue at once, as during an upgrade; the old code is stored beside this file."""

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

OLD_CODE = Path(__file__).with_name("code_of_schema_0017.tar.xz")
"""The oldest code that may work beside this one: what `crash/worker.py` needs of commit 59f5575. A checkout without its
history must pass the tests, too."""


@pytest.fixture
def old_code(tmp_path: Path) -> Path:
    """The old package."""
    with tarfile.open(OLD_CODE) as files:
        if hasattr(tarfile, "data_filter"):  # not in Python 3.11.2, which Debian 12 has
            files.extraction_filter = tarfile.data_filter
        files.extractall(tmp_path)  # noqa: S202 (our own archive)
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
