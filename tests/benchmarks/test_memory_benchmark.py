"""The memory benchmark at tiny sizes: its table is one that planning reads, and its line lies on or above."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import memory as benchmark
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from threads import threads

from scripts.planning.memory import GIB, load_memory_table, step_memory


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads wait for each other longer than they compute on tensors this small."""
    with threads(1):
        yield


@pytest.mark.usefixtures("one_thread")
def test_file_and_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "memory.json"
    benchmark.main(["--device", "cpu", "--tiny", "--filters", "8", "--budget-s", "900", "--output", str(file)])
    printed = capsys.readouterr().out
    table = load_memory_table(file)
    assert [(fit["spatial_dims"], fit["mode"]) for fit in table["fits"]] == [
        (2, "amp"), (2, "amp_kept"), (2, "fp32"), (3, "amp"), (3, "amp_kept"), (3, "fp32")
    ]  # fmt: skip
    for fit in table["fits"]:
        line = step_memory(table, fit["spatial_dims"], 8, fit["mode"], table["classes"])
        assert len(fit["measured"]) == 3
        assert all(row["gib"] <= line.gib(row["voxels"]) <= 1.2 * row["gib"] for row in fit["measured"])
    assert len(table["thick_slices"]["measured"]) == 2
    assert "| 3 | 8 | fp32 |" in printed and "Each class beyond 3" in printed
    benchmark.main(["--from-json", str(file)])
    assert capsys.readouterr().out == printed


def test_the_bundles_file_is_only_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    assert benchmark.parse_arguments([]).output == benchmark.MEMORY_JSON
    assert json.loads(benchmark.MEMORY_JSON.read_text()) == load_memory_table()
    assert benchmark.parse_arguments(["--device", "cpu"]).output is None
    assert benchmark.parse_arguments(["--tiny"]).output is None


def test_report_of_the_shipped_file(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.main(["--from-json", str(benchmark.MEMORY_JSON)])
    assert "| 3 | 32 | amp |" in capsys.readouterr().out


@given(st.lists(st.tuples(st.integers(1, 10**8), st.floats(0, 200)), min_size=2, max_size=6))
def test_no_measurement_lies_above_the_line(points: list[tuple[int, float]]) -> None:
    base, per_voxel = benchmark.fit([{"voxels": voxels, "gib": gib} for voxels, gib in points])
    assert base >= 0 and per_voxel >= 0
    assert all(base + per_voxel * voxels / GIB >= gib - 1e-9 for voxels, gib in points)


def test_exact_points_give_their_line() -> None:
    rows = [{"voxels": n * GIB // 1000, "gib": 0.5 + 2 * n} for n in (1, 2, 3)]
    assert benchmark.fit(rows) == pytest.approx((0.5, 2000), abs=0.2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu() -> None:
    case = benchmark.Case(2, 8, "amp")
    rows = benchmark.measure(case, benchmark.TINY_SIZES[2], torch.device("cuda"))
    assert len(rows) == 3 and all(row["gib"] > 0 for row in rows)
