"""Connected components of label maps: which there are, and what is left without some of them.

Two voxels are connected if they touch at a face, an edge or a corner (as in MONAI and nnU-Net); background, whose
enclosed parts are holes, is connected through faces only. One pass of scikit-image labels all classes at once,
which takes a fraction of the time of a pass per class (benchmarks/postprocessing.py), but 16 bytes a voxel and more:
large label maps are done class by class, each inside its bounding box.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from skimage.measure import label as label_components

from .slabs import count_in_slabs, slabs

__all__ = ["Components", "find_components", "find_holes", "keep_components"]

ONE_PASS = 1 << 24  # voxels of the largest label map whose classes are labelled at once

Box = tuple[slice, ...]


@dataclass(frozen=True)
class Components:
    """The components of a label map; number 0 is the background, those of a class follow each other in raster order.

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
    numbers, values = _at_once(part) if part.size <= ONE_PASS else _class_by_class(part)
    return Components(numbers, box, values, count_in_slabs(numbers, len(values)))


def _at_once(part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and values of the components."""
    numbers = label_components(part, background=0, connectivity=part.ndim)
    values = np.zeros(numbers.max(initial=0) + 1, np.int64)
    values[numbers.ravel()] = part.ravel()
    return numbers, values


def _class_by_class(part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same with 9 bytes a voxel at most, 4 of which stay."""
    corners = np.ones([3] * part.ndim)
    if part.dtype == bool:
        numbers, count = ndimage.label(part, corners)
        return numbers, np.r_[0, np.ones(count, np.int64)]
    numbers, values = np.zeros(part.shape, np.int32), [np.zeros(1, np.int64)]
    before = 0
    for value, box in enumerate(ndimage.find_objects(part), 1):
        if box is None:
            continue
        own, count = ndimage.label(part[box] == value, corners)
        target = numbers[box]
        for slab in slabs(own.shape):
            target[slab] += np.where(own[slab], own[slab] + np.int32(before), np.int32(0))
        values.append(np.full(count, value))
        before += count
    return numbers, np.concatenate(values)


def keep_components(label_map: np.ndarray, components: Components, kept: np.ndarray) -> np.ndarray:
    """A copy of the label map in which the components that are not ``kept`` (component -> bool) are background."""
    result = label_map.copy()
    gone = ~kept
    gone[0] = False
    if gone.any():
        part = result[components.box]
        for slab in slabs(part.shape):
            part[slab][gone[components.numbers[slab]]] = 0
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
    numbers, count = ndimage.label(part == 0)
    if count < 2:
        return holes
    enclosing = _enclosing_value(part, numbers, count)
    inside = numbers[(slice(1, -1),) * part.ndim]
    target = holes[box]
    for slab in slabs(target.shape):
        target[slab] = enclosing[inside[slab]]
    return holes


def _enclosing_value(part: np.ndarray, numbers: np.ndarray, count: int) -> np.ndarray:
    """Part of the background -> the value of its neighbours, 0 where they have several and for the part outside.

    Args:
        part: label map (*spatial), C order, whose edge is background.
        numbers: of the parts of its background, from 1 to ``count``; 0 elsewhere.
    """
    highest = np.zeros(count + 1, np.int64)
    lowest = np.full(len(highest), np.iinfo(np.int64).max)
    outside = numbers.flat[0]
    strides = [stride // part.itemsize for stride in part.strides]
    labels, numbers = part.ravel(), numbers.ravel()
    for slab in slabs(labels.shape):
        inner = np.flatnonzero((numbers[slab] != 0) & (numbers[slab] != outside)) + slab.start
        of = numbers[inner]
        for step in strides + [-stride for stride in strides]:
            neighbours = labels[inner + step].astype(np.int64)
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
