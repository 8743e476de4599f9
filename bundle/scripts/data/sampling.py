"""Where a training patch lies in its case: nothing is read from the memory-mapped arrays yet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

__all__ = ["FOREGROUND_SHARE", "PatchSampler", "Region", "in_plane", "rotation_range"]

FOREGROUND_SHARE = 1 / 3  # nnU-Net: of the patches, centred on a labelled voxel
ROTATED = SCALED = 0.2  # shares of the patches
SCALE = (0.7, 1.4)
ANISOTROPY = 3  # patches longer than this times their shortest side are altered in the plane only


@dataclass(frozen=True)
class Region:
    """The box of a case that a patch is made of.

    Args:
        image, label: (channels, *inside) and (1, *inside), views of the part of the box that lies in the case.
        offset: where that part begins in the box; the rest is 0.
        size: of the box.
        matrix: None for a patch that is the box; else (dims, dims), from the patch's axes to the box's.
        centre: of the patch, in voxels of the box, if it is turned or scaled.
    """

    image: np.ndarray
    label: np.ndarray
    offset: Sequence[int]
    size: Sequence[int]
    matrix: np.ndarray | None = None
    centre: np.ndarray | None = None


class PatchSampler:
    """Choose a random patch of a case, sometimes turned and scaled.

    A third of the patches are centred on a random labelled voxel of a random class that the case holds, the others
    lie anywhere or, in a case with ignored voxels, around a random one of the rest (nnU-Net's rule). The region of a
    turned or scaled patch is all that it covers, so that its corners hold image wherever there is any. What lies
    outside the volume is 0: background, and the mean after z-scoring.

    Args:
        patch_size: of the network's dimensions.
        prob_rotate, prob_scale: probabilities of either alteration.
        slice_axis: axis along which a 2D network walks through volumes, or None: patches lie in one slice each.
        foreground_share: probability of a patch around a labelled voxel.
    """

    def __init__(
        self,
        patch_size: Sequence[int],
        prob_rotate: float = ROTATED,
        prob_scale: float = SCALED,
        slice_axis: int | None = None,
        foreground_share: float = FOREGROUND_SHARE,
    ) -> None:
        self.slice_axis = slice_axis
        self.patch_size = list(patch_size)
        self.volume_patch = list(patch_size)
        if self.slice_axis is not None:
            self.volume_patch.insert(self.slice_axis, 1)
        self.prob_rotate, self.prob_scale = prob_rotate, prob_scale
        self.foreground_share = foreground_share

    def __call__(self, case: Mapping[str, np.ndarray], random: Generator) -> Region:
        """
        Args:
            case: "image" (channels, *spatial), "label" (1, *spatial) and "foreground" (1 + dims, voxels) as
                PreparedDataset writes it: class and position, sorted by class, 0 standing for any voxel that is not
                ignored.
            random: all that is drawn comes from it.
        """
        image, label = case["image"], case["label"]
        start = self._start(image.shape[1:], case["foreground"], random)
        matrix = self._matrix(random)
        if self.slice_axis is not None:
            at = (slice(None),) * (self.slice_axis + 1) + (start.pop(self.slice_axis),)
            image, label = image[at], label[at]
        if matrix is None:
            return _box(image, label, start, [at + n for at, n in zip(start, self.patch_size, strict=True)])
        return self._turned(image, label, start, matrix)

    def _start(self, shape: Sequence[int], foreground: np.ndarray, random: Generator) -> list[int]:
        """Lowest corner; volumes smaller than the patch lie in its middle."""
        room = [n - size for n, size in zip(shape, self.volume_patch, strict=True)]
        annotated = int(np.searchsorted(foreground[0], 0, side="right"))
        labelled = foreground.shape[1] > annotated and random.random() < self.foreground_share
        if labelled or annotated:
            low, high = _random_class(foreground[0], annotated, random) if labelled else (0, annotated)
            voxel = foreground[1:, random.integers(low, high)].tolist()
            wanted = [at - size // 2 for at, size in zip(voxel, self.volume_patch, strict=True)]
        else:
            wanted = [int(random.integers(space + 1)) if space > 0 else 0 for space in room]
        return [min(max(at, 0), space) if space > 0 else space // 2 for at, space in zip(wanted, room, strict=True)]

    def _matrix(self, random: Generator) -> np.ndarray | None:
        """From the patch's axes to the volume's: a rotation and a scaling, or None for neither."""
        rotate, scale = random.random() < self.prob_rotate, random.random() < self.prob_scale
        if not (rotate or scale):
            return None
        matrix = np.eye(len(self.patch_size))
        plane = in_plane(self.patch_size)
        if scale:
            matrix[plane, plane] = 1 / random.uniform(*SCALE)
        if rotate:
            limit = rotation_range(self.patch_size)
            for k, first in enumerate(plane):
                for second in plane[k + 1 :]:
                    angle = random.uniform(-limit, limit)
                    turn = np.eye(len(matrix))
                    turn[[first, second], [first, second]] = math.cos(angle)
                    turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
                    matrix = matrix @ turn
        return matrix

    def _turned(self, image: np.ndarray, label: np.ndarray, start: Sequence[int], matrix: np.ndarray) -> Region:
        """All that a patch covers whose axes ``matrix`` turns and scales around its centre."""
        half = (np.array(self.patch_size) - 1) / 2
        centre, reach = np.array(start) + half, np.abs(matrix) @ half
        low = np.clip(np.floor(centre - reach), 0, np.array(image.shape[1:]) - 1).astype(int)
        high = np.clip(np.ceil(centre + reach) + 1, low + 1, image.shape[1:]).astype(int)
        for axis in set(range(len(start))) - set(in_plane(self.patch_size)):
            low[axis], high[axis] = start[axis], start[axis] + self.patch_size[axis]
        return _box(image, label, low.tolist(), high.tolist(), matrix, centre - low)


def in_plane(patch_size: Sequence[int]) -> list[int]:
    """The axes along which patches are turned, scaled and blurred: without the short one of a flat 3D patch."""
    axes = list(range(len(patch_size)))
    if len(axes) == 3 and max(patch_size) > ANISOTROPY * min(patch_size):
        axes.remove(int(np.argmin(patch_size)))
    return axes


def rotation_range(patch_size: Sequence[int]) -> float:
    """Largest angle in radians: 30° in 3D, half a turn in a plane, 15° for long 2D patches (nnU-Net's table)."""
    if len(patch_size) == 2 and max(patch_size) > 1.5 * min(patch_size):
        return math.radians(15)
    return math.radians(180 if len(in_plane(patch_size)) == 2 else 30)


def _random_class(classes: np.ndarray, first: int, random: Generator) -> tuple[int, int]:
    """Where a random one of the classes in a sorted array, from ``first`` on, begins and ends."""
    bounds = [first]
    while bounds[-1] < len(classes):
        bounds.append(int(np.searchsorted(classes, classes[bounds[-1]], side="right")))
    chosen = int(random.integers(len(bounds) - 1))
    return bounds[chosen], bounds[chosen + 1]


def _box(
    image: np.ndarray,
    label: np.ndarray,
    low: Sequence[int],
    high: Sequence[int],
    matrix: np.ndarray | None = None,
    centre: np.ndarray | None = None,
) -> Region:
    """The box from ``low`` to ``high``, which may lie partly outside the case."""
    first = [max(a, 0) for a in low]
    last = [max(min(b, n), 0) for b, n in zip(high, image.shape[1:], strict=True)]
    inside = (slice(None), *map(slice, first, last))
    offset = [a - b for a, b in zip(first, low, strict=True)]
    return Region(image[inside], label[inside], offset, [b - a for a, b in zip(low, high, strict=True)], matrix, centre)
