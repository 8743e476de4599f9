"""Intensity normalisation, one scheme per channel (nnU-Net's set)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from math import isfinite, nan
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform

from ..common.errors import UserError
from .resampling import with_meta

__all__ = ["Normalized", "normalizer"]

Scheme = str | Mapping[str, Mapping[str, float]]


class Normalized(MapTransform):
    """Normalise each channel of an image by its scheme.

    Args:
        keys: images (channels, *spatial).
        schemes: one per channel (see ``normalizer``), or None: z-score every channel.

    Raises:
        UserError: an unknown scheme, not as many schemes as channels, or an image with more than 8 bits for "rgb".
    """

    def __init__(self, keys: Sequence[Hashable], schemes: Sequence[Scheme] | None = None) -> None:
        super().__init__(keys)
        if schemes is not None and not isinstance(schemes, (list, tuple)):
            raise UserError(f'normalization must be a list, a scheme a channel, such as ["zscore"], not {schemes!r}')
        self.functions = None if schemes is None else [normalizer(scheme) for scheme in schemes]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        case = dict(data)
        for key in self.key_iterator(case):
            image = case[key]
            functions = self.functions or [zscore] * len(image)
            if len(functions) != len(image):
                raise UserError(f"normalization names {len(functions)} channel(s), the image has {len(image)}")
            plain = image.as_tensor() if isinstance(image, MetaTensor) else image
            normalised = torch.empty_like(plain, dtype=plain.dtype if plain.is_floating_point() else torch.float32)
            for source, target, function in zip(plain, normalised, functions, strict=True):
                function(source, target)
            case[key] = with_meta(normalised, image) if isinstance(image, MetaTensor) else normalised
        return case


def normalizer(scheme: Scheme) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """The function of one scheme, which writes what becomes of a channel (*spatial) into another tensor, of floats.

    "zscore": mean 0 and standard deviation 1 over the image; "zscore_nonzero": over its nonzero voxels, the others
    stay 0; "rgb": divided by 255; "none"; {"ct": {"lower", "upper", "mean", "std"}}: clipped, then the data set's
    mean and standard deviation.

    Raises:
        UserError: no such scheme, or "ct" without its four numbers.
    """
    named = {"zscore": zscore, "zscore_nonzero": zscore_nonzero, "rgb": rgb, "none": unchanged}
    if isinstance(scheme, str) and scheme in named:
        return named[scheme]
    numbers = scheme.get("ct") if isinstance(scheme, Mapping) else None
    if isinstance(numbers, Mapping) and {"lower", "upper", "mean", "std"} <= numbers.keys():
        values = {name: _number(numbers[name]) for name in ("lower", "upper", "mean", "std")}
        if not (all(map(isfinite, values.values())) and values["lower"] < values["upper"] and values["std"] > 0):
            raise UserError(f"normalization: ct needs numbers, lower below upper and std above 0, not {dict(numbers)}")
        return partial(ct, **values)
    raise UserError(
        f'normalization: {scheme!r} is none of {", ".join(named)} and {{"ct": {{"lower", "upper", "mean", "std"}}}}'
    )


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else nan


def zscore(channel: torch.Tensor, result: torch.Tensor) -> None:
    mean, deviation = _statistics(result.copy_(channel))
    result.sub_(mean).div_(deviation)


def zscore_nonzero(channel: torch.Tensor, result: torch.Tensor) -> None:
    mean, deviation = _statistics(_nonzero(channel, result.dtype))  # which is large, and gone before the result comes
    result.copy_(channel).sub_(mean).div_(deviation).masked_fill_(channel == 0, 0)


def _nonzero(channel: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The voxels that are not 0; PyTorch's own selection would list the places of all of them in memory."""
    voxels = torch.empty(sum(int(part.count_nonzero()) for part in channel), dtype=dtype)
    done = 0
    for part in channel:
        found = part.numpy()[part.numpy() != 0]
        voxels[done : done + len(found)] = torch.from_numpy(found)
        done += len(found)
    return voxels


def _statistics(voxels: torch.Tensor) -> tuple[torch.Tensor | int, torch.Tensor | int]:
    """Mean and standard deviation, 1 instead of 0."""
    if not voxels.numel():
        return 0, 1
    deviation = voxels.std(correction=0)
    return voxels.mean(), deviation if deviation > 0 else 1


def rgb(channel: torch.Tensor, result: torch.Tensor) -> None:
    if channel.max() > 255:  # as a camera's 16 bits a channel; nnU-Net refuses them too
        raise UserError(
            f'normalization "rgb" divides by 255, but an image holds {channel.max():g}: plan the data set again '
            "(python -m scripts.planning)"
        )
    result.copy_(channel).div_(255)


def unchanged(channel: torch.Tensor, result: torch.Tensor) -> None:
    result.copy_(channel)


def ct(channel: torch.Tensor, result: torch.Tensor, lower: float, upper: float, mean: float, std: float) -> None:
    result.copy_(channel).clamp_(lower, upper).sub_(mean).div_(max(std, 1e-8))
