"""A server for one module of tests, to be crashed and started again."""

from collections.abc import Iterator

import pytest

from campaign_pipeline.adapters.embedded import EmbeddedServer
from campaign_pipeline_tests.adapters.restarts import own_database, own_server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that crash their own server are slow."""
    for item in items:
        if "fragile" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A separate server for these tests."""
    home = tmp_path_factory.mktemp("fragile")
    with own_server(home) as server:
        yield server


@pytest.fixture
def fragile_url(fragile: EmbeddedServer) -> Iterator[str]:
    """The test's own queue on it."""
    with own_database(fragile) as url:
        yield url
