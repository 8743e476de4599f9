"""Small networks exported once, by the command, for all tests of the export."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from exports import Export
from threads import threads


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny tensors: a second thread only waits."""
    with threads(1):
        yield


@pytest.fixture(scope="session")
def weights_3d(tmp_path_factory: pytest.TempPathFactory) -> Export:
    return Export(tmp_path_factory.mktemp("export_3d"), 3)


@pytest.fixture(scope="session")
def weights_2d(tmp_path_factory: pytest.TempPathFactory) -> Export:
    return Export(tmp_path_factory.mktemp("export_2d"), 2)


@pytest.fixture(scope="session")
def export_3d(weights_3d: Export) -> Export:
    return weights_3d.run()


@pytest.fixture(scope="session")
def export_2d(weights_2d: Export) -> Export:
    return weights_2d.run()
