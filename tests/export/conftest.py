"""Small networks exported once, by the command, for all tests of the export."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from exports import Export


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Tiny tensors: a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def export_3d(tmp_path_factory: pytest.TempPathFactory) -> Export:
    return Export(tmp_path_factory.mktemp("export_3d"), 3)


@pytest.fixture(scope="session")
def export_2d(tmp_path_factory: pytest.TempPathFactory) -> Export:
    return Export(tmp_path_factory.mktemp("export_2d"), 2)
