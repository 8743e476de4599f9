"""Compiled functions on a disk that is full, closed or broken."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

numba = pytest.importorskip("numba")

from numba.core.caching import IndexDataCacheFile  # noqa: E402

from scripts.ops.selective_scan import numba_cache  # noqa: E402

SOURCE = """
from scripts.ops.selective_scan.numba_cache import compiled

@compiled
def double(x):
    return 2 * x

@compiled
def triple(x):
    return 3 * x
"""


@pytest.fixture
def new_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Callable[[], int]]:
    """Imports two functions that nothing was compiled of yet; calling them gives how many came from the cache."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(numba_cache, "_warned", [])
    file = tmp_path / "functions.py"
    file.write_text(SOURCE)

    def load() -> Callable[[], int]:
        spec = importlib.util.spec_from_file_location("functions", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)

        def call() -> int:
            assert (module.double(2), module.triple(2)) == (4, 6)
            return sum(function.stats.cache_hits.total() for function in (module.double, module.triple))

        return call

    return load


@pytest.mark.parametrize("ending", [".nbi", ".nbc"])
@pytest.mark.parametrize("content", [b"", b"\x80\x05", b"no pickle at all"])
def test_a_broken_cache_is_replaced(
    new_process: Callable[[], Callable[[], int]], tmp_path: Path, ending: str, content: bytes
) -> None:
    assert new_process()() == 0
    assert new_process()() == 2
    files = list((tmp_path / "cache").rglob(f"*{ending}"))
    assert len(files) == 2
    for file in files:
        file.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert new_process()() == 0
        assert new_process()() == 2


@pytest.mark.parametrize("broken", [False, True])
def test_a_full_disk_is_said_once(
    new_process: Callable[[], Callable[[], int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    if broken:
        new_process()()
        for file in (tmp_path / "cache").rglob("*.nbi"):
            file.write_bytes(b"")

    def full(self: IndexDataCacheFile, path: str) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(IndexDataCacheFile, "_open_for_write", full)
    with pytest.warns(RuntimeWarning, match="No space left on device. Set NUMBA_CACHE_DIR") as caught:
        assert new_process()() == 0
        assert new_process()() == 0
    assert len(caught) == 1


def test_without_a_place_for_the_cache(
    new_process: Callable[[], Callable[[], int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numba_cache.FunctionCache._impl_class, "_locator_classes", [])
    with pytest.warns(RuntimeWarning, match="no locator available.*Set NUMBA_CACHE_DIR") as caught:
        assert new_process()() == 0
    assert len(caught) == 1
