"""How large a patch is and which axes the network pools: nnU-Net's rules for a network of four stages."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

__all__ = ["TRANSITIONS", "Patch", "choose_patch", "choose_strides", "fit_to_strides", "total_stride"]

TRANSITIONS = 3  # between the encoder's four stages
SMALLEST_FEATURE_MAP = 4  # pooling never leaves an axis with fewer voxels
LARGEST_SPACING_RATIO = 2  # an axis so many times as coarse as the finest one is not pooled yet
LARGEST_VOXELS = {2: 2048**2, 3: 256**3}  # of the patch from which shrinking starts


class Patch(NamedTuple):
    """Size in voxels, and for each transition between stages a stride of 1 or 2 an axis."""

    size: list[int]
    strides: list[list[int]]

    @property
    def voxels(self) -> int:
        return math.prod(self.size)


def choose_patch(
    median_shape: Sequence[float], spacing: Sequence[float] | None, fits: Callable[[Patch], bool]
) -> Patch | None:
    """The largest patch that fits.

    It starts as the cube (square) in mm that has 256^3 (2048^2) voxels, clipped to the median image, and loses
    voxels on the axis where it covers most of the median image until it fits.

    Args:
        median_shape: median size of the images, in voxels of ``spacing``.
        spacing: mm an axis, or None where there is none.
        fits: whether memory holds a batch of such patches.

    Returns:
        The patch, each size divisible by the axis' total stride and never larger than the median image rounded
        up to it; None if not even the smallest patch fits.
    """
    spacing = spacing or [1.0] * len(median_shape)
    size = [
        max(1, min(round(whole), math.ceil(median)))
        for whole, median in zip(_largest_size(spacing), median_shape, strict=True)
    ]
    patch = fit_to_strides(size, spacing)
    while not fits(patch):
        axes = [axis for axis, size in enumerate(patch.size) if size > SMALLEST_FEATURE_MAP]
        if not axes:
            return None
        fullest = max(axes, key=lambda axis: patch.size[axis] / median_shape[axis])
        size = list(patch.size)
        size[fullest] -= 1
        patch = fit_to_strides(size, spacing, math.floor)  # down, so that shrinking always ends
    return patch


def choose_strides(size: Sequence[int], spacing: Sequence[float]) -> list[list[int]]:
    """Which axes each transition pools by 2.

    An axis is pooled if at least 4 voxels remain and, of the axes that large, none has less than half its spacing
    at that stage: a thick-sliced volume is pooled within its slices until its voxels are nearly cubes.
    """
    size, spacing, strides = list(map(float, size)), list(spacing), []
    for _ in range(TRANSITIONS):
        large = [axis for axis in range(len(size)) if size[axis] >= 2 * SMALLEST_FEATURE_MAP]
        finest = min((spacing[axis] for axis in large), default=0.0)
        pooled = [axis for axis in large if spacing[axis] / finest < LARGEST_SPACING_RATIO]
        stride = [2 if axis in pooled else 1 for axis in range(len(size))]
        size = [voxels / step for voxels, step in zip(size, stride, strict=True)]
        spacing = [mm * step for mm, step in zip(spacing, stride, strict=True)]
        strides.append(stride)
    return strides


def total_stride(strides: Sequence[Sequence[int]]) -> list[int]:
    """The factor by which each axis is pooled in all."""
    return [math.prod(axis) for axis in zip(*strides, strict=True)]


def fit_to_strides(
    size: Sequence[int], spacing: Sequence[float] | None, rounding: Callable[[float], int] = math.ceil
) -> Patch:
    """Round a size up (or with math.floor down) until each axis is divisible by its total stride."""
    size, spacing = list(size), spacing or [1.0] * len(size)
    while True:
        strides = choose_strides(size, spacing)
        rounded = [rounding(n / step) * step for n, step in zip(size, total_stride(strides), strict=True)]
        if rounded == size:
            return Patch(size, strides)
        size = rounded  # another size may be pooled in another way


def _largest_size(spacing: Sequence[float]) -> list[float]:
    dims = len(spacing)
    edge = (LARGEST_VOXELS[dims] * math.prod(spacing)) ** (1 / dims)
    return [edge / mm for mm in spacing]
