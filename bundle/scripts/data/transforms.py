"""The transforms of training, evaluation and inference, as lists that a config puts together."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from monai.transforms import (
    MapTransform,
    NormalizeIntensityd,
    Orientationd,
    RandAdjustContrastd,
    RandAffined,
    RandCropByPosNegLabeld,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandomizableTransform,
    RandScaleIntensityd,
    RandSimulateLowResolutiond,
    Spacingd,
    SpatialPadd,
    Transform,
)

from ..command_line import or_none
from ..errors import UserError

__all__ = ["RandContrastd", "augmentation", "check_patch_size", "preprocessing"]


def preprocessing(
    keys: Sequence[Hashable], spatial_dims: int, spacing: Sequence[float] | str | None
) -> list[Transform]:
    """Orientation, spacing and intensity, as after loading: what the network sees.

    Volumes are turned to RAS and resampled to ``spacing`` (image: third-order spline, label: nearest);
    pictures keep their pixels. Each image channel is z-scored (nnU-Net's rule for everything but CT).

    Args:
        keys: "image" and "label", or "image" alone.
        spatial_dims: 2 or 3.
        spacing: voxel size in mm along RAS axes, or None (typed: null) to leave the grid as it is.

    Raises:
        UserError: spacing does not have spatial_dims positive entries.
    """
    transforms: list[Transform] = []
    if spatial_dims == 3:
        transforms.append(Orientationd(keys, axcodes="RAS", labels=None))
    spacing = or_none(spacing)
    if spacing is not None:
        if isinstance(spacing, str) or len(spacing) != spatial_dims or min(spacing) <= 0:
            raise UserError(f"spacing must be {spatial_dims} positive numbers in mm, not {spacing}")
        modes = [3 if key == "image" else "nearest" for key in keys]
        padding = ["nearest" if key == "image" else "border" for key in keys]  # scipy's word and torch's
        transforms.append(Spacingd(keys, pixdim=spacing, mode=modes, padding_mode=padding))
    return [*transforms, NormalizeIntensityd("image", channel_wise=True)]


def augmentation(spatial_dims: int, patch_size: Sequence[int], mirror_axes: Sequence[int]) -> list[Transform]:
    """nnU-Net's augmentation: a patch of image and label, with foreground in a third of them, then altered.

    Args:
        spatial_dims: 2 or 3.
        patch_size: size of the patch; smaller images are padded with zeros (the mean, after z-scoring).
        mirror_axes: spatial axes along which mirror images are as good as the originals.
    """
    both, image = ["image", "label"], ["image"]
    angle = math.radians(180 if spatial_dims == 2 else 30)
    rotation = {"rotate_range": angle if spatial_dims == 2 else [angle] * 3}
    scaling = {"scale_range": [(-0.3, 0.4)] * spatial_dims}  # MONAI adds 1: 0.7 to 1.4
    affine: dict[str, Any] = {"mode": ("bilinear", "nearest"), "padding_mode": "zeros"}
    return [
        SpatialPadd(both, patch_size),
        RandCropByPosNegLabeld(both, "label", spatial_size=patch_size, pos=1, neg=2, num_samples=1),
        RandAffined(both, prob=0.2, **rotation, **affine),
        RandAffined(both, prob=0.2, **scaling, **affine),
        RandGaussianNoised(image, prob=0.1, std=math.sqrt(0.1)),
        RandGaussianSmoothd(image, prob=0.2, **dict.fromkeys(["sigma_x", "sigma_y", "sigma_z"], (0.5, 1.0))),
        RandScaleIntensityd(image, factors=0.25, prob=0.15),
        RandContrastd(image, prob=0.15),
        RandSimulateLowResolutiond(
            image,
            prob=0.25,
            zoom_range=(0.5, 1.0),
            upsample_mode="bilinear" if spatial_dims == 2 else "trilinear",
        ),
        RandAdjustContrastd(image, prob=0.1, gamma=(0.7, 1.5), retain_stats=True, invert_image=True),
        RandAdjustContrastd(image, prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
        *(RandFlipd(both, prob=0.5, spatial_axis=axis) for axis in mirror_axes),
    ]


class RandContrastd(RandomizableTransform, MapTransform):
    """Multiply the distance to each channel's mean by a factor in ``range``, within the old minimum and maximum.

    nnU-Net's contrast augmentation; MONAI's RandAdjustContrast is a gamma curve.
    """

    def __init__(self, keys: Sequence[Hashable], prob: float, range: tuple[float, float] = (0.75, 1.25)) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.range = range

    def __call__(self, data: dict[Hashable, Any]) -> dict[Hashable, Any]:
        data = dict(data)
        self.randomize(None)
        if self._do_transform:
            factor = self.R.uniform(*self.range)
            for key in self.keys:
                data[key] = _stretch(data[key], factor)
        return data


def check_patch_size(patch_size: Sequence[int], spatial_dims: int, multiple: int) -> None:
    """Refuse a patch that the network cannot take.

    Raises:
        UserError: not one positive size per axis, or a size that is not a multiple of ``multiple``.
    """
    if not isinstance(patch_size, (list, tuple)) or len(patch_size) != spatial_dims:
        raise UserError(f"patch_size must be {spatial_dims} sizes, such as {[64] * spatial_dims}, not {patch_size}")
    if any(not isinstance(size, int) or size <= 0 or size % multiple for size in patch_size):
        nearest = [max(multiple, round(size / multiple) * multiple) for size in patch_size]
        raise UserError(
            f"patch_size {list(patch_size)}: every size must be a positive multiple of {multiple}; nearest: {nearest}"
        )


def _stretch(image: torch.Tensor, factor: float) -> torch.Tensor:
    axes = tuple(range(1, image.ndim))
    mean = image.mean(dim=axes, keepdim=True)
    stretched = (image - mean) * factor + mean
    return torch.clamp(stretched, image.amin(dim=axes, keepdim=True), image.amax(dim=axes, keepdim=True))
