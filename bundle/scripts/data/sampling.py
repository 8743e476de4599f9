"""Patches for training, cut out of memory-mapped cases: only what a patch needs is read from disk."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import Randomizable, Transform
from torch.nn.functional import affine_grid, grid_sample

from ..command_line import or_none

__all__ = ["FOREGROUND_SHARE", "RandPatchd", "in_plane", "multiply_axes", "rotation_range"]

FOREGROUND_SHARE = 1 / 3  # nnU-Net: of the patches, centred on a labelled voxel
SCALE = (0.7, 1.4)
ANISOTROPY = 3  # patches longer than this times their shortest side are altered in the plane only


class RandPatchd(Randomizable, Transform):
    """A random patch of image and label, sometimes turned and scaled.

    A third of the patches are centred on a random labelled voxel of a random class that the case holds, the others
    lie anywhere or, in a case with ignored voxels, around a random one of the rest (nnU-Net's rule). A turned or
    scaled patch is sampled straight from the larger region that it covers, so that its corners hold image wherever
    there is any. What lies outside the volume is 0: background, and the mean after z-scoring.

    Takes {"image": (channels, *spatial), "label": (1, *spatial), "foreground": (1 + dims, voxels)}, arrays or
    memory maps ("foreground" as PreparedDataset writes it: class and position, sorted by class, 0 standing for any
    voxel that is not ignored), and returns
    {"image": float32, "label": int16} as tensors of the patch's size. With ``slice_axis`` the case is a volume
    and the patch lies in one of its slices.

    Args:
        patch_size: of the network's dimensions.
        prob_rotate, prob_scale: probabilities of either alteration.
        slice_axis: axis along which a 2D network walks through volumes, or None.
        foreground_share: probability of a patch around a labelled voxel.
    """

    def __init__(
        self,
        patch_size: Sequence[int],
        prob_rotate: float = 0.2,
        prob_scale: float = 0.2,
        slice_axis: int | None = None,
        foreground_share: float = FOREGROUND_SHARE,
    ) -> None:
        self.slice_axis = or_none(slice_axis)
        self.patch_size = list(patch_size)
        self.volume_patch = list(patch_size)
        if self.slice_axis is not None:
            self.volume_patch.insert(self.slice_axis, 1)
        self.prob_rotate, self.prob_scale = prob_rotate, prob_scale
        self.foreground_share = foreground_share

    def __call__(self, data: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        image, label = data["image"], data["label"]
        start = self._start(image.shape[1:], data["foreground"])
        matrix = self._matrix()
        if self.slice_axis is not None:
            index = start.pop(self.slice_axis)
            image, label = (np.take(array, index, self.slice_axis + 1) for array in (image, label))
        if matrix is None:
            pair = (_read(array, start, self.patch_size) for array in (image, label))
        else:
            pair = _sample(image, label, start, self.patch_size, matrix)
        return dict(zip(("image", "label"), pair, strict=True))

    def _start(self, shape: Sequence[int], foreground: np.ndarray) -> list[int]:
        """Lowest corner; volumes smaller than the patch lie in its middle."""
        room = [n - size for n, size in zip(shape, self.volume_patch, strict=True)]
        annotated = int(np.searchsorted(foreground[0], 0, side="right"))
        labelled = foreground.shape[1] > annotated and self.R.random() < self.foreground_share
        if labelled or annotated:
            low, high = self._random_class(foreground[0], annotated) if labelled else (0, annotated)
            voxel = foreground[1:, self.R.randint(low, high)].tolist()
            wanted = [at - size // 2 for at, size in zip(voxel, self.volume_patch, strict=True)]
        else:
            wanted = [self.R.randint(0, space + 1) if space > 0 else 0 for space in room]
        return [min(max(at, 0), space) if space > 0 else space // 2 for at, space in zip(wanted, room, strict=True)]

    def _random_class(self, classes: np.ndarray, first: int) -> tuple[int, int]:
        """Where a random one of the classes in a sorted array, from ``first`` on, begins and ends."""
        bounds = [first]
        while bounds[-1] < len(classes):
            bounds.append(int(np.searchsorted(classes, classes[bounds[-1]], side="right")))
        chosen = self.R.randint(len(bounds) - 1)
        return bounds[chosen], bounds[chosen + 1]

    def _matrix(self) -> np.ndarray | None:
        """From the patch's axes to the volume's: a rotation and a scaling, or None for neither."""
        rotate, scale = self.R.random() < self.prob_rotate, self.R.random() < self.prob_scale
        if not (rotate or scale):
            return None
        matrix = np.eye(len(self.patch_size))
        plane = in_plane(self.patch_size)
        if scale:
            matrix[plane, plane] = 1 / self.R.uniform(*SCALE)
        if rotate:
            limit = rotation_range(self.patch_size)
            for k, first in enumerate(plane):
                for second in plane[k + 1 :]:
                    angle = self.R.uniform(-limit, limit)
                    turn = np.eye(len(matrix))
                    turn[[first, second], [first, second]] = math.cos(angle)
                    turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
                    matrix = matrix @ turn
        return matrix


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


def _read(array: np.ndarray, start: Sequence[int], size: Sequence[int]) -> torch.Tensor:
    """The box of ``size`` from ``start`` on, zeros where it lies outside; image float32, label int16."""
    dtype = torch.float32 if array.dtype.kind == "f" else torch.int16
    low = [max(at, 0) for at in start]
    high = [max(min(at + n, length), 0) for at, n, length in zip(start, size, array.shape[1:], strict=True)]
    inside = np.array(array[(slice(None), *map(slice, low, high))], order="C")
    values = torch.from_numpy(inside).to(dtype)
    if list(values.shape[1:]) == list(size):
        return values
    box = torch.zeros((len(array), *size), dtype=dtype)
    box[(slice(None), *(slice(a - at, b - at) for a, b, at in zip(low, high, start, strict=True)))] = values
    return box


def _sample(
    image: np.ndarray, label: np.ndarray, start: Sequence[int], size: Sequence[int], matrix: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same for a patch whose axes ``matrix`` turns and scales around its centre: linear, label nearest."""
    plane = in_plane(size)
    half = (np.array(size) - 1) / 2
    centre, reach = np.array(start) + half, np.abs(matrix) @ half
    low = np.clip(np.floor(centre - reach), 0, np.array(image.shape[1:]) - 1).astype(int)
    high = np.clip(np.ceil(centre + reach) + 1, low + 1, image.shape[1:]).astype(int)
    for axis in set(range(len(size))) - set(plane):
        low[axis], high[axis] = start[axis], start[axis] + size[axis]
    values, classes = (_read(array, low.tolist(), (high - low).tolist()).float() for array in (image, label))
    select = np.ix_(plane, plane)
    if np.count_nonzero(matrix) == len(size):
        steps = {axis: matrix[axis, axis] * np.arange(-half[axis], half[axis] + 1) for axis in plane}
        positions = {axis: centre[axis] - low[axis] + step for axis, step in steps.items()}
        values, classes = _scale(values, positions, nearest=False), _scale(classes, positions, nearest=True)
    else:
        args = matrix[select], (centre - low)[plane], [size[axis] for axis in plane]
        values, classes = _turn(values, plane, *args, "bilinear"), _turn(classes, plane, *args, "nearest")
    return values, classes.to(torch.int16)


def multiply_axes(image: torch.Tensor, matrices: Mapping[int, torch.Tensor]) -> torch.Tensor:
    """Multiply (channels, *spatial) by a matrix (new size, size) along some of its spatial axes: any separable linear
    filter or interpolation, as fast as a matrix product."""
    for axis, matrix in matrices.items():
        if axis + 2 == image.ndim:
            image = image @ matrix.T
        else:
            image = torch.matmul(matrix, image.flatten(axis + 2)).unflatten(-1, image.shape[axis + 2 :])
    return image


def _scale(region: torch.Tensor, positions: Mapping[int, np.ndarray], nearest: bool) -> torch.Tensor:
    """Interpolate at ``positions`` along each axis, 0 outside."""
    matrices = {}
    for axis, position in positions.items():
        position = np.floor(position + 0.5) if nearest else position
        distance = np.abs(np.subtract.outer(position, np.arange(region.shape[axis + 1])))
        matrices[axis] = torch.from_numpy(np.maximum(0, 1 - distance)).float()
    return multiply_axes(region, matrices)


def _turn(
    region: torch.Tensor,
    plane: Sequence[int],
    matrix: np.ndarray,
    centre: np.ndarray,
    size: Sequence[int],
    mode: str,
) -> torch.Tensor:
    """Interpolate on a grid of ``size`` around ``centre`` that ``matrix`` has turned, 0 outside.

    The axes that are not in the plane go with the channels.
    """
    moved = region.movedim([axis + 1 for axis in plane], list(range(-len(plane), 0)))
    extent = np.array(moved.shape[-len(plane) :])
    # torch's grids run from -1 to 1 over the outer borders, with the axes in reverse order.
    theta = np.zeros((len(plane), len(plane) + 1))
    theta[:, :-1] = (matrix * size / extent[:, None])[::-1, ::-1]
    theta[:, -1] = ((2 * centre + 1) / extent - 1)[::-1]
    grid = affine_grid(torch.from_numpy(theta).float()[None], [1, 1, *size], align_corners=False)
    folded = moved.reshape(1, -1, *extent)
    sampled = grid_sample(folded, grid, mode=mode, padding_mode="zeros", align_corners=False)
    sampled = sampled.view(*moved.shape[: -len(plane)], *size)
    return sampled.movedim(list(range(-len(plane), 0)), [axis + 1 for axis in plane])
