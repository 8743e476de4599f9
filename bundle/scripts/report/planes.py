"""From arrays in the order of their file to planes as a radiologist sees them, and where to cut them.

Inside the report a case is always three-dimensional, its axes along right, anterior, superior. A plane normal to one of
them shows the positive ends of the other two at its left and at its top: right on the left of axial and coronal planes,
anterior on the left of sagittal ones. A picture becomes one axial plane that looks as the picture does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from scipy import ndimage

from ..images.geometry import spacing_of, to_ras
from ..metrics.components import find_components
from .loading import Loaded

__all__ = [
    "PLANES",
    "Canvas",
    "Zoom",
    "foreground_box",
    "largest_error",
    "montage_slices",
    "planes_of",
    "show",
    "upright",
]

PLANES = ("sagittal", "coronal", "axial")  # plane i is normal to axis i
ENDS = (("R", "L"), ("A", "P"), ("S", "I"))  # positive and negative end of each axis
MARGIN = 0.2  # of the foreground's size, left around it by a zoom
SMALLEST_ZOOM = 24  # voxels
ANISOTROPIC = 1.5  # from this ratio on, slices run along the axis with the largest spacing


@dataclass(frozen=True)
class Canvas:
    """Geometry of the upright arrays of a case.

    Args:
        shape: (right, anterior, superior).
        spacing: mm along these axes; 1 for pictures.
        letters: whether the directions are known.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    letters: bool

    def ends(self, axis: int) -> tuple[str, str, str, str]:
        """Letters at the left, right, top and bottom of a plane."""
        across, up = _others(axis)
        return (*ENDS[across], *ENDS[up])

    def size(self, axis: int) -> tuple[float, float]:
        """Width and height of a plane in mm."""
        across, up = _others(axis)
        return self.shape[across] * self.spacing[across], self.shape[up] * self.spacing[up]

    def pixel(self, axis: int) -> tuple[float, float]:
        """Width and height of a plane's pixel in mm."""
        across, up = _others(axis)
        return self.spacing[across], self.spacing[up]


@dataclass(frozen=True)
class Zoom:
    """First and last + 1 voxel along each axis of the part of a case that is shown."""

    first: tuple[int, int, int]
    last: tuple[int, int, int]

    def limits(self, canvas: Canvas, axis: int) -> tuple[float, float, float, float]:
        """Left, right, top, bottom of this part in a plane, in mm from the plane's left and top."""
        across, up = _others(axis)
        edges = [(canvas.shape[a] - self.last[a], canvas.shape[a] - self.first[a]) for a in (across, up)]
        return tuple(edge * canvas.spacing[a] for a, pair in zip((across, up), edges) for edge in pair)


def upright(loaded: Loaded) -> tuple[np.ndarray, Canvas]:
    """Turn an image or label map of a file to (right, anterior, superior) or (right, anterior, superior, channels)."""
    array = loaded.array if loaded.array.ndim == loaded.dims else np.moveaxis(loaded.array, 0, -1)
    spacing = loaded.spacing or (1.0,) * loaded.dims
    if not loaded.oriented:  # rows and columns, or slices of them
        axes = (*range(loaded.dims)[::-1], *range(loaded.dims, array.ndim))
        array, spacing = array.transpose(axes)[::-1, ::-1], spacing[::-1]
        if loaded.dims == 2:
            array, spacing = array[:, :, None], (*spacing, 1.0)
        return array, Canvas(array.shape[:3], tuple(spacing), letters=False)
    if loaded.dims == 2:
        array = array[:, :, None]
    turned = nib.apply_orientation(array, nib.io_orientation(loaded.affine))
    return turned, Canvas(turned.shape[:3], tuple(to_ras(loaded.affine, spacing_of(loaded.affine))), letters=True)


def show(array: np.ndarray, axis: int, index: int) -> np.ndarray:
    """One plane of an upright array as rows and columns (and channels) of a picture."""
    return np.take(array, index, axis)[::-1, ::-1].swapaxes(0, 1)


def planes_of(canvas: Canvas) -> list[int]:
    """Axes to which planes are normal that have a width and a height, the axial one first."""
    return [axis for axis in (2, 1, 0) if all(canvas.shape[other] > 1 for other in _others(axis))] or [2]


def largest_error(wrong: np.ndarray, foreground: np.ndarray, canvas: Canvas) -> tuple[int, int, int]:
    """The voxel in the middle of the largest connected error; without errors that of the foreground, or of the volume.

    Args:
        wrong, foreground: (right, anterior, superior), boolean.
    """
    mask = wrong if wrong.any() else foreground
    if not mask.any():
        return tuple(size // 2 for size in canvas.shape)
    components = find_components(mask)
    component = components.numbers == components.largest()
    depth = ndimage.distance_transform_edt(np.pad(component, 1), canvas.spacing)
    deepest = np.unravel_index(np.argmax(depth), depth.shape)
    return tuple(int(place) - 1 + part.start for place, part in zip(deepest, components.box))


def foreground_box(masks: Sequence[np.ndarray], canvas: Canvas) -> Zoom | None:
    """The part around everything that any mask marks, or None where that is nearly the whole case."""
    union = np.logical_or.reduce(masks)
    if not union.any():
        return None
    first, last = [], []
    for part, size in zip(_box(union), canvas.shape):
        length = part.stop - part.start
        margin = max(round(length * MARGIN), 3, (SMALLEST_ZOOM - length) // 2)
        first.append(max(part.start - margin, 0))
        last.append(min(part.stop + margin, size))
    shares = [(b - a) / size for a, b, size in zip(first, last, canvas.shape) if size > 1]
    return Zoom(tuple(first), tuple(last)) if min(shares) < 0.75 else None


def montage_slices(foreground: np.ndarray, canvas: Canvas, most: int) -> tuple[int, list[int]]:
    """The axis to walk along and up to ``most`` evenly spaced slices over the foreground (or over the volume)."""
    coarsest = int(np.argmax(canvas.spacing))
    others = [canvas.spacing[a] for a in range(3) if a != coarsest]
    axis = coarsest if canvas.spacing[coarsest] >= ANISOTROPIC * max(others) else 2
    marked = np.flatnonzero(foreground.any(axis=_others(axis)))
    first, last = (marked[0], marked[-1]) if len(marked) else (0, canvas.shape[axis] - 1)
    return axis, sorted(set(np.linspace(first, last, most).round().astype(int).tolist()), reverse=True)


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    return ndimage.find_objects(mask.astype(np.uint8))[0]


def _others(axis: int) -> tuple[int, int]:
    return tuple(a for a in range(3) if a != axis)
