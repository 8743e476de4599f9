"""Turned and scaled patches, sampled straight from the boxes that they cover."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import grid_sample

from .alterations import to_device
from .sampling import in_plane

__all__ = ["warp"]


def warp(
    image: torch.Tensor, label: torch.Tensor, matrices: np.ndarray, centres: np.ndarray, patch_size: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches whose axes are turned and scaled around their centres: image linear, label nearest, 0 outside the box.

    Flat patches turn in their plane; along the third axis box and patch are the same.

    Args:
        image, label: (patches, channels, *box) and (patches, 1, *box).
        matrices: (patches, dims, dims), from a patch's axes to its box's.
        centres: (patches, dims), of the patches in voxels of their boxes.
        patch_size: of the result.

    Returns:
        image float32 and label int16, (patches, channels, *patch_size).
    """
    plane = in_plane(patch_size)
    extent, size = ([shape[axis] for axis in plane] for shape in (image.shape[2:], patch_size))
    grid = _grid(matrices[:, plane][:, :, plane], centres[:, plane], extent, size, image.device)
    axes = [axis + 2 for axis in plane]
    warped = (_sample(image, axes, grid, "bilinear"), _sample(label, axes, grid, "nearest").to(torch.int16))
    return warped


def _grid(
    matrices: np.ndarray, centres: np.ndarray, extent: Sequence[int], size: Sequence[int], device: torch.device
) -> torch.Tensor:
    """(patches, *size, dims): positions in grid_sample's terms, from -1 to 1 over the outer borders, last axis first.

    Sums of products, not a matrix product, which some GPUs round to ten bits.
    """
    scale = 2 / np.array(extent)
    theta = to_device((matrices * scale[:, None])[:, ::-1].copy(), device)
    grid = to_device((centres * scale + scale / 2 - 1)[:, ::-1].copy(), device).view(len(theta), *[1] * len(size), -1)
    for axis, length in enumerate(size):
        step = torch.arange(length, dtype=torch.float32, device=device) - (length - 1) / 2
        shape = [1] * len(size)
        shape[axis] = length
        grid = grid + step.view(1, *shape, 1) * theta[:, :, axis].view(len(theta), *[1] * len(size), -1)
    return grid


def _sample(box: torch.Tensor, axes: Sequence[int], grid: torch.Tensor, mode: str) -> torch.Tensor:
    """The axes that are not in the plane go with the channels."""
    last = list(range(-len(axes), 0))
    moved = box.float().movedim(axes, last)
    folded = moved.reshape(len(box), -1, *moved.shape[-len(axes) :])
    sampled = grid_sample(folded, grid, mode=mode, padding_mode="zeros", align_corners=False)
    return sampled.view(*moved.shape[: -len(axes)], *grid.shape[1:-1]).movedim(last, axes)
