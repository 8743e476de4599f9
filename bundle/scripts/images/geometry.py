"""Where voxels lie: spacing, orientation and comparison of affines (4x4, voxel index -> RAS millimetres)."""

from __future__ import annotations

from collections.abc import Sequence

import nibabel as nib
import numpy as np

__all__ = [
    "LARGEST_STEP",
    "affine_problem",
    "displacement",
    "grid_conflict",
    "is_oblique",
    "orientation",
    "placement_conflict",
    "spacing_of",
    "times",
    "to_ras",
]

SPACING_TOLERANCE = 0.01  # relative: headers round differently
LARGEST_STEP = 100  # from one voxel size to another; more is a wrong header, or metres for millimetres
OBLIQUE_COSINE = 0.9998  # about 1 degree


def spacing_of(affine: np.ndarray, dims: int = 3) -> list[float]:
    """Voxel size in mm along the first ``dims`` axes of the array."""
    return np.linalg.norm(np.asarray(affine, dtype=float)[:3, :dims], axis=0).tolist()


def times(values: Sequence[float | None] | np.ndarray, missing: str = "-") -> str:
    """Sizes or voxel sizes as a message shows them: 40 x 56 x 40.

    Args:
        missing: what stands for None.
    """
    return " x ".join(missing if value is None else f"{value:g}" for value in values)


def orientation(affine: np.ndarray) -> str:
    """The body axis nearest to each axis of the array, such as "LPS"."""
    return "".join(nib.aff2axcodes(affine))


def to_ras(affine: np.ndarray, values: Sequence) -> list:
    """Put one value per array axis in the order in which the axes stand after turning to the closest RAS grid."""
    target = nib.io_orientation(affine)[:, 0].astype(int)
    return [values[axis] for axis in np.argsort(target)]


def is_oblique(affine: np.ndarray) -> bool:
    """Whether an axis of the array lies more than a degree off its body axis."""
    directions = np.abs(affine[:3, :3]) / np.linalg.norm(affine[:3, :3], axis=0)
    return bool((directions.max(axis=0) < OBLIQUE_COSINE).any())


def affine_problem(affine: np.ndarray) -> str | None:
    """What makes an affine unusable, or None."""
    if not np.isfinite(affine).all():
        return "has NaN or infinity in its affine"
    sizes = spacing_of(affine)
    if min(sizes) <= 0:
        return f"has a spacing of zero: {_numbers(sizes)} mm"
    if abs(np.linalg.det(affine[:3, :3] / sizes)) < 1e-3:
        return "has axes that are not independent (a singular affine)"
    return None


def grid_conflict(affine: np.ndarray | None, other: np.ndarray | None) -> str | None:
    """How spacing or orientation of two images of the same size contradict each other, or None.

    An image without an affine (a picture) contradicts none.
    """
    if affine is None or other is None:
        return None
    if not np.allclose(spacing_of(affine), spacing_of(other), rtol=SPACING_TOLERANCE, atol=0):
        return f"spacing {_numbers(spacing_of(affine))} mm against {_numbers(spacing_of(other))} mm"
    if orientation(affine) != orientation(other):
        return f"orientation {orientation(affine)} against {orientation(other)}"
    return None


def placement_conflict(
    shape: Sequence[int], affine: np.ndarray | None, other_shape: Sequence[int], other: np.ndarray | None
) -> str | None:
    """How two images contradict each other in size, spacing, orientation or, by over half a voxel, place; or None."""
    if tuple(shape) != tuple(other_shape):
        return f"sizes {tuple(shape)} and {tuple(other_shape)}"
    if conflict := grid_conflict(affine, other):
        return conflict
    gap = displacement(affine, other, shape)
    return f"positions that differ by up to {gap:.1f} voxels" if gap > 0.5 else None


def displacement(affine: np.ndarray | None, other: np.ndarray | None, shape: Sequence[int]) -> float:
    """The largest distance, in voxels, between the places that two affines give to a corner of the array."""
    if affine is None or other is None:
        return 0.0
    ends = [(0, size - 1) for size in (*shape, *[1] * (3 - len(shape)))]
    corners = np.stack([corner.ravel() for corner in np.meshgrid(*ends)] + [np.ones(8)])
    gap = np.linalg.norm(((affine - other) @ corners)[:3], axis=0).max()
    return float(gap / min(spacing_of(affine)))


def _numbers(values: Sequence[float]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)
