"""nnU-Net's augmentation of a patch, on plain tensors (MONAI's transforms take several times as long)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from monai.transforms import Randomizable, RandomizableTransform, Transform
from numpy.random import RandomState

from ..command_line import or_none
from ..distributed import is_main_process
from ..errors import UserError
from .sampling import RandPatchd, in_plane, multiply_axes
from .sides import left_right_axis, sided_labels

__all__ = ["RandAlterd", "RandMirrord", "augmentation", "check_mirror_axes"]

logger = logging.getLogger("lightm_unet")


def augmentation(
    spatial_dims: int, patch_size: Sequence[int], mirror_axes: Sequence[int], slice_axis: int | None = None
) -> list[Transform]:
    """Cut a patch out of a prepared case and alter it.

    Args:
        spatial_dims: of the network, 2 or 3.
        patch_size: one size per dimension.
        mirror_axes: axes of the patch along which mirror images are as good as the originals.
        slice_axis: axis along which a 2D network walks through volumes, or None.
    """
    axes = in_plane(patch_size)
    return [
        RandPatchd(patch_size, slice_axis=slice_axis),
        RandAlterd(0.1, noise),
        RandAlterd(0.2, partial(blur, axes=axes)),
        RandAlterd(0.15, brightness),
        RandAlterd(0.15, contrast),
        RandAlterd(0.25, partial(low_resolution, axes=axes)),
        RandAlterd(0.1, partial(gamma, inverted=True)),
        RandAlterd(0.3, gamma),
        RandMirrord(mirror_axes),
    ]


def check_mirror_axes(
    mirror_axes: Sequence[int],
    spatial_dims: int,
    slice_axis: int | None,
    labels: Mapping[str, Any],
    regions: Mapping[str, Any],
) -> None:
    """Warn of a training that mirrors every axis although labels have sides, as older plans had it.

    Raises:
        UserError: ``mirror_axes`` is no list.
    """
    if not isinstance(mirror_axes, (list, tuple)):
        raise UserError(f"mirror_axes must be a list of axes, such as [0, 1], not {mirror_axes}")
    axis, sided = left_right_axis(spatial_dims, or_none(slice_axis)), sided_labels(labels, or_none(regions) or {})
    if sided and axis is not None and set(mirror_axes) == set(range(spatial_dims)) and is_main_process():
        shown = ", ".join(sided[:4]) + ", …" * (len(sided) > 4)
        logger.warning(
            f"labels of both sides ({shown}) are mirrored: take the left-right axis "
            f"({axis}, unless these are TIFF stacks) out of mirror_axes, or the network cannot tell them apart"
        )


class RandAlterd(RandomizableTransform):
    """Apply ``function(image, random_state)`` to the "image" with probability ``prob``."""

    def __init__(self, prob: float, function: Callable[[torch.Tensor, RandomState], torch.Tensor]) -> None:
        super().__init__(prob)
        self.function = function

    def __call__(self, data: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self.randomize(None)
        return {**data, "image": self.function(data["image"], self.R)} if self._do_transform else dict(data)


class RandMirrord(Randomizable, Transform):
    """Mirror image and label along each of ``axes`` with probability one half."""

    def __init__(self, axes: Sequence[int]) -> None:
        self.axes = list(axes)

    def __call__(self, data: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        chosen = [axis + 1 for axis in self.axes if self.R.random() < 0.5]
        return {key: torch.flip(value, chosen) if chosen else value for key, value in data.items()}


def noise(image: torch.Tensor, random: RandomState) -> torch.Tensor:
    """Gaussian, with a standard deviation of up to 0.1 (nnU-Net calls that number a variance, and uses it as this)."""
    generator = torch.Generator().manual_seed(int(random.randint(2**31 - 1)))
    return image + torch.randn(image.shape, generator=generator) * random.uniform(0, 0.1)


def blur(image: torch.Tensor, random: RandomState, axes: Sequence[int]) -> torch.Tensor:
    """Gaussian, of every other channel, with a sigma of 0.5 to 1 voxel of its own along each axis."""

    def blurred(channel: torch.Tensor) -> torch.Tensor:
        lengths = {axis: channel.shape[axis + 1] for axis in axes}
        return multiply_axes(channel, {axis: _gaussian(n, random.uniform(0.5, 1)) for axis, n in lengths.items()})

    return _half_the_channels(image, random, blurred)


def brightness(image: torch.Tensor, random: RandomState) -> torch.Tensor:
    """Multiply each channel by a factor of its own."""
    return image * _for_each_channel(image, random, 0.75, 1.25)


def contrast(image: torch.Tensor, random: RandomState) -> torch.Tensor:
    """Multiply the distance to each channel's mean by a factor of its own, within the old minimum and maximum."""
    factor = _for_each_channel(image, random, 0.75, 1.25).flatten(1)
    channels = image.flatten(1)
    low, high = torch.aminmax(channels, dim=1, keepdim=True)
    stretched = torch.lerp(channels.mean(1, keepdim=True), channels, factor)
    return torch.clamp(stretched, low, high).view(image.shape)


def low_resolution(image: torch.Tensor, random: RandomState, axes: Sequence[int]) -> torch.Tensor:
    """Every other channel sampled on a coarser grid (zoom 0.5 to 1) of its own, and interpolated back."""

    def lowered(channel: torch.Tensor) -> torch.Tensor:
        zoom = random.uniform(0.5, 1)
        return multiply_axes(channel, {axis: _down_and_up(channel.shape[axis + 1], zoom) for axis in axes})

    return _half_the_channels(image, random, lowered)


def gamma(image: torch.Tensor, random: RandomState, inverted: bool = False) -> torch.Tensor:
    """A gamma curve (0.7 to 1.5) over the range of each channel, which keeps its mean and standard deviation."""
    exponent = _for_each_channel(image, random, 0.7, 1.5).flatten(1)
    channels = (-image if inverted else image).flatten(1)
    deviation, mean = torch.std_mean(channels, dim=1, keepdim=True)
    low, high = torch.aminmax(channels, dim=1, keepdim=True)
    curved = ((channels - low) / (high - low + 1e-7)).pow_(exponent)
    new_deviation, new_mean = torch.std_mean(curved, dim=1, keepdim=True)
    scale = deviation / (new_deviation + 1e-8)
    result = curved.mul_(scale).add_(mean - new_mean * scale).view(image.shape)
    return -result if inverted else result


def _half_the_channels(
    image: torch.Tensor, random: RandomState, function: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """``function`` of each channel (1, *spatial), or the channel as it is, with probability one half."""
    return torch.cat([function(channel) if random.random_sample() < 0.5 else channel for channel in image.split(1)])


def _for_each_channel(image: torch.Tensor, random: RandomState, low: float, high: float) -> torch.Tensor:
    """A random factor a channel, of a shape to go with (channels, *spatial): below 1 as often as above."""
    below = random.random_sample(len(image)) < 0.5
    factors = np.where(below, random.uniform(low, 1, len(image)), random.uniform(1, high, len(image)))
    return torch.from_numpy(factors).float().view(-1, *[1] * (image.ndim - 1))


def _gaussian(length: int, sigma: float) -> torch.Tensor:
    """Rows are Gaussians around the diagonal; weights that fall outside the image are shared by those inside."""
    distance = np.abs(np.subtract.outer(np.arange(length), np.arange(length)))
    # Cut off: numbers that small would be subnormal, on which processors are many times slower.
    kernel = np.where(distance <= 4 * sigma, np.exp(-0.5 * (distance / sigma) ** 2), 0)
    return torch.from_numpy(kernel / kernel.sum(1, keepdims=True)).float()


def _down_and_up(length: int, zoom: float) -> torch.Tensor:
    """Nearest voxels of a coarser grid, then linear interpolation between them."""
    coarse = max(1, round(length * zoom))
    taken = np.minimum(((np.arange(coarse) + 0.5) * length / coarse).astype(int), length - 1)
    position = np.clip((np.arange(length) + 0.5) * coarse / length - 0.5, 0, coarse - 1)
    first = np.minimum(position.astype(int), max(coarse - 2, 0))
    second = np.minimum(first + 1, coarse - 1)
    matrix = np.zeros((length, length))
    rows: Any = np.arange(length)
    np.add.at(matrix, (rows, taken[first]), 1 - (position - first))
    np.add.at(matrix, (rows, taken[second]), position - first)
    return torch.from_numpy(matrix).float()
