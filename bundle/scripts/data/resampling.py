"""Resampling of volumes to another voxel size, axis by axis, and back."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform
from scipy.ndimage import find_objects, spline_filter1d

from ..common.errors import UserError
from ..images.geometry import LARGEST_STEP, spacing_of, times

__all__ = ["Resampled", "resampled_size", "resampling_problem", "resize", "resize_label_map", "thin_axis", "with_meta"]

COPIES, FLOAT_BYTES = 3, 4  # of a resampled image while it is made, and of one of its voxels
SLAB = 1 << 22  # voxels that are resampled at a time, which bounds the memory
SPLINE_TAPS = 4  # of a third-order spline
IGNORED = -1  # index of voxels that nobody labelled
ANISOTROPY = 3  # nnU-Net: beyond this ratio of voxel sizes, the coarse axis is resampled apart

Taps = list[tuple[torch.Tensor, torch.Tensor | None]]


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

    Beside the result there is room for one channel that is resampled along some of its axes.

    Args:
        volume: any number of channels; float.
        size: the new spatial size.
        order: of the spline: 0, 1 or 3.
        nearest_axis: axis along which the nearest voxel is taken instead.
    """
    size, old = tuple(size), tuple(volume.shape[1:])
    if old == size:
        return volume
    result = volume.new_empty((len(volume), *size))
    taps = {axis: _taps(old[axis], size[axis], 0 if axis == nearest_axis else order) for axis in _changed(old, size)}
    for source, target in zip(volume, result, strict=True):  # one at a time: logits of many classes are large
        _resize_axes(source, taps, target)
    return result


def resize_label_map(label: torch.Tensor, size: Sequence[int], nearest_axis: int | None = None) -> torch.Tensor:
    """Resample a label map (1, *spatial): each class linearly, and each voxel goes to the class with most of it.

    One class after the other, inside its bounding box: outside it has nothing of any voxel.
    """
    size, old = tuple(size), tuple(label.shape[1:])
    if old == size:
        return label
    result, most = torch.zeros(1, *size, dtype=label.dtype), torch.zeros(1, *size)
    taps = {axis: _taps(old[axis], size[axis], 0 if axis == nearest_axis else 1) for axis in _changed(old, size)}
    for value, box in _classes(label[0]):
        near = {axis: _tap_range(taps[axis], box[axis]) for axis in taps}
        there, here = list(box), list(box)
        for axis, (new, of, _) in near.items():
            there[axis], here[axis] = new, of
        part, highest = result[0][tuple(there)], most[0][tuple(there)]
        if part.numel():  # else it lies between the voxels of a coarser grid
            share = torch.empty(part.shape)
            _resize_axes(label[0][tuple(here)] == value, {axis: cut for axis, (_, _, cut) in near.items()}, share)
            part.masked_fill_(share > highest, value)
            torch.maximum(highest, share, out=highest)
    return result


def _classes(label: torch.Tensor) -> list[tuple[float, tuple[slice, ...]]]:
    """The values of a label map (*spatial) in ascending order, each with a box that holds all its voxels."""
    everything = tuple(slice(0, length) for length in label.shape)
    if label.dtype.is_floating_point or label.min() < IGNORED:
        return [(value, everything) for value in torch.unique(label).tolist()]
    others = [value for value in (IGNORED, 0) if (label == value).any()]
    boxes = enumerate(find_objects(label.numpy()), 1)
    return [(value, everything) for value in others] + [(value, box) for value, box in boxes if box is not None]


def _resize_logits(logits: torch.Tensor, size: Sequence[int], thin: int | None) -> torch.Tensor:
    try:
        return resize(logits, size, 1, thin)
    except torch.cuda.OutOfMemoryError:
        return resize(logits.cpu(), size, 1, thin)


def _changed(old: Sequence[int], new: Sequence[int]) -> list[int]:
    """The axes to be resampled; shrinking ones first: the others then have less to do."""
    axes = sorted(range(len(new)), key=lambda axis: new[axis] / old[axis])
    return [axis for axis in axes if old[axis] != new[axis]]


def _taps(length: int, size: int, order: int) -> Taps:
    """Which voxels of an axis each new one is made of, and their shares: [(indices, weights), …], each (size)."""
    position = (torch.arange(size, dtype=torch.float64) + 0.5) * length / size - 0.5
    position = position.clamp(0, length - 1)
    if order == 0:
        return [(torch.floor(position + 0.5).long(), None)]
    first, fraction = torch.floor(position), position - torch.floor(position)
    weights = _cubic(fraction) if order == 3 else [1 - fraction, fraction]
    indices = [first.long() + step for step in range(-1 if order == 3 else 0, 3 if order == 3 else 2)]
    mirrored = [(length - 1 - (length - 1 - index.abs()).abs()).clamp(0, length - 1) for index in indices]
    return list(zip(mirrored, weights, strict=True))


def _tap_range(taps: Taps, part: slice) -> tuple[slice, slice, Taps]:
    """The new voxels that are made of those in ``part`` of an axis, what they are made of, and their taps in that."""
    indices = torch.stack([index for index, _ in taps])
    near = torch.nonzero(((indices >= part.start) & (indices < part.stop)).any(dim=0)).flatten()
    if not len(near):
        return slice(0, 0), slice(0, 0), []
    new = slice(int(near[0]), int(near[-1]) + 1)
    start, stop = int(indices[:, new].min()), int(indices[:, new].max()) + 1
    return new, slice(start, stop), [(index[new] - start, None if w is None else w[new]) for index, w in taps]


def _resize_axes(source: torch.Tensor, taps: Mapping[int, Taps], target: torch.Tensor) -> None:
    """Resample (*spatial) along one axis after the other, the last time into ``target``."""
    for axis, own in taps.items():
        shape = list(source.shape)
        shape[axis] = len(own[0][0])
        result = target if axis == list(taps)[-1] else target.new_empty(shape)
        for slab in _slabs(source.shape, axis):
            result[slab] = _resize_axis(source[slab].to(target.dtype), axis, own)
        source = result


def _slabs(shape: Sequence[int], axis: int) -> Iterator[tuple[slice, ...]]:
    """Parts of a volume of about SLAB voxels with whole lines along ``axis``."""
    across = int(axis == 0)
    if len(shape) == 1:
        yield ()
        return
    step = max(1, SLAB * shape[across] // math.prod(shape))
    for start in range(0, shape[across], step):
        yield (*[slice(None)] * across, slice(start, start + step))


def _resize_axis(volume: torch.Tensor, axis: int, taps: Taps) -> torch.Tensor:
    if len(taps) == SPLINE_TAPS:
        coefficients = spline_filter1d(volume.numpy(), 3, axis, output=np.float32, mode="mirror")
        volume = torch.from_numpy(coefficients)
    result: Any = 0
    for index, weight in taps:
        chosen = volume.index_select(axis, index.to(volume.device))
        if weight is None:
            return chosen
        shape = [len(index) if dim == axis else 1 for dim in range(volume.ndim)]
        result = result + chosen * weight.to(volume).view(shape)
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
