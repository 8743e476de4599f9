"""Intensity normalisation, one scheme per channel (nnU-Net's set)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from math import isfinite, nan
from typing import Any

import torch
from monai.transforms import MapTransform

from ..common.errors import UserError

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
            image = case[key].clone()
            functions = self.functions or [zscore] * len(image)
            if len(functions) != len(image):
                raise UserError(f"normalization names {len(functions)} channel(s), the image has {len(image)}")
            plain = image.as_tensor() if hasattr(image, "as_tensor") else image
            for channel, function in zip(plain, functions, strict=True):
                channel.copy_(function(channel))
            case[key] = image
        return case


def normalizer(scheme: Scheme) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function of one scheme.

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


def zscore(channel: torch.Tensor) -> torch.Tensor:
    deviation = channel.std(correction=0)
    return (channel - channel.mean()) / (deviation if deviation > 0 else 1)


def zscore_nonzero(channel: torch.Tensor) -> torch.Tensor:
    inside = channel != 0
    result = torch.zeros_like(channel)
    if inside.any():
        result[inside] = zscore(channel[inside])
    return result


def rgb(channel: torch.Tensor) -> torch.Tensor:
    if channel.max() > 255:  # as a camera's 16 bits a channel; nnU-Net refuses them too
        raise UserError(
            f'normalization "rgb" divides by 255, but an image holds {channel.max():g}: plan the data set again '
            "(python -m scripts.planning)"
        )
    return channel / 255


def unchanged(channel: torch.Tensor) -> torch.Tensor:
    return channel


def ct(channel: torch.Tensor, lower: float, upper: float, mean: float, std: float) -> torch.Tensor:
    return (channel.clamp(lower, upper) - mean) / max(std, 1e-8)
