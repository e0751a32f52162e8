"""The limits of a provider's answer: a megabyte, the timeout, and no blocked event loop."""

import json
import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.slow

MISBEHAVIOURS = {
    "long": "more than 1,048,576 bytes",
    "chunked": "more than 1,048,576 bytes",
    "bomb": "more than 1,048,576 bytes",
    "bomb-in-bomb": "in the encoding",
    "headers": "lost after POST was sent",
    "one-header": "lost after POST was sent",
    "deep": "nested more than 64 deep",
    "very-deep": "",
    "keys": "",
}


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    """Measure the result and the cost of each misbehaviour, with one process that asks and one that answers."""
    place = [sys.executable, "-m", "campaign_pipeline_tests.adapters"]
    server = subprocess.Popen(
        [*place[:2], f"{place[2]}.misbehaving_server"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    url = f"http://127.0.0.1:{server.stdout.readline().strip()}"
    reader = [*place[:2], f"{place[2]}.answer_reader", url, *MISBEHAVIOURS]
    done = subprocess.run(reader, capture_output=True, text=True, timeout=120, check=True)
    server.communicate("", timeout=20)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@pytest.mark.parametrize("kind", MISBEHAVIOURS)
def test_an_answer_beyond_its_limits_costs_little_and_may_have_left(measured: dict[str, Any], kind: str) -> None:
    told = measured[kind]
    assert told["grown_mib"] < 16, told
    assert told["longest_stop"] < 0.5, told
    if kind not in {"keys", "very-deep"}:  # these are answers that can be read, though they say nothing
        assert told["left"] == [True] * 4, told
        assert all(MISBEHAVIOURS[kind] in reason for reason in told["told"]), told
    assert "a-key-of-no" not in str(told)
