"""Test-time augmentation by mirroring, around any MONAI inferer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, combinations
from typing import Any

import torch
from monai.inferers import Inferer

from ..command_line import as_flag

__all__ = ["FlipTTAInferer", "with_flips"]


class FlipTTAInferer(Inferer):
    """Average the logits over every combination of mirrored axes (nnU-Net's test-time augmentation).

    Args:
        inferer: does the inference on each mirrored image, for example a SlidingWindowInferer.
        axes: spatial axes to mirror, 0 being the first after batch and channels; n axes give 2^n passes.
    """

    def __init__(self, inferer: Inferer, axes: Sequence[int]) -> None:
        super().__init__()
        self.inferer = inferer
        combos = chain.from_iterable(combinations(axes, count) for count in range(len(axes) + 1))
        self.flips = [[axis + 2 for axis in combo] for combo in combos]

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Inputs (batch, channels, *spatial) to logits (batch, classes, *spatial)."""
        total = self.inferer(inputs, network, *args, **kwargs)
        for axes in self.flips[1:]:
            mirrored = self.inferer(torch.flip(inputs, axes), network, *args, **kwargs)
            total = total + torch.flip(mirrored, axes)
        return total / len(self.flips)


def with_flips(inferer: Inferer, tta: bool | str, axes: Sequence[int]) -> Inferer:
    """``inferer`` itself, or with mirroring around it if ``tta`` is true and there are axes to mirror."""
    return FlipTTAInferer(inferer, axes) if as_flag(tta, "tta") and axes else inferer
