"""The voxel size that a data set is resampled to, and the image sizes that follow (nnU-Net's rules)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["ANISOTROPY", "resampled_shapes", "rounded", "target_spacing"]

ANISOTROPY = 3  # an axis so many times as coarse, and so many times as short, as the others is thick-sliced
LOW_PERCENTILE = 10


def target_spacing(
    spacings: Sequence[Sequence[float]], shapes: Sequence[Sequence[int]]
) -> tuple[list[float], int | None]:
    """The median spacing; along thick slices the 10th percentile, but never finer than within the slices.

    Args:
        spacings: mm an axis, for each case.
        shapes: voxels an axis, for each case.

    Returns:
        The spacing, and the axis along which the slices are thick, or None.
    """
    spacing, voxels = np.median(spacings, axis=0), np.median(shapes, axis=0)
    thick = int(np.argmax(spacing))
    coarsest, longest = np.delete(spacing, thick).max(), np.delete(voxels, thick).min()
    is_thick = spacing[thick] > ANISOTROPY * coarsest and voxels[thick] * ANISOTROPY < longest
    if is_thick:
        low = np.percentile([case[thick] for case in spacings], LOW_PERCENTILE)
        spacing[thick] = max(low, coarsest)
    return rounded(spacing), thick if is_thick else None


def rounded(spacing: Sequence[float]) -> list[float]:
    """Voxel sizes to five decimals, the smallest to five digits, so that none becomes 0."""
    return [round(float(mm), 5) if mm >= 1e-3 else float(f"{mm:.5g}") for mm in spacing]


def resampled_shapes(
    cases: Sequence[Mapping[str, Any]], spacing: Sequence[float | None] | None, cropped: bool
) -> np.ndarray:
    """Size of every case on the new grid, (cases, axes).

    Args:
        cases: the fingerprint's "per_case".
        spacing: the new voxel size, None (or None for one axis) where the grid stays.
        cropped: take the sizes after the nonzero crop.
    """
    shapes = np.array([case["cropped_shape" if cropped else "shape"] for case in cases], dtype=float)
    if spacing is None:
        return shapes
    for shape, case in zip(shapes, cases, strict=True):
        for axis, (old, new) in enumerate(zip(case["spacing"] or spacing, spacing, strict=True)):
            if new is not None and old is not None:
                shape[axis] = max(1, round(shape[axis] * old / new))
    return shapes
