"""Where the windows over an image lie, and in which order they are taken so that little of it is open at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from monai.data.utils import compute_importance_map

__all__ = ["Item", "Stage", "Walk", "gaussian_weights", "padding", "plan_walk", "window_starts"]

NEARLY = 1.25  # times the fewest open voxels
LARGE_LAYER = 4  # batches; a layer of fewer shares its last batch with the next one


@dataclass(frozen=True)
class Item:
    """What the network gets as one element of a batch: a window, mirrored along some axes.

    Attributes:
        start: the window's first voxel along each axis.
        flip: spatial axes to mirror.
    """

    start: tuple[int, ...]
    flip: tuple[int, ...]


@dataclass(frozen=True)
class Stage:
    """Batches of items, and up to which plane the image is finished after them."""

    batches: list[list[Item]]
    finished: int


@dataclass(frozen=True)
class Walk:
    """A way over an image along one axis.

    Attributes:
        axis: the spatial axis along which windows advance.
        stages: in their order.
        planes: how many planes along the axis have to be held at once.
    """

    axis: int
    stages: list[Stage]
    planes: int

    @property
    def items(self) -> int:
        return sum(len(batch) for stage in self.stages for batch in stage.batches)


def window_starts(size: int, patch: int, overlap: float) -> list[int]:
    """First voxels of the windows along an axis: a fixed step, the last window ends with the image (MONAI's rule).

    Args:
        size: of the image, at least ``patch``.
        patch: of the window.
        overlap: of neighbouring windows, as a share of their size, below 1.
    """
    step = max(1, int(patch * (1 - overlap)))
    count = 1 + math.ceil((size - patch) / step)
    return [min(index * step, size - patch) for index in range(count)]


def padding(size: Sequence[int], patch: Sequence[int]) -> list[tuple[int, int]]:
    """Voxels to add before and after each axis, so that a window fits."""
    missing = [max(0, window - length) for length, window in zip(size, patch, strict=True)]
    return [(gap // 2, gap - gap // 2) for gap in missing]


def gaussian_weights(patch: Sequence[int], axes: Sequence[int], device: torch.device) -> torch.Tensor:
    """Weights (*patch), float32, of a window's voxels: a Gaussian along ``axes``, which falls to 1e-3 at the least."""
    plane = compute_importance_map(
        tuple(patch[axis] for axis in axes), mode="gaussian", sigma_scale=0.125, device=device, dtype=torch.float32
    )
    return plane.reshape([patch[axis] if axis in axes else 1 for axis in range(len(patch))])


def plan_walk(
    size: Sequence[int], patch: Sequence[int], overlap: float, batch_size: int, flips: Sequence[tuple[int, ...]]
) -> Walk:
    """The walk over an image that has the fewest voxels open at a time, or nearly so: planes across an earlier axis lie
    closer together in memory, which takes less time.

    Args:
        size, patch: of the image, along every axis at least that of the window, and of the window.
        overlap: see window_starts.
        batch_size: items of a batch.
        flips: how each window is mirrored.
    """
    starts = [window_starts(length, window, overlap) for length, window in zip(size, patch, strict=True)]
    open_shares = [window / length for window, length in zip(patch, size, strict=True)]
    axis = next(axis for axis, share in enumerate(open_shares) if share <= NEARLY * min(open_shares))
    others = [starts[other] for other in range(len(size)) if other != axis]
    layers = [
        [Item((*rest[:axis], first, *rest[axis:]), flip) for rest in product(*others) for flip in flips]
        for first in starts[axis]
    ]
    stages = list(_stages(list(_batches(layers, batch_size)), axis, size[axis]))
    return Walk(axis, stages, _planes(stages, axis, patch[axis]))


def _batches(layers: Sequence[Sequence[Item]], batch_size: int) -> Iterator[list[Item]]:
    batch: list[Item] = []
    for layer in layers:
        for item in layer:
            batch.append(item)
            if len(batch) == batch_size:
                yield batch
                batch = []
        if batch and len(layer) >= LARGE_LAYER * batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def _stages(batches: Sequence[list[Item]], axis: int, length: int) -> Iterator[Stage]:
    """A stage ends where the next item starts further along the axis: what lies before is finished."""
    stage: list[list[Item]] = []
    done = 0
    for batch, following in zip(batches, [*batches[1:], None], strict=True):
        stage.append(batch)
        reached = length if following is None else following[0].start[axis]
        if reached > done:
            yield Stage(stage, reached)
            stage, done = [], reached


def _planes(stages: Sequence[Stage], axis: int, patch: int) -> int:
    begins = [0, *(stage.finished for stage in stages)]
    ends = [stage.batches[-1][-1].start[axis] + patch for stage in stages]
    return max(end - begin for begin, end in zip(begins, ends, strict=False))
