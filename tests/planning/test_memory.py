"""The memory table: what the bundle ships, the lines between and beyond measured widths, and thick slices."""

from __future__ import annotations

from typing import Any

import pytest

from scripts.planning.memory import GIB, load_memory_table, relative_load, step_memory

THICK = [[2, 2, 1], [2, 2, 1], [2, 2, 2]]


def table(*fits: tuple[int, str, float, float]) -> dict[str, Any]:
    keys = ("init_filters", "mode", "base_gib", "bytes_per_voxel")
    lines = [{"spatial_dims": 3} | dict(zip(keys, fit, strict=True)) for fit in fits]
    return {"classes": 3, "bytes_per_class_and_voxel": 20.0, "fits": lines}


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("mode", ["amp", "amp_kept", "fp32"])
def test_shipped_table(dims: int, mode: str) -> None:
    shipped = load_memory_table()
    assert shipped["source"]
    needs = [step_memory(shipped, dims, filters, mode, 3).gib(2_000_000) for filters in (8, 16, 24, 32, 64)]
    assert needs == sorted(needs) and needs[0] > 0
    for fit in shipped["fits"]:
        line = step_memory(shipped, fit["spatial_dims"], fit["init_filters"], fit["mode"], 3)
        assert all(line.gib(row["voxels"]) >= row["gib"] - 1e-3 for row in fit.get("measured", []))


def test_what_keeping_costs_and_thick_slices() -> None:
    """The rule for other strides, beside a GPU's own measurement of some."""
    shipped = load_memory_table()
    for filters in (8, 16, 32, 64):
        again, kept = (step_memory(shipped, 3, filters, mode, 3).bytes_per_voxel for mode in ("amp", "amp_kept"))
        assert again < kept
    thick = shipped["thick_slices"]
    line = step_memory(shipped, 3, thick["init_filters"], thick["mode"], shipped["classes"])
    for row in thick["measured"]:
        assert line.gib(row["voxels"], thick["strides"]) == pytest.approx(row["gib"], rel=0.1)


def test_measured_line() -> None:
    memory = step_memory(table((32, "amp", 0.1, 2000.0)), 3, 32, "amp", 3)
    assert memory.gib(GIB) == pytest.approx(2000.1) and memory.origin == "measured"


def test_between_widths() -> None:
    memory = step_memory(table((16, "amp", 0.1, 1000.0), (32, "amp", 0.3, 2000.0)), 3, 24, "amp", 3)
    assert (memory.base_gib, memory.bytes_per_voxel) == pytest.approx((0.2, 1500))
    assert "between 16 and 32" in memory.origin


@pytest.mark.parametrize(("filters", "base", "per_voxel"), [(64, 0.4, 4000), (16, 0.025, 1000)])
def test_beyond_widths_in_proportion(filters: int, base: float, per_voxel: float) -> None:
    memory = step_memory(table((32, "amp", 0.1, 2000.0)), 3, filters, "amp", 3)
    assert memory.base_gib == pytest.approx(1.15 * base) and memory.bytes_per_voxel == pytest.approx(1.15 * per_voxel)
    assert memory.origin == "estimated from 32 filters"


def test_other_mode_stands_in() -> None:
    memory = step_memory(table((32, "fp32", 0.1, 3000.0)), 3, 32, "amp", 3)
    assert memory.bytes_per_voxel == 3000 and memory.origin == "measured in fp32 (amp is not measured yet)"


def test_many_classes_cost_more() -> None:
    few, many = (step_memory(table((32, "amp", 0.1, 2000.0)), 3, 32, "amp", classes) for classes in (2, 103))
    assert few.bytes_per_voxel == 2000 and many.bytes_per_voxel == 4000


def test_thick_slices_cost_more() -> None:
    assert relative_load([[2, 2, 2]] * 3, 3) == 1
    assert relative_load([[2, 2, 1]] * 3, 3) > relative_load(THICK, 3) > 1
    memory = step_memory(table((32, "amp", 0.1, 2000.0)), 3, 32, "amp", 3)
    assert memory.gib(1000, [[2, 2, 2]] * 3) == memory.gib(1000) < memory.gib(1000, THICK)
