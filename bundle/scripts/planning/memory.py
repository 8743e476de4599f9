"""GPU memory that a train step of LightMUNet takes, from the measurements in memory.json.

memory.json holds a line a + b * voxels for each number of spatial dimensions, width of the network and mode,
written by benchmarks/memory.py. Voxels are those of the whole batch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .patch import TRANSITIONS

__all__ = ["MODES", "StepMemory", "load_memory_table", "relative_load", "step_memory"]

GIB = 2**30
MODES = ("amp", "amp_kept", "fp32")
# Feature maps of a stage that wait for the backward pass, encoder and decoder together, where three stages are
# convolutions and what `recompute_activations` says is computed again. Their width doubles from stage to stage.
MAPS = (7, 8, 8, 17)
ESTIMATE_MARGIN = 1.15  # on widths outside the measured ones


@dataclass(frozen=True)
class StepMemory:
    """The line for one network and mode.

    Args:
        spatial_dims: 2 or 3.
        base_gib: weights, their gradients and Adam's moments.
        bytes_per_voxel: what the activations take a voxel of the batch, where every stage pools by 2.
        origin: how it was come by, in a few words for the plan's table.
    """

    spatial_dims: int
    base_gib: float
    bytes_per_voxel: float
    origin: str

    def gib(self, voxels: int, strides: Sequence[Sequence[int]] | None = None) -> float:
        """Peak GiB of a train step on a batch of so many voxels."""
        load = relative_load(strides, self.spatial_dims) if strides else 1.0
        return self.base_gib + self.bytes_per_voxel * voxels * load / GIB


def load_memory_table(path: Path | None = None) -> dict[str, Any]:
    """The bundle's memory.json, or another file that benchmarks/memory.py wrote."""
    return json.loads((path or Path(__file__).with_name("memory.json")).read_text(encoding="utf-8"))


def relative_load(strides: Sequence[Sequence[int]], spatial_dims: int) -> float:
    """Feature-map voxels times widths of a network with these strides, over those with 2 everywhere."""
    return _load(strides) / _load([[2] * spatial_dims] * TRANSITIONS)


def step_memory(table: Mapping[str, Any], spatial_dims: int, init_filters: int, mode: str, classes: int) -> StepMemory:
    """The line for a network, measured or estimated from its neighbours in the table.

    Args:
        table: memory.json.
        spatial_dims: 2 or 3.
        init_filters: width of the first stage. Between measured widths the line is interpolated; beyond them it
            grows in proportion (the weights with the square), plus 15 %.
        mode: "amp" (bfloat16 autocast), "amp_kept" (with recompute_activations false) or "fp32".
        classes: the network's output channels; each beyond the measured ones costs the loss's maps.
    """
    found = [fit for fit in table["fits"] if fit["spatial_dims"] == spatial_dims]
    of_mode = [fit for fit in found if fit["mode"] == mode]
    origin = "" if of_mode else f" in {found[0]['mode']} ({mode} is not measured yet)"
    by_width = {fit["init_filters"]: (fit["base_gib"], fit["bytes_per_voxel"]) for fit in of_mode or found}
    base, per_voxel, how = _at_width(by_width, init_filters)
    per_voxel += max(0, classes - table["classes"]) * table["bytes_per_class_and_voxel"]
    return StepMemory(spatial_dims, base, per_voxel, how + origin)


def _at_width(fits: Mapping[int, tuple[float, float]], width: int) -> tuple[float, float, str]:
    if width in fits:
        return *fits[width], "measured"
    below, above = max((w for w in fits if w < width), default=None), min((w for w in fits if w > width), default=None)
    if below and above:
        share = (width - below) / (above - below)
        base, per_voxel = (a + share * (b - a) for a, b in zip(fits[below], fits[above], strict=True))
        return base, per_voxel, f"interpolated between {below} and {above} filters"
    nearest = below or above
    ratio = width / nearest
    base, per_voxel = fits[nearest]
    return base * ratio**2 * ESTIMATE_MARGIN, per_voxel * ratio * ESTIMATE_MARGIN, f"estimated from {nearest} filters"


def _load(strides: Sequence[Sequence[int]]) -> float:
    load, voxels = float(MAPS[0]), 1.0
    for stage, stride in enumerate(strides, start=1):
        for step in stride:
            voxels /= step
        load += MAPS[stage] * 2**stage * voxels
    return load
