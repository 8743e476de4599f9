"""Connected components of label maps: which there are, and what is left without some of them.

Two voxels are connected if they touch at a face, an edge or a corner (as in MONAI and nnU-Net); background, whose
enclosed parts are holes, is connected through faces only. One pass of scikit-image labels all classes at once,
which takes a fraction of the time of a pass per class (benchmarks/postprocessing.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from skimage.measure import label as label_components

__all__ = ["Components", "find_components", "find_holes", "keep_components"]

Box = tuple[slice, ...]


@dataclass(frozen=True)
class Components:
    """The components of a label map; number 0 is the background.

    Args:
        numbers: number of each voxel's component, inside ``box``.
        box: the part of the label map that holds its foreground.
        values: component -> the label value of its voxels.
        sizes: component -> voxels.
    """

    numbers: np.ndarray
    box: Box
    values: np.ndarray
    sizes: np.ndarray

    def largest(self, among: np.ndarray | None = None) -> int:
        """The largest component, the first of several; 0 if there is none.

        Args:
            among: component -> whether it may be chosen; None: all.
        """
        sizes = self.sizes.copy() if among is None else np.where(among, self.sizes, 0)
        sizes[0] = 0
        return int(sizes.argmax()) if sizes.any() else 0


def find_components(label_map: np.ndarray) -> Components:
    """Components of voxels with one value; of a mask, those of its foreground.

    Args:
        label_map: (*spatial), integers >= 0 or booleans.
    """
    box = _foreground_box(label_map)
    part = label_map[box]
    numbers = label_components(part, background=0, connectivity=part.ndim)
    sizes = np.bincount(numbers.ravel(), minlength=1)
    values = np.zeros(len(sizes), np.int64)
    values[numbers.ravel()] = part.ravel()
    return Components(numbers, box, values, sizes)


def keep_components(label_map: np.ndarray, components: Components, kept: np.ndarray) -> np.ndarray:
    """A copy of the label map in which the components that are not ``kept`` (component -> bool) are background."""
    result = label_map.copy()
    gone = ~kept
    gone[0] = False
    if gone.any():
        result[components.box][gone[components.numbers]] = 0
    return result


def find_holes(label_map: np.ndarray) -> np.ndarray:
    """Background that one class alone encloses.

    A hole is a connected part of the background that does not reach the edge of the image and whose face neighbours
    all have one value. It belongs to at most one class, so that filling several classes needs no order. Where there
    is only one class these are the holes of scipy.ndimage.binary_fill_holes.

    Returns:
        Of the label map's shape and type: the enclosing value in a hole, else 0.
    """
    holes = np.zeros_like(label_map)
    box = _foreground_box(label_map)
    part = np.ascontiguousarray(np.pad(label_map[box], 1))  # what reaches the box's edge is one part
    numbers = label_components(part == 0, connectivity=1)
    outside = numbers.flat[0]
    inner = np.flatnonzero((numbers != 0) & (numbers != outside))
    if not len(inner):
        return holes
    enclosing = _enclosing_value(part, numbers, inner)
    filled = np.zeros(part.shape, label_map.dtype)
    filled.flat[inner] = enclosing[numbers.flat[inner]]
    holes[box] = filled[(slice(1, -1),) * part.ndim]
    return holes


def _enclosing_value(part: np.ndarray, numbers: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """Part of the background -> the value of its neighbours, 0 where they have several.

    Args:
        inner: flat indices of the voxels of the parts that are asked for; none lies at the array's edge.
    """
    highest = np.zeros(numbers.max() + 1, np.int64)
    lowest = np.full(len(highest), np.iinfo(np.int64).max)
    strides = [stride // part.itemsize for stride in part.strides]
    for step in strides + [-stride for stride in strides]:
        neighbours = part.flat[inner + step].astype(np.int64)
        of = numbers.flat[inner]
        np.maximum.at(highest, of, neighbours)
        np.minimum.at(lowest, of[neighbours > 0], neighbours[neighbours > 0])
    return np.where(highest == lowest, highest, 0)


def _foreground_box(label_map: np.ndarray) -> Box:
    foreground = label_map != 0
    box = []
    for axis in range(label_map.ndim):
        others = tuple(other for other in range(label_map.ndim) if other != axis)
        hit = np.flatnonzero(foreground.any(axis=others))
        box.append(slice(int(hit[0]), int(hit[-1]) + 1) if len(hit) else slice(0, 0))
    return tuple(box)
