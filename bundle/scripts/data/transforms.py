"""From a loaded case to what the network sees: crop, orientation, intensity, spacing; all of it can be undone."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from math import inf
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import Compose, InvertibleTransform, MapTransform, Orientationd, Transform

from ..common.command_line import as_typed
from ..common.errors import UserError
from ..images.cases import LoadCased
from ..images.label_names import LARGEST_VALUE
from .normalization import Normalized, Scheme
from .resampling import IGNORED, Resampled, with_meta

__all__ = ["CropNonzerod", "LabelIndexd", "Preparation"]

FAR_BELOW = -1e4  # logit of a class that is out of the question; float16 still holds it


@dataclass(frozen=True)
class Preparation:
    """How the images and labels of a task become what the network sees, said once: it builds the transforms, prepared
    cases are kept by it, and weights are compared with it.

    Args:
        spatial_dims: of the network, 2 or 3.
        in_channels: channels that an image must have.
        labels: name -> value of the foreground classes; values become class indices in ascending order.
        ignore_label: value of voxels that nobody labelled, which become -1, or None.
        slice_axis: axis along which a 2D network walks through volumes, or None.
        rows_first: whether the task was planned since 2D images of every format are read as (rows, columns), see
            ``LoadCased``.
        spacing: voxel size in mm along RAS axes (None for an axis that keeps its own), or None to leave the grid as
            it is.
        normalization: one scheme per channel, None: z-scores (see ``normalizer``).
        crop_nonzero: crop to the bounding box of the voxels that are not 0 in every channel.

    None, true and false may be the words that a command line hands on.

    Raises:
        UserError: spacing makes no sense; (in ``transforms``) normalization or a label's value does not.

    Example:
        >>> preparation = Preparation(spatial_dims=3, in_channels=1, labels={"liver": 1}, spacing=[1, 1, 2.5])
        >>> case = preparation.transforms("image")({"image": "case_1.nii.gz"})
    """

    spatial_dims: int
    in_channels: int
    labels: Mapping[str, int]
    ignore_label: int | None = None
    slice_axis: int | None = None
    rows_first: bool = True
    spacing: Sequence[float | None] | None = None
    normalization: Sequence[Scheme] | None = None
    crop_nonzero: bool = False

    def __post_init__(self) -> None:
        for name, value in as_typed(vars(self)).items():
            object.__setattr__(self, name, value)  # how a frozen dataclass sets its own
        dims, spacing = self.image_dims, self.spacing
        if spacing is not None and not (
            _is_list(spacing) and len(spacing) == dims and all(map(_is_voxel_size, spacing))
        ):
            raise UserError(f"spacing must be {dims} positive numbers in mm, such as {[1.0] * dims}, not {spacing}")

    @property
    def image_dims(self) -> int:
        """Spatial dimensions of the images: 3 for a 2D network that walks through volumes, else the network's."""
        return self.spatial_dims if self.slice_axis is None else 3

    def facts(self) -> dict[str, Any]:
        """All of it as JSON knows it."""
        return asdict(self)

    def transforms(self, *keys: str, as_filed: Sequence[str] = ()) -> Compose:
        """Loading and checking, then nnU-Net's order: crop, orientation, intensity, spacing.

        Volumes are turned to RAS and resampled to ``spacing`` (see ``Resampled``); pictures keep their pixels.

        Args:
            keys: "image" and "label", or "image" alone.
            as_filed: "label", to load and check it and leave it as its file has it.
        """
        load = LoadCased(
            [*keys, *as_filed], self.image_dims, self.in_channels, self.labels, self.ignore_label, self.rows_first
        )
        steps: list[Transform] = [load]
        if "label" in keys:
            steps.append(LabelIndexd(["label"], self.labels, self.ignore_label))
        if self.crop_nonzero:
            steps.append(CropNonzerod(keys))
        if self.image_dims == 3:
            steps.append(Orientationd(keys, axcodes="RAS", labels=None))
        steps.append(Normalized(["image"], self.normalization))
        if self.spacing is not None:
            steps.append(Resampled(keys, self.spacing))
        return Compose(steps)


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
