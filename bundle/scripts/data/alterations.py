"""What nnU-Net does to the intensities of a patch: drawn on the host, done on any device to many channels at once.

Each alteration draws a table (channels, parameters) for a patch; NaN leaves a channel alone. It is done to rows, the
chosen channels of all patches of a batch, (rows, *spatial) float32, with their lines of the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.random import Generator

__all__ = ["Alteration", "alterations", "to_device"]


class Alteration(NamedTuple):
    """One of them.

    Args:
        prob: of a patch to be altered.
        draw: (random numbers, channels) -> table of parameters.
        apply: (rows, their parameters) -> rows.
    """

    prob: float
    draw: Callable[[Generator, int], np.ndarray]
    apply: Callable[[torch.Tensor, np.ndarray], torch.Tensor]


def alterations(axes: Sequence[int]) -> list[Alteration]:
    """All of them in their order; ``axes``: those along which voxels are fine enough to be blurred."""
    factors, exponents = partial(_around_one, 0.75, 1.25), partial(_around_one, 0.7, 1.5)
    return [
        Alteration(0.1, _deviations, noise),
        Alteration(0.2, partial(_half_the_channels, 0.5, 1, len(axes)), partial(blur, axes=axes)),
        Alteration(0.15, factors, brightness),
        Alteration(0.15, factors, contrast),
        Alteration(0.25, partial(_half_the_channels, 0.5, 1, 1), partial(low_resolution, axes=axes)),
        Alteration(0.1, exponents, partial(gamma, inverted=True)),
        Alteration(0.3, exponents, gamma),
    ]


def _deviations(random: Generator, channels: int) -> np.ndarray:
    """One for all channels of a patch (nnU-Net calls 0.1 a variance, and uses it as a deviation), and a seed each."""
    deviation = random.uniform(0, 0.1)
    return np.stack([np.full(channels, deviation), random.integers(2**53, size=channels).astype(float)], axis=1)


def _around_one(low: float, high: float, random: Generator, channels: int) -> np.ndarray:
    """A factor a channel, below 1 as often as above."""
    below = random.random(channels) < 0.5
    factors = np.where(below, random.uniform(low, 1, channels), random.uniform(1, high, channels))
    return factors[:, None]


def _half_the_channels(low: float, high: float, parameters: int, random: Generator, channels: int) -> np.ndarray:
    """Every other channel, each with parameters of its own."""
    table = random.uniform(low, high, (channels, parameters))
    table[random.random(channels) >= 0.5] = np.nan
    return table


def noise(rows: torch.Tensor, parameters: np.ndarray) -> torch.Tensor:
    """Gaussian; a row's depends on its seed alone, not on which others are in the batch."""
    generator = torch.Generator(rows.device)
    added = torch.empty_like(rows)
    for row, (deviation, seed) in zip(added, parameters.tolist(), strict=True):
        row.normal_(0, deviation, generator=generator.manual_seed(int(seed)))
    return added.add_(rows)


def blur(rows: torch.Tensor, parameters: np.ndarray, axes: Sequence[int]) -> torch.Tensor:
    """Gaussian, with a deviation of its own (in voxels) along each of ``axes``."""
    sigmas = to_device(parameters, rows.device).unbind(1)
    return multiply_axes(rows, {a: _gaussian(rows.shape[a + 1], s) for a, s in zip(axes, sigmas, strict=True)})


def brightness(rows: torch.Tensor, parameters: np.ndarray) -> torch.Tensor:
    """Multiplied by a factor."""
    return rows * _column(rows, parameters)


def contrast(rows: torch.Tensor, parameters: np.ndarray) -> torch.Tensor:
    """The distance to the row's mean multiplied by a factor, within the old minimum and maximum."""
    flat = rows.flatten(1)
    low, high = torch.aminmax(flat, dim=1, keepdim=True)
    stretched = torch.lerp(flat.mean(1, keepdim=True), flat, to_device(parameters, rows.device))
    return stretched.clamp_(low, high).view(rows.shape)


def low_resolution(rows: torch.Tensor, parameters: np.ndarray, axes: Sequence[int]) -> torch.Tensor:
    """Sampled on a grid that is coarser by a zoom, and interpolated back."""
    zoom = to_device(parameters, rows.device)[:, 0]
    return multiply_axes(rows, {axis: _down_and_up(rows.shape[axis + 1], zoom) for axis in axes})


def gamma(rows: torch.Tensor, parameters: np.ndarray, inverted: bool = False) -> torch.Tensor:
    """A gamma curve over the range of each row, which keeps its mean and standard deviation."""
    flat = (-rows if inverted else rows).flatten(1)
    low, high = torch.aminmax(flat, dim=1, keepdim=True)
    curved = ((flat - low) / (high - low + 1e-7)).pow_(to_device(parameters, rows.device))
    (mean, size), (new_mean, new_size) = (_mean_and_size(values) for values in (flat, curved))
    scale = size / (new_size + 1e-8)
    result = curved.mul_(scale).add_(mean - new_mean * scale).view(rows.shape)
    return result.neg_() if inverted else result


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """A small array, floats as float32, without waiting for what the device has still to do."""
    tensor = torch.from_numpy(array.astype(np.float32) if array.dtype.kind == "f" else array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def multiply_axes(rows: torch.Tensor, matrices: Mapping[int, torch.Tensor]) -> torch.Tensor:
    """Multiply (rows, *spatial) by a matrix a row (rows, new size, size) along some of its spatial axes: any separable
    linear filter or interpolation, as fast as a matrix product."""
    for axis, matrix in matrices.items():
        before, after = math.prod(rows.shape[1 : axis + 1]), rows.shape[axis + 2 :]
        if after:
            matrix = matrix[:, None] if before > 1 else matrix
            product = matrix @ rows.reshape(len(rows), *[before] * (before > 1), rows.shape[axis + 1], -1)
        else:
            product = rows.reshape(len(rows), before, -1) @ matrix.mT
        rows = product.view(len(rows), *rows.shape[1 : axis + 1], matrix.shape[-2], *after)
    return rows


def _mean_and_size(flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each row its mean, and its standard deviation up to a factor (a CPU takes several times as long for
    torch.std)."""
    mean = flat.mean(1, keepdim=True)
    return mean, torch.linalg.vector_norm(flat - mean, dim=1, keepdim=True)


def _column(rows: torch.Tensor, parameters: np.ndarray) -> torch.Tensor:
    return to_device(parameters, rows.device).view(-1, *[1] * (rows.ndim - 1))


def _gaussian(length: int, sigma: torch.Tensor) -> torch.Tensor:
    """(rows, length, length): Gaussians around the diagonal; weights that fall outside the image are shared by those
    inside."""
    at = torch.arange(length, dtype=torch.float32, device=sigma.device)
    distance, sigma = (at - at[:, None]).abs(), sigma[:, None, None]
    # Cut off: numbers that small would be subnormal, on which processors are many times slower.
    kernel = torch.where(distance <= 4 * sigma, torch.exp(-0.5 * (distance / sigma) ** 2), 0.0)
    return kernel / kernel.sum(2, keepdim=True)


def _down_and_up(length: int, zoom: torch.Tensor) -> torch.Tensor:
    """(rows, length, length): nearest voxels of a coarser grid, then linear interpolation between them."""
    at = torch.arange(length, dtype=torch.float32, device=zoom.device)
    coarse = (length * zoom).round().clamp(min=1)[:, None]
    position = ((at + 0.5) * coarse / length - 0.5).clamp(min=0).minimum(coarse - 1)
    first = position.floor().minimum((coarse - 2).clamp(min=0))
    second = (first + 1).minimum(coarse - 1)
    weight = (position - first)[:, :, None]
    taken = [((k + 0.5) * length / coarse).floor().clamp(max=length - 1)[:, :, None] for k in (first, second)]
    return (taken[0] == at) * (1 - weight) + (taken[1] == at) * weight
