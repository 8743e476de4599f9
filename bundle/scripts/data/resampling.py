"""Resampling of volumes to another voxel size, axis by axis, and back."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform
from scipy.ndimage import spline_filter1d

from ..common.errors import UserError
from ..images.geometry import LARGEST_STEP, spacing_of, times

__all__ = ["Resampled", "resampled_size", "resampling_problem", "resize", "resize_label_map", "thin_axis", "with_meta"]

COPIES, FLOAT_BYTES = 3, 4  # of a resampled image while it is made, and of one of its voxels
ANISOTROPY = 3  # nnU-Net: beyond this ratio of voxel sizes, the coarse axis is resampled apart


class Resampled(MapTransform, InvertibleTransform):
    """Resample a case to a voxel size; the inverse brings logits back to the grid they came from.

    Orders as in nnU-Net: images by a third-order spline, label maps and logits linearly (label maps class by
    class, the largest wins); along a coarse axis (see ``thin_axis``) the nearest slice. The outer borders of the
    volume stay where they are, so that the voxel size that is reached differs a little from the one asked for.

    Args:
        keys: "image" and "label", or "image" alone.
        spacing: voxel size in mm along each axis; None for an axis to be left alone.
    """

    def __init__(self, keys: Sequence[Hashable], spacing: Sequence[float | None]) -> None:
        super().__init__(keys)
        self.spacing = tuple(spacing)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        case = dict(data)
        for key in self.key_iterator(case):
            case[key] = self._forward(case[key], is_label=key == "label")
        return case

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        case = dict(data)
        for key in self.key_iterator(case):
            trace = self.pop_transform(case[key])
            old = trace["extra_info"]
            thin = None if old["thin_axis"] < 0 else old["thin_axis"]
            logits = _resize_logits(case[key].as_tensor(), trace["orig_size"], thin)
            case[key] = with_meta(logits, case[key])
            case[key].affine = old["affine"]
        return case

    def _forward(self, volume: MetaTensor, is_label: bool) -> MetaTensor:
        old_size, old_spacing = tuple(volume.shape[1:]), spacing_of(volume.affine.numpy(), volume.ndim - 1)
        wanted = [new or old for new, old in zip(self.spacing, old_spacing, strict=True)]
        size = resampled_size(old_size, old_spacing, wanted)
        if problem := resampling_problem(old_size, old_spacing, size, wanted, len(volume)):
            raise UserError(f"{volume.meta.get('filename_or_obj', 'an image')} {problem}")
        thin = thin_axis(old_spacing)
        thin = thin_axis(wanted) if thin is None else thin
        plain = volume.as_tensor()
        resized = resize_label_map(plain, size, thin) if is_label else resize(plain, size, 3, thin)
        extra = {"affine": torch.as_tensor(volume.affine).clone(), "thin_axis": -1 if thin is None else thin}
        zoom = _zoom(old_size, size)
        return self.push_transform(with_meta(resized, volume), orig_size=old_size, affine=zoom, extra_info=extra)


def with_meta(values: torch.Tensor, like: MetaTensor) -> MetaTensor:
    """``values`` with what ``like`` knows of its file, place and history."""
    return MetaTensor(values, meta=like.meta, applied_operations=like.applied_operations)


def thin_axis(spacing: Sequence[float]) -> int | None:
    """The axis with the largest voxel size where that is over three times the smallest (thick slices), else None.

    None too where two axes share the largest (nnU-Net's rule: neither is special).
    """
    largest = np.isclose(spacing, max(spacing), rtol=1e-3)
    return int(np.argmax(spacing)) if max(spacing) > ANISOTROPY * min(spacing) and largest.sum() == 1 else None


def resampled_size(size: Sequence[int], spacing: Sequence[float], target: Sequence[float | None]) -> tuple[int, ...]:
    """Voxels along each axis after resampling from one voxel size to another (None: unchanged)."""
    axes = zip(size, spacing, target, strict=True)
    return tuple(max(1, round(length * old / (new or old))) for length, old, new in axes)


def resampling_problem(
    old_size: Sequence[int], old: Sequence[float], size: Sequence[int], new: Sequence[float], channels: int = 1
) -> str | None:
    """Why an image cannot be resampled, before memory is taken for it; None if it can.

    Args:
        old_size, old: voxels along each axis and their size in mm.
        size, new: the same after resampling.
        channels: of the image.
    """
    what = f"has {times(old_size)} voxels of {times(old)} mm, the spacing asked for is {times(new)} mm"
    hint = "mend the header or the spacing"
    if any(not 1 / LARGEST_STEP <= before / after <= LARGEST_STEP for before, after in zip(old, new, strict=True)):
        return f"{what}, over {LARGEST_STEP} times another: {hint}"
    needed, there = COPIES * FLOAT_BYTES * channels * math.prod(size), _memory()
    if there is not None and needed > there:
        return f"{what}: {times(size)} voxels take {needed / 1e9:,.0f} GB, this machine has {there / 1e9:,.0f}: {hint}"
    return None


def resize(volume: torch.Tensor, size: Sequence[int], order: int, nearest_axis: int | None = None) -> torch.Tensor:
    """Resample (channels, *spatial) to a new spatial size over the same extent.

    Args:
        volume: any number of channels; float.
        size: the new spatial size.
        order: of the spline: 0, 1 or 3.
        nearest_axis: axis along which the nearest voxel is taken instead.
    """
    size = tuple(size)
    if tuple(volume.shape[1:]) == size:
        return volume
    result = volume.new_empty((len(volume), *size))
    for source, target in zip(volume, result, strict=True):  # one at a time: logits of many classes are large
        # Shrinking axes first: the others then have less to do.
        for axis in sorted(range(len(size)), key=lambda axis: size[axis] / volume.shape[axis + 1]):
            if source.shape[axis] != size[axis]:
                source = _resize_axis(source, axis, size[axis], 0 if axis == nearest_axis else order)
        target.copy_(source)
    return result


def resize_label_map(label: torch.Tensor, size: Sequence[int], nearest_axis: int | None = None) -> torch.Tensor:
    """Resample a label map (1, *spatial): each class linearly, and each voxel goes to the class with most of it."""
    if tuple(label.shape[1:]) == tuple(size):
        return label
    result, most = torch.zeros(1, *size, dtype=label.dtype), torch.zeros(1, *size)
    for value in torch.unique(label).tolist():
        share = resize((label == value).float(), size, 1, nearest_axis)
        result[share > most] = value
        most = torch.maximum(most, share)
    return result


def _resize_logits(logits: torch.Tensor, size: Sequence[int], thin: int | None) -> torch.Tensor:
    try:
        return resize(logits, size, 1, thin)
    except torch.cuda.OutOfMemoryError:
        return resize(logits.cpu(), size, 1, thin)


def _resize_axis(volume: torch.Tensor, axis: int, size: int, order: int) -> torch.Tensor:
    length = volume.shape[axis]
    position = (torch.arange(size, dtype=torch.float64, device=volume.device) + 0.5) * length / size - 0.5
    position = position.clamp(0, length - 1)
    if order == 0:
        return volume.index_select(axis, torch.floor(position + 0.5).long())
    if order == 3:
        coefficients = spline_filter1d(volume.numpy(), 3, axis, output=np.float32, mode="mirror")
        volume = torch.from_numpy(coefficients)
    first, fraction = torch.floor(position), position - torch.floor(position)
    weights = _cubic(fraction) if order == 3 else [1 - fraction, fraction]
    shape = [size if dim == axis else 1 for dim in range(volume.ndim)]
    result: Any = 0
    for step, weight in enumerate(weights, start=-1 if order == 3 else 0):
        index = first.long() + step
        index = (length - 1 - (length - 1 - index.abs()).abs()).clamp(0, length - 1)  # mirrored at both ends
        result = result + volume.index_select(axis, index) * weight.to(volume.dtype).view(shape)
    return result


def _cubic(t: torch.Tensor) -> list[torch.Tensor]:
    """The four cubic B-splines that reach a point, at a fraction ``t`` between the second and the third knot."""
    return [(1 - t) ** 3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6, t**3 / 6]


def _memory() -> int | None:
    """Bytes of memory that this machine, or the container on it, has; None where the system does not tell."""
    found = []
    with contextlib.suppress(AttributeError, OSError, ValueError):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            found.append(int(Path(limit).read_text(encoding="ascii")))
    return min(found, default=None)


def _zoom(old: Sequence[int], new: Sequence[int]) -> torch.Tensor:
    """From a voxel of the new grid to one of the old, homogeneous; the outer borders coincide."""
    matrix = torch.eye(len(old) + 1, dtype=torch.float64)
    for axis, (before, after) in enumerate(zip(old, new, strict=True)):
        matrix[axis, axis] = before / after
        matrix[axis, -1] = (before / after - 1) / 2
    return matrix
