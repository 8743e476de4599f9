"""From a loaded case to what the network sees: crop, orientation, intensity, spacing; all of it can be undone."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import reduce
from math import inf, prod
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform, Orientationd, Transform

from ..common.command_line import as_flag, or_none
from ..common.errors import UserError
from ..images.label_names import LARGEST_VALUE
from .normalization import Normalized, Scheme
from .resampling import IGNORED, Resampled, with_meta

__all__ = ["CropNonzerod", "LabelIndexd", "check_patch_size", "image_dims", "preprocessing"]

FAR_BELOW = -1e4  # logit of a class that is out of the question; float16 still holds it


def preprocessing(
    keys: Sequence[Hashable],
    spatial_dims: int,
    spacing: Sequence[float | None] | str | None,
    normalization: Sequence[Scheme] | None = None,
    crop_nonzero: bool | str = False,
    labels: Mapping[str, int] | None = None,
    ignore_label: int | None = None,
    slice_axis: int | None = None,
) -> list[Transform]:
    """The transforms after loading, in nnU-Net's order: crop, orientation, intensity, spacing.

    Volumes are turned to RAS and resampled to ``spacing`` (see ``Resampled``); pictures keep their pixels.

    Args:
        keys: "image" and "label", or "image" alone.
        spatial_dims: of the network, 2 or 3.
        spacing: voxel size in mm along RAS axes (None for an axis that keeps its own), or None (typed: null) to
            leave the grid as it is.
        normalization: one scheme per channel, None: z-scores (see ``normalizer``).
        crop_nonzero: crop to the bounding box of the voxels that are not 0 in every channel.
        labels: name -> value; label values become class indices in ascending order of value. None: left alone.
        ignore_label: value of voxels that nobody labelled, which become -1.
        slice_axis: axis along which a 2D network walks through volumes, or None.

    Raises:
        UserError: spacing or normalization make no sense.
    """
    dims = image_dims(spatial_dims, slice_axis)
    transforms: list[Transform] = []
    if labels is not None and "label" in keys:
        transforms.append(LabelIndexd(["label"], labels, or_none(ignore_label)))
    if as_flag(crop_nonzero, "crop_nonzero"):
        transforms.append(CropNonzerod(keys))
    if dims == 3:
        transforms.append(Orientationd(keys, axcodes="RAS", labels=None))
    transforms.append(Normalized(["image"], or_none(normalization)))
    spacing = or_none(spacing)
    if spacing is not None:
        if not (_is_list(spacing) and len(spacing) == dims and all(map(_is_voxel_size, spacing))):
            raise UserError(f"spacing must be {dims} positive numbers in mm, such as {[1.0] * dims}, not {spacing}")
        transforms.append(Resampled(keys, spacing))
    return transforms


def image_dims(spatial_dims: int, slice_axis: int | None) -> int:
    """Spatial dimensions of the images: 3 for a 2D network that walks through volumes, else the network's."""
    return spatial_dims if or_none(slice_axis) is None else 3


class LabelIndexd(MapTransform):
    """Label values to class indices: 0 stays the background, the labels follow in ascending order of value.

    Args:
        keys: label maps (1, *spatial).
        labels: name -> value.
        ignore_label: value that becomes -1, or None.
    """

    def __init__(self, keys: Sequence[Hashable], labels: Mapping[str, int], ignore_label: int | None = None) -> None:
        super().__init__(keys)
        values = sorted(labels.values())
        if max([*values, ignore_label or 0]) > LARGEST_VALUE:
            raise UserError(f"labels: values go up to {LARGEST_VALUE}, not {max([*values, ignore_label or 0])}")
        dtype = torch.int8 if len(values) <= torch.iinfo(torch.int8).max else torch.int16
        self.table = torch.zeros(max([*values, ignore_label or 0]) + 1, dtype=dtype)
        self.table[values] = torch.arange(1, len(values) + 1, dtype=dtype)
        if ignore_label is not None:
            self.table[ignore_label] = IGNORED

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        case = dict(data)
        for key in self.key_iterator(case):
            case[key] = with_meta(self._indices(case[key].as_tensor()), case[key])
        return case

    def _indices(self, label: torch.Tensor) -> torch.Tensor:
        result = torch.empty_like(label, dtype=self.table.dtype)
        for source, target in zip(label[0], result[0], strict=True):  # an index takes eight times the memory of a label
            target.copy_(self.table[source.long()])
        return result


class CropNonzerod(MapTransform, InvertibleTransform):
    """Crop to the bounding box of what is not 0 in "image"; the inverse puts certain background around logits."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        case = dict(data)
        inside = reduce(torch.logical_or, (channel != 0 for channel in case["image"].as_tensor()))
        box = [_extent(inside, axis) for axis in range(inside.ndim)]
        for key in self.key_iterator(case):
            case[key] = self._crop(case[key], box)
        return case

    def _crop(self, volume: MetaTensor, box: Sequence[tuple[int, int]]) -> MetaTensor:
        start = [low for low, _ in box]
        cropped = volume.as_tensor()[(slice(None), *(slice(*extent) for extent in box))]
        shift = torch.eye(len(start) + 1, dtype=torch.float64)
        shift[:-1, -1] = torch.tensor(start, dtype=torch.float64)
        extra = {"start": start, "affine": torch.as_tensor(volume.affine).clone()}
        result = with_meta(cropped.contiguous(), volume)
        return self.push_transform(result, orig_size=tuple(volume.shape[1:]), affine=shift, extra_info=extra)

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        case = dict(data)
        for key in self.key_iterator(case):
            trace = self.pop_transform(case[key])
            inner = case[key].as_tensor()
            outer = inner.new_full((len(inner), *trace["orig_size"]), FAR_BELOW)
            outer[0] = 0
            where = zip(trace["extra_info"]["start"], inner.shape[1:], strict=True)
            outer[(slice(None), *(slice(low, low + size) for low, size in where))] = inner
            case[key] = with_meta(outer, case[key])
            case[key].affine = trace["extra_info"]["affine"]
        return case


def check_patch_size(
    patch_size: Sequence[int], spatial_dims: int, strides: Sequence[Sequence[int]] | str | None = None
) -> None:
    """Refuse a patch that the network cannot take.

    Args:
        strides: pooling of each stage along each axis; None: three times 2 along every axis.

    Raises:
        UserError: not one positive size per axis, or a size that is not a multiple of what its axis is pooled by.
    """
    if not _is_list(patch_size) or len(patch_size) != spatial_dims:
        raise UserError(f"patch_size must be {spatial_dims} sizes, such as {[64] * spatial_dims}, not {patch_size}")
    strides = or_none(strides)
    if strides is not None and not (_is_list(strides) and all(_is_list(s) and len(s) == spatial_dims for s in strides)):
        raise UserError(f"strides: each stage needs {spatial_dims} numbers, one per axis, not {strides}")
    multiples = [8] * spatial_dims if strides is None else [prod(axis) for axis in zip(*strides, strict=True)]
    pairs = list(zip(patch_size, multiples, strict=True))
    if any(not isinstance(size, int) or size <= 0 or size % multiple for size, multiple in pairs):
        nearest = [max(multiple, round(float(size) / multiple) * multiple) for size, multiple in pairs]
        raise UserError(
            f"patch_size {list(patch_size)}: each size must be a positive multiple of "
            f"{multiples[0] if len(set(multiples)) == 1 else multiples}; nearest: {nearest}"
        )


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _is_voxel_size(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value is None or (is_number and 0 < value < inf)


def _extent(mask: torch.Tensor, axis: int) -> tuple[int, int]:
    """First index, and one past the last, at which ``mask`` is set; the whole axis where it never is."""
    others = [dim for dim in range(mask.ndim) if dim != axis]
    found = torch.nonzero(mask.amax(dim=others) if others else mask).flatten()
    return (int(found[0]), int(found[-1]) + 1) if len(found) else (0, mask.shape[axis])
